"""An expression along an axis of keys, tile by tile: where it allows every row, no row, or needs a mask.

Three-valued logic over the spans of the expression's patterns. An axis is the keys in their natural order, a list of
keys, or the residue class that a tile's rows belong to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from subquad.kernels.layout import MASK_BAND, MASK_BITS, MASK_FULL, MASK_OUTSIDE_BAND
from subquad.patterns.bands import Band
from subquad.patterns.base import Intersection, Pattern, Shape, Union, _Joined
from subquad.patterns.row_lists import expand
from subquad.patterns.spans import Bools, Ints, Spans, Tiles
from subquad.patterns.strided import Strided
from subquad.patterns.whole import WholeColumns, as_stretches, every_tile

NONE, FULL, MIXED = 0, 1, 2
States = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Axis:
    """Places on an axis for keys: themselves, their rank in `listed`, or (j - residue of the tile) / stride."""

    tiles: Tiles
    shape: Shape
    listed: Ints | None = None
    stride: int = 1

    @property
    def residue(self) -> Ints:
        """First key of each tile's residue class."""
        return (self.tiles.first + self.shape.shift) % self.stride

    @property
    def ends(self) -> Ints:
        """One past the last place, for each tile."""
        everyone = np.arange(len(self.tiles))
        return self.place(everyone, np.full_like(everyone, self.shape.n_k))

    def place(self, tile: Ints, j: Ints) -> Ints:
        """Where the first key >= j stands."""
        if self.listed is not None:
            return np.asarray(np.searchsorted(self.listed, j), np.int64)
        return j if self.stride == 1 else -((self.residue[tile] - j) // self.stride)

    def key(self, tile: Ints, place: Ints) -> Ints:
        """The key at a place."""
        if self.listed is not None:
            return self.listed[place]
        return place if self.stride == 1 else self.residue[tile] + place * self.stride


class Segments(NamedTuple):
    """Stretches of an axis, ascending by tile: what is allowed there, and the band a band mask is of."""

    tile: Ints
    start: Ints
    stop: Ints
    mask: Ints  # MASK_FULL, MASK_BAND, MASK_OUTSIDE_BAND or MASK_BITS
    band: Ints  # index into the leaves; -1 without a band

    def take(self, kept: Bools | Ints) -> Segments:
        return Segments(*(field[kept] for field in self))


def segment(expression: Pattern, axis: Axis) -> tuple[Segments, list[Pattern]]:
    """The segments of an expression, and its leaves."""
    leaves = list(dict.fromkeys(expression._leaves()))
    spans = [_leaf_spans(leaf, axis) for leaf in leaves]
    width = int(axis.ends.max(initial=0)) + 1
    codes = [span.tile * width for span in spans]
    edges = _ascending(np.concatenate([c + e for c, s in zip(codes, spans, strict=True) for e in (s.start, s.stop)]))
    tile, start = np.divmod(edges[:-1], width)
    size = np.diff(edges)
    inside = start + size < width
    at, tile, start = edges[:-1][inside], tile[inside], start[inside]
    stop = start + size[inside]

    states = {leaf: _states(span, at, width) for leaf, span in zip(leaves, spans, strict=True)}
    value = _evaluate(expression, states)
    mask = np.where(value == FULL, MASK_FULL, MASK_BITS)
    band = np.full(len(at), -1)
    mixed = sum((state == MIXED).astype(np.int8) for state in states.values())
    for index, leaf in enumerate(leaves):
        if not isinstance(leaf, Band):
            continue
        alone = (value == MIXED) & (mixed == 1) & (states[leaf] == MIXED)
        if not alone.any():
            continue
        # only this band is unsure here: what would the expression be with it, and without it?
        with_band, without = (
            _evaluate(expression, {**states, leaf: np.full(len(at), answer, np.int8)}) for answer in (FULL, NONE)
        )
        mask[alone] = np.where(with_band[alone] == FULL, MASK_BAND, MASK_OUTSIDE_BAND)
        band[alone] = index
        value[alone & (with_band == without)] = with_band[alone & (with_band == without)]
        mask[alone & (value == FULL)] = MASK_FULL
    return _joined(Segments(tile, start, stop, mask, band).take(value != NONE)), leaves


def _ascending(values: Ints) -> Ints:
    """Sorted, each once (`np.unique` takes five times as long on numbers that are nearly sorted)."""
    values.sort(kind="stable")
    kept = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=kept[1:])
    return values[kept]


def _leaf_spans(leaf: Pattern, axis: Axis) -> Spans:
    """What a leaf allows to the tiles, as places on the axis."""
    tiles, shape = axis.tiles, axis.shape
    everyone = np.arange(len(tiles))
    if axis.listed is not None and isinstance(leaf, WholeColumns):
        # the same for all tiles, and on lists that are made of columns a few long stretches
        start, stop = (np.searchsorted(axis.listed, edge) for edge in leaf.stretches(shape))
        places = expand(start, stop - start)
        return every_tile(*as_stretches(places), len(tiles))
    if axis.stride > 1:
        everything = Spans(everyone, np.zeros_like(everyone), axis.ends, everyone >= 0)
        if isinstance(leaf, Strided) and axis.stride % leaf.stride == 0:
            return everything.clean()
        chosen = leaf.of_class(axis.residue, axis.stride) if isinstance(leaf, WholeColumns) else None
        if chosen is not None:
            return everything._replace(stop=np.where(chosen, axis.ends, 0)).clean()
    spans = leaf._spans(tiles, shape)
    if axis.listed is None and axis.stride == 1:
        return spans
    start, stop = axis.place(spans.tile, spans.start), axis.place(spans.tile, spans.stop)
    return Spans(spans.tile, start, stop, spans.full).clean()


def _states(spans: Spans, at: Ints, width: int) -> States:
    """Whether each segment, by its first place, lies in a span, and in a full one."""
    if not len(spans.tile):
        return np.zeros(len(at), np.int8)
    index = np.searchsorted(spans.tile * width + spans.start, at, side="right") - 1
    inside = (index >= 0) & (at < (spans.tile * width + spans.stop)[index])
    return np.where(inside, np.where(spans.full[index], FULL, MIXED), NONE).astype(np.int8)


def _evaluate(expression: Pattern, states: dict[Pattern, States]) -> States:
    """Kleene's three-valued logic."""
    if not isinstance(expression, _Joined):
        return states[expression].copy()
    a, b = _evaluate(expression.left, states), _evaluate(expression.right, states)
    if isinstance(expression, Union):
        return np.where((a == FULL) | (b == FULL), FULL, np.maximum(a, b)).astype(np.int8)
    if not isinstance(expression, Intersection):
        b = np.array([FULL, NONE, MIXED], np.int8)[b]
    return np.where((a == NONE) | (b == NONE), NONE, np.maximum(a, b)).astype(np.int8)


def _joined(segments: Segments) -> Segments:
    """Neighbours of one kind become one."""
    tile, start, stop, mask, band = segments
    if len(tile) < 2:
        return segments
    same = (tile[1:] == tile[:-1]) & (stop[:-1] == start[1:]) & (mask[1:] == mask[:-1]) & (band[1:] == band[:-1])
    first = np.concatenate(([0], np.nonzero(~same)[0] + 1))
    last = np.concatenate((first[1:] - 1, [len(tile) - 1]))
    return Segments(tile[first], start[first], stop[last], mask[first], band[first])
