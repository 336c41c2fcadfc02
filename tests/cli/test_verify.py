"""The verifier's teeth: kernels that it must accept and faults that it must catch."""

import json

import kernels
import numpy as np
import oracle
import pytest

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
            laprox(
                "synth",
                "-o",
                path,
                "--preset",
                "tiny",
                "--tokens",
                300,
                "--decode",
                8,
                "--dtype",
                dtype,
                "--adversarial",
                kind,
                "--seed",
                3,
                "--quiet",
            )
        return path

    return make


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


@pytest.mark.parametrize("kind", kernels.ADVERSARIAL)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_right_kernel_passes_on_adversarial_dumps(verify, adversarial, tmp_path, kind, dtype):
    dump = oracle.read_dump(adversarial(kind))
    results = kernels.run(dump, dtype)
    kept = kernels.laprox_kept(dump, results, "global", [45, 90])
    path = kernels.write(tmp_path / "mine.h5", dump, results, dtype, kept, budgets="45,90")
    verify(adversarial(kind), "--candidate", path, "--policy", "laprox")


@pytest.mark.parametrize("kind", kernels.ADVERSARIAL)
def test_the_cpu_backend_is_finite_and_right_on_adversarial_dumps(verify, adversarial, kind):
    verdict = verify(adversarial(kind), "--backend", "cpu", "--budget", "20%")
    assert all(p["measured"] == 0 for c in verdict["values"] for p in c["parts"] if p["part"] == "finite")
    unjudged = {s["name"] for s in verdict["skipped"] if "jump" in s["reason"]}
    assert unjudged <= {"scores defensivekv", "scores layer-defensivekv"}
    assert {c["policy"] for c in verdict["kept"]} >= {"defensivekv", "greedy", "criticalkv", "laprox", "h2o"}


def test_every_primitive_and_policy_of_a_backend_is_checked(laprox, verify, feature_dumps):
    verdict = verify(feature_dumps["plain"], "--backend", "cpu", "--budget", "40%,60%")
    names = {c["name"] for c in verdict["values"]}
    assert names >= {
        "column_norms",
        "column_sums",
        "column_sums of all",
        "value_norms",
        "value_l1_norms",
        "value_products",
        "window_products",
        "output",
        "scores",
    }
    listed = [
        line.split()[0]
        for line in laprox("policies").stdout.split("Allocators")[0].splitlines()
        if line.startswith("  ") and line[2] != " "
    ]
    covered = {c["policy"] for c in verdict["values"] + verdict["kept"]} | {s["name"].split()[0] for s in verdict["skipped"]}
    assert set(listed) <= covered


@pytest.mark.parametrize(
    "feature", ["float16-sinks-bias-groups-of-3-and-8", "bfloat16-softcap-window-odd-sizes", "float64-everything", "own-scale"]
)
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
    laprox(
        "score", small[0], "--policy", policy, "--budget", "40,60", "--backend", backend, "-o", tmp_path / "scores.h5", "--quiet"
    )
    verdict = verify(small[0], "--candidate", tmp_path / "scores.h5")
    assert "output" in {c["name"] for c in verdict["values"]} and len(verdict["kept"]) == 2
    assert verdict["policy"].startswith(policy.split("+")[0])


# What must fail.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", kernels.FAULTS)
def test_every_planted_fault_is_caught(verify, bundled, real, tmp_path, fault, dtype):
    results = kernels.run(real, dtype, layers=[2], fault=fault)
    verdict = verify(
        bundled, "--candidate", kernels.write(tmp_path / "faulty.h5", real, results, dtype), "--policy", "laprox", passes=False
    )
    assert "scores" in {c["name"] for c in verdict["values"] if not c["passed"]}, "the fault shows in the scores themselves"


@pytest.mark.parametrize("dataset", ["scores", "column_norms", "column_sums", "value_norms"])
def test_one_bad_head_among_good_ones_is_caught_and_named(verify, bundled, real, tmp_path, dataset):
    results = kernels.run(real, "bfloat16", layers=[4])
    judged = real.context - (kernels.WINDOW if dataset == "scores" else 0)  # nothing reads the scores of pinned tokens
    row, noise = results[4][dataset][1, :judged].astype(float), np.random.default_rng(0).standard_normal(judged)
    noise -= (noise @ row) / (row @ row) * row
    results[4][dataset][1, :judged] = 0.6 * row + 0.8 * noise * np.linalg.norm(row) / np.linalg.norm(noise)
    verdict = verify(
        bundled, "--candidate", kernels.write(tmp_path / "head.h5", real, results, "bfloat16"), "--policy", "laprox", passes=False
    )
    assert failed_parts(verdict, dataset) == {"element", "relative L2", "cosine"}
    cosine = part(verdict, dataset, "cosine")
    assert (
        cosine["layer"] == 4
        and cosine.get("head", cosine.get("kv_head")) == 1
        and cosine["measured"] == pytest.approx(0.6, abs=0.01)
    )
    assert all(c["passed"] for c in verdict["values"] if c["name"] != dataset)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_poisoned_tail_is_caught_and_named(verify, small, tmp_path, poison):
    path, dump, results = small
    for dataset in results[1]:
        broken = {1: {name: values.copy() for name, values in results[1].items()}}
        broken[1][dataset][-1, -5:] = poison
        verdict = verify(
            path, "--candidate", kernels.write(tmp_path / "nan.h5", dump, broken, "float32"), "--policy", "laprox", passes=False
        )
        finite = part(verdict, dataset, "finite")
        assert failed_parts(verdict, dataset) == {"finite"} and finite["measured"] == 5 and finite["layer"] == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_finite_mask_is_caught_where_logits_lie_below_it(verify, adversarial, tmp_path, dtype):
    path = adversarial("negative-rows")
    dump = oracle.read_dump(path)
    results = kernels.run(dump, dtype, mask=-5e4)
    verdict = verify(
        path, "--candidate", kernels.write(tmp_path / "mask.h5", dump, results, dtype), "--policy", "laprox", passes=False
    )
    assert {"column_sums", "column_norms", "output"} <= {c["name"] for c in verdict["values"] if not c["passed"]}


