"""Random keys for each query, drawn by a counter and not by a state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from subquad import checks
from subquad.complexity.orders import LINEAR, Order
from subquad.patterns.base import Pattern, Shape, Visits
from subquad.patterns.block_lists import BlockLists
from subquad.patterns.spans import Bools, Ints

_CHUNK = 1 << 18  # draws at a time: bounds the memory of a long sequence


def _mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64: every input bit reaches every output bit, the same on every platform."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _draws(seed: int, rows: Ints, count: int, n: int) -> Ints:
    """The first `count` draws of every row: integers in [0, n), by the counter (seed, row, draw)."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    seeds = _mixed(np.array([(seed & (2**64 - 1))], np.uint64) + golden)
    keys = _mixed(seeds + (rows.astype(np.uint64) + np.uint64(1)) * golden)
    counters = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * golden
    return np.asarray(_mixed(keys[:, None] + counters[None, :]) % np.uint64(n), np.int64)


def _first_distinct(seed: int, rows: Ints, k: int, n: int) -> Ints:
    """The first k distinct draws of each row, sorted: k of n without replacement, uniformly. Needs k <= n / 2."""
    chosen = np.empty((len(rows), k), np.int64)
    draws = np.sort(_draws(seed, rows, k, n), axis=1)
    chosen[:] = draws
    waiting, count = np.nonzero((draws[:, 1:] == draws[:, :-1]).any(axis=1))[0], k
    while len(waiting):  # the rows whose first draws repeat one another need more of them
        count = 2 * count + 8
        # value and number of a draw in one integer: sorted, the first of equal values comes first
        ordered = np.sort(_draws(seed, rows[waiting], count, n) * count + np.arange(count), axis=1)
        value, number = np.divmod(ordered, count)
        fresh = np.ones(value.shape, bool)
        fresh[:, 1:] = value[:, 1:] != value[:, :-1]
        distinct = np.zeros(value.shape, bool)
        np.put_along_axis(distinct, number, fresh, axis=1)
        rank = np.take_along_axis(np.cumsum(distinct, axis=1), number, axis=1)
        enough = fresh.sum(axis=1) >= k
        chosen[waiting[enough]] = value[enough][(fresh & (rank <= k))[enough]].reshape(-1, k)
        waiting = waiting[~enough]
    return chosen


def random_rows(seed: int, rows: Ints, k: int, n: int) -> Ints:
    """k of n sorted distinct numbers for each row, a function of (seed, row, n) alone; all of them where k >= n."""
    if k >= n:
        return np.broadcast_to(np.arange(n), (len(rows), n)).copy()
    if 2 * k > n:  # the few left out are drawn instead
        left_out = random_rows(seed, rows, n - k, n)
        kept = np.ones((len(rows), n), bool)
        np.put_along_axis(kept, left_out, False, axis=1)
        return np.nonzero(kept)[1].reshape(len(rows), k)
    step = max(1, _CHUNK // (2 * k + 8))
    parts = [_first_distinct(seed, rows[at : at + step], k, n) for at in range(0, len(rows), step)]
    return np.concatenate(parts) if parts else np.empty((0, k), np.int64)


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Random(BlockLists):
    """Each block of queries attends `keys` blocks of keys, drawn uniformly without replacement: O(n keys block) pairs.

    The row of query block ``i // block`` is a function of (seed, that block, the number of key blocks) alone: the same
    on every platform, in every process, for any number of queries.

    Parameters
    ----------
    keys : int
        Key blocks in each row, at least 1; all, where there are fewer.
    seed : int, optional
        An integer of 64 bits.
    block : int, optional
        Tokens in a block, at least 1; the last block may be shorter.

    Raises
    ------
    TypeError, ValueError
        If an argument is no integer, or keys or block is below 1.

    References
    ----------
    Zaheer et al., "Big Bird: Transformers for Longer Sequences" (2020), section 2.

    Examples
    --------
    >>> Random(3, seed=1).row(5, 100, 100).shape
    (3,)
    >>> Random(3, seed=1).row(5, 100, 100).tolist() == Random(3, seed=1).row(5, 9, 100).tolist()
    True
    """

    keys: int
    seed: int
    block: int

    def __init__(self, keys: Any, seed: Any = 0, block: Any = 1) -> None:
        object.__setattr__(self, "keys", checks.integer(keys, "keys", 1))
        object.__setattr__(self, "seed", checks.integer(seed, "seed", -(2**63), 2**63 - 1))
        object.__setattr__(self, "block", checks.integer(block, "block", 1))

    @property
    def order(self) -> Order:
        return LINEAR

    def block_rows(self, rows: Ints, shape: Shape) -> tuple[Ints, Ints]:
        n_blocks = -(-shape.n_k // self.block)
        per_row = min(self.keys, n_blocks)
        self._check_lists(len(rows), per_row)
        chosen = random_rows(self.seed, rows, per_row, n_blocks) if n_blocks else np.empty((len(rows), 0), np.int64)
        return np.arange(len(rows) + 1) * per_row, chosen.ravel()

    def _visits(self, shape: Shape, lanes: int) -> Visits:
        n_blocks = max(1, -(-shape.n_k // self.block))
        share = min(self.keys, n_blocks) / n_blocks
        met = 1 + (lanes - 1) / self.block  # block rows in a tile; their lists overlap by chance
        tile = (1 - (1 - share) ** met) * n_blocks  # in blocks
        return Visits(share * shape.n_k, tile / n_blocks * shape.n_k, tile * (1 - tile / n_blocks) + 1)

    def _check_lists(self, n_rows: int, per_row: int) -> None:
        what = f"{per_row:,} random keys for each of {n_rows:,} query blocks"
        checks.allocatable(32 * n_rows * per_row, what, f"Lower keys in {self!r}.")

    def _check_plan(self, shape: Shape) -> None:
        Pattern._check_plan(self, shape)
        self._check_lists(-(-shape.n_q // self.block), min(self.keys, -(-shape.n_k // self.block)))

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return self._contains_by_lists(i, j, shape)

    def _count(self, shape: Shape) -> int:
        if self.block == 1:
            return shape.n_q * min(self.keys, shape.n_k)
        return self._count_lists(shape)

    def __repr__(self) -> str:
        block = "" if self.block == 1 else f", block={self.block}"
        return f"Random({self.keys}, seed={self.seed}{block})"
