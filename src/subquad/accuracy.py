"""How far a result lies from the float64 oracle, and how much of the dense softmax its pattern keeps.

The definition of attention, with the mask read off `pattern.contains` and never off a plan, for any choice of query
rows: so it also serves where all n x n scores would not fit.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from subquad.patterns import Pattern

Array = npt.NDArray[Any]

#: Scores held at a time, 32 MB in float64.
CHUNK_SCORES = 1 << 22


@dataclass(frozen=True, slots=True)
class Accuracy:
    """One result against the oracle, over the rows looked at."""

    #: Largest absolute difference of an output element; NaN if either side is.
    max_difference: float
    #: What rounding may explain; see `tolerance`.
    tolerance: float
    #: Mean over heads and rows of the dense softmax weights that fall on allowed keys.
    mass: float

    @property
    def correct(self) -> bool:
        """Rounding explains the difference. A NaN is never correct."""
        return self.max_difference <= self.tolerance


def tolerance(dtype: npt.DTypeLike, n: int, d: int, score: float, value: float) -> float:
    """Absolute error that rounding can cause in a softmax average over n values of at most `value`.

    A dot product of length d is off by about sqrt(d) / 2 roundings of a number as large as the largest `score`, scale
    and exponential add two more, and an error of a score is a relative error of its weight; summing n weights adds a
    random walk of sqrt(n) / 2 roundings.
    """
    eps = float(np.finfo(np.dtype(dtype)).eps)
    return eps * (4 + math.sqrt(n) / 2 + (2 + math.sqrt(d) / 2) * score) * value


def measure_accuracy(query: Array, key: Array, value: Array, out: Array, pattern: Pattern, rows: Array) -> Accuracy:
    """Compare the `rows` of `out` with dense float64 attention restricted to the pattern.

    Parameters
    ----------
    query, key, value, out
        Arrays (heads, n, d), the scale of the scores being d^-0.5.
    pattern
        What `out` was computed with.
    rows
        Query rows to look at. Time O(heads rows n d), memory O(n) but for a fixed number of scores.
    """
    heads, n, d = query.shape
    keys, values = key.astype(np.float64), value.astype(np.float64)
    columns = np.arange(n)[None, :]
    largest_difference, largest_score, mass = 0.0, 0.0, 0.0
    for chunk in np.array_split(rows, min(rows.size, math.ceil(rows.size * n / CHUNK_SCORES))):
        allowed = np.broadcast_to(pattern.contains(chunk[:, None], columns, n, n), (chunk.size, n))
        for head in range(heads):
            scores = query[head, chunk].astype(np.float64) @ keys[head].T * d**-0.5
            largest_score = max(largest_score, float(np.abs(scores).max()))
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            total = weights.sum(axis=1)
            weights *= allowed
            kept = weights.sum(axis=1)
            expected = weights @ values[head] / np.where(kept == 0, 1, kept)[:, None]
            # np.maximum, unlike max, hands a NaN on.
            difference = np.abs(out[head, chunk] - expected).max()
            largest_difference = float(np.maximum(largest_difference, difference))
            mass += float((kept / total).sum())
    allowance = tolerance(query.dtype, n, d, largest_score, float(np.abs(value).max()))
    return Accuracy(largest_difference, allowance, mass / (heads * rows.size))


def sample_rows(n: int, limit: int, seed: int) -> Array:
    """All n rows where they are at most `limit`, else so many of them: the first, the last, and random ones between."""
    if n <= limit:
        return np.arange(n)
    between = np.random.default_rng(seed).choice(n - 2, size=limit - 2, replace=False) + 1
    return np.concatenate(([0], np.sort(between), [n - 1]))