@pytest.mark.parametrize("kind", ["huge-logits", "negative-rows"])
def test_a_float16_overflow_is_caught(verify, adversarial, tmp_path, kind):
    path = adversarial(kind, "float16")
    dump = oracle.read_dump(path)
    results = kernels.run(dump, "float16", logit_dtype="float16")
    assert not np.isfinite(results[0]["column_sums"]).all()
    verdict = verify(
        path, "--candidate", kernels.write(tmp_path / "overflow.h5", dump, results, "float16"), "--policy", "laprox", passes=False
    )
    assert "finite" in failed_parts(verdict, "column_sums")
    right = kernels.run(dump, "float16")
    verify(path, "--candidate", kernels.write(tmp_path / "right.h5", dump, right, "float16"), "--policy", "laprox")


def test_bfloat16_logits_are_caught_where_they_cannot_tell_keys_apart(verify, adversarial, tmp_path):
    """There the plain evaluation itself is no yardstick, and the cap stands in for it."""
    path = adversarial("huge-logits")
    dump = oracle.read_dump(path)
    results = kernels.run(dump, "bfloat16", logit_dtype="bfloat16")
    verdict = verify(
        path, "--candidate", kernels.write(tmp_path / "logits.h5", dump, results, "bfloat16"), "--policy", "laprox", passes=False
    )
    assert part(verdict, "column_norms", "relative L2")["capped"]


# Kept sets.


def kept_verdict(verify, small, tmp_path, change, passes):
    path, dump, results = small
    kept = kernels.laprox_kept(dump, results, "layer", [50])
    change(kept, results, dump)
    candidate = kernels.write(tmp_path / "kept.h5", dump, {i: {} for i in results}, "float32", kept, budgets="50")
    return verify(path, "--candidate", candidate, "--policy", "laprox+layer", passes=passes)["kept"][0]


def lists_of(masks, dtype, width):
    """The tokens of masks [budgets, H_kv, C], shuffled, then -1."""
    lists = np.full((*masks.shape[:2], width), -1, dtype)
    for at in np.ndindex(masks.shape[:2]):
        tokens = np.random.default_rng(3).permutation(np.flatnonzero(masks[at]))
        lists[at][: len(tokens)] = tokens
    return lists


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64])
def test_kept_tokens_may_be_lists(verify, small, tmp_path, dtype):
    """The verdict is the masks', with a right and with a wrong token."""

    def as_lists(kept, results, dump):
        for layer, masks in kept.items():
            kept[layer] = lists_of(masks, dtype, int(masks.sum(-1).max()) + 2)

    def wrong_as_lists(kept, results, dump):
        mask, scores = kept[1][0, 1], results[1]["scores"][1][:88]
        mask[np.argmax(scores)], mask[np.argmin(scores)] = 0, 1
        as_lists(kept, results, dump)

    assert kept_verdict(verify, small, tmp_path, as_lists, passes=True)["differences"] == 0
    check = kept_verdict(verify, small, tmp_path, wrong_as_lists, passes=False)
    assert (check["differences"], check["parts"][0]["layer"], check["parts"][0]["kv_head"]) == (2, 1, 1)


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
        oracle.attention(layer, dump.window, dump.positions)[:, :, : dump.context]
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


def test_a_verdict_says_how_much_is_wrong(laprox, small, tmp_path):
    path, dump, results = small
    wrong = {i: {name: np.array(values) for name, values in datasets.items()} for i, datasets in results.items()}
    wrong[1]["value_norms"] *= 2
    wrong[0]["column_norms"][:, 30:33] *= -1
    wrong[0]["scores"][1, 5:9] = np.nan
    candidate = kernels.write(tmp_path / "c.h5", dump, wrong, "float32")
    done = laprox("verify", path, "--candidate", candidate, "--policy", "laprox", expect=5)
    heads = len(dump.layers[1].q)
    assert f"in layer 1: heads 0..{heads - 1}, tokens 0..119; found = 2 x expected" in done.stdout
    assert "in layer 0: heads 0..3, tokens 30..32; found = -1 x expected" in done.stdout
    assert "4 of " in done.stdout and "in layer 0: KV head 1, tokens 5..8" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("scores"))
    assert "NaN" in row and "FAIL" in row
    verdict = json.loads(
        laprox("verify", path, "--candidate", candidate, "--policy", "laprox", "--format", "json", expect=5).stdout
    )
    failing = {check["name"]: check["failing"] for check in verdict["values"]}
    assert failing["value_norms"]["rows_by_layer"] == {"1": list(range(heads))}
    assert failing["value_norms"]["ratio"] == pytest.approx([2, 2], rel=1e-5) and failing["output"] == {"elements": 0}
    assert failing["column_norms"]["columns"] == [30, 32] and failing["column_norms"]["elements"] == 12
