"""Patterns whose rows are one interval of keys: everything, the past, a window."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from subquad import checks
from subquad.complexity.orders import LINEAR, QUADRATIC, Order
from subquad.patterns.base import Pattern, Shape, Visits
from subquad.patterns.row_lists import RowLists, Stretches
from subquad.patterns.spans import Bools, Ints, Spans, Tiles

Reach = tuple[int | None, int | None]


class Band(RowLists):
    """A pattern whose row at position p is p // block - left <= j // block <= p // block + right."""

    __slots__ = ()

    @abstractmethod
    def reach(self) -> tuple[int | None, int | None, int]:
        """Left, right (None: without bound) and block."""

    @property
    def order(self) -> Order:
        left, right, _ = self.reach()
        return QUADRATIC if left is None or right is None else LINEAR

    def _bounds(self, p: Ints, shape: Shape) -> tuple[Ints, Ints]:
        """First key and one past the last, within [0, n_k], for positions p."""
        left, right, block = self.finite_reach(shape)
        if block == 1:  # a division takes longer than all the rest
            return np.clip(p - left, 0, shape.n_k), np.clip(p + right + 1, 0, shape.n_k)
        center = p // block
        return np.clip((center - left) * block, 0, shape.n_k), np.clip((center + right + 1) * block, 0, shape.n_k)

    def finite_reach(self, shape: Shape) -> tuple[int, int, int]:
        """The reach with bounds no farther than any key: products with it stay within 64 bits."""
        left, right, block = self.reach()
        block = min(block, shape.farthest + 1)
        farthest = shape.farthest // block + 1
        left, right = (farthest if side is None else min(side, farthest) for side in (left, right))
        return left, right, block

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        start, stop = self._bounds(i + shape.shift, shape)
        return np.asarray((start <= j) & (j < stop))

    def _row(self, i: int, shape: Shape) -> Ints:
        start, stop = self._bounds(np.array([i + shape.shift]), shape)
        return checks.key_range(int(start[0]), int(stop[0]))

    def _stretches(self, rows: Ints, shape: Shape) -> Stretches:
        return Stretches(np.arange(len(rows)), *self._bounds(rows + shape.shift, shape))

    def _visits(self, shape: Shape, lanes: int) -> Visits:
        left, right, block = self.reach()
        sides = [shape.n_k / 2 if side is None else side * block for side in (left, right)]
        row, more = sum(sides) + block, max(0, lanes - block)
        return Visits(min(row, shape.n_k), min(row + more, shape.n_k), 1)

    def _transposed(self, shape: Shape) -> Pattern:
        left, right, block = self.reach()
        if shape.shift % block == 0:
            return Banded((right, left), block=block)
        return _TurnedBand(self)

    def _spans(self, tiles: Tiles, shape: Shape) -> Spans:
        # bounds ascend with the row: every row sees from the last start to the first stop, some row from first to last
        start, first_stop = self._bounds(tiles.first + shape.shift, shape)
        last_start, stop = self._bounds(tiles.last + shape.shift, shape)
        inner = np.minimum(np.maximum(last_start, start), stop)
        outer = np.minimum(np.maximum(first_stop, inner), stop)
        full = np.zeros((len(tiles), 3), bool)
        full[:, 1] = True
        return Spans(
            np.repeat(np.arange(len(tiles)), 3),
            np.stack([start, inner, outer], axis=1).ravel(),
            np.stack([inner, outer, stop], axis=1).ravel(),
            full.ravel(),
        ).clean()

    def _count(self, shape: Shape) -> int:
        # every row's last key less every row's first: two sums of a clipped line over the blocks of rows
        left, right, block = self.finite_reach(shape)
        return _line_sum(shape, block, right + 1) - _line_sum(shape, block, -left)


