"""Masks that no two integers can say: for each key of a stretch, a word with a bit for each row of the tile.

Words are joined as the patterns are, 16 rows at a time. What a pattern knows as stretches of keys becomes words by
a running sum: a row's bit is added where its stretch begins and taken away where it ends.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from subquad.patterns.base import Intersection, Pattern, Union, _Joined
from subquad.patterns.row_lists import RowLists, expand
from subquad.patterns.spans import Ints
from subquad.patterns.strided import Strided
from subquad.patterns.whole import WholeColumns
from subquad.plan.segments import Axis, Segments

Words = npt.NDArray[np.uint16]

_COUNT = np.array([bin(word).count("1") for word in range(256)], np.uint8)


def words(expression: Pattern, segments: Segments, axis: Axis) -> Words:
    """The words of all places of `segments`, one segment after another."""
    found = {leaf: _of_leaf(leaf, segments, axis) for leaf in dict.fromkeys(expression._leaves())}

    def joined(part: Pattern) -> Words:
        if not isinstance(part, _Joined):
            return found[part]
        left, right = joined(part.left), joined(part.right)
        if isinstance(part, Union):
            return left | right
        return left & (right if isinstance(part, Intersection) else ~right)

    return joined(expression)


def _of_leaf(leaf: Pattern, segments: Segments, axis: Axis) -> Words:
    if isinstance(leaf, RowLists):
        return _of_stretches(leaf, segments, axis)
    size, lanes = segments.stop - segments.start, axis.tiles.lanes
    every = np.uint16((1 << lanes) - 1)
    if isinstance(leaf, Strided) and axis.stride % leaf.stride == 0:  # the axis is of one of its classes
        return np.full(int(size.sum()), every)
    tile, place = np.repeat(segments.tile, size), expand(segments.start, size)
    key = axis.key(tile, place)
    if isinstance(leaf, WholeColumns):
        return np.where(leaf._contains(np.zeros_like(key), key, axis.shape), every, np.uint16(0))
    rows = axis.tiles.rows(tile)
    allowed = leaf._contains(rows, np.broadcast_to(key[:, None], rows.shape), axis.shape)
    return (allowed @ (1 << np.arange(lanes))).astype(np.uint16)


def bits_set(masks: Words) -> Ints:
    """How many rows each word allows."""
    count: Ints = _COUNT[masks & 255].astype(np.int64) + _COUNT[masks >> 8]
    return count


def _of_stretches(pattern: RowLists, segments: Segments, axis: Axis) -> Words:
    lanes, width = axis.tiles.lanes, axis.shape.n_k + 1
    met = segments.tile[np.flatnonzero(np.diff(segments.tile, prepend=-1))]
    owner, start, stop = pattern._stretches(axis.tiles.rows(met).ravel(), axis.shape)
    tile, bit = met[owner // lanes], 1 << (owner % lanes)
    code, size = segments.tile * width + segments.start, segments.stop - segments.start
    ends = np.cumsum(size)

    base = tile * width
    before = np.concatenate(([0], ends - size))  # places before each segment, after one that stands before them all
    code, size = np.concatenate(([-1], code)), np.concatenate(([0], size))

    def place(keys: Ints) -> Ints:
        """Where keys stand among the places of all segments; those in gaps, at the end of the segment before."""
        wanted = base + axis.place(tile, keys)
        at = np.searchsorted(code, wanted, side="right") - 1
        return np.asarray(before[at] + np.minimum(wanted - code[at], size[at]))

    total = int(size.sum())
    change = np.bincount(place(start), bit, total + 1) - np.bincount(place(stop), bit, total + 1)
    return np.cumsum(change[:total]).astype(np.uint16)
