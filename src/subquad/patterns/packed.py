"""Several sequences in one, none of which sees another."""

from __future__ import annotations

from typing import Any

import numpy as np

from subquad.complexity.orders import LINEAR, Order
from subquad.patterns.base import Shape, Visits
from subquad.patterns.row_lists import RowLists, Stretches, expand
from subquad.patterns.spans import Bools, Ints, Spans, Tiles
from subquad.patterns.stored import Frozen, integers

_WRITTEN = 16  # lengths that a repr lists


class Packed(Frozen, RowLists):
    """Query and key in the same segment of a packed batch: as many pairs as the sum of the squared lengths.

    ``Packed(lengths) & Causal()`` is causal attention within each sequence, ``Packed(lengths) & Banded(w)`` a window
    that stops at its ends. Either costs what the segments cost one by one: tiles begin where segments do.

    `order` is O(n): n grows with the number of segments, their lengths staying as they are.

    Parameters
    ----------
    lengths : sequence of int, each at least 0
        Of the segments, in order; where the pattern is used they must sum to n_q, and to n_k. An empty segment
        (length 0) is allowed and has no pairs. They are copied.

    Raises
    ------
    TypeError, ValueError
        If a length is no integer or negative; in use, if they do not sum to n_q = n_k.

    References
    ----------
    Krell et al., "Efficient Sequence Packing without Cross-contamination" (2021).

    Examples
    --------
    >>> Packed([3, 2]).row(3, 5, 5)
    array([3, 4])
    >>> Packed([3, 2]).nnz(5, 5)
    13
    """

    __slots__ = ("ends", "lengths")

    lengths: Ints
    ends: Ints  # one past the last token of each segment

    def __init__(self, lengths: Any) -> None:
        lengths = integers(lengths, "lengths", 0)
        if sum(map(int, lengths[lengths > 1 << 40])) > 1 << 62:
            raise ValueError("lengths must sum to at most 2**62, for index arithmetic in 64 bits")
        self._hold(lengths=lengths, ends=np.cumsum(lengths))

    def __reduce__(self) -> Any:
        return Packed, (self.lengths,)

    def __repr__(self) -> str:
        if len(self.lengths) > _WRITTEN:
            return f"Packed(<{len(self.lengths):,} segments, {self.n:,} tokens>)"
        return f"Packed({self.lengths.tolist()})"

    @property
    def n(self) -> int:
        """Tokens of all segments."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def order(self) -> Order:
        return LINEAR

    def transpose(self) -> Packed:
        return self

    def _validate(self, shape: Shape) -> None:
        if shape != Shape.aligned(self.n, self.n):
            raise ValueError(f"lengths must sum to n_q and to n_k; {self!r} sums to {self.n}, {shape.described()}")

    def _segment(self, token: Ints) -> Ints:
        return np.searchsorted(self.ends, token, side="right")

    def _bounds(self, segment: Ints) -> tuple[Ints, Ints]:
        return self.ends[segment] - self.lengths[segment], self.ends[segment]

    def _stretches(self, rows: Ints, shape: Shape) -> Stretches:
        return Stretches(np.arange(len(rows)), *self._bounds(self._segment(rows)))

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return np.asarray(self._segment(i) == self._segment(j))

    def _count(self, shape: Shape) -> int:
        return sum(int(length) ** 2 for length in self.lengths)

    def _visits(self, shape: Shape, lanes: int) -> Visits:
        lengths, n = self.lengths.astype(float), max(1, self.n)
        shared = np.where(lengths < lanes, lanes, 0)
        return Visits(float(lengths @ lengths) / n, float(lengths @ (lengths + shared)) / n, 1)

    def _cuts(self, shape: Shape, lanes: int) -> Ints:
        # a tile that ends with its segment visits no other's keys; short segments share tiles, to fill the lanes
        long = self.lengths >= lanes
        return np.concatenate(((self.ends - self.lengths)[long], self.ends[long]))

    def _spans(self, tiles: Tiles, shape: Shape) -> Spans:
        if (tiles.step != 1).any() or len(tiles.listed):  # not every segment between a tile's first row and last is met
            return super()._spans(tiles, shape)
        first, last = self._segment(tiles.first), self._segment(tiles.last)
        met = last - first + 1
        start, stop = self._bounds(expand(first, met))
        return Spans(np.repeat(np.arange(len(tiles)), met), start, stop, np.repeat(met == 1, met)).clean()
