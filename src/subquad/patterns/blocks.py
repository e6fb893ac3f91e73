"""Blocks switched on and off by a layout of the user's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from subquad import checks
from subquad.complexity.orders import QUADRATIC, Order
from subquad.patterns.base import Shape
from subquad.patterns.block_lists import BlockLists, expand
from subquad.patterns.spans import Bools, Ints


class BlockSparse(BlockLists):
    """The pairs of the blocks that a layout switches on: ``layout[i // block, j // block]``.

    Parameters
    ----------
    layout : array of bool or SciPy sparse array, shape (query blocks, key blocks)
        Stored non-zero entries are on. It is copied; for n_q queries and n_k keys it must have
        ceil(n_q / block) x ceil(n_k / block) entries.
    block : int
        Tokens in a block, at least 1. Multiples of 16 leave no lane of a tile idle.

    Raises
    ------
    TypeError, ValueError
        If the layout is not two-dimensional, holds anything but 0 and 1, or the sizes do not fit it.

    References
    ----------
    Gray, Radford, Kingma, "GPU Kernels for Block-Sparse Weights" (2017).

    Examples
    --------
    >>> pattern = BlockSparse([[1, 0], [1, 1]], block=2)
    >>> pattern.row(2, 4, 4)
    array([0, 1, 2, 3])
    >>> pattern.nnz(4, 4)
    12
    """

    __slots__ = ("_digest", "block", "indices", "indptr", "layout_shape")

    indptr: Ints
    indices: Ints
    layout_shape: tuple[int, int]
    _digest: int

    def __init__(self, layout: Any, block: Any) -> None:
        indptr, indices, shape = _checked_layout(layout)
        set_field = object.__setattr__
        for array in (indptr, indices):
            array.flags.writeable = False
        set_field(self, "block", checks.integer(block, "block", 1))
        set_field(self, "layout_shape", shape)
        set_field(self, "indptr", indptr)
        set_field(self, "indices", indices)
        set_field(self, "_digest", hash((self.block, shape, indptr.tobytes(), indices.tobytes())))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a pattern is frozen; cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a pattern is frozen; cannot delete {name!r}")

    def __reduce__(self) -> Any:
        return _from_lists, (self.indptr, self.indices, self.layout_shape, self.block)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, BlockSparse)
            and self._digest == other._digest
            and (self.block, self.layout_shape) == (other.block, other.layout_shape)
            and np.array_equal(self.indptr, other.indptr)
            and np.array_equal(self.indices, other.indices)
        )

    def __hash__(self) -> int:
        return self._digest

    def __repr__(self) -> str:
        rows, columns = self.layout_shape
        return f"BlockSparse(<{rows} x {columns} layout, {len(self.indices)} blocks on>, block={self.block})"

    @property
    def order(self) -> Order:
        return QUADRATIC

    def _validate(self, shape: Shape) -> None:
        needed = tuple(-(-n // self.block) for n in shape)
        if needed != self.layout_shape:
            raise ValueError(
                f"layout has {self.layout_shape[0]} x {self.layout_shape[1]} blocks of {self.block}; "
                f"n_q = {shape.n_q} and n_k = {shape.n_k} need {needed[0]} x {needed[1]}"
            )

    def block_rows(self, rows: Ints, shape: Shape) -> tuple[Ints, Ints]:
        starts, counts = self.indptr[rows], self.indptr[rows + 1] - self.indptr[rows]
        return np.concatenate(([0], np.cumsum(counts))), self.indices[expand(starts, counts)]

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return self._contains_by_lists(i, j, shape)

    def _count(self, shape: Shape) -> int:
        return self._count_lists(shape)


def _from_lists(indptr: Ints, indices: Ints, shape: tuple[int, int], block: int) -> BlockSparse:
    dense = np.zeros(shape, bool)
    dense[np.repeat(np.arange(shape[0]), np.diff(indptr)), indices] = True
    return BlockSparse(dense, block)


def _checked_layout(layout: Any) -> tuple[Ints, Ints, tuple[int, int]]:
    """Row pointers and sorted columns of the blocks that are on, and the layout's shape."""
    if hasattr(layout, "tocoo"):  # SciPy CSR, BSR or any other sparse array
        if hasattr(layout, "indptr"):
            _check_index_arrays(layout)
        coo = layout.tocoo()
        rows, columns, values, shape = coo.row, coo.col, coo.data, tuple(map(int, coo.shape))
        rows, columns = rows[values != 0], columns[values != 0]
    else:
        array = np.asarray(layout)
        if array.ndim != 2:
            raise ValueError(f"layout must have 2 axes (query blocks, key blocks); got shape {array.shape}")
        if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
            raise TypeError(f"layout must hold booleans (or 0 and 1); got dtype {array.dtype}")
        (rows, columns), shape = np.nonzero(array), array.shape
    flat = np.unique(rows.astype(np.int64) * max(1, shape[1]) + columns)
    rows, columns = np.divmod(flat, max(1, shape[1]))
    indptr = np.searchsorted(rows, np.arange(shape[0] + 1))
    return indptr.astype(np.int64), columns.astype(np.int64), (shape[0], shape[1])


def _check_index_arrays(layout: Any) -> None:
    """Refuse a SciPy array whose index arrays point outside it: SciPy itself would follow them."""
    indptr, indices = np.asarray(layout.indptr), np.asarray(layout.indices)
    falls = np.nonzero(np.diff(indptr) < 0)[0]
    if len(falls) or indptr[0] != 0 or indptr[-1] > len(indices):
        at = f"falls after entry {falls[0]}" if len(falls) else f"goes from {indptr[0]} to {indptr[-1]}"
        raise ValueError(f"layout's indptr must rise from 0 to at most {len(indices)}, its number of indices; it {at}")
    n_columns = layout.shape[1] // (layout.blocksize[1] if hasattr(layout, "blocksize") else 1)
    outside = np.nonzero((indices < 0) | (indices >= n_columns))[0]
    if len(outside):
        at = outside[0]
        raise ValueError(f"layout's indices must be in [0, {n_columns}); got {indices[at]} at position {at}")
