"""Tables of an evaluation: means over prompts, and which policies are as good as the best one by a paired test."""

from __future__ import annotations

import numpy as np
import xarray as xr

from .._errors import UsageError

#: The names of --metric, with the report's variables, and whether more is better.
METRICS = {
    "kl": ("kl", False),
    "score": ("score", True),
    "agreement": ("agreement", True),
    "answer-nll": ("answer_nll", False),
    "error": ("model_relative_error", False),
    "residual-error": ("model_residual_error", False),
}
FEWEST = 6  # pairs below which a signed-rank test can reject nothing at 5 %


def table(report: xr.Dataset, metric: str = "kl") -> str:
    """The mean over prompts of every policy at every budget; `*` marks the best and those that are not worse.

    Not worse: the Wilcoxon signed-rank test over the prompts does not reject equality with the best mean at 5 %.
    """
    name, more = _metric(report, metric)
    values = report[name]
    complete = values.isel(policy=0, budget=0).notnull().values if name in ("score", "answer_nll") else None
    values = values.isel(prompt=np.flatnonzero(complete)) if complete is not None else values
    count = values.sizes["prompt"]
    if count == 0:
        raise UsageError(f"no prompt of this report has a {metric}")
    means = values.mean("prompt").transpose("policy", "budget").values
    width = max(len(str(p)) for p in report.policy.values)
    lines = [f"{values.attrs['long_name']}; mean of {count} prompts", f"{report.attrs['model']}{_schedule(report)}", ""]
    lines.append(" " * width + "".join(f"{b!s:>12}" for b in report.budget.values))
    marks = [best(values.isel(budget=i).transpose("policy", "prompt").values, more) for i in range(means.shape[1])]
    for row, policy in enumerate(report.policy.values):
        cells = "".join(f"{means[row, i]:>11.4f}{'*' if row in marks[i] else ' '}" for i in range(means.shape[1]))
        lines.append(f"{policy!s:<{width}}{cells}".rstrip())
    full = {"score": "full_score", "answer_nll": "full_answer_nll"}.get(name)
    if full:
        lines.append(f"\nwith the full cache: {float(report[full].mean()):.4f}")
    if count < FEWEST:
        lines.append(f"\n* the best mean. With {count} prompts nothing can be said about differences; {FEWEST} are the fewest")
    else:
        lines.append("\n* the best mean, and those that are not worse by a Wilcoxon signed-rank test over the prompts at 5 %")
    return "\n".join(lines)


def _schedule(report: xr.Dataset) -> str:
    """When caches were cut, where that was not once."""
    schedule = report.attrs.get("schedule", "once")
    return "" if schedule == "once" else f", --schedule {schedule}"


def best(values: np.ndarray, more: bool) -> set[int]:
    """The rows of [policies, prompts] with the best mean, or not worse by the paired test; rows of zeros do not compete."""
    signed = -values if more else values
    competing = [i for i in range(len(signed)) if np.isfinite(signed[i]).all() and (more or np.any(signed[i] != 0))]
    if not competing:
        return set()
    first = min(competing, key=lambda i: signed[i].mean())
    return {i for i in competing if i == first or (signed.shape[1] >= FEWEST and p_value(signed[i], signed[first]) > 0.05)}


def p_value(a: np.ndarray, b: np.ndarray) -> float:
    """Of the two-sided Wilcoxon signed-rank test of pairs; 1 where all are equal."""
    from scipy.stats import wilcoxon

    return 1.0 if np.array_equal(a, b) else float(wilcoxon(a, b, zero_method="zsplit").pvalue)


def paired(report: xr.Dataset, first: str, second: str, metric: str = "kl") -> str:
    """The difference between two policies at each budget: mean ratio, mean difference with a bootstrap interval, wins, p."""
    name, _ = _metric(report, metric)
    for policy in (first, second):
        if policy not in report.policy.values:
            raise UsageError(f"the report has no policy '{policy}'; it has {', '.join(map(str, report.policy.values))}")
    lines = [f"{first} against {second}: {metric}, paired over prompts", ""]
    lines.append(
        f"{'budget':>8}{'mean':>10}{'mean':>10}{'ratio':>8}{'difference':>12}{'95 % interval':>22}{'lower in':>12}{'p':>10}"
    )
    for budget in report.budget.values:
        cells = report[name].sel(budget=budget)
        a, b = cells.sel(policy=first).values, cells.sel(policy=second).values
        both = np.isfinite(a) & np.isfinite(b)
        a, b = a[both], b[both]
        low, high = interval(a - b)
        ratio = a.mean() / b.mean() if b.mean() else np.nan
        lines.append(
            f"{budget!s:>8}{a.mean():>10.4f}{b.mean():>10.4f}{ratio:>8.3f}{(a - b).mean():>12.4f}"
            f"{f'{low:.4f} .. {high:.4f}':>22}{f'{int((a < b).sum())} of {len(a)}':>12}"
            f"{p_value(a, b) if len(a) >= FEWEST else np.nan:>10.2g}"
        )
    return "\n".join(lines)


def interval(differences: np.ndarray, draws: int = 4000, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean."""
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(differences), (draws, len(differences)))
    low, high = np.quantile(differences[picks].mean(1), (0.025, 0.975))
    return float(low), float(high)


def rank_correlations(report: xr.Dataset) -> dict[str, tuple[float, float]]:
    """Spearman's rank correlation between each open-loop error and KL over the cells: (mean over prompts, over the means)."""
    from scipy.stats import spearmanr

    found: dict[str, tuple[float, float]] = {}
    for name in ("model_relative_error", "model_residual_error"):
        if name not in report:
            continue
        one = []
        for i in range(report.sizes["prompt"]):
            error, kl = (report[n].isel(prompt=i).values.ravel() for n in (name, "kl"))
            keep = np.isfinite(error) & np.isfinite(kl) & (error > 0)
            if keep.sum() > 2:
                one.append(spearmanr(error[keep], kl[keep]).statistic)
        error, kl = (report[n].mean("prompt").values.ravel() for n in (name, "kl"))
        keep = np.isfinite(error) & (error > 0)
        found[name] = (float(np.mean(one)), float(spearmanr(error[keep], kl[keep]).statistic))
    return found


def _metric(report: xr.Dataset, metric: str) -> tuple[str, bool]:
    if metric not in METRICS:
        raise UsageError(f"--metric: expected one of {', '.join(METRICS)}, found {metric!r}")
    name, more = METRICS[metric]
    if name not in report:
        raise UsageError(f"this report has no {metric}")
    return name, more
