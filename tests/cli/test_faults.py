"""Disks that fill up or fail and killed programs, at every point of the writing: the old file stays, or the new one is whole."""

import contextlib
import os
import pathlib
import random
import resource
import shutil
import subprocess
import time

import dumps
import pytest

POLICY = ("--policy", "recent,snapkv:window=8", "--budget", "20,40")
COMMANDS = ("sweep", "score", "synth", "merge")
OLD = {command: dumps.nothing_but(f"laprox-{kind}") for command, kind in zip(COMMANDS, ("report", "scores", "dump", "report"))}
TABLE = "budget in tokens per KV head"


class Inputs:
    """Two dumps and a report of each."""

    def __init__(self, laprox, folder):
        self.dumps = [
            dumps.write_dump(folder / f"{i}.h5", context=100, tokens=110, heads=[(4, 2)] * 3, seed=i + 40) for i in range(2)
        ]
        self.reports = [folder / f"report-{i}.h5" for i in range(2)]
        for dump, report in zip(self.dumps, self.reports):
            laprox("sweep", dump, *POLICY, "--save-kept", "-o", report, "--quiet")

    def arguments(self, command):
        return {
            "sweep": ["sweep", *self.dumps, *POLICY, "--save-kept", "--quiet"],
            "score": ["score", self.dumps[0], "--policy", "snapkv:window=8", "--budget", "20,40", "--quiet"],
            "synth": ["synth", "--preset", "tiny", "--tokens", "300", "--seed", "3", "--quiet"],
            "merge": ["merge", *self.reports],
        }[command]


@pytest.fixture(scope="module")
def inputs(laprox, tmp_path_factory):
    return Inputs(laprox, tmp_path_factory.mktemp("inputs"))


def run(laprox, arguments, output, *options, **how):
    words = [laprox.binary, *map(str, arguments), "-o", str(output), *options]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, **how)


def check_failure(done, command, output, old):
    """Exit code 3, one message that names the file, no trace of the attempt, the old file, and the table all the same."""
    assert done.returncode == 3, (done.returncode, done.stderr)
    errors = [line for line in done.stderr.splitlines() if line.startswith("laprox: ") and "cannot be written" in line]
    assert len(errors) == 1 and str(output) in errors[0], done.stderr
    assert "HDF5-DIAG" not in done.stderr and "bug in laprox" not in done.stderr
    assert os.listdir(output.parent) == ([output.name] if old else [])
    assert not old or output.read_bytes() == OLD[command]
    assert command != "sweep" or TABLE in done.stdout


def reads(laprox, command, path):
    """Whether a program can read the file as what it should be."""
    words = ["report", path] if command in ("sweep", "merge") else ["inspect", path] if command == "synth" else None
    if words is None:  # a score file serves as a policy
        return path.stat().st_size > 0
    return subprocess.run([laprox.binary, *map(str, words)], capture_output=True, timeout=60).returncode == 0


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("shim") / "failing_calls.so"
    source = pathlib.Path(__file__).with_name("failing_calls.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", str(source), "-o", str(library), "-ldl"], check=True)
    return library