def _line_sum(shape: Shape, block: int, offset: int) -> int:
    """Sum over all positions p of clip((p // block + offset) * block, 0, n_k), in integers of any size."""
    n_k, first, last = shape.n_k, shape.shift // block, (shape.n_k - 1) // block
    if shape.n_q == 0:
        return 0

    def value(b: int) -> int:
        return min(max((b + offset) * block, 0), n_k)

    if first == last:
        return shape.n_q * value(first)
    edges = value(first) * ((first + 1) * block - shape.shift) + value(last) * (n_k - last * block)
    # between: 0 up to block -offset, then a rising line, then n_k from block `top` on
    low, top = max(first + 1, 1 - offset), -(-n_k // block) - offset
    rising = range(low, max(low, min(last, top)))
    line = block * (len(rising) * offset + (rising.start + rising.stop - 1) * len(rising) // 2)
    flat = max(0, last - max(first + 1, top)) * n_k
    return edges + block * (line + flat)


@dataclass(frozen=True, slots=True)
class _TurnedBand(RowLists):
    """A window of blocks with queries and keys swapped, where the blocks of one do not begin where the other's do."""

    base: Band

    @property
    def order(self) -> Order:
        return self.base.order

    def _stretches(self, rows: Ints, shape: Shape) -> Stretches:
        # `rows` are keys of the base; the queries that see them stand at positions in the blocks around
        left, right, block = self.base.finite_reach(shape.swapped)
        first, stop = (rows // block - right) * block, (rows // block + left + 1) * block
        start, stop = (np.clip(x + shape.shift, 0, shape.n_k) for x in (first, stop))
        return Stretches(np.arange(len(rows)), start, stop)

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return self.base._contains(j, i, shape.swapped)


@dataclass(frozen=True, slots=True)
class Dense(Band):
    """Every query attends every key: O(n²) pairs."""

    def reach(self) -> tuple[int | None, int | None, int]:
        return None, None, 1

    def transpose(self) -> Pattern:
        return self

    def _count(self, shape: Shape) -> int:
        return shape.n_q * shape.n_k


@dataclass(frozen=True, slots=True)
class Causal(Band):
    """Every query attends the keys up to its own position, j <= p: O(n²) pairs."""

    def reach(self) -> tuple[int | None, int | None, int]:
        return None, 0, 1


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Banded(Band):
    """A sliding window: O(n w) pairs.

    Parameters
    ----------
    window : int or pair of (int or None)
        An int w allows ``abs(p - j) <= w``, that is 2 w + 1 keys; a pair ``(left, right)`` allows
        ``p - left <= j <= p + right``, where None is without bound. A causal window of w keys, itself among them, is
        ``(w - 1, 0)``.
    block : int, optional
        Count the window in blocks of so many tokens instead of tokens: ``abs(p // block - j // block) <= w``.

    Raises
    ------
    TypeError, ValueError
        If the window is no int or pair, or negative, or block is below 1.

    References
    ----------
    Beltagy, Peters, Cohan, "Longformer" (2020), section 3.1; Zaheer et al., "Big Bird" (2020), section 2, for blocks.

    Examples
    --------
    >>> Banded(1).row(4, 8, 8)
    array([3, 4, 5])
    >>> Banded((2, 0)).row(4, 8, 8)
    array([2, 3, 4])
    """

    window: int | Reach
    block: int

    def __init__(self, window: Any, block: Any = 1) -> None:
        object.__setattr__(self, "window", _checked_window(window))
        object.__setattr__(self, "block", checks.integer(block, "block", 1))

    def reach(self) -> tuple[int | None, int | None, int]:
        left, right = self.window if isinstance(self.window, tuple) else (self.window, self.window)
        return left, right, self.block

    def transpose(self) -> Pattern:
        if self.block > 1:
            return super(Banded, self).transpose()
        return Banded(self.window[::-1] if isinstance(self.window, tuple) else self.window)

    def __repr__(self) -> str:
        return f"Banded({self.window})" if self.block == 1 else f"Banded({self.window}, block={self.block})"


def _checked_window(window: Any) -> int | Reach:
    if not isinstance(window, tuple | list):
        return checks.integer(
            window, "window", 0, None, what="an integer or a pair (left, right), each an integer or None,"
        )
    if len(window) != 2:
        raise ValueError(f"window must be an integer or a pair (left, right); got {len(window)} values: {window!r}")
    left, right = (
        None if side is None else checks.integer(side, "window", 0, None, what="of integers") for side in window
    )
    return left, right
