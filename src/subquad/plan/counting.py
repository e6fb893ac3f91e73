"""How many pairs segments hold: a product where they are full, a sum of two clipped lines where a band cuts them."""

from __future__ import annotations

import numpy as np

from subquad.kernels.layout import MASK_BAND, MASK_FULL
from subquad.patterns.bands import Band
from subquad.patterns.base import Pattern
from subquad.patterns.spans import Ints
from subquad.plan.segments import Axis, Segments

_CHUNK = 1 << 13  # edges whose rows are gone through one by one at a time


def count_pairs(segments: Segments, axis: Axis, leaves: list[Pattern]) -> int:
    """The pairs of full and of band segments; those of bits are counted where the bits are made."""
    height, size = axis.tiles.count[segments.tile], segments.stop - segments.start
    total = int((height * size)[segments.mask == MASK_FULL].sum())
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, Band):
            continue
        edges = np.nonzero((segments.band == index) & (segments.mask != MASK_FULL))[0]
        even = (axis.tiles.at[segments.tile[edges]] < 0) & (leaf.reach()[2] == 1) & (axis.listed is None)
        total += int(_of_lines(segments.take(edges[even]), axis, leaf).sum())
        others = edges[~even]
        for at in range(0, len(others), _CHUNK):
            total += int(_row_by_row(segments.take(others[at : at + _CHUNK]), axis, leaf).sum())
    return total


def _of_lines(edges: Segments, axis: Axis, band: Band) -> Ints:
    """Pairs of segments of tiles whose rows, and so the places where their bands begin, are evenly spaced."""
    left, right, _ = band.finite_reach(axis.shape)
    tiles, (tile, start, stop, mask, _) = axis.tiles, edges
    position, count, step = tiles.first[tile] + axis.shape.shift, tiles.count[tile], tiles.step[tile] // axis.stride
    low, high = axis.place(tile, position - left), axis.place(tile, position + right + 1)
    inside = _clipped_sum(high, step, count, start, stop) - _clipped_sum(low, step, count, start, stop)
    return np.where(mask == MASK_BAND, inside, count * (stop - start) - inside)


def _clipped_sum(first: Ints, step: Ints, count: Ints, low: Ints, high: Ints) -> Ints:
    """Sum of clip(first + k step, low, high) over 0 <= k < count."""
    below = np.clip(-((first - low) // step), 0, count)
    above = count - np.clip((high - first) // step + 1, below, count)
    between = count - below - above
    line = between * first + step * between * (2 * below + between - 1) // 2
    total: Ints = below * low + above * high + line
    return total


def _row_by_row(edges: Segments, axis: Axis, band: Band) -> Ints:
    tile, start, stop, mask, _ = edges
    rows = axis.tiles.rows(tile)
    tiles = np.broadcast_to(tile[:, None], rows.shape)
    low, high = (
        np.clip(axis.place(tiles, bound), start[:, None], stop[:, None])
        for bound in band._bounds(rows + axis.shape.shift, axis.shape)
    )
    inside = np.maximum(high - low, 0)
    present = np.arange(axis.tiles.lanes) < axis.tiles.count[tile, None]
    allowed = np.where(mask[:, None] == MASK_BAND, inside, (stop - start)[:, None] - inside)
    return np.asarray((allowed * present).sum(axis=1))
