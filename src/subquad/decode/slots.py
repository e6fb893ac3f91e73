"""Where a cache keeps its keys and values: a ring of recent tokens, and behind it the pinned ones."""

from __future__ import annotations

import bisect
from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from subquad import checks
from subquad.decode.intervals import Intervals
from subquad.decode.steps import Store
from subquad.inputs import Array, empty
from subquad.patterns.spans import Ints


def pieces(start: int, stop: int, ring: int) -> Iterator[tuple[int, int]]:
    """Positions start <= j < stop in stretches that lie side by side in a ring of so many slots."""
    while start < stop:
        end = min(stop, start - start % ring + ring)
        yield start, end
        start = end


class Sizes(NamedTuple):
    """How large a ring may be."""

    smallest: int  # slots to begin with
    steady: int | None  # what single tokens need for ever, where there is such a number
    bound: int  # tokens of the longest sequence

    def ring_for(self, needed: int, ring: int) -> int:
        """The size of a ring of `ring` slots once it has to hold `needed` tokens."""
        if needed > ring:
            within = self.steady is not None and needed <= self.steady
            return max(needed, min(2 * ring, self.steady if within and self.steady is not None else self.bound))
        if self.steady is None:
            return max(2 * needed, self.smallest) if 4 * needed < ring else ring
        return self.steady if needed <= self.steady < ring else ring


