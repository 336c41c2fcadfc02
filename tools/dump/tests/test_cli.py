"""The command line: what it writes and prints, and one clear line for everything that goes wrong."""

import json
import os
import shutil

import h5py
import pytest
from packaging.version import Version
from tiny_models import FAMILIES, REFUSED, available, token_ids

from laprox_dump.model import RELEASE


@pytest.fixture
def prompts(tmp_path):
    """A JSON-lines file of two prompts in token ids."""
    path = tmp_path / "p.jsonl"
    entries = [
        {"id": "a", "token_ids": token_ids(40).tolist()},
        {"id": "b", "token_ids": token_ids(25, 2).tolist(), "continuation": [5, 6, 7]},
    ]
    path.write_text("\n".join(map(json.dumps, entries)))
    return path


def refused(result, code, *parts):
    """The command failed as it should: the code, one line on stderr with all parts, no traceback, nothing on stdout."""
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith(("laprox-dump: ", "usage: ")) and "Traceback" not in result.stderr
    assert result.stdout == ""
    if code != 2:
        assert len(result.stderr.splitlines()) == 1, result.stderr
    for part in parts:
        assert part in result.stderr
    return result


def test_several_prompts_give_several_dumps(dump_command, tiny_checkpoint, prompts, tmp_path):
    result = dump_command(
        tiny_checkpoint,
        "--prompt-file",
        prompts,
        "-o",
        tmp_path / "out",
        "--decode",
        6,
        "--ignore-eos",
        "--queries",
        "recent:8",
        "--layers",
        "0,2",
        "--dtype",
        "bfloat16",
        "--gzip",
        4,
    )
    assert result.returncode == 0, result.stderr
    assert sorted(os.listdir(tmp_path / "out")) == ["a.h5", "b.h5"]
    assert len(result.stdout.splitlines()) == 2 and "2 layers, context 40, tokens 46, worst layer error" in result.stdout
    with h5py.File(tmp_path / "out" / "a.h5") as f:
        assert f["query_positions"][()].tolist() == list(range(32, 46))
        assert f["output_positions"][()].tolist() == list(range(32, 46))
        assert [g.attrs["model_layer"] for g in f["layers"].values()] == [0, 2]
        assert f["layers/0/q"].shape == (4, 14, 12) and f["layers/0/k"].shape == (2, 46, 12)
        assert f["layers/0/k"].compression == "gzip" and f["layers/0/k"].attrs["dtype"] == "bfloat16"
        assert f.attrs["model"] == str(tiny_checkpoint) and "LlamaForCausalLM in bfloat16 on cpu" in f.attrs["source"]
    with h5py.File(tmp_path / "out" / "b.h5") as f:
        assert f["token_ids"][()].tolist() == [*token_ids(25, 2).tolist(), 5, 6, 7]
        assert f.attrs["context_length"] == 25


def test_the_order_of_prompts_does_not_matter(dump_here, tiny_checkpoint, prompts, tmp_path):
    (tmp_path / "r.jsonl").write_text("\n".join(reversed(prompts.read_text().splitlines())))
    for source in ("p", "r"):
        assert dump_here(tiny_checkpoint, "--prompt-file", tmp_path / f"{source}.jsonl", "-o", tmp_path / source).returncode == 0
    for name in ("a.h5", "b.h5"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "r" / name).read_bytes()


def test_question_tokens_come_after_the_context(dump_here, tmp_path):
    import transformers

    model = FAMILIES["llama"].build()
    model.resize_token_embeddings(384)
    model.save_pretrained(tmp_path / "m")
    transformers.ByT5Tokenizer().save_pretrained(tmp_path / "m")
    (tmp_path / "p.txt").write_text("Some facts.")
    (tmp_path / "c.txt").write_text("No.")
    result = dump_here(
        tmp_path / "m",
        "--prompt-file",
        tmp_path / "p.txt",
        "--question",
        "Why?",
        "--continuation",
        tmp_path / "c.txt",
        "-o",
        tmp_path / "o.h5",
    )
    assert result.returncode == 0, result.stderr
    with h5py.File(tmp_path / "o.h5") as f:
        assert f.attrs["context_length"] == 11 and bytes(t - 3 for t in f["token_ids"][()]) == b"Some facts.Why?No."
        assert f.attrs["prompt"] == "Some facts." and f.attrs["question"] == "Why?"


def test_decoding_stops_where_the_model_stops(dump_here, tmp_path, prompts):
    model = FAMILIES["llama"].build()
    model.generation_config.eos_token_id = list(range(97))  # whatever comes first ends the text
    model.save_pretrained(tmp_path / "m")
    for extra, tokens in (((), 41), (("--ignore-eos",), 45)):
        assert (
            dump_here(tmp_path / "m", "--prompt-file", prompts, "-o", tmp_path / "o", "--decode", 5, "--force", *extra).returncode
            == 0
        )
        with h5py.File(tmp_path / "o" / "a.h5") as f:
            assert len(f["token_ids"]) == tokens


@pytest.mark.parametrize(
    "options, parts",
    [
        (["-o", "x.h5"], ["expected a MODEL"]),
        (["m", "-o", "x.h5"], ["expected --prompt-file"]),
        (["m"], ["-o/--output"]),
        (["m", "-o", "x.h5", "--from-npz", "a.npz"], ["take no MODEL"]),
        (["m", "-o", "x.h5", "--prompt-file", "p", "--queries", "recent:0"], ["expected all or recent:N", "'recent:0'"]),
        (["m", "-o", "x.h5", "--prompt-file", "p", "--layers", "3-1"], ["expected numbers and ranges", "'3-1'"]),
        (["m", "-o", "x.h5", "--prompt-file", "p", "--decode", "-1"], ["--decode"]),
        (["m", "-o", "x.h5", "--prompt-file", "p", "--max-tokens", "0"], ["a whole number from 1 to 10000000, found '0'"]),
        (["m", "-o", "x.h5", "--prompt-file", "p", "--dtype", "int8"], ["--dtype"]),
    ],
)
def test_usage(dump_here, options, parts):
    refused(dump_here(*options), 2, *parts)


