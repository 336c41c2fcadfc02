"""The examples run where they can."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_triton_kernel_is_verified(laprox, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    dump, norms = ROOT / "data/niah-1k.h5", tmp_path / "norms.h5"
    ran = subprocess.run([sys.executable, ROOT / "examples/triton_column_norms.py", dump, norms], capture_output=True, text=True)
    if ran.returncode == 77:
        pytest.skip(ran.stdout.strip())
    assert ran.returncode == 0, ran.stderr
    assert "verified" in laprox("verify", dump, "--candidate", norms, "--policy", "laprox").stdout
