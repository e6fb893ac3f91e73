"""The block at the end of a sequence, seen by everything and seeing everything."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from subquad import checks
from subquad.complexity.orders import LINEAR, Order
from subquad.patterns.base import Pattern, Shape, Union
from subquad.patterns.spans import Bools, Ints
from subquad.patterns.whole import WholeColumns, WholeRows


@dataclass(frozen=True, slots=True, init=False, repr=False)
class LastBlock(Pattern):
    """Pairs whose query or key is in the last block of `block` keys: O(n block) pairs.

    What ``Global(range(block))`` is for the first block, wherever the sequence ends; the last block is shorter where
    `block` does not divide n_k. The second global block of Hugging Face's BigBird.

    Parameters
    ----------
    block : int
        Tokens in a block, at least 1.

    Raises
    ------
    TypeError, ValueError
        If block is no integer or below 1.

    References
    ----------
    Zaheer et al., "Big Bird" (2020), section 2 (internal global tokens).

    Examples
    --------
    >>> LastBlock(3).row(0, 8, 8)
    array([6, 7])
    >>> len(LastBlock(3).row(7, 8, 8))
    8
    """

    block: int

    def __init__(self, block: Any) -> None:
        object.__setattr__(self, "block", checks.integer(block, "block", 1))

    @property
    def order(self) -> Order:
        return LINEAR

    def _halves(self) -> list[Pattern]:
        return [_LastRows(self.block), _LastKeys(self.block)]

    def _resolved(self, shape: Shape) -> Pattern:
        return reduce(Union, self._halves())

    def _transposed(self, shape: Shape) -> Pattern:
        return reduce(Union, [half._transposed(shape) for half in self._halves()])

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        first, p = _first(self.block, shape), i + shape.shift
        return np.asarray(((p >= first) & (p < shape.n_k)) | (j >= first))

    def _row(self, i: int, shape: Shape) -> Ints:
        first = _first(self.block, shape)
        return checks.key_range(0 if first <= i + shape.shift < shape.n_k else first, shape.n_k)

    def _count(self, shape: Shape) -> int:
        keys, rows = shape.n_k - _first(self.block, shape), len(_LastRows(self.block).members(shape))
        return rows * shape.n_k + (shape.n_q - rows) * keys

    def __repr__(self) -> str:
        return f"LastBlock({self.block})"


def _first(block: int, shape: Shape) -> int:
    """Where the last block begins."""
    return max(0, shape.n_k - 1) // block * block


@dataclass(frozen=True, slots=True)
class _LastRows(WholeRows):
    block: int

    @property
    def order(self) -> Order:
        return LINEAR

    def members(self, shape: Shape) -> Ints:
        return np.arange(max(0, _first(self.block, shape) - shape.shift), min(shape.n_k - shape.shift, shape.n_q))


@dataclass(frozen=True, slots=True)
class _LastKeys(WholeColumns):
    block: int

    @property
    def order(self) -> Order:
        return LINEAR

    def members(self, shape: Shape) -> Ints:
        return np.arange(_first(self.block, shape), shape.n_k)
