"""Blocks switched on and off by a layout of the user's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from subquad import checks
from subquad.patterns.base import Shape
from subquad.patterns.spans import Ints
from subquad.patterns.stored import StoredLists, checked_indptr


class BlockSparse(StoredLists):
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

    __slots__ = ()

    def __init__(self, layout: Any, block: Any) -> None:
        indptr, indices, shape = _checked_layout(layout)
        self._hold(block=checks.integer(block, "block", 1), layout_shape=shape, indptr=indptr, indices=indices)

    def __repr__(self) -> str:
        rows, columns = self.layout_shape
        return f"BlockSparse(<{rows} x {columns} layout, {len(self.indices)} blocks on>, block={self.block})"

    def _validate(self, shape: Shape) -> None:
        needed = tuple(-(-n // self.block) for n in shape[:2])
        if needed != self.layout_shape:
            raise ValueError(
                f"layout has {self.layout_shape[0]} x {self.layout_shape[1]} blocks of {self.block}; "
                f"n_q = {shape.n_q} and n_k = {shape.n_k} need {needed[0]} x {needed[1]}"
            )


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
    checked_indptr(indptr, len(indptr) - 1, len(indices), "layout")
    n_columns = layout.shape[1] // (layout.blocksize[1] if hasattr(layout, "blocksize") else 1)
    outside = np.nonzero((indices < 0) | (indices >= n_columns))[0]
    if len(outside):
        at = outside[0]
        raise ValueError(f"layout's indices must be in [0, {n_columns}); got {indices[at]} at position {at}")
