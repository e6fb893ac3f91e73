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
from subquad.patterns.whole import WholeColumns
from subquad.plan.segments import Axis, Segments

Words = npt.NDArray[np.uint16]

_COUNT = np.array([bin(word).count("1") for word in range(256)], np.uint8)


def words(expression: Pattern, segments: Segments, axis: Axis) -> Words:
    """The words of all places of `segments`, one segment after another."""
    if isinstance(expression, _Joined):
        left, right = (words(side, segments, axis) for side in (expression.left, expression.right))
        if isinstance(expression, Union):
            return left | right
        return left & (right if isinstance(expression, Intersection) else ~right)
    if isinstance(expression, RowLists):
        return _of_stretches(expression, segments, axis)
    size = segments.stop - segments.start
    tile, place = np.repeat(segments.tile, size), expand(segments.start, size)
    key, lanes = axis.key(tile, place), axis.tiles.lanes
    if isinstance(expression, WholeColumns):
        allowed = expression._contains(np.zeros_like(key), key, axis.shape)
        return np.where(allowed, (1 << lanes) - 1, 0).astype(np.uint16)
    rows = axis.tiles.rows(tile)
    allowed = expression._contains(rows, np.broadcast_to(key[:, None], rows.shape), axis.shape)
    return (allowed @ (1 << np.arange(lanes))).astype(np.uint16)


def bits_set(masks: Words) -> Ints:
    """How many rows each word allows."""
    return _COUNT[masks & 255].astype(np.int64) + _COUNT[masks >> 8]


def _of_stretches(pattern: RowLists, segments: Segments, axis: Axis) -> Words:
    lanes, width = axis.tiles.lanes, axis.shape.n_k + 1
    met = segments.tile[np.flatnonzero(np.diff(segments.tile, prepend=-1))]
    owner, start, stop = pattern._stretches(axis.tiles.rows(met).ravel(), axis.shape)
    tile, bit = met[owner // lanes], 1 << (owner % lanes)
    code, size = segments.tile * width + segments.start, segments.stop - segments.start
    ends = np.cumsum(size)

    def place(keys: Ints) -> Ints:
        """Where keys stand among the places of all segments; those in gaps, at the end of the segment before."""
        wanted = tile * width + axis.place(tile, keys)
        at = np.searchsorted(code, wanted, side="right") - 1
        inside = np.minimum(wanted - code[at], size[at])
        return np.where(at >= 0, ends[at] - size[at] + inside, 0)

    total = int(size.sum())
    change = np.bincount(place(start), bit, total + 1) - np.bincount(place(stop), bit, total + 1)
    return np.cumsum(change[:total]).astype(np.uint16)
