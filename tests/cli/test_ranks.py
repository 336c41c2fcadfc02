"""Sweeps on several processes: whatever their number, the report is that of one, and a rank that fails ends all."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import dumps
import h5py
import numpy as np
import oracle
import pytest

OLD = dumps.nothing_but("laprox-report")
ROOT = pathlib.Path(__file__).parents[2]
MODEL_WIDE = "laprox,laprox-r,lava,cake,snapkv+global:norm-domain=full,oracle"
LAYER_WISE = "h2o,snapkv,laprox+layer,snapkv+pyramid,adakv,random,chunkkv:window=8"


class Ranks:
    """Runs the binary under test on several ranks."""

    def __init__(self, laprox):
        self.binary = laprox.binary
        if "libmpi" not in libraries(self.binary):
            pytest.skip("this laprox was built without -DLAPROX_MPI=ON")
        if not shutil.which("mpirun"):
            pytest.skip("mpirun, which starts the ranks, is not installed")

    def start(self, count, *arguments):
        # Ranks share the cores that there are, so that none may keep one busy with waiting. Root has to ask twice.
        words = ["mpirun", "--oversubscribe", "-n", str(count), self.binary, *map(str, arguments)]
        settings = dict(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_mpi_yield_when_idle="1")
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **settings})

    def __call__(self, count, *arguments, expect=0):
        process = self.start(count, *arguments)
        out, errors = process.communicate(timeout=100)
        assert process.returncode == expect, f"exit code {process.returncode}, expected {expect}\n{errors}"
        return out, errors


def libraries(binary):
    return subprocess.run(["ldd", binary], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def ranks(laprox):
    return Ranks(laprox)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Other numbers of layers and heads, lengths and element types; few layers, so that dumps are worked on together."""
    folder = tmp_path_factory.mktemp("mixed")
    shapes = [
        (dict(context=90, tokens=97, heads=[(4, 2), (6, 3), (2, 1)]), "float32"),
        (dict(context=64, tokens=70, heads=[(4, 4)]), "float16"),
        (dict(context=120, tokens=130, heads=[(8, 2)] * 5, sliding_window=40), "bfloat16"),
        (dict(context=70, tokens=75, heads=[(3, 1), (2, 2)], sinks=True, bias=True), "float64"),
    ]
    return [dumps.write_dump(folder / f"{n}.h5", dtype=dtype, seed=n + 70, **shape) for n, (shape, dtype) in enumerate(shapes)]


def lines_of_laprox(errors):
    return [line for line in errors.splitlines() if line.startswith("laprox: ")]


def check_same(laprox, ranks, folder, counts, *arguments, notes=False):
    """One process and several write the same bytes and print the same table; with `notes`, the same notes too."""
    command = ("sweep", *arguments, "--threads", "1", "--quiet", "--force", "-o", folder / "report.h5")
    alone = laprox(*command)
    expected = (folder / "report.h5").read_bytes()
    for count in counts:
        (folder / "report.h5").unlink()
        out, errors = ranks(count, *command)
        assert out == alone.stdout, count
        assert (folder / "report.h5").read_bytes() == expected, count
        assert not notes or errors.splitlines() == alone.stderr.splitlines(), count
        assert os.listdir(folder) == ["report.h5"]


def test_one_dump_gives_the_same_report_on_any_number_of_ranks(laprox, ranks, bundled, tmp_path):
    check_same(laprox, ranks, tmp_path, (1, 2, 3, 4), bundled, "--policy", f"{LAYER_WISE},{MODEL_WIDE}", "--budget", "5%,20%")


def test_mixed_dumps_the_whole_catalogue_the_plan_and_the_kept_tokens(laprox, ranks, mixed, tmp_path):
    options = ("--policy", "all", "--budget", "60%,97%", "--save-kept", "--show-plan")
    check_same(laprox, ranks, tmp_path, (2, 4), *mixed, *options, notes=True)


@pytest.mark.parametrize(
    "count, options",
    [
        (3, ("--queries", "window", "--window", "5", "--softmax", "truncated")),
        (2, ("--queries", "window", "--window", "20", "--segments", "3")),
    ],
    ids=["truncated", "segments"],
)
def test_judged_by_the_window(laprox, ranks, mixed, tmp_path, count, options):
    check_same(
        laprox, ranks, tmp_path, (count,), *mixed, "--policy", "snapkv+global:window=8,lava:window=8", "--budget", "40%", *options
    )