class Slots:
    """Keys and values of the tokens that are held.

    Position j of the ring lies in slot ``j % ring``; the pinned tokens, ascending, in the slots from `ring` on. A token
    may be in both. `first` is the oldest position that the ring still holds, `length` one past the newest.
    """

    def __init__(self, heads: int, d: int, d_v: int, dtype: np.dtype[Any], sizes: Sizes, pins: int) -> None:
        self.length = self.first = 0
        self.sizes, self.ring = sizes, sizes.smallest
        self.pinned = array("q")
        self.store = _allocate(heads, d, d_v, dtype, self.ring + pins)

    @property
    def nbytes(self) -> int:
        return self.store.key.nbytes + self.store.value.nbytes

    @property
    def room(self) -> int:
        """Slots for pinned tokens."""
        return int(self.store.key.shape[1]) - self.ring

    def copy(self) -> Slots:
        """The same tokens in memory of their own."""
        twin = Slots.__new__(Slots)
        store = Store.of(self.store.key.copy(), self.store.value.copy())
        twin.__dict__.update(self.__dict__, pinned=self.pinned[:], store=store)
        return twin

    def make_room(self, needed: int, new_pins: int, oldest: int) -> None:
        """Have slots for so many recent tokens in all and for more pinned ones, or change nothing."""
        ring, room = self.sizes.ring_for(needed, self.ring), self.room
        pins = len(self.pinned) + new_pins
        if pins > room:
            room = max(pins, 2 * room)
        if ring != self.ring or room != self.room:
            self._resize(ring, room, oldest)

    def _resize(self, ring: int, pins: int, oldest: int) -> None:
        """Move to other memory; recent tokens before `oldest` are forgotten."""
        old = self.store.key, self.store.value
        heads, _, d = old[0].shape
        new = _allocate(heads, d, old[1].shape[2], old[0].dtype, ring + pins)
        for x, y in zip(old, new[:2], strict=True):
            for start, stop in pieces(oldest, self.length, self.ring):
                for a, b in pieces(start, stop, ring):
                    y[:, a % ring : a % ring + b - a] = x[:, a % self.ring : a % self.ring + b - a]
            held = len(self.pinned)
            y[:, ring : ring + held] = x[:, self.ring : self.ring + held]
        self.store = new
        self.first, self.ring = oldest, ring

    def write(self, key: Array, value: Array, pinned: Ints) -> None:
        """Append tokens, some of which are pinned; of more than the ring holds, the last are kept."""
        begin, ring, held = self.length, self.ring, self.store
        self.length = begin + key.shape[1]
        self.first = min(self.length, max(self.first, self.length - ring))
        for start, stop in pieces(max(begin, self.length - ring), self.length, ring):
            slot = start % ring
            held.key[:, slot : slot + stop - start] = key[:, start - begin : stop - begin]
            held.value[:, slot : slot + stop - start] = value[:, start - begin : stop - begin]
        if len(pinned):
            slot = ring + len(self.pinned)
            held.key[:, slot : slot + len(pinned)] = key[:, pinned - begin]
            held.value[:, slot : slot + len(pinned)] = value[:, pinned - begin]
            self.pinned.extend(pinned.tolist())

    def drop(self, length: int) -> None:
        """Forget the tokens from position `length` on."""
        self.length, self.first = length, min(self.first, length)
        del self.pinned[bisect.bisect_left(self.pinned, length) :]

    def pins_below(self, position: int) -> int:
        """Pinned tokens before a position."""
        return bisect.bisect_left(self.pinned, position)

    def side_by_side(self, origin: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        """Keys and values of the tokens from `origin` on, in their order; 0 where they are no longer held."""
        slot, n_tokens, first = origin % self.ring, self.length - origin, max(origin, self.first)
        if first == origin and slot + n_tokens <= self.ring and dtype == self.store.key.dtype:
            return self.store.key[:, slot : slot + n_tokens], self.store.value[:, slot : slot + n_tokens]
        begin, end = self.pins_below(origin), self.pins_below(first)
        held = np.array(self.pinned[begin:end], np.int64) - origin
        found = []
        for x in self.store[:2]:
            y = empty((x.shape[0], n_tokens, x.shape[2]), dtype, "copy of recent tokens")
            y[:, : first - origin] = 0
            y[:, held] = x[:, self.ring + begin : self.ring + end]
            for a, b in pieces(first, self.length, self.ring):
                y[:, a - origin : b - origin] = x[:, a % self.ring : a % self.ring + b - a]
            found.append(y)
        return found[0], found[1]

    def of_intervals(self, keys: Intervals, position: int) -> tuple[list[int], list[int], list[int]]:
        """Starts and counts of the stretches of slots in which intervals of keys lie, in the order of the keys.

        And how far from a position the first key of each stands.
        """
        starts, counts, behind, ring, first = [], [], [], self.ring, self.first
        for start, stop in keys:
            if start < first:
                end = min(stop, first)
                at = bisect.bisect_left(self.pinned, start)
                starts.append(ring + at)
                counts.append(end - start)
                behind.append(start - position)
                start = end
            while start < stop:
                slot = start % ring
                n_keys = min(stop - start, ring - slot)
                starts.append(slot)
                counts.append(n_keys)
                behind.append(start - position)
                start += n_keys
        return starts, counts, behind

    def of_keys(self, keys: Ints, position: int) -> tuple[Ints, Ints, Ints]:
        """The same of a list of keys."""
        slots = keys % self.ring
        older = int(np.searchsorted(keys, self.first))
        if older:
            slots[:older] = self.ring + np.searchsorted(np.frombuffer(self.pinned, np.int64), keys[:older])
        if not len(slots):
            return slots, slots, slots
        breaks = np.concatenate(([0], np.nonzero(np.diff(slots) != 1)[0] + 1, [len(slots)]))
        return slots[breaks[:-1]], np.diff(breaks), keys[breaks[:-1]] - position


def _allocate(heads: int, d: int, d_v: int, dtype: np.dtype[Any], n_slots: int) -> Store:
    what = f"a cache of {n_slots:,} tokens x {heads} heads x ({d} + {d_v}) {dtype}"
    checks.allocatable(heads * n_slots * (d + d_v) * dtype.itemsize, what, "Use a narrower pattern or float16.")
    try:
        return Store.of(np.empty((heads, n_slots, d), dtype), np.empty((heads, n_slots, d_v), dtype))
    except MemoryError:
        raise MemoryError(f"{what} cannot be allocated now") from None
