"""The rotary frequencies of a layer, written only where rotating by them reproduces the layer's own queries and keys.

A configuration's word is not taken. The attention module runs once more with cosines of 1 and sines of 0 in place of those that
the model gave it, up to the point where it would attend: that gives its queries and keys before rotation. Rotated by the format's
definition (channels j and j + r / 2 of position p by the angle p * f[j]) they have to be what the kernel saw.
"""

import copy
from collections.abc import MutableMapping

import torch

from . import attention

# Kinds of rotary embedding whose frequencies do not depend on the sequence's length, as transformers names them. Dynamic NTK and
# LongRoPE change theirs where a sequence grows: what is true of one prompt would be wrong for the text that follows it.
FIXED = ("default", "linear", "llama3", "yarn", "proportional")

ROUNDING = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of cosines, products and sums in that type
ANGLE = 1.2e-7  # the angle p * f in float32 is wrong by this much for each position
SAMPLE = 64  # positions that are compared


def inverse_frequencies(model: torch.nn.Module, call: attention.Call, args: tuple, kwargs: dict) -> torch.Tensor | None:
    """float64 [r / 2] for the attention call whose module was given `args` and `kwargs`; None where no such truth is known."""
    given = _cosines(args, kwargs)
    if given is None:
        return None
    cos, sin = given
    tokens = call.query.shape[2]
    at = torch.linspace(0, tokens - 1, min(SAMPLE, tokens), device=cos.device).round().long().unique()
    limit = ROUNDING.get(call.query.dtype, ROUNDING[torch.float32]) + ANGLE * tokens
    candidates = [f for f in _candidates(model) if _same_angles(f, cos, sin, at, limit)]
    if not candidates:
        return None
    query, key = _before_rotation(call, args, kwargs, cos, sin)
    pairs = [(query, call.query)]
    if not _same(key, call.key):  # else it is another layer's, which was rotated and judged there
        pairs.append((key, call.key))
    for f in candidates:
        if all(_rotates(before, after, f, at, limit) for before, after in pairs):
            return f
    return None


def _cosines(args: tuple, kwargs: dict) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The cosines and sines among a module's arguments, [1, T, r] each; None if there are none of that form."""
    for value in (*args, *kwargs.values()):
        if _is_rotation(value):
            return value
    return None


def _is_rotation(value) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(t, torch.Tensor) and t.is_floating_point() and t.ndim == 3 and t.shape[0] == 1 for t in value)
        and value[0].shape == value[1].shape
    )


def _candidates(model: torch.nn.Module) -> list[torch.Tensor]:
    """The frequencies that the model's rotary modules hold, those of fixed kinds only: float64."""
    found = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", "default")
        for name, value in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq") or "original" in name or value.ndim != 1:
                continue
            kind = kinds.get(name.removesuffix("_inv_freq"), "default") if isinstance(kinds, dict) else kinds
            if kind in FIXED and bool(torch.isfinite(value).all()):
                found.append(value.double())
    return found


def _same_angles(f: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, at: torch.Tensor, limit: float) -> bool:
    """Whether cos and sin [1, T, r] (both halves alike) or [1, T, r / 2] are those of the angles p * f, unscaled."""
    angle = at.double()[:, None] * f.to(cos.device)
    if cos.shape[-1] == 2 * len(f):
        angle = torch.cat([angle, angle], -1)
    if cos.shape[-1] != angle.shape[-1]:
        return False
    error = torch.maximum((cos[0, at].double() - angle.cos()).abs().max(), (sin[0, at].double() - angle.sin()).abs().max())
    return bool(error <= limit)


def _before_rotation(call: attention.Call, args, kwargs, cos, sin) -> tuple[torch.Tensor, torch.Tensor]:
    """The layer's queries and keys as they were before rotation: its module runs until it would attend."""
    identity = (torch.ones_like(cos), torch.zeros_like(sin))

    def replaced(value):
        if _is_rotation(value):
            return identity
        return copy.copy(value) if isinstance(value, MutableMapping) else value  # layers leave keys for others in it

    def cached(name: str) -> bool:  # keys must not be appended to a cache twice
        return name in ("past_key_value", "past_key_values", "cache")

    with attention.peeking() as seen:
        try:
            call.module.forward(*map(replaced, args), **{k: None if cached(k) else replaced(v) for k, v in kwargs.items()})
        except attention.Peeked:
            pass
    return seen.query, seen.key


def _rotates(before: torch.Tensor, after: torch.Tensor, f: torch.Tensor, at: torch.Tensor, limit: float) -> bool:
    """Whether rotating `before` [1, H, T, d] by the format's definition gives `after`, at the positions `at`."""
    x, expected = before[0][:, at].double(), after[0][:, at].double()
    half = len(f)
    if 2 * half > x.shape[-1] or x.shape != expected.shape:
        return False
    angle = at.double()[:, None] * f.to(x.device)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    found = torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin(), rest], -1)
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-30)
    return bool(error.max() <= limit)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
