"""Files as a user may name them: only regular ones are read, and no output may be one of the inputs."""

import os
import stat
from collections.abc import Iterable, Iterator

from .errors import InputError

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a symbolic link"),
)


def kind(status: os.stat_result) -> str:
    """What a status says the file is, in words: "a named pipe"."""
    return next((name for test, name in KINDS if test(status.st_mode)), "a regular file")


def require_regular(path: str) -> None:
    """Refuse what is not a regular file, links followed: a pipe would block, a device never end. Throws InputError."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as e:
        raise InputError(f"{path}: cannot be read: {reason(e)}") from e
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: expected a regular file, found {kind(status)}")


def read_regular(path: str) -> bytes:
    """The bytes of a regular file. Throws InputError; never blocks on a pipe, also if the file is exchanged meanwhile."""
    require_regular(path)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as f:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path}: expected a regular file, found {kind(status)}")
            data = f.read()
    except OSError as e:
        raise InputError(f"{path}: cannot be read: {reason(e)}") from e
    if data is None:  # some of the system's own files wait for data, and look regular
        raise InputError(f"{path}: expected a regular file, found one that gives no data yet")
    return data


def reason(error: Exception) -> str:
    """Why a call of the operating system failed. A ValueError comes from names that it cannot take, such as one with a NUL."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def same_file(path: str, inputs: Iterable[str]) -> str | None:
    """The first of `inputs` that is the very file `path` (device and inode, so links of both kinds count), or None."""
    try:
        output = os.stat(path)
    except (OSError, ValueError):
        return None
    for name in inputs:
        try:
            if os.path.samestat(output, os.stat(name)):
                return name
        except (OSError, ValueError):
            continue
    return None


def files_below(folder: str) -> Iterator[str]:
    """The paths of all files below a folder; none if it is not a folder. Links to folders are not followed."""
    for place, _, names in os.walk(folder):
        for name in names:
            yield os.path.join(place, name)
