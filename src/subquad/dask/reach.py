"""Which keys a chunk of query rows visits at all: stretches of the sequence, never single pairs.

Closed forms for windows, strides, columns, segments and doubling distances. Where patterns are joined, a stretch is
left out only if the expression allows it to no row, whatever the rows do elsewhere: exact for every pattern alone, and
at worst some keys too many for an intersection.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from subquad.patterns._part import Index
from subquad.patterns.base import Pattern, Shape
from subquad.patterns.log_sparse import _Doubling
from subquad.patterns.neighborhood import Neighborhood
from subquad.patterns.random_keys import Random
from subquad.patterns.row_lists import RowLists
from subquad.patterns.spans import Ints, Spans, Tiles
from subquad.patterns.strided import Strided
from subquad.patterns.whole import WholeColumns, WholeRows, every_tile
from subquad.plan.segments import NONE, _evaluate, _states

Stretch = tuple[Ints, Ints]  # start and stop of disjoint ascending stretches

_CHUNK_ROWS = 1 << 14  # whose lists are looked at together
_ALL_BUT = 4.0  # draws for each key after which fewer than 2% are still missing: exp(-4)


def reached(expression: Pattern, shape: Shape, rows: Index) -> Stretch:
    """Keys that `rows` visit, as stretches; time O(1) in the rows for windows, O(rows) for lists."""
    nothing = np.arange(0)
    if not len(rows) or not shape.n_k:
        return nothing, nothing
    leaves = list(dict.fromkeys(expression._leaves()))
    spans = [_of_leaf(leaf, shape, rows) for leaf in leaves]
    edges = np.unique(np.concatenate([edge for span in spans for edge in (span.start, span.stop)]))
    if len(edges) < 2:
        return nothing, nothing
    states = {leaf: _states(span, edges[:-1], shape.n_k + 1) for leaf, span in zip(leaves, spans, strict=True)}
    there = _evaluate(expression, states) != NONE
    return joined(edges[:-1][there], edges[1:][there])


def joined(start: Ints, stop: Ints) -> Stretch:
    """Any stretches as disjoint ascending ones."""
    kept = start < stop
    start, stop = start[kept], stop[kept]
    if not len(start):
        return start, stop
    order = np.argsort(start, kind="stable")
    start, stop = start[order], np.maximum.accumulate(stop[order])
    new = np.concatenate(([True], start[1:] > stop[:-1]))
    return start[new], stop[np.concatenate((np.nonzero(new)[0][1:] - 1, [len(stop) - 1]))]


def _of_leaf(leaf: Pattern, shape: Shape, rows: Index) -> Spans:
    """What a single pattern allows to the rows: full where to all of them."""
    if isinstance(leaf, WholeRows):
        members = rows.rank(leaf.members(shape) + 1) > rows.rank(leaf.members(shape))
        count = int(np.count_nonzero(members))
        return _spans([0], [shape.n_k if count else 0], count == len(rows))
    if isinstance(leaf, WholeColumns):
        return every_tile(*leaf.stretches(shape), 1)
    if isinstance(leaf, Strided):
        return _spans(*_strided(leaf, shape, rows))
    if isinstance(leaf, _Doubling) and rows.listed is None:
        moved = shape.shift + leaf._side * leaf._distances(shape)
        return _spans(*joined(*(np.clip(edge + moved, 0, shape.n_k) for edge in (rows.start, rows.stop))))
    if isinstance(leaf, Random):
        return _spans(*_random(leaf, shape, rows))
    if rows.listed is None:
        found = _one_tile(leaf, shape, rows)
        if found is not None:
            return found
    if isinstance(leaf, RowLists):
        return _spans(*_listed(leaf, shape, rows))
    return _spans([0], [shape.n_k])


def _spans(start: Sequence[int] | Ints, stop: Sequence[int] | Ints, full: bool = False) -> Spans:
    start, stop = np.asarray(start, np.int64), np.asarray(stop, np.int64)
    return Spans(np.zeros_like(start), start, stop, np.full(len(start), full)).clean()


def _one_tile(leaf: Pattern, shape: Shape, rows: Index) -> Spans | None:
    """What a pattern that needs only the first row and the last says of all of them, as of one tall tile."""
    if type(leaf)._spans in (RowLists._spans, Pattern._spans) or isinstance(leaf, Neighborhood):
        return None  # these go through the rows one by one
    first, count = np.array([rows.start]), np.array([len(rows)])
    tile = Tiles(first, np.array([1]), np.array([-1]), count, first + count - 1, first[:0], len(rows))
    return leaf._spans(tile, shape)


def _strided(leaf: Strided, shape: Shape, rows: Index) -> Stretch:
    """The residue classes of the rows; all keys, once there are as many rows as classes."""
    whole = np.array([0]), np.array([shape.n_k])
    if rows.stop - rows.start >= leaf.stride or rows.listed is not None:
        return whole
    first = (rows.start + shape.shift) % leaf.stride
    begin = np.arange(first - leaf.stride, shape.n_k, leaf.stride)
    return joined(np.clip(begin, 0, shape.n_k), np.clip(begin + len(rows), 0, shape.n_k))


def _random(leaf: Random, shape: Shape, rows: Index) -> Stretch:
    """The blocks drawn; once so many are that hardly any is missing, all of them, without drawing."""
    n_blocks = -(-shape.n_k // leaf.block)
    block_rows = np.unique(rows.members() // leaf.block)
    if len(block_rows) * leaf.keys >= _ALL_BUT * n_blocks:
        return np.array([0]), np.array([shape.n_k])
    drawn = np.zeros(n_blocks, bool)
    for at in range(0, len(block_rows), _CHUNK_ROWS):
        drawn[leaf.block_rows(block_rows[at : at + _CHUNK_ROWS], shape)[1]] = True
    start = np.nonzero(drawn)[0] * leaf.block
    return joined(start, np.minimum(start + leaf.block, shape.n_k))


def _listed(leaf: RowLists, shape: Shape, rows: Index) -> Stretch:
    members, start, stop = rows.members(), np.arange(0), np.arange(0)
    for at in range(0, len(members), _CHUNK_ROWS):
        _, begin, end = leaf._stretches(members[at : at + _CHUNK_ROWS], shape)
        start, stop = joined(np.concatenate((start, begin)), np.concatenate((stop, end)))
    return start, stop
