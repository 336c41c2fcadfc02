"""Tasks, metrics, needles and tables of laprox-eval."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

torch = pytest.importorskip("torch")
pytest.importorskip("laprox_dump")

import laprox  # noqa: E402
from laprox.eval import compare, metrics, needle, tasks  # noqa: E402


def lines(path, *entries):
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    return path


def test_metrics_are_longbenchs():
    assert metrics.normalised("The  cat, a dog!") == "cat dog"
    assert metrics.qa_f1("the red house", "a red car") == pytest.approx(0.5)
    assert metrics.qa_f1("nothing", "alike") == 0
    assert metrics.classification("I say Country", "Country", ["Country", "City"]) == 1
    assert metrics.classification("Country or City", "Country", ["Country", "City"]) == 0.5
    assert metrics.classification("Other entity", "Other entity", ["Other entity", "entity"]) == 1
    nested = ["entity", "Other", "Other entity"]  # the loop of LongBench's code passes over the second of two parts
    assert metrics.classification("Other entity", "Other entity", nested) == 0.5
    assert metrics.retrieval("Paragraph 12, or 3?", "Paragraph 12") == 0.5
    assert metrics.count("there are 7", "7") == 1 and metrics.count("none", "7") == 0
    assert metrics.exact("The Answer.", "answer") == 1 and metrics.contains("say 42!", "42") == 1


def test_metrics_of_other_packages():
    pytest.importorskip("rouge")
    pytest.importorskip("thefuzz")
    assert metrics.rouge_l("the cat sat", "the cat sat") == pytest.approx(1, abs=1e-6)
    assert metrics.rouge_l("", "the cat") == 0
    assert metrics.code_similarity("# a comment\nreturn x", "return x") == 1


def test_the_best_answer_counts_and_few_shot_sets_end_with_their_line():
    task = tasks.Task("1", "p", task="triviaqa", answers=["Bob Dylan", "Dylan"])
    assert task.score("Dylan\nQuestion: who else") == 1
    assert np.isnan(tasks.Task("1", "p").score("anything"))
    both = tasks.Task("1", "p", answers=["12", "34"], metric="contains_all")
    assert both.score("12 and 35") == 0.5


def test_tasks_are_read_from_every_layout(tmp_path):
    own = lines(tmp_path / "own.jsonl", {"id": "a", "prompt": "p", "answers": ["x"], "max_new_tokens": 4, "chat": True})
    [task] = tasks.read_tasks(own)
    assert (task.id, task.chat, task.max_new_tokens) == ("a", True, 4)
    packed = tmp_path / "own.jsonl.gz"
    packed.write_bytes(gzip.compress(own.read_bytes()))
    assert tasks.read_tasks(packed) == [task]

    bench = lines(tmp_path / "b.jsonl", {"input": "why?", "context": "text", "answers": ["so"], "dataset": "qasper", "_id": "9"})
    with pytest.raises(laprox.UsageError, match="--longbench"):
        tasks.read_tasks(bench)
    (tmp_path / "dataset2prompt.json").write_text('{"qasper": "Read {context} and say {input}", "trec": "{nothing}"}')
    (tmp_path / "dataset2maxlen.json").write_text('{"qasper": 128, "trec": 64}')
    [task] = tasks.read_tasks(bench, tmp_path)
    assert (task.id, task.prompt, task.max_new_tokens) == ("qasper-9", "Read text and say why?", 128)
    assert task.metric == "qa_f1" and task.chat
    bench = lines(tmp_path / "c.jsonl", {"input": "why?", "context": "an {input}", "answers": ["so"], "dataset": "qasper"})
    assert tasks.read_tasks(bench, tmp_path)[0].prompt == "Read an {input} and say why?"
    bench = lines(tmp_path / "d.jsonl", {"input": "why?", "context": "text", "answers": ["so"], "dataset": "trec"})
    with pytest.raises(laprox.FileError, match="the prompt of trec .* does not fit"):
        tasks.read_tasks(bench, tmp_path)

    ruler = lines(tmp_path / "r.jsonl", {"index": 3, "input": "hay", "outputs": ["7", "8"]})
    [task] = tasks.read_tasks(ruler)
    assert (task.id, task.metric, task.answers) == ("r-3", "contains_all", ["7", "8"])
    ruler = lines(tmp_path / "q.jsonl", {"index": 0, "input": "Who?", "answer_prefix": " Answer:", "outputs": ["Ada", "Lovelace"]})
    [task] = tasks.read_tasks(ruler)
    assert (task.prompt, task.metric, task.max_new_tokens) == ("Who? Answer:", "contains", 32)
    assert task.score("It was Ada.") == 1


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"id": "a"}, "prompt: expected text"),
        ({"prompt": "p", "answer": ["x"]}, "unknown key 'answer'"),
        ({"prompt": "p", "answers": "x"}, "answers: expected list of str"),
        ({"prompt": "p", "metric": "bleu"}, "metric: expected one of"),
        ({"prompt": "p", "metric": "classification"}, "all_classes"),
        ({"prompt": "p", "max_new_tokens": 0}, "max_new_tokens: expected 1 or more"),
        (["p"], "expected an object"),
        ('{"prompt": "p", "prompt": "q"}', "the key 'prompt' stands twice"),
        ({"prompt": "p", "max_new_tokens": True}, "max_new_tokens: expected int"),
        ({"prompt": "p", "facts": {"depth": "deep"}}, "facts: expected finite numbers"),
        ({"prompt": "p", "facts": {"depth": 10**400}}, "facts: expected finite numbers"),
        ({"prompt": "p", "facts": {"depth": float("nan")}}, "facts: expected finite numbers"),
        ({"prompt": "p", "facts": {"a/b": 1}}, "facts: expected finite numbers by names"),
        ({"prompt": "p", "id": "a\0b"}, "id: expected text that a report can hold"),
        ({"prompt": "p", "id": "\ud800"}, "id: expected text that a report can hold"),
        ({"input": 1, "outputs": ["7"]}, "input and answer_prefix: expected str"),
        ({"input": "p", "outputs": 7}, "outputs: expected list"),
        ({"input": "p", "outputs": ["7"], "tokens_to_generate": "many"}, "max_new_tokens: expected int"),
        ({"input": "p", "outputs": []}, "outputs: expected list of answers in a line of RULER"),
        ({"input": "p", "index": 3}, "outputs: expected list .*, found none"),
        ({"input": "why?", "context": "c", "dataset": "qasper"}, "answers: expected it in a sample of LongBench"),
        ({"prompt": "p", "question": "\ud800"}, "question: expected text"),
        ({"prompt": "p", "answers": [""], "metric": "contains"}, "answers: expected text to look for"),
        ({"prompt": "p", "answers": [" "], "metric": "exact"}, "answers: expected text to look for"),
        (
            {"prompt": "p", "answers": ["c"], "metric": "classification", "all_classes": ["a", "b"]},
            "expected one of all_classes, .* found 'c'",
        ),
        ({"prompt": "p", "answers": ["twelve"], "metric": "count"}, "a number in digits"),
        ({"prompt": "p", "answers": ["5 of them"], "metric": "count"}, "a number in digits alone"),
    ],
)
def test_wrong_tasks_are_refused_with_their_line(tmp_path, entry, words):
    path = lines(tmp_path / "t.jsonl", {"id": "good", "prompt": "p"}, {} if isinstance(entry, str) else entry)
    if isinstance(entry, str):
        path.write_text(path.read_text().removesuffix("{}") + entry)
    with pytest.raises(laprox.FileError, match=words) as error:
        tasks.read_tasks(path)
    assert "t.jsonl:2" in str(error.value)


def test_a_tasks_hash_tells_everything_but_its_id():
    task = tasks.Task("1", "p", answers=["x"], facts={"depth": 0.5})
    assert task.sha256 == replace(task, id="2").sha256
    others = {"prompt": "q", "task": "t", "question": "?", "answers": ["y"], "metric": "exact", "max_new_tokens": 9, "chat": True}
    others |= {"all_classes": ["x"], "facts": {"depth": 0.6}}
    assert {"id", *others} == set(tasks.Task.__dataclass_fields__)
    assert len({task.sha256, *(replace(task, **{name: value}).sha256 for name, value in others.items())}) == len(others) + 1


def test_wrong_files_of_tasks_are_refused(tmp_path):
    packed = gzip.compress(b'{"prompt": "p"}')
    cases = [(b"\xff\xfe", "UTF-8"), (b"\x1f\x8bjunk", "gzip"), (packed[:12] + b"junk", "gzip"), (b"{", "not JSON")]
    for content, words in (*cases, (b"", "at least one task")):
        (tmp_path / "t").write_bytes(content)
        with pytest.raises(laprox.FileError, match=words):
            tasks.read_tasks(tmp_path / "t")
    twice = lines(tmp_path / "t", {"id": "a", "prompt": "p"}, {"id": "a", "prompt": "q"})
    with pytest.raises(laprox.FileError, match=r"occurs twice \(line 1 and line 2\)"):
        tasks.read_tasks(twice)
    for path, words in ((tmp_path / "none", "no such file"), (tmp_path, "expected a file")):
        with pytest.raises(laprox.FileError, match=words):
            tasks.read_tasks(path)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "p"}')
    assert tasks.read_tasks(tmp_path / "t.jsonl")[0].prompt == "p"


def test_folders_that_are_no_config_of_longbench_are_refused(tmp_path):
    bench = lines(tmp_path / "b.jsonl", {"input": "why?", "context": "text", "answers": ["so"], "dataset": "qasper"})
    for prompts, lengths, name in (("[]", "{}", "prompt"), ('{"qasper": "p"}', '{"qasper": -1}', "maxlen")):
        (tmp_path / "dataset2prompt.json").write_text(prompts)
        (tmp_path / "dataset2maxlen.json").write_text(lengths)
        with pytest.raises(laprox.FileError, match=f"dataset2{name}.json: expected"):
            tasks.read_tasks(bench, tmp_path)


def test_tasks_of_python_are_checked_like_those_of_files():
    assert tasks.Task("x", "p", answers=["A"], metric="exact").score("A.") == 1
    assert tasks.Task("x", "p", answers=["The Who", "Who", ""]).score("the who") == 1
    for wrong, words in (({"answers": "Ada"}, "list of str"), ({"metric": "f1"}, "one of"), ({"max_new_tokens": 2.5}, "int")):
        with pytest.raises(laprox.UsageError, match=words):
            tasks.Task("x", "p", **wrong)


def test_depths_are_shares_of_the_tokens_and_the_haystack_stays_as_it_is():
    # Long sentences first: half of the sentences is not half of the text.
    hay = " ".join(["A long one, with version 0.5 of pipeline.svg in it and more words than the others have." * 1] * 20)
    hay += "\n\n" + " ".join("Short it is." for _ in range(100))
    made = needle.needle_tasks(hay, [600], [0, 0.25, 0.5, 0.75, 1.0], lambda text: len(text.split()))
    for task in made:
        place, text = task.facts["place"], task.prompt.partition("\n\nWhat is")[0]
        assert place == pytest.approx(task.facts["depth"], abs=0.02)
        hidden = f" is {task.answers[0]}."
        assert len(text[: text.index(hidden)].split()) / len(text.split()) == pytest.approx(place, abs=0.03)
        sentence = text[text.index("The secret number") : text.index(hidden) + len(hidden)]
        left = text.replace(sentence, "").split()
        assert left == (hay.split() * 2)[: len(left)] and "0.5 of pipeline.svg" in text
        assert task.max_new_tokens > len(sentence.split())
    assert made[0] == needle.needle_tasks(hay, [600], [0.0], lambda text: len(text.split()))[0]
    walk = "A title" + 2 * chr(10) + "and then we walked on along the river " * 300
    long = needle.needle_tasks(walk, [400], [0.5], lambda text: len(text.split()))[0]
    assert len(long.prompt.split()) > 330 and long.facts["place"] == pytest.approx(0.5, abs=0.1)
    chinese = needle.needle_tasks("\u8fd9\u662f\u4e00\u53e5\u8bdd\u3002" * 50, [300], [0.5], len)
    assert chinese[0].facts["place"] == pytest.approx(0.5, abs=0.02)
    for wrong in ({"depths": []}, {"samples": 0}):
        with pytest.raises(laprox.UsageError, match=next(iter(wrong))):
            needle.needle_tasks(hay, [600], **{"depths": [0.5], "count_tokens": len, **wrong})


def test_needles_stand_where_they_should():
    hay = " ".join(f"Sentence number {i} of the hay." for i in range(50))
    made = needle.needle_tasks(hay, [300, 600], [0, 0.5, 1], lambda text: len(text.split()), distractors=2, samples=2)
    assert len(made) == 12 and len({task.id for task in made}) == 12
    for task in made:
        assert task.answers[0] in task.prompt and task.prompt.count("secret number") == 4  # the question is the fourth
        place = task.prompt.index(task.answers[0]) / task.prompt.index("\n\n")
        assert abs(place - task.facts["depth"]) < 0.12
        assert len(task.prompt.split()) <= task.facts["length"] + 45
    again = needle.needle_tasks(hay, [300, 600], [0, 0.5, 1], lambda text: len(text.split()), distractors=2, samples=2)
    assert again == made
    [apart] = needle.needle_tasks(hay, [100], [0.5], lambda text: len(text.split()), apart=True)
    assert "secret number" in apart.question and apart.prompt.count("secret number") == 1
    with pytest.raises(laprox.UsageError, match="sentences"):
        needle.needle_tasks(" ", [10], [0], len)
    with pytest.raises(laprox.UsageError, match="depths"):
        needle.needle_tasks(hay, [10], [2], len)


def test_lengths_that_hold_no_hay_are_refused():
    def words(text):
        return len(text.split())

    with pytest.raises(laprox.UsageError, match="expected 24 or more tokens, .* found 10"):
        needle.needle_tasks("One sentence of the hay. And another.", [10, 500], [0], words)
    assert needle.needle_tasks("One sentence of the hay. And another.", [24], [0.5], words)
    with pytest.raises(laprox.UsageError, match="expected 12 or more"):
        needle.needle_tasks("One sentence of the hay.", [11], [0], words, apart=True)


def evaluation(values, names=("a", "b", "c")):
    """A report whose kl is values [prompt, policy] at one budget."""
    kl = (("prompt", "policy", "budget"), np.asarray(values, float)[:, :, None], {"long_name": "KL"})
    coordinates = {"prompt": [f"p{i}" for i in range(len(values))], "policy": list(names), "budget": ["5%"]}
    return xr.Dataset({"kl": kl, "model_relative_error": kl}, coordinates, {"model": "m"})


def test_the_table_marks_what_is_not_worse():
    pytest.importorskip("scipy")
    draw = np.random.default_rng(0)
    base = draw.random(20) + 0.5
    report = evaluation(np.stack([base, base + 0.01 * draw.standard_normal(20), base + 1], 1))
    rows = {line.split()[0]: line for line in compare.table(report).splitlines() if line and line.split()[0] in "abc"}
    assert "*" in rows["a"] and "*" in rows["b"] and "*" not in rows["c"]
    text = compare.paired(report, "c", "a")
    assert "0 of 20" in text and "Hodges-Lehmann" in text
    assert compare.rank_correlations(report)["model_relative_error"] == pytest.approx((1, 1))
    assert "too few to say" in compare.table(report.isel(prompt=slice(5)))
    with pytest.raises(laprox.UsageError, match="no policy 'd'"):
        compare.paired(report, "d", "a")


def test_what_keeps_the_budget_competes():
    report = evaluation([[0.0, 0.0, 1.0]] * 8)
    keeps = (("prompt", "policy", "budget"), np.array([[[1.0], [0.0], [1.0]]] * 8))
    assert [line[-1] for line in compare.table(report.assign(on_budget=keeps)).splitlines()[4:7]] == ["*", "!", "0"]
    assert [line[-1] for line in compare.table(report).splitlines()[4:7]] == ["!", "!", "*"]


def test_oracles_take_part_in_no_comparison():
    report = evaluation([[0.0, 0.5, 1.0]] * 8).assign(is_oracle=("policy", [1, 0, 0]))
    keeps = (("prompt", "policy", "budget"), np.ones((8, 3, 1)))
    older = report.drop_vars("is_oracle").assign(policy_spec=("policy", ["oracle+layer", "h2o+head", "knorm+head"]))
    assert compare.table(older.assign(on_budget=keeps)) == compare.table(report.assign(on_budget=keeps))
    table = compare.table(report.assign(on_budget=keeps))
    assert [line[-1] for line in table.splitlines()[4:7]] == ["+", "*", "0"] and "+ an oracle" in table


def test_a_table_of_scores_says_where_not_even_the_full_cache_has_any():
    report = evaluation([[0.0, 0.0, 0.0]] * 8)
    report = report.assign(score=report.kl.assign_attrs(long_name="score"), full_score=("prompt", np.zeros(8)))
    assert "all scores are 0" in compare.table(report, "score")
    assert "all scores are 0" not in compare.table(report.assign(full_score=("prompt", np.ones(8))), "score")


def test_figures_say_what_a_report_lacks():
    pytest.importorskip("matplotlib")
    from laprox.plot import closed_loop

    report = evaluation(np.random.default_rng(0).random((8, 3)) + 0.1)
    report["policy_spec"] = ("policy", list(report.policy.values))
    depth = report.assign(fact_depth=("prompt", np.linspace(0, 1, 8)))
    with pytest.raises(laprox.UsageError, match="no needles"):
        closed_loop.needle(depth)
    zeros = report.assign(kl=report.kl * 0)
    with pytest.raises(laprox.UsageError, match="nothing to compare"):
        closed_loop.error_against_kl(zeros)
    assert "kl over budget" in closed_loop.page(zeros)
    assert closed_loop.kl_over_budget(report, highlight="b").axes[0].lines
    for highlight, words in (("d", "no policy 'd'"), (-1, "highlight: expected a whole number"), (None, "highlight: expected")):
        with pytest.raises(laprox.UsageError, match=words):
            closed_loop.kl_over_budget(report, highlight=highlight)


def test_too_few_prompts_are_said_so(recwarn):
    report = evaluation([[1, 2, 3], [2, 1, 4]])
    text = compare.paired(report, "a", "b")
    assert "too few prompts for an interval and a test: 2, and 6 are the fewest" in text and "nan" not in text
    lacking = evaluation([[np.nan, 2, 3]] * 8)
    assert "0 of 0" in compare.paired(lacking, "a", "b") and "nan" not in compare.paired(lacking, "a", "b")
    assert "too few" in compare.table(report)
    assert all(np.isnan(value) for value in compare.rank_correlations(report.isel(policy=[0]))["model_relative_error"])
    assert [str(warning.message) for warning in recwarn] == []
