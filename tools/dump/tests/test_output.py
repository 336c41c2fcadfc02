"""What stands where a dump shall go: inputs, links, pipes, devices and what appears meanwhile are never replaced."""

import os
import socket
import stat

import pytest
from test_cli import refused

from laprox_dump.errors import InputError, UsageError
from laprox_dump.output import check_output, move_into_place, temporary_beside


def links_to(path, folder):
    """The file's own name, a second hard link and a symbolic link."""
    os.link(path, folder / "hard")
    os.symlink(path, folder / "soft")
    return {"itself": path, "hard": folder / "hard", "soft": folder / "soft"}


@pytest.mark.parametrize("how", ["itself", "hard", "soft"])
def test_force_never_replaces_the_arrays(dump_here, npz, tmp_path, how):
    before = open(npz, "rb").read()
    output = links_to(npz, tmp_path)[how]
    code, message = (3, "symbolic link") if how == "soft" else (2, "the same file as the input")
    refused(dump_here("--from-npz", npz, "-o", output, "--force"), code, message)
    assert open(npz, "rb").read() == before and sorted(os.listdir(tmp_path)) == ["hard", "in.npz", "soft"]


@pytest.mark.parametrize("what", ["prompt", "continuation", "weights", "config"])
def test_force_never_replaces_what_a_model_is_run_on(dump_here, tiny_checkpoint, tmp_path, what):
    (tmp_path / "p.txt").write_text("x")
    (tmp_path / "c.txt").write_text("y")
    victim = {
        "prompt": tmp_path / "p.txt",
        "continuation": tmp_path / "c.txt",
        "weights": tiny_checkpoint / "model.safetensors",
        "config": tiny_checkpoint / "config.json",
    }[what]
    before = victim.read_bytes()
    os.link(victim, tmp_path / "out.h5")
    for output in (victim, tmp_path / "out.h5"):
        options = ("--prompt-file", tmp_path / "p.txt", "--continuation", tmp_path / "c.txt", "-o", output, "--force")
        refused(dump_here(tiny_checkpoint, *options), 2, "the same file as the input")
    assert victim.read_bytes() == before


def make_odd(kind, path):
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(str(path))
    elif kind == "link":
        (path.parent / "target").write_text("kept")
        path.symlink_to("target")
    elif kind == "broken link":
        path.symlink_to("nowhere")
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize("kind", ["pipe", "socket", "link", "broken link", "folder"])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_only_regular_files_are_replaced(dump_here, npz, tmp_path, kind, force):
    make_odd(kind, tmp_path / "out.h5")
    before = os.lstat(tmp_path / "out.h5")
    reason = {"pipe": "a named pipe", "socket": "a socket", "folder": "is a folder"}.get(kind, "a symbolic link")
    refused(dump_here("--from-npz", npz, "-o", tmp_path / "out.h5", *force), 3, reason)
    after = os.lstat(tmp_path / "out.h5")
    assert (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)
    assert not (tmp_path / "target").exists() or (tmp_path / "target").read_text() == "kept"
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".partial")]


def test_devices_are_not_replaced(dump_here, npz):
    refused(dump_here("--from-npz", npz, "-o", "/dev/null", "--force"), 3, "/dev/null: is a character device")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.parametrize("force", [False, True])
def test_what_appears_meanwhile_is_kept(tmp_path, force):
    """Between the first check and the end of a run somebody else may take the name."""
    path = str(tmp_path / "out.h5")
    check_output(path, force)
    handle, temporary = temporary_beside(path)
    os.close(handle)
    os.mkfifo(path)
    with pytest.raises(InputError, match="is a named pipe"):
        move_into_place(temporary, path, force)
    os.unlink(path)
    (tmp_path / "out.h5").write_text("theirs")
    with pytest.raises(InputError if force else UsageError, match="is no dump" if force else "exists already"):
        move_into_place(temporary, path, force)
    assert (tmp_path / "out.h5").read_text() == "theirs"


def test_temporary_names_cannot_be_foreseen(tmp_path):
    made = [temporary_beside(str(tmp_path / ("n" * 250))) for _ in range(2)]
    names = [os.path.basename(name) for _, name in made]
    for handle, name in made:
        assert os.fstat(handle).st_ino == os.stat(name).st_ino and os.stat(name).st_mode & 0o777 == 0o600
        os.close(handle)
    assert names[0] != names[1] and all(n.startswith(".n") and n.endswith(".partial") for n in names)
