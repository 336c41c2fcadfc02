"""How one policy's figures differ from another's on the same prompts, as `laprox report` says it (src/replay/statistics.cpp)."""

from __future__ import annotations

from dataclasses import dataclass
from math import erfc, floor, sqrt

import numpy as np

FEWEST = 6  # pairs: with fewer no two-sided test at 5 % can tell two policies apart
SIGNIFICANCE = 0.05
LARGEST_EXACT = 25
NORMAL_QUANTILE = 1.959963984540054


@dataclass(frozen=True)
class PairedDifference:
    """a - b over pairs.

    Attributes
    ----------
    pairs, lower, mean : how many, those in which a is below b, and the mean of a - b (NaN without pairs)
    estimate : Hodges and Lehmann's: the median of the means of any two differences, each with itself too
    low, high : the interval of the estimate that belongs to the signed-rank test, of at least 95 %
    p : of the signed-rank test

    Below FEWEST pairs the interval has no ends and p says nothing.
    """

    pairs: int
    lower: int
    mean: float
    estimate: float
    low: float
    high: float
    p: float

    @property
    def enough(self) -> bool:
        """Whether there are so many pairs that the interval and p mean something."""
        return self.pairs >= FEWEST


def compare_pairs(a: np.ndarray, b: np.ndarray) -> PairedDifference:
    """Compares a and b, finite and of equal length [pairs]."""
    differences = np.asarray(a, float) - np.asarray(b, float)
    count, lower = len(differences), int((differences < 0).sum())
    if count == 0:
        return PairedDifference(0, 0, np.nan, np.nan, -np.inf, np.inf, 1.0)
    rows, columns = np.tril_indices(count)
    means = np.sort((differences[rows] + differences[columns]) / 2)
    low, high = -np.inf, np.inf
    if count >= FEWEST:
        cut = max(1, _pairs_beyond(count))
        low, high = float(means[cut - 1]), float(means[len(means) - cut])
    return PairedDifference(count, lower, float(differences.mean()), float(np.median(means)), low, high, signed_rank_p(differences))


def signed_rank_p(differences: np.ndarray) -> float:
    """Wilcoxon's signed-rank test of differences [pairs] against a median of 0, two-sided.

    Differences of 0 are left out. Exact for at most 25 differences without ties; else the normal approximation with the variance
    corrected for ties and no correction for continuity. 1 where all are 0.
    """
    differences = differences[differences != 0]
    n = len(differences)
    if n == 0:
        return 1.0
    _, place, tied = np.unique(np.abs(differences), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(tied) - (tied - 1) / 2)[place]
    tie_term = float((tied.astype(float) ** 3 - tied).sum())
    positive, most = float(ranks[differences > 0].sum()), n * (n + 1) / 2
    if n <= LARGEST_EXACT and tie_term == 0:
        return min(1.0, 2 * float(_distribution(n)[int(min(positive, most - positive))]))
    return erfc(abs(positive - most / 2) / sqrt(_variance(n, tie_term)) / sqrt(2))


def _distribution(n: int) -> np.ndarray:
    """P(W <= w) for w = 0 .. n (n + 1) / 2 where each of the ranks 1 .. n is positive with probability 1/2."""
    chance = np.zeros(n * (n + 1) // 2 + 1)
    chance[0] = 1
    for rank in range(1, n + 1):
        chance[rank:], chance[:rank] = (chance[rank:] + chance[:-rank]) / 2, chance[:rank] / 2
    return np.cumsum(chance)


def _variance(n: int, tie_term: float) -> float:
    return n * (n + 1) * (2 * n + 1) / 24 - tie_term / 48


def _pairs_beyond(n: int) -> int:
    """The most mean pairs that may be cut off either end of their order, so that the rest covers the median with at least 95 %."""
    if n <= LARGEST_EXACT:
        return int((_distribution(n) <= SIGNIFICANCE / 2).sum())
    return floor(n * (n + 1) / 4 - NORMAL_QUANTILE * sqrt(_variance(n, 0)))
