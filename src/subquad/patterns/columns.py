"""Keys at regular places that every query sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from subquad import checks
from subquad.complexity.orders import QUADRATIC, Order
from subquad.patterns.base import Shape
from subquad.patterns.row_lists import expand
from subquad.patterns.spans import Bools, Ints
from subquad.patterns.whole import WholeColumns


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Columns(WholeColumns):
    """The last `width` keys of every `stride`, ``j % stride >= stride - width``: O(n² width / stride) pairs.

    These are the summary columns of the Sparse Transformer's "fixed" pattern. All rows share one list of keys.

    Parameters
    ----------
    stride : int
        At least 1.
    width : int, optional
        From 1 to `stride`; at `stride` everything is allowed.

    Raises
    ------
    TypeError, ValueError
        If an argument is no integer or out of its range.

    References
    ----------
    Child, Gray, Radford, Sutskever, "Generating Long Sequences with Sparse Transformers" (2019), section 4.2.

    Examples
    --------
    >>> Columns(4, 1).row(0, 9, 9)
    array([3, 7])
    """

    stride: int
    width: int

    def __init__(self, stride: Any, width: Any = 1) -> None:
        object.__setattr__(self, "stride", checks.integer(stride, "stride", 1))
        object.__setattr__(self, "width", checks.integer(width, "width", 1))
        if self.width > self.stride:
            raise ValueError(f"width must be at most stride = {self.stride}; got {self.width}")

    @property
    def order(self) -> Order:
        return QUADRATIC

    def stretches(self, shape: Shape) -> tuple[Ints, Ints]:
        if self.width == self.stride:
            return np.zeros(min(1, shape.n_k), np.int64), np.full(min(1, shape.n_k), shape.n_k)
        start = checks.key_range(self.stride - self.width, shape.n_k, self.stride)
        return start, np.minimum(start + self.width, shape.n_k)

    def members(self, shape: Shape) -> Ints:
        n_keys = self._members_below(shape.n_k)
        checks.allocatable(32 * n_keys, f"a list of {n_keys:,} columns", "Use a smaller n_k.")
        start, stop = self.stretches(shape)
        return expand(start, stop - start)

    def of_class(self, residue: Ints, modulus: int) -> Bools | None:
        if modulus % self.stride:
            return None
        return np.asarray(residue % self.stride >= self.stride - self.width)

    def _members_below(self, n: int) -> int:
        return n // self.stride * self.width + max(0, n % self.stride - (self.stride - self.width))

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return np.asarray(j % self.stride >= self.stride - self.width)

    def _count(self, shape: Shape) -> int:
        return shape.n_q * self._members_below(shape.n_k)

    def __repr__(self) -> str:
        return f"Columns({self.stride}, {self.width})"
