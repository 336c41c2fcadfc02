"""Freed tensors go back to the system, so that what a run takes does not grow with the number of layers."""

import ctypes

M_MMAP_THRESHOLD, THRESHOLD = -3, 1 << 20  # the first is glibc's constant


def give_back_freed_tensors() -> None:
    """Let the C library map each block of a MiB or more by itself, for the rest of the process; a no-op where it is not glibc.

    Left alone, glibc comes to keep freed blocks of up to 32 MiB in its heap, in pieces that the next layer's do not fit: every
    layer left about its own size behind, although no tensor of it was alive.
    """
    try:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, THRESHOLD)
    except (AttributeError, OSError, TypeError):
        pass
