"""The machine's own limit, to hold kernels against."""

from __future__ import annotations

import time

import numpy as np

from subquad.kernels.build import load

_VECTORS = 5  # accumulators of the loop in `entry.peak`


def fma_peak(dtype: str = "float32", seconds: float = 0.05) -> float:
    """GFLOP/s that one core reaches now on multiply-adds alone, data in registers: the median of runs of 0.2 ms.

    On a machine shared with others it moves from moment to moment: measure it beside what it is held against.

    Examples
    --------
    >>> fma_peak(seconds=0.01) > 0
    True
    """
    kernel = load("peak", dtype)
    x = np.zeros(64, dtype)
    rounds = 100_000
    found: list[float] = []
    flops = 2 * _VECTORS * (64 // x.itemsize) * rounds
    end = time.perf_counter() + seconds
    while not found or time.perf_counter() < end:
        start = time.perf_counter()
        kernel(x.ctypes.data, rounds)
        found.append(flops / (time.perf_counter() - start) / 1e9)
    return float(np.median(found))
