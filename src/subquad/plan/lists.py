"""Each row's own list of keys, from the patterns whose lists are the shortest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from subquad.patterns.bands import Band
from subquad.patterns.base import Intersection, Pattern, Shape, Union, _Joined
from subquad.patterns.row_lists import RowLists, expand
from subquad.patterns.spans import Ints
from subquad.patterns.strided import Strided
from subquad.plan.cost import LISTS
from subquad.plan.tables import GatheredPhase
from subquad.plan.terms import Group, Term

_CHUNK_ROWS = 1 << 14  # whose keys are listed at a time: bounds the memory beyond the plan


def listed_phase(shape: Shape, groups: list[Group], terms: list[list[Term]]) -> GatheredPhase:
    """The lists of all rows: each driver's own keys, less those that the rest of its expression forbids."""
    lists = [[term for term in of_group if term.way == LISTS] for of_group in terms]
    alone = lists[0][0] if len(groups) == 1 and len(lists[0]) == 1 else None
    if alone is not None and alone.driver == alone.expression and isinstance(alone.driver, RowLists):
        known = alone.driver._as_lists(shape)
        if known is not None:
            return GatheredPhase(*known)
        return _table(_chunks(groups, lists, shape), shape, alone.driver._count(shape))
    chunks = list(_chunks(groups, lists, shape))
    return _table(iter(chunks), shape, sum(len(keys) for _, _, keys in chunks))


def _chunks(groups: list[Group], lists: list[list[Term]], shape: Shape) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Some rows at a time, with how many keys each has, and the keys."""
    for group, of_group in zip(groups, lists, strict=True):
        rows = group.rows(shape.n_q) if of_group else np.arange(0)
        for at in range(0, len(rows), _CHUNK_ROWS):
            some = rows[at : at + _CHUNK_ROWS]
            owner, keys = keys_of(of_group, some, shape)
            yield some, np.bincount(owner, minlength=len(some)), keys


def _table(chunks: Iterator[tuple[Ints, Ints, Ints]], shape: Shape, n_pairs: int) -> GatheredPhase:
    counts, keys = np.zeros(shape.n_q, np.int64), np.empty(n_pairs, np.int64)
    begin = np.zeros(shape.n_q, np.int64)
    at, ascending, last = 0, True, -1
    for rows, its_counts, its_keys in chunks:
        counts[rows] = its_counts
        begin[rows] = at + np.cumsum(its_counts) - its_counts
        keys[at : at + len(its_keys)] = its_keys
        at, ascending, last = at + len(its_keys), ascending and rows[0] > last, rows[-1]
    if not ascending:  # groups came one after another; the table has rows one after another
        keys = keys[expand(begin, counts)]
    return GatheredPhase(np.concatenate(([0], np.cumsum(counts))), keys)


def keys_of(terms: list[Term], rows: Ints, shape: Shape) -> tuple[Ints, Ints]:
    """The keys of some rows from all terms, ascending by row (its place among them) and key."""
    owners, lists = [], []
    for term in terms:
        owner, keys = _own_keys(term, rows, shape)
        if term.driver != term.expression:
            kept = term.expression._contains(rows[owner], keys, shape)
            owner, keys = owner[kept], keys[kept]
        owners.append(owner)
        lists.append(keys)
    if len(terms) == 1:
        return owners[0], lists[0]
    width = max(1, shape.n_k)
    codes = np.concatenate(owners) * width + np.concatenate(lists)
    codes.sort(kind="stable")
    owner, keys = np.divmod(codes, width)
    return owner, keys


def _own_keys(term: Term, rows: Ints, shape: Shape) -> tuple[Ints, Ints]:
    if isinstance(term.driver, Strided):
        return term.driver.between(rows, *_hull(term.expression, rows, shape), shape)
    if not isinstance(term.driver, RowLists):
        raise TypeError(f"{term.driver!r} has no lists")  # a plan never chooses lists for such a pattern
    owner, start, stop = term.driver._stretches(rows, shape)
    return np.repeat(owner, stop - start), expand(start, stop - start)


def _hull(expression: Pattern, rows: Ints, shape: Shape) -> tuple[Ints, Ints]:
    """Keys low <= j < high that hold all that windows leave to each row."""
    if isinstance(expression, Band):
        return expression._bounds(rows + shape.shift, shape)
    if not isinstance(expression, _Joined):
        low = np.zeros_like(rows)
        return low, low + shape.n_k
    low, high = _hull(expression.left, rows, shape)
    if isinstance(expression, Union | Intersection):
        other_low, other_high = _hull(expression.right, rows, shape)
        if isinstance(expression, Union):
            return np.minimum(low, other_low), np.maximum(high, other_high)
        low = np.maximum(low, other_low)
        return low, np.maximum(low, np.minimum(high, other_high))
    return low, high
