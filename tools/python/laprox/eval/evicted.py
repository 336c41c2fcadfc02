"""Attention over one prompt's cache, shared by many cells, each of which keeps other entries of it.

A cell is one policy at one budget. The prompt's keys and values stand in memory once; what differs between cells is a mask over
them, and the keys of the tokens that each cell decoded itself, which are never evicted. Logits and sums are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

NAME = "laprox_eval"
#: Logits held at once, in elements; a few arrays of that size exist at a time.
BLOCK = {"cpu": 1 << 25, "cuda": 1 << 29}


@dataclass
class PromptLayer:
    """One layer's cache of the prompt: keys [H_kv, C, d] and values [H_kv, C, d_v] in float32, and how the layer attends.

    Logits are scale * <q, k>; softcap and window 0 mean none; sinks [H_q] are logits that join the denominator only. Only caches
    that are cut again (cuts.py) need the prompt's last queries `recent` [H_q, w, d] and the output projection `w_o`
    [H_q * d_v, D], that one on the host.
    """

    keys: torch.Tensor
    values: torch.Tensor
    scale: float
    softcap: float = 0.0
    window: int = 0
    sinks: torch.Tensor | None = None
    recent: torch.Tensor | None = None
    w_o: torch.Tensor | None = None

    @property
    def context(self) -> int:
        """C, the prompt's tokens."""
        return self.keys.shape[1]


