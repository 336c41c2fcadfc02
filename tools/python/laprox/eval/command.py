"""What `laprox-eval` does before it evaluates: everything that needs no model is checked before one is loaded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from .._errors import FileError, UsageError
from .._files import check_kind, check_output
from .._layer import Layer, source_of_layers
from .._policies import parse_budgets, parse_many
from .._replay import backend_of
from .needle import check_grid, needle_tasks
from .settings import Settings, described
from .tasks import Task, read_file, read_tasks

if TYPE_CHECKING:
    import xarray

    from .model import Model
    from .run import Run

DTYPES = ("float32", "float16", "bfloat16")
PROBE = 100_000  # tokens: budgets are tried on an imaginary prompt as long as real ones get


def prepared(command: str, parsed: argparse.Namespace) -> Run:
    """The run that the command line asks for. Raises UsageError, FileError, BackendError, and what loading a model raises."""
    output = Path(parsed.output)
    _check_output(output, parsed)
    policies, budgets, settings = _asked(parsed)
    tasks = _part(read_tasks(parsed.tasks, parsed.longbench)[: parsed.limit], parsed) if command == "tasks" else None
    haystack = _haystack(parsed) if command == "needle" else ""
    before = _before(output, parsed, policies, budgets, settings, tasks or [])
    model = _model(parsed)
    if tasks is None:
        tasks = _part(_needle(model, haystack, parsed), parsed)
    if not tasks:
        raise UsageError(
            f"--part {parsed.part[0]}/{parsed.part[1]}: there are fewer tasks than parts, and none is left for this one"
        )
    from .run import Run

    run = Run(model, tasks, policies, budgets, settings, output, quiet=parsed.quiet)
    if before is not None:
        run.resume()
    return run


def _check_output(output: Path, parsed: argparse.Namespace) -> None:
    if (parsed.model is None) == (parsed.packaged is None):
        raise UsageError("expected either a model or --packaged")
    if output.is_file() and not (parsed.resume or parsed.force):
        raise UsageError(f"{output}: exists; --resume goes on with it, --force begins anew")
    read = [getattr(parsed, name, None) for name in ("tasks", "haystack", "longbench", "model")]
    check_output(output, [path for path in read if path is not None])
    if output.is_file() and parsed.force:
        check_kind(output, "laprox-eval")


def _asked(parsed: argparse.Namespace) -> tuple[list, list[str], Settings]:
    """Policies, budgets and settings."""
    if parsed.dtype not in (None, *DTYPES):
        raise UsageError(f"dtype: expected {', '.join(DTYPES)}, found {parsed.dtype!r}")
    policies, budgets = parse_many(",".join(parsed.policy)), parse_budgets(parsed.budget)
    settings = Settings(
        tokens=parsed.tokens,
        generate=not parsed.no_generate,
        max_new_tokens=parsed.max_new_tokens,
        physical=parsed.physical,
        schedule=parsed.schedule,
        backend=parsed.backend,
        threads=parsed.threads,
    )
    ones = np.ones((1, PROBE, 1), np.float32)
    probe = source_of_layers([Layer(ones[:, :1], ones, ones, np.ones((1, 1), np.float32), context_length=PROBE - 1)])
    for budget in budgets:
        _core.DecodingBudget(budget, probe, parsed.schedule if settings.interval else "step")
    backend_of(parsed.backend, parsed.threads, [])
    return policies, budgets, settings


def _haystack(parsed: argparse.Namespace) -> str:
    """The text, once it and the numbers are found fit."""
    try:
        text = read_file(Path(parsed.haystack)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileError(f"{parsed.haystack}: expected UTF-8 text ({error})") from error
    if parsed.max_tokens and max(parsed.lengths) > parsed.max_tokens:
        raise UsageError(
            f"--lengths: expected at most --max-tokens, {parsed.max_tokens}, found {max(parsed.lengths)}: needles would be cut out"
        )
    check_grid(text, parsed.depths, parsed.needles, parsed.distractors)
    for name, values in (("lengths", parsed.lengths), ("depths", [f"{depth:g}" for depth in parsed.depths])):
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise UsageError(f"{name}: {twice[0]} is given twice")
    return text


def _before(
    output: Path, parsed: argparse.Namespace, policies: list, budgets: list[str], settings: Settings, tasks: list[Task]
) -> xarray.Dataset | None:
    """The report to go on with, if it can be so as far as one can tell without the model."""
    if not (parsed.resume and output.exists()):
        return None
    from .report import cut, open_evaluation
    from .resume import check_cells, check_settings, check_tasks

    before = open_evaluation(output)
    check_cells(output, before, policies, budgets)
    check_settings(output, before, {**described(settings), **cut(parsed.max_tokens, _hub(parsed))})
    check_tasks(output, before, tasks)
    return before


def _hub(parsed: argparse.Namespace) -> dict[str, Any]:
    return {"trust_remote_code": parsed.trust_remote_code, "revision": parsed.revision or "main"}


def _part(tasks: list[Task], parsed: argparse.Namespace) -> list[Task]:
    return tasks[parsed.part[0] - 1 :: parsed.part[1]] if parsed.part else tasks


def _model(parsed: argparse.Namespace) -> Model:
    import torch
    from laprox_dump.checkpoint import packaged
    from laprox_dump.cli import quiet_libraries

    from .model import load

    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    quiet_libraries(parsed.quiet or not sys.stderr.isatty())
    name = packaged(parsed.packaged) if parsed.packaged else parsed.model
    return load(name, dtype=parsed.dtype, device=parsed.device, max_tokens=parsed.max_tokens, **_hub(parsed))


def _needle(model: Model, haystack: str, parsed: argparse.Namespace) -> list[Task]:
    return needle_tasks(
        haystack,
        parsed.lengths,
        parsed.depths,
        model.count_tokens,
        needles=parsed.needles,
        distractors=parsed.distractors,
        samples=parsed.samples,
        chat=not parsed.no_chat,
        apart=parsed.question_apart,
        seed=parsed.seed,
    )
