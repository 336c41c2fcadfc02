"""A forked process goes on with laprox, though it has none of the threads that its parent had."""

import os
import subprocess
import sys

import pytest

FORKED = """
import multiprocessing, os, sys
import numpy as np
import laprox

rng = np.random.default_rng(0)
q, k, v, w_o = (rng.standard_normal(shape) for shape in ((4, 60, 8), (2, 60, 8), (2, 60, 8), (32, 20)))
layer = laprox.Layer(q, k, v, w_o, context_length=50)

def kept(budget):
    return laprox.kept(layer, "snapkv:window=8", budget, threads=2).counts

here = kept(20)
child = os.fork()
if child == 0:
    os._exit(0 if kept(20) == here else 1)
assert os.waitpid(child, 0)[1] == 0
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(kept, [20, 30]) == [here, kept(30)]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_computes_too():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
