"""The standard streams: a failure to print is noticed, and a closed one does not end up as somebody else's file."""

import os
import sys
from contextlib import suppress

from .errors import InputError, one_line


def open_missing() -> None:
    """Give each of the three standard handles that is closed to the null device, before a dump gets its number.

    A library that then prints an error would write it into the dump.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def say(text: str) -> None:
    """Print a line of results. Throws InputError if nobody can have seen it."""
    if sys.stdout is None:
        raise InputError("standard output is closed; the dump was written")
    try:
        encoding = sys.stdout.encoding or "utf-8"
        print(one_line(text).encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as e:
        with suppress(OSError, ValueError):  # what is left in the buffer would fail once more when Python ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise InputError(f"standard output cannot be written ({e.strerror}); the dump was written") from e


def complain(text: str) -> None:
    """Print a line to standard error, if there is one."""
    if sys.stderr is None:
        return
    with suppress(OSError, ValueError):
        encoding = sys.stderr.encoding or "utf-8"
        print(f"laprox-dump: {one_line(text)}".encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)
