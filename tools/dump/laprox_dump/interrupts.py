"""Interrupts that wait: HDF5 calls back into Python to write, and its C code would lose an exception that is thrown there."""

import signal
import threading
from contextlib import contextmanager

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def deferred():
    """Hold SIGINT, SIGTERM and SIGHUP back until the block ends, then hand them to their handlers. Other threads get none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = []
    ours = [n for n in SIGNALS if callable(signal.getsignal(n))]
    before = {n: signal.signal(n, lambda number, frame: caught.append(number)) for n in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        before[caught[0]](caught[0], None)


@contextmanager
def as_keyboard_interrupt():
    """Inside the block SIGTERM and SIGHUP end the work as Ctrl-C does, so that nothing half-written stays.

    A signal that the caller ignores (`nohup`) stays ignored. The handlers of before come back at the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    others = [n for n in SIGNALS if n != signal.SIGINT and signal.getsignal(n) is signal.SIG_DFL]
    before = {n: signal.signal(n, _interrupt) for n in others}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(*_):
    raise KeyboardInterrupt
