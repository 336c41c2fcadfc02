"""Attention masks without a tokens x tokens matrix.

transformers builds masks from index functions ("may query i see key j?"). `register` makes it hand that function to us; `Mask`
then evaluates it for a block of rows at a time. Older releases build the matrix themselves, and `Mask` wraps it.
"""

from collections.abc import Callable

import torch

from .errors import MaskMismatch, UnsupportedModel

BLOCK = 1 << 24  # mask elements evaluated at once


class Mask:
    """Which keys each query may see, evaluated in blocks of rows."""

    def __init__(self, rows: Callable[[int, int], torch.Tensor], n_queries: int, n_keys: int):
        """`rows(begin, end)` is a bool tensor [end - begin, n_keys], true where a query sees a key."""
        self.rows, self.n_queries, self.n_keys = rows, n_queries, n_keys
        self._window = None

    def __getitem__(self, index) -> "Mask":
        """`mask[:, :, first:, :]`, as models slice a matrix whose later layers are run for the last queries only."""
        everything = slice(None)
        if not (isinstance(index, tuple) and len(index) == 4 and isinstance(index[2], slice)):
            raise UnsupportedModel(f"its code takes {index!r} of its attention mask; only the last rows of a mask can be taken")
        first, end, step = index[2].indices(self.n_queries)
        if index[:2] + index[3:] != (everything,) * 3 or end != self.n_queries or step != 1:
            raise UnsupportedModel(f"its code takes {index!r} of its attention mask; only the last rows of a mask can be taken")
        return Mask(lambda a, b: self.rows(first + a, first + b), end - first, self.n_keys)

    def window(self) -> int:
        """w if every query at p sees exactly the keys p-w+1 .. p, n_keys if it sees 0 .. p. Throws UnsupportedModel otherwise.

        The queries are the last ones of the sequence. Cost: one look at every element, once; models share masks among layers.
        """
        if self._window is None:
            self._window = self._measure()
        return self._window

    def _measure(self) -> int:
        first = self.n_keys - self.n_queries
        window = int(self.rows(self.n_queries - 1, self.n_queries).sum())
        step = max(1, BLOCK // self.n_keys)
        for begin in range(0, self.n_queries, step):
            end = min(self.n_queries, begin + step)
            seen = self.rows(begin, end)
            query = torch.arange(first + begin, first + end, device=seen.device)[:, None]
            key = torch.arange(self.n_keys, device=seen.device)[None, :]
            if not torch.equal(seen, (key <= query) & (key > query - window)):
                row = int((seen != ((key <= query) & (key > query - window))).any(1).nonzero()[0])
                raise UnsupportedModel(
                    f"the mask of the query at position {first + begin + row} is neither causal nor a sliding window "
                    "(chunked, bidirectional or prefix attention); a dump cannot express it"
                )
        return window


def from_function(function, n_queries: int, n_keys: int, first_query: int, first_key: int, device) -> Mask:
    """A mask from one of transformers' index functions (batch, head, query, key) -> bool."""
    zero = torch.zeros((), dtype=torch.long, device=device)
    key = torch.arange(first_key, first_key + n_keys, device=device)[None, :]

    def rows(begin: int, end: int) -> torch.Tensor:
        query = torch.arange(first_query + begin, first_query + end, device=device)[:, None]
        return function(zero, zero, query, key).expand(end - begin, n_keys)

    return Mask(rows, n_queries, n_keys)


def from_tensor(matrix: torch.Tensor, n_queries: int, n_keys: int) -> Mask:
    """A mask from a matrix [1, 1, queries, keys or more]: bool, or added to the logits (0 = visible)."""

    def rows(begin: int, end: int) -> torch.Tensor:
        part = matrix[0, 0, begin:end, :n_keys]
        return part if part.dtype == torch.bool else part == 0

    return Mask(rows, n_queries, n_keys)


def causal(n_queries: int, n_keys: int, device) -> Mask:
    """The plain causal mask of the last `n_queries` of `n_keys` positions."""
    mask = from_function(lambda b, h, query, key: key <= query, n_queries, n_keys, n_keys - n_queries, 0, device)
    mask._window = n_keys  # by construction; a long prompt is spared the look at every element, in every layer
    return mask


def as_mask(mask, query: torch.Tensor, key: torch.Tensor) -> Mask:
    """Whatever a model passed to its attention function, as a Mask. None means causal, as it does for every fused kernel."""
    n_queries, n_keys = query.shape[2], key.shape[2]
    if isinstance(mask, Mask):
        if mask.n_keys != n_keys or mask.n_queries != n_queries:
            raise MaskMismatch(
                f"its mask is for {mask.n_queries} queries and {mask.n_keys} keys, its attention for {n_queries} and {n_keys}"
            )
        return mask
    if mask is None:
        return causal(n_queries, n_keys, query.device)
    if isinstance(mask, torch.Tensor) and mask.ndim == 4 and mask.shape[:2] == (1, 1):
        return from_tensor(mask, n_queries, n_keys)
    raise UnsupportedModel(f"its attention mask is a {type(mask).__name__} of a kind that is not known here")


def _build(q_length=None, kv_length=None, q_offset=0, kv_offset=0, mask_function=None, cache_position=None, device=None, **_):
    """Called by transformers in place of its own mask builders; 4.53 to 4.57 pass `cache_position`, later releases the numbers."""
    if cache_position is not None:
        q_length, q_offset, device = len(cache_position), int(cache_position[0]), cache_position.device
    return from_function(mask_function, q_length, kv_length, int(q_offset), int(kv_offset), device)


def register(name: str) -> None:
    """Make models whose attention implementation is `name` use `Mask`. Does nothing before transformers 4.53."""
    try:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    except ImportError:  # these releases build the matrix in each model, and `from_tensor` wraps it
        return
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, _build)
