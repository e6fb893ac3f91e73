"""What memory gives now, to hold kernels against that do little with what they read."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from subquad.kernels.build import load


class Bandwidth(NamedTuple):
    """GB/s of one thread: of a plain read, and of the triad a = b + s c, which moves three streams."""

    read: float
    triad: float


def memory_bandwidth(megabytes: int = 96, rounds: int = 5) -> Bandwidth:
    """The medians of some rounds over arrays of `megabytes` in all, which no cache should hold.

    The triad counts as STREAM counts it: two streams read and one written, nothing for the lines that are read because
    they are about to be written. The kernels come from the toolchain of all others. On a machine shared with others
    measure beside what is held against it.

    Examples
    --------
    >>> memory_bandwidth(megabytes=3, rounds=1).read > 0
    True
    """
    n = megabytes * (1 << 20) // 4 // 192 * 192  # three parts of whole groups of four vectors
    x, sums = np.zeros(n, np.float32), np.zeros(16, np.float32)
    x[:] = 1  # zeros may all be one page
    start, third = x.ctypes.data, 4 * (n // 3)
    kernels = load("read", "float32"), load("triad", "float32")
    found = []
    for _ in range(rounds):
        begin = time.thread_time()
        kernels[0](start, sums.ctypes.data, n)
        middle = time.thread_time()
        kernels[1](start, start + third, start + 2 * third, 0.5, n // 3)
        found.append((middle - begin, time.thread_time() - middle))
    read, triad = np.median(found, axis=0)
    return Bandwidth(x.nbytes / float(read) / 1e9, x.nbytes / float(triad) / 1e9)
