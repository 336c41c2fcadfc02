"""scores, kept and sweep: against NumPy, against each other and against the command line."""

import subprocess
import sys
import time

import h5py
import laprox
import numpy as np
import pytest
import xarray as xr
from conftest import arrays, layer, write_dump


def attention(q, k):
    """Causal softmax weights [H_q, T, T] of all queries, plain NumPy in float64."""
    group, tokens = q.shape[0] // k.shape[0], k.shape[1]
    logits = np.einsum("htd,hid->hti", q.astype(float), np.repeat(k, group, 0).astype(float)) / np.sqrt(q.shape[2])
    logits = np.where(np.tril(np.ones((tokens, tokens), bool)), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_scores_are_those_of_plain_numpy():
    given = arrays()
    found = laprox.scores(laprox.Layer(**given), "h2o", backend="reference")
    sums = attention(given["q"], given["k"]).sum(1).reshape(2, 2, -1).mean(1)
    np.testing.assert_allclose(found, sums, rtol=1e-10)
    np.testing.assert_allclose(laprox.scores(laprox.Layer(**given), "h2o"), sums, rtol=1e-4)


def test_kept_are_the_highest_scores():
    one = layer()
    kept = laprox.kept(one, "knorm", "25%")
    scores = laprox.scores(one, "knorm")
    assert kept.counts == [[20, 20]]
    for head in range(2):
        best = np.sort(np.argsort(-scores[head], kind="stable")[:20])
        np.testing.assert_array_equal(kept.tokens[0][head], best)
        np.testing.assert_array_equal(np.flatnonzero(kept.masks[0][head]), best)
    assert kept.masks[0].dtype == bool and kept.masks[0].shape == (2, 80)


def test_a_budget_over_the_model_adds_up(layers):
    kept = laprox.kept(layers, "knorm+global", 10)
    assert sum(map(sum, kept.counts)) == 10 * 6
    assert len({count for counts in kept.counts for count in counts}) > 1


def test_the_error_is_that_of_plain_numpy():
    given = arrays()
    one = laprox.Layer(**given, context_length=80)
    report = laprox.sweep(one, "knorm", 20, backend="reference")
    weights = attention(given["q"], given["k"])[:, 80:]
    visible = np.ones((4, 96), bool)
    visible[:, :80] = np.repeat(laprox.kept(one, "knorm", 20, backend="reference").masks[0], 2, 0)
    kept_weights = weights * visible[:, None, :]
    kept_weights /= kept_weights.sum(-1, keepdims=True)
    v = np.repeat(given["v"], 2, 0).astype(float)

    def output(w):
        return np.einsum("hti,hie->the", w, v).reshape(16, -1) @ given["w_o"]

    error = np.linalg.norm(output(kept_weights) - output(weights)) / np.linalg.norm(output(weights))
    assert float(report.relative_error.squeeze()) == pytest.approx(error, rel=1e-9)


def test_a_sweep_has_the_names_of_a_report(layers):
    report = laprox.sweep(layers, ["random", "oracle", "h2o"], ["10%", 20], save_kept=True)
    assert report.relative_error.dims == ("dump", "policy", "budget", "layer")
    assert list(report.policy.values) == ["random", "oracle", "h2o"]
    assert list(report.budget.values) == ["10%", "20"]
    assert report.attrs["backend"] == "cpu"
    assert float(report.model_regret.sel(policy="random").max()) == 1
    assert report.kept_count.dtype == np.int64
    kept = laprox.kept(layers, "h2o", 20)
    np.testing.assert_array_equal(laprox.kept_tokens(report, policy="h2o", budget="20", layer=2, kv_head=1), kept.tokens[2][1])


def test_a_dump_and_its_layers_give_the_same(dump, layers, tmp_path):
    for given in (dump, str(dump)):
        from_file = laprox.sweep(given, ["h2o", "snapkv+ada:window=8"], ["20%", "30%"])
        from_memory = laprox.sweep(layers, ["h2o", "snapkv+ada:window=8"], ["20%", "30%"])
        for name in ("relative_error", "kept_count", "query_error_p99"):
            np.testing.assert_array_equal(from_file[name], from_memory[name])
    with laprox.open_dump(dump) as opened:
        several = laprox.sweep([opened, write_dump(tmp_path / "other.h5", [arrays(seed + 3) for seed in range(3)])], "h2o", 20)
        assert several.sizes["dump"] == 2
        assert len(opened) == 3 and opened.context_length == 80
    assert len(str(several.dump_sha256.values[0])) == 64


def test_layers_of_a_dump_by_numbers_and_ranges(dump):
    with laprox.open_dump(dump) as opened:
        shapes = [layer.shape for layer in opened]
        assert [layer.shape for layer in opened[::-1]] == shapes[::-1] and opened[-1].shape == shapes[-1]


def test_the_command_line_agrees(needle_dump, command_line, tmp_path):
    policies, budgets = ["snapkv", "h2o", "laprox", "laprox+layer", "random"], ["5%", "10%"]
    command_line(
        "sweep",
        needle_dump,
        "--policy",
        ",".join(policies),
        "--budget",
        ",".join(budgets),
        "--save-kept",
        "--quiet",
        "-o",
        tmp_path / "cli.h5",
    )
    theirs = laprox.open_report(tmp_path / "cli.h5")
    ours = laprox.sweep(needle_dump, policies, budgets, save_kept=True)
    assert set(theirs.variables) == set(ours.variables)
    for name, variable in theirs.variables.items():
        if variable.dtype.kind == "f":
            np.testing.assert_allclose(ours[name], variable, rtol=1e-5, atol=1e-9, err_msg=name)
        else:
            np.testing.assert_array_equal(ours[name], variable, err_msg=name)
    laprox.save_report(ours, tmp_path / "ours.h5")
    shown = [command_line("report", tmp_path / f"{name}.h5", "--format", "csv").stdout.splitlines()[0] for name in ("cli", "ours")]
    assert shown[0] == shown[1]


def test_residual_norms_reach_the_policies_and_the_errors(dump):
    norms = np.random.default_rng(1).random((3, 96)) + 0.5
    with h5py.File(dump, "a") as file:
        for i in range(3):
            file[f"layers/{i}/residual_norms"] = norms[i]
    memory = [laprox.Layer(**arrays(seed), context_length=80, residual_norms=norms[seed]) for seed in range(3)]
    found = [laprox.sweep(prompt, ["laprox-r:window=8", "laprox-far:pinned=8"], 20) for prompt in (dump, memory)]
    assert np.isfinite(found[0].residual_error).all() and (found[0].residual_error > 0).all()
    for name in ("relative_error", "kept_count", "residual_error"):
        np.testing.assert_array_equal(found[0][name], found[1][name])
    with laprox.open_dump(dump) as opened:
        np.testing.assert_array_equal(
            laprox.kept(opened[2], "laprox-r:window=8", 20).masks, laprox.kept(memory[2], "laprox-r:window=8", 20).masks
        )


def test_reports_survive_the_disk(layers, tmp_path):
    report = laprox.sweep(layers, ["h2o", "knorm"], [10, 20], save_kept=True)
    laprox.save_report(report, tmp_path / "report.h5")
    xr.testing.assert_identical(report.drop_attrs(), laprox.open_report(tmp_path / "report.h5").drop_attrs())
    with pytest.raises(laprox.UsageError, match="exists"):
        laprox.save_report(report, tmp_path / "report.h5")
    (tmp_path / "junk.h5").write_bytes(b"no report")
    with pytest.raises(laprox.DumpError, match="junk.h5"):
        laprox.open_report(tmp_path / "junk.h5")
    with pytest.raises(laprox.FileError, match="no such file"):
        laprox.open_report(tmp_path / "none.h5")


@pytest.mark.parametrize(
    "policies, budgets, message",
    [
        ("snapvk", 40, "did you mean 'snapkv'"),
        ("snapkv:windw=3", 40, "did you mean 'window'"),
        ("h2o,h2o", 40, "given twice"),
        ("snapkv,snapkv:pool=max", 40, "given twice .as 'snapkv' too"),
        ("h2o", "10%,10%", "given twice"),
        ("h2o", 0, "budget"),
        ("h2o", "many", "budget"),
        (3, 40, "expected a policy"),
        ("snapkv", 4, "always keeps 32"),
    ],
)
def test_requests_that_make_no_sense_are_refused(layers, policies, budgets, message):
    with pytest.raises(laprox.UsageError, match=message):
        laprox.sweep(layers, [policies] if isinstance(policies, int) else policies, budgets)


def test_a_prompt_without_decoded_queries_is_judged_by_its_window_only(layers):
    prompt = layer(context_length=96)
    with pytest.raises(laprox.UsageError, match="nothing held out can judge"):
        laprox.sweep(prompt, "knorm", 20)
    assert float(laprox.sweep(prompt, "knorm", 20, queries="window", window=8).relative_error.squeeze()) > 0
    with pytest.raises(laprox.UsageError, match="needs the prompt queries"):
        laprox.scores(layer(queries=20), "h2o")


def test_unknown_backends_are_refused(layers):
    with pytest.raises(laprox.UsageError, match="unknown backend 'gpu'"):
        laprox.scores(layers, "h2o", backend="gpu")


def test_progress_is_told_and_may_end_the_work(layers):
    steps = []
    laprox.sweep(layers, "h2o", 20, progress=lambda done, total, what: steps.append((done, total)))
    assert steps == [(i + 1, 6) for i in range(6)]

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        laprox.sweep(layers, "h2o", 20, progress=stop)


_ENDLESS = """
import os, signal, threading, sys
sys.path.insert(0, {here!r})
import h5py
import laprox
from conftest import layer
layers = [layer(seed, 600, tokens=640) for seed in range(8)]
threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    while True:
        laprox.sweep(layers, "h2o", ["10%", "20%"])
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_ends_a_sweep():
    import pathlib

    program = _ENDLESS.format(here=str(pathlib.Path(__file__).parent))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "interrupted", result.stderr


def test_other_threads_run_meanwhile(layers):
    import threading

    ticks, stop = [], threading.Event()

    def tick():
        while not stop.wait(0.001):
            ticks.append(time.perf_counter())

    big = [layer(seed, 2000, tokens=2048, head_size=64, query_heads=8, kv_heads=2) for seed in range(2)]
    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.perf_counter()
    laprox.kept(big, "h2o", "10%", threads=1)
    end = time.perf_counter()
    stop.set()
    thread.join()
    inside = [t for t in ticks if begin < t < end]
    assert len(inside) >= 3


def test_import_brings_no_heavy_package():
    program = "import laprox, sys; print([m for m in ('torch', 'xarray', 'matplotlib', 'plotly', 'h5py') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