def faulty(laprox, inputs, shim, tmp_path, command, call, after, lasting, old=True):
    """Runs a command in which a call fails; nothing where it has fewer calls than that."""
    place, seen = tmp_path / f"{after}", tmp_path / f"seen-{after}"
    place.mkdir()
    output = place / "out.h5"
    if old:
        output.write_bytes(OLD[command])
    environment = dict(os.environ, LD_PRELOAD=str(shim), FAULT_CALL=call, FAULT_AFTER=str(after), FAULT_SEEN=str(seen))
    environment["ASAN_OPTIONS"] = "verify_asan_link_order=0:" + environment.get("ASAN_OPTIONS", "")
    if lasting:
        environment["FAULT_LASTING"] = "1"
    done = run(laprox, inputs.arguments(command), output, "--force", env=environment)
    if not seen.exists():
        assert done.returncode == 0, done.stderr
        return False
    check_failure(done, command, output, old)
    return True


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_write_that_fails(laprox, inputs, shim, tmp_path, command, lasting):
    """EIO at each of the first writes, and at others up to the last one."""
    after, failures = 0, 0
    while faulty(laprox, inputs, shim, tmp_path, command, "write", after, lasting):
        failures += 1
        after += 1 if after < 8 else max(1, after // 4)
    assert failures >= 3


@pytest.mark.parametrize("call", ["fsync", "close", "rename"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_last_step_that_fails(laprox, inputs, shim, tmp_path, command, call):
    after, failures = 0, 0
    if call == "close":  # of the empty file under the temporary name, twice: a trial and the real one; nothing is written yet
        after = 2 if command != "synth" else 1
    while faulty(laprox, inputs, shim, tmp_path, command, call, after, True):
        failures += 1
        after += 1
    assert failures >= 1


@contextlib.contextmanager
def small_disk(folder, kilobytes):
    """A file system of that size; skips the test where this user cannot make one."""
    folder.mkdir()
    mount = shutil.which("mount")
    words = [mount, "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not mount or subprocess.run(words, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run([shutil.which("umount"), str(folder)], check=True)


@pytest.mark.parametrize("kilobytes", [8, 12, 16, 24, 32])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_is_full(laprox, inputs, tmp_path, command, kilobytes):
    with small_disk(tmp_path / "disk", kilobytes) as disk:
        output = disk / "out.h5"
        output.write_bytes(OLD[command])
        done = run(laprox, inputs.arguments(command), output, "--force")
        if done.returncode == 0:
            assert reads(laprox, command, output) and os.listdir(disk) == ["out.h5"]
        else:
            check_failure(done, command, output, True)
    assert done.returncode == 3 or kilobytes > 12


@pytest.mark.parametrize("command", COMMANDS)
def test_files_that_may_not_grow(laprox, inputs, tmp_path, command):
    for limit in (0, 1, 100, 2048, 4096, 6000, 10000):
        place = tmp_path / str(limit)
        place.mkdir()
        output = place / "out.h5"
        done = run(
            laprox,
            inputs.arguments(command),
            output,
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        if done.returncode == 0:
            assert limit > 4096 and reads(laprox, command, output)
        else:
            check_failure(done, command, output, False)


def kill_after(laprox, arguments, output, options, seconds):
    """Whether SIGKILL came before the end."""
    words = [laprox.binary, *map(str, arguments), "-o", str(output), *options]
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.wait(timeout=seconds)
    running.kill()
    return running.wait(timeout=60) == -9


@pytest.mark.parametrize("command", COMMANDS)
def test_kill_9_leaves_the_old_file_or_the_new_one(laprox, inputs, tmp_path, command):
    arguments, whole, output = inputs.arguments(command), tmp_path / "whole.h5", tmp_path / "out.h5"
    began = time.monotonic()
    assert run(laprox, arguments, whole).returncode == 0
    duration = time.monotonic() - began
    rng = random.Random(command)
    killed = 0
    for i in range(24):
        output.write_bytes(OLD[command])
        killed += kill_after(laprox, arguments, output, ("--force",), duration * rng.random() * (0.5 if i < 12 else 1.1))
        assert output.read_bytes() in (OLD[command], whole.read_bytes())
    assert killed > 0
    assert run(laprox, arguments, output, "--force").returncode == 0 and output.read_bytes() == whole.read_bytes()


def test_kill_9_and_resume_again_and_again(laprox, inputs, tmp_path):
    """However often a sweep is killed, a report stands under its name, and resuming ends in that of a sweep that ran through."""
    arguments, whole, output = inputs.arguments("sweep"), tmp_path / "whole.h5", tmp_path / "out.h5"
    began = time.monotonic()
    table = run(laprox, arguments, whole).stdout
    duration = time.monotonic() - began
    rng = random.Random(12)
    killed = 0
    for _ in range(6):
        output.unlink(missing_ok=True)
        for _ in range(4):
            killed += kill_after(laprox, arguments, output, ("--resume",), duration * rng.random())
            assert not output.exists() or reads(laprox, "sweep", output)
        done = run(laprox, arguments, output, "--resume")
        assert done.returncode == 0 and done.stdout == table and output.read_bytes() == whole.read_bytes()
    assert killed > 0


def test_a_sweep_prints_to_a_full_device_and_keeps_its_report(laprox, inputs, tmp_path):
    output = tmp_path / "out.h5"
    with open("/dev/full", "w") as full:
        words = [laprox.binary, *map(str, inputs.arguments("sweep")), "-o", str(output)]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 3 and "standard output" in done.stderr
    assert reads(laprox, "sweep", output)


@pytest.mark.parametrize("command", ["sweep", "merge"])
def test_a_list_of_inputs_is_an_input(laprox, inputs, tmp_path, command):
    """--force replaced the list by the report."""
    files, options = (inputs.dumps, POLICY) if command == "sweep" else (inputs.reports, ())
    listed = tmp_path / "list.txt"
    text = "".join(f"{name}\n" for name in files)
    listed.write_text(text)
    refused = laprox(command, f"@{listed}", *options, "-o", listed, "--force", expect=2)
    assert "which would be lost" in refused.stderr and listed.read_text() == text
