"""The tool's numbers against the independent float64 implementation and against published figures."""

import math

import dumps
import h5py
import numpy as np
import oracle
import pytest

POLICIES = ["full", "recent", "streaming", "h2o", "snapkv", "snapkv+ada", "laprox+head", "laprox+layer", "laprox", "laprox+ada"]
LAYER_FIGURES = [
    "relative_error",
    "query_error_mean",
    "query_error_p95",
    "query_error_p99",
    "query_error_max",
    "cosine_mean",
    "cosine_min",
    "retained_mass",
]

# Pooled relative errors on the bundled dump, from an independent float64 implementation.
PUBLISHED = {
    "recent": [0.493314, 0.389514, 0.331964, 0.280425],
    "streaming": [0.465462, 0.369271, 0.322828, 0.274656],
    "h2o": [0.561023, 0.409597, 0.320799, 0.272721],
    "snapkv": [0.512567, 0.407305, 0.288516, 0.129967],
    "laprox+head": [0.554484, 0.425819, 0.287141, 0.147591],
    "laprox+layer": [0.547417, 0.392131, 0.235655, 0.084610],
    "laprox": [0.556685, 0.404909, 0.257876, 0.122425],
    "laprox+global:normalize=false": [0.472274, 0.260302, 0.123641, 0.032998],
    "full": [0, 0, 0, 0],
}


# float32 products of up to 300 terms round by about 1e-6 of the result; a cosine feels that absolutely.
CPU, CPU_COSINE = dict(relative=1e-5, absolute=1e-9), dict(relative=0, absolute=1e-5)
# float64 against float64: only the order of sums differs.
REFERENCE = dict(relative=1e-9, absolute=1e-12)


def close(found, expected, relative=1e-5, absolute=1e-9):
    return math.isclose(float(found), float(expected), rel_tol=relative, abs_tol=absolute)


def test_the_bundled_dump_gives_the_published_table(laprox, bundled):
    rows = laprox.sweep(bundled, PUBLISHED, [51, 102, 205, 410])
    for policy, expected in PUBLISHED.items():
        for budget, error in zip([51, 102, 205, 410], expected):
            assert close(
                rows[policy, budget, "model"]["relative_error"], error, 1e-4 if error < 0.05 else 1e-5, 1e-6 if error else 0
            ), policy


def compare_cell(rows, dump, policy, budget, softmax, queries, backend):
    """Every figure of one policy at one budget, for every layer and the model."""
    kept, case = oracle.kept_masks(dump, policy, budget), f"{policy} at {budget}, {softmax}, {queries}"
    layers, model = oracle.errors(dump, kept, softmax, queries)
    total = rows[policy, budget, "model"]
    assert close(total["relative_error"], model, **(CPU if backend == "cpu" else REFERENCE)), case
    assert int(total["kept_pairs"]) == sum(mask.sum() for mask in kept), case
    for i, expected in enumerate(layers):
        row = rows[policy, budget, str(i)]
        assert int(row["kept_pairs"]) == kept[i].sum(), case
        for figure in LAYER_FIGURES + (["bound"] if softmax == "truncated" else []):
            cpu = CPU_COSINE if "cosine" in figure or "mass" in figure else CPU
            assert close(row[figure], expected[figure], **(cpu if backend == "cpu" else REFERENCE)), f"{case}, layer {i}, {figure}"


