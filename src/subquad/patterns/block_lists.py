"""Patterns given as a list of key blocks for each block of query rows."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from subquad.patterns.base import Pattern, Shape
from subquad.patterns.spans import Bools, Ints, Spans, Tiles


def expand(starts: Ints, counts: Ints) -> Ints:
    """starts[0], starts[0] + 1, ... for counts[0] numbers, then the same from starts[1], and so on."""
    total = int(counts.sum())
    ends = np.cumsum(counts)
    return np.arange(total) - np.repeat(ends - counts, counts) + np.repeat(starts, counts)


class BlockLists(Pattern):
    """A pattern whose query rows i // block share a sorted list of key blocks."""

    __slots__ = ()

    block: int

    @abstractmethod
    def block_rows(self, rows: Ints, shape: Shape) -> tuple[Ints, Ints]:
        """Row pointers and sorted key blocks of the query blocks `rows`."""

    def _row(self, i: int, shape: Shape) -> Ints:
        _, blocks = self.block_rows(np.array([i // self.block]), shape)
        return expand(blocks * self.block, self._sizes(blocks, shape))

    def _sizes(self, blocks: Ints, shape: Shape) -> Ints:
        """Keys in each of the blocks; the last one may be short."""
        return np.minimum(self.block, shape.n_k - blocks * self.block)

    def _contains_by_lists(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        rows, inverse = np.unique(i // self.block, return_inverse=True)
        indptr, blocks = self.block_rows(rows, shape)
        # (row, key block) as one ascending number: the lists are sorted, and so are the rows
        n_blocks = max(1, -(-shape.n_k // self.block))
        listed = np.repeat(np.arange(len(rows)), np.diff(indptr)) * n_blocks + blocks
        wanted = inverse.reshape(i.shape) * n_blocks + j // self.block
        if not len(listed):
            return np.zeros(i.shape, bool)
        at = np.minimum(np.searchsorted(listed, wanted), len(listed) - 1)
        return np.asarray(listed[at] == wanted)

    def _spans(self, tiles: Tiles, shape: Shape) -> Spans:
        # the block rows each tile meets, then their key blocks; one that all of them list is allowed to the whole tile
        n_rows, n_blocks = -(-shape.n_q // self.block), max(1, -(-shape.n_k // self.block))
        everyone = np.arange(len(tiles))
        if (tiles.first // self.block == tiles.last // self.block).all():
            met = everyone * n_rows + tiles.first // self.block
        else:
            met = np.unique(everyone[:, None] * n_rows + tiles.rows(everyone) // self.block)
        tile, block_row = np.divmod(met, max(1, n_rows))
        rows, inverse = np.unique(block_row, return_inverse=True)
        indptr, blocks = self.block_rows(rows, shape)
        starts, counts = indptr[inverse], np.diff(indptr)[inverse]
        listed = np.repeat(tile, counts) * n_blocks + blocks[expand(starts, counts)]
        found, times = np.unique(listed, return_counts=True)
        tile_of, block = np.divmod(found, n_blocks)
        start = block * self.block
        met_by = np.bincount(tile, minlength=len(tiles))
        return Spans(tile_of, start, start + self._sizes(block, shape), times == met_by[tile_of])

    def _all_blocks(self, shape: Shape) -> tuple[Ints, Ints]:
        """Row pointers and key blocks of every query block."""
        return self.block_rows(np.arange(-(-shape.n_q // self.block)), shape)

    def _count_lists(self, shape: Shape) -> int:
        indptr, blocks = self._all_blocks(shape)
        rows = np.arange(len(indptr) - 1) * self.block
        heights = np.minimum(self.block, shape.n_q - rows)
        keys = np.concatenate(([0], np.cumsum(self._sizes(blocks, shape))))
        return int((heights * (keys[indptr[1:]] - keys[indptr[:-1]])).sum())

    def _pairs(self, shape: Shape) -> tuple[Ints, Ints]:
        """Row pointers and keys of every row."""
        indptr, blocks = self._all_blocks(shape)
        if self.block == 1:
            return indptr, blocks
        of_row = np.arange(shape.n_q) // self.block
        per_row = np.diff(indptr)[of_row]
        chosen = blocks[expand(indptr[of_row], per_row)]
        sizes = self._sizes(chosen, shape)
        ends = np.concatenate(([0], np.cumsum(sizes)))
        row_ends = np.concatenate(([0], np.cumsum(per_row)))
        return ends[row_ends], expand(chosen * self.block, sizes)
