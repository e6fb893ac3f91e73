"""The one rule by which a plan chooses between tiles and lists.

Everything is counted in pairs of a full tile, by the query row. A tile computes every key that any of its rows may
see, for all of its rows: it wins where neighbouring rows share their keys. A list computes the row's own pairs alone,
but each for more.
"""

from __future__ import annotations

import operator
from typing import NamedTuple

from subquad.patterns.bands import Band
from subquad.patterns.base import Difference, Intersection, Pattern, Shape, _Joined
from subquad.patterns.row_lists import RowLists
from subquad.patterns.strided import Strided
from subquad.patterns.whole import WholeColumns

LISTED_PAIR = 6.0  # a listed pair: 18 ns against 3 ns at d = 64
LISTED_ROW = 0.0  # a row of its own
TILE_ROW = 0.0  # a row's share of a tile

NATURAL, SHARED, RESIDUES, LISTS = "tiles", "tiles over a shared list of keys", "tiles of residue classes", "lists"


class Choice(NamedTuple):
    """How a part of a plan is reached, and what either way was estimated to cost."""

    part: Pattern
    way: str
    tiled: float  # pairs of a full tile, by the row
    listed: float
    shortest: Pattern | None = None  # the pattern whose lists of keys are the shortest

    def __str__(self) -> str:
        chosen, other, against = self.tiled, self.listed, "lists"
        if self.way == LISTS:
            chosen, other, against = self.listed, self.tiled, "tiles"
        return f"{self.part!r}: {self.way}, estimated {chosen:,.0f} a row (as {against}: {other:,.0f})"


def choose(part: Pattern, leaves: tuple[Pattern, ...], shape: Shape, lanes: int) -> Choice:
    """The cheaper way to reach `part`, whose pairs all of `leaves` allow."""
    row, tile = _visits(leaves, shape, lanes)
    tiled, listed = tile + TILE_ROW, LISTED_PAIR * row + LISTED_ROW
    way = SHARED if any(isinstance(leaf, WholeColumns) for leaf in leaves) else NATURAL
    if any(isinstance(leaf, Strided) for leaf in leaves):
        way = RESIDUES
    lists = [leaf for leaf in leaves if isinstance(leaf, RowLists | Strided)]
    shortest = min(lists, key=lambda leaf: leaf._visits(shape, lanes)[0], default=None)
    return Choice(part, LISTS if lists and listed < tiled else way, tiled, listed, shortest)


def estimate(expression: Pattern, shape: Shape, lanes: int) -> Choice:
    """What an expression costs whose patterns are all best reached in tiles."""
    if not isinstance(expression, _Joined):
        return choose(expression, (expression,), shape, lanes)
    left = estimate(expression.left, shape, lanes)
    if isinstance(expression, Difference):
        return left._replace(part=expression)
    right = estimate(expression.right, shape, lanes)
    together = min if isinstance(expression, Intersection) else operator.add
    costs = together(left.tiled, right.tiled), together(left.listed, right.listed)
    return Choice(expression, NATURAL, *costs)


def _visits(leaves: tuple[Pattern, ...], shape: Shape, lanes: int) -> tuple[float, float]:
    """About how many keys a row has that all of `leaves` allow, and how many its tile has to visit for it."""
    stride = max((leaf.stride for leaf in leaves if isinstance(leaf, Strided)), default=1)
    row = tile = shape.n_k / stride
    for leaf in leaves:
        its_row, its_tile = leaf._visits(shape, lanes)
        if isinstance(leaf, WholeColumns):
            share = its_row / max(1, shape.n_k)
            row, tile = row * share, tile * share
        elif isinstance(leaf, Band) and stride > 1:
            row, tile = min(row, its_row / stride), min(tile, its_row / stride + lanes - 1)
        elif isinstance(leaf, RowLists):
            row, tile = min(row, its_row / stride), min(tile, its_tile if stride == 1 else its_row / stride * lanes)
    if stride > 1:  # a class of fewer rows than a tile has leaves lanes idle
        tile *= max(1.0, lanes / max(1.0, shape.n_k / stride))
    return row, tile
