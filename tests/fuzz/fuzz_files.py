#!/usr/bin/env python3
"""Attack the command line with damaged files: dumps, reports, score files and masks, configurations and lists of dumps.

usage: LAPROX_BIN=build/release/laprox fuzz_files.py [--count N] [--seed S] [--kind KIND] [--jobs N] [--keep FOLDER]

Each case is a sound file after one to three changes, which know its structure or only its bytes, given to one command. Of every
case is asked (verdict.py): a documented exit code and no signal; an end in time and within 1 GiB of memory; a word on stderr where
it fails, and no error stack of HDF5's; no NaN printed or written with exit code 0; an output that is whole, or as it was before;
and nothing left behind. A case is a function of its seed alone: --seed with the printed number and --count 1 shows it again. The
files of failing cases are kept, each in a folder with its number and with the command.

The exporter's inputs (arrays in .npz, prompts, model configurations) are attacked by fuzz_exporter.py.
"""

import argparse
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from byte_damage import damage_bytes
from commands import KINDS, command
from sound import SoundFiles
from structure_damage import damage_structure, structure_spots
from text_damage import damage_text
from verdict import Outcome, fault

SECONDS = 60
TEXTS = ("config", "list")


def memory_limit(binary: str) -> list[str]:
    """Words before a command that bound its memory; none where a build cannot live with a limit, as with sanitizers."""
    words = ["prlimit", f"--data={1 << 30}", "--core=0"]
    try:
        if subprocess.run([*words, binary, "--version"], capture_output=True).returncode == 0:
            return words
    except FileNotFoundError:
        pass
    return []


class Fuzzer:
    def __init__(self, binary: str, folder: Path, kind: str | None, keep: Path):
        self.binary, self.folder, self.kind, self.keep = binary, folder, kind, keep
        (folder / "sound").mkdir()
        self.sound = SoundFiles(binary, folder / "sound")
        self.limit = memory_limit(binary)
        self.spots: dict[Path, list[tuple[int, int]]] = {}

    def damage(self, path: Path, kind: str, rng: random.Random, spots: list[tuple[int, int]] | None) -> list[str]:
        """Damages the copy at `path`; the names of what was done."""
        done = []
        if kind in TEXTS and rng.random() < 0.8:
            text = path.read_text()
            for _ in range(rng.choice([1, 1, 2, 3])):
                text, how = damage_text(text, rng)
                done.append(how)
            path.write_text(text, newline="")
        elif kind not in TEXTS and rng.random() < 0.55:
            done = damage_structure(path, rng)
        if not done or rng.random() < 0.1:
            content = path.read_bytes()
            for _ in range(rng.choice([1, 1, 1, 2, 3])):
                content, how = damage_bytes(content, rng, spots)
                done.append(how)
            path.write_bytes(content)
        return done

    def case(self, seed: int) -> tuple[str, list[str], str, int | None, str]:
        """Runs one case: (kind, damage, command's name, exit code, fault or "")."""
        rng = random.Random(seed)
        kind = self.kind or rng.choice(KINDS)
        source = self.sound.choose(kind, rng)
        place = self.folder / str(seed)
        place.mkdir()
        path, output = place / f"damaged{source.suffix}", place / "output.h5"
        shutil.copyfile(source, path)
        if kind not in TEXTS and source not in self.spots:
            self.spots[source] = structure_spots(source)
        done = self.damage(path, kind, rng, self.spots.get(source))
        words = command(kind, path, self.sound, output, rng)
        if rng.random() < 0.5:
            shutil.copyfile(self.sound.scores[1] if words[0] == "score" else self.sound.report_of_other, output)
        code, wrong = self.run(words, place, path if "--resume" in words else output)
        if wrong:
            kept = self.keep / str(seed)
            shutil.copytree(place, kept, dirs_exist_ok=True)
            (kept / "command.txt").write_text(f"seed {seed}: {', '.join(done)}\n{shlex.join([self.binary, *words])}\n{wrong}\n")
        shutil.rmtree(place)
        return kind, done, words[0], code, wrong

    def run(self, words: list[str], place: Path, output: Path) -> tuple[int | None, str]:
        """(exit code, what is wrong with the command's behaviour or "")."""
        before = {entry.name: entry.read_bytes() for entry in place.iterdir()}
        try:
            done = subprocess.run([*self.limit, self.binary, *words], capture_output=True, timeout=SECONDS, cwd=place)
        except subprocess.TimeoutExpired:
            return None, f"did not end in {SECONDS} s"
        return done.returncode, fault(Outcome(done.returncode, done.stdout, done.stderr, words, place, before, output))


def table(title: str, counts: dict[str, Counter]) -> str:
    """One line for each name: how many cases, and their exit codes."""
    lines = [title]
    for name, codes in sorted(counts.items()):
        parts = ", ".join(f"{count} x {code}" for code, count in sorted(codes.items(), key=str))
        lines.append(f"  {name:18} {codes.total():7}: {parts}")
    return "\n".join(lines)


def main() -> int:
    """Runs the cases, prints a summary, and returns 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--kind", choices=sorted(set(KINDS)))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--verbose", action="store_true", help="a line for every case")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for the files of failing cases")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["GOMP_SPINCOUNT"] = "1000"  # so that laprox does not start itself again to set it
    by_kind: dict[str, Counter] = {}
    by_damage: dict[str, Counter] = {}
    failed = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        binary = str(Path(os.environ.get("LAPROX_BIN", "build/release/laprox")).resolve())
        fuzzer = Fuzzer(binary, Path(folder), given.kind, given.keep.resolve())
        seeds = range(given.seed, given.seed + given.count)
        for seed, (kind, done, name, code, wrong) in zip(seeds, pool.map(fuzzer.case, seeds)):
            by_kind.setdefault(kind, Counter())[code] += 1
            for how in done:
                by_damage.setdefault(how, Counter())[code] += 1
            failed += bool(wrong)
            if wrong or given.verbose:
                print(
                    f"seed {seed}: {kind}, {', '.join(done)}: {name}, exit code {code}{wrong and chr(10)}    {wrong}".rstrip(),
                    flush=True,
                )
    print(table("exit codes by kind of file:", by_kind))
    print(table("exit codes by damage:", by_damage))
    print(f"{given.count} cases from seed {given.seed}: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
