"""Sets of keys as ascending, disjoint stretches start <= j < stop, and where in a buffer each key lies."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from subquad.patterns.spans import Bools, Ints


class KeySpans(NamedTuple):
    """Stretches of keys, ascending and apart."""

    start: Ints
    stop: Ints

    @classmethod
    def union(cls, start: Ints, stop: Ints, gap: int = 0) -> KeySpans:
        """The keys of any stretches, in any order; stretches that no more than `gap` keys part become one."""
        kept = start < stop
        start, stop = start[kept], stop[kept]
        if not len(start):
            return cls(start, stop)
        order = np.argsort(start, kind="stable")
        start, reached = start[order], np.maximum.accumulate(stop[order])
        begins = np.concatenate(([0], np.nonzero(start[1:] > reached[:-1] + gap)[0] + 1))
        return cls(start[begins], reached[np.concatenate((begins[1:] - 1, [len(start) - 1]))])

    @property
    def total(self) -> int:
        return int((self.stop - self.start).sum())

    @property
    def places(self) -> Ints:
        """Where each stretch begins when they are laid side by side."""
        size = self.stop - self.start
        return np.asarray(np.cumsum(size) - size)

    def within(self, low: int, high: int) -> KeySpans:
        start, stop = np.maximum(self.start, low), np.minimum(self.stop, high)
        return KeySpans(start[start < stop], stop[start < stop])

    def cuts(self, most: int) -> list[tuple[int, int]]:
        """Intervals of the axis, one after another, each with at most so many of the keys."""
        begins = self.places
        edges = [0]
        for done in range(most, self.total, max(1, most)):
            at = int(np.searchsorted(begins, done, side="right")) - 1
            edges.append(int(self.start[at] + done - begins[at]))
        edges.append(int(self.stop[-1]) if len(self.stop) else 0)
        return list(pairwise(edges))

    def has(self, keys: Ints) -> Bools:
        """Whether each key is in a stretch."""
        if not len(self.start):
            return np.zeros(len(keys), bool)
        at = np.searchsorted(self.start, keys, side="right") - 1
        return np.asarray((at >= 0) & (keys < self.stop[at]))

    def local(self, keys: Ints) -> Ints:
        """The places of keys; of a key in no stretch, some place."""
        if not len(self.start):
            return np.zeros_like(keys)
        at = np.maximum(np.searchsorted(self.start, keys, side="right") - 1, 0)
        return keys - (self.start - self.places)[at]


def shared(wanted: KeySpans, held: KeySpans) -> tuple[KeySpans, KeySpans]:
    """What of `wanted` is in `held`, and what has to be read: each stretch lies in one stretch of either."""
    edges = np.unique(np.concatenate((*wanted, *held)))
    start, stop = edges[:-1], edges[1:]
    inside = wanted.has(start)
    start, stop = start[inside], stop[inside]
    there = held.has(start)
    return KeySpans(start[there], stop[there]), KeySpans(start[~there], stop[~there])
