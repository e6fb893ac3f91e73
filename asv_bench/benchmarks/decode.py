"""A step of decoding: what it takes, what share of the memory's bandwidth it reaches, what Python adds to it."""

import functools
import time

import numpy as np

import subquad
from subquad.kernels.bandwidth import memory_bandwidth

from .common import THREADS

HEADS, DIM = 32, 128
ROUNDS = 15


@functools.cache
def filled(window: int, heads: int = HEADS, dim: int = DIM) -> subquad.KVCache:
    """A cache whose ring has wrapped around."""
    cache = subquad.KVCache(subquad.Banded((window - 1, 0)), heads, dim)
    x = np.random.default_rng(0).standard_normal((heads, 2 * window, dim), dtype=np.float32)
    cache.append(x, x, rows=1)
    cache.append(x[:, : window // 2], x[:, : window // 2], rows=1)
    step(cache, query(heads, dim))
    return cache


@functools.cache
def query(heads: int, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((heads, 1, dim), dtype=np.float32)


def step(cache: subquad.KVCache, q: np.ndarray) -> None:
    cache.attend(q, num_threads=THREADS)


class Step:
    """One token: 32 heads of keys; 32 of queries, or 128 of which four share keys."""

    version = "1"
    param_names = ("window", "group")
    params = ([64, 4096], [1, 4])

    def setup(self, window, group):
        self.cache, self.query = filled(window), query(HEADS * group)
        self.token = self.query[:HEADS]
        step(self.cache, self.query)

    def time_attend(self, window, group):
        step(self.cache, self.query)

    def time_append_and_attend(self, window, group):
        self.cache.append(self.token, self.token)
        step(self.cache, self.query)


class Bandwidth:
    """Bytes of keys and values of a step over what plain reading and the triad of STREAM reach in the same rounds."""

    version = "1"
    timeout = 120
    window = 4096

    def setup(self):
        filled(self.window)
        memory_bandwidth(megabytes=3, rounds=1)

    def track_share_of_read(self):
        return shares(self.window)[0]

    def track_share_of_triad(self):
        return shares(self.window)[1]


class Overhead:
    """A step over a window of 64 that is next to no work, one head of one column: all else is Python and the call."""

    version = "1"

    def setup(self):
        self.cache, self.query = filled(64, 1, 1), query(1, 1)

    def track_attend(self):
        return min(timed(self.cache, self.query) for _ in range(2000)) * 1e6


Bandwidth.track_share_of_read.unit = "of a plain read"
Bandwidth.track_share_of_triad.unit = "of the triad"
Overhead.track_attend.unit = "microseconds"


def timed(cache: subquad.KVCache, q: np.ndarray) -> float:
    """Processor time of a step: waiting for a turn on a busy machine does not count."""
    start = time.thread_time()
    step(cache, q)
    return time.thread_time() - start


def shares(window: int) -> tuple[float, float]:
    """Medians of ratios taken in turn: a neighbour on the machine slows both sides."""
    cache, q = filled(window), query(HEADS)
    n_bytes = 2 * 4 * HEADS * window * DIM
    found = []
    for _ in range(ROUNDS):
        reached = n_bytes / timed(cache, q) / 1e9
        memory = memory_bandwidth(rounds=1)
        found.append((reached / memory.read, reached / memory.triad))
    read, triad = np.median(found, axis=0)
    return float(read), float(triad)
