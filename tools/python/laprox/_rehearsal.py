"""Damaged files that HDF5 crashes on, or that it does not come to an end with, are found out in a child process.

As src/io/rehearsal.cpp does it. What a child cannot decide, because it is not allowed or stands still, is tried all the same.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ._errors import DumpError

_SECONDS = 15  # longer than any sound file's structure takes, even on a slow disk
_CPU_SECONDS = 5
_BYTES_PER_SECOND = 16e6  # that a child reads at least
_MEMORY, _MEMORY_PER_BYTE, _MOST_MEMORY = 512 << 20, 16, 4 << 30  # beyond what the parent holds already
_OUT_OF_MEMORY = 41  # the child's exit code
_STOPPED = (signal.SIGALRM, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # which say nothing about the file

_passed: set[tuple[Any, ...]] = set()  # files that were read to the end, as what, and what they were then


def rehearse(path: str | Path, kind: str, read: Callable[[], Any]) -> None:
    """Calls read() in a child process, whose answers and exceptions are dropped. Raises DumpError where that ends the child."""
    import h5py  # noqa: F401  (before the fork: the child should import nothing)

    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return
    state = (kind, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if state in _passed or not os.path.isfile(path) or not hasattr(os, "fork"):
        return
    ending = _ending_of_child(read, status.st_size)
    if ending is None:
        return
    if ending != 0:
        raise DumpError(
            f"{path}: file: expected {kind} (HDF5), found a damaged file: {_words(ending)}; make it again, or copy it again"
        )
    _passed.add(state)


def _ending_of_child(read: Callable[[], Any], size: int) -> int | None:
    """A signal's number, negative, or an exit code; nothing where there was no child, or something else ended it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads; a child that stands still is ended
            child = os.fork()
    except OSError:
        return None
    if child == 0:
        _read_and_exit(read, size)
    try:
        _, status = os.waitpid(child, 0)
    except ChildProcessError:
        return None
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    code = os.waitstatus_to_exitcode(status)
    return None if -code in _STOPPED or code not in (0, _OUT_OF_MEMORY) and code > 0 else code


def _read_and_exit(read: Callable[[], Any], size: int) -> None:
    code = 1
    try:
        _set_limits(size)
        read()
        code = 0
    except MemoryError:
        code = _OUT_OF_MEMORY
    except BaseException as error:  # which is the parent's to report
        code = _OUT_OF_MEMORY if "allocat" in str(error) else 0
    finally:
        os._exit(code)  # the parent's buffers and handlers are not the child's to flush or to run


def _set_limits(size: int) -> None:
    """What a file of this size may take; its words go nowhere."""
    import resource

    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGXCPU", "SIGSEGV", "SIGBUS", "SIGABRT"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    seconds = int(size / _BYTES_PER_SECOND)
    _lower(resource.RLIMIT_CORE, 0)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + _CPU_SECONDS + seconds)
    with suppress(OSError, ValueError, IndexError):
        held = int(Path("/proc/self/statm").read_text().split()[5]) * os.sysconf("SC_PAGESIZE")
        _lower(resource.RLIMIT_DATA, held + min(_MOST_MEMORY, _MEMORY + _MEMORY_PER_BYTE * size))
    signal.alarm(_SECONDS + 2 * seconds)


def _lower(limit: int, value: int) -> None:
    import resource

    most = resource.getrlimit(limit)[1]
    resource.setrlimit(limit, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _words(ending: int) -> str:
    if ending == _OUT_OF_MEMORY:
        return "the HDF5 library wants more memory for it than a file of its size can need"
    if -ending == signal.SIGXCPU:
        return "the HDF5 library does not come to an end with it"
    return f"the HDF5 library crashes on it (signal {-ending})"
