"""Caches that are cut while the model decodes: against a plain simulation, and the laws that hold for any policy."""

import functools
import json

import catalogue_oracle
import decoding_oracle
import dumps
import h5py
import numpy as np
import pytest

CONTEXT, TOKENS = 61, 117
SHAPES = {
    "grouped": dict(heads=[(4, 2), (4, 2)]),
    "one head each": dict(heads=[(3, 3)]),
    "softcap, sinks, bias": dict(heads=[(4, 1), (4, 2)], softcap=20.0, sinks=True, bias=True, dtype="float16"),
    "sliding": dict(heads=[(4, 2), (2, 2), (6, 2)], sliding_window=33, sinks=True),
    "sliding fast": dict(heads=[(4, 4)], sliding_window=19),
}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoding")
    return {
        name: dumps.write_dump(folder / f"{i}.h5", CONTEXT, TOKENS, seed=i, **shape)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def sweep(laprox, dump, report, policies, budgets, *options):
    laprox(
        "sweep",
        dump,
        "--policy",
        ",".join(policies),
        "--budget",
        ",".join(map(str, budgets)),
        "-o",
        report,
        "--save-kept",
        "--quiet",
        *options,
    )
    return h5py.File(report)


def simulate(dump, policy, budget_at, interval):
    """[layer] of [kv_head, T]."""
    return [decoding_oracle.SIMULATIONS[policy](dump, layer, budget_at, interval) for layer in dump.layers]


@functools.cache
def simulated(path, policy, budget, interval):
    """The same with a constant budget, and the squares of its errors; once for both backends."""
    dump = catalogue_oracle.read_dump(path)
    lifetimes = simulate(dump, policy, lambda seen: budget, interval)
    return lifetimes, decoding_oracle.relative_errors(dump, lifetimes)


def found(report, p, b, lifetimes):
    """The report's lifetimes, of the heads that each layer has."""
    return [report["evicted_at"][0, p, b, i, : len(gone)] for i, gone in enumerate(lifetimes)]


def same(found, expected):
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("schedule, interval", [("step", 1), ("every:7", 7)])
def test_what_is_held_and_its_errors_are_those_of_a_plain_simulation(laprox, shapes, tmp_path, backend, name, schedule, interval):
    policies = list(decoding_oracle.SIMULATIONS)
    options = ["--schedule", schedule, "--backend", backend, "--segments", "5"]
    report = sweep(laprox, shapes[name], tmp_path / "report.h5", policies, ["16", "40%", "80"], *options)
    dump = catalogue_oracle.read_dump(shapes[name])
    decoded = TOKENS - CONTEXT
    segment = np.arange(decoded) * 5 // decoded
    assert list(report["segment_start"][0]) == [CONTEXT + int(np.argmax(segment == s)) for s in range(5)]
    for p, policy in enumerate(policies):
        for b, budget in enumerate([16, 24, 80]):
            lifetimes, squares = simulated(shapes[name], policy, budget, interval)
            assert same(found(report, p, b, lifetimes), lifetimes), (policy, budget)
            gone = np.concatenate(lifetimes)
            pooled = squares.sum((0, 1))
            assert report["model_relative_error"][0, p, b] == pytest.approx(np.sqrt(pooled[0] / pooled[1]), rel=1e-4)
            for s in range(5):
                part = squares[:, segment == s].sum((0, 1))
                assert report["model_segment_error"][0, p, b, s] == pytest.approx(np.sqrt(part[0] / part[1]), rel=1e-4)
            sizes = np.array([(gone[:, : t + 1] > t).sum(-1) for t in range(CONTEXT, TOKENS)])
            assert report["cache_peak"][0, p, b] == sizes.max()
            assert report["cache_mean"][0, p, b] == pytest.approx(sizes.mean())
            aged = [g == decoding_oracle.leaves_by_age(layer, np.arange(TOKENS)) for layer, g in zip(dump.layers, lifetimes)]
            later = (gone > CONTEXT) & (gone < TOKENS) & ~np.concatenate(aged)
            assert report["evictions"][0, p, b] == later.sum()
            assert report["cuts"][0, p, b] == len(np.unique(gone[later]))


def test_a_growing_budget_is_a_share_of_what_was_seen(laprox, shapes, tmp_path):
    policies = ["h2o", "tova", "knorm"]
    report = sweep(laprox, shapes["grouped"], tmp_path / "report.h5", policies, ["30%"], "--schedule", "every:5,grow")
    dump = catalogue_oracle.read_dump(shapes["grouped"])
    for p, policy in enumerate(policies):
        lifetimes = simulate(dump, policy, lambda seen: decoding_oracle.share_of(30, seen), 5)
        assert same(found(report, p, 0, lifetimes), lifetimes), policy
    done = laprox("sweep", shapes["grouped"], "--policy", "h2o", "--budget", "20", "--schedule", "step,grow", expect=2)
    assert "shares of the tokens seen so far" in done.stderr


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", ["grouped", "sliding"])
def test_a_schedule_that_never_cuts_is_once_bit_for_bit(laprox, shapes, tmp_path, backend, name):
    policies = ["h2o", "snapkv+head:window=6", "keydiff"]
    for schedule in ["once", f"every:{TOKENS - CONTEXT}", "every:1000000"]:
        report = tmp_path / (schedule.replace(":", "-") + ".h5")
        sweep(laprox, shapes[name], report, policies, ["20"], "--schedule", schedule, "--backend", backend).close()
    once = h5py.File(tmp_path / "once.h5")
    for path in tmp_path.glob("every*.h5"):
        with h5py.File(path) as never:
            for figure in ["relative_error", "head_relative_error", "cosine_min", "retained_mass", "query_error_p99"]:
                assert np.array_equal(once[figure][()], never[figure][()], equal_nan=True), figure
            assert never["evictions"][()].max() == 0


def test_who_keeps_the_budget_competes(laprox, shapes, tmp_path):
    """A cache may have room for more than the prompt, and must not outgrow it."""
    policies, budgets = ["h2o", "streaming", "full"], [20, CONTEXT, CONTEXT + 10, TOKENS]
    report = sweep(laprox, shapes["grouped"], tmp_path / "report.h5", policies, budgets, "--schedule", "every:8")
    assert report["on_budget"][0].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]
    growing = sweep(laprox, shapes["grouped"], tmp_path / "growing.h5", policies, ["30%"], "--schedule", "every:8,grow")
    assert growing["on_budget"][0, :, 0].tolist() == [1, 1, 0]


