"""Schedules on the model itself.

What a model with an evicted cache computes is what a plain pass over the same tokens computes with evicted keys masked; and what
the caches hold is what a replay of that very pass's queries, keys and values says.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("laprox_dump")

import laprox  # noqa: E402
from laprox import eval as closed_loop  # noqa: E402
from laprox.eval import evaluation  # noqa: E402
from laprox.eval.compare import table  # noqa: E402
from laprox.eval.report import open_evaluations  # noqa: E402
from laprox_dump import attention  # noqa: E402
from plain_loop import CONTEXT, build, plain_logits, task  # noqa: E402

POLICIES = [
    "full",
    "h2o+head",
    "tova+head",
    "streaming:sinks=2",
    "snapkv+head:window=3,kernel=3",
    "laprox-r+head:window=3,kernel=3,sinks=1",
    "keydiff+head",
]
BUDGETS = ["12", "35%"]


def settings(schedule, **more):
    return closed_loop.Settings(tokens=10, threads=1, schedule=schedule, **more)


def lifetimes(loop, tokens):
    """Reads `tokens` [s] behind the prompt in all cells: [layer] of [cells, H_kv, C + s], the first position without an entry."""
    cache, count = loop.cache, CONTEXT + len(tokens)
    gone = [torch.full((loop.count, layer.keys.shape[0], count), count) for layer in cache.layers]
    parts = cache.parts

    def watched(offset, number):
        for part in parts(offset, number):
            for layer, of_layer in enumerate(gone):
                there = torch.nn.functional.pad(cache.held(layer), (0, count - cache.held(layer).shape[2]), value=True)
                of_layer[~there & (of_layer == count)] = CONTEXT + offset + part.start
            yield part

    cache.parts = watched
    logits = torch.cat([found for _, found in loop.forced(tokens, len(tokens))])
    cache.parts = parts
    return gone, logits


@pytest.mark.parametrize("question", ["", "5"])
@pytest.mark.parametrize("family, schedule", [("llama", "step"), ("qwen2", "every:3"), ("llama", "every:4,grow")])
def test_caches_hold_what_a_replay_of_the_same_pass_says(family, schedule, question, caught):
    model, one = build(family), task(question=question)
    budgets = ["20%", "35%"] if "grow" in schedule else BUDGETS
    # In float64: both passes differ by rounding, which decides between scores that are nearly equal in float32.
    exact = settings(schedule, backend="reference")
    evaluation.evaluate_prompt(model, one, laprox._policies.parse_many(POLICIES), budgets, exact)
    tokens = model.encode(one)
    attention.register()
    later = torch.cat([tokens.question, evaluation.greedy(model.network, torch.cat([tokens.context, tokens.question]), 9, False)])
    gone, logits = lifetimes(caught[0], later)
    ids = torch.cat([tokens.context, later])
    evicted = 0
    for cell in range(1, caught[0].count):
        layers = []

        def hear(module, query, key, value, scale):
            weights = module.o_proj.weight.detach().T
            layers.append(laprox.Layer(query, key, value, weights, scale=scale, context_length=CONTEXT))

        plain = plain_logits(model.network, ids, [layer[cell] for layer in gone], hear)
        torch.testing.assert_close(logits[cell], plain[CONTEXT:], rtol=2e-3, atol=2e-4)
        policy, budget = POLICIES[(cell - 1) // len(budgets)], budgets[(cell - 1) % len(budgets)]
        report = laprox.sweep(layers, [policy], [budget], schedule=schedule, save_kept=True, backend="reference")
        replayed = report.evicted_at.values[0, 0, 0]
        for layer, found in enumerate(gone):
            np.testing.assert_array_equal(found[cell], replayed[layer], err_msg=f"{policy} at {budget}, layer {layer}")
            evicted += int(((found[cell] > CONTEXT) & (found[cell] < len(ids))).sum())
    assert evicted > 100  # entries that a cut behind the prompt took


def test_cuts_that_never_come_change_nothing():
    model, parsed = build("llama"), laprox._policies.parse_many(POLICIES)
    one = task(question="3", answers=["5 6 7"], max_new_tokens=6)
    once = evaluation.evaluate_prompt(model, one, parsed, BUDGETS, settings("once"))
    never = evaluation.evaluate_prompt(model, one, parsed, BUDGETS, settings("every:100"))
    for name in ("kl_token", "answer_nll", "model_relative_error"):
        np.testing.assert_array_equal(once.cells[name], never.cells[name])
    assert once.text.tolist() == never.text.tolist()


def test_a_budget_of_everything_evicts_nothing():
    model, parsed = build("llama"), laprox._policies.parse_many(POLICIES)
    result = evaluation.evaluate_prompt(model, task(), parsed, ["200"], settings("step"))
    assert np.abs(result.cells["kl_token"]).max() < 1e-6 and (result.cells["agreement"] == 1).all()


def test_cuts_cost_something():
    model, parsed = build("llama"), laprox._policies.parse_many(["h2o+head", "streaming:sinks=2"])
    once, step = (evaluation.evaluate_prompt(model, task(), parsed, ["20"], settings(s)) for s in ("once", "step"))
    first, last = (np.stack([once.cells["kl_token"][..., i], step.cells["kl_token"][..., i]]) for i in (0, -1))
    np.testing.assert_allclose(first[0], first[1], rtol=1e-4)  # nothing has been cut again yet
    assert (abs(last[0] / last[1] - 1) > 1e-3).all()


@pytest.mark.parametrize("question", ["", "5"])
def test_free_text_is_what_the_same_caches_predict(question, caught):
    model, parsed = build("llama"), laprox._policies.parse_many(POLICIES[1:])
    one = task(question=question, answers=["1"], max_new_tokens=9)
    result = evaluation.evaluate_prompt(model, one, parsed, ["12"], settings("every:2"))
    question = model.encode(one).question
    for cell, text in enumerate(result.text.reshape(-1), 1):
        said = torch.tensor([int(number) for number in text.split()])
        read = torch.cat([question, said])
        predicted = torch.cat([found for _, found in caught[0].forced(read[:-1], len(read) - 1)])[cell].argmax(-1)
        begin = max(0, len(question) - 1)
        assert predicted[begin:].tolist() == read[begin + 1 :].tolist()


@pytest.mark.parametrize(
    "policies, schedule, more, said",
    [
        (["snapkv+ada"], "step", {}, "splits its budget over heads"),
        (["laprox-far"], "every:4", {}, "after a prompt only"),
        (["h2o+head"], "every:0", {}, "schedule"),
        (["h2o+head"], "sometimes", {}, "schedule"),
        (["h2o+head"], "step", {"physical": True}, "leave it out under a schedule"),
    ],
)
def test_what_makes_no_sense_is_refused(policies, schedule, more, said):
    with pytest.raises(laprox.UsageError, match=said):
        parsed = laprox._policies.parse_many(policies)
        evaluation.evaluate_prompt(build("llama"), task(), parsed, ["30"], settings(schedule, **more))


def test_layers_whose_entries_leave_by_age_are_refused():
    parsed = laprox._policies.parse_many(["h2o+head"])
    with pytest.raises(laprox.UsageError, match="layer 0 has a sliding window of .* laprox sweep --schedule replays"):
        evaluation.evaluate_prompt(build("mistral"), task(), parsed, ["30"], settings("step"))


def test_the_schedule_is_in_the_report_and_decides(tmp_path):
    model = build("llama")
    cut = closed_loop.evaluate(model, [task()], ["h2o+head"], ["20"], settings("every:4"))
    once = closed_loop.evaluate(model, [task(4)], ["h2o+head"], ["20"], settings("once"))
    assert '"schedule": "every:4"' in cut.attrs["settings"] and "schedule" not in once.attrs["settings"]
    assert "--schedule every:4" in table(cut) and "--schedule" not in table(once)
    for name, report in (("cut.h5", cut), ("once.h5", once)):
        closed_loop.save_evaluation(report, tmp_path / name)
    with pytest.raises(laprox.UsageError, match="other policies, budgets or settings"):
        open_evaluations([tmp_path / "cut.h5", tmp_path / "once.h5"])
