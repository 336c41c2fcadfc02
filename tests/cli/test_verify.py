"""The verifier's teeth: kernels that it must accept, faults that it must catch, files that it must refuse."""

import json

import h5py
import numpy as np
import pytest

import dumps
import kernels
import oracle

ADVERSARIAL = ["huge-logits", "negative-rows", "giant-key", "equal-tokens", "cancelling-values"]
BUDGETS = [102, 205]


class Verifier:
    def __init__(self, laprox):
        self.laprox = laprox

    def __call__(self, dump, *arguments, passes=True):
        text = self.laprox("verify", dump, *arguments, "--quiet", "--format", "json", expect=0 if passes else 5).stdout
        verdict = json.loads(text)
        assert verdict["passed"] == passes
        return verdict


@pytest.fixture(scope="module")
def verify(laprox):
    return Verifier(laprox)


@pytest.fixture(scope="module")
def real(bundled):
    return oracle.read_dump(bundled)


@pytest.fixture(scope="module")
def adversarial(laprox, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adversarial")

    def make(kind, dtype="bfloat16"):
        path = folder / f"{kind}-{dtype}.h5"
        if not path.exists():
            laprox("synth", "-o", path, "--preset", "tiny", "--tokens", 300, "--decode", 8, "--dtype", dtype, "--adversarial", kind, "--seed", 3, "--quiet")
        return path

    return make


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A dump and the results of a right float32 kernel on it."""
    path = dumps.write_dump(tmp_path_factory.mktemp("small") / "dump.h5", context=120, tokens=130, heads=[(4, 2), (4, 2)], seed=11)
    dump = oracle.read_dump(path)
    return path, dump, kernels.run(dump, "float32")


def part(verdict, check, name):
    found = next(c for c in verdict["values"] if c["name"] == check)
    return next(p for p in found["parts"] if p["part"] == name)


def failed_parts(verdict, check):
    found = next(c for c in verdict["values"] if c["name"] == check)
    return {p["part"] for p in found["parts"] if not p["passed"]}


# What must pass.


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_right_kernel_passes_on_the_real_dump(verify, bundled, real, tmp_path, dtype):
    results = kernels.run(real, dtype)
    kept = kernels.laprox_kept(real, results, "layer", BUDGETS)
    path = kernels.write(tmp_path / "mine.h5", real, results, dtype, kept, budgets=",".join(map(str, BUDGETS)))
    verdict = verify(bundled, "--candidate", path, "--policy", "laprox+layer")
    assert {c["name"] for c in verdict["values"]} == {"scores", "column_norms", "column_sums", "value_norms", "output"}
    assert all(c["precision"] == dtype for c in verdict["values"]) and len(verdict["kept"]) == 2
    if dtype == "bfloat16":
        assert sum(c["ties"] for c in verdict["kept"]) > 0, "rounding to 8 bits makes ties, and none of them is an error"
        unrounded = kernels.write(tmp_path / "wide.h5", real, {0: results[0]}, "float32")
        verify(bundled, "--candidate", unrounded, "--policy", "laprox", passes=False)
        verify(bundled, "--candidate", unrounded, "--policy", "laprox", "--precision", "bfloat16")


def test_a_program_that_rounds_everything_to_bfloat16_passes_on_the_real_dump(verify, bundled, real, tmp_path):
    results = kernels.run(real, "bfloat16", layers=[1, 6], eager=True)
    verify(bundled, "--candidate", kernels.write(tmp_path / "eager.h5", real, results, "bfloat16"), "--policy", "laprox")


@pytest.mark.parametrize("kind", ADVERSARIAL)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_right_kernel_passes_on_adversarial_dumps(verify, adversarial, tmp_path, kind, dtype):
    dump = oracle.read_dump(adversarial(kind))
    results = kernels.run(dump, dtype)
    kept = kernels.laprox_kept(dump, results, "global", [45, 90])
    path = kernels.write(tmp_path / "mine.h5", dump, results, dtype, kept, budgets="45,90")
    verify(adversarial(kind), "--candidate", path, "--policy", "laprox")


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_the_cpu_backend_is_finite_and_right_on_adversarial_dumps(verify, adversarial, kind):
    verdict = verify(adversarial(kind), "--backend", "cpu", "--budget", "20%", "--policy", "laprox,laprox+layer,snapkv,h2o,tova,keydiff,cake,lava,dropkv,oracle")
    assert all(p["measured"] == 0 for c in verdict["values"] for p in c["parts"] if p["part"] == "finite")


def test_every_primitive_and_policy_of_a_backend_is_checked(laprox, verify, feature_dumps):
    verdict = verify(feature_dumps["plain"], "--backend", "cpu", "--budget", "40%,60%")
    names = {c["name"] for c in verdict["values"]}
    assert names >= {"column_norms", "column_sums", "column_sums of all", "value_norms", "value_l1_norms", "value_products", "window_products", "output", "scores"}
    listed = [line.split()[0] for line in laprox("policies").stdout.split("Allocators")[0].splitlines() if line.startswith("  ") and line[2] != " "]
    covered = {c["policy"] for c in verdict["values"] + verdict["kept"]} | {s["name"].split()[0] for s in verdict["skipped"]}
    assert set(listed) <= covered


@pytest.mark.parametrize("feature", ["float16-sinks-bias-groups-of-3-and-8", "bfloat16-softcap-window-odd-sizes", "float64-everything", "own-scale"])
def test_a_backend_passes_on_every_feature_of_a_model(verify, feature_dumps, feature):
    verify(feature_dumps[feature], "--backend", "cpu", "--budget", "70%", "--policy", "laprox,h2o,snapkv,obcache")


def test_what_a_dump_cannot_serve_is_listed(verify, feature_dumps):
    verdict = verify(feature_dumps["few-queries-wide-values"], "--budget", "40%,60%", "--policy", "h2o,laprox")
    skipped = {s["name"]: s["reason"] for s in verdict["skipped"]}
    assert set(skipped) == {"h2o", "column_sums of all", "laprox at 40%"}
    assert "stores only 48 of these 64" in skipped["h2o"] and "always keeps 32" in skipped["laprox at 40%"]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("policy", ["laprox", "snapkv+ada", "h2o", "knorm", "oracle", "criticalkv"])
def test_what_score_writes_is_verified(laprox, verify, small, tmp_path, policy, backend):
    laprox("score", small[0], "--policy", policy, "--budget", "40,60", "--backend", backend, "-o", tmp_path / "scores.h5", "--quiet")
    verdict = verify(small[0], "--candidate", tmp_path / "scores.h5")
    assert "output" in {c["name"] for c in verdict["values"]} and len(verdict["kept"]) == 2
    assert verdict["policy"].startswith(policy.split("+")[0])


# What must fail.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", kernels.FAULTS)
def test_every_planted_fault_is_caught(verify, bundled, real, tmp_path, fault, dtype):
    results = kernels.run(real, dtype, layers=[2], fault=fault)
    verdict = verify(bundled, "--candidate", kernels.write(tmp_path / "faulty.h5", real, results, dtype), "--policy", "laprox", passes=False)
    assert "scores" in {c["name"] for c in verdict["values"] if not c["passed"]}, "the fault shows in the scores themselves"


@pytest.mark.parametrize("dataset", ["scores", "column_norms", "column_sums", "value_norms"])
def test_one_bad_head_among_good_ones_is_caught_and_named(verify, bundled, real, tmp_path, dataset):
    results = kernels.run(real, "bfloat16", layers=[4])
    judged = real.context - (kernels.WINDOW if dataset == "scores" else 0)  # nothing reads the scores of pinned tokens
    row, noise = results[4][dataset][1, :judged].astype(float), np.random.default_rng(0).standard_normal(judged)
    noise -= (noise @ row) / (row @ row) * row
    results[4][dataset][1, :judged] = 0.6 * row + 0.8 * noise * np.linalg.norm(row) / np.linalg.norm(noise)
    verdict = verify(bundled, "--candidate", kernels.write(tmp_path / "head.h5", real, results, "bfloat16"), "--policy", "laprox", passes=False)
    assert failed_parts(verdict, dataset) == {"element", "relative L2", "cosine"}
    cosine = part(verdict, dataset, "cosine")
    assert cosine["layer"] == 4 and cosine.get("head", cosine.get("kv_head")) == 1 and cosine["measured"] == pytest.approx(0.6, abs=0.01)
    assert all(c["passed"] for c in verdict["values"] if c["name"] != dataset)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_poisoned_tail_is_caught_and_named(verify, small, tmp_path, poison):
    path, dump, results = small
    for dataset in results[1]:
        broken = {1: {name: values.copy() for name, values in results[1].items()}}
        broken[1][dataset][-1, -5:] = poison
        verdict = verify(path, "--candidate", kernels.write(tmp_path / "nan.h5", dump, broken, "float32"), "--policy", "laprox", passes=False)
        finite = part(verdict, dataset, "finite")
        assert failed_parts(verdict, dataset) == {"finite"} and finite["measured"] == 5 and finite["layer"] == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_finite_mask_is_caught_where_logits_lie_below_it(verify, adversarial, tmp_path, dtype):
    path = adversarial("negative-rows")
    dump = oracle.read_dump(path)
    results = kernels.run(dump, dtype, mask=-5e4)
    verdict = verify(path, "--candidate", kernels.write(tmp_path / "mask.h5", dump, results, dtype), "--policy", "laprox", passes=False)
    assert {"column_sums", "column_norms", "output"} <= {c["name"] for c in verdict["values"] if not c["passed"]}


@pytest.mark.parametrize("kind", ["huge-logits", "negative-rows"])
def test_a_float16_overflow_is_caught(verify, adversarial, tmp_path, kind):
    path = adversarial(kind, "float16")
    dump = oracle.read_dump(path)
    results = kernels.run(dump, "float16", logit_dtype="float16")
    assert not np.isfinite(results[0]["column_sums"]).all()
    verdict = verify(path, "--candidate", kernels.write(tmp_path / "overflow.h5", dump, results, "float16"), "--policy", "laprox", passes=False)
    assert "finite" in failed_parts(verdict, "column_sums")
    right = kernels.run(dump, "float16")
    verify(path, "--candidate", kernels.write(tmp_path / "right.h5", dump, right, "float16"), "--policy", "laprox")


def test_bfloat16_logits_are_caught_where_they_cannot_tell_keys_apart(verify, adversarial, tmp_path):
    """There the plain evaluation itself is no yardstick, and the cap stands in for it."""
    path = adversarial("huge-logits")
    dump = oracle.read_dump(path)
    results = kernels.run(dump, "bfloat16", logit_dtype="bfloat16")
    verdict = verify(path, "--candidate", kernels.write(tmp_path / "logits.h5", dump, results, "bfloat16"), "--policy", "laprox", passes=False)
    assert part(verdict, "column_norms", "relative L2")["capped"]


# Kept sets.


def kept_verdict(verify, small, tmp_path, change, passes):
    path, dump, results = small
    kept = kernels.laprox_kept(dump, results, "layer", [50])
    change(kept, results, dump)
    candidate = kernels.write(tmp_path / "kept.h5", dump, {i: {} for i in results}, "float32", kept, budgets="50")
    return verify(path, "--candidate", candidate, "--policy", "laprox+layer", passes=passes)["kept"][0]


def test_a_wrong_kept_token_is_caught_and_named(verify, small, tmp_path):
    def change(kept, results, dump):
        mask, scores = kept[1][0, 1], results[1]["scores"][1][:88]
        best, worst = np.argmax(scores), np.argmin(scores)
        mask[best], mask[worst] = 0, 1

    check = kept_verdict(verify, small, tmp_path, change, passes=False)
    assert check["differences"] == 2 and check["ties"] == 0
    assert check["parts"][0]["measured"] == 2 and (check["parts"][0]["layer"], check["parts"][0]["kv_head"]) == (1, 1)


def test_the_next_best_token_is_caught_too(verify, small, tmp_path):
    """Its score is 1 % below the cut or more, far beyond what float32 explains."""

    def change(kept, results, dump):
        mask, order = kept[0][0, 0], oracle.best_first(results[0]["scores"][0][:88])
        count = int(mask[:88].sum())
        mask[order[count - 1]], mask[order[count]] = 0, 1

    assert kept_verdict(verify, small, tmp_path, change, passes=False)["parts"][0]["measured"] == 2


def test_a_dropped_window_token_is_caught(verify, small, tmp_path):
    def change(kept, results, dump):
        kept[0][0, 0, -3] = 0
        kept[0][0, 0, np.flatnonzero(kept[0][0, 0] == 0)[0]] = 1

    kept_verdict(verify, small, tmp_path, change, passes=False)


def test_a_budget_that_is_split_wrongly_or_overspent_is_caught(verify, small, tmp_path):
    def move(kept, results, dump):
        mask, order = kept[0][0], [oracle.best_first(row[:88]) for row in results[0]["scores"]]
        counts = mask[:, :88].sum(1)
        for _ in range(4):  # the best sets of their sizes, but not the sizes that the scores give
            counts[0], counts[1] = counts[0] - 1, counts[1] + 1
        for head in (0, 1):
            mask[head, :88] = 0
            mask[head, order[head][: counts[head]]] = 1

    check = kept_verdict(verify, small, tmp_path, move, passes=False)
    assert {p["part"] for p in check["parts"] if not p["passed"]} == {"counts"}

    def overspend(kept, results, dump):
        kept[0][0, 0, oracle.best_first(results[0]["scores"][0][:88])] = 1

    check = kept_verdict(verify, small, tmp_path, overspend, passes=False)
    assert {p["part"] for p in check["parts"] if not p["passed"]} == {"counts", "budget"}


def test_an_exact_tie_is_no_error(verify, adversarial, tmp_path):
    """In `equal-tokens` the first of a pair is kept and the second is not: the other way round is as right."""
    path = adversarial("equal-tokens")
    dump = oracle.read_dump(path)
    kept = {}
    for i, layer in enumerate(dump.layers):
        weights = oracle.attention(layer, dump.window, dump.positions)[:, :, : dump.context]
        norms = np.linalg.norm(layer.k[:, : dump.context], axis=-1)
        mask = np.zeros((len(norms), dump.context), np.uint8)
        for head, row in enumerate(norms):
            mask[head, oracle.best_first(-row)[:61]] = 1  # knorm keeps small keys; an odd number cuts a pair
            last = oracle.best_first(-row)[60]
            assert row[last] == row[last ^ 1] and not mask[head, last ^ 1]
            mask[head, last], mask[head, last ^ 1] = 0, 1
        kept[i] = mask[None]
    candidate = kernels.write(tmp_path / "tie.h5", dump, {i: {} for i in kept}, "float32", kept, budgets="61")
    check = verify(path, "--candidate", candidate, "--policy", "knorm")["kept"][0]
    assert check["differences"] == check["ties"] == 8


def test_h5py_booleans_are_kept_masks(verify, small, tmp_path):
    path, dump, results = small
    kept = {i: mask.astype(bool) for i, mask in kernels.laprox_kept(dump, results, "layer", [50]).items()}
    candidate = kernels.write(tmp_path / "bool.h5", dump, {i: {} for i in kept}, "float32", kept, budgets="50")
    verify(path, "--candidate", candidate, "--policy", "laprox+layer")


# Files and command lines.


def replace(file, name, values):
    del file[name]
    file[name] = values


# What breaks the candidate, and the words that the message must hold.
BROKEN = {
    "no format": (lambda f: f.attrs.__delitem__("format"), ["attribute format", "laprox-scores", "nothing"]),
    "a dump": (lambda f: f.attrs.__setitem__("format", "laprox-dump"), ["attribute format", "laprox-dump"]),
    "version 2": (lambda f: f.attrs.__setitem__("version", 2), ["attribute version", "found 2"]),
    "no version": (lambda f: f.attrs.__delitem__("version"), ["attribute version", "nothing"]),
    "no layers": (lambda f: f.__delitem__("layers"), ["/layers", "nothing"]),
    "empty layers": (lambda f: [f.__delitem__(f"layers/{i}") for i in (0, 1)], ["/layers", "at least one", "no layer"]),
    "layers without datasets": (lambda f: [f["layers/0"].clear(), f["layers/1"].clear()], ["/layers", "none of them"]),
    "a layer that the dump lacks": (lambda f: f.move("layers/1", "layers/2"), ["/layers/2", "0 to 1"]),
    "a layer that is no number": (lambda f: f.move("layers/1", "layers/x"), ["/layers/x", "'x'"]),
    "a layer that is a dataset": (lambda f: replace(f, "layers/1", np.zeros(3)), ["/layers/1", "a group"]),
    "an unknown dataset": (lambda f: f.move("layers/1/scores", "layers/1/score"), ["/layers/1/score", "did you mean 'scores'"]),
    "a group for a dataset": (lambda f: [f.__delitem__("layers/1/scores"), f.create_group("layers/1/scores")], ["/layers/1/scores", "a group"]),
    "scores per query head": (lambda f: replace(f, "layers/1/scores", np.zeros((4, 120))), ["[kv_heads, C] = [2, 120]", "[4, 120]"]),
    "another context length": (lambda f: replace(f, "layers/1/column_norms", np.zeros((4, 130))), ["[query_heads, C] = [4, 120]", "[4, 130]"]),
    "a wrong rank": (lambda f: replace(f, "layers/1/value_norms", np.zeros(120)), ["/layers/1/value_norms", "[120]"]),
    "a scalar": (lambda f: replace(f, "layers/1/value_norms", np.float32(1)), ["/layers/1/value_norms", "a scalar"]),
    "integers": (lambda f: replace(f, "layers/1/scores", np.zeros((2, 120), "i4")), ["/layers/1/scores", "float16", "32-bit integer"]),
    "bits without the mark": (lambda f: replace(f, "layers/1/scores", np.zeros((2, 120), "u2")), ["/layers/1/scores", "bfloat16"]),
    "complex numbers": (lambda f: replace(f, "layers/1/scores", np.zeros((2, 120), "c8")), ["/layers/1/scores", "compound"]),
    "kept without budgets": (lambda f: f.attrs.__delitem__("budgets"), ["attribute budgets", "nothing"]),
    "budgets that are none": (lambda f: f.attrs.__setitem__("budgets", "many"), ["attribute budgets", "many"]),
    "fewer budgets than masks": (lambda f: f.attrs.__setitem__("budgets", "50,60"), ["/layers/0/kept", "[2, 2, 120]"]),
    "kept as numbers": (lambda f: replace(f, "layers/0/kept", np.zeros((1, 2, 120))), ["/layers/0/kept", "uint8"]),
    "kept beyond 1": (lambda f: f["layers/0/kept"].__setitem__((0, 1, 7), 3), ["/layers/0/kept", "3 at KV head 1, token 7"]),
    "output without positions": (lambda f: f.__delitem__("output_positions"), ["/output_positions", "nothing"]),
    "positions that are not stored": (lambda f: f["output_positions"].__setitem__(9, 500), ["/output_positions", "500"]),
    "positions out of order": (lambda f: f["output_positions"].__setitem__(0, 128), ["/output_positions", "ascending"]),
    "an output of too few rows": (lambda f: replace(f, "layers/0/output", np.zeros((9, 32))), ["/layers/0/output", "[M, D] = [10, 32]"]),
    "another dump": (lambda f: f.attrs.__setitem__("dump_sha256", "00"), ["attribute dump_sha256", "another dump"]),
    "an unknown precision": (lambda f: f.attrs.__setitem__("precision", "fp8"), ["attribute precision", "fp8"]),
    "a policy that is none": (lambda f: f.attrs.__setitem__("policy", "laprx"), ["attribute policy", "did you mean 'laprox'"]),
    "a policy that is a number": (lambda f: f.attrs.__setitem__("policy", 3), ["attribute policy", "a string"]),
}


@pytest.fixture
def candidate(small, tmp_path):
    path, dump, results = small
    kept = kernels.laprox_kept(dump, results, "layer", [50])
    return kernels.write(tmp_path / "candidate.h5", dump, results, "float32", kept, budgets="50", policy="laprox+layer")


@pytest.mark.parametrize("fault", BROKEN)
def test_a_candidate_that_breaks_the_layout_is_refused(laprox, small, candidate, fault):
    breaks, words = BROKEN[fault]
    with h5py.File(candidate, "r+") as file:
        breaks(file)
    message = laprox("verify", small[0], "--candidate", candidate, expect=3).stderr
    for word in ["candidate.h5", *words]:
        assert word in message


def test_files_that_are_no_candidates_are_refused(laprox, small, tmp_path):
    assert "no such file" in laprox("verify", small[0], "--candidate", tmp_path / "none.h5", expect=3).stderr
    (tmp_path / "text.h5").write_text("scores")
    assert "cannot open" in laprox("verify", small[0], "--candidate", tmp_path / "text.h5", expect=3).stderr
    assert "a directory" in laprox("verify", small[0], "--candidate", tmp_path, expect=3).stderr
    assert "laprox-scores" in laprox("verify", small[0], "--candidate", small[0], expect=3).stderr


def test_a_truncated_candidate_is_refused(laprox, small, candidate):
    data = candidate.read_bytes()
    for share in (0.3, 0.6, 0.95):
        candidate.write_bytes(data[: int(share * len(data))])
        laprox("verify", small[0], "--candidate", candidate, expect=3)


def test_statistics_that_a_policy_does_not_have_are_refused(laprox, small, tmp_path):
    path, dump, results = small
    only = lambda name: kernels.write(tmp_path / "c.h5", dump, {0: {name: results[0][name]}}, "float32")
    assert "reads no queries" in laprox("verify", path, "--candidate", only("column_sums"), "--policy", "knorm", expect=3).stderr
    assert "no observation window" in laprox("verify", path, "--candidate", only("column_norms"), "--policy", "h2o", expect=3).stderr
    laprox("verify", path, "--candidate", only("value_norms"))  # belongs to no policy


def test_usage(laprox, small, candidate, tmp_path, feature_dumps):
    path, dump, results = small
    anonymous = kernels.write(tmp_path / "a.h5", dump, {0: {"scores": results[0]["scores"]}}, "float16")
    assert "of which policy" in laprox("verify", path, "--candidate", anonymous, expect=2).stderr
    assert "coarser" in laprox("verify", path, "--candidate", anonymous, "--policy", "laprox", "--precision", "float32", expect=3).stderr
    assert "snapkv" in laprox("verify", path, "--candidate", candidate, "--policy", "snapkv", expect=2).stderr
    assert "one policy" in laprox("verify", path, "--candidate", candidate, "--policy", "snapkv,h2o", expect=2).stderr
    laprox("verify", path, "--candidate", candidate, "--backend", "cpu", expect=2)
    laprox("verify", path, "--candidate", candidate, "--budget", "5%", expect=2)
    laprox("verify", path, "--precision", "fp8", expect=2)
    laprox("verify", path, "--backend", "tpu", expect=2)
    laprox("verify", path, "--policy", "laprx", expect=2)
    laprox("verify", path, "--budget", "many", expect=2)
    laprox("verify", expect=2)
    assert "no such file" in laprox("verify", tmp_path / "none.h5", expect=3).stderr


def test_the_table_says_what_was_checked_and_what_failed(laprox, small, candidate):
    text = laprox("verify", small[0], "--candidate", candidate).stdout
    assert "policy laprox+layer:window=32" in text and text.splitlines()[-1] == "6 checks, 0 skipped: verified"
    with h5py.File(candidate, "r+") as file:
        file["layers/1/scores"][1, 7] = 9.0
    failed = laprox("verify", small[0], "--candidate", candidate, expect=5)
    assert "scores laprox+layer: element: layer 1, KV head 1, token 7: found 9, expected" in failed.stdout
    assert failed.stdout.splitlines()[-1].endswith("FAILED") and "layer 1, KV head 1, token 7" in failed.stderr


def test_synth_lists_and_refuses_adversarial_kinds(laprox, tmp_path):
    text = laprox("synth", "--help").stdout
    assert all(kind in text for kind in ADVERSARIAL)
    arguments = ["synth", "-o", tmp_path / "x.h5", "--preset", "tiny", "--tokens", 50, "--adversarial"]
    assert "did you mean 'huge-logits'" in laprox(*arguments, "huge", expect=2).stderr
    laprox(*arguments, "giant-key", "--seed", 5)
    first = (tmp_path / "x.h5").read_bytes()
    laprox(*arguments, "giant-key", "--seed", 5, "--force")
    assert (tmp_path / "x.h5").read_bytes() == first
    assert "adversarial giant-key" in laprox("inspect", tmp_path / "x.h5").stdout
