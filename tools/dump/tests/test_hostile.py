"""Inputs that are not what they seem, streams and disks that fail: each is told in one line, and nothing of the user's is lost."""

import errno
import fcntl
import json
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import termios
import zipfile

import h5py
import numpy as np
import pytest
import torch
from packaging.version import Version
from test_arrays import arrays_of, write
from test_cli import refused
from test_output import make_odd
from tiny_models import release, token_ids

from laprox_dump import files
from laprox_dump.arrays import convert
from laprox_dump.errors import InputError, foreign, one_line
from laprox_dump.output import temporary_beside
from laprox_dump.prompts import read_prompts
from laprox_dump.tokens import Encoder


@pytest.fixture
def prompt(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"id": "a", "token_ids": token_ids(20).tolist()}))
    return path


@pytest.mark.parametrize("option", ["--prompt-file", "--continuation", "--from-npz", "--from-safetensors"])
@pytest.mark.parametrize("what", ["/dev/zero", "pipe", "folder"])
def test_inputs_are_regular_files(dump_here, tiny_checkpoint, prompt, tmp_path, option, what):
    path = what if what.startswith("/") else tmp_path / "odd"
    if what != "/dev/zero":
        make_odd(what, path)
    arguments = [option, path, "-o", tmp_path / "out"]
    if option == "--continuation":
        arguments += ["--prompt-file", prompt]
    if not option.startswith("--from"):
        arguments.insert(0, tiny_checkpoint)
    reason = {"/dev/zero": "found a character device", "pipe": "found a named pipe", "folder": "found a folder"}[what]
    refused(dump_here(*arguments), 3, "expected a regular file", reason)


def test_files_that_give_no_data_yet(tmp_path, monkeypatch):
    """As /proc/kmsg does, which is a regular file by its status: read without waiting, it gives None."""
    (tmp_path / "p.txt").write_text("x")
    ends = os.pipe2(os.O_NONBLOCK)
    monkeypatch.setattr(files, "open", lambda handle, mode: os.fdopen(ends[0], mode), raising=False)
    with pytest.raises(InputError, match="p.txt: expected a regular file, found one that gives no data yet"):
        files.read_regular(str(tmp_path / "p.txt"))
    os.close(ends[1])


ODD_NUMBERS = {
    "fraction": (np.float64(64.5), "expected a whole number >= 0, found 64.5"),
    "nan": (np.float64("nan"), "expected a finite number, found nan"),
    "infinite": (np.float32("inf"), "expected a finite number, found inf"),
    "negative": (np.int64(-3), "expected a whole number >= 0, found -3"),
    "huge": (np.float64(1e300), "expected a whole number >= 0, found 1"),
    "complex": (np.complex128(64), "expected real numbers, found complex128"),
    "text": (np.array("64"), "expected real numbers, found <U2"),
    "bool": (np.array(True), "expected real numbers, found bool"),
    "object": (np.array(64, dtype=object), "cannot be read: Object arrays cannot be loaded"),
    "date": (np.array("2020-01-01", dtype="datetime64[D]"), "expected real numbers, found datetime64"),
    "two": (np.array([64, 64]), r"expected one number, found shape \[2\]"),
}


@pytest.mark.parametrize("name", ["context_length", "layers.1.sliding_window", "layers.1.model_layer"])
@pytest.mark.parametrize("what", ODD_NUMBERS)
def test_numbers_that_are_none(dumps, tmp_path, name, what):
    value, message = ODD_NUMBERS[what]
    source = write(tmp_path, {**arrays_of(dumps("llama")), name: value})
    with pytest.raises(InputError, match=f"{name}: {message}"):
        convert(source, str(tmp_path / "out.h5"))
    assert os.listdir(tmp_path) == ["in.npz"]


