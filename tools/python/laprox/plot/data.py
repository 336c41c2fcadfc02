"""What the plots show, as plain arrays."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import xarray as xr

from .._errors import UsageError
from .style import check_label


@dataclass(frozen=True)
class Curve:
    """One policy over budgets: the mean over prompts, and the least and the largest of them."""

    policy: str
    mean: np.ndarray  # [budget]
    low: np.ndarray  # [budget]
    high: np.ndarray  # [budget]


def budget_axis(report: xr.Dataset) -> tuple[np.ndarray, list[str]]:
    """Where budgets lie on an axis (tokens per KV head, mean over prompts), ascending order assumed by no one; and their labels."""
    return report.budget_tokens.mean("dump").values, [str(value) for value in report.budget.values]


def curves(report: xr.Dataset, metric: str) -> list[Curve]:
    """`metric` [dump, policy, budget] of every policy that has a positive value; budgets by size."""
    if metric not in report:
        hint = "; a report has regret only where both an oracle and random took part" if "regret" in metric else ""
        raise UsageError(f"the report has no {metric}{hint}")
    order = np.argsort(budget_axis(report)[0], kind="stable")
    values = report[metric].transpose("policy", "dump", "budget").values[:, :, order]
    found = []
    for name, rows in zip(report.policy.values, values, strict=True):
        rows = np.where(np.isfinite(rows), rows, np.nan)
        if np.isnan(rows).all() or np.nanmax(rows) <= 0:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # budgets at which no prompt has a figure
            found.append(Curve(str(name), np.nanmean(rows, 0), np.nanmin(rows, 0), np.nanmax(rows, 0)))
    return found


def middle_budget(report: xr.Dataset) -> str:
    """The budget that plots of one budget show unless another is asked for."""
    order = np.argsort(budget_axis(report)[0], kind="stable")
    return str(report.budget.values[order[(len(order) - 1) // 2]])


def kept_matrix(report: xr.Dataset, budget: str, dump: int = 0) -> np.ndarray:
    """bool [policy, layer * kv_head, C]: which context tokens every policy keeps."""
    check_label(report, "budget", budget)
    if "kept_tokens" not in report:
        raise UsageError("this report has no kept tokens; make it with save_kept=True (--save-kept on the command line)")
    b = list(map(str, report.budget.values)).index(budget)
    dimensions = ("dump", "policy", "budget", "layer", "kv_head")
    starts = report.kept_start.transpose(*dimensions).values[dump, :, b]
    counts = report.kept_count.transpose(*dimensions).values[dump, :, b]
    tokens, context = report.kept_tokens.values, int(report.context_length.values[dump])
    mask = np.zeros((*starts.shape, context), bool)
    for cell in np.ndindex(*starts.shape):
        if starts[cell] >= 0:
            mask[cell][tokens[starts[cell] : starts[cell] + counts[cell]]] = True
    return mask.reshape(starts.shape[0], -1, context)


def overlap(report: xr.Dataset, budget: str, dump: int = 0) -> np.ndarray:
    """Jaccard index [policy, policy] of the kept (layer, KV head, token) entries: those in both over those in either."""
    mask = kept_matrix(report, budget, dump)
    flat = mask.reshape(mask.shape[0], -1).astype(np.float32)
    both = flat @ flat.T
    size = np.diag(both)
    either = size[:, None] + size[None, :] - both
    return np.divide(both, either, out=np.ones_like(both), where=either > 0)


def kept_along_prompt(report: xr.Dataset, budget: str, dump: int = 0, bins: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Shares [policy, bin] of (layer, KV head, token) entries kept in each stretch of the prompt, and the edges [bin + 1]."""
    share = kept_matrix(report, budget, dump).mean(1)
    edges = np.unique(np.linspace(0, share.shape[1], min(bins, share.shape[1]) + 1).astype(int))
    sums = np.add.reduceat(share, edges[:-1], axis=1)
    return sums / np.diff(edges), edges
