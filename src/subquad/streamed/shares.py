"""Shares of the query rows: each has one expression, is cut into ranges, and plans one range at a time.

A plan of a range has the terms, tiles and runs that the plan of the whole arrays has for those rows, so it gives the
same bits; but nothing in it grows with the rows that are not in the range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from subquad.kernels import layout
from subquad.patterns.bands import Band, Dense
from subquad.patterns.base import Pattern, Shape
from subquad.patterns.row_lists import expand
from subquad.patterns.spans import Ints, Tiles
from subquad.patterns.strided import Strided
from subquad.patterns.whole import KeySet, as_stretches, how_many
from subquad.plan.cost import LISTS, NATURAL, RESIDUES, SHARED
from subquad.plan.lists import keys_of
from subquad.plan.tables import GatheredPhase, Phase
from subquad.plan.terms import Group, Term, disjoint_terms, row_sets
from subquad.plan.tiled_builder import TiledBuilder
from subquad.streamed.stretches import KeySpans

_LONGEST_PERIOD = 1 << 20
_LISTED_ROWS = 1 << 11  # whose keys are listed at a time


class Surroundings(NamedTuple):
    """What a range of windows looks like from inside: ranges that agree in it have the same plan, but for a shift."""

    window: tuple[int, int]  # keys that hold all that move along
    before: int  # columns that lie before it


@dataclass(frozen=True)
class Share:
    """Rows that are allowed the same expression. A range of it is slots first <= s < stop."""

    expression: Pattern | None  # None: nothing
    shape: Shape
    lanes: int
    members: Ints | None  # the row of each slot; None: slot s is row s, less `excluded`
    excluded: Ints
    cuts: Ints  # rows at which a tile had better begin
    terms: list[Term] = field(repr=False)

    def __len__(self) -> int:
        return self.shape.n_q if self.members is None else len(self.members)

    def slots(self, first: int, stop: int) -> Ints:
        """The row of each slot, whether it is of this share or not."""
        return np.arange(first, stop) if self.members is None else self.members[first:stop]

    def rows(self, first: int, stop: int) -> Ints:
        """The rows of a range that are of this share."""
        found = self.slots(first, stop)
        low, high = np.searchsorted(self.excluded, (first, stop))
        return found if low == high else np.delete(found, self.excluded[low:high] - first)

    def pieces(self, first: int, stop: int) -> list[tuple[tuple[int, int], slice]]:
        """The rows of a range as stretches of neighbours, and their slots, counted from `first`."""
        found = neighbours(self.rows(first, stop))
        if self.members is None:
            return [(rows, slice(rows[0] - first, rows[1] - first)) for rows, _ in found]
        return found

    @property
    def in_order(self) -> bool:
        """Whether the first phase of a plan has every row."""
        return any(term.way in (NATURAL, SHARED) for term in self.terms)

    @cached_property
    def period(self) -> int:
        """Plans of ranges that lie a multiple of it apart differ by that shift alone, away from both ends; 0: never."""
        leaves = [] if self.expression is None or self.members is not None else [*self.expression._leaves()]
        strides = [leaf.stride for leaf in leaves if isinstance(leaf, Strided)]
        bands = [leaf.reach() for leaf in leaves if isinstance(leaf, Band)]
        others = [leaf for leaf in leaves if not isinstance(leaf, Strided | Band | KeySet)]
        if others or not bands or any(left is None or right is None for left, right, _ in bands):
            return 0
        period = math.lcm(*(block for _, _, block in bands), *(layout.STEP * stride for stride in strides or [1]))
        return period if period <= _LONGEST_PERIOD else 0

    def surroundings(self, first: int, stop: int, gap: int) -> Surroundings | None:
        """Where the windows of a range lie; None where one meets a column, an end of the keys, or other rows."""
        if self.period == 0 or self.expression is None or len(self.rows(first, stop)) < stop - first:
            return None
        leaves = [*self.expression._leaves()]
        reach = [leaf.reach() for leaf in leaves if isinstance(leaf, Band)]
        farthest = max((max(left or 0, right or 0) + 1) * block for left, right, block in reach) + layout.STEP + gap
        low, high = first + self.shape.shift - farthest, stop + self.shape.shift + farthest
        columns = [leaf.tokens for leaf in leaves if isinstance(leaf, KeySet)]
        if low < 0 or high > self.shape.n_k or any(how_many(tokens, low, high) for tokens in columns):
            return None
        return Surroundings((low, high), sum(how_many(tokens, 0, low) for tokens in columns))

    def plan(self, first: int, stop: int) -> list[Phase]:
        """The phases of a range; rows and keys are those of the whole arrays, but lists go by slot."""
        rows = self.rows(first, stop)
        group = Group(self._tiles(rows), self.expression, rows)
        phases: list[Phase] = []
        listed = [term for term in self.terms if term.way == LISTS]
        strides = sorted({term.stride for term in self.terms if term.way == RESIDUES})
        if self.in_order:
            phases.append(TiledBuilder(self.shape, self.lanes, False).natural([group], [self.terms]))
        for stride in strides:
            phases.append(TiledBuilder(self.shape, self.lanes, False).residues(stride, [group], [self.terms]))
        if listed:
            phases.append(self._lists(listed, rows, first, stop))
        return [trimmed(phase) for phase in phases]

    def _tiles(self, rows: Ints) -> Tiles:
        if not len(rows):
            return Tiles.affine(0, 1, 0, self.lanes)
        cuts = self.cuts[(self.cuts > rows[0]) & (self.cuts <= rows[-1])]
        begins = np.concatenate(([0], np.nonzero(np.diff(rows) != 1)[0] + 1, np.searchsorted(rows, cuts)))
        begins = np.unique(begins)
        scattered = len(begins) * 8 * self.lanes > len(rows) + 16 * self.lanes
        # rows far apart in one tile: only where no band cuts between them
        if (self.members is not None and self.expression == Dense()) or (self.members is None and scattered):
            return Tiles.of(rows, self.lanes)
        return Tiles.stretches(rows[begins], np.diff(np.append(begins, len(rows))), self.lanes)

    def _lists(self, terms: list[Term], rows: Ints, first: int, stop: int) -> GatheredPhase:
        slots = np.searchsorted(self.slots(first, stop), rows)
        counts, lists = np.zeros(stop - first, np.int64), [np.arange(0)]
        for at in range(0, len(rows), _LISTED_ROWS):
            some = slice(at, at + _LISTED_ROWS)
            owner, keys = keys_of(terms, rows[some], self.shape)
            counts[slots[some]] = np.bincount(owner, minlength=len(rows[some]))
            lists.append(keys)
        return GatheredPhase(np.concatenate(([0], np.cumsum(counts))), np.concatenate(lists))


def shares_of(pattern: Pattern, shape: Shape, itemsize: int) -> list[Share]:
    """The shares of a pattern, which together have every row once."""
    lanes = layout.lanes_of(itemsize)
    resolved = pattern._resolved(shape)
    sets, special, rest = row_sets(resolved, shape)
    leaves = dict.fromkeys(resolved._leaves())
    cuts = np.unique(np.concatenate([leaf._cuts(shape, lanes) for leaf in leaves]))

    def share(expression: Pattern | None, members: Ints | None) -> Share:
        terms = disjoint_terms(expression, shape, lanes)[0] if expression is not None else []
        return Share(expression, shape, lanes, members, special if members is None else special[:0], cuts, terms)

    found = [share(expression, rows) for rows, expression in sets]
    return found if len(special) == shape.n_q else [share(rest, None), *found]


def trimmed(phase: Phase) -> Phase:
    """Without the listed keys that no run visits."""
    if isinstance(phase, GatheredPhase) or not len(phase.keys):
        return phase
    runs = phase.runs.copy()
    listed = runs[:, layout.KEY_LIST] != layout.NO_LIST
    begin = runs[listed, layout.KEY_LIST]
    used = KeySpans.union(begin, begin + runs[listed, layout.KEY_COUNT])
    runs[listed, layout.KEY_LIST] = used.local(begin)
    return phase._replace(runs=runs, keys=phase.keys[expand(used.start, used.stop - used.start)])


def neighbours(numbers: Ints) -> list[tuple[tuple[int, int], slice]]:
    """Ascending numbers as stretches start <= x < stop, and the ranks of those."""
    starts, stops = as_stretches(numbers)
    ends = np.cumsum(stops - starts)
    return [
        ((start, stop), slice(end - (stop - start), end))
        for start, stop, end in zip(starts.tolist(), stops.tolist(), ends.tolist(), strict=True)
    ]


def table_bytes(phases: list[Phase]) -> int:
    return sum(table.nbytes for phase in phases for table in phase)
