"""Which keys a pattern can still reach: what a cache of keys has to hold.

A cache meets query rows at ever later positions. Every leaf of an expression says which keys its rows can reach from
some position on: a window of recent ones, a set that stays (global tokens, sinks, columns), or all. Unions add these
up and intersections narrow them, so the answer may name more keys than the pattern does, never fewer.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from subquad.patterns.bands import Band
from subquad.patterns.base import Difference, Intersection, Pattern, Shape, Union
from subquad.patterns.columns import Columns
from subquad.patterns.global_tokens import Global
from subquad.patterns.neighborhood import Neighborhood
from subquad.patterns.packed import Packed
from subquad.patterns.spans import Ints
from subquad.patterns.stored import StoredLists
from subquad.patterns.transposed import Transposed
from subquad.patterns.whole import KeySet, RowSet, WholeColumns

_MOST_TERMS = 64  # of an expression multiplied out; beyond, all keys are kept


class Window(Protocol):
    """Rows that reach back so far and no farther."""

    @property
    def lag(self) -> int | None:
        """How far behind its position the oldest key of a late row can lie; None where that is not known."""

    def oldest(self, position: int) -> int:
        """No row at `position` or later reaches an earlier key. It never falls as `position` rises."""


@dataclass(frozen=True)
class _Recent:
    """The window of a band of blocks."""

    left: int
    block: int

    @property
    def lag(self) -> int | None:
        return (self.left + 1) * self.block - 1

    def oldest(self, position: int) -> int:
        return max(0, (position // self.block - self.left) * self.block)


@dataclass(frozen=True)
class _UntilRow:
    """Rows that see everything, the last of them at `last`."""

    last: int
    lag: int | None = 0

    def oldest(self, position: int) -> int:
        return 0 if position <= self.last else position


@dataclass(frozen=True)
class _Segments:
    """Segments of a packed batch, none of which sees another."""

    ends: tuple[int, ...]
    lag: int | None

    def oldest(self, position: int) -> int:
        segment = bisect.bisect_right(self.ends, position)
        return self.ends[segment - 1] if segment else 0


@dataclass(frozen=True, eq=False)
class _Listed:
    """Rows whose first keys are known, `rows` neighbours at a time."""

    first: Ints
    rows: int
    shift: int  # position of row 0
    end: int
    lag: int | None

    def oldest(self, position: int) -> int:
        at = max(0, position - self.shift) // self.rows
        return int(self.first[at]) if at < len(self.first) else self.end


class Term(NamedTuple):
    """The keys of a set (None: all keys) that lie in every one of some windows."""

    keys: WholeColumns | None
    windows: tuple[Window, ...]


EVERYTHING = Term(None, ())


class Reach:
    """What rows can reach: recent keys, which follow the rows, and pinned ones, which stay.

    Attributes
    ----------
    size : Shape or None
        The one size a pattern was made for (`Packed`, `Neighborhood`, `BlockSparse`, `Explicit`): a cache then meets
        its rows as those of the finished sequence. None for patterns of any size.
    lag : int or None
        In the long run, how far behind a row its oldest recent key lies; None where that may be any distance.
    """

    def __init__(self, pattern: Pattern, capacity: int | None = None) -> None:
        self.size = fixed_size(pattern, capacity)
        terms = tuple(dict.fromkeys(_terms(pattern)))
        if EVERYTHING in terms:
            terms = (EVERYTHING,)
        self._recent = tuple(term.windows for term in terms if term.windows or term.keys is None)
        self._pinned = tuple(term.keys for term in terms if term.keys is not None and not term.windows)
        self._pinned_until = max((_end(keys) for keys in self._pinned), default=0)
        lags = [min((w.lag for w in windows if w.lag is not None), default=None) for windows in self._recent]
        self.lag = None if None in lags else max((lag for lag in lags if lag is not None), default=0)

    def oldest(self, position: int) -> int:
        """The oldest recent key that rows at `position` or later can reach."""
        if position <= 0:
            return 0
        found = [max((w.oldest(position) for w in windows), default=0) for windows in self._recent]
        return min(found, default=position)

    def pinned(self, start: int, stop: int) -> Ints:
        """The pinned keys start <= j < stop, ascending."""
        stop = int(min(stop, self._pinned_until))
        if start >= stop:
            return np.arange(0)
        keys = np.arange(start, stop)
        shape = Shape.aligned(1, stop)
        return keys[np.logical_or.reduce([held._contains(keys, keys, shape) for held in self._pinned])]


def _end(keys: WholeColumns) -> float:
    """One past the last key of a set."""
    if isinstance(keys, KeySet):
        return keys.tokens[-1] + 1 if len(keys.tokens) else 0
    return np.inf


def _terms(pattern: Pattern) -> list[Term]:
    if isinstance(pattern, Union):
        return _terms(pattern.left) + _terms(pattern.right)
    if isinstance(pattern, Difference):
        return _terms(pattern.left)
    if isinstance(pattern, Intersection):
        left, right = _terms(pattern.left), _terms(pattern.right)
        if len(left) * len(right) > _MOST_TERMS:
            return min(left, right, key=len)
        return [_both(a, b) for a in left for b in right]
    if isinstance(pattern, Global):
        halves = pattern._halves()
        return [_term(half) for half in halves] if len(pattern.tokens) else []
    return [_term(pattern)]


def _both(a: Term, b: Term) -> Term:
    sets = [keys for keys in (a.keys, b.keys) if keys is not None]
    sets.sort(key=_end)  # of two sets the one that ends: their intersection is no larger
    return Term(sets[0] if sets else None, tuple(dict.fromkeys(a.windows + b.windows)))


def _term(leaf: Pattern) -> Term:
    if isinstance(leaf, Band):
        left, _, block = leaf.reach()
        return EVERYTHING if left is None else Term(None, (_Recent(left, block),))
    if isinstance(leaf, KeySet | Columns):
        return Term(leaf, ())
    if isinstance(leaf, RowSet):
        return Term(None, (_UntilRow(leaf.tokens[-1]),))
    if isinstance(leaf, Packed):
        return Term(None, (_Segments(tuple(leaf.ends.tolist()), max(0, int(leaf.lengths.max(initial=0)) - 1)),))
    if isinstance(leaf, Neighborhood | StoredLists):
        return Term(None, (_listed(leaf),))
    return EVERYTHING


def _listed(leaf: Neighborhood | StoredLists) -> _Listed:
    """The first key of every row, or of an earlier row where a later one reaches farther back."""
    size = _own_size(leaf)
    if isinstance(leaf, Neighborhood):
        # along the first axis alone: whole planes of the grid
        rows = size.n_k // leaf.shape[0]
        group, start, _ = leaf._bounds(0, np.arange(leaf.shape[0]))
        first = (group + start * leaf.dilation[0]) * rows
    else:
        rows, filled = leaf.block, np.diff(leaf.indptr) > 0
        first = np.full(len(filled), size.n_k)
        first[filled] = leaf.indices[leaf.indptr[:-1][filled]] * leaf.block
    oldest = np.minimum.accumulate(first[::-1])[::-1]
    latest = np.arange(1, len(first) + 1) * rows - 1 + size.shift
    return _Listed(oldest, rows, size.shift, size.n_k, max(0, int((latest - oldest).max(initial=0))))


def fixed_size(pattern: Pattern, capacity: int | None = None) -> Shape | None:
    """The size a pattern was made for, the largest if a layout of blocks leaves a choice; None for any size."""
    leaves = [leaf for leaf in pattern._leaves() if _is_sized(leaf)]
    if not leaves:
        return None
    exact = [leaf for leaf in leaves if getattr(leaf, "block", 1) == 1]
    sizes = [_own_size(leaf) for leaf in exact or leaves]
    size = min(sizes)  # blocks of several sizes: what all of them have room for
    if capacity is not None and not exact and size.n_q == size.n_k:
        size = Shape.aligned(capacity, capacity)
    pattern._validate(size)
    return size


def _is_sized(leaf: Pattern) -> bool:
    if isinstance(leaf, Transposed):
        return _is_sized(leaf.base)
    return isinstance(leaf, Packed | Neighborhood | StoredLists)


def _own_size(leaf: Pattern) -> Shape:
    if isinstance(leaf, Transposed):
        return _own_size(leaf.base).swapped
    if isinstance(leaf, StoredLists):
        n_q, n_k = leaf.layout_shape
        return Shape.aligned(n_q * leaf.block, n_k * leaf.block)
    if isinstance(leaf, Packed):
        return Shape.aligned(leaf.n, leaf.n)
    assert isinstance(leaf, Neighborhood)
    n = int(np.prod(leaf.shape, dtype=object))
    return Shape.aligned(n, n)
