"""Any pairs at all, from a sparse matrix of the user's own: graphs, meshes, learned masks."""

from __future__ import annotations

from typing import Any

from subquad.patterns.base import Shape
from subquad.patterns.stored import StoredLists, checked_lists


class Explicit(StoredLists):
    """The stored entries of a SciPy CSR array, whatever their values: as many pairs as entries.

    The index arrays are checked once, here, and copied. `order` is O(n²): how the entries would grow with n cannot be
    known from one array, so it is the bound that holds for all.

    Parameters
    ----------
    csr : scipy.sparse.csr_array or csr_matrix, shape (n_q, n_k)
        Entry (i, j) allows key j to query row i. Indices must be sorted within each row and each there once
        (``csr.sum_duplicates()`` makes them so). The pattern can be used at this n_q and n_k alone.

    Raises
    ------
    TypeError, ValueError
        If it is no CSR array, `indptr` is not monotone, or an index is out of range, repeated or unsorted: the message
        names the position.

    Examples
    --------
    >>> from scipy.sparse import csr_array
    >>> edges = Explicit(csr_array([[1, 0, 1], [0, 1, 0], [1, 1, 1]]))
    >>> edges.row(0, 3, 3)
    array([0, 2])
    >>> edges.nnz(3, 3)
    6
    """

    __slots__ = ()

    def __init__(self, csr: Any) -> None:
        if getattr(csr, "format", None) != "csr" or not hasattr(csr, "indptr"):
            raise TypeError(
                f"csr must be a SciPy CSR array; got {type(csr).__name__}. Convert it: scipy.sparse.csr_array(...)"
            )
        shape = (int(csr.shape[0]), int(csr.shape[1]))
        indptr, indices = checked_lists(csr.indptr, csr.indices, shape, "csr")
        self._hold(block=1, layout_shape=shape, indptr=indptr, indices=indices)

    def __repr__(self) -> str:
        rows, columns = self.layout_shape
        return f"Explicit(<{rows} x {columns} CSR array, {len(self.indices)} entries>)"

    def _validate(self, shape: Shape) -> None:
        if shape[:2] != self.layout_shape:
            raise ValueError(
                f"csr has shape {self.layout_shape}; it cannot be used with n_q = {shape.n_q} and n_k = {shape.n_k}"
            )
