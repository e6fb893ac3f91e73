"""Some rows of a pattern against some of its keys: an expression of its own, in local numbers.

Row i and key j of a part are row ``rows[i]`` and key ``keys[j]`` of the whole. A window stays a window whose two
reaches have moved, so a part is planned as the whole is: in tiles where tiles are best. Parts that look alike (the same
window, as far from their keys) are equal, and share one plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from subquad.complexity.orders import Order
from subquad.patterns.bands import Band
from subquad.patterns.base import Pattern, Shape, Visits, _Joined
from subquad.patterns.columns import Columns
from subquad.patterns.log_sparse import _Doubling
from subquad.patterns.packed import Packed
from subquad.patterns.row_lists import RowLists, Stretches
from subquad.patterns.spans import Bools, Ints, Spans, Tiles
from subquad.patterns.stored import Frozen, StoredLists
from subquad.patterns.strided import Strided
from subquad.patterns.whole import KeySet, RowSet, WholeColumns, WholeRows


class Index(Frozen):
    """Ascending rows or keys of the whole: a range, or a list of them. Lists without gaps become ranges."""

    __slots__ = ("listed", "start", "stop")

    start: int
    stop: int
    listed: Ints | None  # None: all of start <= x < stop

    def __init__(self, members: range | npt.ArrayLike) -> None:
        if isinstance(members, range):
            self._hold(start=members.start, stop=max(members.start, members.stop), listed=None)
            return
        array = np.array(members, np.int64)
        start, stop = (int(array[0]), int(array[-1]) + 1) if len(array) else (0, 0)
        self._hold(start=start, stop=stop, listed=array if len(array) < stop - start else None)

    def __reduce__(self) -> Any:
        return Index, (range(self.start, self.stop) if self.listed is None else self.listed,)

    def __len__(self) -> int:
        return self.stop - self.start if self.listed is None else len(self.listed)

    def members(self) -> Ints:
        """All of them."""
        return np.arange(self.start, self.stop) if self.listed is None else self.listed

    def at(self, place: Ints) -> Ints:
        """The members at some places."""
        return place + self.start if self.listed is None else self.listed[place]

    def some(self, places: Index) -> Index:
        """The members at some places."""
        if self.listed is None:
            return places.moved(self.start)
        return Index(self.listed[places.start : places.stop] if places.listed is None else self.listed[places.listed])

    def rank(self, x: Ints) -> Ints:
        """Members below x."""
        if self.listed is None:
            return np.clip(x - self.start, 0, len(self))
        return np.searchsorted(self.listed, x)

    def moved(self, by: int) -> Index:
        """The same, each `by` farther."""
        return Index(range(self.start + by, self.stop + by) if self.listed is None else self.listed + by)


@dataclass(frozen=True, slots=True)
class Window:
    """Which rows and keys of a mask of n_q x n_k a part has."""

    shape: Shape
    rows: Index
    keys: Index

    @property
    def even(self) -> bool:
        """Whether both are ranges."""
        return self.rows.listed is None and self.keys.listed is None

    @property
    def first(self) -> int:
        """Position of row 0 less key 0."""
        return self.rows.start + self.shape.shift - self.keys.start

    @property
    def offset(self) -> int:
        """How much farther from their keys the rows stand than those of a mask of this size would."""
        return self.first - (len(self.keys) - len(self.rows))


def part(pattern: Pattern, shape: Shape, rows: Index, keys: Index) -> Pattern:
    """The pairs of `rows` and `keys`, for a mask of ``len(rows) x len(keys)``: exact, and O(1) for algebraic patterns.

    Examples
    --------
    >>> from subquad import Banded
    >>> from subquad.patterns.base import Shape
    >>> local = part(Banded(2), Shape.aligned(10, 10), Index(range(4, 8)), Index(range(0, 4)))
    >>> [local.row(i, 4, 4).tolist() for i in range(4)]  # keys of rows 4 to 7 below key 4
    [[2, 3], [3], [], []]
    """
    return _mapped(pattern._resolved(shape), Window(shape, rows, keys))


def _mapped(pattern: Pattern, window: Window) -> Pattern:
    if isinstance(pattern, _Joined):
        return type(pattern)(_mapped(pattern.left, window), _mapped(pattern.right, window))
    if isinstance(pattern, WholeRows):
        return _rows(pattern, window)
    if isinstance(pattern, WholeColumns):
        return _columns(pattern, window)
    if isinstance(pattern, Band) and window.even:
        return _band(pattern, window)
    if isinstance(pattern, Strided):
        aligned = window.even and window.offset % pattern.stride == 0
        return pattern if aligned else _PartStrided(pattern, window)
    if isinstance(pattern, _Doubling) and window.even and window.offset == 0:
        return pattern
    if isinstance(pattern, StoredLists):
        return _stored(pattern, window)
    if isinstance(pattern, Packed):
        return _packed(pattern, window)
    return _PartLists(pattern, window) if isinstance(pattern, RowLists) else _PartOfAny(pattern, window)


def _band(band: Band, window: Window) -> Pattern:
    """A window whose reaches have moved by the offset; of blocks, where they begin at the same places."""
    left, right, block = band.reach()
    moved, rest = divmod(window.offset, block)
    if rest or window.keys.start % block:
        return _PartLists(band, window)
    if moved == 0:
        return band
    return MovedBand(None if left is None else left - moved, None if right is None else right + moved, block)


def _rows(pattern: WholeRows, window: Window) -> Pattern:
    local = _ranks(pattern.members(window.shape), window.rows) + len(window.keys) - len(window.rows)
    return RowSet(tuple(local.tolist()) or range(0))


def _columns(pattern: WholeColumns, window: Window) -> Pattern:
    keys = window.keys
    if isinstance(pattern, Columns) and keys.listed is None and keys.start % pattern.stride == 0:
        return pattern
    if isinstance(pattern, KeySet):
        if isinstance(pattern.tokens, range) and keys.listed is None:
            low, high = (int(keys.rank(np.asarray(edge))) for edge in (pattern.tokens.start, pattern.tokens.stop))
            return KeySet(range(low, high))
        return KeySet(tuple(_ranks(pattern.members(window.shape), keys).tolist()) or range(0))
    return _PartColumns(pattern, window)


def _ranks(members: Ints, index: Index) -> Ints:
    """Places of those members that are in the index."""
    place, after = index.rank(members), index.rank(members + 1)
    return place[place < after]


def _stored(pattern: StoredLists, window: Window) -> Pattern:
    """Only the blocks that are asked for are kept: a part of a large matrix travels light."""
    block, (rows, keys) = pattern.block, (window.rows, window.keys)
    first, last = rows.start // block, -(-rows.stop // block)
    low, high = keys.start // block, -(-keys.stop // block)
    counts = pattern.indptr[first : last + 1]
    blocks = pattern.indices[counts[0] : counts[-1]]
    kept = (blocks >= low) & (blocks < high)
    indptr = np.concatenate(([0], np.cumsum(kept)))[counts - counts[0]]
    cut = StoredLists._of(indptr, blocks[kept] - low, (last - first, high - low), block)
    shape = Shape.aligned(
        min(last * block, window.shape.n_q) - first * block, min(high * block, window.shape.n_k) - low * block
    )
    if window.even and block == 1:
        return cut
    return _PartLists(cut, Window(shape, rows.moved(-first * block), keys.moved(-low * block)))


def _packed(pattern: Packed, window: Window) -> Pattern:
    """Only the segments that the rows meet are kept."""
    if not len(window.rows):
        return KeySet(range(0))
    first, last = pattern._segment(np.array([window.rows.start, window.rows.stop - 1]))
    begin, end = int(pattern.ends[first] - pattern.lengths[first]), int(pattern.ends[last])
    met = Packed(pattern.lengths[first : last + 1])
    if window.even and window.rows == window.keys == Index(range(begin, end)):
        return met
    return _PartLists(
        met, Window(Shape.aligned(end - begin, end - begin), window.rows.moved(-begin), window.keys.moved(-begin))
    )


@dataclass(frozen=True, slots=True)
class MovedBand(Band):
    """p // block - left <= j // block <= p // block + right; a reach is negative where rows lie far from their keys."""

    left: int | None
    right: int | None
    block: int

    def reach(self) -> tuple[int | None, int | None, int]:
        return self.left, self.right, self.block

    def _visits(self, shape: Shape, lanes: int) -> Visits:
        row, tile, runs = super(MovedBand, self)._visits(shape, lanes)
        return Visits(max(1, row), max(1, tile), runs)


