"""What a model says after its prompt's cache was evicted, for many cells at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import torch
from transformers import DynamicCache

from .evicted import SharedCache, routed

#: Bytes of logits that one batch of cells may have; a few arrays of that size exist at a time.
MEMORY = {"cpu": 1 << 29, "cuda": 1 << 33}


class Loop:
    """The model behind one evicted prompt.

    `cache` holds the prompt's keys and values; `count` is the number of its cells.
    """

    def __init__(self, model: torch.nn.Module, cache: SharedCache, count: int):
        self.model, self.cache, self.count = model, cache, count
        self.context = cache.layers[0].context
        self.device = cache.layers[0].keys.device
        known = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in known else "past_key_values"  # renamed in transformers 5
        self._last = next((key for key in ("logits_to_keep", "num_logits_to_keep") if key in known), None)

    def forced(self, tokens: torch.Tensor, last: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Every cell reads `tokens` [s]; yields (cells, logits float32 [cells, last, V]) of the last ones, batch by batch."""
        tokens = tokens.to(self.device)

        def run(cells: slice) -> torch.Tensor:
            self.cache.begin(cells)
            return self._read(tokens[None].expand(cells.stop - cells.start, -1), 0, DynamicCache(), cells, last)

        yield from self._batches(run, len(tokens))

    def free(self, start: torch.Tensor, first: torch.Tensor | None, most: int, ends: set[int]) -> list[list[int]]:
        """Greedy decoding of every cell, up to `most` tokens or one of `ends`.

        `start` [s] are the tokens behind the cache that all cells read. `first` is the token that the prompt's own last query
        gave, where there is no such token: then it is `start`.
        """
        found: list[list[int]] = [[] for _ in range(self.count)]

        def run(cells: slice) -> torch.Tensor:
            tail, rows = DynamicCache(), start.to(self.device)[None].expand(cells.stop - cells.start, -1)
            if first is not None:
                for row in found[cells]:
                    row[:] = [int(first)]
            self.cache.begin(cells)
            read = 0
            while not all(row and (len(row) >= most or row[-1] in ends) for row in found[cells]):
                chosen = self._read(rows, read, tail, cells, 1)[:, -1].argmax(-1)
                read += rows.shape[1]
                for row, token in zip(found[cells], chosen.tolist(), strict=True):
                    if not row or (len(row) < most and row[-1] not in ends):
                        row.append(token)
                rows = chosen[:, None]
            return rows

        for _ in self._batches(run, 1):
            pass
        return found

    def _batches(self, run: Callable[[slice], torch.Tensor], tokens: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Runs all cells in batches that fit the memory; one that does not fit after all is halved."""
        vocabulary = self.model.get_input_embeddings().num_embeddings
        size = max(1, MEMORY.get(self.device.type, MEMORY["cpu"]) // (4 * tokens * vocabulary))
        begin = 0
        while begin < self.count:
            cells = slice(begin, min(self.count, begin + size))
            try:
                result = run(cells)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = max(1, (cells.stop - cells.start) // 2)
                torch.cuda.empty_cache()
                continue
            yield cells, result
            begin = cells.stop

    def _read(self, rows: torch.Tensor, offset: int, tail: DynamicCache, cells: slice, last: int) -> torch.Tensor:
        """Reads rows [cells, s], the tokens from `offset` on behind the prompt: float32 [cells, last, V]."""
        found, begin = [], rows.shape[1] - last
        for part in self.cache.parts(offset, rows.shape[1]):
            wanted = part.stop - max(part.start, begin)
            logits = self._logits(rows[:, part], self.context + offset + part.start, tail, cells, max(1, wanted))
            if wanted > 0:
                found.append(logits)
        return torch.cat(found, 1)

    def _logits(self, rows: torch.Tensor, position: int, tail: DynamicCache, cells: slice, last: int) -> torch.Tensor:
        """One forward pass of rows [cells, s] at `position` and after: float32 [cells, last, V]."""
        positions = torch.arange(position, position + rows.shape[1], device=self.device)[None].expand(rows.shape[0], -1)
        others = {self._cache_name: tail, **({self._last: last} if self._last else {})}
        with torch.inference_mode(), routed(self.model), self.cache.running(cells):
            result = self.model(input_ids=rows, position_ids=positions, use_cache=True, **others)
        return result.logits[:, -last:].float()


def divergence(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(reference || softmax(logits)) in nats: [cells, n] of log-probabilities [n, V] and logits [cells, n, V]."""
    other = torch.log_softmax(logits, -1)
    return (reference.exp() * (reference - other)).sum(-1, dtype=torch.float64).clamp_min_(0)
