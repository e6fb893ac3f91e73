"""What every pattern can do, and the algebra that joins patterns into expressions.

A pattern says which keys each query may attend, for any n_q queries and n_k keys. It is a small frozen value: nothing
in it grows with n. Query row i stands at position p = i + n_k - n_q, so the last query meets the last key, as in
flash-attention, and one decoded token is n_q = 1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subquad import checks
from subquad.complexity.orders import Order
from subquad.patterns.spans import Bools, Ints, Spans, Tiles

if TYPE_CHECKING:
    from subquad.patterns.explanation import Explanation
    from subquad.plan import Plan


class Shape(NamedTuple):
    """Numbers of queries and keys, and the position of query row 0."""

    n_q: int
    n_k: int
    shift: int

    @classmethod
    def aligned(cls, n_q: int, n_k: int) -> Shape:
        """The last query stands at the position of the last key."""
        return cls(n_q, n_k, n_k - n_q)

    @property
    def is_aligned(self) -> bool:
        return self.shift == self.n_k - self.n_q

    def described(self) -> str:
        offset = "" if self.is_aligned else f" and q_offset = {self.shift}"
        return f"n_q = {self.n_q} and n_k = {self.n_k}{offset}"

    @property
    def swapped(self) -> Shape:
        """Queries and keys in each other's place."""
        return Shape(self.n_k, self.n_q, -self.shift)

    @property
    def farthest(self) -> int:
        """No key is farther from any query, and no position farther from 0."""
        return self.n_q + self.n_k + abs(self.shift)


class Visits(NamedTuple):
    """About how many keys a row has; how many a tile of neighbouring rows has together, and in how many runs."""

    row: float
    tile: float
    runs: float


def checked_shape(n_q: Any, n_k: Any) -> Shape:
    return Shape.aligned(checks.integer(n_q, "n_q", 0), checks.integer(n_k, "n_k", 0))


