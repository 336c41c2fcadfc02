"""All plots of a report as one HTML page that needs no network."""

from __future__ import annotations

import html as escape
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.offline import get_plotlyjs

from . import data, style

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>body {{ font: 15px/1.5 system-ui, sans-serif; color: {ink}; max-width: 1100px; margin: 2em auto; padding: 0 1em; }}
h1 {{ font-size: 1.4em; }} h2 {{ font-size: 1.1em; margin-bottom: 0; }} p {{ margin: .3em 0; }} .facts {{ color: #666; }}</style>
<script>{script}</script></head>
<body><h1>{title}</h1><p class="facts">{facts}</p>
{sections}
</body></html>
"""


def page(
    report: xr.Dataset,
    *,
    budget: str | None = None,
    highlight: int | Sequence[str] = 5,
    needle: tuple[int, int] | None = None,
    title: str = "laprox report",
) -> str:
    """The whole page: error over budget, regret, error per layer, kept per head, along the prompt, overlap, and of a schedule the
    error over decoded positions and what caches held; what the report has.

    Every line shows its policy's name under the pointer; those in colour and the yardsticks are named at their ends.
    """
    budget = data.middle_budget(report) if budget is None else budget
    style.check_label(report, "budget", budget)
    chosen = style.colours(report, highlight)
    sections = [
        (
            "Error over budget",
            "Relative error of the layer outputs, mean over prompts. The best policies are in colour, yardsticks dashed.",
            _over_budget(report, "model_relative_error", chosen),
        )
    ]
    if "model_regret" in report:
        sections.append(("Regret", "0 is as good as the oracle, 1 as bad as random.", _over_budget(report, "model_regret", chosen)))
    sections.append(("Error per layer", f"At {budget}, mean over prompts.", _per_layer(report, budget, chosen)))
    if chosen:  # yardsticks alone have no map
        heads = _per_head(report, budget, list(chosen))
        sections.append(("Kept per layer and KV head", f"Tokens kept at {budget}, mean over prompts.", heads))
    if "kept_tokens" in report:
        sections.append(
            (
                "Kept along the prompt",
                f"Share of (layer, KV head) pairs that keep each token at {budget}, first prompt.",
                _along_prompt(report, budget, needle),
            )
        )
        sections.append(
            ("Overlap", f"Jaccard index of what two policies keep at {budget}, first prompt.", _overlap(report, budget))
        )
    if "model_segment_error" in report:
        positions = "over the decoded positions, a segment each; mean over prompts."
        sections.append(("Error while decoding", f"At {budget}, {positions}", _while_decoding(report, budget, chosen)))
    if "evicted_at" in report:
        name = style.ranked(report)[0]
        held = f"Share of (layer, KV head) pairs of {name} at {budget} that hold a token when a query comes, first prompt."
        sections.append(("What caches held", held, _lifetimes(report, name, budget)))
    body = "\n".join(f"<h2>{name}</h2><p class='facts'>{text}</p>{_div(figure)}" for name, text, figure in sections)
    facts = " · ".join(
        [
            f"{report.sizes['policy']} policies",
            f"{report.sizes['budget']} budgets",
            f"{report.sizes['dump']} prompts",
            *([f"caches cut {report.attrs['schedule']}"] if "schedule" in report.attrs else []),
            *(str(model) for model in np.unique(report.dump_model.values.astype(str)) if model),
            f"laprox {report.attrs.get('tool_version', '')}",
        ]
    )
    return _PAGE.format(title=escape.escape(title), facts=escape.escape(facts), ink=style.INK, script=get_plotlyjs(), sections=body)


def _div(figure: go.Figure) -> str:
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})


def _layout(figure: go.Figure, height: int, **axes: dict) -> go.Figure:
    return figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        hoverlabel={"namelength": -1},
        **axes,
    )


def _colour(report: xr.Dataset, name: str, chosen: dict[str, str]) -> str:
    return chosen.get(name, style.REFERENCE if name in style.references(report) else style.OTHERS)


def _line(report: xr.Dataset, name: str, x: np.ndarray, y: np.ndarray, chosen: dict[str, str]) -> go.Scatter:
    reference, colour = name in style.references(report), _colour(report, name, chosen)
    return go.Scatter(
        x=x,
        y=np.where(y > 0, y, None),
        name=name,
        mode="lines+markers" if name in chosen else "lines",
        line={"color": colour, "width": 2.5 if name in chosen else 1.2, "dash": "dash" if reference else "solid"},
        cliponaxis=False,
    )


def _name_ends(report: xr.Dataset, figure: go.Figure, chosen: dict[str, str]) -> go.Figure:
    """Names the coloured lines and the yardsticks at their right ends, moved apart so that no two cover each other.

    The axes and the height of `figure` must be set: the names' places follow from them.
    """
    if not figure.data:  # nothing has an error
        return figure
    log = figure.layout.yaxis.type == "log"
    lines = [trace for trace in figure.data if trace.name]
    heights = np.concatenate([np.array([y for y in trace.y if y is not None], float) for trace in figure.data])
    heights = np.log10(heights) if log else heights
    low, high = np.nanmin(heights), np.nanmax(heights)
    low, high = low - 0.03 * (high - low or 1), high + 0.03 * (high - low or 1)
    margin, ends = figure.layout.margin, []
    for trace in lines:
        y = trace.y[-1]
        if y is not None and np.isfinite(y) and _colour(report, trace.name, chosen) != style.OTHERS:
            ends.append((((np.log10(y) if log else y) - low) / (high - low), trace.name))
    pixels = figure.layout.height - margin.t - margin.b
    for (place, name), height in zip(ends, style.spread([place for place, _ in ends], 15 / pixels), strict=True):
        colour = _colour(report, name, chosen)
        figure.add_annotation(
            **{"text": name, "font": {"color": colour, "size": 12}, "xanchor": "left", "align": "left"},
            **{"xref": "paper", "yref": "paper", "x": 1, "y": place, "ax": 26, "ay": (place - height) * pixels},
            **{"arrowhead": 0, "arrowwidth": 0.7, "arrowcolor": colour, "standoff": 3},
        )
    room = 40 + 7 * max((len(name) for _, name in ends), default=0)
    figure.update_yaxes(range=[low, high])
    return figure.update_layout(showlegend=False, margin={"r": min(room, 320)})


def _behind_first(report: xr.Dataset, chosen: dict[str, str]) -> list[str]:
    names = [str(name) for name in report.policy.values]
    return [name for name in names if name not in chosen] + [name for name in names if name in chosen]


def _over_budget(report: xr.Dataset, metric: str, chosen: dict[str, str]) -> go.Figure:
    tokens, labels = data.budget_axis(report)
    found = {curve.policy: curve for curve in data.curves(report, metric)}
    x, figure = np.sort(tokens), go.Figure()
    for name in _behind_first(report, chosen):
        if name not in found:
            continue
        curve = found[name]
        if name in chosen and report.sizes["dump"] > 1:
            figure.add_scatter(
                x=np.concatenate([x, x[::-1]]),
                y=np.concatenate([curve.high, curve.low[::-1]]),
                fill="toself",
                fillcolor=chosen[name],
                opacity=0.15,
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
            )
        figure.add_trace(_line(report, name, x, curve.mean, chosen))
    ticks = {"tickvals": tokens, "ticktext": [f"{label} ({token:.0f})" for label, token in zip(labels, tokens, strict=True)]}
    scale = "linear" if "regret" in metric else "log"
    span = np.log10([x[0], x[-1]]) if len(x) > 1 else np.log10([x[0] / 2, x[0]])
    _layout(
        figure,
        520,
        xaxis={"type": "log", "title": "budget (tokens kept per KV head)", "range": list(span), **ticks},
        yaxis={"type": scale, "title": metric.removeprefix("model_").replace("_", " "), "exponentformat": "power"},
    )
    return _name_ends(report, figure, chosen)


def _per_layer(report: xr.Dataset, budget: str, chosen: dict[str, str]) -> go.Figure:
    errors, figure = report.relative_error.sel(budget=budget).mean("dump"), go.Figure()
    for name in _behind_first(report, chosen):
        values = errors.sel(policy=name).values
        if np.nanmax(values) > 0:
            figure.add_trace(_line(report, name, report.layer.values, values, chosen))
    last = report.sizes["layer"] - 1
    _layout(
        figure,
        480,
        xaxis={"title": "layer", "dtick": max(1, report.sizes["layer"] // 16), "range": [0, last] if last else [-1, 0]},
        yaxis={"type": "log", "title": "relative error", "exponentformat": "power"},
    )
    return _name_ends(report, figure, chosen)


def _while_decoding(report: xr.Dataset, budget: str, chosen: dict[str, str]) -> go.Figure:
    errors, figure = report.model_segment_error.sel(budget=budget).mean("dump"), go.Figure()
    starts = report.segment_start.where(report.segment_start >= 0).mean("dump").values
    there = np.isfinite(starts)
    for name in _behind_first(report, chosen):
        values = errors.sel(policy=name).values[there]
        if len(values) and np.nanmax(values) > 0:
            figure.add_trace(_line(report, name, starts[there], values, chosen))
    _layout(
        figure,
        480,
        xaxis={"title": "decoded position (start of the segment)"},
        yaxis={"type": "log", "title": "relative error", "exponentformat": "power"},
    )
    return _name_ends(report, figure, chosen)


def _lifetimes(report: xr.Dataset, policy: str, budget: str) -> go.Figure:
    from .decoding import held_at

    shares, token_edges, query_edges = held_at(report, policy, budget)
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=query_edges,
            y=token_edges,
            zmin=0,
            zmax=1,
            colorscale=style.HEAT,
            hovertemplate="query %{x}, token %{y}: %{z:.2f}<extra></extra>",
        )
    )
    figure.add_hline(float(report.context_length.values[0]), line={"color": style.REFERENCE, "width": 1, "dash": "dash"})
    axes = {"xaxis": {"title": "position of the query"}, "yaxis": {"title": "token", "autorange": "reversed"}}
    return _layout(figure, 480, **axes)


def _per_head(report: xr.Dataset, budget: str, names: list[str]) -> go.Figure:
    from plotly.subplots import make_subplots

    counts = report.kept_count.where(report.kept_count >= 0).sel(budget=budget, policy=names).mean("dump")
    figure = make_subplots(1, len(names), subplot_titles=names, shared_yaxes=True)
    for i, name in enumerate(names):
        figure.add_heatmap(
            z=counts.sel(policy=name).values,
            coloraxis="coloraxis",
            row=1,
            col=i + 1,
            hovertemplate="layer %{y}, KV head %{x}: %{z:.0f} tokens<extra></extra>",
        )
    figure.update_yaxes(autorange="reversed", dtick=max(1, report.sizes["layer"] // 16))
    figure.update_xaxes(dtick=max(1, report.sizes["kv_head"] // 8), title="KV head")
    figure.update_yaxes(title="layer", col=1)
    figure.update_layout(coloraxis={"colorscale": style.HEAT, "cmin": 0, "colorbar": {"title": "tokens"}})
    return _layout(figure, 420).update_layout(margin={"t": 50})


def _best_first(report: xr.Dataset) -> tuple[list[int], list[str]]:
    names, known = style.ranked(report), [str(name) for name in report.policy.values]
    return [known.index(name) for name in names], names


def _along_prompt(report: xr.Dataset, budget: str, needle: tuple[int, int] | None) -> go.Figure:
    order, names = _best_first(report)
    shares, edges = data.kept_along_prompt(report, budget)
    figure = go.Figure(
        go.Heatmap(
            z=shares[order],
            x=edges,
            y=names,
            zmin=0,
            zmax=1,
            colorscale=style.HEAT,
            hovertemplate="%{y}, token %{x}: %{z:.2f}<extra></extra>",
        )
    )
    if needle is not None:
        mark = style.COLOURS[1]
        figure.add_vrect(*needle, line={"color": mark, "width": 1.5}, fillcolor="rgba(0,0,0,0)")
        above = {"x": sum(needle) / 2, "yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False}
        figure.add_annotation(text="needle", font={"color": mark}, **above)
    return _layout(figure, 24 * len(names) + 140, xaxis={"title": "token of the prompt"}, yaxis={"autorange": "reversed"})


def _overlap(report: xr.Dataset, budget: str) -> go.Figure:
    order, names = _best_first(report)
    shares = data.overlap(report, budget)[np.ix_(order, order)]
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=names,
            y=names,
            zmin=0,
            zmax=1,
            colorscale=style.HEAT,
            hovertemplate="%{y} and %{x}: %{z:.2f}<extra></extra>",
        )
    )
    return _layout(figure, 22 * len(names) + 220, yaxis={"autorange": "reversed"})
