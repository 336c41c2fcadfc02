"""Where a dump goes: paths that cannot work are refused before any work is done."""

import os
import tempfile

from .errors import InputError


def check_output(path: str, force: bool) -> None:
    """Refuse an output path that cannot work, before any work is done. Throws InputError."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; expected the name of a file to write")
    if not os.path.isdir(folder):
        raise InputError(f"{path}: its folder does not exist")
    if os.path.exists(path) and not force:
        raise InputError(f"{path}: exists already; choose another name or add --force")
    os.unlink(temporary_beside(path))  # permission bits do not tell: only a try does


def temporary_beside(path: str) -> str:
    """A new empty file beside `path`, hidden; renaming it to `path` later cannot fail for want of space. Throws InputError."""
    folder, name = os.path.split(os.path.abspath(path))
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", suffix=".partial", dir=folder)
    except OSError as e:
        raise InputError(f"{path}: cannot be written: {e.strerror}") from e
    os.close(handle)
    return temporary
