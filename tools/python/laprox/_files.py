"""Files that take their place whole: who reads one sees the older or the new, and a write that fails leaves the older."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ._errors import FileError, UsageError


@contextmanager
def replacing(path: str | Path, inputs: Iterable[str | Path] = ()) -> Iterator[Path]:
    """Yields a new empty file beside `path` to write to, which takes the place of `path` when the block ends.

    It keeps the permission bits of a file that it replaces; a new file gets those that the umask leaves. Of a symbolic link the
    target is replaced. Where the block or the renaming fails, `path` stays as it was and the new file is removed.

    Raises FileError where `path` is no regular file, may not be written, or its folder takes no new file, and for an OSError of
    the block, and for a RuntimeError, which is what h5py raises where closing a file fails. Raises UsageError where `path` is
    one of `inputs`, as check_output does.
    """
    target, mode = _target(path)
    _refuse_inputs(path, target, mode, inputs)
    temporary = _create(path, target, mode)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
    except (OSError, RuntimeError) as error:
        raise FileError(f"{path}: cannot be written: {reason(error)}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_output(path: str | Path, inputs: Iterable[str | Path] = ()) -> None:
    """Raises FileError where replacing(path) would, before there is anything to write. Leaves nothing behind.

    Raises UsageError where `path` is one of the files that are read, `inputs`, by whatever name, or in one of these folders.
    """
    target, mode = _target(path)
    _refuse_inputs(path, target, mode, inputs)
    _create(path, target, mode).unlink()


def check_kind(path: str | Path, kind: str) -> None:
    """Raises FileError where the file `path`, which is to be replaced, is not empty and no HDF5 file of this format.

    Damaged HDF5 files may be replaced.
    """
    import h5py

    with open(path, "rb") as file:
        beginning = file.read(8)
    if not beginning:
        return
    found: object = None
    if beginning == b"\x89HDF\r\n\x1a\n":
        try:
            with h5py.File(path, "r") as file:
                found = file.attrs.get("format")
        except OSError:
            return
    found = found.decode("latin-1") if isinstance(found, bytes) else found  # as the command line writes it
    if not isinstance(found, str) or found != kind:
        what = f"one of the format {found!r:.40}" if isinstance(found, str) else "another kind of file"
        raise FileError(f"{path}: only a file of the format {kind!r} is replaced, found {what}; choose another name, or delete it")


def reason(error: BaseException) -> str:
    """What went wrong, in one line and without Python's numbers and file names."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else (str(error).strip().splitlines() or [type(error).__name__])[0]


def _target(path: str | Path) -> tuple[Path, int | None]:
    """The file that `path` leads to, and its permission bits where it exists."""
    if not str(path) or "\0" in str(path):
        raise FileError(f"{str(path)!r}: expected the name of a file to write")
    target = Path(os.path.realpath(path))
    try:
        status = target.stat()
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise FileError(f"{path}: cannot be written: the folder {target.parent} does not exist; make it first") from None
        return target, None
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be written: {reason(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        found = "a folder" if stat.S_ISDIR(status.st_mode) else "something else"
        raise FileError(f"{path}: expected a regular file or a new name, found {found}")
    if not os.access(target, os.W_OK):  # renaming would not ask
        raise FileError(f"{path}: cannot be written: the file is write-protected; choose another name or chmod u+w it")
    return target, stat.S_IMODE(status.st_mode) & 0o777


def _refuse_inputs(path: str | Path, target: Path, mode: int | None, inputs: Iterable[str | Path]) -> None:
    for name in inputs if mode is not None else ():  # a new file is none that is read
        found = Path(os.path.realpath(name))
        if found.exists() and (target.samefile(found) or found in target.parents):
            raise UsageError(f"{path}: the output is {name}, which is read, or in it; choose another name")


def _create(path: str | Path, target: Path, mode: int | None) -> Path:
    """A new empty file beside `target` under a name that nobody foresees."""
    temporary = target.with_name(f".laprox-{secrets.token_hex(8)}.part")
    try:
        if len(os.fsencode(target.name)) > os.pathconf(target.parent, "PC_NAME_MAX"):
            raise FileError(f"{path}: cannot be written: the name is too long")
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else mode)
        try:
            if mode is not None:
                os.fchmod(handle, mode)  # what the umask took from it
        finally:
            os.close(handle)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {reason(error)}") from error
    return temporary


def _sync(path: Path) -> None:
    """Waits for the disk: some file systems tell only now that it is full."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