@pytest.mark.parametrize("name", dumps.FEATURES)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_figure_equals_the_independent_implementation(laprox, feature_dumps, name, backend):
    dump = oracle.read_dump(feature_dumps[name])
    all_pinned = dump.context <= oracle.WINDOW
    budgets = [dump.context] if all_pinned else sorted({max(33, dump.context // 2), dump.context - 1, dump.context})
    policies = [policy for policy in POLICIES if policy != "h2o" or "few-queries" not in name]
    for softmax in ("renormalized", "truncated"):
        for queries in ("decoded", "window"):
            judges = ("--queries", queries, "--window", min(oracle.WINDOW, dump.context))
            rows = laprox.sweep(feature_dumps[name], policies, budgets, "--backend", backend, "--softmax", softmax, *judges)
            for policy in policies:
                for budget in budgets:
                    compare_cell(rows, dump, policy, budget, softmax, queries, backend)


@pytest.mark.parametrize("name", ["plain", "float16-sinks-bias-groups-of-3-and-8", "bfloat16-softcap-window-odd-sizes"])
def test_the_kept_tokens_in_a_report_are_those_of_the_independent_implementation(laprox, feature_dumps, tmp_path, name):
    dump, report = oracle.read_dump(feature_dumps[name]), tmp_path / "report.h5"
    budgets = [40, dump.context // 2]
    laprox.sweep(feature_dumps[name], POLICIES, budgets, "-o", report, "--save-kept")
    with h5py.File(report) as file:
        for p, policy in enumerate(POLICIES):
            for b, budget in enumerate(budgets):
                for i, mask in enumerate(oracle.kept_masks(dump, policy, budget)):
                    for head, row in enumerate(mask):
                        start, count = file["kept/start"][0, p, b, i, head], file["kept_count"][0, p, b, i, head]
                        assert (file["kept/tokens"][start : start + count] == np.flatnonzero(row)).all(), (
                            f"{policy} at {budget}, layer {i}, head {head}"
                        )


def test_errors_of_heads_before_the_projection(laprox, feature_dumps, tmp_path):
    path, report = feature_dumps["float16-sinks-bias-groups-of-3-and-8"], tmp_path / "report.h5"
    laprox.sweep(path, ["snapkv"], [50], "-o", report)
    expected, _ = oracle.errors(oracle.read_dump(path), oracle.kept_masks(oracle.read_dump(path), "snapkv", 50))
    with h5py.File(report) as file:
        found = file["head_relative_error"][0, 0, 0]
        for i, layer in enumerate(expected):
            heads = layer["head_relative_error"]
            np.testing.assert_allclose(found[i, : len(heads)], heads, rtol=1e-5)
            assert np.isnan(found[i, len(heads) :]).all()


def test_results_do_not_depend_on_the_number_of_threads(laprox, bundled):
    one, two = (
        laprox.sweep(bundled, ["h2o", "snapkv+ada", "laprox", "laprox:gqa=frobenius"], [51, 205], "--threads", n) for n in (1, 2)
    )
    assert one == two


def test_the_paper_bound_holds_on_the_window(laprox, bundled):
    rows = laprox.sweep(
        bundled, ["random", "recent", "snapkv", "laprox"], [51, 410], "--queries", "window", "--softmax", "truncated"
    )
    layers = [row for key, row in rows.items() if key[2] != "model"]
    assert len(layers) == 4 * 2 * 8
    for row in layers:
        assert float(row["bound"]) >= float(row["relative_error"]) > 0
        assert close(float(row["bound"]) / float(row["relative_error"]), row["bound_ratio"])


def test_uniform_logits_and_equal_values_move_nothing(laprox, tmp_path):
    """With all values equal, any softmax over any kept set gives the same output; truncated, the loss is the evicted share."""
    path = dumps.write_dump(tmp_path / "flat.h5", context=64, tokens=65, heads=[(2, 1)])
    with h5py.File(path, "r+") as file:
        file["layers/0/q"][...] = 0
        file["layers/0/v"][...] = 1
    rows = laprox.sweep(path, ["recent"], [13])
    assert float(rows["recent", 13, "model"]["relative_error"]) < 1e-6
    rows = laprox.sweep(path, ["recent"], [13], "--softmax", "truncated")
    assert close(rows["recent", 13, "model"]["relative_error"], 51 / 65)
    assert close(rows["recent", 13, "0"]["retained_mass"], 14 / 65)


@pytest.mark.parametrize("gap", [69.0, 150.0])
def test_what_is_left_is_accurate_when_nearly_all_mass_is_evicted(laprox, tmp_path, gap):
    """One old key holds all but e^-gap of every row; recency evicts it."""
    path = dumps.write_dump(tmp_path / "sharp.h5", context=64, tokens=66, heads=[(2, 1)], scale=1.0)
    with h5py.File(path, "r+") as file:
        q, k = file["layers/0/q"][()], 0.1 * file["layers/0/k"][()]
        q[:, :, 0], k[:, :, 0] = 1, 0
        k[:, 5] = 0
        k[:, 5, 0] = gap
        file["layers/0/q"][...], file["layers/0/k"][...] = q, k
    dump = oracle.read_dump(path)
    _, expected = oracle.errors(dump, oracle.kept_masks(dump, "recent", 40))
    rows = laprox.sweep(path, ["recent"], [40])
    assert close(rows["recent", 40, "model"]["relative_error"], expected)
    assert expected > 0.1


def test_garbage_in_evicted_entries_that_no_query_sees_changes_nothing(laprox, tmp_path):
    """Behind a sliding window lies what no judging query reads; the outputs may not feel it."""
    path = dumps.write_dump(tmp_path / "poison.h5", context=96, tokens=100, heads=[(4, 2)], sliding_window=32)
    clean = laprox.sweep(path, ["recent"], [20])
    with h5py.File(path, "r+") as file:
        for name in ("k", "v"):
            values = file[f"layers/0/{name}"][()]
            values[:, :60] = 1e30
            file[f"layers/0/{name}"][...] = values
    poisoned = laprox.sweep(path, ["recent"], [20])
    assert clean == poisoned


def test_a_type_that_the_data_does_not_have_is_refused(laprox, tmp_path):
    path = dumps.write_dump(tmp_path / "dump.h5", context=60, tokens=66, heads=[(4, 2)], seed=5)
    with h5py.File(path, "r+") as file:
        file["layers/0/k"].attrs["dtype"] = "bfloat16"
    message = laprox("sweep", path, "--policy", "recent", "--budget", "20", expect=3).stderr
    assert "/layers/0/k attribute dtype" in message and "float32" in message
