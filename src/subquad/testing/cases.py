"""Patterns and sizes that checks are tried on."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator

import numpy as np

from subquad import (
    Banded,
    BlockSparse,
    Causal,
    Columns,
    Dense,
    Explicit,
    Global,
    LogSparse,
    Neighborhood,
    Packed,
    Random,
    Strided,
    bigbird,
    dilated,
    longformer,
    streaming,
)
from subquad.patterns.base import Pattern
from subquad.testing.oracle import mask_of
from subquad.testing.trial import Case, Claims


def default_patterns(n: int) -> tuple[Pattern, ...]:
    """Every family, and expressions of them; some are for n queries and n keys alone."""
    rows = next(x for x in range(math.isqrt(n), 0, -1) if n % x == 0)
    blocks = np.random.default_rng(0).random((-(-n // 8), -(-n // 8))) < 0.3
    lengths = [n // 4, 0, n // 3, n - n // 4 - n // 3]
    patterns: list[Pattern] = [
        Dense(),
        Causal(),
        Banded(0),
        Banded(3),
        Banded((11, 2)),
        Banded((None, 3)),
        Strided(7),
        Strided(16) | Banded(3),
        Columns(7, 2) & Causal(),
        Columns(7, 2).transpose() & Causal(),
        Global([0, 5]),
        Global([1, 2], columns=False),
        Random(5, 0),
        Random(2, 1, block=16),
        LogSparse(),
        longformer(8, 3),
        bigbird(8),
        streaming(4, 16),
        dilated(4, 3),
        Dense() - Banded(10),
        Causal() - Random(6, 8),
        BlockSparse(blocks, 8),
        Packed(lengths),
        Packed(lengths) & Causal(),
        Neighborhood((rows, n // rows), (min(3, rows), min(5, n // rows))),
    ]
    if importlib.util.find_spec("scipy"):
        import scipy.sparse

        patterns.append(Explicit(scipy.sparse.csr_array(np.random.default_rng(1).random((n, n)) < 0.1)))
    return tuple(patterns)


def oblongs(n: int) -> list[tuple[int, int]]:
    """One query, fewer queries than keys, more queries than keys."""
    return [(1, n), (n // 3 + 1, n), (n, n // 3 + 1)]


def square(claims: Claims) -> Iterator[Case]:
    """Every pattern in every dtype, as many keys as queries."""
    n = claims.size
    for dtype in claims.dtypes:
        for pattern in claims.fitting(n, n):
            yield {"pattern": pattern, "n_q": n, "n_k": n, "dtype": dtype}


def plain(claims: Claims) -> Iterator[Case]:
    """Every pattern, as many keys as queries."""
    return (case for case in square(claims) if case["dtype"] == claims.dtype)


def oblong(claims: Claims) -> Iterator[Case]:
    """Every pattern, other numbers of keys than of queries."""
    for n_q, n_k in oblongs(claims.size):
        for pattern in claims.fitting(n_q, n_k):
            yield {"pattern": pattern, "n_q": n_q, "n_k": n_k, "dtype": claims.dtype}


def few(claims: Claims) -> Iterator[Case]:
    """Up to eight patterns, evenly spaced."""
    cases = list(plain(claims))
    yield from cases[:: -(-len(cases) // 8) or 1]


def emptied(claims: Claims) -> Iterator[Case]:
    """Patterns and sizes at which some row has no key."""
    for case in (*plain(claims), *oblong(claims)):
        if not mask_of(case["pattern"], case["n_q"], case["n_k"]).any(axis=1).all():
            yield case


def partial(claims: Claims) -> Iterator[Case]:
    """Patterns and sizes at which some pair is not allowed."""
    for case in (*plain(claims), *oblong(claims)):
        if not mask_of(case["pattern"], case["n_q"], case["n_k"]).all():
            yield case


def tails(claims: Claims) -> Iterator[Case]:
    """Patterns that mean the same to the last rows alone."""
    for case in plain(claims):
        pattern, n = case["pattern"], case["n_k"]
        for rows in (1, 5):
            fits = pattern in claims.fitting(rows, n)
            if fits and np.array_equal(mask_of(pattern, n, n)[-rows:], mask_of(pattern, rows, n)):
                yield case | {"rows": rows}
