"""Patterns, sizes and inputs that the benchmark modules share."""

import functools

import numpy as np

import subquad

# One thread everywhere: a figure must not depend on what else runs on the machine's other cores.
THREADS = 1
HEADS = 4
DIM = 64

PATTERNS = {
    "dense": subquad.Dense(),
    "causal": subquad.Causal(),
    "banded": subquad.Banded(256),
    "strided": subquad.Strided(64),
    "global": subquad.Global(range(16)),
    "random": subquad.Random(64, seed=0),
    "longformer": subquad.longformer(256, range(16)),
    "bigbird": subquad.bigbird(64),
}
# Patterns made for one n, a multiple of 1024, and those that the first commits did not have.
SIZED = {
    "fixed": lambda n: subquad.sparse_transformer_fixed(64, 2),
    "packed": lambda n: subquad.Packed([1000, 24] * (n // 1024)) & subquad.Causal(),
    "neighborhood": lambda n: subquad.Neighborhood((n // 64, 64), 7),
}


def pattern_of(name: str, n: int) -> subquad.Pattern:
    """The pattern of that name, at this length."""
    return SIZED[name](n) if name in SIZED else PATTERNS[name]


@functools.cache
def inputs(n: int, heads: int = HEADS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Query, key and value (heads, n, DIM); cached because asv repeats `setup` before every sample."""
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((heads, n, DIM), dtype=np.float32) for _ in range(3))
    return query, key, value


@functools.cache
def warm(pattern: subquad.Pattern, n: int, threads: int = THREADS) -> None:
    """One call that compiles or loads the kernel and leaves the plan in its memo."""
    subquad.attention(*inputs(n), pattern, num_threads=threads)
