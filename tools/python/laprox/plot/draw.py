"""Plots of a report with matplotlib. Every function returns a Figure; its savefig writes .svg, .png or .pdf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from .._errors import UsageError
from . import data, style

Highlight = int | Sequence[str]


def error_over_budget(report: xr.Dataset, *, metric: str = "model_relative_error", highlight: Highlight = 5) -> Figure:
    """`metric` of every policy over the budgets, mean over prompts; the highlighted ones with a band from the least to the largest
    prompt. The best few are in colour and named at the line's end, oracles and random are dashed, the others grey."""
    figure, axes = _figure(report, 7.5, 4.6)
    _lines(axes, report, metric, highlight)
    axes.set_yscale("log")
    axes.set_ylabel(_label(report, metric))
    _finish_lines(axes, report)
    return figure


def regret(report: xr.Dataset, *, highlight: Highlight = 5) -> Figure:
    """Regret over the budgets: 0 is as good as the oracle, 1 as bad as random. Needs both in the report."""
    figure, axes = _figure(report, 7.5, 4.6)
    _lines(axes, report, "model_regret", highlight)
    axes.axhline(0, color=style.REFERENCE, lw=0.8)
    axes.axhline(1, color=style.REFERENCE, lw=0.8)
    axes.set_ylabel("regret (0: the oracle, 1: random)")
    _finish_lines(axes, report)
    return figure


def error_per_layer(report: xr.Dataset, *, budget: str | None = None, highlight: Highlight = 5) -> Figure:
    """Relative error of every layer's output at one budget, mean over prompts."""
    budget = _budget(report, budget)
    figure, axes = _figure(report, 7.5, 4.6)
    ends = _plain_lines(axes, report, report.layer.values, report.relative_error.sel(budget=budget).mean("dump"), highlight)
    axes.set_yscale("log")
    axes.set_xlabel("layer")
    axes.set_ylabel(f"relative error at {budget}")
    axes.set_xlim(right=float(report.layer.values[-1]))
    axes.xaxis.get_major_locator().set_params(integer=True)
    _name_ends(axes, ends)
    return figure


def error_while_decoding(report: xr.Dataset, *, budget: str | None = None, highlight: Highlight = 5) -> Figure:
    """Relative error of every policy over the segments of the continuation at one budget, mean over prompts."""
    if "model_segment_error" not in report:
        raise UsageError("the report has no errors by segment; sweep with a schedule, or with segments=8 (--segments 8)")
    budget = _budget(report, budget)
    figure, axes = _figure(report, 7.5, 4.6)
    starts = report.segment_start.where(report.segment_start >= 0).mean("dump").values
    ends = _plain_lines(axes, report, starts, report.model_segment_error.sel(budget=budget).mean("dump"), highlight)
    axes.set_yscale("log")
    axes.set_xlabel("decoded position (start of the segment)")
    axes.set_ylabel(f"relative error at {budget}")
    _name_ends(axes, ends)
    return figure


def kept_per_head(report: xr.Dataset, *, budget: str | None = None, policies: Highlight = 6) -> Figure:
    """How many tokens each layer and KV head keeps at one budget, mean over prompts: one small map for each policy."""
    budget = _budget(report, budget)
    names = list(style.colours(report, policies)) or [str(name) for name in report.policy.values[:6]]
    counts = report.kept_count.where(report.kept_count >= 0).sel(budget=budget, policy=names).mean("dump")
    columns = min(len(names), 6)
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(1.7 * columns + 1.2, 2.6 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for i, axis in enumerate(axes.flat):
        if i >= len(names):
            axis.set_visible(False)
            continue
        image = axis.imshow(counts.sel(policy=names[i]), aspect="auto", vmin=0, vmax=float(counts.max()), cmap=style.HEAT)
        axis.set_title(_wrapped(names[i]), fontsize=9)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.supxlabel("KV head", fontsize=10)
    figure.supylabel("layer", fontsize=10)
    figure.colorbar(image, ax=axes, label=f"kept tokens at {budget}")
    return figure


def kept_along_prompt(
    report: xr.Dataset, *, budget: str | None = None, dump: int = 0, needle: tuple[int, int] | None = None
) -> Figure:
    """Where in the prompt each policy keeps tokens, over all layers and KV heads; `needle`: the tokens [first, last) to mark."""
    budget = _budget(report, budget)
    shares, edges = data.kept_along_prompt(report, budget, dump)
    order, names = _best_first(report)
    figure = Figure(figsize=(8.5, 0.22 * len(names) + 1.6), layout="constrained")
    axes = figure.subplots()
    image = axes.pcolormesh(edges, np.arange(len(names) + 1), shares[order], vmin=0, vmax=1, cmap=style.HEAT, rasterized=True)
    axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("token of the prompt")
    if needle is not None:
        for edge in needle:
            axes.axvline(edge, color=style.COLOURS[1], lw=1)
        axes.text(sum(needle) / 2, -0.15, "needle", color=style.COLOURS[1], ha="center", va="bottom", fontsize=9)
    figure.colorbar(image, ax=axes, label=f"share of heads that keep it at {budget}")
    return figure


def overlap(report: xr.Dataset, *, budget: str | None = None, dump: int = 0) -> Figure:
    """Jaccard index of what each pair of policies keeps at one budget: 1 is the same entries, 0 none in common."""
    budget = _budget(report, budget)
    order, names = _best_first(report)
    shares = data.overlap(report, budget, dump)[np.ix_(order, order)]
    side = 0.28 * len(names) + 2.2
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap=style.HEAT)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    if len(names) <= 12:
        for i, j in np.ndindex(*shares.shape):
            axes.text(
                j, i, f"{shares[i, j]:.2f}", ha="center", va="center", fontsize=7, color="white" if shares[i, j] < 0.6 else "black"
            )
    figure.colorbar(image, ax=axes, label=f"Jaccard index at {budget}", shrink=0.8)
    return figure


