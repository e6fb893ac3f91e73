"""The one rule by which a plan chooses between tiles and lists.

Costs are counted by the query row, in pairs of a full tile (3.7 ns at d = 64, float32). A tile computes every key that
any of its rows may see, for all of its rows, so it wins where neighbouring rows share their keys:

    tiled  = keys of the tile + RUN x its runs + TILE

A list computes the row's own pairs alone, each for more; and the keys that the rows nearby have not fetched already
have to be waited for:

    listed = LISTED_PAIR x keys of the row + FETCH x keys of the tile / rows of the tile

Lists hold 8 bytes a pair, tiles far less, so lists have to be cheaper by MARGIN.
"""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

from subquad.kernels.layout import STEP
from subquad.patterns.bands import Band
from subquad.patterns.base import Difference, Intersection, Pattern, Shape, Visits, _Joined
from subquad.patterns.row_lists import RowLists
from subquad.patterns.strided import Strided
from subquad.patterns.whole import WholeColumns

# Fitted to patterns timed both ways at n = 16,384, d = 64: windows of 1 to 33 keys, neighbourhoods of 9 to 125, random
# blocks of 1 to 16, random matrices of density 0.002 to 0.3. A listed pair takes 9 ns where rows share keys, 27 ns
# where they share none; each run takes 20 ns a row beside its keys.
LISTED_PAIR, FETCH = 2.5, 5.0
COLD_PAIR = LISTED_PAIR + FETCH  # a listed pair whose key no row nearby has fetched: what tasks are cut by
RUN, TILE = 5.0, 6.0
MARGIN = 1.15

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
    row, tile, runs = _together(leaves, shape, lanes)
    tiled, listed = tile + RUN * runs + TILE, LISTED_PAIR * row + FETCH * tile / lanes
    way = SHARED if any(isinstance(leaf, WholeColumns) for leaf in leaves) else NATURAL
    if any(isinstance(leaf, Strided) for leaf in leaves):
        way = RESIDUES
    lists = [leaf for leaf in leaves if isinstance(leaf, RowLists | Strided)]
    shortest = min(lists, key=lambda leaf: visits_of(leaf, shape, lanes).row, default=None)
    return Choice(part, LISTS if lists and MARGIN * listed < tiled else way, tiled, listed, shortest)


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


@functools.lru_cache(maxsize=32)
def visits_of(leaf: Pattern, shape: Shape, lanes: int) -> Visits:
    """A pattern's own estimate; some are counted on a sample, so they are kept."""
    row, tile, runs = leaf._visits(shape, lanes)
    return Visits(row, tile, min(runs, shape.n_k / STEP + 1))  # runs within one step of the softmax share its cost


def _together(leaves: tuple[Pattern, ...], shape: Shape, lanes: int) -> Visits:
    """The estimate for what all of `leaves` allow."""
    stride = max((leaf.stride for leaf in leaves if isinstance(leaf, Strided)), default=1)
    row = tile = shape.n_k / stride
    runs = share = 1.0
    for leaf in leaves:
        its = visits_of(leaf, shape, lanes)
        if isinstance(leaf, WholeColumns):
            share *= its.row / max(1, shape.n_k)
        elif isinstance(leaf, RowLists):
            row = min(row, its.row / stride)
            if stride > 1:  # rows of a class, whose lists lie apart unless they are windows
                tile = min(tile, its.row / stride + lanes - 1 if isinstance(leaf, Band) else its.row / stride * lanes)
            elif its.tile < tile:
                tile, runs = its.tile, its.runs
    if stride > 1:  # a class of fewer rows than a tile has leaves lanes idle
        tile *= max(1.0, lanes / max(1.0, shape.n_k / stride))
    return Visits(row, tile * share, runs)  # a list of keys leaves others out at once, a row's own list one by one
