"""Threads that wait do not spin for long, unless the user says so: a busy machine would be slow for everyone."""

import os
import re
import subprocess

import pytest


@pytest.mark.parametrize(
    "user, spins",
    [({}, "1000"), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "active"}, None), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_how_long_threads_spin(laprox, user, spins):
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    shown = {**clean, **user, "OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run([laprox.binary, "--version"], env=shown, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and done.stdout.startswith("laprox ")
    found = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)[-1]  # the program starts itself once more, and shows it again
    assert found == spins if spins else int(found) > 1_000_000
