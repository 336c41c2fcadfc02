"""Interrupts that wait: HDF5 calls back into Python to write, and its C code would lose an exception that is thrown there."""

import signal
import threading
from contextlib import contextmanager


@contextmanager
def deferred():
    """Hold SIGINT and SIGTERM back until the block ends, then hand them to their handlers. Other threads get no signals anyway."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught = []
    ours = [n for n in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(n))]
    before = {n: signal.signal(n, lambda number, frame: caught.append(number)) for n in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        before[caught[0]](caught[0], None)
