"""Nothing half-written: interrupts, a full disk, no memory, no permission, in real processes."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import namedtuple

import h5py
import pytest
import torch
from tiny_models import FAMILIES, token_ids

from laprox_dump import cli, export, writer
from laprox_dump.layer import Positions
from laprox_dump.model import prepare
from laprox_dump.tokens import Tokens
from laprox_dump.writer import DumpWriter

SLOW = """
import sys, time
from laprox_dump import cli, writer
add = writer.DumpWriter.add
def slow(self, *args, **kw):
    add(self, *args, **kw)
    time.sleep(30)
writer.DumpWriter.add = slow
sys.exit(cli.main(sys.argv[1:]))
"""


def export_tiny(path):
    ids = token_ids(60)
    export.export_prompt(prepare(FAMILIES["llama"].build()), Tokens(ids, ids[:0], None), str(path), export.Options(decode=0))


@pytest.fixture
def arguments(tiny_checkpoint, tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "a", "token_ids": token_ids(400).tolist()}))
    return [str(tiny_checkpoint), "--prompt-file", str(tmp_path / "p.jsonl"), "-o", str(tmp_path / "out"), "--decode", "4"]


@pytest.mark.parametrize("number, code, left", [(signal.SIGINT, 130, 0), (signal.SIGTERM, 130, 0), (signal.SIGKILL, -9, 1)])
def test_interrupted(arguments, tmp_path, number, code, left):
    """After an interrupt nothing is left; after a kill a hidden temporary file may be, but never a file under the name."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # shells' background jobs ignore it
    deadline = time.monotonic() + 120
    while not (tmp_path / "out").exists() or not any(p.stat().st_size > 50_000 for p in (tmp_path / "out").iterdir()):
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be interrupted"
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in stderr
    names = os.listdir(tmp_path / "out")
    assert "a.h5" not in names and len(names) == left
    assert all(name.startswith(".") for name in names)


def test_interrupted_inside_a_write(tmp_path, monkeypatch):
    """HDF5 calls back into Python to write; an interrupt there waits until the layer is done, and is not lost."""
    write, calls = writer._Sink.write, []

    def interrupted(self, data):
        calls.append(len(data))
        if len(calls) == 12:
            signal.raise_signal(signal.SIGINT)
        return write(self, data)

    monkeypatch.setattr(writer._Sink, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_tiny(tmp_path / "d.h5")
    assert len(calls) >= 12 and os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("limit", [20_000, 60_000, 150_000])
def test_the_disk_is_full(arguments, dump_command, tmp_path, limit):
    """A file-size limit makes writes fail in the middle, as a full disk does."""
    result = dump_command(*arguments, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert result.returncode == 3, result.stderr
    assert (
        result.stderr.startswith("laprox-dump: ")
        and "a.h5: writing failed after" in result.stderr
        and "File too large" in result.stderr
    )
    assert len(result.stderr.splitlines()) == 1
    assert os.listdir(tmp_path / "out") == []


def test_a_full_disk_leaves_the_old_dump(arguments, dump_command, tmp_path):
    assert dump_command(*arguments).returncode == 0
    before = (tmp_path / "out" / "a.h5").read_bytes()
    limit = len(before) // 2
    result = dump_command(*arguments, "--force", before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert result.returncode == 3
    assert os.listdir(tmp_path / "out") == ["a.h5"] and (tmp_path / "out" / "a.h5").read_bytes() == before


def test_a_dump_that_cannot_fit_is_refused_before_the_run(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(export.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(100_000))
    monkeypatch.setattr(export, "greedy", lambda *a: pytest.fail("the model ran"))
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "a", "token_ids": token_ids(400).tolist()}))
    assert cli.main([str(tiny_checkpoint), "--prompt-file", str(tmp_path / "p.jsonl"), "-o", str(tmp_path / "out")]) == 3
    assert os.listdir(tmp_path / "out") == []


def test_out_of_memory(arguments, dump_command, tmp_path):
    """The address space is limited to a little more than the libraries take, and the attention needs more."""
    code = """
import re, resource, sys, torch, transformers
from laprox_dump import cli, attention
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])  # loads what is loaded lazily
model(torch.ones(1, 4, dtype=torch.long))
used = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
def hungry(*args, **kw):
    torch.empty(1 << 34, dtype=torch.uint8)
attention.forward = hungry
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
sys.exit(cli.main(sys.argv[1:]))
"""
    result = dump_command(*arguments, code=code)
    assert result.returncode == 4, result.stderr
    assert result.stderr.splitlines()[-1].startswith("laprox-dump: out of memory on cpu") and "Traceback" not in result.stderr
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.skipif(not os.path.exists("/proc/self/mounts"), reason="needs /proc, where nobody may create files")
def test_no_permission(tiny_checkpoint, dump_here, tmp_path):
    """/proc refuses new files even to root, whom permission bits do not stop."""
    (tmp_path / "p.jsonl").write_text(json.dumps({"id": "a", "token_ids": [5, 6, 7]}))
    result = dump_here(tiny_checkpoint, "--prompt-file", tmp_path / "p.jsonl", "-o", "/proc/nobody/out")
    assert result.returncode == 3 and "/proc/nobody/out: the folder cannot be made" in result.stderr
    result = dump_here(tiny_checkpoint, "--prompt-file", tmp_path / "p.jsonl", "-o", "/proc")
    assert result.returncode == 3 and "/proc/a.h5: cannot be written" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and "Traceback" not in result.stderr


def test_a_folder_under_the_name(tiny_checkpoint, dump_here, tmp_path):
    (tmp_path / "p.txt").write_text("x")
    result = dump_here(tiny_checkpoint, "--prompt-file", tmp_path / "p.txt", "-o", tmp_path)
    assert result.returncode == 3 and "is a folder; expected the name of a file" in result.stderr
    result = dump_here(tiny_checkpoint, "--prompt-file", tmp_path / "p.txt", "-o", tmp_path / "none" / "x.h5")
    assert result.returncode == 3 and "its folder does not exist" in result.stderr


def test_long_prompts_fit_an_attribute(tmp_path):
    """HDF5 limits an object's header to 64 KiB, but not the text an attribute refers to; NUL ends a text, so it is replaced."""
    text = "ä" * 300_000 + "\0end\ud800"
    positions = Positions(3, 2, torch.arange(3), torch.arange(0))
    with DumpWriter(str(tmp_path / "x.h5"), positions, {"prompt": text}):
        pass
    with h5py.File(tmp_path / "x.h5") as f:
        assert f.attrs["prompt"] == "ä" * 300_000 + "\u2400end?"
    assert (tmp_path / "x.h5").stat().st_mode & 0o777 == 0o666 & ~os.umask(os.umask(0o22))
