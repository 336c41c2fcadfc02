"""What is asked of a command that was given a damaged file."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

CODES = {0, 2, 3, 4, 5}  # 4: damaged numbers can leave the range of a backend's
LONGEST = 60  # lines on stderr
NOT_FORMED = ("regret", "residual_error", "model_regret", "model_residual_error")  # missing entries of a report


@dataclass
class Outcome:
    """How a command ended, what it printed, and the files around it."""

    code: int
    printed: bytes
    said: bytes
    command: list[str]
    place: Path
    files: dict[str, bytes]  # what lay there before, by name
    output: Path  # the file that the command may write


def of_messages(outcome: Outcome) -> str:
    said = outcome.said.decode(errors="replace")
    if outcome.code not in CODES:
        return f"exit code {outcome.code}: {said[-400:]}"
    if "HDF5-DIAG" in said or "terminate called" in said or "runtime error" in said or len(said.splitlines()) > LONGEST:
        return f"on stderr: {said[:400]}"
    if outcome.code in (2, 3, 4) and not said.strip():
        return f"exit code {outcome.code} without a word"
    if outcome.code == 4 and "out of memory" in said:
        return f"a small file takes all memory: {said[:400]}"
    return ""


def of_print(outcome: Outcome) -> str:
    """Numbers that are none are never printed as if nothing were wrong, and what a program reads is well formed."""
    if outcome.code != 0:
        return ""
    text = outcome.printed.decode(errors="replace")
    if found := re.search(r"(?<![\w-])-?nan\b", text, re.IGNORECASE):
        return f"exit code 0 and NaN: {text[max(0, found.start() - 100) : found.end()]}"
    if re.search(r"[\0-\x08\x0b-\x1f\x7f]", text):
        return "control characters on stdout"
    if "json" in outcome.command and "--format" in outcome.command:
        try:
            json.loads(text)
        except ValueError as error:
            return f"no JSON: {error}"
    return ""


def numbers_in(path: Path) -> str:
    """The name of an array of the written file that holds NaN where there must be a number, or ""."""
    bad: list[str] = []

    def look(name, item):
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f" and name not in NOT_FORMED:
            if np.isnan(item[()]).any():
                bad.append(name)
        elif isinstance(item, h5py.Dataset):
            item[()]

    with h5py.File(path) as file:
        file.visititems(look)
    return ", ".join(bad)


def of_files(outcome: Outcome) -> str:
    """A failed command changes no file; a successful one writes its output whole; none leaves anything else."""
    now = {entry.name: entry for entry in outcome.place.iterdir()}
    if left := set(now) - set(outcome.files) - {outcome.output.name}:
        return f"left behind: {', '.join(sorted(left))}"
    for name, content in outcome.files.items():
        if name not in now:
            return f"{name} is gone"
        changed = now[name].read_bytes() != content
        if changed and (outcome.code != 0 or name != outcome.output.name):
            return f"exit code {outcome.code}, and {name} has changed"
    if outcome.code != 0:
        return f"exit code {outcome.code}, and an output" if outcome.output.name in set(now) - set(outcome.files) else ""
    if "-o" not in outcome.command:
        return ""
    if not outcome.output.exists() or outcome.output.read_bytes() == outcome.files.get(outcome.output.name):
        return "" if "--resume" in outcome.command else "exit code 0, and no output was written"
    told = b"without numbers for some dumps" in outcome.said  # merge, where not every report has a figure
    bad = "" if told else numbers_in(outcome.output)
    return f"exit code 0, and NaN in {bad} of the output" if bad else ""


def fault(outcome: Outcome) -> str:
    """What is wrong with the command's behaviour; "" where nothing is."""
    return of_messages(outcome) or of_print(outcome) or of_files(outcome)
