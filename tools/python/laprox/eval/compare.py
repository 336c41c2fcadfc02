"""Tables of an evaluation: means over prompts, and which policies are as good as the best one by a paired test."""

from __future__ import annotations

import numpy as np
import xarray as xr

from .._errors import UsageError
from .statistics import FEWEST, SIGNIFICANCE, PairedDifference, compare_pairs

#: The names of --metric, with the report's variables, and whether more is better.
METRICS = {
    "kl": ("kl", False),
    "kl-to-end": ("kl_to_end", False),
    "score": ("score", True),
    "agreement": ("agreement", True),
    "answer-nll": ("answer_nll", False),
    "error": ("model_relative_error", False),
    "residual-error": ("model_residual_error", False),
}


def table(report: xr.Dataset, metric: str = "kl") -> str:
    """The mean over prompts of every policy at every budget; `*` marks the best and those that are not worse.

    Not worse: the Wilcoxon signed-rank test over the prompts does not tell it from the best mean at 5 %.
    """
    name, more = _metric(report, metric)
    values = report[name]
    partial = name in ("kl_to_end", "score", "answer_nll")
    complete = values.isel(policy=0, budget=0).notnull().values if partial else None
    values = values.isel(prompt=np.flatnonzero(complete)) if complete is not None else values
    count = values.sizes["prompt"]
    if count == 0:
        raise UsageError(f"no prompt of this report has a {metric}")
    means = values.mean("prompt").transpose("policy", "budget").values
    width = max(len(str(p)) for p in report.policy.values)
    lines = [f"{values.attrs['long_name']}; mean of {count} prompts", f"{report.attrs['model']}{_schedule(report)}", ""]
    lines.append(" " * width + "".join(f"{b!s:>12}" for b in report.budget.values))
    oracles = _oracles(report)
    keeping = [keeping_the_budget(report, i) for i in range(means.shape[1])]
    marks = [best(_rows(values, i), more, keeping[i] & ~oracles) for i in range(means.shape[1])]
    for row, policy in enumerate(report.policy.values):
        signs = ["*" if row in marks[i] else "+" if oracles[row] else " " if keeping[i][row] else "!" for i in range(len(marks))]
        lines.append(f"{policy!s:<{width}}{''.join(f'{means[row, i]:>11.4f}{sign}' for i, sign in enumerate(signs))}".rstrip())
    full = {"score": "full_score", "answer_nll": "full_answer_nll"}.get(name)
    if full:
        lines.append(f"\nwith the full cache: {float(report[full].mean()):.4f}")
    if name == "score" and not (values > 0).any() and not (report.full_score > 0).any():
        lines.append(
            "all scores are 0, the full cache's too: the model does none of these tasks, or its answers (full_text) are cut"
        )
    if count < FEWEST:
        lines.append(
            f"\n* the best mean. {count} prompts are too few to say whether it is better than the others; {FEWEST} are the fewest"
        )
    else:
        lines.append("\n* the best mean, and those that are not worse by a Wilcoxon signed-rank test over the prompts at 5 %")
    if oracles.any():
        lines.append("+ an oracle: it reads the queries that judge, and takes part in no comparison")
    if not np.all(keeping):
        lines.append("! spends another budget than is asked for, and takes part in no comparison")
    return "\n".join(lines)


def _schedule(report: xr.Dataset) -> str:
    """When caches were cut, where that was not once."""
    schedule = report.attrs.get("schedule", "once")
    return "" if schedule == "once" else f", --schedule {schedule}"


def _rows(values: xr.DataArray, budget: int) -> np.ndarray:
    return values.isel(budget=budget).transpose("policy", "prompt").values


def keeping_the_budget(report: xr.Dataset, budget: int) -> np.ndarray:
    """[policies] whether a policy keeps the budget of this number in every prompt.

    Older reports do not say it; there it is told from the full cache's KL, which is 0.
    """
    if "on_budget" in report:
        return ~(_rows(report.on_budget, budget) == 0).any(1)
    return (_rows(report.kl, budget) != 0).any(1)


def _oracles(report: xr.Dataset) -> np.ndarray:
    """[policies] which read the queries that judge them; older reports tell by their names alone."""
    if "is_oracle" in report:
        return report.is_oracle.values == 1
    specs = report["policy_spec"] if "policy_spec" in report else report.policy
    return np.array([str(spec).split("+")[0].split(":")[0] in ("oracle", "greedy") for spec in specs.values])


