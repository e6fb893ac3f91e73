"""Keys at distances that double."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from subquad.complexity.orders import LINEARITHMIC, Order
from subquad.patterns.base import Pattern, Shape, Visits
from subquad.patterns.row_lists import RowLists, Stretches
from subquad.patterns.spans import Bools, Ints


class _Doubling(RowLists):
    """Keys whose distance to the query is 0 or a power of two, all on one side of it."""

    __slots__ = ()

    _side: ClassVar[int]  # -1: before the query, 1: after it

    @property
    def order(self) -> Order:
        return LINEARITHMIC

    def _distances(self, shape: Shape) -> Ints:
        """Those that a key can have, ascending."""
        return np.concatenate(([0], 2 ** np.arange(shape.farthest.bit_length())))

    def _stretches(self, rows: Ints, shape: Shape) -> Stretches:
        keys = rows[:, None] + shape.shift + self._side * self._distances(shape)[:: self._side]
        owner, place = np.nonzero((keys >= 0) & (keys < shape.n_k))
        start = keys[owner, place]
        return Stretches(owner, start, start + 1)

    def _visits(self, shape: Shape, lanes: int) -> Visits:
        distances = shape.n_k.bit_length() + 1
        far = max(1, distances - lanes.bit_length() + 2)  # the nearest overlap
        return Visits(distances, lanes * far, far)

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        distance = self._side * (j - i - shape.shift)
        return np.asarray((distance >= 0) & (distance & (distance - 1) == 0))

    def _count(self, shape: Shape) -> int:
        # at each distance, the positions p of all rows whose key p + side x distance is one of [0, n_k)
        moved = self._side * self._distances(shape)
        first, stop = np.maximum(shape.shift, -moved), np.minimum(shape.shift + shape.n_q, shape.n_k - moved)
        return int(np.maximum(stop - first, 0).sum())


@dataclass(frozen=True, slots=True)
class LogSparse(_Doubling):
    """Keys at distance 0 and at every power of two before the query: O(n log n) pairs.

    References
    ----------
    Li et al., "Enhancing the Locality and Breaking the Memory Bottleneck of Transformer on Time Series Forecasting"
    (2019), section 4.2.

    Examples
    --------
    >>> LogSparse().row(9, 12, 12)
    array([1, 5, 7, 8, 9])
    """

    _side = -1

    def _transposed(self, shape: Shape) -> Pattern:
        return _LogAhead()


@dataclass(frozen=True, slots=True)
class _LogAhead(_Doubling):
    """Keys at distance 0, 1, 2, 4, 8, ... after the query."""

    _side = 1
