"""The rows of a query over the tokens that a cache holds: a few by lists of slots, many by plans of `attention`."""

from __future__ import annotations

from typing import Any

import numpy as np

from subquad.attention import attention, merge
from subquad.decode import steps
from subquad.decode.intervals import row_intervals
from subquad.decode.moved import moved, period
from subquad.decode.reach import Reach
from subquad.decode.slots import Slots
from subquad.decode.steps import Call
from subquad.inputs import Array
from subquad.patterns.base import Pattern, Shape

Result = tuple[Array, Array | None]  # output and, if asked for, log-sum-exp

_FEW_ROWS = 16  # a tile of query rows; beyond, plans are faster
_ROWS_AT_ONCE = 256  # whose keys are listed together: bounds the memory of a long chunk
_LONGEST_PERIOD = 1 << 12


class Rows:
    """How the rows of a pattern meet the slots of a cache."""

    def __init__(self, pattern: Pattern, reach: Reach) -> None:
        self._pattern, self._reach = pattern, reach
        self._intervals = row_intervals(pattern)
        self._period = period(pattern)

    def __reduce__(self) -> Any:
        return Rows, (self._pattern, self._reach)

    def attend(self, q: Array, slots: Slots, with_lse: bool, call: Call) -> Result:
        """The last rows of the sequence, in the dtype of the computation."""
        m, n = q.shape[1], slots.length
        if m > _FEW_ROWS:
            if slots.first == 0 and self._like_attention(Shape.aligned(m, n)):
                key, value = (x[:, :n] for x in slots.store[:2])
                return _planned(q, key, value, self._pattern, with_lse, call)
            if self._period is not None and self._period <= _LONGEST_PERIOD:
                return self._moved(q, slots, with_lse, call)
        return self._listed(q, slots, with_lse, call)

    def _listed(self, q: Array, slots: Slots, with_lse: bool, call: Call, below: int | None = None) -> Result:
        """Every row over its own list of slots, of the keys below a position if one is given."""
        m, d_v = q.shape[1], slots.store.value.shape[2]
        dtype = steps.compute_dtype(q.dtype)
        out, lse = steps.results(q.shape, d_v, dtype, with_lse)
        if 0 < m <= _ROWS_AT_ONCE:
            steps.run(q, slots.store, self._lists(slots, 0, m, m, below), out, lse, call)
            return out, lse
        for first in range(0, m, _ROWS_AT_ONCE):
            part = slice(first, min(first + _ROWS_AT_ONCE, m))
            lists = self._lists(slots, part.start, part.stop, m, below)
            some, sums = steps.results((len(q), lists.rows), d_v, dtype, with_lse)
            steps.run(q[:, part], slots.store, lists, some, sums, call)
            out[:, part] = some
            if lse is not None:
                lse[:, part] = sums
        return out, lse

    def _lists(self, slots: Slots, start: int, stop: int, m: int, below: int | None) -> steps.RowSlots:
        """Where the keys of rows start <= i < stop lie, of a query of m rows."""
        n, intervals = slots.length, self._intervals
        positions = range(n - m + start, n - m + stop)
        if intervals is not None:
            rows = [intervals(position, n) for position in positions]
            if below is not None:
                rows = [[(a, min(b, below)) for a, b in row if a < below] for row in rows]
            return steps.RowSlots.of_lists(map(slots.of_intervals, rows, positions))
        if self._reach.size is None:
            shape, first = Shape.aligned(m, n), 0
        else:  # rows of the finished sequence
            shape = self._reach.size
            first = n - m - shape.shift
        lists = []
        for i, position in zip(range(first + start, first + stop), positions, strict=True):
            keys = self._pattern._row(i, shape)
            lists.append(slots.of_keys(keys[: np.searchsorted(keys, n if below is None else below)], position))
        return steps.RowSlots.of_arrays(lists)

    def _like_attention(self, shape: Shape) -> bool:
        """Whether `attention` takes the pattern at this size, and means the same by it."""
        try:
            self._pattern._validate(shape)
        except ValueError:  # tokens that are still to come; a pattern of another size
            return False
        return self._reach.size in (None, shape)

    def _moved(self, q: Array, slots: Slots, with_lse: bool, call: Call) -> Result:
        """Recent keys side by side, as a sequence that begins with the oldest of them; pinned ones before it by lists.

        A chunk of 512 rows over a window of 4,096 took 4.8 times as long by lists alone.
        """
        m, n = q.shape[1], slots.length
        oldest = min(self._reach.oldest(n - m), n)
        origin = oldest - oldest % (self._period or 1)
        pattern = moved(self._pattern, origin, n)
        pinned = slots.pins_below(origin) > 0
        if pattern is None:
            return self._listed(q, slots, with_lse, call)
        dtype = steps.compute_dtype(q.dtype) if pinned else q.dtype  # parts are not rounded before they are merged
        key, value = slots.side_by_side(origin, dtype)
        whole = q.astype(dtype, copy=False)
        out, lse = _planned(whole, key, value, pattern, with_lse or pinned, call)
        if pinned and lse is not None:
            before, its_lse = self._listed(q, slots, True, call.without_sinks(), below=origin)
            assert its_lse is not None
            out, lse = merge(out, lse, before, its_lse)
        return out, lse if with_lse else None


def _planned(q: Array, key: Array, value: Array, pattern: Pattern, with_lse: bool, call: Call) -> Result:
    """By the plan of `attention`. Distances, which is all that options ask of positions, are the same there."""
    scale, threads, options = call.scale, call.num_threads, call.options or {}
    if with_lse:
        return attention(q, key, value, pattern, scale=scale, return_lse=True, num_threads=threads, **options)
    return attention(q, key, value, pattern, scale=scale, num_threads=threads, **options), None
