"""The keys of one query row as a few intervals, in plain Python.

A decoding step asks for a row or two, of which windows, tokens and segments are known without any array: a few
microseconds, where NumPy would take ten times that.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

from subquad.patterns.bands import Band
from subquad.patterns.base import Intersection, Pattern, Union, _Joined
from subquad.patterns.global_tokens import Global
from subquad.patterns.packed import Packed
from subquad.patterns.whole import Tokens

Intervals = list[tuple[int, int]]  # start <= j < stop: disjoint, ascending, none of them empty
RowIntervals = Callable[[int, int], Intervals]  # of the row at a position, among so many keys

_MOST_TOKENS = 64  # that are listed one by one


def row_intervals(pattern: Pattern) -> RowIntervals | None:
    """A function for the rows of a pattern, unless they are best listed key by key."""
    if isinstance(pattern, _Joined):
        left, right = row_intervals(pattern.left), row_intervals(pattern.right)
        if left is None or right is None:
            return None
        join = _union if isinstance(pattern, Union) else _common if isinstance(pattern, Intersection) else _without
        return lambda position, n_keys: join(left(position, n_keys), right(position, n_keys))
    if isinstance(pattern, Band):
        return _band(*pattern.reach())
    if isinstance(pattern, Global) and (isinstance(pattern.tokens, range) or len(pattern.tokens) <= _MOST_TOKENS):
        return _global(pattern)
    if isinstance(pattern, Packed):
        return _packed(pattern.ends.tolist())
    return None


def _band(left: int | None, right: int | None, block: int) -> RowIntervals:
    def intervals(position: int, n_keys: int) -> Intervals:
        center = position // block
        start = 0 if left is None else max(0, (center - left) * block)
        stop = n_keys if right is None else min(n_keys, (center + right + 1) * block)
        return [(start, stop)] if start < stop else []

    return intervals


def _global(pattern: Global) -> RowIntervals:
    tokens = pattern.tokens
    columns = _token_intervals(tokens) if pattern.columns else []

    def intervals(position: int, n_keys: int) -> Intervals:
        if pattern.rows and position in tokens:
            return [(0, n_keys)] if n_keys else []
        return [(start, min(stop, n_keys)) for start, stop in columns if start < n_keys]

    return intervals


def _token_intervals(tokens: Tokens) -> Intervals:
    if isinstance(tokens, range):
        return [(tokens.start, tokens.stop)] if tokens else []
    found: Intervals = []
    for token in tokens:
        if found and found[-1][1] == token:
            found[-1] = found[-1][0], token + 1
        else:
            found.append((token, token + 1))
    return found


def _packed(ends: list[int]) -> RowIntervals:
    def intervals(position: int, n_keys: int) -> Intervals:
        segment = bisect.bisect_right(ends, position)
        start = ends[segment - 1] if segment else 0
        return [(start, min(ends[segment], n_keys))] if start < n_keys else []

    return intervals


def _union(a: Intervals, b: Intervals) -> Intervals:
    if not a or not b:
        return a or b
    found: Intervals = []
    for start, stop in sorted(a + b):
        if found and start <= found[-1][1]:
            if stop > found[-1][1]:
                found[-1] = found[-1][0], stop
        else:
            found.append((start, stop))
    return found


def _common(a: Intervals, b: Intervals) -> Intervals:
    found, i, k = [], 0, 0
    while i < len(a) and k < len(b):
        start, stop = max(a[i][0], b[k][0]), min(a[i][1], b[k][1])
        if start < stop:
            found.append((start, stop))
        if a[i][1] < b[k][1]:
            i += 1
        else:
            k += 1
    return found


def _without(a: Intervals, b: Intervals) -> Intervals:
    found, k = [], 0
    for start, stop in a:
        while k < len(b) and b[k][1] <= start:
            k += 1
        at = k
        while at < len(b) and b[at][0] < stop:
            if start < b[at][0]:
                found.append((start, b[at][0]))
            start = max(start, b[at][1])
            at += 1
        if start < stop:
            found.append((start, stop))
    return found
