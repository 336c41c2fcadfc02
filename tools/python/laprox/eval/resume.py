"""What a report may go on with: the same policies, budgets, settings and prompts as before."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import xarray as xr

from .._errors import UsageError
from .tasks import Task

ANEW = "--force begins anew"


def check_cells(path: Path, before: xr.Dataset, policies: list, budgets: list[str]) -> None:
    """Raises UsageError where the report `before` has other policies or budgets."""
    labels = [policy.label for policy in policies]
    for name, mine in (("policy", labels), ("budget", budgets)):
        theirs = [str(value) for value in before[name].values]
        if theirs != mine:
            raise UsageError(f"{path}: was made with another list of {name} values: {_unlike(theirs, mine)}; {ANEW}")
    for policy, spec in zip(policies, before.policy_spec.values, strict=True):
        if policy.spec != str(spec):
            raise UsageError(f"{path}: policy {policy.label}: was {spec}, now {policy.spec}; {ANEW}")


def check_settings(path: Path, before: xr.Dataset, settings: dict[str, object]) -> None:
    """Raises UsageError where one of these settings was another, naming what differs. No word of a schedule: once."""
    theirs = {"schedule": "once", **json.loads(before.attrs["settings"])}
    mine = {**settings, "schedule": settings.get("schedule", "once")}
    unlike = [f"{name}: {theirs.get(name, 'unknown')}, now {mine[name]}" for name in sorted(mine) if theirs.get(name) != mine[name]]
    if unlike:
        raise UsageError(f"{path}: was made with other settings: {'; '.join(unlike)}; {ANEW}")


def check_tasks(path: Path, before: xr.Dataset, tasks: Iterable[Task]) -> None:
    """Raises UsageError where a task of a prompt's id in the report is another one than that was."""
    if "task_sha256" not in before:
        raise UsageError(
            f"{path}: an older laprox-eval wrote it, without what tells whether its prompts are the same as these; {ANEW}"
        )
    theirs = dict(zip(map(str, before.prompt.values), map(str, before.task_sha256.values), strict=True))
    for task in tasks:
        if theirs.get(task.id, task.sha256) != task.sha256:
            raise UsageError(
                f"{path}: the prompt {task.id!r} was another one: its text, answers, metric, length, chat, classes or facts "
                f"differ; give the tasks of before, or {ANEW}"
            )


def _unlike(theirs: list[str], mine: list[str]) -> str:
    """What two lists do not share."""
    gone, more = ([item for item in a if item not in b] for a, b in ((theirs, mine), (mine, theirs)))
    said = [f"{words} {', '.join(items)}" for words, items in (("also", gone), ("without", more)) if items]
    return " and ".join(said) or f"in the order {', '.join(theirs)}"
