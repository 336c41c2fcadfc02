"""Policies written in Python, beside the built-in ones."""

import laprox
import numpy as np
import pytest
from conftest import layer


@pytest.fixture(autouse=True)
def forget():
    from laprox import _policies

    before = dict(_policies._own)
    yield
    _policies._own.clear()
    _policies._own.update(before)


def test_a_policy_of_primitives_equals_the_built_in_one(layers):
    @laprox.policy("mine", queries=16, pins=16)
    def mine(layer):
        return layer.scores("snapkv:window=16")

    for split in ("", "+ada:floor=0.3", "+global", "+layer"):
        report = laprox.sweep(
            layers, [f"mine{split}", "snapkv" + (split or "+head") + (",window=16" if ":" in split else ":window=16")], [20, 30]
        )
        np.testing.assert_array_equal(report.kept_count[:, 0], report.kept_count[:, 1])
        np.testing.assert_array_equal(report.relative_error[:, 0], report.relative_error[:, 1])
        assert (report.identical_to[:, 1] == 0).all()


def test_every_primitive_has_its_shape(layers):
    seen = {}

    @laprox.policy("look", queries="all")
    def look(layer):
        seen.update(
            k=layer.k,
            v=layer.v,
            q=layer.q,
            w_o=layer.w_o,
            positions=layer.query_positions,
            sums=layer.attention_sums(8),
            squares=layer.attention_squares(8),
            columns=layer.column_sums(),
            norms=layer.value_norms(),
            l1=layer.value_l1_norms(),
            index=layer.index,
        )
        assert (layer.kv_heads, layer.query_heads, layer.group, layer.tokens) == (2, 4, 2, 80)
        return -np.linalg.norm(layer.k, axis=-1)

    kept = laprox.kept(layers, look, 20)
    np.testing.assert_array_equal(kept.masks[1], laprox.kept(layers, "knorm", 20).masks[1])
    shapes = {name: value.shape for name, value in seen.items() if name != "index"}
    assert shapes == {
        "k": (2, 80, 8),
        "v": (2, 80, 6),
        "q": (4, 80, 8),
        "w_o": (4, 6, 10),
        "positions": (80,),
        "sums": (4, 80),
        "squares": (4, 80),
        "columns": (4, 80),
        "norms": (4, 80),
        "l1": (4, 80),
    }
    head = 3
    np.testing.assert_allclose(seen["norms"][head], np.linalg.norm(seen["v"][head // 2] @ seen["w_o"][head], axis=-1), rtol=1e-4)


def test_the_held_out_queries_are_hidden(layers):
    positions = []

    @laprox.policy("peek", queries=4)
    def peek(layer):
        positions.extend(layer.query_positions)
        return np.zeros((layer.kv_heads, layer.tokens))

    laprox.sweep(layers[0], peek, 20)
    assert positions == [76, 77, 78, 79]


def test_a_policy_sees_the_queries_that_it_asked_for_whatever_the_others_read(layers):
    seen = []

    @laprox.policy("four", queries=4)
    def four(layer):
        seen.append((layer.q, layer.query_positions))
        return np.zeros((layer.kv_heads, layer.tokens))

    laprox.sweep(layers[0], four, 20)
    laprox.sweep(layers[0], [four, "h2o"], 20)
    for alone, together in zip(*seen, strict=True):
        np.testing.assert_array_equal(alone, together)
    assert seen[1][0].shape == (4, 4, 8)

    laprox.policy("greedy-eyes", queries=4)(lambda layer: layer.attention_sums(8).reshape(2, 2, -1).sum(1))
    with pytest.raises(laprox.UsageError, match="the policy asked for 4"):
        laprox.sweep(layers[0], ["greedy-eyes", "h2o"], 20)


def test_pins_are_kept(layers):
    @laprox.policy("pinned", pins=(3, 5))
    def pinned(layer):
        return np.random.default_rng(layer.index).random((layer.kv_heads, layer.tokens))

    for layer_tokens in laprox.kept(layers, "pinned+global", 12).tokens:
        for head in layer_tokens:
            assert {0, 1, 2, 75, 76, 77, 78, 79} <= set(head.tolist())


def test_masks_are_kept_as_they_are(layers):
    @laprox.policy("masked", allocator="layer")
    def masked(layer, tokens):
        mask = np.zeros((layer.kv_heads, layer.tokens), bool)
        mask[0, : tokens // 2] = True
        mask[1, -(2 * tokens - tokens // 2) :] = True
        return mask

    kept = laprox.kept(layers, masked, 21)
    assert kept.counts == [[10, 32]] * 3
    np.testing.assert_array_equal(kept.tokens[0][1], np.arange(80 - 32, 80))
    report = laprox.sweep(layers, [masked, "recent"], [10, 20])
    assert (report.kept_pairs[0, 0] == [60, 120]).all()


def test_scores_may_depend_on_the_budget(layers):
    asked = []

    @laprox.policy("nested-not")
    def other(layer, tokens):
        asked.append(tokens)
        return np.roll(np.arange(2 * layer.tokens, dtype=float).reshape(2, -1), tokens, 1)

    report = laprox.sweep(layers[0], other, [10, 20])
    assert asked == [10, 20] and report.sizes["budget"] == 2


@pytest.mark.parametrize(("largest", "words"), [(1e307, "it is not finite"), (-1.0, "one of them is -1")])
def test_shares_of_what_has_none_are_refused(layers, largest, words):
    laprox.policy("huge", allocator="global")(lambda layer: np.tile(np.linspace(0, largest, layer.tokens), (2, 1)))
    with pytest.raises(laprox.UsageError, match=words):
        laprox.sweep(layers, "huge", "25%")
    assert laprox.sweep(layers, "huge+global:normalize=false", "25%").sizes["policy"] == 1


def test_torch_scores_are_taken(layers):
    torch = pytest.importorskip("torch")

    @laprox.policy("torch-norm")
    def norm(layer):
        return -torch.from_numpy(layer.k).norm(dim=-1)

    np.testing.assert_array_equal(laprox.kept(layers, norm, 20).masks[0], laprox.kept(layers, "knorm", 20).masks[0])


@pytest.mark.parametrize(
    "answer, error, message",
    [
        (lambda layer: np.zeros((3, 80)), laprox.UsageError, r"expected scores \[kv_heads, tokens\] = \[2, 80\] of layer 0"),
        (lambda layer: np.zeros(80), laprox.UsageError, "expected 2 dimensions"),
        (lambda layer: None, laprox.UsageError, "policy 'bad'"),
        (lambda layer: 2**60 + np.arange(160).reshape(2, 80), laprox.UsageError, r"whole scores up to 2\*\*53"),
        (
            lambda layer: np.full((2, 80), np.nan),
            laprox.UsageError,
            "'bad': expected finite scores of layer 0, found nan at KV head 0",
        ),
        (lambda layer: np.tile([1.0] * 79 + [-np.inf], (2, 1)), laprox.UsageError, "found -inf at KV head 0, token 79"),
        (lambda layer: np.zeros((2, 80), bool), laprox.UsageError, "take the budget as a second argument"),
        (lambda layer: layer.attention_sums(8), laprox.UsageError, "say queries=8"),
        (lambda layer: layer.attention_sums(0), laprox.UsageError, "a window of 1 query or more, found 0"),
        (lambda layer: layer.attention_squares(-1), laprox.UsageError, "a window of 1 query or more, found -1"),
        (lambda layer: layer.scores("h2o"), laprox.UsageError, 'queries="all"'),
        (lambda layer: layer.scores("oracle"), laprox.UsageError, "held-out"),
        (lambda layer: 1 / 0, ZeroDivisionError, "division"),
    ],
)
def test_bad_answers_are_refused(layers, answer, error, message):
    laprox.policy("bad")(answer)
    with pytest.raises(error, match=message):
        laprox.sweep(layers, "bad", 20)


@pytest.mark.parametrize(
    "mask, message", [((2, 79), "expected a mask"), ((2, 80), "keeps 20 tokens for each of 2 KV heads, 40 in all, found 0")]
)
def test_bad_masks_are_refused(layers, mask, message):
    laprox.policy("bad", allocator="layer")(lambda layer, tokens: np.zeros(mask, bool))
    with pytest.raises(laprox.UsageError, match=message):
        laprox.kept(layers, "bad", 20)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("snapkv", {}, "built-in"),
        ("all", {}, "built-in"),
        ("a+b", {}, "expected a name"),
        ("x", {"pins": -1}, "pins"),
        ("x", {"queries": "some"}, "queries"),
        ("x", {"allocator": "heads"}, "did you mean 'head'"),
        ("x", {"allocator": "cake"}, "asks the scorer"),
    ],
)
def test_bad_declarations_are_refused(name, options, message):
    with pytest.raises(laprox.UsageError, match=message):
        laprox.policy(name, **options)(lambda layer: None)


def test_the_layer_ends_with_the_policy(layers):
    escaped = []

    @laprox.policy("escape")
    def escape(layer):
        escaped.append(layer)
        return np.zeros((layer.kv_heads, layer.tokens))

    laprox.scores(layers[0], escape)
    with pytest.raises(laprox.UsageError, match="while the policy runs"):
        escaped[0].value_norms()


def test_own_policies_are_listed():
    @laprox.policy("listed")
    def listed(layer):
        """What it does.

        At length."""
        return np.zeros((layer.kv_heads, layer.tokens))

    [entry] = [entry for entry in laprox.policies() if entry.kind == "own" and entry.name == "listed"]
    assert (entry.name, entry.summary) == ("listed", "What it does.")
    assert listed(layer().shape).shape == (2, 96)