class Pattern(ABC):
    """A set of allowed query-key pairs. Join patterns with ``|``, ``&`` and ``-``.

    Examples
    --------
    >>> from subquad import Banded, Causal, Global
    >>> pattern = (Banded(2) | Global([0])) & Causal()
    >>> pattern.row(6, 8, 8)
    array([0, 4, 5, 6])
    >>> pattern.nnz(8, 8)
    26
    """

    __slots__ = ()

    # --- what a pattern has to say ------------------------------------------------------------------------------

    @property
    @abstractmethod
    def order(self) -> Order:
        """How the number of pairs grows with n at fixed parameters."""

    @abstractmethod
    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        """Whether key j is allowed to query row i, elementwise."""

    @abstractmethod
    def _row(self, i: int, shape: Shape) -> Ints:
        """Sorted keys of query row i."""

    def _validate(self, shape: Shape) -> None:
        """Raise ValueError where the pattern was made for other sizes."""
        return

    def _check_plan(self, shape: Shape) -> None:
        """Raise MemoryError where a plan could not be held, before any of it is built."""
        checks.allocatable(8 * shape.n_q, f"a plan for n_q = {shape.n_q:,}", "Use fewer rows at a time.")

    def _count(self, shape: Shape) -> int:
        """Number of pairs; what a single pattern knows in closed form, an expression reads off its plan."""
        return self._plan(shape).nnz

    def _leaves(self) -> Iterator[Pattern]:
        """The patterns of an expression, left to right."""
        yield self

    def _resolved(self, shape: Shape) -> Pattern:
        """The same pairs at this size, in patterns that say how they lie."""
        return self

    def _transposed(self, shape: Shape) -> Pattern:
        """The pairs swapped, n_q and n_k being those after the swap. By default a list of them, O(pairs)."""
        from subquad.patterns.stored import StoredLists, transposed_lists
        from subquad.plan import csr_arrays

        lists = transposed_lists(*csr_arrays(self, shape.swapped), shape.n_q)
        return StoredLists._of(*lists, (shape.n_q, shape.n_k), 1)

    def _visits(self, shape: Shape, lanes: int) -> Visits:
        """What a plan decides by. It must not follow n_q where n_q may be anything: a row has one result."""
        return Visits(shape.n_k, shape.n_k, 1)

    def _cuts(self, shape: Shape, lanes: int) -> Ints:
        """Query rows at which a tile had better begin: what lies before and after shares no keys."""
        return np.arange(0)

    def _spans(self, tiles: Tiles, shape: Shape) -> Spans:
        """What the pattern allows to tiles of rows. By default nothing is known: any key, perhaps."""
        zeros = np.zeros(len(tiles), np.int64)
        return Spans(np.arange(len(tiles)), zeros, zeros + shape.n_k, zeros != 0).clean()

    # --- what users ask -----------------------------------------------------------------------------------------

    def contains(self, i: npt.ArrayLike, j: npt.ArrayLike, n_q: int, n_k: int) -> Bools:
        """Whether query row `i` may attend key `j`, for arrays that broadcast together.

        Raises
        ------
        IndexError
            Where an `i` is outside [0, n_q) or a `j` outside [0, n_k).
        """
        shape = checked_shape(n_q, n_k)
        self._validate(shape)
        rows, keys = (np.asarray(x) for x in (i, j))
        for name, index, n in (("i", rows, n_q), ("j", keys, n_k)):
            if index.size and (index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= n):
                raise IndexError(f"{name} must hold integers in [0, {n}); got {index!r}")
        rows, keys = np.broadcast_arrays(rows.astype(np.int64), keys.astype(np.int64))
        return self._contains(rows, keys, shape)

    def row(self, i: int, n_q: int, n_k: int) -> Ints:
        """The keys that query row `i` may attend, ascending, int64. Time and memory follow the row."""
        shape = checked_shape(n_q, n_k)
        self._validate(shape)
        index = checks.integer(i, "i", 0)
        if index >= shape.n_q:
            raise IndexError(f"i must be in [0, n_q = {shape.n_q}); got {index}")
        return self._row(index, shape)

    def nnz(self, n_q: int, n_k: int) -> int:
        """The exact number of allowed pairs; at most O(n) time and memory for a single pattern."""
        shape = checked_shape(n_q, n_k)
        self._validate(shape)
        return self._count(shape)

    def density(self, n_q: int, n_k: int) -> float:
        """Allowed pairs over all n_q x n_k pairs; 0 where there are none."""
        return self.nnz(n_q, n_k) / max(1, n_q * n_k)

    def plan(self, n_q: int, n_k: int, *, itemsize: int = 4) -> Plan:
        """Where the pairs lie, each once, as the kernels read it. Recent plans are kept.

        Parameters
        ----------
        n_q, n_k : int
            Numbers of queries and keys.
        itemsize : int
            Bytes of an element: 4 makes tiles of 16 query rows (float32), 8 of 8 (float64).
        """
        return self._plan(checked_shape(n_q, n_k), itemsize)

    def _plan(self, shape: Shape, itemsize: int = 4) -> Plan:
        from subquad.plan import plan_for

        return plan_for(self, shape, itemsize)

    def transpose(self) -> Pattern:
        """The pattern of the same pairs with queries and keys swapped; ``p.transpose().transpose() == p``.

        ``p.transpose().contains(j, i, n_k, n_q)`` is ``p.contains(i, j, n_q, n_k)`` everywhere. Windows, strides,
        columns, segments, neighbourhoods and layouts are known in closed form; the keys of `Random` are listed, which
        takes O(pairs) wherever the result is used.

        Examples
        --------
        >>> from subquad import Banded, Causal, Strided
        >>> (Banded((3, 0)) | Strided(4)).transpose()
        Banded((0, 3)) | Strided(4)
        >>> Causal().transpose().row(1, 4, 4)
        array([1, 2, 3])
        """
        from subquad.patterns.transposed import Transposed

        return Transposed(self)

    def to_csr(self, n_q: int, n_k: int, *, max_bytes: int | None = None) -> Any:
        """The mask as a SciPy CSR array of ones (uint8): time and memory O(pairs). Needs the extra ``scipy``.

        More than `max_bytes`, at the peak, is refused by a MemoryError before pairs are listed.
        """
        from subquad import limits
        from subquad.plan import LISTING, csr_arrays

        try:
            from scipy.sparse import csr_array
        except ImportError:
            raise ImportError('to_csr returns a SciPy array: pip install "subquad[scipy]"') from None
        shape = checked_shape(n_q, n_k)
        self._validate(shape)
        most = limits.checked(max_bytes)
        if most is not None:
            n_pairs = self._count(shape)
            listed = {"row pointers and keys": 8 * (shape.n_q + 1 + n_pairs), "ones": n_pairs}
            limits.check(listed | {"listing the pairs": LISTING * n_pairs}, most)
        indptr, indices = csr_arrays(self, shape)
        return csr_array((np.ones(len(indices), np.uint8), indices, indptr), shape=(n_q, n_k))

    def explain(self, i: int, n_q: int, n_k: int) -> Explanation:
        """Which parts of the expression allow each key of query row `i`.

        Examples
        --------
        >>> from subquad import Banded, Global
        >>> print((Banded(1) | Global([0])).explain(3, 6, 6))
        query row 3 at position 3 of 6: 4 keys
          key 0: Global((0,))
          keys 2 to 4: Banded(1)
        """
        from subquad.patterns.explanation import explain

        return explain(self, i, n_q, n_k)

    # --- algebra --------------------------------------------------------------------------------------------------

    def __or__(self, other: object) -> Pattern:
        return Union(self, other) if isinstance(other, Pattern) else NotImplemented

    def __and__(self, other: object) -> Pattern:
        return Intersection(self, other) if isinstance(other, Pattern) else NotImplemented

    def __sub__(self, other: object) -> Pattern:
        return Difference(self, other) if isinstance(other, Pattern) else NotImplemented

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} has no truth value: join patterns with |, & and -, not with or, and, not")


