"""Every s-th key, counted from the query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from subquad import checks
from subquad.complexity.orders import QUADRATIC, Order
from subquad.patterns.bands import Dense
from subquad.patterns.base import Pattern, Shape, Visits
from subquad.patterns.row_lists import expand
from subquad.patterns.spans import Bools, Ints


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Strided(Pattern):
    """Keys at a multiple of `stride` from the query, ``(p - j) % stride == 0``: O(n² / stride) pairs.

    Rows of one residue class share their keys. The plan works class by class, where the pattern is dense.

    Parameters
    ----------
    stride : int
        At least 1; 1 allows everything.

    Raises
    ------
    TypeError, ValueError
        If the stride is no integer, or below 1.

    References
    ----------
    Child, Gray, Radford, Sutskever, "Generating Long Sequences with Sparse Transformers" (2019), section 4.2.

    Examples
    --------
    >>> Strided(3).row(4, 9, 9)
    array([1, 4, 7])
    """

    stride: int

    def __init__(self, stride: Any) -> None:
        object.__setattr__(self, "stride", checks.integer(stride, "stride", 1))

    @property
    def order(self) -> Order:
        return QUADRATIC

    def _resolved(self, shape: Shape) -> Pattern:
        return Dense() if self.stride == 1 else self

    def transpose(self) -> Pattern:
        return self

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return np.asarray((i + shape.shift - j) % self.stride == 0)

    def _row(self, i: int, shape: Shape) -> Ints:
        return checks.key_range((i + shape.shift) % self.stride, shape.n_k, self.stride)

    def _count(self, shape: Shape) -> int:
        # rows and keys of a residue class, summed over the classes: each count is one of two neighbouring numbers
        s = self.stride
        (rows, more_rows), (keys, more_keys) = divmod(shape.n_q, s), divmod(shape.n_k, s)
        start = shape.shift % s  # classes start, ..., start + more_rows - 1 (cyclic) have one row more
        both = (
            min(start + more_rows, s, more_keys) - min(start, more_keys) + min(max(0, start + more_rows - s), more_keys)
        )
        return s * rows * keys + rows * more_keys + keys * more_rows + both

    def _visits(self, shape: Shape, lanes: int) -> Visits:
        row = max(1, shape.n_k / self.stride)
        return Visits(row, min(shape.n_k, lanes * row), 1)

    def between(self, rows: Ints, low: Ints, high: Ints, shape: Shape) -> tuple[Ints, Ints]:
        """Of each row the keys low <= j < high: the row's place among `rows`, and the key."""
        first = low + (rows + shape.shift - low) % self.stride
        counts = np.maximum(-((first - high) // self.stride), 0)
        owner = np.repeat(np.arange(len(rows)), counts)
        return owner, first[owner] + expand(np.zeros_like(counts), counts) * self.stride

    def __repr__(self) -> str:
        return f"Strided({self.stride})"