def attend(
    layer: PromptLayer,
    kept: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sums: torch.Tensor | None = None,
) -> torch.Tensor:
    """Head outputs [cells, steps, H_q, d_v] of the last `steps` tokens of each cell.

    kept : bool [cells, H_kv, C], the prompt's entries that are there; [cells, H_kv, C + tail] tells of those behind it, too
    query : [cells, H_q, steps, d]
    key, value : [cells, H_kv, tail, d or d_v], of the tokens behind the prompt, these `steps` included
    sums : [cells, H_q, C + tail], to which the weights of these queries are added
    """
    cells, heads, steps, _ = query.shape
    size = heads * steps * (layer.context + key.shape[2])
    each = max(1, BLOCK.get(query.device.type, BLOCK["cpu"]) // size)
    parts = []
    for i in range(0, cells, each):
        of_part = [tensor[i : i + each] for tensor in (kept, query, key, value)]
        parts.append(_attend(layer, *of_part, None if sums is None else sums[i : i + each]))
    return torch.cat(parts).to(query.dtype)


def _attend(layer, kept, query, key, value, sums):
    cells, heads, steps, size = query.shape
    groups, tail = layer.keys.shape[0], key.shape[2]
    query = (query.float() * layer.scale).reshape(cells, groups, -1, size).transpose(0, 1)  # [H_kv, cells, G * steps, d]
    shape = (groups, cells, heads // groups, steps)
    far = _capped(layer, query.reshape(groups, -1, size) @ layer.keys.transpose(1, 2)).view(*shape, layer.context)
    near = _capped(layer, query @ key.float().transpose(0, 1).transpose(2, 3)).view(*shape, tail)
    far_seen, near_seen = _visible(layer, steps, tail, query.device)
    hidden = ~kept.transpose(0, 1)[:, :, None, None, :]
    far_hidden, near_hidden = hidden[..., : layer.context], ~near_seen
    if kept.shape[-1] > layer.context:
        near_hidden = near_hidden | hidden[..., layer.context :]
    far.masked_fill_(far_hidden if far_seen is None else far_hidden | ~far_seen, float("-inf"))
    near.masked_fill_(near_hidden, float("-inf"))

    top = torch.maximum(far.amax(-1), near.amax(-1))[..., None]
    sinks = None if layer.sinks is None else layer.sinks.float().view(groups, 1, -1, 1, 1)
    if sinks is not None:
        top = torch.maximum(top, sinks)
    far, near = far.sub_(top).exp_(), near.sub_(top).exp_()
    total = far.sum(-1, keepdim=True) + near.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + (sinks - top).exp()
    if sums is not None:
        weights = (torch.cat([far, near], -1) / total).sum(3, dtype=sums.dtype)
        sums += weights.transpose(0, 1).reshape(sums.shape)
    output = (far.view(groups, -1, layer.context) @ layer.values).view(*shape, -1)
    output += (near.view(groups, cells, -1, tail) @ value.float().transpose(0, 1)).view(*shape, -1)
    return (output / total).permute(1, 3, 0, 2, 4).reshape(cells, steps, heads, -1)


def _capped(layer: PromptLayer, logits: torch.Tensor) -> torch.Tensor:
    return logits.div_(layer.softcap).tanh_().mul_(layer.softcap) if layer.softcap else logits


def _visible(layer: PromptLayer, steps: int, tail: int, device) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Which of the prompt's keys [steps, C] and of the later ones [steps, tail] a query may see; None: all of the prompt's."""
    position = torch.arange(tail - steps, tail, device=device)[:, None]
    key = torch.arange(tail, device=device)[None, :]
    near = key <= position
    if not layer.window:
        return None, near
    prompt = torch.arange(-layer.context, 0, device=device)[None, :]
    return prompt > position - layer.window, near & (key > position - layer.window)


def remove(layer: PromptLayer, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One cell's cache with the evicted entries gone: keys and values [H_kv, most, d], and which places are filled.

    Heads keep different numbers, so the shorter ones are filled up with zeros, which `filled` [H_kv, most] tells apart.
    """
    most = max(1, int(kept.sum(-1).max()))
    order = torch.argsort(~kept, dim=-1, stable=True)[:, :most]
    filled = kept.gather(1, order)
    pick = order[..., None]
    keys = layer.keys.gather(1, pick.expand(-1, -1, layer.keys.shape[2])) * filled[..., None]
    values = layer.values.gather(1, pick.expand(-1, -1, layer.values.shape[2])) * filled[..., None]
    return keys, values, filled


def attend_removed(layer: PromptLayer, kept, query, key, value) -> torch.Tensor:
    """What `attend` computes, from caches out of which the evicted entries were really taken: a proof of the mask."""
    parts = []
    for i in range(query.shape[0]):
        keys, values, filled = remove(layer, kept[i])
        positions = torch.argsort(~kept[i], dim=-1, stable=True)[:, : keys.shape[1]]
        small = PromptLayer(keys, values, layer.scale, layer.softcap, 0, layer.sinks)
        if layer.window:  # the smallest position that the last query sees decides; one query at a time keeps this plain
            steps, tail = query.shape[2], key.shape[2]
            rows = []
            for s in range(steps):
                end = tail - steps + s + 1
                seen = filled & (positions - layer.context > end - 1 - layer.window)
                first = max(0, end - layer.window)
                part = (query[i : i + 1, :, s : s + 1], key[i : i + 1, :, first:end], value[i : i + 1, :, first:end])
                rows.append(attend(small, seen[None], *part))
            parts.append(torch.cat(rows, dim=1))
        else:
            parts.append(attend(small, filled[None], query[i : i + 1], key[i : i + 1], value[i : i + 1]))
    return torch.cat(parts)


class SharedCache:
    """The caches of all layers, in the order in which the model attends, and what each cell keeps of them.

    kept : one bool tensor [cells, H_kv, C] for each layer
    physical : entries are removed instead of hidden
    """

    def __init__(self, layers: list[PromptLayer], kept: list[torch.Tensor], physical: bool = False):
        self.layers, self.kept = layers, kept
        self._attend = attend_removed if physical else attend
        self._cells: slice | torch.Tensor = slice(None)
        self._next = 0

    def begin(self, cells: slice) -> None:
        """These cells read what follows the prompt, from its first token on."""

    def parts(self, offset: int, count: int) -> Iterator[slice]:
        """The tokens `offset` .. `offset + count` behind the prompt, in parts that may be read at once."""
        yield slice(0, count)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The next layer's attention for the cells that run now."""
        layer, kept = self.layers[self._next], self.kept[self._next][self._cells]
        self._next += 1
        return self._attend(layer, kept, query, key, value)

    @contextmanager
    def running(self, cells: slice | torch.Tensor) -> Iterator[None]:
        """Inside, one forward pass of the model attends for these cells."""
        global _running
        self._cells, self._next, _running = cells, 0, self
        try:
            yield
        finally:
            _running = None


_running: SharedCache | None = None


def _forward(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """The function that transformers calls; its signature and result (heads, weights) are transformers'."""
    if _running is None:
        raise RuntimeError("the model attends over an evicted cache, and none is there")
    return _running.forward(query, key, value), None


def register() -> None:
    """Adds the function to transformers' registries; harmless when repeated."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if hasattr(ALL_ATTENTION_FUNCTIONS, "register"):
        ALL_ATTENTION_FUNCTIONS.register(NAME, _forward)
    else:  # before 4.51 the registry was a plain dict
        ALL_ATTENTION_FUNCTIONS[NAME] = _forward
    try:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    except ImportError:  # these releases build masks in each model; `_forward` does not read them
        return
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, lambda *_, **__: None)


@contextmanager
def routed(model: torch.nn.Module, name: str = NAME) -> Iterator[None]:
    """Inside, the model's attention goes through the function of that name."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    before = [c._attn_implementation for c in configs]
    for config in configs:
        config._attn_implementation = name
    try:
        yield
    finally:
        for config, old in zip(configs, before, strict=True):
            config._attn_implementation = old