@dataclass(frozen=True, slots=True, repr=False)
class _Joined(Pattern):
    left: Pattern
    right: Pattern

    def _validate(self, shape: Shape) -> None:
        self.left._validate(shape)
        self.right._validate(shape)

    def _check_plan(self, shape: Shape) -> None:
        self.left._check_plan(shape)
        self.right._check_plan(shape)

    def transpose(self) -> Pattern:
        return type(self)(self.left.transpose(), self.right.transpose())

    def _resolved(self, shape: Shape) -> Pattern:
        return type(self)(self.left._resolved(shape), self.right._resolved(shape))

    def _leaves(self) -> Iterator[Pattern]:
        yield from self.left._leaves()
        yield from self.right._leaves()

    def _written(self, sign: str) -> str:
        left, right = (f"({x!r})" if isinstance(x, _Joined) else repr(x) for x in (self.left, self.right))
        return f"{left} {sign} {right}"


class Union(_Joined):
    """Pairs that either pattern allows, each once."""

    __slots__ = ()

    @property
    def order(self) -> Order:
        return max(self.left.order, self.right.order)

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return self.left._contains(i, j, shape) | self.right._contains(i, j, shape)

    def _row(self, i: int, shape: Shape) -> Ints:
        return np.union1d(self.left._row(i, shape), self.right._row(i, shape))

    def __repr__(self) -> str:
        return self._written("|")


class Intersection(_Joined):
    """Pairs that both patterns allow."""

    __slots__ = ()

    @property
    def order(self) -> Order:
        return min(self.left.order, self.right.order)

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return self.left._contains(i, j, shape) & self.right._contains(i, j, shape)

    def _row(self, i: int, shape: Shape) -> Ints:
        few, many = sorted((self.left, self.right), key=lambda side: side.order)  # a window's row, not Causal's
        keys = few._row(i, shape)
        return keys[many._contains(np.full_like(keys, i), keys, shape)]

    def __repr__(self) -> str:
        return self._written("&")


class Difference(_Joined):
    """Pairs that the left pattern allows and the right one does not."""

    __slots__ = ()

    @property
    def order(self) -> Order:
        return self.left.order

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return self.left._contains(i, j, shape) & ~self.right._contains(i, j, shape)

    def _row(self, i: int, shape: Shape) -> Ints:
        keys = self.left._row(i, shape)
        return keys[~self.right._contains(np.full_like(keys, i), keys, shape)]

    def __repr__(self) -> str:
        return self._written("-")
