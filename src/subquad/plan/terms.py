"""From a pattern expression to terms that can be planned: one way of reaching memory each, pairs disjoint.

A term is an expression with the pattern that *drives* it: the one whose own way through memory the kernel follows.

* no driver: keys in their natural order, as stretches (bands, blocks)
* a `KeySet`: a list of keys that all rows share (global tokens)
* `Strided`: keys of one residue class, for the rows of that class
* anything else: each row's own list, filtered by the rest of the expression
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import numpy as np

from subquad.patterns.bands import Band, Dense
from subquad.patterns.base import Difference, Intersection, Pattern, Shape, Union, _Joined
from subquad.patterns.block_lists import BlockLists
from subquad.patterns.global_tokens import Global, KeySet, RowSet
from subquad.patterns.spans import Ints, Tiles
from subquad.patterns.strided import Strided

# A listed pair costs about 6 times a pair of a full tile (18 ns against 3 ns at d = 64). So below 4 of a block's 16
# rows, or 3 of a class's, a tile that is mostly idle loses to the list.
MIN_BLOCK = 4
MIN_CLASS = 3


class Term(NamedTuple):
    driver: Pattern | None
    expression: Pattern


class Group(NamedTuple):
    """Query rows and what they are allowed (None: nothing)."""

    tiles: Tiles
    members: Ints | None  # the rows; None where they are all
    expression: Pattern | None


def is_natural(pattern: Pattern) -> bool:
    """Whether stretches of keys in their natural order describe the pattern well."""
    return isinstance(pattern, Band) or (isinstance(pattern, BlockLists) and pattern.block >= MIN_BLOCK)


def is_listed(pattern: Pattern, shape: Shape) -> bool:
    """Whether each row's own list of keys is the best way to reach the pattern's pairs."""
    if isinstance(pattern, Strided):
        return shape.n_k // pattern.stride < MIN_CLASS
    return not is_natural(pattern) and not isinstance(pattern, KeySet)


def expand_globals(pattern: Pattern) -> Pattern:
    """The same pairs with whole rows and whole columns apart."""
    if isinstance(pattern, Global):
        return reduce(Union, pattern.halves())
    if isinstance(pattern, _Joined):
        return type(pattern)(expand_globals(pattern.left), expand_globals(pattern.right))
    return pattern


def row_groups(pattern: Pattern, shape: Shape, lanes: int) -> list[Group]:
    """Rows on which every `RowSet` of the expression is constant, with what remains of the expression there."""
    sets = list(dict.fromkeys(leaf for leaf in pattern._leaves() if isinstance(leaf, RowSet)))
    members = [leaf.members(shape) for leaf in sets]
    special = np.unique(np.concatenate(members)) if members else np.arange(0)
    if not len(special):
        kept = _with_row_sets(pattern, {leaf: False for leaf in sets})
        return [Group(Tiles.affine(0, 1, shape.n_q, lanes), None, kept)]
    inside = np.stack([np.isin(special, rows) for rows in members], axis=1)
    groups = []
    for code in np.unique(inside, axis=0):
        rows = special[(inside == code).all(axis=1)]
        kept = _with_row_sets(pattern, dict(zip(sets, map(bool, code), strict=True)))
        groups.append(Group(Tiles.of(rows, lanes), rows, kept))
    rest = _with_row_sets(pattern, {leaf: False for leaf in sets})
    return [*groups, _other_rows(special, rest, shape, lanes)]


def _other_rows(special: Ints, expression: Pattern | None, shape: Shape, lanes: int) -> Group:
    """All rows but the special ones: stretch by stretch where those are long, else packed into full tiles."""
    edges = np.concatenate(([-1], special, [shape.n_q]))
    starts, sizes = edges[:-1] + 1, np.diff(edges) - 1
    starts, sizes = starts[sizes > 0], sizes[sizes > 0]
    members = np.delete(np.arange(shape.n_q), special)
    if len(starts) * 8 * lanes > shape.n_q + 16 * lanes:
        return Group(Tiles.of(members, lanes), members, expression)
    parts = [Tiles.affine(int(a), 1, int(n), lanes) for a, n in zip(starts, sizes, strict=True)]
    return Group(Tiles.join(parts or [Tiles.affine(0, 1, 0, lanes)]), members, expression)


def _with_row_sets(pattern: Pattern, values: dict[RowSet, bool]) -> Pattern | None:
    """The expression where each `RowSet` allows everything or nothing; None where nothing is left."""
    if isinstance(pattern, RowSet):
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


def disjoint_terms(expression: Pattern, shape: Shape) -> list[Term]:
    """Terms whose pairs make up the expression: what an earlier term has, a later one leaves out."""
    merged: dict[Pattern | None, Pattern] = {}
    for driver, part in _terms(expression, shape):
        merged[driver] = merged[driver] | part if driver in merged else part
    ordered = sorted(merged.items(), key=lambda item: _rank(item[0], shape))
    terms: list[Term] = []
    for driver, part in ordered:
        taken = reduce(Union, [term.expression for term in terms]) if terms else None
        terms.append(Term(driver, part if taken is None else Difference(part, taken)))
    return terms


def _terms(expression: Pattern, shape: Shape) -> list[Term]:
    if all(is_natural(leaf) for leaf in expression._leaves()):
        return [Term(None, expression)]
    if isinstance(expression, Union):
        return _terms(expression.left, shape) + _terms(expression.right, shape)
    if isinstance(expression, Difference):
        return [Term(d, Difference(part, expression.right)) for d, part in _terms(expression.left, shape)]
    if isinstance(expression, Intersection):
        return [
            Term(max((a, b), key=lambda driver: _rank(driver, shape)), Intersection(x, y))
            for a, x in _terms(expression.left, shape)
            for b, y in _terms(expression.right, shape)
        ]
    return [Term(expression, expression)]


def _rank(driver: Pattern | None, shape: Shape) -> tuple[int, int]:
    """Drivers from the least selective to the most: also the order in which they take their pairs."""
    if driver is None:
        return 0, 0
    if is_listed(driver, shape):
        return 3, 0
    return (2, 0) if isinstance(driver, KeySet) else (1, driver.stride if isinstance(driver, Strided) else 0)
