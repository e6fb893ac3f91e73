"""Each row's own list of keys, from the patterns whose lists are the shortest."""

from __future__ import annotations

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
    if len(groups) == 1 and len(lists[0]) == 1 and lists[0][0].driver == lists[0][0].expression:
        driver = lists[0][0].driver
        if isinstance(driver, RowLists):
            return GatheredPhase(*driver._pairs(shape))
    counts, found = np.zeros(shape.n_q, np.int64), []
    order = []
    for group, of_group in zip(groups, lists, strict=True):
        if not of_group:
            continue
        members = np.arange(shape.n_q) if group.members is None else group.members
        order.append(members)
        for at in range(0, len(members), _CHUNK_ROWS):
            rows = members[at : at + _CHUNK_ROWS]
            owner, keys = _keys_of(of_group, rows, shape)
            counts[rows] = np.bincount(owner, minlength=len(rows))
            found.append(keys)
    keys = np.concatenate(found) if found else np.arange(0)
    indptr = np.concatenate(([0], np.cumsum(counts)))
    if len(order) > 1:  # groups one after another; the table has rows one after another
        rows = np.concatenate(order)
        begin = np.empty(shape.n_q, np.int64)
        begin[rows] = np.cumsum(counts[rows]) - counts[rows]
        keys = keys[expand(begin, counts)]
    return GatheredPhase(indptr, keys)


def _keys_of(terms: list[Term], rows: Ints, shape: Shape) -> tuple[Ints, Ints]:
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
    assert isinstance(term.driver, RowLists)
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