def test_schedules(laprox, ranks, bundled, mixed, tmp_path):
    options = ("--policy", "recent,streaming,h2o,tova,knorm,full", "--budget", "40%,60%", "--save-kept")
    check_same(laprox, ranks, tmp_path, (3,), bundled, mixed[0], *options, "--schedule", "every:7")
    check_same(laprox, ranks, tmp_path, (2,), mixed[0], mixed[3], *options, "--schedule", "step")


def share_cache(path, layer, source):
    with h5py.File(path, "r+") as file:
        for name in ("k", "v"):
            del file[f"layers/{layer}/{name}"]
            file[f"layers/{layer}/{name}"] = file[f"layers/{source}/{name}"][()]
        file[f"layers/{layer}"].attrs["kv_source"] = source


def test_layers_that_share_a_cache_stay_together(laprox, ranks, tmp_path):
    path = dumps.write_dump(tmp_path / "shared.h5", context=100, tokens=110, heads=[(4, 2)] * 6, sliding_window=30, seed=5)
    for layer, source in ((3, 0), (4, 1), (5, 0)):
        share_cache(path, layer, source)
    folder = tmp_path / "reports"
    folder.mkdir()
    policies = "recent,snapkv+global:window=8,laprox-r:window=8,lava:window=8,cake:window=8,oracle"
    check_same(laprox, ranks, folder, (2, 4), path, "--policy", policies, "--budget", "30%,60%", "--save-kept")


def test_scores_from_a_file(laprox, ranks, mixed, tmp_path):
    scores, folder = tmp_path / "scores.h5", tmp_path / "reports"
    folder.mkdir()
    laprox("score", mixed[0], "--policy", "snapkv:window=8", "--quiet", "-o", scores)
    check_same(laprox, ranks, folder, (2,), mixed[0], "--scores", scores, f"{scores}+global", "--budget", "40%")


def test_a_sweep_is_resumed(laprox, ranks, mixed, tmp_path):
    policies = ("--policy", "recent,laprox:window=8", "--budget", "40%", "--threads", "1", "--quiet")
    whole, report = tmp_path / "whole.h5", tmp_path / "report.h5"
    laprox("sweep", *mixed, *policies, "-o", whole)
    laprox("sweep", mixed[1], mixed[3], *policies, "-o", report)
    _, errors = ranks(3, "sweep", *mixed, *policies, "-o", report, "--resume")
    assert report.read_bytes() == whole.read_bytes()
    assert errors.count("is in") == 2


def with_outputs(path, right):
    """A dump with its own exact output, or with a wrong one in its last layer."""
    dumps.write_dump(path, context=60, tokens=64, heads=[(4, 2)] * 3, seed=9)
    dump = oracle.read_dump(path)
    with h5py.File(path, "r+") as file:
        file["output_positions"] = dump.positions[dump.decoded]
        for n, layer in enumerate(dump.layers):
            heads = oracle.head_outputs(layer, oracle.attention(layer, dump.decoded, dump.positions))
            output = oracle.layer_output(layer, heads)
            file[f"layers/{n}/output"] = output if right or n < 2 else output[::-1]
    return path


def test_stored_outputs_are_checked_by_all_ranks(laprox, ranks, tmp_path):
    folder = tmp_path / "reports"
    folder.mkdir()
    options = ("--policy", "recent", "--budget", "30")
    check_same(laprox, ranks, folder, (2,), with_outputs(tmp_path / "right.h5", True), *options)
    wrong = with_outputs(tmp_path / "wrong.h5", False)
    alone = laprox("sweep", wrong, *options, expect=5)
    _, errors = ranks(2, "sweep", wrong, *options, expect=5)
    assert lines_of_laprox(errors) == lines_of_laprox(alone.stderr) != []


def spoil(path, layer):
    with h5py.File(path, "r+") as file:
        values = file[f"layers/{layer}/k"][()]
        values[-1, -1, -1] = np.nan
        file[f"layers/{layer}/k"][...] = values


