"""The closed loop against a plain one: the model's own eager attention over the whole sequence, evicted keys masked, no cache."""

import signal

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("laprox_dump")
import laprox  # noqa: E402
from laprox import eval as closed_loop  # noqa: E402
from laprox.eval import evaluation, run  # noqa: E402
from laprox.eval.report import Report, open_evaluations, save_evaluation  # noqa: E402
from laprox_dump import attention, export  # noqa: E402
from laprox_dump.tokens import Encoder  # noqa: E402
from plain_loop import CONTEXT, build, plain_logits, task  # noqa: E402
from tiny_models import FAMILIES, token_ids  # noqa: E402

SETTINGS = closed_loop.Settings(tokens=6, threads=1)


def merging_tokenizer():
    """Letters and spaces, of which `bb` and two spaces are one token each."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    names = ["a", "b", " ", "bb", "  "]
    bpe = models.BPE(vocab={name: number for number, name in enumerate(names)}, merges=[("b", "b"), (" ", " ")])
    tokenizer = Tokenizer(bpe)
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


POLICIES = ["full", "snapkv:window=8,kernel=3", "laprox-r+global:window=8,kernel=3,sinks=2,normalize=false", "h2o", "knorm"]
BUDGETS = ["25%", "50%"]


def gone(masks, count):
    """What plain_logits wants for caches that were cut once: of kept masks [layer] bool [H_kv, C], for `count` tokens."""
    return [torch.where(torch.nn.functional.pad(mask, (0, count - CONTEXT), value=True), count, CONTEXT) for mask in masks]


@pytest.mark.parametrize("question", ["", "5"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt-oss"])
def test_divergences_equal_those_of_a_plain_loop(family, question, caught):
    model, one = build(family), task(question=question)
    parsed = laprox._policies.parse_many(POLICIES)
    result = evaluation.evaluate_prompt(model, one, parsed, BUDGETS, SETTINGS)
    tokens = model.encode(one)
    attention.register()
    later = evaluation.greedy(model.network, torch.cat([tokens.context, tokens.question]), 6, False)
    ids = torch.cat([tokens.context, tokens.question, later])
    masks = caught[0].cache.kept
    first = CONTEXT + len(tokens.question) - (1 if question else 0)
    everything = plain_logits(model.network, ids, gone([torch.ones_like(layer[0]) for layer in masks], len(ids)))
    full = torch.log_softmax(everything[first:-1], -1)
    assert full.argmax(-1).tolist() == (later if question else later[1:]).tolist()  # it is the greedy continuation
    for cell in range(len(POLICIES) * len(BUDGETS)):
        evicted = plain_logits(model.network, ids, gone([layer[cell + 1] for layer in masks], len(ids)))
        logs = torch.log_softmax(evicted[first:-1], -1)
        expected = (full.exp() * (full - logs)).sum(-1)
        np.testing.assert_allclose(result.cells["kl_token"].reshape(-1, len(expected))[cell], expected, rtol=2e-3, atol=2e-5)
        same = (logs.argmax(-1) == full.argmax(-1)).double().mean()
        assert result.cells["agreement"].reshape(-1)[cell] == pytest.approx(float(same))
    assert np.abs(result.cells["kl"][0]).max() < 1e-6 < result.cells["kl"][1:].min()
    assert result.prompt["tokens_to_end"] == len(full)  # none of these tokens ends a text
    np.testing.assert_array_equal(result.cells["kl_to_end"], result.cells["kl"])


@pytest.mark.parametrize("question", ["", "5"])
def test_what_follows_the_end_of_the_text_counts_apart(monkeypatch, question):
    model, one, parsed = build("llama"), task(question=question), laprox._policies.parse_many(["knorm"])
    tokens = model.encode(one)
    said = evaluation.greedy(model.network, torch.cat([tokens.context, tokens.question]), 6, False).tolist()
    for place in (0, 2):
        end = said[place]
        monkeypatch.setattr(type(model), "ends", property(lambda _, end=end: {end}))
        result = evaluation.evaluate_prompt(model, one, parsed, ["25%"], SETTINGS)
        # Without a question the prompt's own last query predicts the first token, which counts in no figure.
        count = said.index(end) + (1 if question else 0)
        assert result.prompt["tokens_to_end"] == count
        if count:
            np.testing.assert_allclose(result.cells["kl_to_end"], result.cells["kl_token"][..., :count].mean(-1))
        else:
            assert np.isnan(result.cells["kl_to_end"]).all()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-oss"])
def test_removing_entries_gives_what_hiding_them_gives(family):
    model, parsed = build(family), laprox._policies.parse_many(POLICIES)
    one = task(question="3", answers=["5 6 7"], max_new_tokens=4)
    hidden = evaluation.evaluate_prompt(model, one, parsed, BUDGETS, SETTINGS)
    physical = closed_loop.Settings(tokens=6, threads=1, physical=True)
    removed = evaluation.evaluate_prompt(model, one, parsed, BUDGETS, physical)
    np.testing.assert_allclose(hidden.cells["kl_token"], removed.cells["kl_token"], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(hidden.cells["answer_nll"], removed.cells["answer_nll"], rtol=1e-5)
    assert hidden.text.tolist() == removed.text.tolist()


def test_the_full_cache_says_what_the_model_says():
    model = build("llama")
    parsed = laprox._policies.parse_many(["full", "recent"])
    result = evaluation.evaluate_prompt(model, task(answers=["1"], max_new_tokens=5), parsed, ["30%"], SETTINGS)
    attention.register()
    alone = evaluation.greedy(model.network, token_ids(CONTEXT, 3), 5, True)
    assert result.text[0, 0] == result.prompt["full_text"] == model.decode(alone.tolist())
    assert result.text[1, 0] != result.text[0, 0]


def test_a_dump_of_the_prompt_gives_the_same_kept_sets_and_errors(tmp_path, caught):
    model, parsed = build("llama"), laprox._policies.parse_many(POLICIES)
    result = evaluation.evaluate_prompt(model, task(), parsed, BUDGETS, SETTINGS)
    tokens = model.encode(task())
    export.export_prompt(model.network, tokens, str(tmp_path / "d.h5"), export.Options(decode=5, stop_at_eos=False))
    report = laprox.sweep(tmp_path / "d.h5", POLICIES, BUDGETS, save_kept=True)
    np.testing.assert_allclose(result.cells["model_relative_error"], report.model_relative_error.values[0], rtol=1e-5)
    for p, policy in enumerate(POLICIES):
        for b, budget in enumerate(BUDGETS):
            for layer, masks in enumerate(caught[0].cache.kept):
                for head in range(masks.shape[1]):
                    found = torch.nonzero(masks[1 + p * len(BUDGETS) + b, head])[:, 0].numpy()
                    kept = laprox.kept_tokens(report, policy=str(report.policy.values[p]), budget=budget, layer=layer, kv_head=head)
                    np.testing.assert_array_equal(found, kept)


def test_reports_grow_and_go_on(tmp_path):
    model, parsed = build("llama"), laprox._policies.parse_many(["snapkv:window=8", "knorm"])
    whole = closed_loop.evaluate(model, [task(1, answers=["3"]), task(2)], parsed, BUDGETS, SETTINGS)
    assert dict(whole.sizes) == {"prompt": 2, "policy": 2, "budget": 2, "token": 5}
    half = closed_loop.evaluate(model, [task(1, answers=["3"])], parsed, BUDGETS, SETTINGS)
    closed_loop.save_evaluation(half, tmp_path / "half.h5")
    report = Report(model, parsed, BUDGETS, SETTINGS)
    report.resume(tmp_path / "half.h5", [task(1, answers=["3"]), task(2)])
    assert report.done == {"t1"}
    report.add(task(2), evaluation.evaluate_prompt(model, task(2), parsed, BUDGETS, SETTINGS))
    closed_loop.save_evaluation(report.dataset(), tmp_path / "whole.h5")
    found = closed_loop.open_evaluation(tmp_path / "whole.h5")
    for name in ("kl", "kl_token", "agreement", "model_relative_error", "answer_nll", "kept_count"):
        np.testing.assert_array_equal(found[name].values, whole[name].values)
    assert found.text.values.tolist() == whole.text.values.tolist()
    with pytest.raises(laprox.UsageError, match="other settings: tokens: 6, now 7; --force begins anew$"):
        Report(model, parsed, BUDGETS, closed_loop.Settings(tokens=7)).resume(tmp_path / "half.h5", [])
    other = build("llama")
    with torch.no_grad():
        next(other.network.parameters())[3, 2] += 1e-6
    with pytest.raises(laprox.UsageError, match="other settings: weights: "):
        Report(other, parsed, BUDGETS, SETTINGS).resume(tmp_path / "half.h5", [])
    other = closed_loop.evaluate(other, [task(5)], parsed, BUDGETS, SETTINGS)
    closed_loop.save_evaluation(other, tmp_path / "other.h5")
    with pytest.raises(laprox.UsageError, match="other policies, budgets or settings"):
        open_evaluations([tmp_path / "half.h5", tmp_path / "other.h5"])
    with pytest.raises(laprox.UsageError, match="another list of budget values: also 50%; "):
        Report(model, parsed, ["25%"], SETTINGS).resume(tmp_path / "half.h5", [])
    with pytest.raises(laprox.UsageError, match="the prompt 't1' was another one"):
        Report(model, parsed, BUDGETS, SETTINGS).resume(tmp_path / "half.h5", [task(2), task(1, answers=["4"])])
    closed_loop.save_evaluation(half.drop_vars("task_sha256"), tmp_path / "older.h5")
    with pytest.raises(laprox.UsageError, match="an older laprox-eval wrote it"):
        Report(model, parsed, BUDGETS, SETTINGS).resume(tmp_path / "older.h5", [task(1, answers=["3"])])
    with pytest.raises(laprox.UsageError, match="'t1' occurs twice"):
        closed_loop.evaluate(model, [task(1), task(1, answers=["3"])], parsed, BUDGETS, SETTINGS)
    with pytest.raises(laprox.UsageError, match="share prompts"):
        open_evaluations([tmp_path / "half.h5", tmp_path / "whole.h5"])
    (tmp_path / "junk.h5").write_text("no report")
    with pytest.raises(laprox.DumpError, match="laprox-eval"):
        closed_loop.open_evaluation(tmp_path / "junk.h5")


def test_requests_that_make_no_sense_are_refused():
    model = build("llama")
    for tasks, words in (
        ("t.jsonl", "read_tasks"),
        ([], "at least one"),
        ([{"id": "x"}], "Task objects"),
    ):
        with pytest.raises(laprox.UsageError, match=words):
            closed_loop.evaluate(model, tasks, ["knorm"], BUDGETS, SETTINGS)
    with pytest.raises(laprox.UsageError, match="the prompt 't3': "):
        closed_loop.evaluate(model, [task()], ["snapkv:window=59"], [8], SETTINGS)
    for wrong in ({"tokens": 2.5}, {"max_new_tokens": -1}, {"physical": "no"}, {"generate": 1}):
        with pytest.raises(laprox.UsageError, match=next(iter(wrong))):
            closed_loop.Settings(**wrong)


def test_an_answer_is_read_with_its_own_tokens_where_joined_ones_would_change_the_prompt():
    tokenizer = merging_tokenizer()
    model = closed_loop.Model(FAMILIES["llama"].build(), "m")
    model._encoders[False] = Encoder("m", 1000, False, None, tokenizer)
    for prompt, answer in (("a b", " a"), ("a b", "b a"), ("ab ", " bb")):
        one = closed_loop.Task(id="x", prompt=prompt, answers=[answer])
        read = torch.cat([model.encode(one).context, model.answer(one, answer)])
        assert tokenizer.decode(read) == prompt + answer


def test_a_report_says_which_prompts_lost_their_middle():
    model = closed_loop.Model(FAMILIES["llama"].build(), "m", max_tokens=40)
    model._encoders[False] = Encoder("m", 1000, False, 40, merging_tokenizer())
    tasks = [closed_loop.Task(id=str(count), prompt="b " * (count // 2)) for count in (30, 70)]
    report = closed_loop.evaluate(model, tasks, ["recent"], ["50%"], SETTINGS)
    assert report.prompt_tokens.values.tolist() == [30, 40] and report.tokens_before_cut.values.tolist() == [30, 70]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_report_is_written_leaves_it_whole(tmp_path, monkeypatch, number):
    parsed = laprox._policies.parse_many(["recent"])

    def interrupted(dataset, path):
        signal.raise_signal(number)
        save_evaluation(dataset, path)

    monkeypatch.setattr(run, "save_evaluation", interrupted)
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(KeyboardInterrupt):
        run.Run(build("llama"), [task(1), task(2)], parsed, ["30%"], SETTINGS, tmp_path / "e.h5", quiet=True).go()
    assert [path.name for path in tmp_path.iterdir()] == ["e.h5"] and len(open_evaluations([tmp_path / "e.h5"]).prompt) == 1
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers


def test_a_model_that_says_nul_can_be_kept(tmp_path, monkeypatch):
    model = build("llama")
    monkeypatch.setattr(model, "decode", lambda tokens: "a\0b")
    report = closed_loop.evaluate(model, [task(answers=["1"], max_new_tokens=2)], ["knorm"], ["25%"], SETTINGS)
    closed_loop.save_evaluation(report, tmp_path / "nul.h5")
    assert closed_loop.open_evaluation(tmp_path / "nul.h5").text.values.tolist() == [[["a\ufffdb"]]]


def test_a_python_policy_takes_part():
    @laprox.policy("eval-first", queries=0, pins=(0, 4))
    def first(layer):
        return -np.arange(layer.tokens)[None].repeat(layer.kv_heads, 0).astype(float)

    report = closed_loop.evaluate(build("llama"), [task()], [first, "knorm"], ["25%"], SETTINGS)
    assert report.policy.values.tolist() == ["eval-first", "knorm"] and (report.kl > 0).all()


@pytest.mark.parametrize(("short", "code"), [({0}, 1), ({0, 1}, 1), ({2}, 1), ({0, 1, 2}, 2)])
def test_prompts_that_are_refused_end_a_run_only_where_nothing_else_comes(tmp_path, monkeypatch, capsys, short, code):
    """A short prompt may stand anywhere; what refuses three from the first on is no matter of prompts."""

    def evaluated(_model, one, *_):
        if int(one.id) in short:
            raise laprox.UsageError("layers in memory: the budget is too small for this prompt")
        return "result"

    monkeypatch.setattr(run, "evaluate_prompt", evaluated)
    monkeypatch.setattr(run, "save_evaluation", lambda *_: None)
    monkeypatch.setattr(Report, "dataset", lambda _: None)
    done: set[str] = set()
    monkeypatch.setattr(Report, "done", done)
    monkeypatch.setattr(Report, "add", lambda _, one, __: done.add(one.id))
    tasks = [closed_loop.Task(id=str(n), prompt="p") for n in range(4)]
    made = run.Run(build("llama"), tasks, laprox._policies.parse_many("recent"), ["30%"], SETTINGS, tmp_path / "e.h5", quiet=True)
    if code == 2:
        with pytest.raises(laprox.UsageError, match="too small"):
            made.go()
    else:
        assert made.go() == 1 and all(f"laprox-eval: {n}: layers in memory" in capsys.readouterr().err for n in sorted(short)[:1])
