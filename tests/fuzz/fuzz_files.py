#!/usr/bin/env python3
"""Attack the command line with damaged files: dumps, reports, candidates, score files and configurations.

usage: LAPROX_BIN=build/release/laprox fuzz_files.py [--count N] [--seed S] [--jobs N] [--keep FOLDER]

Each case is a sound file after one to three changes of its bytes or its structure, given to one command. Of every case is asked: a
documented exit code and no signal; an end in time; a word on stderr where it fails, and no HDF5 error stack; with exit code 0 an
output that opens; otherwise the output as it was before; and no temporary file. A case is a function of its seed alone: --seed with
the printed number and --count 1 shows a failing one again, and --keep keeps its files.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import damage
import h5py

CODES = {0, 2, 3, 4, 5}  # 4: damaged numbers can leave the range of a backend's
SECONDS = 60
OLD = b"what was here before"
POLICIES = ("recent", "snapkv:window=4", "laprox+layer:window=4", "h2o", "knorm", "laprox-r:window=4,sinks=1,kernel=3")


class Fuzzer:
    """The sound files, and the commands that are given damaged copies of them."""

    def __init__(self, binary: str, folder: Path):
        self.binary, self.folder, self.kinds, self.codes = binary, folder, Counter(), Counter()
        self.dump, self.report, self.scores = (folder / name for name in ("dump.h5", "report.h5", "scores.h5"))
        for command in (
            ["synth", "-o", self.dump, "--preset", "tiny", "--tokens", 40, "--decode", 4, "--layers", 2, "--dtype", "float32"],
            ["sweep", self.dump, "--policy", "recent,knorm", "--budget", "50%", "--save-kept", "-o", self.report],
            ["score", self.dump, "--policy", "snapkv:window=4", "--budget", "50%", "-o", self.scores],
        ):
            subprocess.run([binary, *map(str, command)], check=True, capture_output=True)
        self.config = folder / "sweep.toml"
        self.config.write_text('[sweep]\npolicy = ["recent", "knorm"]\nbudget = ["50%"]\nqueries = "decoded"\nquiet = true\n')

    def commands(self, rng: random.Random, damaged: dict[str, Path], output: Path) -> list:
        """One command that reads a damaged file; `damaged` says which by its kind."""
        kind, path = next(iter(damaged.items()))
        policy = rng.choice(POLICIES)
        if kind == "dump":
            return rng.choice(
                [
                    ["sweep", path, "--policy", policy, "--budget", "50%", "-o", output, "--force"],
                    ["sweep", path, self.dump, "--policy", policy, "--budget", "60%"],
                    ["score", path, "--policy", policy, "-o", output, "--force"],
                    ["inspect", path],
                    ["verify", path, "--backend", "cpu", "--policy", policy, "--budget", "60%"],
                    ["verify", path, "--candidate", self.scores],
                ]
            )
        if kind == "report":
            return ["report", path, "--format", rng.choice(["table", "csv", "json"])]
        if kind == "scores":
            return rng.choice(
                [
                    ["verify", self.dump, "--candidate", path],
                    ["sweep", self.dump, "--scores", path, "--budget", "60%", "-o", output, "--force"],
                ]
            )
        return ["sweep", self.dump, "--config", path, "-o", output, "--force"]

    def case(self, seed: int, keep: Path | None) -> tuple[str, str]:
        """Runs one case; returns (what it was, what is wrong with it or ""), and counts its kind and exit code."""
        rng = random.Random(seed)
        kind = rng.choice(["dump", "dump", "dump", "report", "scores", "config"])
        place = Path(tempfile.mkdtemp(dir=self.folder))
        path = place / getattr(self, kind).name
        shutil.copyfile(getattr(self, kind), path)
        done = []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            structured = kind != "config" and not done and rng.random() < 0.6
            done.append((damage.damage_structure if structured else damage.damage_bytes)(path, rng))
        output = place / "output.h5"
        output.write_bytes(OLD)
        command = [self.binary, *map(str, self.commands(rng, {kind: path}, output))]
        what = f"seed {seed}: {kind}, {', '.join(done)}: {command[1]}"
        self.kinds[kind] += 1
        fault = self.run(command, place, path, output)
        if fault and keep:
            shutil.copytree(place, keep / str(seed), dirs_exist_ok=True)
        shutil.rmtree(place)
        return what, fault

    def run(self, command: list, place: Path, path: Path, output: Path) -> str:
        """What is wrong with the command's behaviour; "" where nothing is."""
        try:
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, cwd=place)
        except subprocess.TimeoutExpired:
            return f"did not end in {SECONDS} s"
        self.codes[done.returncode] += 1
        if done.returncode not in CODES:
            return f"exit code {done.returncode}: {done.stderr[-300:].decode(errors='replace')}"
        errors = done.stderr.decode(errors="replace")
        if "HDF5-DIAG" in errors or "terminate called" in errors or len(errors.splitlines()) > 40:
            return f"stderr: {errors[:300]}"
        if done.returncode in (2, 3) and not errors.strip():
            return f"exit code {done.returncode} without a word"
        left = {entry.name for entry in place.iterdir()} - {path.name, output.name}
        if left:
            return f"left behind: {', '.join(sorted(left))}"
        if output.read_bytes() != OLD:
            if done.returncode != 0:
                return f"exit code {done.returncode}, and the old output is gone"
            with h5py.File(output) as file:
                file.visititems(lambda name, item: item[()] if isinstance(item, h5py.Dataset) else None)
        elif done.returncode == 0 and "-o" in command:
            return "exit code 0, and no output was written"
        return ""


def main() -> int:
    """Runs the cases, prints a summary, and returns 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    faults = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        fuzzer = Fuzzer(str(Path(os.environ.get("LAPROX_BIN", "build/release/laprox")).resolve()), Path(folder))
        for what, fault in pool.map(lambda seed: fuzzer.case(seed, given.keep), range(given.seed, given.seed + given.count)):
            if fault:
                faults += 1
                print(f"{what}\n    {fault}", flush=True)
    kinds = ", ".join(f"{count} of {kind}" for kind, count in sorted(fuzzer.kinds.items()))
    codes = ", ".join(f"{count} x {code}" for code, count in sorted(fuzzer.codes.items()))
    print(f"{given.count} cases ({kinds}; exit codes {codes}): {faults} failed")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
