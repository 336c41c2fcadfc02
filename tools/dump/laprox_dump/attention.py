"""The attention function that we register with transformers: it computes what the model would, and tells who listens.

Two ways, both transformers' own code. Plain causal attention goes to its `sdpa` function (a fused kernel, no tokens x tokens
matrix). Everything else (soft-cap, sinks, windows) goes to the model's own `eager_attention_forward` in blocks of queries and in
float32: the definition of that model's attention, in bounded memory and without the rounding of logits to half precision. On a
sequence as short as the exporter's probe both ways run and have to agree, so that a model whose own code does more than the
kernel is told (a bias, a sink, a gate of its own) is refused and not silently run as another model.
"""

import sys
from dataclasses import dataclass

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from . import masks
from .errors import UnsupportedModel
from .replay import TOLERANCE, output_error

NAME = "laprox_dump"
PROBE = 16  # tokens that the exporter runs first, and up to which the two ways are compared

# Logits held at once by the blocked path, in elements of 4 bytes; eager code makes a few copies of them.
BLOCK = {"cpu": 1 << 25, "cuda": 1 << 28}

_listener = None
_peek = None


class Peeked(Exception):
    """Thrown out of an attention module that is only asked what it would attend with."""


@dataclass
class Call:
    """One call of the attention function.

    query [1, H_q, n, d], key [1, H_kv, t, d], value [1, H_kv, t, d_v], heads [1, n, H_q, d_v].
    """

    module: torch.nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    heads: torch.Tensor
    mask: masks.Mask
    scale: float
    softcap: float
    declared_window: int
    sinks: torch.Tensor | None

    def sliding_window(self) -> int:
        """The window the kernel applied, 0 = none. The mask decides; a window longer than the sequence is only declared."""
        seen, tokens = self.mask.window(), self.key.shape[2]
        if seen < tokens:
            return seen
        return self.declared_window if self.declared_window >= tokens else 0


def forward(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """The registered function; its signature and its result (heads, weights) are transformers'."""
    if _peek is not None:
        _peek.query, _peek.key = query, key
        raise Peeked
    if query.shape[0] != 1:
        raise UnsupportedModel(f"its attention ran with a batch of {query.shape[0]}; one sequence at a time is expected")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = masks.as_mask(attention_mask, query, key)
    window, softcap, sinks = mask.window(), kwargs.get("softcap"), kwargs.get("s_aux")
    whole = query.shape[2] in (1, key.shape[2])  # sdpa's causal flag aligns queries with the first keys
    if softcap is None and sinks is None and whole and window >= key.shape[2]:
        others = {k: v for k, v in kwargs.items() if k not in ("softcap", "s_aux", "sliding_window", "is_causal")}
        heads, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, None, dropout=0.0, scaling=scaling, **others)
        if key.shape[2] <= PROBE:
            _require_agreement(module, heads, _eager_in_blocks(module, query, key, value, mask, scaling, kwargs))
    else:
        heads = _eager_in_blocks(module, query, key, value, mask, scaling, kwargs)
    if _listener is not None:
        declared = kwargs.get("sliding_window") or 0
        _listener(Call(module, query, key, value, heads, mask, float(scaling), float(softcap or 0), int(declared), sinks))
    return heads, None


def _require_agreement(module, fused: torch.Tensor, eager: torch.Tensor) -> None:
    """Refuse a model whose own attention code computes something else than the fused kernel. Both are [1, n, H_q, d_v]."""
    error, _ = output_error(fused[0].flatten(1).float(), eager[0].flatten(1))
    finite = bool(torch.isfinite(fused).all())  # what is not is refused later, where the tensor that began it has a name
    if finite and not error <= TOLERANCE.get(fused.dtype, TOLERANCE[torch.float32]):
        raise UnsupportedModel(
            f"{type(module).__name__}: its own attention code differs from plain causal attention by {error:.1e}: "
            "it does something that it does not tell its attention function; a dump cannot express it"
        )


def _eager_in_blocks(module, query, key, value, mask, scaling, kwargs) -> torch.Tensor:
    """The model's own eager attention, a block of queries at a time: [1, n, H_q, d_v] in the type of `query`."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise UnsupportedModel(f"{type(module).__name__} has no eager_attention_forward beside it")
    n_queries, n_keys = query.shape[2], key.shape[2]
    step = max(1, BLOCK.get(query.device.type, BLOCK["cpu"]) // (query.shape[1] * n_keys))
    key, value, blocks = key.float(), value.float(), []
    for begin in range(0, n_queries, step):
        end = min(n_queries, begin + step)
        # No query of the block sees a key behind its last one (Mask.window has made sure): leaving them out halves the work.
        known = n_keys - n_queries + end
        seen = mask.rows(begin, end)[:, :known]
        added = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)
        part, _ = eager(
            module,
            query[:, :, begin:end].float(),
            key[:, :, :known],
            value[:, :, :known],
            added[None, None],
            scaling=scaling,
            dropout=0.0,
            **kwargs,
        )
        blocks.append(part.to(query.dtype))
    return torch.cat(blocks, dim=1)


def register() -> None:
    """Add the function to transformers' registry; harmless when repeated."""
    if hasattr(ALL_ATTENTION_FUNCTIONS, "register"):
        ALL_ATTENTION_FUNCTIONS.register(NAME, forward)
    else:  # before 4.51 the registry was a plain dict
        ALL_ATTENTION_FUNCTIONS[NAME] = forward
    masks.register(NAME)


class listening:
    """`with listening(callback):` gives every Call made inside to `callback`."""

    def __init__(self, callback):
        self.callback = callback

    def __enter__(self):
        global _listener
        if _listener is not None:
            raise RuntimeError("attention calls are already being listened to")
        _listener = self.callback

    def __exit__(self, *_):
        global _listener
        _listener = None


class peeking:
    """`with peeking() as seen:` makes the next attention call put its `query` and `key` there and throw Peeked."""

    query: torch.Tensor | None = None
    key: torch.Tensor | None = None

    def __enter__(self) -> "peeking":
        global _peek
        _peek = self
        return self

    def __exit__(self, *_):
        global _peek
        _peek = None
