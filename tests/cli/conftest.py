import csv
import io
import os
import pathlib
import subprocess

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the workers' own threads are enough; read when NumPy is imported

import dumps
import kernels
import oracle
import pytest

# What laprox would start itself again for (test_waiting.py), hundreds of times in these tests.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

#: How many times as long as usual a command may take: a binary with sanitizers is slow.
PATIENCE = float(os.environ.get("LAPROX_PATIENCE", "1"))


class Laprox:
    """Runs the binary under test, which the environment variable LAPROX_BIN names."""

    def __init__(self):
        self.binary = os.environ.get("LAPROX_BIN")
        if not self.binary:
            pytest.exit("LAPROX_BIN must name the laprox binary", returncode=2)

    def __call__(self, *arguments, expect=0, timeout=120):
        done = subprocess.run([self.binary, *map(str, arguments)], capture_output=True, text=True, timeout=timeout * PATIENCE)
        assert done.returncode == expect, f"exit code {done.returncode}, expected {expect}\n{done.stderr}"
        return done

    def within(self, memory):
        """The binary behind words that bound its memory, in bytes. Skips the test where it cannot live so, as with sanitizers."""
        words = ["prlimit", f"--data={memory}", self.binary]
        if subprocess.run([*words, "--version"], capture_output=True).returncode != 0:
            pytest.skip("this binary does not run within limited memory")
        return words

    def sweep(self, path, policies, budgets, *options):
        """CSV rows by (policy, budget in tokens, layer)."""
        done = self(
            "sweep",
            path,
            "--policy",
            ",".join(policies),
            "--budget",
            ",".join(map(str, budgets)),
            "--format",
            "csv",
            "--quiet",
            *options,
        )
        return {(row["policy"], int(row["budget_tokens"]), row["layer"]): row for row in csv.DictReader(io.StringIO(done.stdout))}


@pytest.fixture(scope="session")
def laprox():
    return Laprox()


@pytest.fixture(scope="session")
def bundled():
    return pathlib.Path(__file__).parents[2] / "data" / "niah-1k.h5"


@pytest.fixture(scope="session")
def feature_dumps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dumps")
    return {
        name: dumps.write_dump(folder / f"{name}.h5", seed=i, **shape) for i, (name, shape) in enumerate(dumps.FEATURES.items())
    }


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A dump and the results of a right float32 kernel on it."""
    path = dumps.write_dump(tmp_path_factory.mktemp("small") / "dump.h5", context=120, tokens=130, heads=[(4, 2), (4, 2)], seed=11)
    dump = oracle.read_dump(path)
    return path, dump, kernels.run(dump, "float32")


@pytest.fixture()
def dump(tmp_path):
    """A dump of one's own, to be damaged."""
    return dumps.write_dump(tmp_path / "dump.h5", context=40, tokens=44, heads=[(4, 2), (2, 2)], seed=3)
