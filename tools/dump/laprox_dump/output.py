"""Where a dump goes: paths that cannot work are refused before any work is done, and again before the file takes its name."""

import os
import stat
import tempfile
from collections.abc import Iterable

from .errors import InputError, UsageError
from .files import kind, reason, same_file
from .interrupts import deferred

NAME_SHARE = 80  # bytes of the output's name that its temporary name repeats; names may have 255


def check_output(path: str, force: bool, inputs: Iterable[str] = ()) -> None:
    """Refuse an output path that cannot work, before any work is done. `inputs` are the files that are read.

    Throws InputError, and UsageError where it is one of them or, without `force`, exists.
    """
    if not path or "\0" in path:
        raise InputError(f"{path!r}: expected the name of a file to write")
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise InputError(f"{path}: its folder does not exist")
    check_target(path, force, inputs)
    with deferred():  # permission bits do not tell: only a try does
        handle, temporary = temporary_beside(path)
        os.close(handle)
        os.unlink(temporary)


def check_target(path: str, force: bool, inputs: Iterable[str] = ()) -> None:
    """Refuse to put a file where something stands that may not be replaced.

    `force` lets a regular file be replaced that is none of `inputs`. Never a link, which would cut it off from what it points to,
    and never a pipe, a device or a folder. Throws what check_output throws.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: cannot be written: {reason(e)}") from e
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path}: is a folder; expected the name of a file to write")
    if stat.S_ISLNK(status.st_mode):
        raise InputError(f"{path}: is a symbolic link, which is never replaced; give the name of the file itself")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is {kind(status)}; only a regular file can be replaced")
    clash = same_file(path, inputs)
    if clash is not None:
        raise UsageError(f"{path}: is the same file as the input {clash}; choose another name for the output")
    if not force:
        raise UsageError(f"{path}: exists already; choose another name or add --force")
    if not _may_be_a_dump(path):
        raise InputError(f"{path}: is no dump, and --force replaces nothing else; choose another name, or delete it")


def _may_be_a_dump(path: str) -> bool:
    """Whether a file is an HDF5 file that says so, or a damaged or an empty one."""
    import h5py

    with open(path, "rb") as file:
        beginning = file.read(8)
    if beginning != b"\x89HDF\r\n\x1a\n":
        return not beginning
    try:
        with h5py.File(path, "r") as file:
            found = file.attrs.get("format")
    except OSError:
        return True
    return isinstance(found, (str, bytes)) and found in ("laprox-dump", b"laprox-dump")


def temporary_beside(path: str) -> tuple[int, str]:
    """An open handle and the name of a new empty file beside `path`, hidden, with a name that nobody can foresee.

    Renaming it to `path` later cannot fail for want of space. Throws InputError.
    """
    folder, name = os.path.split(os.path.abspath(path))
    start = os.fsdecode(os.fsencode(name)[:NAME_SHARE]) if name.isascii() else "dump"
    try:
        return tempfile.mkstemp(prefix=f".{start}.", suffix=".partial", dir=folder)
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: cannot be written: {reason(e)}") from e


def move_into_place(temporary: str, path: str, force: bool, inputs: Iterable[str] = ()) -> None:
    """Give a complete file its name, if what stands there by now may still be replaced. Throws as check_output, or OSError."""
    check_target(path, force, inputs)
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)  # temporary files are made private
    if not force:
        try:
            os.link(temporary, path)  # unlike a rename, it fails if somebody else took the name a moment ago
            return
        except FileExistsError as e:
            raise UsageError(f"{path}: exists already; choose another name or add --force") from e
        except OSError:
            pass  # file systems without hard links
    os.replace(temporary, path)
