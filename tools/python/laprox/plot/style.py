"""Colours that colour-blind readers can tell apart, and which of many policies are worth a colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from .._arguments import as_index, whole
from .._errors import UsageError

#: The palette of Okabe and Ito (2008) without its yellow, which is too light for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
OTHERS = "#C4C4C4"
REFERENCE = "#555555"
INK = "#222222"
#: Bright is much; readable in grey and by colour-blind readers.
HEAT = "viridis"


def ranked(report: xr.Dataset, metric: str = "model_relative_error") -> list[str]:
    """Policies from best to worst by the geometric mean of `metric` over prompts and budgets; those without error come last."""
    if metric not in report:
        raise UsageError(f"the report has no {metric}; it has {', '.join(sorted(map(str, report.data_vars)))}")
    values = report[metric].transpose("policy", ...).values.reshape(report.sizes["policy"], -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(values > 0, np.log(values), np.nan)
    means = np.array([np.nanmean(row) if np.isfinite(row).any() else np.inf for row in logs])
    return [str(report.policy.values[i]) for i in np.argsort(means, kind="stable")]


def references(report: xr.Dataset) -> list[str]:
    """Policies that are yardsticks and no competitors: oracles, random, and the one that evicts nothing."""
    oracles = report["is_oracle"].values if "is_oracle" in report else np.zeros(report.sizes["policy"])
    specs = report["policy_spec"] if "policy_spec" in report else report.policy
    scorers = [str(spec).split("+")[0] for spec in specs.values]
    return [
        str(name)
        for name, oracle, scorer in zip(report.policy.values, oracles, scorers, strict=True)
        if oracle == 1 or scorer in ("random", "full")
    ]


def colours(report: xr.Dataset, highlight: int | Sequence[str], metric: str = "model_relative_error") -> dict[str, str]:
    """The policies that get a colour: the best `highlight` ones, or exactly those named. Raises UsageError on an unknown name."""
    chosen = asked(report, highlight)
    if isinstance(chosen, int):
        yardsticks = set(references(report))
        chosen = [name for name in ranked(report, metric) if name not in yardsticks][:chosen]
    return coloured(chosen)


def coloured(names: Sequence[str]) -> dict[str, str]:
    """A colour for each, in their order."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def check_report(report: xr.Dataset) -> None:
    """Raises UsageError where it is no Dataset."""
    if not isinstance(report, xr.Dataset):
        raise UsageError(f"report: expected what laprox.open_report gives, found {type(report).__name__}")


def asked(report: xr.Dataset, highlight: int | str | Sequence[str]) -> int | list[str]:
    """How many policies shall be highlighted, or which. Raises UsageError where it is neither, or on an unknown name."""
    check_report(report)
    if isinstance(highlight, str):
        highlight = [highlight]
    if as_index(highlight) is not None or not isinstance(highlight, Sequence):
        return whole(highlight, "highlight", 0)
    for name in highlight:
        check_label(report, "policy", name)
    return list(highlight)


def check_label(report: xr.Dataset, dimension: str, label: str) -> None:
    """Raises UsageError where the report has no such policy or budget, or is none."""
    check_report(report)
    known = [str(value) for value in report[dimension].values]
    if label not in known:
        raise UsageError(f"the report has no {dimension} '{label}'; it has {', '.join(known)}")


def spread(positions: Sequence[float], gap: float, low: float = 0.0, high: float = 1.0) -> list[float]:
    """Moves labels apart until neighbours are `gap` apart, with the least sum of squared movements, and keeps them inside."""
    count = len(positions)
    if count > 1:
        gap = min(gap, (high - low) / (count - 1))
    order = np.argsort(positions, kind="stable")
    # Without their gaps the places only have to ascend: neighbours that do not are pooled at their mean.
    pools: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        mean, size = float(positions[i]) - rank * gap, 1
        while pools and pools[-1][0] >= mean:
            before, others = pools.pop()
            mean, size = (mean * size + before * others) / (size + others), size + others
        pools.append((mean, size))
    bare = [mean for mean, size in pools for _ in range(size)]
    top = high - (count - 1) * gap
    result = [0.0] * count
    for rank, i in enumerate(order):
        result[i] = min(max(bare[rank], low), top) + rank * gap
    return result
