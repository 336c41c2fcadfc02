"""Loads the compiled module, before anything else does.

Threads of GCC's OpenMP that wait for others spin for milliseconds, which makes the work several times slower on a machine
that others use too. It reads how long from the environment, once, when it is loaded: so the environment says so for that
moment only. What the user has set, stands.

A forked process has none of its parent's threads, and OpenMP would wait for them forever: they are ended before a fork.
"""

import os

_SPINS = "GOMP_SPINCOUNT"
_FEW = "1000"  # some 30 us: threads that end together still meet awake

if _SPINS in os.environ or "OMP_WAIT_POLICY" in os.environ:
    from . import _core
else:
    os.environ[_SPINS] = _FEW
    try:
        from . import _core
    finally:
        del os.environ[_SPINS]

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_core.release_threads)
