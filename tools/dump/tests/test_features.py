"""Features must matter: a dump in which one is turned off no longer reproduces the model."""

import shutil

import h5py
import numpy_replay
import pytest


def drop_sinks(g):
    del g["sinks"]


def drop_bias(g):
    del g["b_o"]


def attribute(name, change):
    def apply(g):
        g.attrs[name] = change(g.attrs[name])

    return apply


def swap_two_keys(g):
    k = g["k"][()]
    k[:, [20, 60]] = k[:, [60, 20]]
    g["k"][...] = k


CASES = {
    "soft-cap off": ("gemma2", 1, attribute("softcap", lambda x: 0.0)),
    "soft-cap doubled": ("gemma2", 1, attribute("softcap", lambda x: 2 * x)),
    "window off": ("gemma2", 0, attribute("sliding_window", lambda x: 0)),
    "window off (mistral)": ("mistral", 2, attribute("sliding_window", lambda x: 0)),
    "window off (gemma3)": ("gemma3", 0, attribute("sliding_window", lambda x: 0)),
    "window one longer": ("mistral", 1, attribute("sliding_window", lambda x: x + 1)),
    "window where there is none": ("gemma2", 1, attribute("sliding_window", lambda x: 16)),
    "sinks off": ("gpt-oss", 1, drop_sinks),
    "sinks off under a window": ("gpt-oss", 0, drop_sinks),
    "bias off": ("gpt2", 1, drop_bias),
    "scale of d": ("granite", 0, attribute("scale", lambda x: 12**-0.5)),
    "two keys swapped": ("llama", 0, swap_two_keys),
}


@pytest.fixture(params=CASES)
def changed(request, dumps, tmp_path):
    """A dump with one feature changed in one layer: (path, layer)."""
    family, layer, change = CASES[request.param]
    path = tmp_path / "changed.h5"
    shutil.copy(dumps(family), path)
    with h5py.File(path, "r+") as f:
        change(f[f"layers/{layer}"])
    return path, layer


def test_the_replay_notices(changed):
    path, layer = changed
    found = numpy_replay.errors(path)
    assert found[layer] > 1e-3  # ten times what the proof accepts in float32
    assert all(e < 2e-6 for i, e in enumerate(found) if i != layer)


def test_laprox_inspect_notices(changed, laprox):
    result = laprox("inspect", changed[0])
    assert result.returncode == 5, result.stdout + result.stderr
    assert f"/layers/{changed[1]}: the self-check failed" in result.stderr
