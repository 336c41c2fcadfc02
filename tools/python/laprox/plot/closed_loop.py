"""Plots of what laprox-eval measured. Every function returns a matplotlib Figure; `page` puts them into one HTML file."""

from __future__ import annotations

import html as escape
import io
from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from .._errors import UsageError
from . import style

Highlight = int | Sequence[str]
BANDS = 2  # of the highlighted policies, the first ones: more would hide each other

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2em auto; padding: 0 1em; }}
svg {{ max-width: 100%; height: auto; }} p {{ color: #666; }}</style></head>
<body><h1>{title}</h1><p>{facts}</p>
{sections}
</body></html>
"""


def kl_over_budget(report: xr.Dataset, *, highlight: Highlight = 5) -> Figure:
    """Mean KL divergence of every policy over the budgets, with the 95 % bootstrap interval over prompts of the first two.
    Oracles, random and full are dashed."""
    return _over_budget(report, "kl", "KL divergence from the full cache (nats)", highlight, log=True)


def score_over_budget(report: xr.Dataset, *, highlight: Highlight = 5) -> Figure:
    """Mean score of every policy over the budgets, and the full cache's as a dashed line."""
    if "score" not in report or not np.isfinite(report.score.values).any():
        raise UsageError("this report has no scores: its tasks have no answers, or nothing was generated")
    figure = _over_budget(report, "score", "score", highlight, log=False)
    figure.axes[0].axhline(float(report.full_score.mean()), color=style.REFERENCE, ls="--", lw=1)
    return figure


def error_against_kl(report: xr.Dataset, *, metric: str = "model_relative_error", highlight: Highlight = 5) -> Figure:
    """laprox's open-loop error against KL, one dot for each policy and budget, means over prompts; Spearman's rank correlation."""
    from ..eval.compare import rank_correlations

    if metric not in report:
        raise UsageError(f"this report has no {metric}")
    chosen = _chosen(report, "kl", highlight)
    error, kl = report[metric].mean("prompt"), report.kl.mean("prompt")
    if not ((error > 0) & (kl > 0)).any():
        raise UsageError("no policy has both an error and a divergence at any budget: there is nothing to compare")
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    for name in sorted(map(str, report.policy.values), key=lambda name: name in chosen):
        x, y = error.sel(policy=name).values, kl.sel(policy=name).values
        shown = (x > 0) & (y > 0)
        axes.plot(x[shown], y[shown], "o", ms=5, color=chosen.get(name, style.OTHERS), label=name if name in chosen else None)
    one, means = rank_correlations(report)[metric]
    axes.set(xscale="log", yscale="log", xlabel=report[metric].attrs["long_name"], ylabel="KL divergence (nats)")
    axes.set_title(f"Spearman {means:.2f} over means, {one:.2f} within a prompt (mean)", fontsize=10)
    axes.xaxis.label.set_fontsize(8)
    axes.legend(frameon=False, fontsize=8)
    return figure


def needle(report: xr.Dataset, *, budget: str | None = None, highlight: Highlight = 5, metric: str = "score") -> Figure:
    """Score over context length and depth at one budget: a map for each of the best policies."""
    if not {"fact_depth", "fact_length"} <= set(report):
        raise UsageError("this report has no needles, with their depth and the length of the text: make it with laprox-eval needle")
    budget = str(report.budget.values[report.sizes["budget"] // 2]) if budget is None else budget
    style.check_label(report, "budget", budget)
    names = list(_chosen(report, "kl", highlight))
    depths, lengths = (np.unique(report[f"fact_{name}"].values) for name in ("depth", "length"))
    figure = Figure(figsize=(2.1 * len(names) + 1.2, 3.2), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        values = report[metric].sel(policy=name, budget=budget).values
        image = axis.imshow(_grid(report, values, depths, lengths), vmin=0, vmax=1, cmap=style.HEAT, aspect="auto")
        axis.set_title(name, fontsize=8)
        axis.set_xticks(range(len(lengths)), [f"{n:.0f}" for n in lengths], fontsize=7, rotation=45)
        axis.set_yticks(range(len(depths)), [f"{100 * d:.0f} %" for d in depths], fontsize=7)
    figure.supxlabel("tokens of the prompt", fontsize=9)
    figure.supylabel("depth", fontsize=9)
    figure.colorbar(image, ax=axes, label=f"{metric} at {budget}")
    return figure


def _grid(report: xr.Dataset, values: np.ndarray, depths: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Means [depths, lengths] of values [prompts]; NaN where no prompt is."""
    grid = np.full((len(depths), len(lengths)), np.nan)
    for i, j in np.ndindex(*grid.shape):
        here = values[(report.fact_depth.values == depths[i]) & (report.fact_length.values == lengths[j])]
        if np.isfinite(here).any():
            grid[i, j] = np.nanmean(here)
    return grid


#: All figures by name, in the order of the page.
FIGURES = {
    "kl-over-budget": kl_over_budget,
    "score-over-budget": score_over_budget,
    "error-against-kl": error_against_kl,
    "needle": needle,
}


def page(report: xr.Dataset, *, budget: str | None = None, highlight: Highlight = 5, title: str = "laprox-eval") -> str:
    """One HTML page with the figures that the report can serve, as SVG; it needs no network and no script. budget: the needles'."""
    if budget is not None:
        style.check_label(report, "budget", budget)
    sections = []
    for name, draw in FIGURES.items():
        try:
            figure = draw(report, highlight=highlight, **({"budget": budget} if name == "needle" else {}))
        except UsageError:
            continue
        text = io.StringIO()
        figure.savefig(text, format="svg")
        svg = text.getvalue()
        sections.append(f"<h2>{name.replace('-', ' ')}</h2><p>{escape.escape(draw.__doc__ or '')}</p>{svg[svg.index('<svg') :]}")
    facts = f"{report.attrs.get('model', '')} · {report.sizes['prompt']} prompts · {report.sizes['policy']} policies"
    if report.attrs.get("schedule", "once") != "once":
        facts += f" · caches cut {report.attrs['schedule']}"
    return _PAGE.format(title=escape.escape(title), facts=escape.escape(facts), sections="\n".join(sections))


def _chosen(report: xr.Dataset, metric: str, highlight: Highlight) -> dict[str, str]:
    """The policies that get a colour: the best ones by the geometric mean over budgets, or those that are named."""
    names = style.asked(report, highlight)
    if isinstance(names, int):
        yardsticks = set(style.references(report))
        ranked = [name for name in style.ranked(report, metric) if (report[metric].sel(policy=name) > 0).any()]
        names = [name for name in ranked if name not in yardsticks][:names]
    return style.coloured(names)


def _over_budget(report: xr.Dataset, metric: str, label: str, highlight: Highlight, log: bool) -> Figure:
    from ..eval.compare import interval

    chosen = _chosen(report, "kl", highlight)
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    x = np.arange(report.sizes["budget"])
    yardsticks = set(style.references(report))
    for name in sorted(map(str, report.policy.values), key=lambda name: name in chosen):
        values = report[metric].sel(policy=name).transpose("budget", "prompt").values
        mean = np.nanmean(values, 1)
        if log and not (mean > 0).all():
            continue
        colour = chosen.get(name, style.REFERENCE if name in yardsticks else style.OTHERS)
        dashed, marker = "--" if name in yardsticks else "-", "o" if name in chosen else None
        axes.plot(x, mean, color=colour, lw=1.8 if name in chosen else 0.9, ls=dashed, marker=marker, ms=4)
        if name in list(chosen)[:BANDS] and values.shape[1] > 1:
            low, high = np.array([interval(row[np.isfinite(row)]) for row in values]).T
            axes.fill_between(x, np.maximum(low, 1e-12) if log else low, high, color=colour, alpha=0.12, lw=0)
    if log:
        axes.set_yscale("log")
    axes.set_xticks(x, [str(b) for b in report.budget.values])
    axes.set(xlabel="budget", ylabel=label)
    handles = [axes.plot([], [], color=colour, marker="o", ms=4, label=name)[0] for name, colour in chosen.items()]
    axes.legend(handles=handles, frameon=False, fontsize=8)
    return figure