def test_a_segment_without_queries_has_no_error(laprox, tmp_path):
    path = dumps.write_dump(tmp_path / "short.h5", CONTEXT, CONTEXT + 3, [(2, 1)])
    report = sweep(laprox, path, tmp_path / "report.h5", ["h2o", "knorm"], [20], "--schedule", "step")
    empty = report["segment_start"][0] < 0
    assert empty.tolist() == [False, True, False, True, True, False, True, True]
    assert np.array_equal(np.isnan(report["model_segment_error"][0, :, 0]), [empty, empty])
    assert np.array_equal(np.isnan(report["segment_error"][0, 0, 0]), [empty])
    report.close()
    laprox("report", tmp_path / "report.h5")
    with h5py.File(tmp_path / "report.h5", "r+") as file:
        file["model_segment_error"][0, :, 0, 2] = np.nan
    assert "every segment that has queries" in laprox("report", tmp_path / "report.h5", expect=3).stderr


@pytest.mark.parametrize("schedule", ["step", "every:9"])
@pytest.mark.parametrize("name", ["softcap, sinks, bias", "sliding", "sliding fast"])
def test_a_budget_of_everything_has_no_error(laprox, shapes, schedule, name):
    policies = ["h2o", "tova", "streaming", "laprox+head:window=6", "random", "full"]
    rows = laprox.sweep(shapes[name], policies, [TOKENS], "--schedule", schedule)
    assert all(float(row["relative_error"]) == 0 for row in rows.values())


