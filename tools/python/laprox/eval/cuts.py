"""Caches that are cut again while the model decodes: a schedule's cuts on the model itself.

docs/concepts.md defines schedules. Here queries, keys and values behind the prompt are those of the model with its evicted cache,
so errors feed back, as they do in use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from .. import _core
from .._errors import UsageError
from .._layer import Layer, source_of_layers
from .evicted import PromptLayer, SharedCache, attend


@dataclass
class Cell:
    """What one cell does at a cut. `sums`: for a policy that sums attention, what the prompt gave: [layer] [H_q, C]."""

    policy: _core.Policy
    budget: _core.DecodingBudget
    sums: list[np.ndarray] | None = None


@dataclass
class _Held:
    """One layer's caches in the cells that run: bool [cells, H_kv, C + tail], and what their cuts read."""

    there: torch.Tensor
    queries: torch.Tensor  # [cells, H_q, w, d], the last ones
    sums: torch.Tensor | None  # [cells, H_q, C + tail]
    keys: torch.Tensor | None = None  # [cells, H_kv, tail, d]
    values: torch.Tensor | None = None


def check_layers(layers: list[Layer], tokens: int, schedule: str) -> None:
    """Raises UsageError where a layer's sliding window is shorter than the `tokens` that the model reads."""
    for number, layer in enumerate(layers):
        if 0 < layer.window < tokens:
            raise UsageError(
                f"--schedule {schedule}: layer {number} has a sliding window of {layer.window} tokens, fewer than the {tokens} "
                "that are read; laprox-eval cuts caches of the whole text only, laprox sweep --schedule replays such layers"
            )


class CutCache(SharedCache):
    """A SharedCache whose cells are cut to their budgets again after every `interval` tokens behind the prompt.

    kept : what the cut after the prompt leaves, one bool tensor [cells, H_kv, C] for each layer
    layers : with `recent` queries, as many as a window may reach back, and `w_o`
    cells : of cells 1 and on; cell 0 is the full cache
    """

    def __init__(
        self,
        layers: list[PromptLayer],
        kept: list[torch.Tensor],
        cells: list[Cell],
        interval: int,
        backend: _core.Backend,
    ):
        super().__init__(layers, kept)
        self._cut_cells: list[Cell | None] = [None, *cells]
        self._interval, self._backend = interval, backend
        self._window = layers[0].recent.shape[1]
        self._held: list[_Held] = []

    def begin(self, cells: slice) -> None:
        """Every cell as the cut after the prompt leaves it."""
        self._running_cells = self._cut_cells[cells]
        self._held = []
        for number, kept in enumerate(self.kept):
            there = kept[cells].clone()
            queries = self.layers[number].recent[None].expand(len(there), -1, -1, -1)
            self._held.append(_Held(there, queries, self._first_sums(number, there)))

    def parts(self, offset: int, count: int) -> Iterator[slice]:
        """Cuts what is due before the token `offset` behind the prompt, and between the parts of the `count` tokens from it."""
        begin = 0
        while begin < count:
            if offset + begin > 0 and (offset + begin) % self._interval == 0:
                self._cut(self.layers[0].context + offset + begin)
            end = min(count, begin + self._interval - (offset + begin) % self._interval)
            yield slice(begin, end)
            begin = end

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """The next layer's attention for the cells that run now, whose new tokens join their caches."""
        layer, held = self.layers[self._next], self._held[self._next]
        self._next += 1
        fresh = layer.context + key.shape[2] - held.there.shape[2]
        held.there = torch.nn.functional.pad(held.there, (0, fresh), value=True)
        if held.sums is not None:
            held.sums = torch.nn.functional.pad(held.sums, (0, fresh))
        held.keys, held.values = key, value
        held.queries = torch.cat([held.queries, query.float()], 2)[:, :, -self._window :]
        return attend(layer, held.there, query, key, value, held.sums)

    def held(self, layer: int) -> torch.Tensor:
        """bool [cells, H_kv, C + tail]: what the caches of a layer hold now."""
        return self._held[layer].there

    def _first_sums(self, number: int, there: torch.Tensor) -> torch.Tensor | None:
        given = [cell.sums if cell else None for cell in self._running_cells]
        if not any(given):
            return None
        heads = self.layers[number].recent.shape[0]
        sums = torch.zeros(len(there), heads, there.shape[2], dtype=torch.float64, device=there.device)
        for row, of_cell in zip(sums, given, strict=True):
            if of_cell:
                row.copy_(torch.from_numpy(of_cell[number]))
        return sums

    @torch.inference_mode()
    def _cut(self, seen: int) -> None:
        for row, cell in enumerate(self._running_cells):
            if cell and not cell.policy.keeps_everything:
                self._cut_cell(row, cell, cell.budget.tokens(seen))

    def _cut_cell(self, row: int, cell: Cell, count: int) -> None:
        # Every KV head of every layer holds equally many entries: places [H_kv, entries], ascending.
        places = [held.there[row].nonzero()[:, 1].view(held.there.shape[1], -1) for held in self._held]
        if places[0].shape[1] <= count:
            return
        evicted = (self._by_sums if cell.sums else self._scored_anew)(row, cell, count, places)
        for held, of_layer, gone in zip(self._held, places, evicted, strict=True):
            held.there[row].scatter_(1, of_layer.gather(1, torch.tensor(gone, device=of_layer.device)), False)

    def _by_sums(self, row: int, cell: Cell, count: int, places: list[torch.Tensor]) -> list[list[list[int]]]:
        """Which of their entries, counted from the first, the KV heads of each layer evict: [layer][H_kv]."""
        evicted = []
        for held, of_layer in zip(self._held, places, strict=True):
            groups = held.sums[row].view(len(of_layer), -1, held.sums.shape[-1])
            sums = groups.gather(2, of_layer[:, None].expand(-1, groups.shape[1], -1)).cpu().numpy()
            evicted.append([_core.evicted_by_sums(cell.policy, of_head, count) for of_head in sums])
        return evicted

    def _scored_anew(self, row: int, cell: Cell, count: int, places: list[torch.Tensor]) -> list[list[list[int]]]:
        """The same by the policy's scores of what the caches hold, as if it were a prompt."""
        layers = [
            _as_prompt(layer, held, row, of_layer) for layer, held, of_layer in zip(self.layers, self._held, places, strict=True)
        ]
        return _core.evicted_places(source_of_layers(layers), cell.policy, count, self._backend)


def _as_prompt(layer: PromptLayer, held: _Held, row: int, places: torch.Tensor) -> Layer:
    """What a cell's cache holds at `places`, with the last queries."""
    entries = places.shape[1]
    queries = held.queries[row][:, -entries:].cpu()
    return Layer(
        queries,
        _picked(layer.keys, held.keys[row], places),
        _picked(layer.values, held.values[row], places),
        layer.w_o,
        scale=layer.scale,
        softcap=layer.softcap,
        sinks=None if layer.sinks is None else layer.sinks.cpu().numpy(),
        positions=np.arange(entries - queries.shape[1], entries),
    )


def _picked(prompt: torch.Tensor, tail: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The entries [H_kv, entries, size] at these places of a prompt's tensor and the one behind it."""
    whole = torch.cat([prompt, tail.float()], 1)
    return whole.gather(1, places[..., None].expand(-1, -1, whole.shape[2])).cpu()
