"""The exceptions of laprox. They have the names of the C++ library's and mean the same."""

from typing import NoReturn


class Error(Exception):
    """Base of everything that laprox raises on purpose."""


class UsageError(Error, ValueError):
    """The request cannot be carried out: an unknown name, an option out of range, a budget that cannot be met."""


class ArrayError(UsageError, TypeError):
    """An array that cannot be used: its rank, its shape, its element type or where it lies. The message names it."""


def refuse_array(name: str, expected: str, found: str) -> NoReturn:
    """Raises ArrayError for the array `name`."""
    raise ArrayError(f"{name}: expected {expected}, found {found}")


class FileError(Error):
    """A file that cannot be read or written."""


class DumpError(FileError):
    """A dump or report that breaks its format, or a layer with a value that is not finite."""


class VerificationError(Error):
    """What was checked is not what it should be."""


class BackendError(Error):
    """A backend that is unknown, unavailable, out of memory, or whose arithmetic left the range of its numbers."""


class Bug(Error):
    """A broken invariant: a bug in laprox, not a mistake of its user."""
