"""A checkpoint through the command line, against a dump of it that was made without torch, transformers and this package.

Twice: a tiny random Llama, always, and a small trained one where the environment names it (see conftest.py).
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import numpy_llama
import pytest
import transformers
from conftest import from_environment
from packaging.version import Version
from tiny_models import Family, token_ids

from laprox_dump import cli

# Relative Frobenius error over a layer. float32: rotations and sums in another order. float16 and bfloat16: the whole model runs
# in that type, so that roundings of 2^-11 and 2^-8 add up over the layers; "within rounding" is a few of them.
LIMIT = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 4e-2}


def tiny(folder: Path) -> dict:
    """A random Llama of three layers and a prompt of 256 tokens, 24 more forced after it."""
    Family("Llama", dict(initializer_range=0.15, head_dim=16)).build().save_pretrained(folder / "model")
    ids = token_ids(280).tolist()
    (folder / "p.jsonl").write_text(json.dumps({"id": "d", "token_ids": ids[:256], "continuation": ids[256:]}))
    numpy_llama.write_dump(folder / "reference.h5", folder / "model", ids, 256)
    return dict(
        model=folder / "model", options=["--prompt-file", folder / "p.jsonl"], out=folder / "{}", dump=folder / "{}" / "d.h5"
    )


def trained(folder: Path) -> dict:
    """The sample model, a prompt of 1024 bytes, and what it decodes greedily."""
    model, script = from_environment("LAPROX_SAMPLE_MODEL"), from_environment("LAPROX_MAKE_DUMP")
    arguments = [folder / "reference.h5", "--length", 1024, "--decode", 24, "--seed", 7, "--dtype", "float32", "--model", model]
    subprocess.run([sys.executable, script, *map(str, arguments)], check=True, capture_output=True)
    with h5py.File(folder / "reference.h5") as f:
        (folder / "p.txt").write_text(f.attrs["prompt"], newline="")
    options = ["--prompt-file", folder / "p.txt", "--decode", 24, "--ignore-eos"]
    return dict(model=readable(Path(model), folder / "model"), options=options, out=folder / "{}.h5", dump=folder / "{}.h5")


def readable(checkpoint: Path, copy: Path) -> Path:
    """The checkpoint as the installed transformers reads it: releases before 5 want `rope_theta` outside `rope_parameters`."""
    config = json.loads((checkpoint / "config.json").read_text())
    if Version(transformers.__version__) >= Version("5") or "rope_parameters" not in config:
        return checkpoint
    copy.mkdir()
    for file in checkpoint.iterdir():
        shutil.copyfile(file, copy / file.name)
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.fixture(scope="module", params=[tiny, trained], ids=["tiny", "trained"])
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param.__name__)
    return dict(reference=folder / "reference.h5", **request.param(folder))


@pytest.fixture(scope="module", params=LIMIT)
def dumps_of(request, case):
    """(element type, reference dump, the exporter's dump in that type)."""
    dtype = request.param
    arguments = [case["model"], *case["options"], "-o", str(case["out"]).format(dtype), "--dtype", dtype]
    assert cli.main([*map(str, arguments)]) == 0
    return dtype, case["reference"], Path(str(case["dump"]).format(dtype))


def as_float(dataset) -> np.ndarray:
    x = dataset[()]
    return (x.astype(np.uint32) << 16).view(np.float32) if dataset.attrs.get("dtype") == "bfloat16" else x.astype(np.float32)


def test_the_same_tensors(dumps_of):
    dtype, reference, path = dumps_of
    with h5py.File(reference) as a, h5py.File(path) as b:
        assert a.attrs["context_length"] == b.attrs["context_length"]
        assert a["token_ids"][()].tolist() == b["token_ids"][()].tolist()
        shared, rows, others = np.intersect1d(a["output_positions"], b["output_positions"], return_indices=True)
        assert len(shared) >= 56 and a["layers"].keys() == b["layers"].keys()
        for i in a["layers"]:
            assert dict(a[f"layers/{i}"].attrs).items() <= dict(b[f"layers/{i}"].attrs).items()  # scale, softcap, window
            for key in ("q", "k", "v", "w_o", "output"):
                x, y = as_float(a[f"layers/{i}/{key}"]), as_float(b[f"layers/{i}/{key}"])
                if key == "output":
                    x, y = x[rows], y[others]
                assert x.shape == y.shape
                error = np.linalg.norm(x - y) / np.linalg.norm(x)
                assert error < LIMIT[dtype], (i, key, error)


def test_laprox_inspect_accepts_it(dumps_of, laprox):
    result = laprox("inspect", dumps_of[2])
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_same_sweep_table(dumps_of, laprox, tmp_path):
    """The errors of a sweep agree to the rounding of the element type: both dumps tell a researcher the same."""
    dtype, *paths = dumps_of
    tables = []
    for n, path in enumerate(paths):
        path = without_norms(path, tmp_path / f"dump{n}.h5")  # the reference may have none
        result = laprox("sweep", path, "--policy", "snapkv,laprox", "--budget", "20%", "-o", tmp_path / f"{n}.h5")
        assert result.returncode == 0, result.stdout + result.stderr
        tables.append(json.loads(laprox("report", tmp_path / f"{n}.h5", "--format", "json").stdout))
    a, b = (np.array(numbers(table)) for table in tables)
    assert len(a) == len(b) > 20
    np.testing.assert_allclose(a, b, rtol=25 * LIMIT[dtype], atol=1e-3)
    pooled = [[row["relative_error"] for row in table["rows"] if row["layer"] == "model"] for table in tables]
    assert len(pooled[0]) == 2
    np.testing.assert_allclose(*pooled, rtol={"float32": 1e-3, "float16": 5e-3, "bfloat16": 3e-2}[dtype])


def without_norms(path, copy):
    """A copy of a dump that lacks the residual stream's norms."""
    shutil.copyfile(path, copy)
    with h5py.File(copy, "r+") as file:
        for layer in file["layers"].values():
            layer.pop("residual_norms", None)
    return copy


def numbers(value) -> list[float]:
    """All numbers in a JSON value, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [x for item in value for x in numbers(item)]
    return [float(value)] if isinstance(value, (int, float)) and not isinstance(value, bool) else []
