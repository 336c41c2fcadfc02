"""Plain arguments: what is no number, no whole number or no text is a UsageError that names the argument."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from ._errors import UsageError

LARGEST = 2**63 - 1  # of an integer in the library


def whole(value: Any, name: str, least: int, most: int | None = None) -> int:
    """A whole number of Python, NumPy or PyTorch, from `least` to `most`; True and 1.0 are none."""
    number = as_index(value)
    if number is None or number < least or (most is not None and number > most):
        raise UsageError(f"{name}: expected a whole number {_range(least, most)}, found {brief(value)}")
    return number


def as_index(value: Any) -> int | None:
    """The whole number that a value is; None where it is anything else."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # the last of PyTorch, of a tensor without values
        return None


def real(value: Any, name: str, above: bool = False) -> float:
    """A finite number that is 0 or more, or above 0."""
    expected = "above 0" if above else "that is 0 (none) or more"
    try:
        number = math.nan if isinstance(value, (bool, np.bool_, str, bytes)) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < 0 or (above and number == 0):
        raise UsageError(f"{name}: expected a finite number {expected}, found {brief(value)}")
    return number


def text(value: Any, name: str, example: str) -> str:
    """A string; `example` says what one looks like."""
    if not isinstance(value, str):
        raise UsageError(f"{name}: expected a string such as {example}, found {brief(value)}")
    return value


def file_name(value: Any, name: str) -> str:
    """A path, as a string."""
    found = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(found, str):
        raise UsageError(f"{name}: expected a file's name, a string or a pathlib.Path, found {brief(value)}")
    return found


def one_of(value: Any, name: str, known: Collection[str]) -> str:
    """A string out of `known`."""
    if not isinstance(value, str) or value not in known:
        raise UsageError(f"{name}: expected one of {', '.join(known)}, found {brief(value)}")
    return value


def callback(value: Any, name: str) -> Callable[..., Any] | None:
    """A callable, or None."""
    if value is not None and not callable(value):
        raise UsageError(f"{name}: expected a callable, found {brief(value)}")
    return value


def brief(value: Any) -> str:
    """A value as a message shows it: in full where that is short."""
    try:
        shown = repr(value)
    except Exception:
        shown = ""
    return shown if 0 < len(shown) <= 60 and "\n" not in shown else type(value).__name__


def _range(least: int, most: int | None) -> str:
    if most is None:
        return f"of {least} or more"
    return f"from {least} to {'2**63 - 1' if most == LARGEST else most}"
