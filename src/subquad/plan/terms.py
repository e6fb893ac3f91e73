"""From a pattern expression to terms that can be planned: one way of reaching memory each, pairs disjoint.

The ways are those of `subquad.plan.cost`: tiles over keys in their natural order, as stretches; tiles over a list of
keys that all rows share; tiles of one residue class over the keys of that class; each row's own list of keys, filtered
by the rest of the expression.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

import numpy as np

from subquad.patterns.bands import Band, Dense
from subquad.patterns.base import Difference, Intersection, Pattern, Shape, Union, _Joined
from subquad.patterns.row_lists import RowLists
from subquad.patterns.spans import Ints, Tiles
from subquad.patterns.strided import Strided
from subquad.patterns.whole import WholeColumns, WholeRows
from subquad.plan.cost import LISTS, NATURAL, RESIDUES, SHARED, Choice, choose, estimate

# Columns in more pieces than these are no mask to cut runs into, but a list of keys of their own.
_PIECES = 8


class Term(NamedTuple):
    """Pairs that are reached in one way."""

    way: str
    expression: Pattern
    keys: Ints | None = None  # the list that the rows share
    driver: Pattern | None = None  # `Strided`, whose classes the rows fall into; or the pattern whose lists are taken

    @property
    def stride(self) -> int:
        return self.driver.stride if self.way == RESIDUES and isinstance(self.driver, Strided) else 1


class Part(NamedTuple):
    """Some of the pairs that all of `leaves` allow, and the way chosen for them."""

    leaves: tuple[Pattern, ...]
    expression: Pattern
    choice: Choice

    @property
    def way(self) -> str:
        return self.choice.way

    @property
    def driver(self) -> Pattern | None:
        """The leaf whose own way through memory the part is reached by."""
        if self.way == SHARED:
            return next(leaf for leaf in self.leaves if isinstance(leaf, WholeColumns))
        strides = [leaf for leaf in self.leaves if isinstance(leaf, Strided)]
        if strides:
            return max(strides, key=lambda leaf: leaf.stride)
        return self.choice.shortest if self.way == LISTS else None


class Group(NamedTuple):
    """Query rows and what they are allowed (None: nothing)."""

    tiles: Tiles
    expression: Pattern | None
    members: Ints | None = None  # the rows; None where they are all but `excluded`
    excluded: Ints | None = None

    def rows(self, n_q: int) -> Ints:
        """The query rows, ascending."""
        if self.members is not None:
            return self.members
        return np.arange(n_q) if self.excluded is None else np.delete(np.arange(n_q), self.excluded)


class RowSets(NamedTuple):
    """Query rows by what their `WholeRows` leave of an expression."""

    sets: list[tuple[Ints, Pattern | None]]  # some rows, and what they are allowed
    special: Ints  # the rows of all sets
    rest: Pattern | None  # what all others are allowed


def row_sets(pattern: Pattern, shape: Shape) -> RowSets:
    """Rows on which every `WholeRows` of the expression is constant, with what remains of the expression there."""
    sets = [leaf for leaf in dict.fromkeys(pattern._leaves()) if isinstance(leaf, WholeRows)]
    rest = _with_row_sets(pattern, {leaf: False for leaf in sets})
    members = [leaf.members(shape) for leaf in sets]
    special = np.unique(np.concatenate(members)) if members else np.arange(0)
    if not len(special):
        return RowSets([], special, rest)
    inside = np.stack([np.isin(special, rows) for rows in members], axis=1)
    found = []
    for code in np.unique(inside, axis=0):
        rows = special[(inside == code).all(axis=1)]
        found.append((rows, _with_row_sets(pattern, dict(zip(sets, map(bool, code), strict=True)))))
    return RowSets(found, special, rest)


def row_groups(pattern: Pattern, shape: Shape, lanes: int) -> list[Group]:
    """The row sets of an expression with their tiles."""
    cuts = np.unique(np.concatenate([leaf._cuts(shape, lanes) for leaf in dict.fromkeys(pattern._leaves())]))
    sets, special, rest = row_sets(pattern, shape)
    groups = [Group(Tiles.of(rows, lanes), expression, rows) for rows, expression in sets]
    if not groups:
        return [Group(_tiles_between(special, cuts, shape, lanes), rest)]
    if np.count_nonzero(np.diff(special) > 1) * 8 * lanes > shape.n_q + 16 * lanes:
        others = np.delete(np.arange(shape.n_q), special)
        return [*groups, Group(Tiles.of(others, lanes), rest, others)]  # stretches between them would be short
    return [*groups, Group(_tiles_between(special, cuts, shape, lanes), rest, None, special)]


def _tiles_between(special: Ints, cuts: Ints, shape: Shape, lanes: int) -> Tiles:
    """Tiles of all rows but the special ones, begun anew after each of those and at each cut."""
    if not len(special) and not len(cuts):
        return Tiles.affine(0, 1, shape.n_q, lanes)
    edges = np.unique(np.concatenate(([0], special, special + 1, cuts[cuts < shape.n_q], [shape.n_q])))
    starts, sizes = edges[:-1], np.diff(edges)
    kept = ~np.isin(starts, special)
    return Tiles.stretches(starts[kept], sizes[kept], lanes)


def _with_row_sets(pattern: Pattern, values: dict[WholeRows, bool]) -> Pattern | None:
    """The expression where each `WholeRows` allows everything or nothing; None where nothing is left."""
    if isinstance(pattern, WholeRows):
        return Dense() if values[pattern] else None
    if not isinstance(pattern, _Joined):
        return pattern
    left, right = (_with_row_sets(side, values) for side in (pattern.left, pattern.right))
    everything = Dense()
    if isinstance(pattern, Union):
        if everything in (left, right):
            return everything
        return Union(left, right) if left is not None and right is not None else left if right is None else right
    if left is None or (isinstance(pattern, Difference) and right == everything):
        return None
    if isinstance(pattern, Difference):
        return left if right is None else Difference(left, right)
    if right is None:
        return None
    return left if right == everything else right if left == everything else Intersection(left, right)


def disjoint_terms(expression: Pattern, shape: Shape, lanes: int) -> tuple[list[Term], list[Choice]]:
    """Terms whose pairs make up the expression: what an earlier term has, a later one leaves out."""
    parts = _parts(expression, shape, lanes)
    if any(part.way == NATURAL for part in parts):  # a narrow band beside a wide one costs its tiles nothing
        parts = [
            part._replace(choice=part.choice._replace(way=NATURAL))
            if part.way == LISTS and all(isinstance(leaf, Band) for leaf in part.leaves)
            else part
            for part in parts
        ]
    terms: list[Term] = []
    taken: list[Pattern] = []

    def take(way: str, own: list[Pattern], keys: Ints | None = None, driver: Pattern | None = None) -> None:
        union = reduce(Union, own)
        terms.append(Term(way, Difference(union, reduce(Union, taken)) if taken else union, keys, driver))

    natural = [part.expression for part in parts if part.way == NATURAL]
    over_keys = [(part.driver, part.expression) for part in parts if part.way == SHARED]
    if natural and any(_is_in_pieces(leaf, shape) for own in natural for leaf in own._leaves()):
        over_keys = [*((None, own) for own in natural), *over_keys]
    elif natural:
        take(NATURAL, natural)
        taken = list(natural)
    for keys, own in _key_sets(over_keys, shape):
        take(SHARED, own, keys)
    taken += [own for _, own in over_keys]
    for way in (RESIDUES, LISTS):
        mine = [part for part in parts if part.way == way]
        drivers = dict.fromkeys(part.driver for part in mine)
        for driver in sorted(drivers, key=_stride) if way == RESIDUES else drivers:
            own = [part.expression for part in mine if part.driver == driver]
            take(way, own, None, driver)
            taken += own
    return terms, [part.choice for part in parts]


def _stride(driver: Pattern | None) -> int:
    return driver.stride if isinstance(driver, Strided) else 1


def _parts(expression: Pattern, shape: Shape, lanes: int) -> list[Part]:
    """Parts whose union the expression is; what tiles reach best anyway stays in one piece."""
    leaves = tuple(_positive(expression))
    if all(isinstance(leaf, RowLists) and choose(leaf, (leaf,), shape, lanes).way == NATURAL for leaf in leaves):
        return [Part(leaves, expression, estimate(expression, shape, lanes))]
    if isinstance(expression, Union):
        return _parts(expression.left, shape, lanes) + _parts(expression.right, shape, lanes)
    split: list[tuple[tuple[Pattern, ...], Pattern]]
    if isinstance(expression, Difference):
        found = [(part.leaves, part.expression) for part in _parts(expression.left, shape, lanes)]
        split = [(of, Difference(own, expression.right)) for of, own in found]
    elif isinstance(expression, Intersection):
        left, right = (_parts(side, shape, lanes) for side in (expression.left, expression.right))
        split = [(a.leaves + b.leaves, Intersection(a.expression, b.expression)) for a in left for b in right]
    else:
        split = [((expression,), expression)]
    return [Part(of, own, choose(own, of, shape, lanes)) for of, own in split]


def _positive(expression: Pattern) -> Iterator[Pattern]:
    """The leaves that add pairs: not those that are subtracted."""
    if isinstance(expression, Difference):
        yield from _positive(expression.left)
    elif isinstance(expression, _Joined):
        yield from _positive(expression.left)
        yield from _positive(expression.right)
    else:
        yield expression


def _is_in_pieces(leaf: Pattern, shape: Shape) -> bool:
    """Whether columns lie so scattered that cutting every tile's runs at them would cost more than lists of keys."""
    return isinstance(leaf, WholeColumns) and len(leaf.stretches(shape)[0]) > _PIECES


def _key_sets(parts: list[tuple[Pattern | None, Pattern]], shape: Shape) -> Iterator[tuple[Ints, list[Pattern]]]:
    """Lists of keys on which all columns are constant, each with the parts that it belongs to (driver None: all)."""
    drivers = [driver for driver, _ in parts if driver is not None]
    leaves = [leaf for _, own in parts for leaf in own._leaves() if _is_in_pieces(leaf, shape)]
    columns = [leaf for leaf in dict.fromkeys(drivers + leaves) if isinstance(leaf, WholeColumns)]
    if not columns:
        return
    members = [leaf.members(shape) for leaf in columns]
    special = np.unique(np.concatenate(members))
    inside = np.stack([np.isin(special, keys) for keys in members], axis=1)
    codes, which = np.unique(inside, axis=0, return_inverse=True)
    for number, code in enumerate(codes):
        on = {leaf for leaf, there in zip(columns, code, strict=True) if there}
        own = [expression for driver, expression in parts if driver is None or driver in on]
        if own:
            yield special[which.ravel() == number], own
    everywhere = [expression for driver, expression in parts if driver is None]
    if everywhere:
        yield np.delete(np.arange(shape.n_k), special), everywhere