def test_threads_do_not_matter(laprox, shapes):
    rows = [
        laprox.sweep(shapes["grouped"], ["h2o", "laprox-r+head:window=6"], [20], "--schedule", "every:6", "--threads", threads)
        for threads in (1, 2)
    ]
    assert rows[0] == rows[1]


def test_reports_with_schedules_are_read_merged_and_resumed(laprox, shapes, tmp_path):
    command = ["--policy", "h2o,knorm", "--budget", "20", "--schedule", "every:6", "--quiet"]
    first, second = shapes["grouped"], shapes["softcap, sinks, bias"]
    both, grown, merged = tmp_path / "both.h5", tmp_path / "grown.h5", tmp_path / "merged.h5"
    table = laprox("sweep", first, second, *command, "-o", both).stdout
    assert "schedule every:6" in table
    assert laprox("report", both).stdout == table
    laprox("sweep", first, *command, "-o", grown)
    laprox("sweep", second, *command, "-o", tmp_path / "second.h5")
    laprox("merge", grown, tmp_path / "second.h5", "-o", merged)
    laprox("sweep", first, second, *command, "-o", grown, "--resume")
    with h5py.File(both) as whole:
        for path in (grown, merged):
            with h5py.File(path) as other:
                for name in ("model_segment_error", "segment_error", "cache_mean", "evictions"):
                    assert np.array_equal(whole[name][()], other[name][()], equal_nan=whole[name].dtype.kind == "f"), name
    done = laprox("sweep", first, second, *command[:-3], "--schedule", "step", "-o", grown, "--resume", expect=2)
    assert "schedule" in done.stderr


@pytest.mark.parametrize(
    "options, said",
    [
        (["--policy", "oracle"], "after a prompt only"),
        (["--policy", "observed-attention"], "after a prompt only"),
        (["--policy", "laprox-r+head:far=8"], "after a prompt only"),
        (["--policy", "snapkv+ada"], "write snapkv+head"),
        (["--policy", "laprox-r+head:window=16,pinned=4"], "pin 16 tokens, or cut every 16"),
        (["--policy", "h2o", "--softmax", "truncated"], "belong to one eviction"),
        (["--policy", "h2o", "--queries", "window"], "decoded queries judge"),
    ],
)
def test_what_makes_no_sense_while_decoding_is_refused(laprox, shapes, options, said):
    done = laprox("sweep", shapes["grouped"], "--budget", "20", "--schedule", "every:3", *options, expect=2)
    assert said in done.stderr


@pytest.mark.parametrize(
    "text", ["steps", "every", "every:0", "every:1.5", "every:x", "once,grow", "every:-3", "every:+4", "every:1e3"]
)
def test_schedules_are_spelled(laprox, shapes, text):
    done = laprox("sweep", shapes["grouped"], "--policy", "h2o", "--budget", "20", f"--schedule={text}", expect=2)
    assert "expected once" in done.stderr


def test_dumps_that_cannot_be_replayed_step_by_step_are_refused(laprox, tmp_path):
    holes = dumps.write_dump(tmp_path / "holes.h5", CONTEXT, TOKENS, [(2, 1)])
    with h5py.File(holes, "r+") as file:
        keep = np.delete(np.arange(TOKENS), TOKENS - 3)
        for name in ("q", "residual_norms"):
            stored = file["layers/0"][name][()]
            del file["layers/0"][name]
            file["layers/0"][name] = stored[:, keep] if name == "q" else stored[keep]
        del file["query_positions"]
        file["query_positions"] = keep
    done = laprox("sweep", holes, "--policy", "knorm", "--budget", "20", "--schedule", "step", expect=2)
    assert f"{TOKENS - CONTEXT - 1} of {TOKENS - CONTEXT} are stored" in done.stderr


def test_all_leaves_out_what_has_no_meaning_while_decoding(laprox, shapes):
    done = laprox("sweep", shapes["grouped"], "--policy", "all", "--budget", "40", "--schedule", "every:32", "--format", "json")
    policies = {row["policy"] for row in json.loads(done.stdout)["rows"]}
    assert {"h2o", "tova", "streaming", "knorm", "snapkv"} <= policies
    assert "oracle" not in policies and "skipped oracle" in done.stderr
