"""An evaluation's report: prompt by prompt in memory, and on disk after each of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from .._core import version
from .._errors import DumpError, FileError, UsageError
from .._files import reason, replacing
from .resume import check_cells, check_settings, check_tasks
from .settings import Settings, described

if TYPE_CHECKING:
    from .evaluation import Result
    from .model import Model
    from .tasks import Task

FORMAT, VERSION = "laprox-eval", 1
CELLS = ("prompt", "policy", "budget")
#: name: (dimensions, meaning). Figures of cells that a prompt lacks are NaN.
VARIABLES = {
    "kl": (CELLS, "Mean KL divergence from the full cache's next-token distributions over its own continuation, in nats"),
    "kl_to_end": (CELLS, "Mean KL divergence up to the token that ends the full cache's text, in nats"),
    "kl_token": ((*CELLS, "token"), "KL divergence from the full cache's next-token distribution at each token, in nats"),
    "agreement": (CELLS, "Share of the continuation's tokens at which the most probable token is the full cache's"),
    "score": (CELLS, "The task's score of the answer that the model gives, 0 to 1"),
    "answer_nll": (CELLS, "Mean negative log-likelihood of the given answer's tokens, in nats; exp of it is the perplexity"),
    "model_relative_error": (CELLS, "laprox's open-loop error of the layer outputs, pooled over layers and queries"),
    "model_residual_error": (
        CELLS,
        "laprox's open-loop error over the norm of the residual stream, pooled over layers and queries",
    ),
    "kept_count": (CELLS, "Kept entries of all layers and KV heads"),
    "on_budget": (CELLS, "1 where the caches keep the budget, so that the policy may be the best"),
    "full_score": (("prompt",), "The task's score with the full cache"),
    "full_answer_nll": (("prompt",), "Mean negative log-likelihood of the given answer with the full cache, in nats"),
    "prompt_tokens": (("prompt",), "Tokens of the prompt, which the cache holds"),
    "tokens_before_cut": (("prompt",), "Tokens of the prompt before max_tokens cut its middle out; else as many as prompt_tokens"),
    "question_tokens": (("prompt",), "Tokens of the question that follows the cache"),
    "tokens_to_end": (("prompt",), "Tokens that kl_to_end is the mean of: fewer than those of kl where the text ends before"),
    "max_new_tokens": (("prompt",), "The most tokens of an answer"),
    "text": (CELLS, "What the model said"),
    "full_text": (("prompt",), "What the model said with the full cache"),
    "task": (("prompt",), "The set that the prompt belongs to"),
    "task_sha256": (("prompt",), "SHA-256 of the task: its prompt, question, answers, metric, length, chat, classes and facts"),
    "metric": (("prompt",), "How an answer is scored"),
}
STAGES = ("prefill", "record", "replay", "forced", "generate")


class Report:
    """Grows by one prompt at a time."""

    def __init__(self, model: Model, policies: list, budgets: list[str], settings: Settings):
        import torch
        import transformers

        self._policies, self._budgets = policies, budgets
        weights = next(model.network.parameters())
        self._asked = {**described(settings), **cut(model.max_tokens, model.hub), "dtype": str(weights.dtype)[6:]}
        self._asked |= {"model": model.network.name_or_path or model.name, "weights": model.weights}
        self._attributes = {
            "format": FORMAT,
            "version": VERSION,
            "model": self._asked["model"],
            "settings": json.dumps(self._asked, sort_keys=True),
            "schedule": settings.schedule,
            "device": str(weights.device),
            "tool_version": f"laprox {version()}, transformers {transformers.__version__}, torch {torch.__version__}",
        }
        self._rows: list[dict[str, Any]] = []

    @property
    def done(self) -> set[str]:
        """The ids of the prompts that are in it."""
        return {row["id"] for row in self._rows}

    def add(self, task: Task, result: Result) -> None:
        """One more prompt."""
        text = np.vectorize(_storable, otypes=[object])(result.text)
        row = {**result.cells, **result.prompt, "text": text, "id": task.id, "task": task.task, "metric": task.metric}
        row |= {"full_text": _storable(str(result.prompt["full_text"])), "task_sha256": task.sha256}
        row |= {"max_new_tokens": task.max_new_tokens, **{f"seconds_{stage}": result.seconds[stage] for stage in STAGES}}
        self._rows.append(row | {f"fact_{name}": float(value) for name, value in task.facts.items()})

    def resume(self, path: Path, tasks: Iterable[Task]) -> None:
        """Takes over what a file holds.

        Raises UsageError where it was made with other settings, policies or budgets, or a task of the same id was another one.
        """
        before = open_evaluation(path)
        check_cells(path, before, self._policies, self._budgets)
        check_settings(path, before, self._asked)
        check_tasks(path, before, tasks)
        for number in range(before.sizes["prompt"]):
            one = before.isel(prompt=number)
            row: dict[str, Any] = {"id": str(one.prompt.values)}
            for name, variable in one.data_vars.items():
                if name in ("policy_spec", "is_oracle") or (
                    variable.ndim == 0 and variable.dtype.kind == "f" and np.isnan(variable.values)
                ):
                    continue
                row[str(name)] = _plain(variable.values)
            self._rows.append(row)

    def dataset(self) -> xr.Dataset:
        """Everything so far."""
        shape = (len(self._policies), len(self._budgets))
        ids = np.array([row["id"] for row in self._rows], dtype=object)
        tokens = max((row["kl_token"].shape[-1] for row in self._rows), default=0)
        sizes = {"policy": shape[0], "budget": shape[1], "token": tokens}
        variables: dict[str, Any] = {
            "policy_spec": ("policy", np.array([p.spec for p in self._policies], dtype=object)),
            "is_oracle": ("policy", np.array([p.queries == "judged" for p in self._policies], dtype=np.int8)),
        }
        extra = sorted({name for row in self._rows for name in row if name.startswith(("seconds_", "fact_"))})
        known = {**VARIABLES, **{name: (("prompt",), _meaning(name)) for name in extra}}
        for name, (dimensions, meaning) in known.items():
            if any(name in row for row in self._rows):
                values = [_filled(row.get(name), [sizes[d] for d in dimensions[1:]]) for row in self._rows]
                variables[name] = (dimensions, np.stack(values), {"long_name": meaning})
        coordinates = {"prompt": ids, "policy": np.array([p.label for p in self._policies], dtype=object)}
        coordinates["budget"] = np.array(self._budgets, dtype=object)
        return xr.Dataset(variables, coordinates, self._attributes)


def cut(max_tokens: int | None, hub: dict[str, Any]) -> dict[str, Any]:
    """What decides the figures beside Settings and is known before the model is: the prompts' length and the model's revision."""
    return {"max_tokens": max_tokens or 0, "revision": hub.get("revision") or "main"}


def _storable(text: str) -> str:
    """HDF5 takes no NUL in a text, and a model may say one."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _plain(values: np.ndarray) -> Any:
    """As a result has it: numbers, and texts as Python's, whatever type the file's reader chose for them."""
    if values.dtype.kind not in "fiub":
        values = values.astype(object)
        return str(values[()]) if values.ndim == 0 else values
    return values[()] if values.ndim == 0 else values


