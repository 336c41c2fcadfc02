"""Layers, dumps and reports that the tests share.

LAPROX_BIN names the command line; tests that compare with it are skipped where it is not given.
"""

import os
import subprocess
from pathlib import Path

import h5py
import laprox
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def arrays(seed=0, *, query_heads=4, kv_heads=2, tokens=96, head_size=8, value_size=6, model_size=10, queries=None):
    """q, k, v and w_o of one layer, float32."""
    rng = np.random.default_rng(seed)
    shapes = {
        "q": (query_heads, queries or tokens, head_size),
        "k": (kv_heads, tokens, head_size),
        "v": (kv_heads, tokens, value_size),
        "w_o": (query_heads * value_size, model_size),
    }
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def layer(seed=0, context_length=80, **sizes):
    return laprox.Layer(**arrays(seed, **sizes), context_length=context_length)


def write_dump(path, layers, context_length=80):
    """A dump of these arrays; bfloat16 ones are given as uint16."""
    with h5py.File(path, "w") as file:
        file.attrs.update(format="laprox-dump", version=1, context_length=context_length, model="random")
        file["query_positions"] = np.arange(layers[0]["k"].shape[1])
        for i, each in enumerate(layers):
            for name, values in each.items():
                file[f"layers/{i}/{name}"] = values
                if values.dtype == np.uint16:
                    file[f"layers/{i}/{name}"].attrs["dtype"] = "bfloat16"
    return path


@pytest.fixture
def layers():
    return [layer(seed) for seed in range(3)]


@pytest.fixture
def dump(tmp_path):
    return write_dump(tmp_path / "dump.h5", [arrays(seed) for seed in range(3)])


@pytest.fixture(scope="session")
def needle_dump():
    return ROOT / "data" / "niah-1k.h5"


@pytest.fixture(scope="session")
def catalogue_report():
    """Every policy at three budgets on two small prompts, with the kept tokens."""
    prompts = [[layer(seed) for seed in range(2)], [layer(seed + 10) for seed in range(2)]]
    return laprox.sweep(prompts, catalogue(), [40, 50, 60], save_kept=True)


def catalogue():
    """The policies that 96 random tokens without RoPE frequencies can serve, with windows that fit."""
    names = []
    for entry in laprox.policies():
        if entry.kind != "scorer":
            continue
        try:
            laprox.kept([layer(0), layer(1)], entry.name, 40, backend="cpu")
            names.append(entry.name)
        except laprox.UsageError:
            continue
    return names


@pytest.fixture(scope="session")
def command_line():
    binary = os.environ.get("LAPROX_BIN")
    if not binary:
        pytest.skip("LAPROX_BIN does not name the command line")
    return lambda *arguments: subprocess.run([binary, *map(str, arguments)], check=True, capture_output=True, text=True)


@pytest.fixture
def caught(monkeypatch):
    """The loops that evaluate_prompt makes."""
    from laprox.eval import evaluation

    made = []
    original = evaluation._loop
    monkeypatch.setattr(evaluation, "_loop", lambda *given: made.append(original(*given)) or made[-1])
    return made
