"""Whole rows and whole columns of the mask: sets of queries that see everything, and of keys that everything sees."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np

from subquad import checks
from subquad.complexity.orders import LINEAR, Order
from subquad.patterns.base import Pattern, Shape, Visits
from subquad.patterns.spans import Bools, Ints, Spans, Tiles

Tokens = range | tuple[int, ...]


class WholeRows(Pattern):
    """Some query rows attend everything, the others nothing."""

    __slots__ = ()

    @abstractmethod
    def members(self, shape: Shape) -> Ints:
        """The query rows of the set, ascending."""

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return np.isin(i, self.members(shape))

    def _row(self, i: int, shape: Shape) -> Ints:
        return checks.key_range(0, shape.n_k if np.isin(i, self.members(shape)) else 0)

    def _count(self, shape: Shape) -> int:
        return len(self.members(shape)) * shape.n_k

    def _transposed(self, shape: Shape) -> Pattern:
        return TurnedRows(self)


class WholeColumns(Pattern):
    """Every query row attends the same keys."""

    __slots__ = ()

    @abstractmethod
    def members(self, shape: Shape) -> Ints:
        """The keys of the set, ascending."""

    def stretches(self, shape: Shape) -> tuple[Ints, Ints]:
        """The set as stretches start <= j < stop, as long as can be."""
        return as_stretches(self.members(shape))

    def of_class(self, residue: Ints, modulus: int) -> Bools | None:
        """Whether the keys j = residue (mod `modulus`) are members, where that is so for all of them or for none."""
        return None

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return np.isin(j, self.members(shape))

    def _row(self, i: int, shape: Shape) -> Ints:
        return self.members(shape)

    def _count(self, shape: Shape) -> int:
        return len(self.members(shape)) * shape.n_q

    def _spans(self, tiles: Tiles, shape: Shape) -> Spans:
        return every_tile(*self.stretches(shape), len(tiles))

    def _visits(self, shape: Shape, lanes: int) -> Visits:
        n_keys = len(self.members(shape))
        return Visits(n_keys, n_keys, 1)

    def _transposed(self, shape: Shape) -> Pattern:
        return TurnedColumns(self)


def as_stretches(keys: Ints) -> tuple[Ints, Ints]:
    """Ascending keys as stretches start <= j < stop."""
    if not len(keys):
        return keys, keys
    breaks = np.nonzero(np.diff(keys) != 1)[0] + 1
    return keys[np.concatenate(([0], breaks))], keys[np.concatenate((breaks - 1, [-1]))] + 1


def every_tile(start: Ints, stop: Ints, n_tiles: int) -> Spans:
    """The same full stretches for every tile."""
    tile = np.repeat(np.arange(n_tiles), len(start))
    return Spans(tile, np.tile(start, n_tiles), np.tile(stop, n_tiles), np.ones(len(tile), bool))


@dataclass(frozen=True, slots=True)
class RowSet(WholeRows):
    """Queries whose position is one of `tokens`."""

    tokens: Tokens

    @property
    def order(self) -> Order:
        return LINEAR

    def members(self, shape: Shape) -> Ints:
        return between(self.tokens, shape.shift, shape.shift + shape.n_q) - shape.shift

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return is_member(i + shape.shift, self.tokens)


@dataclass(frozen=True, slots=True)
class KeySet(WholeColumns):
    """The keys in `tokens`."""

    tokens: Tokens

    @property
    def order(self) -> Order:
        return LINEAR

    def members(self, shape: Shape) -> Ints:
        return between(self.tokens, 0, shape.n_k)

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return is_member(j, self.tokens)


@dataclass(frozen=True, slots=True)
class TurnedRows(WholeColumns):
    """Whole rows with queries and keys swapped."""

    base: WholeRows

    @property
    def order(self) -> Order:
        return self.base.order

    def members(self, shape: Shape) -> Ints:
        return self.base.members(shape.swapped)


@dataclass(frozen=True, slots=True)
class TurnedColumns(WholeRows):
    """Whole columns with queries and keys swapped."""

    base: WholeColumns

    @property
    def order(self) -> Order:
        return self.base.order

    def members(self, shape: Shape) -> Ints:
        return self.base.members(shape.swapped)


def between(tokens: Tokens, low: int, high: int) -> Ints:
    """The tokens in [low, high), ascending."""
    if isinstance(tokens, range):
        return np.arange(max(tokens.start, low), max(min(tokens.stop, high), tokens.start, low))
    array = np.asarray(tokens, np.int64)
    return array[(array >= low) & (array < high)]


def how_many(tokens: Tokens, low: int, high: int) -> int:
    """Tokens in [low, high)."""
    if isinstance(tokens, range):
        return max(0, min(tokens.stop, high) - max(tokens.start, low))
    return len(between(tokens, low, high))


def is_member(x: Ints, tokens: Tokens) -> Bools:
    if isinstance(tokens, range):
        return np.asarray((x >= tokens.start) & (x < tokens.stop))
    return np.isin(x, np.asarray(tokens, np.int64))
