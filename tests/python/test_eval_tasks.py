"""Tasks, metrics, needles, tables and the command line of laprox-eval."""

import gzip
import json

import numpy as np
import pytest
import xarray as xr

torch = pytest.importorskip("torch")
pytest.importorskip("laprox_dump")

import laprox  # noqa: E402
from laprox.eval import cli, compare, metrics, needle, tasks  # noqa: E402


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
    (tmp_path / "dataset2prompt.json").write_text('{"qasper": "Read {context} and say {input}"}')
    (tmp_path / "dataset2maxlen.json").write_text('{"qasper": 128}')
    [task] = tasks.read_tasks(bench, tmp_path)
    assert (task.id, task.prompt, task.max_new_tokens) == ("qasper-9", "Read text and say why?", 128)
    assert task.metric == "qa_f1" and task.chat

    ruler = lines(tmp_path / "r.jsonl", {"index": 3, "input": "hay", "outputs": ["7", "8"]})
    [task] = tasks.read_tasks(ruler)
    assert (task.id, task.metric, task.answers) == ("r-3", "contains_all", ["7", "8"])


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
    ],
)
def test_wrong_tasks_are_refused_with_their_line(tmp_path, entry, words):
    path = lines(tmp_path / "t.jsonl", {"id": "good", "prompt": "p"}, entry)
    with pytest.raises(laprox.UsageError, match=words) as error:
        tasks.read_tasks(path)
    assert "t.jsonl:2" in str(error.value)


def test_wrong_files_of_tasks_are_refused(tmp_path):
    for content, words in ((b"\xff\xfe", "UTF-8"), (b"\x1f\x8bjunk", "gzip"), (b"", "at least one task"), (b"{", "not JSON")):
        (tmp_path / "t").write_bytes(content)
        with pytest.raises(laprox.UsageError, match=words):
            tasks.read_tasks(tmp_path / "t")
    twice = lines(tmp_path / "t", {"id": "a", "prompt": "p"}, {"id": "a", "prompt": "q"})
    with pytest.raises(laprox.UsageError, match="occurs twice"):
        tasks.read_tasks(twice)


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
    assert "20" in text and "0 of 20" in text
    assert compare.rank_correlations(report)["model_relative_error"] == pytest.approx((1, 1))
    assert "nothing can be said" in compare.table(report.isel(prompt=slice(5)))
    with pytest.raises(laprox.UsageError, match="no policy 'd'"):
        compare.paired(report, "d", "a")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "t", "--policy", "h2o", "-o", "o.h5"], "either a model or --packaged"),
        (["m", "--tasks", "t", "--policy", "h2o", "-o", "there.h5"], "exists; --resume"),
        (["m", "--tasks", "t", "--policy", "h2o", "-o", "o.h5", "--tokens", "1"], "tokens: expected 2 or more"),
        (["m", "--tasks", "t", "--policy", "h2o", "-o", "o.h5", "--dtype", "int8"], "dtype: expected"),
        (["table", "there.h5"], "expected a report of laprox-eval"),
    ],
)
def test_wrong_commands_are_refused(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.h5").write_text("old")
    assert cli.main(arguments) in (2, 3)
    assert words in capsys.readouterr().err
    assert (tmp_path / "there.h5").read_text() == "old" and not (tmp_path / "o.h5").exists()
