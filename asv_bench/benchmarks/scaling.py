"""Growth as a single number: exponents of time and memory, shares and ratios. They hardly move from run to run.

Times are processor times on one thread, the least of several that take turns, so that a busy neighbour shows in none of
them; ratios are of times taken in turn.
"""

import functools
import time

import numpy as np

import subquad
from subquad import dense
from subquad.complexity.memory import extra_memory
from subquad.kernels.peak import fma_peak

from .common import DIM, PATTERNS, THREADS, inputs, warm

N = 4096
SECONDS, ROUNDS = 10, 5  # of measuring one exponent, at least
# Rows of random keys are so short that all of them stay in a core's own cache: else the exponent tells how busy the
# cache that it shares with others is.
DIMS = {"random": 8}
FACTORS = {"banded": lambda w: subquad.Banded(w), "longformer": lambda w: subquad.longformer(w, range(16))}


class Exponent:
    """Of n in the time: 2 for dense and causal, 1 for the others."""

    version = "3"
    timeout = 180
    unit = "exponent"
    param_names = ("pattern",)
    params = (["banded", "longformer", "random", "bigbird", "causal", "dense"],)

    def setup(self, name):
        warm(PATTERNS[name], 1024)

    def track_exponent_n(self, name):
        # beyond twice the window, where the order is to be seen
        return exponent(lambda n: PATTERNS[name], [1024, 2048, 4096, 8192, 16_384], lambda n: n, DIMS.get(name, DIM))


class WindowExponent:
    """Of the window in the time, at one n: 1, once windows are wider than a tile."""

    version = "2"
    timeout = 120
    unit = "exponent"
    param_names = ("pattern",)
    params = (list(FACTORS),)

    def setup(self, name):
        warm(FACTORS[name](64), N)

    def track_exponent_w(self, name):
        return exponent(FACTORS[name], [64, 128, 256, 512], lambda w: N)


class MemoryExponent:
    """Of n in the memory beyond inputs and output: at most 1. Each n in a process of its own."""

    version = "2"
    timeout = 180
    unit = "exponent"
    param_names = ("pattern",)
    params = (["banded", "random"],)

    def track_memory_exponent(self, name):
        # each uses several megabytes and more, far above the resolution
        sizes = [(1 << 18) << k if name == "banded" else (1 << 14) << k for k in range(4)]
        return slope(sizes, [extra_memory(PATTERNS[name], n, d=8, num_threads=THREADS) for n in sizes])


class Share:
    """Useful FLOPs (4 d a pair) over what multiply-adds in registers reach in the same moment."""

    version = "2"
    timeout = 120
    unit = "of peak"
    param_names = ("pattern",)
    params = (["banded", "strided", "random", "longformer", "bigbird"],)

    def setup(self, name):
        warm(PATTERNS[name], N)

    def track_share_of_peak(self, name):
        work = 4 * DIM * inputs(N)[0].shape[0] * PATTERNS[name].nnz(N, N) / 1e9
        shares = [work / least(lambda: call(name), 2) / peak() for _ in range(5)]
        return float(np.median(shares))


class Versus:
    """Time of dense attention in NumPy (BLAS, its own threads) over that of the pattern, taken in turn."""

    version = "1"
    timeout = 180
    unit = "times faster than dense NumPy"
    param_names = ("pattern",)
    params = (["banded", "strided", "random", "longformer", "bigbird"],)

    def setup(self, name):
        warm(PATTERNS[name], N)
        dense.attention(*inputs(256))

    def track_vs_dense(self, name):
        ratios = []
        for _ in range(3):
            sparse = least(lambda: call(name), 3)
            ratios.append(least(lambda: dense.attention(*inputs(N)), 1) / sparse)
        return float(np.median(ratios))


def peak():
    """Of three looks at the machine the best: it is timed on the wall, where a neighbour may have taken the core."""
    return max(fma_peak(seconds=0.01) for _ in range(3))


def call(name):
    subquad.attention(*inputs(N), PATTERNS[name], num_threads=THREADS)


def exponent(pattern_of, sizes, n_of, d=DIM):
    """Of a size in the time of one head, where `pattern_of(size)` attends over `n_of(size)` tokens.

    Sizes take turns, so a busy minute falls on all of them, and the least time of each counts.
    """
    rng = np.random.default_rng(0)
    made = [
        (pattern_of(size), *(rng.standard_normal((1, n_of(size), d), dtype=np.float32) for _ in range(4)))
        for size in sizes
    ]

    def attend(pattern, query, key, value, out):
        subquad.attention(query, key, value, pattern, out=out, num_threads=THREADS)

    for arguments in made:
        attend(*arguments)  # builds the plan
    found, rounds, end = np.full(len(sizes), np.inf), 0, time.perf_counter() + SECONDS
    while rounds < ROUNDS or time.perf_counter() < end:
        found = np.minimum(found, [least(functools.partial(attend, *arguments), 2) for arguments in made])
        rounds += 1
    return slope(sizes, found)


def slope(sizes, values):
    """Of the logarithms. `fit` would weigh a constant beside the power, and change its mind from run to run, by 0.2."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def least(function, times):
    """Least processor time of a call."""
    found = []
    for _ in range(times):
        start = time.process_time()
        function()
        found.append(time.process_time() - start)
    return min(found)