@pytest.mark.parametrize("value", [np.uint16(70), np.float64(70), np.array([[70]], dtype=">i4"), np.uint64(70)])
def test_whole_numbers_of_any_type(dumps, tmp_path, value):
    """uint16 is bfloat16 for a tensor only: a context length stored as uint16 stays the number that it is."""
    convert(write(tmp_path, {**arrays_of(dumps("llama")), "context_length": value}), str(tmp_path / "out.h5"))
    with h5py.File(tmp_path / "out.h5") as f:
        assert f.attrs["context_length"] == 70


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"query_positions": np.arange(78) + 1j}, "query_positions: expected real numbers"),
        ({"token_ids": np.full(78, 2**40)}, "token_ids: expected 0..2147483647"),
        ({"token_ids": np.full(78, 2**64 - 1, np.uint64)}, "token_ids: expected numbers below"),
        ({"layers.0.q": np.zeros(3, dtype=[("a", "i4")])}, r"layers.0.q: holds \[\('a'"),
        ({"layers.0.v": np.zeros((2, 78, 0), np.float32)}, "layers.0.v: expected at least one element"),
        ({"layers." + "9" * 5000 + ".q": np.zeros(1)}, "unknown name"),
        ({"model": np.array([1, 2])}, "model: expected one text"),
    ],
)
def test_arrays_that_are_none(dumps, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        convert(write(tmp_path, {**arrays_of(dumps("llama")), **changes}), str(tmp_path / "out.h5"))


def test_one_array_is_no_archive(dump_here, tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    refused(dump_here("--from-npz", tmp_path / "one.npy", "-o", tmp_path / "out.h5"), 3, "expected a .npz archive of named arrays")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK"])
@pytest.mark.parametrize("name, expected", [("layers.0.q", "an array"), ("context_length", "an array"), ("prompt", "one text")])
def test_entries_of_an_archive_that_are_no_arrays(dump_here, npz, tmp_path, name, expected, content):
    """numpy gives their bytes."""
    with zipfile.ZipFile(npz) as before, zipfile.ZipFile(tmp_path / "odd.npz", "w") as after:
        for entry in set(before.namelist()) - {f"{name}.npy"}:
            after.writestr(entry, before.read(entry))
        after.writestr(f"{name}.npy", content)
    reason = f"{name}: expected {expected}, found {len(content)} bytes that are"
    refused(dump_here("--from-npz", tmp_path / "odd.npz", "-o", tmp_path / "out.h5"), 3, reason)


def test_options_for_models_are_not_ignored(dump_here, npz, tmp_path):
    refused(dump_here("--from-npz", npz, "-o", tmp_path / "out.h5", "--layers", "0"), 2, "--layers is for models")


JSON = {
    "surrogate": (r'{"prompt": "a\ud800b"}', r"prompt: expected Unicode text, found half a character \('\\ud800'\) at offset 1"),
    "surrogate in the id": (r'{"prompt": "a", "id": "\udc00"}', "it names a file"),
    "nul in the id": (r'{"prompt": "a", "id": "a\u0000b"}', "it names a file"),
    "long id": ('{"prompt": "a", "id": "' + "ä" * 150 + '"}', "at most 200 bytes, found 300"),
    "odd id": ('{"prompt": "a", "id": [1]}', r"id: expected text or a whole number, found \[1\]"),
    "null": ('{"prompt": null}', "prompt: expected text, found None"),
    "null ids": ('{"token_ids": null}', "token_ids: expected a list of integers, found None"),
    "null question": ('{"prompt": "a", "question": null}', "question: expected text, found None"),
    "nested": ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
    "digits": ('{"token_ids": [' + "9" * 5000 + "]}", "a number has too many digits"),
    "twice": ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' occurs 2 times"),
    "infinite": ('{"token_ids": [Infinity]}', "token_ids: expected a list of integers"),
}


@pytest.mark.parametrize("what", JSON)
def test_json_lines_of_every_kind(tmp_path, what):
    text, message = JSON[what]
    (tmp_path / "p.jsonl").write_text('{"prompt": "sound"}\n' + text)
    with pytest.raises(InputError, match=f"p.jsonl:2: .*{message}"):
        read_prompts(str(tmp_path / "p.jsonl"))


def test_other_line_separators_are_text(tmp_path):
    """JSON strings may hold U+2028, U+0085 and form feeds as they are."""
    (tmp_path / "p.jsonl").write_text('{"prompt": "a\u2028b\u0085c"}\n', encoding="utf-8")
    assert [p.text for p in read_prompts(str(tmp_path / "p.jsonl"))] == ["a\u2028b\u0085c"]


@pytest.mark.parametrize("number", [10**30, -(10**30), 10**4000, 2**63])
def test_huge_token_ids(number):
    with pytest.raises(InputError, match="prompt p: token ids: expected 0..96"):
        Encoder("none", 97, False, None)._checked("prompt p", [5, number])


def test_nothing_reaches_the_terminal_unescaped():
    assert one_line("a\x1b[31m\nb\u202e\ud800  c") == "a\\x1b[31m b\\u202e\\ud800  c"


def test_errors_of_others_and_our_own():
    """What a model's code throws is the model's limit; what this package throws unforeseen is a bug and stays visible as one."""
    with pytest.raises(InputError, match="m: it fails: IndexError: "), foreign("m: it fails", InputError, mixed=True):
        torch.nn.Sequential()[3]
    with pytest.raises(TypeError), foreign("m: it fails", InputError, mixed=True):
        temporary_beside(3)


def test_a_bug_is_one_line_and_70(dump_here, npz, tmp_path, monkeypatch):
    monkeypatch.setattr("laprox_dump.arrays.convert", lambda *a: 1 / 0)
    refused(dump_here("--from-npz", npz, "-o", tmp_path / "o.h5"), 70, "ZeroDivisionError", "This is a bug in laprox-dump")


@pytest.mark.parametrize("stream", [1, 2])
def test_closed_streams(npz, tmp_path, stream):
    """Closed standard output is an error, though the dump is there; closed standard error is none."""
    result = subprocess.run(
        [sys.executable, "-m", "laprox_dump", "--from-npz", npz, "-o", tmp_path / "o.h5"],
        preexec_fn=lambda: os.close(stream),
        capture_output=True,
        text=True,
    )
    assert result.returncode == (3 if stream == 1 else 0), result.stderr
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr
    with h5py.File(tmp_path / "o.h5") as f:
        assert len(f["layers"]) == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_standard_output(npz, tmp_path):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "laprox_dump", "--from-npz", npz, "-o", tmp_path / "o.h5"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert result.returncode == 3 and len(result.stderr.splitlines()) == 1, result.stderr
    assert "standard output cannot be written (No space left on device); the dump was written" in result.stderr


@pytest.mark.parametrize("limit", [0, 1, 5000])
def test_a_full_disk_from_the_first_byte(npz, dump_command, tmp_path, limit):
    (tmp_path / "to").mkdir()
    out = tmp_path / "to" / "o.h5"
    limits = dict(before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    done = dump_command("--from-npz", npz, "-o", out, **limits)
    if "temporary files" in done.stderr:  # older transformers look for a folder for them before anything is written
        refused(done, 3, "no folder for temporary files can be written")
    else:
        refused(done, 3, "o.h5: writing failed after", "File too large")
    assert os.listdir(tmp_path / "to") == []


def test_no_folder_for_temporary_files(dump_here, npz, tmp_path, monkeypatch):
    def nowhere(*args):
        raise FileNotFoundError(errno.ENOENT, f"No usable temporary directory found in {['/tmp']}")

    monkeypatch.setattr("laprox_dump.arrays.convert", nowhere)
    refused(dump_here("--from-npz", npz, "-o", tmp_path / "o.h5"), 3, "no folder for temporary files can be written", "TMPDIR")


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_the_file_is_made(npz, dump_command, tmp_path, number):
    """In the moment after the temporary file was made, its name is known to nobody but the code that is interrupted."""
    code = f"""
import signal, sys
from laprox_dump import cli, output, writer
make = output.tempfile.mkstemp
def interrupted(*args, **kw):
    made = make(*args, **kw)
    signal.raise_signal(signal.{number})
    return made
output.tempfile.mkstemp = interrupted
sys.exit(cli.main(sys.argv[1:]))
"""
    (tmp_path / "to").mkdir()
    start = dict(before=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    result = dump_command("--from-npz", npz, "-o", tmp_path / "to" / "o.h5", code=code, **start)
    assert result.returncode == 130 and "Traceback" not in result.stderr, result.stderr
    assert os.listdir(tmp_path / "to") == []


def test_skip_existing(dump_here, tiny_checkpoint, tmp_path):
    lines = [json.dumps({"id": name, "token_ids": token_ids(20).tolist()}) for name in "abc"]
    (tmp_path / "p.jsonl").write_text(lines[1])
    arguments = [tiny_checkpoint, "--prompt-file", tmp_path / "p.jsonl", "-o", tmp_path / "out", "--decode", 1, "--skip-existing"]
    assert dump_here(*arguments).returncode == 0
    before = (tmp_path / "out" / "b.h5").stat()
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    result = dump_here(*arguments)
    assert result.returncode == 0 and "b.h5: exists already, skipped" in result.stdout
    assert sorted(os.listdir(tmp_path / "out")) == ["a.h5", "b.h5", "c.h5"]
    assert (tmp_path / "out" / "b.h5").stat().st_ino == before.st_ino
    refused(dump_here(*arguments, "--force"), 2, "expected one of the two")
    (tmp_path / "out" / "c.h5").write_text("half a file of another program")
    result = dump_here(*arguments)
    assert result.returncode == 3 and "c.h5: --skip-existing: it exists and is no dump" in result.stderr


def test_code_of_a_model_is_not_run_unasked(tiny_checkpoint, prompt, tmp_path):
    """On a terminal transformers would ask a question and wait. Here the answer is no, unless the option says yes."""
    folder = tmp_path / "m"
    folder.mkdir()
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    os.link(tiny_checkpoint / "model.safetensors", folder / "model.safetensors")
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'own'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    command = [sys.executable, "-m", "laprox_dump", folder, "--prompt-file", prompt, "-o", tmp_path / "out", "--decode", "1"]
    env = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    main, side = pty.openpty()
    result = subprocess.run(command, stdin=side, capture_output=True, text=True, env=env, timeout=120)
    assert result.returncode == 3 and not (tmp_path / "ran").exists(), result.stderr
    assert "add --trust-remote-code" in result.stderr and len(result.stderr.splitlines()) == 1
    trusted = subprocess.run([*command, "--trust-remote-code"], stdin=side, capture_output=True, text=True, env=env, timeout=120)
    os.close(main), os.close(side)
    assert trusted.returncode == 0 and (tmp_path / "ran").exists(), trusted.stderr


def test_progress_on_a_terminal(dump_command, tiny_checkpoint, prompt, tmp_path):
    """Loading, decoded tokens and recorded layers are shown; not where standard error is no terminal."""
    command = [
        sys.executable,
        "-m",
        "laprox_dump",
        tiny_checkpoint,
        "--prompt-file",
        prompt,
        "-o",
        tmp_path / "out",
        "--ignore-eos",
    ]
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # a bar takes no room where there is none
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=side)
    os.close(side)
    seen = b""
    try:
        while part := os.read(main, 65536):
            seen += part
    except OSError:  # the other side is closed
        pass
    os.close(main)
    assert process.wait() == 0
    assert b"Loading" in seen or release() < Version("5")  # which shows nothing for a single file of weights
    assert b"a.h5: decoding" in seen and b"/64" in seen and b"a.h5: recording" in seen and b"/3" in seen
    quiet = dump_command(*command[3:], "--force")
    assert quiet.returncode == 0 and quiet.stderr == ""
