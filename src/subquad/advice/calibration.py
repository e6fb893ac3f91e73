"""What this machine takes for the parts of a call: measured in a few seconds, and kept."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subquad import dense
from subquad.advice.work import Work, work_of
from subquad.attention import attention
from subquad.kernels import cache
from subquad.kernels.build import source_digest
from subquad.patterns import Banded, BlockSparse, Dense, Pattern, Random
from subquad.patterns.base import Shape
from subquad.plan import plan_for

Case = tuple[Pattern, int]

#: Lengths at which dense attention is timed; beyond, it grows by n².
DENSE_SIZES = (64, 256, 1024, 2048)
#: Numbers of keys over which random lists are timed: keys and values in the nearest cache, and ever farther away.
LIST_SIZES = (1 << 9, 1 << 12, 1 << 14, 1 << 17)
#: Lengths at which a narrow window is timed, whose tiles wait for their rows.
TILE_SIZES = (1 << 10, 1 << 13, 1 << 16)
SECONDS, LEAST_ROUNDS, IN_A_ROW = 3.0, 3, 3
#: Of what a calibration holds.
VERSION = 1


class Calibration(NamedTuple):
    """Seconds of one thread of this machine, for one width of heads and one dtype.

    Tiles take `key` for each key that one visits, `run` for each of its runs, and `tile`, which grows with n. Lists
    take `row` each, `pair` for each key, and for each that the rows nearby have not fetched `fetch`, which grows too.
    """

    call: float  # whatever it does
    key: float
    run: float
    row: float
    pair: float
    tile: tuple[float, ...]  # at TILE_SIZES
    fetch: tuple[float, ...]  # at LIST_SIZES
    dense: tuple[float, ...]  # a head of DENSE_SIZES tokens, through BLAS with its own threads

    def sparse_seconds(self, work: Work, n_k: int) -> float:
        """Of all that a plan visits, once."""
        length = np.log(max(1, n_k))
        tile = np.interp(length, np.log(TILE_SIZES), self.tile)
        fetch = np.interp(length, np.log(LIST_SIZES), self.fetch)
        tiled = self.key * work.keys + self.run * work.runs + tile * work.tiles
        return float(tiled + self.row * work.rows + self.pair * work.pairs + fetch * work.fetches)

    def dense_seconds(self, n: int) -> float:
        """Of one head of n tokens."""
        last = DENSE_SIZES[-1]
        if n > last:
            return self.dense[-1] * (n / last) ** 2
        return float(np.exp(np.interp(np.log(max(1, n)), np.log(DENSE_SIZES), np.log(self.dense))))


def calibration(d: int, dtype: str, *, anew: bool = False) -> Calibration:
    """The one that is kept for this machine, these kernels and this BLAS, else one measured now."""
    if anew:
        _kept.cache_clear()
    return _kept(d, dtype, anew)


@functools.lru_cache(maxsize=32)
def _kept(d: int, dtype: str, anew: bool) -> Calibration:
    blas = [os.environ.get(name, "") for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")]
    facts = json.dumps([VERSION, source_digest(), np.__version__, d, *blas])
    name = f"subquad_calibration_{dtype}-{hashlib.sha256(facts.encode()).hexdigest()[:24]}.json"
    found = None if anew else _parsed(cache.read(name))
    if found is None:
        found = calibrate(d, dtype)
        cache.write(name, json.dumps(found).encode())
    return found


def _parsed(content: bytes | None) -> Calibration | None:
    """What a file holds, if it is a calibration."""
    try:
        *single, tile, fetch, whole = json.loads(content or b"[]")
        call, key, run, row, pair = map(float, single)
        series = [tuple(map(float, x)) for x in (tile, fetch, whole)]
    except (ValueError, TypeError):
        return None
    found = Calibration(call, key, run, row, pair, *series)
    right = [len(x) for x in series] == [len(x) for x in (TILE_SIZES, LIST_SIZES, DENSE_SIZES)]
    numbers = [call, key, run, row, pair, *itertools.chain(*series)]
    return found if right and all(0 <= x < math.inf for x in numbers) and min(found.dense) > 0 else None


def calibrate(d: int, dtype: str) -> Calibration:
    """Measure this machine. Calls take turns for some seconds, so that a busy moment falls on none of them alone."""
    rng, itemsize = np.random.default_rng(0), np.dtype(dtype).itemsize
    scattered = BlockSparse(rng.random((64, 64)) < 0.1, 16)
    tiled: list[Case] = [(Dense(), 1024), (Banded(8), 1024), (Banded(64), 1024), (scattered, 1024)]
    near: list[Case] = [(Random(k, seed=0), LIST_SIZES[0]) for k in (4, 16, 64)]
    narrow: list[Case] = [(Banded(16), n) for n in TILE_SIZES]
    far: list[Case] = [(Random(32, seed=0), n) for n in LIST_SIZES]
    cases: list[Case] = [(Banded(0), 1), *tiled, *near, *narrow, *far]

    def arrays(n: int) -> list[npt.NDArray[Any]]:
        return [rng.standard_normal((1, n, d)).astype(dtype) for _ in range(4)]

    def sparse_call(pattern: Pattern, n: int) -> Callable[[], Any]:
        *inputs, out = arrays(n)
        return functools.partial(attention, *inputs, pattern, out=out, num_threads=1)

    def dense_call(n: int) -> Callable[[], Any]:
        *inputs, out = arrays(n)
        return functools.partial(dense.attention, *inputs, out=out)

    call, *seconds = least([sparse_call(*case) for case in cases] + [dense_call(n) for n in DENSE_SIZES])
    works = [work_of(plan_for(pattern, Shape.aligned(n, n), itemsize)) for pattern, n in cases[1:]]
    spent = [max(x - call, x / 10) for x in seconds]
    key, run, _ = nonnegative([work[:3] for work in works[:4]], spent[:4])
    row, pair = nonnegative([work[3:5] for work in works[4:7]], spent[4:7])
    tile = [
        max(0.0, time_ - key * work.keys - run * work.runs) / max(1, work.tiles)
        for time_, work in zip(spent[7:10], works[7:10], strict=True)
    ]
    fetch = [
        max(0.0, time_ - row * work.rows - pair * work.pairs) / max(1.0, work.fetches)
        for time_, work in zip(spent[10:14], works[10:14], strict=True)
    ]
    return Calibration(call, key, run, row, pair, tuple(tile), tuple(fetch), tuple(seconds[-len(DENSE_SIZES) :]))


def nonnegative(counts: Any, seconds: Any) -> list[float]:
    """Coefficients >= 0 of `counts` for which the relative errors of the sums are least, of all choices of columns."""
    columns = np.array(counts, float) / np.array(seconds)[:, None]
    best, found = np.inf, np.zeros(columns.shape[1])
    for chosen in itertools.product([False, True], repeat=columns.shape[1]):
        some, coefficients = np.array(chosen), np.zeros(columns.shape[1])
        coefficients[some] = np.linalg.lstsq(columns[:, some], np.ones(len(columns)), rcond=None)[0]
        error = float(((columns @ coefficients - 1) ** 2).sum())
        if (coefficients >= 0).all() and error < best:
            best, found = error, coefficients
    return [float(x) for x in found]


def least(calls: list[Callable[[], Any]]) -> list[float]:
    """The least time of each, after one that warms up."""
    for call in calls:
        call()
    found, end, rounds = np.full(len(calls), np.inf), time.perf_counter() + SECONDS, 0
    while rounds < LEAST_ROUNDS or time.perf_counter() < end:
        for which, call in enumerate(calls):
            for _ in range(IN_A_ROW):
                start = time.perf_counter()
                call()
                found[which] = min(found[which], time.perf_counter() - start)
        rounds += 1
    return [float(x) for x in found]
