"""The evaluation of a model's prompts under many policies and budgets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from laprox_dump.context import check_length
from laprox_dump.decode import greedy

from .. import _core, _replay
from .._errors import UsageError
from .._layer import Layer, source_of_layers
from .._policies import PolicyLike, parse_budgets, parse_many
from .cuts import Cell, CutCache, check_layers
from .evicted import PromptLayer, SharedCache
from .loop import Loop, divergence
from .model import Model
from .record import record
from .settings import Settings
from .tasks import Task, check_ids

if TYPE_CHECKING:
    import xarray

ANSWER = 64  # tokens of a given answer that are read


@dataclass
class Result:
    """One prompt's figures: arrays [policies, budgets] by name (kl_token: and tokens), and what belongs to the prompt."""

    cells: dict[str, np.ndarray]
    text: np.ndarray
    prompt: dict[str, object]
    seconds: dict[str, float] = field(default_factory=dict)


def evaluate(
    model: Model,
    tasks: Iterable[Task],
    policies: PolicyLike | Iterable[PolicyLike],
    budgets: str | int | Sequence[str | int],
    settings: Settings | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> xarray.Dataset:
    """Evaluates every task under every policy and budget: an xarray Dataset with the dimensions prompt, policy, budget, token.

    Each variable's attribute long_name says what it is; docs/eval.md defines them. `progress(stage, done, total)` hears of every
    stage of every prompt. Raises UsageError, and what laprox_dump raises where the model cannot be recorded.
    """
    from .report import Report

    parsed, labels = parse_many(policies), parse_budgets(budgets)
    settings, tasks = settings or Settings(), _checked(tasks)
    report = Report(model, parsed, labels, settings)
    for number, task in enumerate(tasks):
        try:
            report.add(task, evaluate_prompt(model, task, parsed, labels, settings))
        except UsageError as error:
            raise UsageError(f"the prompt {task.id!r}: {error}") from error
        if progress:
            progress(task.id, number + 1, len(tasks))
    return report.dataset()


def _checked(tasks: Iterable[Task]) -> list[Task]:
    found = list(tasks) if isinstance(tasks, Iterable) and not isinstance(tasks, (str, bytes, dict)) else [tasks]
    for task in found:
        if not isinstance(task, Task):
            raise UsageError(
                f"tasks: expected laprox.eval.Task objects, found {task!r:.40}; laprox.eval.read_tasks reads them from a file"
            )
    if not found:
        raise UsageError("tasks: expected at least one, found none")
    check_ids(found)
    return found


def evaluate_prompt(model: Model, task: Task, policies: list, budgets: list[str], settings: Settings) -> Result:
    """One prompt under every policy and budget. Raises what recording and laprox.sweep raise."""
    clock = _Clock(model.device)
    tokens = model.encode(task)
    prompt, question = tokens.context, tokens.question
    answer = _answer(model, task)
    longest = max(settings.tokens, _most(task, settings), len(answer))
    check_length(model.network, len(prompt), len(prompt) + len(question), longest, "--tokens or --max-new-tokens")
    with torch.inference_mode():
        continuation = greedy(model.network, torch.cat([prompt, question]), settings.tokens, stop_at_eos=False)
        clock.lap("prefill")
        later = torch.cat([question, continuation])
        on_gpu = model.device.type == "cuda" and settings.backend == "cuda"
        ids = torch.cat([prompt, later[:-1]])
        layers, caches = record(task.id, model.network, ids, len(prompt), policies, on_gpu, settings.interval > 0)
        clock.lap("record")
        if settings.interval:
            check_layers(layers, len(ids), settings.schedule)
        sweep = _replay.sweep(
            layers,
            policies,
            budgets,
            save_kept=True,
            schedule=settings.schedule,
            segments=0,
            backend=settings.backend,
            threads=settings.threads,
        )
        cells = _cells(layers, policies, budgets, settings) if settings.interval else []
        del layers
        clock.lap("replay")
        loop = _loop(model, caches, _masks(sweep, caches), cells, settings)
        before = 0 if len(question) else 1  # the prompt's own last query predicts the first token
        cells = _forced(loop, later, len(continuation) - before)
        to_end = _to_end(continuation, model.ends) - before
        cells["kl_to_end"] = cells["kl_token"][:, :to_end].mean(-1) if to_end else np.full(loop.count, np.nan)
        cells["answer_nll"] = _answer_nll(loop, answer, question)
        clock.lap("forced")
        texts = [""] * loop.count
        if settings.generate and task.answers:
            start = question if len(question) else continuation[:1]
            first = None if len(question) else continuation[0]
            texts = [model.decode(row) for row in loop.free(start, first, _most(task, settings), model.ends)]
        clock.lap("generate")
    cells["score"] = np.array([task.score(text) if settings.generate else np.nan for text in texts])
    shape = (len(policies), len(budgets))
    figures = {name: values[1:].reshape(*shape, *values.shape[1:]) for name, values in cells.items()}
    for name in ("model_relative_error", "model_residual_error", "kept_count", "on_budget"):
        if name in sweep:
            values = sweep[name].isel(dump=0).values
            figures[name] = values.reshape(*shape, -1).sum(-1) if name == "kept_count" else values
    facts = {
        "full_score": cells["score"][0],
        "full_answer_nll": cells["answer_nll"][0],
        "full_text": texts[0],
        "prompt_tokens": len(prompt),
        "tokens_before_cut": tokens.facts.get("tokens_before_cut", len(prompt)),
        "tokens_to_end": to_end,
        "question_tokens": len(question),
    }
    return Result(figures, np.array(texts[1:], dtype=object).reshape(shape), facts, clock.seconds)


def _to_end(continuation: torch.Tensor, ends: set[int]) -> int:
    """How many tokens there are up to the one that ends the text; all of them where none does."""
    return next((n for n, token in enumerate(continuation.tolist(), 1) if token in ends), len(continuation))


def _most(task: Task, settings: Settings) -> int:
    """The most tokens that a cell generates."""
    if not (settings.generate and task.answers):
        return 0
    return min(task.max_new_tokens, settings.max_new_tokens or task.max_new_tokens)


def _answer(model: Model, task: Task) -> torch.Tensor:
    """The tokens of the first given answer that are read."""
    return model.answer(task, task.answers[0])[:ANSWER] if task.answers else torch.empty(0, dtype=torch.long)


def _masks(sweep: xarray.Dataset, caches: list[PromptLayer]) -> list[torch.Tensor]:
    """[cells, H_kv, C] of every layer; the first cell keeps everything, the others are policies x budgets."""
    starts, counts = sweep.kept_start.values[0], sweep.kept_count.values[0]
    tokens, masks = sweep.kept_tokens.values, []
    for number, layer in enumerate(caches):
        heads = layer.keys.shape[0]
        mask = np.zeros((starts.shape[0] * starts.shape[1] + 1, heads, layer.context), bool)
        mask[0] = True
        for cell, (start, count) in enumerate(
            zip(
                starts[:, :, number].reshape(-1, starts.shape[-1]), counts[:, :, number].reshape(-1, counts.shape[-1]), strict=True
            ),
            1,
        ):
            for head in range(heads):
                mask[cell, head, tokens[start[head] : start[head] + count[head]]] = True
        masks.append(torch.from_numpy(mask).to(layer.keys.device))
    return masks


def _cells(layers: list[Layer], policies: list, budgets: list[str], settings: Settings) -> list[Cell]:
    """What each policy at each budget needs to be cut again."""
    source, backend = source_of_layers(layers), _replay.backend_of(settings.backend, settings.threads, [layers])
    limits = [_core.DecodingBudget(budget, source, settings.schedule) for budget in budgets]
    summing = [policy for policy in policies if policy.sums_attention]
    sums = _core.attention_sums(source, summing[0], backend) if summing else None
    return [Cell(policy, limit, sums if policy.sums_attention else None) for policy in policies for limit in limits]


def _loop(model: Model, caches: list[PromptLayer], masks: list[torch.Tensor], cells: list[Cell], settings: Settings) -> Loop:
    if settings.interval:
        backend = _replay.backend_of("reference" if settings.backend == "reference" else "cpu", settings.threads, [])
        cache: SharedCache = CutCache(caches, masks, cells, settings.interval, backend)
    else:
        cache = SharedCache(caches, masks, settings.physical)
    return Loop(model.network, cache, masks[0].shape[0])


def _forced(loop: Loop, later: torch.Tensor, count: int) -> dict[str, np.ndarray]:
    """KL and agreement with the full cache, cell 0, at `count` tokens of its own continuation."""
    reference, divergences, same = None, [], []
    for _, logits in loop.forced(later[:-1], count):
        if reference is None:
            reference = torch.log_softmax(logits[0], -1)
        divergences.append(divergence(reference, logits).cpu())
        same.append((logits.argmax(-1) == reference.argmax(-1)).double().mean(-1).cpu())
    found = torch.cat(divergences)
    return {"kl": found.mean(-1).numpy(), "kl_token": found.numpy(), "agreement": torch.cat(same).numpy()}


def _answer_nll(loop: Loop, answer: torch.Tensor, question: torch.Tensor) -> np.ndarray:
    """Mean negative log-likelihood of the first given answer's tokens; NaN where there is none to predict.

    Where no question follows the cache, the answer's first token is predicted by the prompt's own last query, which no eviction
    touches: it does not count.
    """
    targets = answer if len(question) else answer[1:]
    if len(targets) == 0:
        return np.full(loop.count, np.nan)
    read = torch.cat([question, answer])
    losses = []
    for _, logits in loop.forced(read[:-1], len(targets)):
        wanted = targets.to(logits.device)[None, :, None].expand(logits.shape[0], -1, 1)
        losses.append(-torch.log_softmax(logits, -1).gather(-1, wanted)[..., 0].double().mean(-1).cpu())
    return torch.cat(losses).numpy()


class _Clock:
    """Seconds by stage."""

    def __init__(self, device: torch.device):
        self._device, self.seconds, self._last = device, {}, time.perf_counter()

    def lap(self, stage: str) -> None:
        """What ran since the last lap was `stage`."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[stage], self._last = now - self._last, now
