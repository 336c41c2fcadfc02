"""The exceptions of laprox. They have the names of the C++ library's and mean the same."""

import re
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


#: An option of the command `laprox`, with a value that is one word; those of laprox-dump stay what they are.
_OPTION = re.compile(r"(?<!laprox-dump )--([a-z][a-z-]*)(?: (cpu|cuda|reference|window|decoded|truncated|renormalized)\b)?")
_ARGUMENTS = {"policy": "policies", "budget": "budgets"}
_PHRASES = {
    "for example --budget 5%,10%,128": 'for example budgets=["5%", "10%", 128]',
    "'laprox policies' lists all": "laprox.policies() lists all",
}


def reworded(message: str) -> str:
    """A message of the C++ library with Python's arguments for the command line's options: backend="cpu" for --backend cpu."""
    for phrase, instead in _PHRASES.items():
        message = message.replace(phrase, instead)

    def argument(option: re.Match[str]) -> str:
        name = _ARGUMENTS.get(option[1], option[1].replace("-", "_"))
        return f'{name}="{option[2]}"' if option[2] else name

    return _OPTION.sub(argument, message)