@pytest.mark.parametrize("layer", range(3))
def test_a_broken_dump_among_good_ones(laprox, ranks, mixed, tmp_path, layer):
    """Whichever rank meets the bad value says so, all end with its exit code, and the old report stays."""
    broken, report = tmp_path / "broken.h5", tmp_path / "report.h5"
    shutil.copy(mixed[0], broken)
    spoil(broken, layer)
    report.write_bytes(OLD)
    options = ("--policy", "recent,laprox:window=8", "--budget", "40%", "--quiet", "--force", "-o", report)
    _, errors = ranks(3, "sweep", mixed[1], broken, mixed[2], *options, expect=3)
    [message] = lines_of_laprox(errors)
    assert str(broken) in message and f"layers/{layer}/k" in message and "nan" in message
    assert report.read_bytes() == OLD
    assert sorted(os.listdir(tmp_path)) == ["broken.h5", "report.h5"]


def test_what_every_rank_refuses_is_said_once(ranks, mixed, tmp_path):
    report = tmp_path / "report.h5"
    report.write_bytes(OLD)
    for arguments, said in (
        (("sweep", mixed[0], "--policy", "nothing", "--budget", "40%"), "nothing"),
        (("sweep", mixed[0], "--policy", "recent", "--budget", "40%", "-o", report), "report.h5"),
    ):
        _, errors = ranks(2, *arguments, expect=2)
        [message] = lines_of_laprox(errors)
        assert said in message
    _, errors = ranks(2, "sweep", mixed[0], "--budgets", "40%", expect=2)
    assert errors.count("--help") == 1, "a wrong command line, too"
    assert report.read_bytes() == OLD


def ranks_of(launcher):
    """Process numbers of the ranks that a running mpirun has started, by rank."""
    found = {}
    for folder in pathlib.Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1]) if folder.name.isdigit() else 0
            words = dict(word.split("=", 1) for word in (folder / "environ").read_text().split("\0") if "=" in word)
        except (OSError, UnicodeDecodeError):
            continue
        if parent == launcher and "OMPI_COMM_WORLD_RANK" in words:
            found[int(words["OMPI_COMM_WORLD_RANK"])] = int(folder.name)
    return found


def is_running(pid):
    """Not if it is a zombie, whose parent is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_all(laprox, ranks, tmp_path, victim):
    dump, report = tmp_path / "dump.h5", tmp_path / "report.h5"
    laprox("synth", "-o", dump, "--preset", "tiny", "--tokens", "6000", "--layers", "6", "--quiet")
    report.write_bytes(OLD)
    process = ranks.start(
        2, "sweep", dump, "--policy", "h2o,laprox-far", "--budget", "10%", "--threads", "1", "--force", "-o", report
    )
    started = time.monotonic()
    while len(ranks_of(process.pid)) < 2:
        assert process.poll() is None and time.monotonic() < started + 30
        time.sleep(0.02)
    time.sleep(0.5)  # MPI is up by now, and the work has begun
    pids = ranks_of(process.pid)
    assert process.poll() is None, "the sweep takes longer than that"
    os.kill(pids[victim], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert report.read_bytes() == OLD
    assert sorted(os.listdir(tmp_path)) == ["dump.h5", "report.h5"]
    assert not any(is_running(pid) for pid in pids.values())


def test_only_the_option_brings_mpi(laprox):
    """The library never knows of MPI, and without the option the program does not either."""
    including = [path for path in (ROOT / "src").rglob("*.cpp") if "#include <mpi.h>" in path.read_text()]
    assert [path.relative_to(ROOT).as_posix() for path in including] == ["src/mpi/mpi_ranks.cpp"]
    library = pathlib.Path(laprox.binary).parent / "src" / "liblaprox.a"
    if library.exists():
        assert b"MPI_Allgather" not in library.read_bytes()
    if "libmpi" in libraries(laprox.binary):
        assert b"MPI_Allgather" in pathlib.Path(laprox.binary).read_bytes()
        pytest.skip("this laprox was built with -DLAPROX_MPI=ON; one without it is looked at where it is built")
    assert b"MPI_" not in pathlib.Path(laprox.binary).read_bytes()
