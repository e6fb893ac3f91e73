"""The keys of some rows of any expression as stretches, where they are few: a window is one, however wide."""

from __future__ import annotations

import numpy as np

from subquad.patterns.bands import Band
from subquad.patterns.base import Intersection, Pattern, Shape, Union, _Joined
from subquad.patterns.columns import Columns
from subquad.patterns.packed import Packed
from subquad.patterns.row_lists import RowLists, Stretches
from subquad.patterns.spans import Ints
from subquad.patterns.whole import KeySet, RowSet


def most_stretches(pattern: Pattern, shape: Shape) -> int | None:
    """No row of a resolved pattern has more stretches than this; None where rows are best listed key by key."""
    if isinstance(pattern, _Joined):
        left, right = most_stretches(pattern.left, shape), most_stretches(pattern.right, shape)
        return None if left is None or right is None else left + right
    if isinstance(pattern, Band | Packed | RowSet):
        return 1
    if isinstance(pattern, Columns):
        return shape.n_k // pattern.stride + 1
    if isinstance(pattern, KeySet):
        return 1 if isinstance(pattern.tokens, range) else len(pattern.tokens)
    return None


def stretches_of(pattern: Pattern, rows: Ints, shape: Shape) -> Stretches:
    """The keys of each of `rows` of a pattern that `most_stretches` knows: disjoint, ascending, none of them empty."""
    if isinstance(pattern, _Joined):
        return _joined(
            pattern, stretches_of(pattern.left, rows, shape), stretches_of(pattern.right, rows, shape), shape
        )
    if isinstance(pattern, RowLists):
        found = pattern._stretches(rows, shape)
    elif isinstance(pattern, RowSet):
        owner = np.nonzero(pattern._contains(rows, rows, shape))[0]
        found = Stretches(owner, np.zeros(len(owner), np.int64), np.full(len(owner), shape.n_k))
    else:
        assert isinstance(pattern, Columns | KeySet)
        start, stop = pattern.stretches(shape)
        owner = np.repeat(np.arange(len(rows)), len(start))
        found = Stretches(owner, np.tile(start, len(rows)), np.tile(stop, len(rows)))
    return Stretches(*(x[found.start < found.stop] for x in found))


def _joined(pattern: _Joined, left: Stretches, right: Stretches, shape: Shape) -> Stretches:
    """Between any two neighbouring ends of stretches a row is inside or outside of either side."""
    ends, steps = [], []
    for side, found in enumerate((left, right)):
        for x, step in ((found.start, 1), (found.stop, -1)):
            ends.append(found.owner * (shape.n_k + 1) + x)  # (row, key) as one ascending number
            steps.append(np.full((len(x), 2), step) * (np.arange(2) == side))
    place = np.concatenate(ends)
    order = np.argsort(place, kind="stable")
    place, inside = place[order], np.cumsum(np.concatenate(steps)[order], axis=0) > 0
    in_left, in_right = inside.T
    if isinstance(pattern, Union):
        kept = in_left | in_right
    else:
        kept = in_left & (in_right if isinstance(pattern, Intersection) else ~in_right)
    kept[:-1] &= place[:-1] < place[1:]
    begin, end = place[:-1][kept[:-1]], place[1:][kept[:-1]]
    first, last = np.ones((2, len(begin)), bool)
    first[1:] = last[:-1] = begin[1:] != end[:-1]  # the others go on where the one before them ends
    begin, end = begin[first], end[last]
    owner, start = np.divmod(begin, shape.n_k + 1)
    return Stretches(owner, start, end - owner * (shape.n_k + 1))


def counts_between(found: Stretches, n_rows: int, edges: Ints) -> Ints:
    """How many keys of each row lie between every two neighbouring edges: (n_rows, len(edges) - 1)."""
    if not len(found.start):
        return np.zeros((n_rows, len(edges) - 1), np.int64)
    width, length = int(edges[-1]) + 1, found.stop - found.start
    place, before = found.owner * width + found.start, np.cumsum(length) - length
    asked = np.arange(n_rows)[:, None] * width + edges
    at = np.searchsorted(place, asked, side="right") - 1
    below = np.where(at < 0, 0, before[at] + np.minimum(asked - place[at], length[at]))
    return np.diff(below, axis=1)
