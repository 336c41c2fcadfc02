"""Loading the module: for how long the threads that it brings may spin, and that the process's environment stays as it was."""

import os
import re
import subprocess
import sys
from pathlib import Path

import laprox._core
import pytest

PROGRAM = "import laprox, os; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize("user, left, spins", [({}, "None", "1000"), ({"GOMP_SPINCOUNT": "77"}, "77", "77")])
def test_threads_that_wait_do_not_spin_for_long(user, left, spins):
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    shown = {**clean, **user, "OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=shown, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == left
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr) == [spins]


def test_the_module_brings_no_hdf5():
    """Whatever it was linked with: a second HDF5 beside h5py's own would be in its way."""
    assert b"libhdf5" not in Path(laprox._core.__file__).read_bytes()
