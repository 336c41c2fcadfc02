"""One pass of the model over a prompt and its continuation: the layers for laprox, and the prompt's cache for the loop."""

from __future__ import annotations

import numpy as np
import torch
from laprox_dump.capture import Recorder
from laprox_dump.errors import UnsupportedModel
from laprox_dump.layer import Layer as Recorded
from laprox_dump.layer import Positions
from laprox_dump.replay import TOLERANCE, prove

from .._core import Policy
from .._layer import Layer
from .evicted import PromptLayer

PROVED = 8  # outputs of each layer that are checked against the model's own


def record(
    name: str,
    model: torch.nn.Module,
    ids: torch.Tensor,
    context: int,
    policies: list[Policy],
    on_gpu: bool = False,
    cut_again: bool = False,
) -> tuple[list[Layer], list[PromptLayer]]:
    """Runs the model once over `ids` [T], of which the first `context` are the prompt.

    Returns each layer for laprox, with the queries that these policies read and those behind the prompt, and its cache of the
    prompt on the model's device, with what cuts.CutCache needs where it is to be `cut_again`. Layers for laprox are on the host,
    or with `on_gpu` where the model is. Raises UnsupportedModel where layers share a cache, and what recording raises.
    """
    first = context - min(context, _wanted(policies, context))
    positions = Positions(len(ids), context, torch.arange(first, len(ids)), torch.arange(max(first, len(ids) - PROVED), len(ids)))
    layers: list[Layer] = []
    caches: list[PromptLayer] = []

    def keep(ordinal: int, found: Recorded) -> None:
        if found.kv_source is not None:
            raise UnsupportedModel(
                f"{name}: layer {ordinal} reads the cache of layer {found.kv_source}; such models are not evaluated"
            )
        prove(f"{name}: layer {ordinal}", found, positions, TOLERANCE.get(found.q.dtype, TOLERANCE[torch.bfloat16]))
        layers.append(_layer(found, positions, on_gpu))
        caches.append(_cache(found, context))
        if cut_again:
            before = context - first
            window = max([1, *(policy.query_window for policy in policies if policy.queries == "window")])
            caches[-1].recent = found.q[:, max(0, before - window) : before].detach().float()
            caches[-1].w_o = found.w_o.detach().cpu()

    Recorder(positions, None, keep).run(model, ids)
    return layers, caches


def _wanted(policies: list[Policy], context: int) -> int:
    """How many of the prompt's last queries the policies read; the residual stream's norm is a mean over 32 at least."""
    wanted = 32
    for policy in policies:
        wanted = max(wanted, context if policy.queries == "all" else policy.query_window if policy.queries == "window" else 0)
    return wanted


def _layer(found: Recorded, positions: Positions, on_gpu: bool) -> Layer:
    norms = found.residual_norms
    tensors = [tensor.detach() for tensor in (found.q, found.k, found.v, found.w_o)]
    if not on_gpu:
        tensors = [tensor.cpu().contiguous() for tensor in tensors]
    elif len({tensor.dtype for tensor in tensors}) > 1:
        tensors = [tensor.float() for tensor in tensors]
    return Layer(
        *tensors,
        scale=found.scale,
        softcap=found.softcap,
        window=found.sliding_window,
        sinks=_numbers(found.sinks),
        bias=_numbers(found.b_o),
        positions=positions.queries.numpy(),
        context_length=positions.context_length,
        residual_norms=_numbers(norms),
        rope_inv_freq=_numbers(found.rope_inv_freq),
    )


def _cache(found: Recorded, context: int) -> PromptLayer:
    return PromptLayer(
        found.k[:, :context].detach().float(),
        found.v[:, :context].detach().float(),
        found.scale,
        found.softcap,
        found.sliding_window,
        None if found.sinks is None else found.sinks.detach().float(),
    )


def _numbers(values: torch.Tensor | None) -> np.ndarray | None:
    return None if values is None else values.detach().double().cpu().numpy()