def _meaning(name: str) -> str:
    kind, _, what = name.partition("_")
    return f"Seconds of the stage {what}" if kind == "seconds" else f"Of the task: {what}"


def _filled(values: Any, sizes: list[int]) -> np.ndarray:
    """The values in an array of these sizes, NaN where there are none."""
    if isinstance(values, str) or (isinstance(values, np.ndarray) and values.dtype == object):
        return np.asarray(values, dtype=object)
    result = np.full(sizes, np.nan)
    if values is not None:
        found = np.asarray(values, dtype=float)
        result[tuple(slice(0, n) for n in found.shape)] = found
    return result


def save_evaluation(report: xr.Dataset, path: str | Path) -> None:
    """Writes a report, in the place of an older one at once: whoever reads the file sees one or the other whole.

    Raises FileError where it cannot be written.
    """
    packed = {n: {"zlib": True} for n, v in report.data_vars.items() if v.dtype.kind == "f" and v.ndim > 2}
    with replacing(path) as temporary:
        report.to_netcdf(temporary, engine="h5netcdf", encoding=packed)


def open_evaluation(path: str | Path) -> xr.Dataset:
    """Reads a report that laprox-eval wrote. Raises FileError or DumpError."""
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path}: no such file" if not path.exists() else f"{path}: expected a file, found something else")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # xarray's, of files that are no reports
            with xr.open_dataset(path, engine="h5netcdf") as file:
                report = file.load()
    except Exception as error:  # whatever a damaged file makes HDF5, h5netcdf and xarray raise
        raise DumpError(f"{path}: expected a report of laprox-eval, found something else ({reason(error)})") from error
    if report.attrs.get("format") != FORMAT:
        raise DumpError(f"{path}: / attribute format: expected {FORMAT!r}, found {report.attrs.get('format')!r}")
    _check(path, report)
    return report


def _check(path: Path, report: xr.Dataset) -> None:
    """Raises DumpError where a report is not as laprox-eval writes it."""
    for name in CELLS:
        if name not in report.coords or report[name].dims != (name,):
            raise DumpError(f"{path}: /{name}: expected the names of each {name}, found none")
    for name, (dimensions, _) in VARIABLES.items():
        if name in report and report[name].dims != dimensions:
            found = ", ".join(map(str, report[name].dims))
            raise DumpError(f"{path}: /{name}: expected the dimensions {', '.join(dimensions)}, found {found}")
    lacking = [name for name in ("kl", "policy_spec") if name not in report]
    if lacking:
        raise DumpError(f"{path}: /{lacking[0]}: expected it in a report of laprox-eval, found none")
    try:
        settings = json.loads(report.attrs["settings"])
    except (KeyError, TypeError, ValueError):
        settings = None
    if not isinstance(settings, dict):
        raise DumpError(f"{path}: / attribute settings: expected a JSON object, found {report.attrs.get('settings')!r:.60}")


def _decisive(report: xr.Dataset) -> dict[str, Any]:
    """The settings without which figures cannot stand in one table; where prompts are cut and what is generated may differ."""
    settings = json.loads(report.attrs["settings"])
    weights = settings.get("weights") or settings.get("model")  # older reports have the name alone
    return {"weights": weights, **{name: settings.get(name) for name in ("dtype", "tokens", "schedule")}}


def open_evaluations(paths: Sequence[str | Path]) -> xr.Dataset:
    """Several reports over other prompts as one. Raises UsageError where they were made differently or share a prompt."""
    reports = [open_evaluation(path) for path in paths]
    first = reports[0]
    for path, report in zip(paths[1:], reports[1:], strict=True):
        same = all(list(report[name].values) == list(first[name].values) for name in ("policy", "budget"))
        if not same or _decisive(report) != _decisive(first):
            raise UsageError(f"{path}: was made with other policies, budgets or settings than {paths[0]}")
    joined = reports[0] if len(reports) == 1 else xr.concat(reports, "prompt", data_vars="minimal", combine_attrs="override")
    if len(set(joined.prompt.values)) != joined.sizes["prompt"]:
        raise UsageError("the reports share prompts, which would count twice")
    return joined
