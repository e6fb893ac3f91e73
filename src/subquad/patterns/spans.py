"""What a pattern allows to a whole tile of query rows: stretches of keys, each for every row of the tile or for some.

This is the language in which patterns are planned. It costs a few numbers a tile, so it never touches n² points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Spans(NamedTuple):
    """Disjoint stretches start <= j < stop, ascending by tile and start. Keys in none of them are allowed to no row."""

    tile: Ints
    start: Ints
    stop: Ints
    full: Bools  # allowed to every row of the tile; else perhaps to some

    def clean(self) -> Spans:
        """Without the empty ones."""
        kept = self.start < self.stop
        return self if kept.all() else Spans(self.tile[kept], self.start[kept], self.stop[kept], self.full[kept])


@dataclass(frozen=True)
class Tiles:
    """Tiles of ascending query rows: first + k step, or listed[at + k], for k < count."""

    first: Ints
    step: Ints
    at: Ints  # -1 where the rows are not listed
    count: Ints
    last: Ints
    listed: Ints
    lanes: int

    def __len__(self) -> int:
        return len(self.first)

    def take(self, which: Ints | slice) -> Tiles:
        """Some of the tiles."""
        return Tiles(
            self.first[which], self.step[which], self.at[which], self.count[which], self.last[which], self.listed,
            self.lanes,
        )  # fmt: skip

    def rows(self, which: Ints) -> Ints:
        """The rows of some tiles, (len(which), lanes); the last row stands in for missing ones."""
        lane: Ints = np.minimum(np.arange(self.lanes), self.count[which, None] - 1)
        affine: Ints = self.first[which, None] + lane * self.step[which, None]
        if not len(self.listed):
            return affine
        return np.where(self.at[which, None] >= 0, self.listed[np.maximum(self.at[which, None], 0) + lane], affine)

    @staticmethod
    def affine(first: int, step: int, total: int, lanes: int) -> Tiles:
        """Tiles of the rows first, first + step, ... (`total` of them)."""
        return Tiles.stretches(np.array([first]), np.array([total]), lanes, step)

    @staticmethod
    def stretches(starts: Ints, sizes: Ints, lanes: int, step: int = 1) -> Tiles:
        """Tiles of several series of rows, each begun anew: starts[k], starts[k] + step, ... (sizes[k] of them)."""
        of_each = -(-sizes // lanes)
        ends = np.cumsum(of_each)
        begin = (np.arange(int(of_each.sum())) - np.repeat(ends - of_each, of_each)) * lanes
        count = np.minimum(lanes, np.repeat(sizes, of_each) - begin)
        first = np.repeat(starts, of_each) + begin * step
        full = np.full_like(first, 1)
        return Tiles(first, full * step, -full, count, first + (count - 1) * step, begin[:0], lanes)

    @staticmethod
    def of(rows: Ints, lanes: int) -> Tiles:
        """Tiles of any ascending rows; listed only where a tile's rows are not evenly spaced."""
        begin = np.arange(0, len(rows), lanes)
        count = np.minimum(lanes, len(rows) - begin)
        first, last = rows[begin], rows[begin + count - 1]
        step = np.maximum((last - first) // np.maximum(count - 1, 1), 1)
        tiles = Tiles(first, step, np.full_like(begin, -1), count, last, begin[:0], lanes)
        lane = np.minimum(begin[:, None] + np.arange(lanes), (begin + count - 1)[:, None])
        uneven = np.nonzero((rows[lane] != tiles.rows(np.arange(len(begin)))).any(axis=1))[0]
        at = tiles.at.copy()
        at[uneven] = np.arange(len(uneven)) * lanes
        return Tiles(first, step, at, count, last, rows[lane[uneven]].ravel(), lanes)

    @staticmethod
    def join(parts: list[Tiles]) -> Tiles:
        """The tiles of all parts, one after another."""
        if len(parts) == 1:
            return parts[0]
        offsets = np.cumsum([0] + [len(part.listed) for part in parts])
        at = [np.where(part.at >= 0, part.at + off, -1) for part, off in zip(parts, offsets[:-1], strict=True)]
        first, step, count, last, listed = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("first", "step", "count", "last", "listed")
        )
        return Tiles(first, step, np.concatenate(at), count, last, listed, parts[0].lanes)
