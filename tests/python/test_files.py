"""Files that take their place whole."""

import os
import resource
import stat

import pytest
from laprox import FileError
from laprox._files import check_output, replacing


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def bits(path):
    return stat.S_IMODE(path.stat().st_mode)


def write(path, text="new"):
    with replacing(path) as temporary:
        temporary.write_text(text)


def test_a_new_file_has_the_permissions_that_the_umask_leaves(tmp_path, umask):
    write(tmp_path / "new")
    assert (tmp_path / "new").read_text() == "new" and bits(tmp_path / "new") == 0o640
    assert os.listdir(tmp_path) == ["new"]


@pytest.mark.parametrize("mode", [0o600, 0o666, 0o755])
def test_a_replaced_file_keeps_its_permissions(tmp_path, umask, mode):
    old = tmp_path / "old"
    old.write_text("old")
    old.chmod(mode)
    write(old)
    assert old.read_text() == "new" and bits(old) == mode


def test_of_a_link_the_target_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write(link)
    assert link.is_symlink() and target.read_text() == "new"


@pytest.mark.parametrize("error", [OSError(28, "full"), RuntimeError("closing fails"), KeyError("a bug"), KeyboardInterrupt()])
def test_what_fails_leaves_the_older_file(tmp_path, error):
    old = tmp_path / "old"
    old.write_text("old")
    expected = FileError if isinstance(error, (OSError, RuntimeError)) else type(error)
    with pytest.raises(expected), replacing(old) as temporary:
        temporary.write_text("half")
        raise error
    assert old.read_text() == "old" and os.listdir(tmp_path) == ["old"]


def test_a_file_beyond_the_limit_is_one_message(tmp_path):
    old, limits = tmp_path / "old", resource.getrlimit(resource.RLIMIT_FSIZE)
    old.write_text("old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(FileError, match="old: cannot be written: File too large$"):
            write(old, "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert old.read_text() == "old" and os.listdir(tmp_path) == ["old"]


def test_what_cannot_be_a_file_is_refused_before_anything_is_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    cases = [
        (tmp_path, "found a folder"),
        (tmp_path / "pipe", "found something else"),
        ("/dev/null", "found something else"),
        (tmp_path / "none" / "x", "does not exist"),
        (tmp_path / "loop", "cannot be written"),
        (tmp_path / ("x" * 300), "too long"),
        ("", "expected the name"),
    ]
    for path, words in cases:
        for refused in (check_output, write):
            with pytest.raises(FileError, match=words):
                refused(path)
    assert sorted(os.listdir(tmp_path)) == ["loop", "pipe"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_what_may_not_be_written_is_refused(tmp_path):
    old = tmp_path / "old"
    old.write_text("old")
    old.chmod(0o444)
    with pytest.raises(FileError, match="write-protected"):
        check_output(old)
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(FileError, match="Permission denied"):
            check_output(tmp_path / "new")
    finally:
        tmp_path.chmod(0o755)


def test_checking_leaves_nothing(tmp_path):
    (tmp_path / "old").write_text("old")
    check_output(tmp_path / "old")
    check_output(tmp_path / "new")
    assert os.listdir(tmp_path) == ["old"] and (tmp_path / "old").read_text() == "old"