#: All figures by name, in the order of the HTML page.
FIGURES = {
    "error-over-budget": error_over_budget,
    "regret": regret,
    "error-per-layer": error_per_layer,
    "error-while-decoding": error_while_decoding,
    "kept-per-head": kept_per_head,
    "kept-along-prompt": kept_along_prompt,
    "overlap": overlap,
}


def _figure(report: xr.Dataset, width: float, height: float) -> tuple[Figure, Any]:
    style.check_report(report)
    longest = max((len(str(name)) for name in report.policy.values), default=0)
    figure = Figure(figsize=(width + 0.05 * min(longest, 40), height), layout="constrained")
    return figure, figure.subplots()


def _budget(report: xr.Dataset, budget: str | None) -> str:
    style.check_report(report)
    if budget is None:
        return data.middle_budget(report)
    style.check_label(report, "budget", budget)
    return budget


def _label(report: xr.Dataset, metric: str) -> str:
    return "relative error of the layer outputs" if metric == "model_relative_error" else metric.replace("_", " ")


def _best_first(report: xr.Dataset) -> tuple[list[int], list[str]]:
    names = style.ranked(report)
    known = [str(name) for name in report.policy.values]
    return [known.index(name) for name in names], names


def _back_to_front(report: xr.Dataset, chosen: dict[str, str]) -> list[str]:
    names = [str(name) for name in report.policy.values]
    return [name for name in names if name not in chosen] + [name for name in reversed(chosen)]


def _look(name: str, chosen: dict[str, str], yardsticks: set[str]) -> tuple[str, float, int]:
    if name in chosen:
        return chosen[name], 1.8, 3
    return (style.REFERENCE, 1.2, 2) if name in yardsticks else (style.OTHERS, 0.9, 1)


def _plain_lines(
    axes: Any, report: xr.Dataset, x: np.ndarray, values: xr.DataArray, highlight: Highlight
) -> list[tuple[float, str, str]]:
    """Draws `values` [policy, x] of every policy that has a positive one; returns what _name_ends names."""
    chosen, yardsticks = style.colours(report, highlight), set(style.references(report))
    ends: list[tuple[float, str, str]] = []
    for name in _back_to_front(report, chosen):
        line = values.sel(policy=name).values
        if not np.nanmax(line) > 0:
            continue
        colour, width, order = _look(name, chosen, yardsticks)
        axes.plot(
            x,
            line,
            color=colour,
            lw=width,
            zorder=order,
            ls="--" if name in yardsticks else "-",
            marker="." if name in chosen else None,
        )
        if name in chosen or name in yardsticks:
            ends.append((_last(line), name, colour))
    return ends


def _lines(axes: Any, report: xr.Dataset, metric: str, highlight: Highlight) -> None:
    chosen, yardsticks = style.colours(report, highlight), set(style.references(report))
    found = {curve.policy: curve for curve in data.curves(report, metric)}
    tokens = np.sort(data.budget_axis(report)[0])
    ends: list[tuple[float, str, str]] = []
    for name in _back_to_front(report, chosen):
        if name not in found:
            continue
        curve = found[name]
        colour, width, order = _look(name, chosen, yardsticks)
        axes.plot(
            tokens,
            curve.mean,
            color=colour,
            lw=width,
            zorder=order,
            ls="--" if name in yardsticks else "-",
            marker="o" if name in chosen else None,
            ms=4,
        )
        if name in chosen and report.sizes["dump"] > 1:
            axes.fill_between(tokens, curve.low, curve.high, color=colour, alpha=0.15, lw=0)
        if name in chosen or name in yardsticks:
            ends.append((_last(curve.mean), name, colour))
    others = len(found) - len(ends)
    if others > 0:
        axes.plot([], [], color=style.OTHERS, label=f"{others} other policies")
        axes.legend(loc="lower left", frameon=False, fontsize=9)
    axes.figure.ends = ends


def _finish_lines(axes: Any, report: xr.Dataset) -> None:
    tokens, labels = data.budget_axis(report)
    axes.set_xscale("log")
    axes.set_xticks(
        tokens, [label if label.isdigit() else f"{label}\n{token:.0f}" for token, label in zip(tokens, labels, strict=True)]
    )
    axes.set_xlim(right=float(tokens.max()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("budget and tokens kept per KV head")
    _name_ends(axes, axes.figure.ends)


def _last(line: np.ndarray) -> float:
    """The last value that is there, at whose height a line's name stands."""
    there = line[np.isfinite(line)]
    return float(there[-1]) if there.size else 0.0


def _name_ends(axes: Any, ends: list[tuple[float, str, str]]) -> None:
    """Names the lines at their right ends, moved apart so that no two cover each other."""
    axes.grid(alpha=0.25, which="major")
    axes.spines[["top", "right"]].set_visible(False)
    places = [
        axes.transAxes.inverted().transform(axes.transData.transform((1, value)))[1]
        if value > 0 or axes.get_yscale() == "linear"
        else 0.0
        for value, _, _ in ends
    ]
    heights = style.spread(places, 0.045)
    for (value, name, colour), place, height in zip(ends, places, heights, strict=True):
        axes.annotate(
            name,
            (1.0, place),
            (1.04, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            fontsize=9,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)},
        )


def _wrapped(name: str) -> str:
    return name.replace("+", "\n+").replace(":", ":\n")
