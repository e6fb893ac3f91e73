"""The machine's own limit, to hold kernels against."""

from __future__ import annotations

import time

import numpy as np

from subquad.kernels.build import load

_VECTORS = 5  # accumulators of the loop in `entry.peak`


def fma_peak(dtype: str = "float32", seconds: float = 0.05) -> float:
    """GFLOP/s that one core reaches on multiply-adds alone, data in registers; the best of several short runs.

    Examples
    --------
    >>> fma_peak(seconds=0.01) > 0
    True
    """
    kernel = load("peak", dtype)
    x = np.zeros(64, dtype)
    flops_a_round = 2 * _VECTORS * (64 // x.itemsize)
    rounds, best = 20_000, 0.0
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        kernel(x.ctypes.data, rounds)
        now = time.perf_counter()
        best = max(best, flops_a_round * rounds / (now - start) / 1e9)
        if now > end:
            return best