def best(values: np.ndarray, more: bool, competes: np.ndarray) -> set[int]:
    """The rows of [policies, prompts] that compete with the best mean, or not worse by the paired test."""
    signed = -values if more else values
    competing = [i for i in np.flatnonzero(competes) if np.isfinite(signed[i]).all()]
    if not competing:
        return set()
    means = {i: signed[i].mean() for i in competing}
    first = min(competing, key=means.__getitem__)
    return {i for i in competing if means[i] == means[first] or _as_good(compare_pairs(signed[i], signed[first]))}


def _as_good(difference: PairedDifference) -> bool:
    """Of a policy less the best one, where less is better."""
    return difference.enough and (difference.p >= SIGNIFICANCE or difference.estimate <= 0)


def paired(report: xr.Dataset, first: str, second: str, metric: str = "kl") -> str:
    """The difference between two policies at each budget, over the prompts in which both have the figure, as a table."""
    name, _ = _metric(report, metric)
    for policy in (first, second):
        if policy not in report.policy.values:
            raise UsageError(f"the report has no policy '{policy}'; it has {', '.join(map(str, report.policy.values))}")
    heads = ("budget", "mean", "mean", "ratio", "difference", "median", "95 % interval", "lower in", "p")
    lines = [f"{first} against {second}: {metric}, paired over prompts", "", _row(heads)]
    fewest = report.sizes["prompt"]
    for budget in report.budget.values:
        cells = report[name].sel(budget=budget)
        a, b = cells.sel(policy=first).values, cells.sel(policy=second).values
        both = np.isfinite(a) & np.isfinite(b)
        fewest = min(fewest, int(both.sum()))
        lines.append(_row((str(budget), *_paired_cells(a[both], b[both]))))
    if fewest < FEWEST:
        lines.append(f"\ntoo few prompts for an interval and a test: {fewest}, and {FEWEST} are the fewest")
    else:
        lines.append("\nmedian: of the means of any two differences (Hodges-Lehmann); interval and p: Wilcoxon's signed-rank test")
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, (8, 10, 10, 8, 12, 10, 22, 12, 10), strict=True))


def _paired_cells(a: np.ndarray, b: np.ndarray) -> tuple[str, ...]:
    """One budget's row behind its name."""
    found = compare_pairs(a, b)
    if found.pairs == 0:
        return ("-",) * 6 + ("0 of 0", "-")
    ratio = f"{a.mean() / b.mean():.3f}" if b.mean() else "-"
    sizes = (f"{a.mean():.4f}", f"{b.mean():.4f}", ratio, f"{found.mean:.4f}", f"{found.estimate:.4f}")
    said = (f"{found.low:.4f} .. {found.high:.4f}", f"{found.p:.2g}") if found.enough else ("-", "-")
    return (*sizes, said[0], f"{found.lower} of {found.pairs}", said[1])


def interval(values: np.ndarray, draws: int = 4000, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of one policy's values [prompts]; NaN below FEWEST of them."""
    if len(values) < FEWEST:
        return np.nan, np.nan
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(values), (draws, len(values)))
    low, high = np.quantile(values[picks].mean(1), (0.025, 0.975))
    return float(low), float(high)


def rank_correlations(report: xr.Dataset) -> dict[str, tuple[float, float]]:
    """Spearman's rank correlation between each open-loop error and KL over the cells: (mean over prompts, over the means).

    NaN where fewer than three cells have both, or all are equal.
    """
    found: dict[str, tuple[float, float]] = {}
    for name in ("model_relative_error", "model_residual_error"):
        if name not in report:
            continue
        errors, kls = (report[n].transpose("prompt", ...).values.reshape(report.sizes["prompt"], -1) for n in (name, "kl"))
        one = [_spearman(error, kl) for error, kl in zip(errors, kls, strict=True)]
        one = [value for value in one if np.isfinite(value)]
        means = (report[n].mean("prompt").transpose("policy", "budget").values.ravel() for n in (name, "kl"))
        found[name] = (float(np.mean(one)) if one else np.nan, _spearman(*means))
    return found


def _spearman(error: np.ndarray, kl: np.ndarray) -> float:
    from scipy.stats import spearmanr

    keep = np.isfinite(error) & np.isfinite(kl) & (error > 0)
    if keep.sum() < 3 or any(np.ptp(values[keep]) == 0 for values in (error, kl)):
        return np.nan
    return float(spearmanr(error[keep], kl[keep]).statistic)


def _metric(report: xr.Dataset, metric: str) -> tuple[str, bool]:
    if metric not in METRICS:
        raise UsageError(f"--metric: expected one of {', '.join(METRICS)}, found {metric!r}")
    name, more = METRICS[metric]
    if name not in report:
        raise UsageError(f"this report has no {metric}")
    return name, more
