"""What the tests share: the exported tiny models, the command line in a process of its own, and the C++ tool if it is there.

LAPROX_BIN          the `laprox` executable; without it the tests that replay with it are skipped
LAPROX_SAMPLE_MODEL a folder with a small trained Llama checkpoint; without it the tests on it are skipped
LAPROX_MAKE_DUMP    a script that dumps that checkpoint without torch, to compare with
"""

import os
import subprocess
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # tests load nothing from a network; read when the libraries are imported

import pytest
import torch
from forked import forked
from tiny_models import FAMILIES, available, token_ids

from laprox_dump import cli
from laprox_dump.export import Options, export_prompt
from laprox_dump.model import prepare
from laprox_dump.tokens import Tokens

PROMPT, DECODE = 70, 8


def from_environment(name: str) -> str:
    """The value of an environment variable that names an existing path; skips the test without one."""
    value = os.environ.get(name)
    if not value:
        pytest.skip(f"{name} is not set")
    assert Path(value).exists(), f"{name}={value} does not exist"
    return value


@pytest.fixture(scope="session")
def dumps(tmp_path_factory):
    """`dumps(name)` is the path of the float32 dump of that tiny family, exported once."""
    folder, made = tmp_path_factory.mktemp("dumps"), {}

    def get(name: str) -> Path:
        family = FAMILIES[name]
        if not available(family):
            pytest.skip(f"{name} needs transformers {family.since}")
        if name not in made:
            ids = token_ids(PROMPT)
            path = folder / f"{name}.h5"
            export_prompt(prepare(family.build()), Tokens(ids, ids[:0], None), str(path), Options(decode=DECODE, stop_at_eos=False))
            made[name] = path
        return made[name]

    return get


@pytest.fixture
def npz(dumps, tmp_path):
    """The arrays of a dump, as --from-npz reads them."""
    from test_arrays import arrays_of, write

    return write(tmp_path, arrays_of(dumps("llama")))


@pytest.fixture(scope="session")
def laprox():
    """`laprox(*arguments)` runs the C++ tool."""
    binary = from_environment("LAPROX_BIN")
    return lambda *arguments: subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="session")
def dump_command():
    """`dump_command(*arguments)` runs laprox-dump in a process of its own, forked from this one, which has imported torch already.

    `code` runs instead of it, with `arguments` in sys.argv; `before` is called in the process first.
    """

    def run(*arguments, code=None, before=lambda: None):
        words = [str(argument) for argument in arguments]

        def body():
            torch.set_num_threads(1)  # OpenMP's threads are not in the fork
            sys.argv = ["laprox-dump", *words]
            before()
            return cli.main(words) if code is None else exec(code, {"__name__": "__main__"})

        return subprocess.CompletedProcess(words, *forked(body))

    return run


@pytest.fixture
def dump_here(capsys):
    """`dump_here(*arguments)` runs laprox-dump inside this process, which saves the seconds that importing torch takes."""

    def run(*arguments):
        try:
            code = cli.main([*map(str, arguments)])
        except SystemExit as e:  # argparse leaves this way
            code = e.code
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A folder with a tiny Llama checkpoint (context 512, vocabulary 97), without a tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint")
    FAMILIES["llama"].build().save_pretrained(folder)
    return folder
