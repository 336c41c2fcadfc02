"""laprox.verify: a backend, and arrays that a kernel of one's own computed, right ones and wrong ones."""

import laprox
import ml_dtypes
import numpy as np
import pytest
from conftest import arrays

WINDOW = 16
POLICY = f"laprox+layer:window={WINDOW}"


def value_norms(seed, dtype=np.float32):
    """||v_i W_O^h|| of the 80 tokens of the context, plain NumPy: [query_heads, C]."""
    given = arrays(seed=seed)
    group = given["q"].shape[0] // given["k"].shape[0]
    values = np.repeat(given["v"], group, 0).astype(float)
    blocks = given["w_o"].astype(float).reshape(len(values), values.shape[2], -1)
    return np.linalg.norm(np.einsum("htv,hvd->htd", values, blocks), axis=-1).astype(dtype)[:, :80]


def test_the_cpu_backend_passes(layers):
    verdict = laprox.verify(layers, policies=["knorm", "h2o"], budgets="25%")
    assert verdict["passed"] and {check["policy"] for check in verdict["kept"]} == {"knorm", "h2o"}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_right_arrays_pass_in_every_type(layers, dtype):
    verdict = laprox.verify(layers, candidate={"value_norms": [value_norms(seed, dtype) for seed in range(3)]})
    [check] = verdict["values"]
    assert verdict["passed"] and check["precision"] == np.dtype(dtype).name
    assert check["elements"] == 3 * value_norms(0).size and check["failing"]["elements"] == 0


def test_scores_and_kept_sets_of_a_policy(layers):
    scores = laprox.scores(layers, POLICY, backend="reference")
    kept = laprox.kept(layers, POLICY, "25%")
    candidate = {"scores": [s.astype(np.float32) for s in scores], "kept": kept.masks}
    verdict = laprox.verify(layers, candidate=candidate, policies=POLICY, budgets="25%")
    assert verdict["passed"] and verdict["values"][0]["name"] == "scores" and verdict["kept"][0]["differences"] == 0

    wrong = [mask.copy() for mask in kept.masks]
    best, worst = (int(f(np.where(wrong[1][0], np.nan, scores[1][0]))) for f in (np.nanargmax, np.nanargmin))
    evicted = int(np.nanargmax(np.where(wrong[1][0], scores[1][0], np.nan)[: scores[1].shape[1] - WINDOW]))
    wrong[1][0, evicted], wrong[1][0, worst] = False, True
    assert best != worst
    verdict = laprox.verify(layers, candidate={"kept": wrong}, policies=POLICY, budgets="25%")
    assert not verdict["passed"] and verdict["kept"][0]["differences"] == 2


def test_several_budgets_of_kept_sets(layers):
    masks = [np.stack(both) for both in zip(*(laprox.kept(layers, POLICY, b).masks for b in ("25%", "50%")), strict=True)]
    verdict = laprox.verify(layers, candidate={"kept": masks}, policies=POLICY, budgets=["25%", "50%"])
    assert verdict["passed"] and [check["budget"] for check in verdict["kept"]] == ["25%", "50%"]


def test_outputs_of_the_stored_queries():
    given = arrays()
    one = laprox.Layer(**given)
    group = len(given["q"]) // len(given["k"])
    k, v = (np.repeat(given[name], group, 0).astype(float) for name in "kv")
    logits = np.where(np.tri(k.shape[1], dtype=bool), given["q"].astype(float) @ k.swapaxes(1, 2) / k.shape[2] ** 0.5, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    heads = weights / weights.sum(-1, keepdims=True) @ v
    output = heads.swapaxes(0, 1).reshape(k.shape[1], -1) @ given["w_o"]
    assert laprox.verify(one, candidate={"output": output.astype(np.float32)})["passed"]
    assert not laprox.verify(one, candidate={"output": (1.01 * output).astype(np.float32)})["passed"]


def test_a_wrong_factor_in_one_layer_is_told(layers):
    verdict = laprox.verify(layers, candidate={"value_norms": {1: 2 * value_norms(1), 2: value_norms(2)}})
    [check] = verdict["values"]
    failing = check["failing"]
    assert not verdict["passed"] and failing["elements"] == value_norms(1).size
    assert failing["rows_by_layer"] == {1: list(range(len(value_norms(1))))}
    np.testing.assert_allclose(failing["ratio"], (2, 2), rtol=1e-5)


def test_precision_says_how_strictly(layers):
    rounded = [value_norms(seed).astype(np.float16).astype(np.float32) for seed in range(3)]
    assert not laprox.verify(layers, candidate={"value_norms": rounded})["passed"]
    assert laprox.verify(layers, candidate={"value_norms": rounded}, precision="float16")["passed"]


def test_tensors_of_pytorch(layers):
    torch = pytest.importorskip("torch")
    norms = [torch.tensor(value_norms(seed)).to(torch.bfloat16).requires_grad_() for seed in range(3)]
    verdict = laprox.verify(layers, candidate={"value_norms": norms})
    assert verdict["passed"] and verdict["values"][0]["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ({}, "expected at least one of scores"),
        ({"value_norm": 1}, "found 'value_norm'"),
        ({"value_norms": value_norms(0)}, "a sequence of 3 arrays"),
        ({"value_norms": [value_norms(0)]}, "one array for each of the 3 layers"),
        ({"value_norms": {3: value_norms(0)}}, "layers from 0 to 2, found 3"),
        ({"value_norms": {0: value_norms(0)[:, :-1]}}, r"layer 0, value_norms: expected shape \[4, 80\]"),
        ({"value_norms": {0: value_norms(0).astype(int)}}, "found int64"),
        ({"scores": {0: np.ones((2, 80))}}, "policies: expected the one policy that scores belong to, found 0"),
        ({"kept": {0: np.ones((2, 80), np.int8)}}, "masks of bool"),
        ({"kept": {0: np.ones((2, 2, 80), bool)}}, r"\[budgets, kv_heads, C\] = \[1, 2, 80\]"),
    ],
)
def test_what_is_no_candidate_is_refused(layers, candidate, message):
    with pytest.raises(laprox.UsageError, match=message):
        laprox.verify(layers, candidate=candidate)


def test_a_backend_and_a_candidate_are_one_too_many(layers):
    with pytest.raises(laprox.UsageError, match="found both"):
        laprox.verify(layers, backend="cpu", candidate={"value_norms": [value_norms(s) for s in range(3)]})
    with pytest.raises(laprox.UsageError, match="precision: expected one of"):
        laprox.verify(layers, candidate={"value_norms": [value_norms(s) for s in range(3)]}, precision="half")


def test_a_dump_by_its_path(dump, layers):
    first = layers[0]
    scores = laprox.scores(first, "knorm", backend="reference")
    verdict = laprox.verify(dump, candidate={"scores": {0: scores.astype(np.float32)}}, policies="knorm")
    assert verdict["passed"] and verdict["subject"] == "candidate"