def test_help(dump_here):
    result = dump_here("--help")
    assert result.returncode == 0 and "exit codes:" in result.stdout and "--chat-template" in result.stdout


def test_input_that_cannot_be_used(dump_here, tiny_checkpoint, prompts, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "text.txt").write_text("hello")
    (tmp_path / "empty-folder").mkdir()
    (tmp_path / "long.jsonl").write_text(json.dumps({"token_ids": [5] * 500}))
    (tmp_path / "taken").write_text("")

    def run(*arguments):
        return dump_here(*arguments, "-o", out)

    refused(
        run("no-such/model", "--prompt-file", prompts), 3, "no-such/model: not a causal language model that transformers can load"
    )
    refused(run(tmp_path / "empty-folder", "--prompt-file", prompts), 3, "empty-folder: not a causal language model")
    refused(run(tiny_checkpoint, "--prompt-file", tmp_path / "none.txt"), 3, "none.txt: cannot be read: No such file")
    refused(run(tiny_checkpoint, "--prompt-file", tmp_path / "empty.jsonl"), 3, "expected at least one prompt")
    refused(
        dump_here(tiny_checkpoint, "--prompt-file", tmp_path / "text.txt", "-o", tmp_path / "x.h5"),
        3,
        "its tokenizer cannot be loaded",
    )
    refused(
        run(tiny_checkpoint, "--prompt-file", tmp_path / "long.jsonl"),
        3,
        "the prompt has 500 tokens and 64 are to follow",
        "context holds 512",
        "--max-tokens 448",
    )
    refused(
        run(tiny_checkpoint, "--prompt-file", prompts, "--layers", "1,3"),
        2,
        "--layers: expected 0..2 (the model has 3 attention layers), found 3",
    )
    refused(run(tiny_checkpoint, "--prompt-file", prompts, "--device", "warp"), 4, "--device warp")
    refused(dump_here(tiny_checkpoint, "--prompt-file", prompts, "-o", tmp_path / "taken"), 3, "taken: expected a folder")
    refused(dump_here("--from-npz", tmp_path / "none.npz", "-o", tmp_path / "x.h5"), 3, "none.npz: cannot be read")
    assert not out.exists() or os.listdir(out) == []
    assert not (tmp_path / "x.h5").exists()


def test_a_longer_prompt_fits_when_cut(dump_here, tiny_checkpoint, tmp_path):
    (tmp_path / "long.jsonl").write_text(json.dumps({"token_ids": [5] * 500}))
    result = dump_here(
        tiny_checkpoint, "--prompt-file", tmp_path / "long.jsonl", "--max-tokens", 448, "--ignore-eos", "-o", tmp_path / "out"
    )
    assert result.returncode == 0, result.stderr
    with h5py.File(tmp_path / "out" / "00001.h5") as f:
        assert len(f["token_ids"]) == 512 and f.attrs["context_length"] == 448 and f.attrs["tokens_before_cut"] == 500


def test_existing_dumps_are_kept(dump_here, tiny_checkpoint, prompts, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.h5").write_text("mine")
    refused(dump_here(tiny_checkpoint, "--prompt-file", prompts, "-o", out), 2, "b.h5: exists already", "--force")
    assert os.listdir(out) == ["b.h5"] and (out / "b.h5").read_text() == "mine"
    refused(dump_here(tiny_checkpoint, "--prompt-file", prompts, "-o", out, "--force"), 3, "b.h5: is no dump", "delete it")
    with h5py.File(out / "b.h5", "w") as file:
        file.attrs["format"] = "laprox-dump"
    assert dump_here(tiny_checkpoint, "--prompt-file", prompts, "-o", out, "--force").returncode == 0
    with h5py.File(out / "b.h5") as file:
        assert "layers" in file


def test_a_rotary_embedding_that_this_release_would_miss(dump_here, tiny_checkpoint, prompts, tmp_path, monkeypatch):
    """transformers 4 skips `rope_parameters` without a word: the dump would be of another model than the checkpoint's."""
    shutil.copytree(tiny_checkpoint, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 123456.0}
    config.pop("rope_theta", None)
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    result = dump_here(tmp_path / "m", "--prompt-file", prompts, "-o", tmp_path / "out")
    if RELEASE >= Version("5"):
        assert result.returncode == 0, result.stderr
    else:
        refused(result, 3, "rope_parameters", "which only transformers 5 reads")


@pytest.mark.parametrize("name", ["falcon", "bitnet"])
def test_a_model_that_cannot_be_supported(dump_command, prompts, tmp_path, name):
    family, reason = REFUSED[name]
    if not available(family):
        pytest.skip(f"{name} needs transformers {family.since}")
    family.build().save_pretrained(tmp_path / "m")
    refused(dump_command(tmp_path / "m", "--prompt-file", prompts, "-o", tmp_path / "out"), 3, reason)
    assert os.listdir(tmp_path / "out") == []


def test_arrays_from_the_command_line(dump_here, tmp_path, dumps):
    from test_arrays import arrays_of, write

    source = write(tmp_path, arrays_of(dumps("llama")))
    result = dump_here("--from-npz", source, "-o", tmp_path / "o.h5")
    assert result.returncode == 0 and "3 layers, context 70, tokens 78, worst layer error" in result.stdout
    refused(dump_here("--from-npz", source, "-o", tmp_path / "o.h5"), 2, "exists already")
