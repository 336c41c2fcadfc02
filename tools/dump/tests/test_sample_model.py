"""The trained sample model: the exporter against a dump of the same checkpoint made without torch and without this package."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
from conftest import from_environment

LENGTH, DECODE, SEED = 1024, 24, 7


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The dump that the numpy forward pass makes, in float32."""
    path = tmp_path_factory.mktemp("sample") / "reference.h5"
    script = from_environment("LAPROX_MAKE_DUMP")
    arguments = [path, "--length", LENGTH, "--decode", DECODE, "--seed", SEED, "--dtype", "float32", "--model", from_environment("LAPROX_SAMPLE_MODEL")]
    subprocess.run([sys.executable, script, *map(str, arguments)], check=True, capture_output=True)
    return path


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def exported(request, reference, dump_command, tmp_path_factory):
    """(element type, path) of the exporter's dump of the same prompt."""
    folder = tmp_path_factory.mktemp("exported")
    with h5py.File(reference) as f:
        (folder / "p.txt").write_text(f.attrs["prompt"], newline="")
    result = dump_command(from_environment("LAPROX_SAMPLE_MODEL"), "--prompt-file", folder / "p.txt", "-o", folder / "d.h5",
                          "--decode", DECODE, "--ignore-eos", "--dtype", request.param)
    assert result.returncode == 0, result.stderr
    return request.param, folder / "d.h5"


# Relative Frobenius error over a layer. float32: rotations and sums in another order. float16 and bfloat16: the whole model runs
# in that type, so that roundings of 2^-11 and 2^-8 add up over 8 layers; "within rounding" is a few of them.
LIMIT = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 4e-2}


def as_float(dataset):
    x = dataset[()]
    return (x.astype(np.uint32) << 16).view(np.float32) if dataset.attrs.get("dtype") == "bfloat16" else x.astype(np.float32)


def test_the_same_tensors(reference, exported):
    dtype, path = exported
    with h5py.File(reference) as a, h5py.File(path) as b:
        assert a.attrs["context_length"] == b.attrs["context_length"] == LENGTH
        assert a["token_ids"][()].tolist() == b["token_ids"][()].tolist()
        rows = np.searchsorted(b["output_positions"][()], a["output_positions"][()])
        for i in range(8):
            for key in ("q", "k", "v", "w_o", "output"):
                x, y = a[f"layers/{i}/{key}"][()].astype(np.float32), as_float(b[f"layers/{i}/{key}"])
                y = y[rows] if key == "output" else y
                assert x.shape == y.shape
                error = np.linalg.norm(x - y) / np.linalg.norm(x)
                assert error < LIMIT[dtype], (i, key, error)
            assert dict(a[f"layers/{i}"].attrs).items() <= dict(b[f"layers/{i}"].attrs).items()  # scale, softcap, window


def test_laprox_inspect_accepts_it(exported, laprox):
    result = laprox("inspect", exported[1])
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_same_sweep_table(reference, exported, laprox, tmp_path):
    """The errors of a sweep agree to the rounding of the element type: both dumps tell a researcher the same."""
    dtype, path = exported
    tables = []
    for name, dump in (("a", reference), ("b", path)):
        report = tmp_path / f"{name}.h5"
        result = laprox("sweep", dump, "--policy", "snapkv", "--policy", "laprox", "--budget", "10%", "-o", report)
        assert result.returncode == 0, result.stdout + result.stderr
        result = laprox("report", report, "--format", "csv")
        assert result.returncode == 0, result.stdout + result.stderr
        tables.append([line.split(",") for line in result.stdout.splitlines() if line])
    assert len(tables[0]) == len(tables[1]) > 2
    compared = 0
    for x, y in zip(*tables):
        for u, v in zip(x, y):
            try:
                a, b = float(u), float(v)
            except ValueError:
                continue
            assert a == pytest.approx(b, rel=25 * LIMIT[dtype], abs=1e-3), (x, y)
            compared += 1
    assert compared > 0
