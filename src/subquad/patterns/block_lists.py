"""Patterns given as a list of key blocks for each block of query rows."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from subquad.complexity.orders import QUADRATIC, Order
from subquad.patterns.base import Pattern, Shape
from subquad.patterns.row_lists import RowLists, Stretches, expand
from subquad.patterns.spans import Bools, Ints, Spans, Tiles


class BlockLists(RowLists):
    """A pattern whose query rows i // block share a sorted list of key blocks."""

    __slots__ = ()

    block: int

    @property
    def order(self) -> Order:
        return QUADRATIC

    @abstractmethod
    def block_rows(self, rows: Ints, shape: Shape) -> tuple[Ints, Ints]:
        """Row pointers and sorted key blocks of the query blocks `rows`."""

    def _stretches(self, rows: Ints, shape: Shape) -> Stretches:
        indptr, blocks = self.block_rows(rows // self.block, shape)
        start = blocks * self.block
        return Stretches(np.repeat(np.arange(len(rows)), np.diff(indptr)), start, start + self._sizes(blocks, shape))

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
        first = tiles.first // self.block
        if (first == tiles.last // self.block).all():
            tile, met_rows = everyone, first
        else:
            met = np.unique(everyone[:, None] * n_rows + tiles.rows(everyone) // self.block)
            tile, met_rows = np.divmod(met, max(1, n_rows))
        rows, inverse = np.unique(met_rows, return_inverse=True)
        indptr, blocks = self.block_rows(rows, shape)
        starts, counts = indptr[inverse], np.diff(indptr)[inverse]
        listed = np.repeat(tile, counts) * n_blocks + blocks[expand(starts, counts)]
        if len(tile) == len(tiles):  # one block row a tile: its list is that of the tile
            start = (listed % n_blocks) * self.block
            return Spans(
                np.repeat(tile, counts),
                start,
                start + self._sizes(listed % n_blocks, shape),
                np.ones(len(listed), bool),
            )
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
        # every block is full but those of the last column
        last = -(-shape.n_k // self.block) - 1
        in_last = np.concatenate(([0], np.cumsum(blocks == last)))
        missing = (last + 1) * self.block - shape.n_k
        keys = np.diff(indptr) * self.block - np.diff(in_last[indptr]) * missing
        return int((heights * keys).sum())

    def _as_lists(self, shape: Shape) -> tuple[Ints, Ints] | None:
        return self._all_blocks(shape) if self.block == 1 else None

    def _transposed(self, shape: Shape) -> Pattern:
        from subquad.patterns.stored import StoredLists, transposed_lists

        turned = shape.swapped
        n_rows, n_columns = (-(-n // self.block) for n in turned[:2])
        lists = transposed_lists(*self._all_blocks(turned), n_columns)
        return StoredLists._of(*lists, (n_columns, n_rows), self.block)
