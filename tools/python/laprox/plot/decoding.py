"""What caches held while the model decoded, of a sweep with a schedule."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from .._errors import UsageError
from . import draw, style


def held_shares(gone: np.ndarray, context: int, bins: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The share of heads that hold a token when a query comes: [token bins, query bins], and the edges of both.

    `gone` [heads, T]: the position of the first query that no longer finds each token.
    """
    tokens = gone.shape[1]
    token_edges = np.unique(np.linspace(0, tokens, min(bins, tokens) + 1).astype(int))
    query_edges = np.unique(np.linspace(context, tokens, min(bins, tokens - context) + 1).astype(int))
    shares = np.empty((len(token_edges) - 1, len(query_edges) - 1))
    position = np.arange(tokens)
    for column, query in enumerate((query_edges[:-1] + query_edges[1:] - 1) // 2):
        held = ((position <= query) & (query < gone)).mean(0)
        shares[:, column] = np.add.reduceat(held, token_edges[:-1]) / np.diff(token_edges)
    return shares, token_edges, query_edges


def _need_lifetimes(report: xr.Dataset) -> None:
    if "evicted_at" not in report:
        raise UsageError("the report has no lifetimes; sweep with a schedule and save_kept=True (--save-kept)")


def held_at(
    report: xr.Dataset, policy: str, budget: str, dump: int = 0, layer: int | None = None, kv_head: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """held_shares of one policy's caches: of all layers and KV heads, or of one. Raises UsageError where the report has none."""
    _need_lifetimes(report)
    gone = report.evicted_at.isel(dump=dump).sel(policy=policy, budget=budget)
    chosen = {name: [index] for name, index in (("layer", layer), ("kv_head", kv_head)) if index is not None}
    heads = gone.isel(chosen).values.reshape(-1, gone.sizes["position"])
    heads = heads[heads.max(1) >= 0]
    tokens = int((heads[0] >= 0).sum())
    return held_shares(heads[:, :tokens], int(report.context_length.values[dump]))


def lifetimes(
    report: xr.Dataset,
    *,
    policy: str | None = None,
    budget: str | None = None,
    layer: int | None = None,
    kv_head: int | None = None,
    dump: int = 0,
) -> Figure:
    """What the cache holds (down) when each decoded query comes (across): the share of the heads that are shown.

    Of all layers and KV heads, or of one. Needs a report that was made with a schedule and save_kept.
    """
    _need_lifetimes(report)
    budget = draw._budget(report, budget)
    policy = style.ranked(report)[0] if policy is None else policy
    style.check_label(report, "policy", policy)
    shares, token_edges, query_edges = held_at(report, policy, budget, dump, layer, kv_head)
    figure = Figure(figsize=(7.5, 5.2), layout="constrained")
    axes = figure.subplots()
    image = axes.pcolormesh(query_edges, token_edges, shares, vmin=0, vmax=1, cmap=style.HEAT, rasterized=True)
    axes.axhline(float(report.context_length.values[dump]), color=style.REFERENCE, lw=0.8, ls="--")
    axes.invert_yaxis()
    axes.set_xlabel("position of the query")
    axes.set_ylabel("token (above the dashed line: the prompt)")
    axes.set_title(f"{policy} at {budget}, {report.attrs.get('schedule', 'once')}", fontsize=10)
    figure.colorbar(image, ax=axes, label="share of heads that hold it")
    return figure
