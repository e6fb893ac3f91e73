"""Patterns whose rows are known as stretches of keys: the common language of windows, segments, grids and lists."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import numpy as np

from subquad import checks
from subquad.patterns.base import Pattern, Shape, Visits
from subquad.patterns.spans import Bools, Ints, Spans, Tiles

_SAMPLED_TILES = 256
_CHUNK_ROWS = 1 << 15  # rows whose stretches are counted at a time: bounds the memory of a long sequence


def expand(starts: Ints, counts: Ints) -> Ints:
    """starts[0], starts[0] + 1, ... for counts[0] numbers, then the same from starts[1], and so on."""
    total = int(counts.sum())
    ends = np.cumsum(counts)
    return np.arange(total) - np.repeat(ends - counts, counts) + np.repeat(starts, counts)


class Stretches(NamedTuple):
    """Keys start <= j < stop of some rows: disjoint, ascending by owner (the place of the row among them) and start."""

    owner: Ints
    start: Ints
    stop: Ints


class RowLists(Pattern):
    """A pattern that can say the keys of any row as a few stretches."""

    __slots__ = ()

    @abstractmethod
    def _stretches(self, rows: Ints, shape: Shape) -> Stretches:
        """The keys of each of `rows`; empty stretches may be among them."""

    def _row(self, i: int, shape: Shape) -> Ints:
        _, start, stop = self._stretches(np.array([i]), shape)
        n_keys = int((stop - start).sum())
        checks.allocatable(32 * n_keys, f"a row of {n_keys:,} keys", "Use a smaller n_k.")
        return expand(start, stop - start)

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        rows, inverse = np.unique(i, return_inverse=True)
        owner, start, stop = self._stretches(rows, shape)
        if not len(owner):
            return np.zeros(i.shape, bool)
        # (row, key) as one ascending number
        width = shape.n_k + 1
        wanted = inverse.reshape(i.shape) * width + j
        at = np.searchsorted(owner * width + start, wanted, side="right") - 1
        return np.asarray((at >= 0) & (wanted < (owner * width + stop)[at]))

    def _count(self, shape: Shape) -> int:
        total = 0
        for first in range(0, shape.n_q, _CHUNK_ROWS):
            rows = np.arange(first, min(first + _CHUNK_ROWS, shape.n_q))
            _, start, stop = self._stretches(rows, shape)
            total += int((stop - start).sum())
        return total

    def _visits(self, shape: Shape, lanes: int) -> Visits:
        # of a pattern made for one size: counted on some tiles
        tiles = Tiles.affine(0, 1, shape.n_q, lanes)
        if not len(tiles):
            return Visits(0, 0, 0)
        tiles = tiles.take(np.unique(np.linspace(0, len(tiles) - 1, _SAMPLED_TILES).astype(np.int64)))
        spans = self._spans(tiles, shape)
        rows = tiles.rows(np.arange(len(tiles)))[np.arange(lanes) < tiles.count[:, None]]
        _, start, stop = self._stretches(rows, shape)
        runs = np.count_nonzero(spans.start[1:] != spans.stop[:-1]) + 1
        row, tile = (int((ends - begins).sum()) for begins, ends in ((start, stop), (spans.start, spans.stop)))
        return Visits(row / len(rows), tile / len(tiles), runs / len(tiles))

    def _as_lists(self, shape: Shape) -> tuple[Ints, Ints] | None:
        """Row pointers and keys of every row, where the pattern has them at hand."""
        return None

    def _spans(self, tiles: Tiles, shape: Shape) -> Spans:
        # the rows of a tile at each key are a sum over the stretches that begin and end there; all of them: full
        everyone = np.arange(len(tiles))
        present = np.arange(tiles.lanes) < tiles.count[:, None]
        tile = np.repeat(everyone, tiles.count)
        owner, start, stop = self._stretches(tiles.rows(everyone)[present], shape)
        kept = start < stop
        at = tile[owner[kept]] * (shape.n_k + 1)
        # key and sign in one number, which sorts faster than keys with an order of their own
        events = np.concatenate((2 * (at + start[kept]) + 1, 2 * (at + stop[kept])))
        events.sort(kind="stable")
        depth = np.cumsum(2 * (events & 1) - 1)
        key = events >> 1
        last = np.ones(len(key), bool)
        np.not_equal(key[1:], key[:-1], out=last[:-1])
        key, depth = key[last], depth[last]
        inside = np.nonzero(depth > 0)[0]
        tile, begin = np.divmod(key[inside], shape.n_k + 1)
        end = key[inside + 1] - tile * (shape.n_k + 1) if len(inside) else key[inside]
        return Spans(tile, begin, end, depth[inside] == tiles.count[tile])