@dataclass(frozen=True, slots=True)
class _PartLists(RowLists):
    """Some rows and keys of a pattern that can say the keys of any row."""

    base: RowLists
    window: Window

    @property
    def order(self) -> Order:
        return self.base.order

    def _stretches(self, rows: Ints, shape: Shape) -> Stretches:
        owner, start, stop = self.base._stretches(self.window.rows.at(rows), self.window.shape)
        start, stop = self.window.keys.rank(start), self.window.keys.rank(stop)
        kept = start < stop
        return Stretches(owner[kept], start[kept], stop[kept])

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        key, n_k = self.window.keys.at(j), self.window.shape.n_k
        inside = (key >= 0) & (key < n_k)  # of a pattern that was cut, keys beyond the cut
        return inside & self.base._contains(self.window.rows.at(i), np.clip(key, 0, max(0, n_k - 1)), self.window.shape)

    def _spans(self, tiles: Tiles, shape: Shape) -> Spans:
        rows, keys = self.window.rows, self.window.keys
        if rows.listed is not None:
            return super(_PartLists, self)._spans(tiles, shape)
        first, last, listed = (x + rows.start for x in (tiles.first, tiles.last, tiles.listed))
        there = Tiles(first, tiles.step, tiles.at, tiles.count, last, listed, tiles.lanes)
        tile, start, stop, full = self.base._spans(there, self.window.shape)
        return Spans(tile, keys.rank(start), keys.rank(stop), full).clean()

    def _cuts(self, shape: Shape, lanes: int) -> Ints:
        if self.window.rows.listed is not None:
            return np.arange(0)
        cuts = self.base._cuts(self.window.shape, lanes) - self.window.rows.start
        return cuts[(cuts >= 0) & (cuts < shape.n_q)]


