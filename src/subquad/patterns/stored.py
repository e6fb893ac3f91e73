"""Patterns that hold index arrays of the user's own: copied, frozen, compared and hashed by what they hold."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from subquad import checks
from subquad.patterns.base import Shape
from subquad.patterns.block_lists import BlockLists
from subquad.patterns.row_lists import expand
from subquad.patterns.spans import Bools, Ints


class Frozen:
    """Fields that are set once, by `_hold`; equality and hash follow them."""

    __slots__ = ("_digest", "_held")

    _digest: int
    _held: tuple[Any, ...]

    def _hold(self, **fields: Any) -> None:
        """Set the fields; arrays are frozen."""
        for name, value in fields.items():
            if isinstance(value, np.ndarray):
                value.flags.writeable = False
            object.__setattr__(self, name, value)
        content = tuple(value.tobytes() if isinstance(value, np.ndarray) else value for value in fields.values())
        object.__setattr__(self, "_held", tuple(fields.values()))
        object.__setattr__(self, "_digest", hash(content))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a pattern is frozen; cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a pattern is frozen; cannot delete {name!r}")

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not isinstance(other, Frozen) or self._digest != other._digest:
            return False
        return all(np.array_equal(a, b) for a, b in zip(self._held, other._held, strict=True))

    def __hash__(self) -> int:
        return self._digest


def integers(values: Any, name: str, minimum: int, maximum: int = checks.LARGEST) -> Ints:
    """A copy of `values`, one axis of integers from `minimum` to `maximum`; what is wrong is named by its position."""
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise ValueError(f"{name} must be a sequence of integers; got an array of shape {values.shape}")
        array = values
    else:
        if isinstance(values, str | bytes) or not isinstance(values, Iterable):
            raise TypeError(f"{name} must be a sequence of integers; got {values!r} of type {type(values).__name__}")
        array = np.array(list(values), object)
    if array.dtype.kind not in "iu":
        found = array.tolist()
        wrong = next((k for k, x in enumerate(found) if isinstance(x, bool) or not hasattr(x, "__index__")), None)
        if wrong is not None:
            got = found[wrong]
            raise TypeError(f"{name} must hold integers; got {got!r} of type {type(got).__name__} at position {wrong}")
        array = np.array([*map(operator.index, found)], object)
    outside = np.nonzero((array < minimum) | (array > maximum))[0]
    if len(outside):
        at = int(outside[0])
        raise ValueError(f"{name} must hold integers in [{minimum}, {maximum}]; got {array[at]} at position {at}")
    return array.astype(np.int64)


def checked_indptr(indptr: Ints, n_rows: int, n_indices: int, name: str) -> None:
    """Refuse row pointers that do not rise from 0 to at most the number of indices, one more than there are rows."""
    if len(indptr) != n_rows + 1:
        raise ValueError(f"{name}'s indptr must have {n_rows + 1} entries, one more than rows; got {len(indptr)}")
    falls = np.nonzero(np.diff(indptr) < 0)[0]
    if len(falls) or indptr[0] != 0 or indptr[-1] > n_indices:
        at = f"falls after entry {falls[0]}" if len(falls) else f"goes from {indptr[0]} to {indptr[-1]}"
        raise ValueError(f"{name}'s indptr must rise from 0 to at most {n_indices}, its number of indices; it {at}")


def checked_lists(indptr: Any, indices: Any, shape: tuple[int, int], name: str) -> tuple[Ints, Ints]:
    """Copies of the index arrays of a CSR matrix, once it is sure that each row's are sorted, in range and unique."""
    starts = integers(indptr, f"{name}'s indptr", -(2**62))
    checked_indptr(starts, shape[0], len(indices), name)
    columns = integers(indices[: starts[-1]], f"{name}'s indices", 0, shape[1] - 1)
    falls = np.diff(columns) <= 0
    falls[starts[1:-1][(starts[1:-1] > 0) & (starts[1:-1] < len(columns))] - 1] = False  # a row ends here
    if falls.any():
        at = int(np.nonzero(falls)[0][0])
        row = int(np.searchsorted(starts, at, side="right")) - 1
        rule = "sorted" if columns[at + 1] < columns[at] else "each there once"
        raise ValueError(
            f"{name}'s indices must be {rule} within a row; row {row} has {columns[at]} and then {columns[at + 1]}, "
            f"at position {at + 1}. Call {name}.sum_duplicates() first"
        )
    return starts, columns


def transposed_lists(indptr: Ints, indices: Ints, n_columns: int) -> tuple[Ints, Ints]:
    """Row pointers and sorted columns of the transposed matrix."""
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    counts = np.bincount(indices, minlength=n_columns)
    return np.concatenate(([0], np.cumsum(counts))), rows[np.argsort(indices, kind="stable")]


class StoredLists(Frozen, BlockLists):
    """Key blocks of each query block, as the CSR arrays of a matrix of `layout_shape` blocks."""

    __slots__ = ("block", "indices", "indptr", "layout_shape")

    indptr: Ints
    indices: Ints
    layout_shape: tuple[int, int]

    @classmethod
    def _of(cls, indptr: Ints, indices: Ints, layout_shape: tuple[int, int], block: int) -> StoredLists:
        """The pattern of index arrays that are known to be right; they are frozen, not copied."""
        self = cls.__new__(cls)
        self._hold(block=block, layout_shape=layout_shape, indptr=indptr, indices=indices)
        return self

    def __reduce__(self) -> Any:
        return rebuilt, (type(self), self.indptr, self.indices, self.layout_shape, self.block)

    def transpose(self) -> StoredLists:
        lists = transposed_lists(self.indptr, self.indices, self.layout_shape[1])
        return self._of(*lists, self.layout_shape[::-1], self.block)

    def block_rows(self, rows: Ints, shape: Shape) -> tuple[Ints, Ints]:
        starts, counts = self.indptr[rows], self.indptr[rows + 1] - self.indptr[rows]
        return np.concatenate(([0], np.cumsum(counts))), self.indices[expand(starts, counts)]

    def _all_blocks(self, shape: Shape) -> tuple[Ints, Ints]:
        return self.indptr, self.indices

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return self._contains_by_lists(i, j, shape)

    def _count(self, shape: Shape) -> int:
        return self._count_lists(shape)


def rebuilt(cls: type[StoredLists], indptr: Any, indices: Any, layout_shape: Any, block: Any) -> StoredLists:
    """A pattern as pickle took it apart, checked anew: its arrays may come from a file of someone else's making."""
    rows, columns = (checks.integer(n, "layout_shape", 0) for n in layout_shape)
    lists = checked_lists(indptr, indices, (rows, columns), cls.__name__)
    return cls._of(*lists, (rows, columns), checks.integer(block, "block", 1))
