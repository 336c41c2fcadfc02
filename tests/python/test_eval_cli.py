"""laprox-eval's command line: what it refuses, and that it does so before a model is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("laprox_dump")

import laprox.eval.model  # noqa: E402
from laprox.eval import cli  # noqa: E402


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where commands run, with tasks and a haystack; loading a model there fails the test."""

    def loaded(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(laprox.eval.model, "load", loaded)
    (tmp_path / "there.h5").write_text("old")
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": "a", "prompt": "p"}))
    (tmp_path / "twice.jsonl").write_text("\n".join([json.dumps({"id": "a", "prompt": "p"})] * 2))
    (tmp_path / "hay.txt").write_text("One sentence. And another.")
    return tmp_path


TASKS = ["m", "--tasks", "t.jsonl"]
NEEDLE = ["needle", "m", "--haystack", "hay.txt", "--lengths", "300"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--tasks", "t.jsonl", "--policy", "h2o", "-o", "o.h5"], 2, "either a model or --packaged"),
        ([*TASKS, "--policy", "h2o", "-o", "there.h5"], 2, "exists; --resume"),
        ([*TASKS, "--policy", "h2o", "-o", "there.h5", "--resume"], 3, "expected a report of laprox-eval"),
        ([*TASKS, "--policy", "h2o", "-o", "no/o.h5"], 3, "make it first"),
        ([*TASKS, "--policy", "h2o", "-o", "."], 3, "expected a regular file"),
        ([*TASKS, "--policy", "h3o", "-o", "o.h5"], 2, "did you mean 'h2o'"),
        ([*TASKS, "--policy", "h2o", "--budget", "-4", "-o", "o.h5"], 2, "-4"),
        ([*TASKS, "--policy", "h2o", "--schedule", "often", "-o", "o.h5"], 2, "expected once"),
        ([*TASKS, "--policy", "h2o", "-o", "o.h5", "--tokens", "1"], 2, "tokens: expected a whole number"),
        ([*TASKS, "--policy", "h2o", "-o", "o.h5", "--dtype", "int8"], 2, "dtype: expected"),
        (["m", "--tasks", "none.jsonl", "--policy", "h2o", "-o", "o.h5"], 3, "none.jsonl: no such file"),
        (["m", "--tasks", "twice.jsonl", "--policy", "h2o", "-o", "o.h5"], 3, "occurs twice"),
        (["needle", "m", "--haystack", "none", "--lengths", "300", "--policy", "h2o", "-o", "o.h5"], 3, "none: no such file"),
        ([*NEEDLE, "--depths", "1.5", "--policy", "h2o", "-o", "o.h5"], 2, "depths: expected 0 to 1"),
        ([*NEEDLE, "--needles", "1000", "--policy", "h2o", "-o", "o.h5"], 2, "needles and distractors"),
        ([*TASKS, "--policy", "h2o", "-o", "t.jsonl", "--force"], 2, "which is read"),
        ([*NEEDLE, "--policy", "h2o", "-o", "hay.txt", "--force"], 2, "which is read"),
        (["there.h5", "--tasks", "t.jsonl", "--policy", "h2o", "-o", "there.h5", "--force"], 2, "which is read"),
        ([*TASKS, "--policy", "h2o", "-o", "o.h5", "--threads", "1025"], 2, "threads: expected"),
        (["table", "there.h5"], 3, "expected a report of laprox-eval"),
        (["table", "there.h5", "--metric", "taste"], 2, "--metric: expected one of"),
    ],
)
def test_wrong_commands_are_refused_without_a_model(folder, capsys, arguments, code, words):
    before = sorted(path.name for path in folder.iterdir())
    assert cli.main(arguments) == code
    said = capsys.readouterr().err
    assert words in said and "Errno" not in said
    assert sorted(path.name for path in folder.iterdir()) == before and (folder / "there.h5").read_text() == "old"


#: Whatever is imported once the arguments are read interrupts the process.
INTERRUPTED = """
import builtins, importlib, signal, sys
cli = importlib.import_module(sys.argv.pop(1))
parse, load = cli.argparse.ArgumentParser.parse_args, builtins.__import__
def interrupted(*rest):
    signal.raise_signal(signal.SIGINT)
    return load(*rest)
def parsed(self, *rest):
    found = parse(self, *rest)
    builtins.__import__ = interrupted
    return found
cli.argparse.ArgumentParser.parse_args = parsed
sys.exit(cli.main(sys.argv[1:]))
"""


def test_force_replaces_reports_alone(folder, capsys):
    before = (folder / "there.h5").read_bytes()
    assert cli.main([*TASKS, "--policy", "h2o", "-o", "there.h5", "--force"]) == 3
    assert "only a file of the format 'laprox-eval' is replaced" in capsys.readouterr().err
    assert (folder / "there.h5").read_bytes() == before


def test_a_reader_that_has_read_enough_is_no_fault(tmp_path):
    report = tmp_path / "e.h5"
    program = (
        "from laprox.eval.report import save_evaluation\n"
        "from test_eval_tasks import evaluation\n"
        "found = evaluation([[1.0] * 3] * 8).assign(policy_spec=('policy', list('abc')))\n"
        "found.attrs |= dict(format='laprox-eval', settings='{}')\n"
        f"save_evaluation(found, {str(report)!r})"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent)
    command = f"{sys.executable} -m laprox.eval.cli table {report} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) in ((141, ""), (0, ""))  # 0: it had written all before


@pytest.mark.parametrize(
    "words",
    [["laprox.eval.cli", *TASKS, "--policy", "h2o", "-o", "o.h5"], ["laprox.plot.cli", "x.h5", "-o", "x.svg"]],
    ids=["laprox-eval", "laprox-plot"],
)
def test_an_interrupt_while_modules_are_imported_is_quiet(folder, words):
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")
