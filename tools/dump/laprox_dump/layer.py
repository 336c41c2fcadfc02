"""One layer of a dump, in memory: the tensors, the numbers that go with them, and the checks on their shapes."""

from dataclasses import dataclass, replace

import torch

from .errors import InputError

FILE_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
TENSORS = ("q", "k", "v", "w_o", "b_o", "sinks")
FACTS = ("output", "residual_norms", "rope_inv_freq")  # what else a layer may have, in types of its own


@dataclass
class Layer:
    """The tensors of one attention layer, as the attention kernel saw them.

    q [H_q, N, d], k [H_kv, T, d], v [H_kv, T, d_v], w_o [H_q * d_v, D], b_o [D] or None, sinks [H_q] or None,
    output [M, D] float32 or None, residual_norms [N] and rope_inv_freq [r / 2] (the format's, float64) or None. softcap 0 and
    sliding_window 0 mean none. `model_layer` is the layer's number in the model, `kv_source` the layer of the dump whose keys and
    values these are (one cache serves both), None where the layer has a cache of its own.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    w_o: torch.Tensor
    scale: float
    b_o: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    output: torch.Tensor | None = None
    residual_norms: torch.Tensor | None = None
    rope_inv_freq: torch.Tensor | None = None
    softcap: float = 0.0
    sliding_window: int = 0
    model_layer: int = 0
    kv_source: int | None = None

    def to(self, dtype: torch.dtype) -> "Layer":
        """The same layer with the tensors of attention in `dtype`: what a file of that type holds."""
        tensors = {name: getattr(self, name) for name in TENSORS}
        return replace(self, **{name: t if t is None else t.to(dtype) for name, t in tensors.items()})


@dataclass(frozen=True)
class Positions:
    """Which positions of a sequence of `tokens` tokens a dump holds.

    `context_length` is C; `queries` and `outputs` are int64, strictly ascending, `outputs` a subset of `queries`.
    """

    tokens: int
    context_length: int
    queries: torch.Tensor
    outputs: torch.Tensor

    def output_rows(self) -> torch.Tensor:
        """Where each output position stands among the query positions, int64 [M]."""
        return torch.searchsorted(self.queries, self.outputs)


def check_positions(where: str, positions: Positions) -> None:
    """Refuse positions that a reader would refuse. Throws InputError, naming `where`."""
    t, c = positions.tokens, positions.context_length
    if not 1 <= c <= t:
        raise InputError(f"{where}: context_length: expected 1..{t} (the number of tokens), found {c}")
    for name, p in (("query_positions", positions.queries), ("output_positions", positions.outputs)):
        if p.ndim != 1:
            raise InputError(f"{where}: {name}: expected one dimension, found shape {list(p.shape)}")
        if p.numel() and (p.min() < 0 or p.max() >= t):
            raise InputError(f"{where}: {name}: expected 0..{t - 1}, found {int(p.min())}..{int(p.max())}")
        if (p[1:] <= p[:-1]).any():
            raise InputError(f"{where}: {name}: expected strictly ascending positions")
    if positions.queries.numel() == 0:
        raise InputError(f"{where}: query_positions: expected at least one query, found none")
    if not torch.isin(positions.outputs, positions.queries).all():
        raise InputError(f"{where}: output_positions: expected a subset of query_positions")


def check_layer(where: str, layer: Layer, positions: Positions, hidden: int | None) -> None:
    """Refuse a layer that a reader of the dump would refuse: ranks, shapes, finite values.

    `hidden` is the D of the layers before this one, None for the first. Throws InputError naming `where` and the tensor.
    """
    ranks = {"q": 3, "k": 3, "v": 3, "w_o": 2, "b_o": 1, "sinks": 1, "output": 2, "residual_norms": 1, "rope_inv_freq": 1}
    for name, rank in ranks.items():
        t = getattr(layer, name)
        if t is not None and t.ndim != rank:
            raise InputError(f"{where}: {name}: expected {rank} dimensions, found shape {list(t.shape)}")
    (h_q, _, d), h_kv = layer.q.shape, layer.k.shape[0]
    if h_kv == 0 or h_q % h_kv:
        raise InputError(f"{where}: q: expected a multiple of the {h_kv} KV heads of k, found {h_q} query heads")
    width = hidden if hidden is not None else layer.w_o.shape[1]
    expected = {
        "q": [h_q, positions.queries.numel(), d],
        "k": [h_kv, positions.tokens, d],
        "v": [h_kv, positions.tokens, layer.v.shape[2]],
        "w_o": [h_q * layer.v.shape[2], width],
        "b_o": [width],
        "sinks": [h_q],
        "output": [positions.outputs.numel(), width],
        "residual_norms": [positions.queries.numel()],
    }
    for name, shape in expected.items():
        t = getattr(layer, name)
        if t is None:
            continue
        if list(t.shape) != shape:
            raise InputError(f"{where}: {name}: expected shape {shape}, found {list(t.shape)}")
        if not torch.isfinite(t).all():
            bad = int((~torch.isfinite(t)).sum())
            raise InputError(
                f"{where}: {name}: {bad} of {t.numel()} values are not finite in {str(t.dtype)[6:]}; "
                "a type with a larger range may hold them (bfloat16 or float32)"
            )
    check_facts(where, layer, d)
    if not (layer.scale > 0 and layer.scale < float("inf")):
        raise InputError(f"{where}: scale: expected a positive number, found {layer.scale}")
    if not 0 <= layer.softcap < float("inf") or layer.sliding_window < 0:
        raise InputError(f"{where}: softcap and sliding_window: expected numbers >= 0")


def check_facts(where: str, layer: Layer, head_size: int) -> None:
    """Refuse residual norms that are no norms, and more rotary frequencies than channels. Throws InputError."""
    norms, rotation = layer.residual_norms, layer.rope_inv_freq
    for name, fact in (("residual_norms", norms), ("rope_inv_freq", rotation)):
        if fact is not None and fact.dtype not in (torch.float32, torch.float64):
            raise InputError(f"{where}: {name}: expected float32 or float64, found {str(fact.dtype)[6:]}")
    if norms is not None and not bool((norms > 0).all()):
        raise InputError(f"{where}: residual_norms: expected numbers above 0, found {float(norms.min()):g}")
    if rotation is None:
        return
    if not 1 <= len(rotation) <= head_size // 2:
        raise InputError(f"{where}: rope_inv_freq: expected 1..{head_size // 2} elements (d / 2), found {len(rotation)}")
