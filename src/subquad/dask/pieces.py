"""What each chunk of query rows needs of which chunk of keys, and where that is worked out.

A *piece* is what some rows need of one chunk of keys. Pieces are joined into *groups*, one task each: the rows' own
chunk with its halos is one group, and a chunk that sees everything falls into as many groups as there are chunks. What
is small travels: keys to the rows, cut where they lie; or, where the rows are few, the rows to the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from subquad.dask.reach import reached
from subquad.patterns._part import Index, part
from subquad.patterns.base import Difference, Pattern, Shape, Union
from subquad.patterns.packed import Packed
from subquad.patterns.row_lists import expand
from subquad.patterns.spans import Ints
from subquad.patterns.stored import StoredLists
from subquad.patterns.whole import KeySet, RowSet, WholeRows
from subquad.plan.terms import _with_row_sets

Chosen = slice | Ints | None  # rows of a chunk; None: all of them

_SPARE = 1.1  # how much more than what is needed may be taken, to spare a list of places
_GROUP = 2  # a group has at most so many keys for each row, unless one chunk alone has more


@dataclass(frozen=True)
class Piece:
    """Keys of one chunk."""

    chunk: int
    keys: Index  # numbered as in the group's shape
    chosen: Chosen
    sent: bool  # cut where the chunk lies and sent to the rows; else the task takes the whole chunk

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Group:
    """Rows against some pieces of keys: a task."""

    patterns: tuple[Pattern, ...]  # of every head, or one for all of them
    shape: Shape
    rows: Index
    pieces: tuple[Piece, ...]

    def travelling(self) -> Group:
        """The same without what other rows and keys have, where a pattern holds arrays."""
        leaves = {leaf for pattern in self.patterns for leaf in pattern._leaves()}
        if not any(isinstance(leaf, StoredLists | Packed) for leaf in leaves):
            return self
        low, high = self.pieces[0].keys.start, self.pieces[-1].keys.stop
        keys = Index(range(low, high))
        pieces = tuple(replace(piece, keys=piece.keys.moved(-low)) for piece in self.pieces)
        patterns = _for_each(self.patterns, lambda pattern: part(pattern, self.shape, self.rows, keys))
        return Group(patterns, Shape.aligned(len(self.rows), len(keys)), Index(range(len(self.rows))), pieces)


@dataclass(frozen=True)
class Needs:
    """All that a chunk of query rows needs."""

    groups: list[Group]
    few: Ints | None  # rows, as places in the chunk, that are worked out apart, where the keys are
    of_few: list[Group]


class Partition:
    """A mask over chunks of rows and chunks of keys."""

    def __init__(self, patterns: Sequence[Pattern], shape: Shape, rows: Sequence[int], keys: Sequence[int]) -> None:
        self.patterns, self.shape = _for_each(tuple(patterns), lambda pattern: pattern._resolved(shape)), shape
        self.row_edges, self.key_edges = (np.cumsum([0, *sizes], dtype=np.int64) for sizes in (rows, keys))
        sets = {leaf for pattern in self.patterns for leaf in pattern._leaves() if isinstance(leaf, WholeRows)}
        self.whole_rows = np.unique(np.concatenate([leaf.members(shape) for leaf in sets])) if sets else np.arange(0)
        self.rest = _for_each(self.patterns, _without_rows)

    def needs(self, chunk: int) -> Needs:
        """Groups of one chunk of rows."""
        begin, end = map(int, self.row_edges[chunk : chunk + 2])
        rows = Index(range(begin, end))
        low, high = np.searchsorted(self.whole_rows, (begin, end))
        whole = self.whole_rows[low:high]
        if not len(whole):
            return Needs(self.groups(self.rest, rows), None, [])
        if 2 * len(whole) > end - begin:
            return Needs(self.groups(self.patterns, rows), None, [])
        left_out = RowSet(tuple((whole + self.shape.shift).tolist()))
        rest = _for_each(self.rest, lambda pattern: Difference(pattern, left_out))
        of_few = self.groups(self.patterns, Index(whole))
        return Needs(self.groups(rest, rows), whole - begin if of_few else None, of_few)

    def groups(self, patterns: tuple[Pattern, ...], rows: Index) -> list[Group]:
        """Neighbouring pieces together, as long as they have few keys for the rows."""
        union = reduce(Union, dict.fromkeys(patterns))
        groups: list[list[Piece]] = []
        filled = 0
        for piece in self.pieces(*reached(union, self.shape, rows), len(rows)):
            if groups and filled + len(piece) <= _GROUP * len(rows):
                groups[-1].append(piece)
                filled += len(piece)
            else:
                groups.append([piece])
                filled = len(piece)
        return [Group(patterns, self.shape, rows, tuple(pieces)).travelling() for pieces in groups]

    def pieces(self, start: Ints, stop: Ints, n_rows: int) -> Iterator[Piece]:
        """The stretches of keys, chunk by chunk."""
        first = np.searchsorted(self.key_edges, start, side="right") - 1
        last = np.searchsorted(self.key_edges, stop - 1, side="right") - 1
        for chunk in np.unique(expand(first, last - first + 1)).tolist():
            begin, end = map(int, self.key_edges[chunk : chunk + 2])
            low, high = np.searchsorted(stop, begin, side="right"), np.searchsorted(start, end)
            from_, to = np.maximum(start[low:high], begin), np.minimum(stop[low:high], end)
            count, hull = int((to - from_).sum()), int(to[-1] - from_[0])
            chosen: Chosen = None
            if end - begin <= _SPARE * count:
                keys = Index(range(begin, end))
            elif hull <= _SPARE * count:
                keys = Index(range(int(from_[0]), int(to[-1])))
                chosen = slice(keys.start - begin, keys.stop - begin)
            else:
                keys = Index(expand(from_, to - from_))
                chosen = keys.members() - begin
            yield Piece(chunk, keys, chosen, chosen is not None and len(keys) <= n_rows)


def _for_each(patterns: tuple[Pattern, ...], change: Callable[[Pattern], Pattern]) -> tuple[Pattern, ...]:
    """Each different pattern changed once."""
    changed = {pattern: change(pattern) for pattern in dict.fromkeys(patterns)}
    return tuple(changed[pattern] for pattern in patterns)


def _without_rows(pattern: Pattern) -> Pattern:
    """What is left of an expression for the rows that are in none of its sets of whole rows."""
    sets = [leaf for leaf in pattern._leaves() if isinstance(leaf, WholeRows)]
    found = _with_row_sets(pattern, dict.fromkeys(sets, False))
    return KeySet(range(0)) if found is None else found