@dataclass(frozen=True, slots=True)
class _PartStrided(RowLists):
    """Every s-th key, where rows and keys are not numbered alike: as lists."""

    base: Strided
    window: Window

    @property
    def order(self) -> Order:
        return self.base.order

    def _stretches(self, rows: Ints, shape: Shape) -> Stretches:
        keys = self.window.keys
        rows = self.window.rows.at(rows)
        owner, found = self.base.between(
            rows, np.full_like(rows, keys.start), np.full_like(rows, keys.stop), self.window.shape
        )
        start, stop = keys.rank(found), keys.rank(found + 1)
        kept = start < stop
        return Stretches(owner[kept], start[kept], stop[kept])

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return self.base._contains(self.window.rows.at(i), self.window.keys.at(j), self.window.shape)


@dataclass(frozen=True, slots=True)
class _PartColumns(WholeColumns):
    """Columns, where keys are not numbered as the pattern numbers them."""

    base: WholeColumns
    window: Window

    @property
    def order(self) -> Order:
        return self.base.order

    def stretches(self, shape: Shape) -> tuple[Ints, Ints]:
        keys = self.window.keys
        below = Shape.aligned(self.window.shape.n_q, min(keys.stop, self.window.shape.n_k))
        whole = below if isinstance(self.base, Columns) else self.window.shape
        start, stop = (keys.rank(edge) for edge in self.base.stretches(whole))
        return start[start < stop], stop[start < stop]

    def members(self, shape: Shape) -> Ints:
        start, stop = self.stretches(shape)
        edges = np.zeros(len(self.window.keys) + 1, np.int64)
        edges[start] += 1
        np.subtract.at(edges, stop, 1)
        return np.nonzero(np.cumsum(edges[:-1]))[0]

    def of_class(self, residue: Ints, modulus: int) -> Bools | None:
        if self.window.keys.listed is not None:
            return None
        return self.base.of_class((residue + self.window.keys.start) % modulus, modulus)


@dataclass(frozen=True, slots=True)
class _PartOfAny(Pattern):
    """Some rows and keys of a pattern that says nothing but which pairs it contains."""

    base: Pattern
    window: Window

    @property
    def order(self) -> Order:
        return self.base.order

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return self.base._contains(self.window.rows.at(i), self.window.keys.at(j), self.window.shape)

    def _row(self, i: int, shape: Shape) -> Ints:
        keys = self.base._row(int(self.window.rows.at(np.asarray(i))), self.window.shape)
        return _ranks(keys, self.window.keys)
