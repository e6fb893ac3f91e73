"""Time of `subquad.attention`, plan and kernel warm."""

import subquad

from .common import PATTERNS, SIZED, THREADS, inputs, pattern_of, warm


class Pattern:
    """Each pattern at two lengths: a factor of 4 in n is a factor of 16 for dense and 4 for what is linear."""

    version = "1"
    timeout = 120
    param_names = ("pattern", "n")
    params = ([*PATTERNS, *SIZED], [2048, 8192])

    def setup(self, name, n):
        warm(pattern_of(name, n), n)

    def time_attention(self, name, n):
        subquad.attention(*inputs(n), pattern_of(name, n), num_threads=THREADS)


class Window:
    """Narrow windows are all edges, wide ones all full tiles."""

    version = "1"
    param_names = ("window",)
    params = ([8, 32, 128, 512],)
    n = 8192

    def setup(self, window):
        warm(subquad.Banded(window), self.n)

    def time_banded(self, window):
        subquad.attention(*inputs(self.n), subquad.Banded(window), num_threads=THREADS)


class Threads:
    """The same call on one thread and on two (needs two cores; see README.md on pinning)."""

    version = "1"
    param_names = ("threads",)
    params = ([1, 2],)
    n = 8192

    def setup(self, threads):
        warm(PATTERNS["banded"], self.n, threads)

    def time_banded(self, threads):
        subquad.attention(*inputs(self.n), PATTERNS["banded"], num_threads=threads)
