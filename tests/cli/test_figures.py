"""Figures that cancel, that need the residual stream, or that several dumps give together."""

import csv
import io
import json
import os
import shutil
import subprocess

import dumps
import h5py
import numpy as np
import pytest

FIGURES = [
    "relative_error",
    "query_error_mean",
    "query_error_p95",
    "query_error_max",
    "cosine_mean",
    "cosine_min",
    "retained_mass",
    "mean_error",
]


def agree(fast, exact):
    assert fast.keys() == exact.keys()
    for key, row in exact.items():
        for name in FIGURES:
            if row[name]:
                assert float(fast[key][name]) == pytest.approx(float(row[name]), rel=1e-5, abs=1e-7), (key, name)


@pytest.mark.parametrize("softmax", ["renormalized", "truncated"])
def test_cosines_have_digits_where_little_output_remains(laprox, bundled, softmax):
    options = ["--queries", "window", "--softmax", softmax]
    exact = laprox.sweep(bundled, ["recent", "h2o"], [10, 50], *options, "--backend", "reference")
    agree(laprox.sweep(bundled, ["recent", "h2o"], [10, 50], *options), exact)
    alone = laprox.sweep(bundled, ["recent"], [10], *options)
    for key, row in alone.items():
        if key[2] == "model":
            continue
        assert float(row["cosine_min"]) == pytest.approx(float(exact[key]["cosine_min"]), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("queries", ["decoded", "window"])
@pytest.mark.parametrize("softmax", ["renormalized", "truncated"])
def test_cosines_where_a_sink_takes_nearly_all_weight(laprox, tmp_path, queries, softmax):
    path = dumps.write_dump(tmp_path / "dump.h5", context=80, tokens=90, heads=[(4, 2), (4, 1)], spread=2.0, seed=5)
    with h5py.File(path, "r+") as file:
        for layer in file["layers"].values():
            layer["sinks"] = np.full(layer["q"].shape[0], 12.0, "f4")
    options = ["--queries", queries, "--window", 16, "--softmax", softmax]
    agree(
        laprox.sweep(path, ["random", "streaming:sinks=1"], [2, 5], *options),
        laprox.sweep(path, ["random", "streaming:sinks=1"], [2, 5], *options, "--backend", "reference"),
    )


def drop_norms(path):
    with h5py.File(path, "r+") as file:
        for layer in file["layers"].values():
            del layer["residual_norms"]


def add_norms(path, scale=1.0):
    with h5py.File(path, "r+") as file:
        for i, layer in file["layers"].items():
            layer["residual_norms"] = scale * (1.0 + int(i) + 0.1 * np.arange(len(file["query_positions"])) % 1)


def test_residual_error_is_relative_to_the_stream(laprox, tmp_path):
    path = dumps.write_dump(tmp_path / "dump.h5", context=60, tokens=70, heads=[(4, 2), (2, 2)], seed=3)
    drop_norms(path)
    assert (
        "residual_norms"
        in laprox("sweep", path, "--policy", "random", "--budget", 9, "--metric", "residual-error", expect=2).stderr
    )
    add_norms(path)
    one = laprox.sweep(path, ["random"], [9])
    layers = [float(one["random", 9, i]["residual_error"]) for i in "01"]
    assert float(one["random", 9, "model"]["residual_error"]) == pytest.approx(np.sqrt(np.mean(np.square(layers))), rel=1e-9)
    assert "residual stream" in laprox("sweep", path, "--policy", "random", "--budget", 9, "--metric", "residual-error").stdout
    assert "residual" in laprox("inspect", path).stdout
    with h5py.File(path, "r+") as file:
        for layer in file["layers"].values():
            layer["residual_norms"][...] *= 2
    two = laprox.sweep(path, ["random"], [9])
    assert float(two["random", 9, "0"]["residual_error"]) == pytest.approx(layers[0] / 2, rel=1e-6)
    with h5py.File(path, "r+") as file:
        file["layers/1/residual_norms"][4] = 0
    assert "/layers/1/residual_norms" in laprox("sweep", path, "--policy", "random", "--budget", 9, expect=3).stderr


def several(tmp_path, count):
    return [dumps.write_dump(tmp_path / f"{n}.h5", context=60, tokens=64, heads=[(4, 2)], seed=n) for n in range(count)]


def test_six_dumps_are_compared_in_pairs(laprox, tmp_path):
    paths = several(tmp_path, 6)
    arguments = ["--policy", "random,h2o,oracle", "--budget", "12", "--quiet"]
    table = laprox("sweep", *paths, *arguments, "--compare", "h2o,random").stdout
    assert "Wilcoxon" in table and "h2o less random" in table and "of 6" in table
    rows = list(csv.DictReader(io.StringIO(laprox("sweep", *paths, *arguments, "--format", "csv", "--summary").stdout)))
    row = next(r for r in rows if r["figure"] == "relative_error" and r["policy"] == "h2o")
    single = [float(laprox.sweep(p, ["h2o"], [12])["h2o", 12, "model"]["relative_error"]) for p in paths]
    assert float(row["median"]) == pytest.approx(np.median(single))
    assert float(row["upper_quartile"]) == pytest.approx(np.percentile(single, 75))
    few = laprox("sweep", *paths[:5], *arguments, "--compare", "h2o,random").stdout
    assert few.count("nothing can be said") == 2
    assert json.loads(laprox("sweep", *paths, *arguments, "--format", "json").stdout)["summary"]
    assert "no policy 'tova'" in laprox("sweep", *paths, *arguments, "--compare", "h2o,tova", expect=2).stderr


def test_the_same_dump_twice_is_refused(laprox, tmp_path):
    (path,) = several(tmp_path, 1)
    copy = shutil.copy(path, tmp_path / "copy.h5")
    for other in (path, copy):
        assert "two samples" in laprox("sweep", path, other, "--policy", "h2o", "--budget", 12, expect=2).stderr


def test_dumps_that_differ_in_one_number_are_two_samples(laprox, tmp_path):
    """Of files of one size some bytes are compared first; these differ elsewhere, so that both are read whole."""
    path = dumps.write_dump(tmp_path / "a.h5", context=400, tokens=410, heads=[(4, 2), (4, 2)], seed=1)
    other, copy = (shutil.copy(path, tmp_path / name) for name in ("b.h5", "c.h5"))
    with h5py.File(other, "r+") as file:
        file["layers/1/k"][1, 200, 3] += 1
    part = path.stat().st_size // 16
    sampled = [path.read_bytes()[n * part + (part - 4096) // 2 :][:4096] for n in range(16)]
    assert sampled == [other.read_bytes()[n * part + (part - 4096) // 2 :][:4096] for n in range(16)] and part > 4096
    arguments = ("--policy", "h2o", "--budget", 100)
    laprox("sweep", path, other, *arguments)
    assert f"{copy}: is the same dump as {path}" in laprox("sweep", path, other, copy, *arguments, expect=2).stderr


def test_cells_that_ties_decide_are_marked(laprox, tmp_path):
    path = dumps.write_dump(tmp_path / "dump.h5", context=100, tokens=110, heads=[(4, 2)], seed=1)
    with h5py.File(path, "r+") as file:
        file["layers/0/k"][:, :100] = file["layers/0/k"][:, :1]
    done = laprox("sweep", path, "--policy", "knorm,random", "--budget", 20).stdout
    assert "~ the cut falls among equal scores" in done and "knorm at 20" in done and "random at 20" not in done


def test_output_that_fails_is_an_error_and_nothing_aborts(laprox, bundled, tmp_path):
    command = [laprox.binary, "sweep", bundled, "--policy", "recent", "--budget", "64"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stdout=full, stderr=subprocess.DEVNULL).returncode == 3
        assert subprocess.run([laprox.binary, "--help"], stdout=full, stderr=subprocess.DEVNULL).returncode == 3
        assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=full).returncode == 0
    assert subprocess.run(command, stderr=subprocess.DEVNULL, preexec_fn=lambda: os.close(1)).returncode == 3
    report = tmp_path / "report.h5"
    done = subprocess.run([*command, "-o", report], stdout=subprocess.PIPE, preexec_fn=lambda: os.close(2))
    assert done.returncode == 0 and b"recent" in done.stdout
    laprox("report", report)


def test_typing_errors_are_answered_with_what_was_meant(laprox, bundled, tmp_path):
    assert "did you mean 'sweep'" in laprox("swep", bundled, expect=2).stderr
    assert "file name" in laprox("sweep", bundled, "--policy", "recent", "--budget", 64, "-o", "", expect=2).stderr
    assert "1024" in laprox("inspect", bundled, "--threads", 33000, expect=2).stderr
    config = tmp_path / "sweep.toml"
    config.write_text(f'[sweep]\ndumps = ["{bundled}"]\npolcy = ["recent"]\nbudget = ["64"]\n')
    assert "did you mean 'policy'" in laprox("sweep", "--config", config, expect=2).stderr
    config.write_text(f'[sweep]\ndumps = ["{bundled}"]\npolicy = ["recent"]\nbudget = ["64"]\n')
    assert "recent" in laprox("sweep", "--config", config).stdout
    assert "HDF5" in laprox("sweep", "--config", bundled, expect=2).stderr


def test_all_leaves_out_what_a_dump_cannot_serve(laprox, tmp_path):
    path = dumps.write_dump(tmp_path / "dump.h5", context=60, tokens=64, heads=[(4, 2)], recent_queries=40)
    done = laprox("sweep", path, "--policy", "all", "--budget", 50, "--quiet")
    assert "skipped h2o" in done.stderr and "skipped expected-attention" in done.stderr
    assert "snapkv" in done.stdout and "\nh2o" not in done.stdout
    assert "h2o" in laprox("sweep", path, "--policy", "h2o", "--budget", 50, expect=2).stderr
