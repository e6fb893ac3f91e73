"""Windows of a grid: neighbourhood attention in one, two or three dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from subquad import checks
from subquad.complexity.orders import LINEAR, Order
from subquad.patterns.base import Pattern, Shape
from subquad.patterns.row_lists import RowLists, Stretches, expand
from subquad.patterns.spans import Bools, Ints, Spans, Tiles


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Neighborhood(RowLists):
    """The nearest `window` tokens along each axis of a grid, as NATTEN defines them: O(n window^D) pairs.

    Tokens are numbered along the last axis first (row-major, as ``x.reshape(-1, d)`` has them). Along an axis of L
    tokens a query at x sees the window that begins ``window // 2`` before it, moved to lie inside the axis: near a
    border the window is as wide as anywhere. With `dilation` r an axis falls apart into r groups, ``x % r``, and the
    window is taken within the query's group. A `causal` axis has the query and the ``window - 1`` before it, fewer at
    the beginning. With `stride` s the tokens of an axis (of a group) share a window, s at a time: that of the middle
    one, or on a causal axis of the last one, where it still ends at the query.

    Parameters
    ----------
    shape : int or sequence of 1 to 3 int
        Tokens along each axis. Where the pattern is used, n_q and n_k must both be their product.
    window, dilation : int or sequence of int, one an axis
        At least 1 each, and ``window * dilation`` at most the length of the axis.
    causal : bool or sequence of bool, one an axis
    stride : int or sequence of int, one an axis
        From 1 to `window`; at `window` the axis falls into blocks.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range; the message names the axis.

    References
    ----------
    Hassani et al., "Neighborhood Attention Transformer" (2023), section 3.1; Hassani, Shi, "Dilated Neighborhood
    Attention Transformer" (2022), section 3.1; Hassani et al., "Faster Neighborhood Attention" (2024), for causal axes;
    Hassani et al., "Generalized Neighborhood Attention" (2025), for strides.

    Examples
    --------
    >>> Neighborhood((3, 4), 3).row(0, 12, 12)
    array([ 0,  1,  2,  4,  5,  6,  8,  9, 10])
    >>> Neighborhood(8, window=3, dilation=2).row(5, 8, 8)
    array([3, 5, 7])
    """

    shape: tuple[int, ...]
    window: tuple[int, ...]
    dilation: tuple[int, ...]
    causal: tuple[bool, ...]
    stride: tuple[int, ...]

    def __init__(self, shape: Any, window: Any, dilation: Any = 1, causal: Any = False, stride: Any = 1) -> None:
        axes = tuple(shape) if _is_sequence(shape) else (shape,)
        if not 1 <= len(axes) <= 3:
            raise ValueError(f"shape must have 1, 2 or 3 axes; got {len(axes)}: {shape!r}")
        axes = tuple(checks.integer(n, f"shape[{axis}]", 1) for axis, n in enumerate(axes))
        if math.prod(axes) > checks.LARGEST:
            raise ValueError(f"shape must have at most 2**62 tokens; got {shape!r}")
        windows, dilations, strides = (
            tuple(checks.integer(x, f"{name}[{axis}]", 1) for axis, x in enumerate(_an_axis(values, name, len(axes))))
            for name, values in (("window", window), ("dilation", dilation), ("stride", stride))
        )
        for axis, (s, w) in enumerate(zip(strides, windows, strict=True)):
            if s > w:
                raise ValueError(f"stride[{axis}] must be at most window = {w}; got {s}")
        for axis, (n, w, r) in enumerate(zip(axes, windows, dilations, strict=True)):
            if w * r > n:
                times = "" if r == 1 else f" x dilation = {w} x {r}"
                raise ValueError(f"window{times} must fit into axis {axis} of {n} tokens; got {w * r}")
        halves = _an_axis(causal, "causal", len(axes))
        for axis, value in enumerate(halves):
            if not isinstance(value, bool | np.bool_):
                raise TypeError(f"causal[{axis}] must be True or False; got {value!r}")
        for name, values in (("shape", axes), ("window", windows), ("dilation", dilations), ("stride", strides)):
            object.__setattr__(self, name, values)
        object.__setattr__(self, "causal", tuple(map(bool, halves)))

    @property
    def order(self) -> Order:
        return LINEAR

    def _validate(self, shape: Shape) -> None:
        n = math.prod(self.shape)
        if shape != Shape.aligned(n, n):
            raise ValueError(f"shape {self.shape} has {n} tokens; it cannot be used with {shape.described()}")

    def _bounds(self, axis: int, x: Ints) -> tuple[Ints, Ints, Ints]:
        """For queries at x: their dilation group, and the keys start <= k < stop within it."""
        n, w, r = self.shape[axis], self.window[axis], self.dilation[axis]
        s = self.stride[axis]
        group, place = x % r, x // r
        length = (n - group + r - 1) // r
        if self.causal[axis]:
            leader = np.minimum(place - place % s + s - 1, length - 1)
            return group, np.maximum(leader - w + 1, 0), place + 1
        leader = np.minimum(place - place % s + s // 2, length - 1)
        start = np.clip(leader - w // 2, 0, length - w)
        return group, start, start + w

    def _coordinates(self, tokens: Ints) -> list[Ints]:
        found = []
        for n in reversed(self.shape):
            tokens, x = np.divmod(tokens, n)
            found.append(x)
        return found[::-1]

    def _stretches(self, rows: Ints, shape: Shape) -> Stretches:
        # one axis after another: where the keys found so far begin, and whose they are
        owner, base = np.arange(len(rows)), np.zeros(len(rows), np.int64)
        for axis, x in enumerate(self._coordinates(rows)):
            group, start, stop = (bound[owner] for bound in self._bounds(axis, x))
            stride = math.prod(self.shape[axis + 1 :])
            if axis == len(self.shape) - 1 and self.dilation[axis] == 1:
                return Stretches(owner, base + start, base + stop)
            count = stop - start
            chosen = np.repeat(group, count) + expand(start, count) * self.dilation[axis]
            owner, base = np.repeat(owner, count), np.repeat(base, count) + chosen * stride
        return Stretches(owner, base, base + 1)

    def _spans(self, tiles: Tiles, shape: Shape) -> Spans:
        # rows of one line of the grid share their windows but along it, where those move with the row: all of them
        # see what the first window and the last one share
        line = self.shape[-1]
        easy = (tiles.step == 1) & (tiles.first // line == tiles.last // line)
        if self.dilation[-1] > 1 or not easy.any():
            return super(Neighborhood, self)._spans(tiles, shape)
        which = np.nonzero(easy)[0]
        owner, start, first_stop = self._stretches(tiles.first[which], shape)
        _, last_start, stop = self._stretches(tiles.last[which], shape)
        begin, end = np.minimum(last_start, first_stop), np.maximum(last_start, first_stop)
        shared = last_start < first_stop
        parts = Spans(
            np.repeat(which[owner], 3),
            np.stack([start, begin, end], axis=1).ravel(),
            np.stack([begin, end, stop], axis=1).ravel(),
            np.stack([shared & False, shared, shared & False], axis=1).ravel(),
        ).clean()
        if easy.all():
            return parts
        rest = np.nonzero(~easy)[0]
        others = super(Neighborhood, self)._spans(tiles.take(rest), shape)
        tile = np.concatenate((parts.tile, rest[others.tile]))
        order = np.argsort(tile, kind="stable")
        start, stop, full = (np.concatenate(pair)[order] for pair in zip(parts[1:], others[1:], strict=True))
        return Spans(tile[order], start, stop, full)

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        inside = np.ones(i.shape, bool)
        for axis, (x, y) in enumerate(zip(self._coordinates(i), self._coordinates(j), strict=True)):
            group, start, stop = self._bounds(axis, x)
            place, other = y // self.dilation[axis], y % self.dilation[axis]
            inside &= (other == group) & (start <= place) & (place < stop)
        return inside

    def _count(self, shape: Shape) -> int:
        sums = []
        for axis, n in enumerate(self.shape):
            _, start, stop = self._bounds(axis, np.arange(n))
            sums.append(int((stop - start).sum()))
        return math.prod(sums)

    def _transposed(self, shape: Shape) -> Pattern:
        if set(self.stride) != {1}:
            return super(Neighborhood, self)._transposed(shape)
        return _Seen(self.shape, self.window, self.dilation, self.causal)

    def __repr__(self) -> str:
        written = [f"{self.shape}", _brief(self.window)]
        if set(self.dilation) != {1}:
            written.append(f"dilation={_brief(self.dilation)}")
        if any(self.causal):
            written.append(f"causal={_brief(self.causal)}")
        if set(self.stride) != {1}:
            written.append(f"stride={_brief(self.stride)}")
        return f"{type(self).__name__}({', '.join(written)})"


class _Seen(Neighborhood):
    """The queries whose windows hold a key: a neighbourhood with queries and keys swapped."""

    __slots__ = ()

    def _bounds(self, axis: int, x: Ints) -> tuple[Ints, Ints, Ints]:
        n, w, r = self.shape[axis], self.window[axis], self.dilation[axis]
        group, place = x % r, x // r
        length = (n - group + r - 1) // r
        if self.causal[axis]:
            return group, place, np.minimum(place + w, length)
        start = np.where(place >= w, place - w + 1 + w // 2, 0)
        return group, start, np.where(place >= length - w, length, place + w // 2 + 1)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, tuple | list | range) or (isinstance(value, np.ndarray) and value.ndim == 1)


def _an_axis(value: Any, name: str, n_axes: int) -> tuple[Any, ...]:
    """One value for each axis."""
    if not _is_sequence(value):
        return (value,) * n_axes
    if len(value) != n_axes:
        raise ValueError(f"{name} must be one value, or one for each of the {n_axes} axes of shape; got {value!r}")
    return tuple(value)


def _brief(values: tuple[Any, ...]) -> str:
    return repr(values[0]) if len(set(values)) == 1 else repr(values)
