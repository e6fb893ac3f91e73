"""Advice against measurement
==========================

What `subquad.advise` predicts, and what is measured, for every kind of
pattern at several lengths, one thread, least of several calls::

    python docs/examples/advice.py                  # about two minutes; exits 1 where one is off by more than 30%
    python docs/examples/advice.py --d 128 --tokens 4096 16384
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import subquad
import subquad.dense
from subquad import Banded, Causal, LogSparse, Neighborhood, Pattern, Random, Strided, bigbird, longformer

OFF = 0.3
MOST_PAIRS = 300_000_000
PATTERNS: list[Callable[[int], Pattern]] = [
    lambda n: Banded(16),
    lambda n: Banded(256),
    lambda n: Strided(128),
    lambda n: longformer(128, range(8)),
    lambda n: bigbird(64),
    lambda n: subquad.dilated(32, 4),
    lambda n: subquad.sparse_transformer_fixed(128, 8),
    lambda n: Causal(),
    lambda n: Random(8, seed=0),
    lambda n: Random(64, seed=0),
    lambda n: LogSparse(),
    lambda n: Neighborhood((32, n // 32), 7),
]


def least(call: Callable[[], object], seconds: float = 0.3) -> float:
    """Least time of a call."""
    call()
    found, end = [], time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 8192, 65_536])
    parser.add_argument("--d", type=int, default=64)
    options = parser.parse_args()
    rng, wrong = np.random.default_rng(0), 0
    subquad.advise(Banded(1), 16, options.d, recalibrate=True)
    print(f"{'n':>7}  {'predicted':>10}  {'measured':>10}  {'ratio':>5}")

    def line(n: int, name: str, predicted: float, measured: float) -> int:
        off = not 1 / (1 + OFF) <= predicted / measured <= 1 + OFF
        print(
            f"{n:7}  {predicted * 1e3:7.2f} ms  {measured * 1e3:7.2f} ms  {predicted / measured:5.2f}  "
            f"{name}{' OFF' * off}",
            flush=True,
        )
        return off

    for n in options.tokens:
        arrays = [rng.standard_normal((1, n, options.d), dtype=np.float32) for _ in range(3)]
        for make in PATTERNS:
            pattern = make(n)
            if pattern.nnz(n, n) <= MOST_PAIRS:
                found = subquad.advise(pattern, n, options.d, num_threads=1)
                call = partial(subquad.attention, *arrays, pattern, out=np.empty_like(arrays[0]), num_threads=1)
                wrong += line(n, repr(pattern), found.seconds, least(call))
        if n <= 8192:
            wrong += line(n, "dense", found.dense_seconds, least(partial(subquad.dense.attention, *arrays)))
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
