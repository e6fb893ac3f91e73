"""Checks with no tolerance: what may not change a bit, and what may not reach a row."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from subquad.patterns.base import Pattern
from subquad.testing.cases import few, partial, plain, tails
from subquad.testing.oracle import mask_of
from subquad.testing.trial import Case, Claims, Dtype, Mismatch, Trial, check

POISON = {"NaN": np.nan, "inf": np.inf, "-inf": -np.inf}


def _poisoned(claims: Claims) -> Iterator[Case]:
    return (case | {"poison": poison} for case, poison in itertools.product(partial(claims), POISON))


@check("isolation", _poisoned)
def nan_outside(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype, poison: str) -> None:
    """Keys and values outside of the pattern change no bit, not even where they hold NaN or inf."""
    query, key, value = trial.arrays(n_q, n_k, leading=(2,), dtype=dtype)
    mask, clean = mask_of(pattern, n_q, n_k), trial.out(query, key, value, pattern)
    for j in sorted({0, n_k // 3, n_k - 1, int(mask.sum(axis=0).argmin())}):
        for arrays in ((key,), (value,), (key, value)):
            held = [x[:, j].copy() for x in arrays]
            for x in arrays:
                x[:, j] = POISON[poison]
            blind = ~mask[:, j]
            with np.errstate(all="ignore"):
                found = trial.out(query, key, value, pattern)
            trial.same(f"rows that may not see key {j}: the output", found[:, blind], clean[:, blind])
            for x, kept in zip(arrays, held, strict=True):
                x[:, j] = kept


@check("isolation", plain)
def nan_inside(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """A NaN in an allowed key or value reaches the rows that attend it."""
    query, key, value = trial.arrays(n_q, n_k, dtype=dtype)
    mask = mask_of(pattern, n_q, n_k)
    for j, x in itertools.product((0, n_k // 2, n_k - 1), (key, value)):
        held = x[j].copy()
        x[j] = np.nan
        with np.errstate(all="ignore"):
            found = trial.out(query, key, value, pattern)
        if not np.isnan(found[mask[:, j]]).all():
            raise Mismatch(f"a row that attends key {j}, which holds NaN, does not become NaN")
        x[j] = held


@check("isolation", plain)
def nan_in_a_query(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """A NaN in a query stays in its row and head."""
    query, key, value = trial.arrays(n_q, n_k, leading=(2,), dtype=dtype)
    clean, i = trial.out(query, key, value, pattern), n_q // 2
    query[1, i, 3] = np.nan
    with np.errstate(all="ignore"):
        found = trial.out(query, key, value, pattern).copy()
    if not np.isnan(found[1, i]).all() == mask_of(pattern, n_q, n_k)[i].any():
        raise Mismatch("the row of a query that holds NaN is not NaN, or is though it has no key")
    found[1, i] = clean[1, i]
    trial.same("rows of other queries: the output", found, clean)


@check("bits", plain, "num_threads")
def threads(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """The result does not depend on the number of threads."""
    arrays = trial.arrays(n_q, n_k, leading=(2, 4), kv_leading=(2, 2), dtype=dtype)
    expected = trial.out(*arrays, pattern, num_threads=1)
    for count in (2, 3, 5, 16, None):
        trial.same(f"with num_threads={count} the output", trial.out(*arrays, pattern, num_threads=count), expected)


@check("bits", few)
def repeats(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Fifty calls give the same bits."""
    arrays = trial.arrays(n_q, n_k, leading=(3,), dtype=dtype)
    expected = trial.out(*arrays, pattern)
    for _ in range(50):
        trial.same("the output", trial.out(*arrays, pattern), expected)


@check("bits", plain)
def head_alone(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """A head has the same bits alone as in a batch."""
    query, key, value = trial.arrays(n_q, n_k, leading=(2, 4), kv_leading=(2, 2), dtype=dtype)
    out = trial.out(query, key, value, pattern)
    for b, h in ((0, 0), (0, 3), (1, 2)):
        alone = trial.out(query[b, h], key[b, h // 2], value[b, h // 2], pattern)
        trial.same(f"head {h} of batch {b} alone: the output", alone, out[b, h])


@check("bits", tails)
def row_alone(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype, rows: int) -> None:
    """The last rows have the same bits alone, as in decoding, as among all rows."""
    query, key, value = trial.arrays(n_q, n_k, leading=(2,), dtype=dtype)
    out = trial.out(query, key, value, pattern)
    alone = trial.out(query[:, -rows:], key, value, pattern)
    trial.same(f"the last {rows} rows alone: the output", alone, out[:, -rows:])


@check("bits", plain)
def permuted(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Batches and heads in another order give the same bits in that order."""
    arrays = trial.arrays(n_q, n_k, leading=(3, 4), dtype=dtype)
    out, batches, heads = trial.out(*arrays, pattern), trial.rng.permutation(3), trial.rng.permutation(4)
    found = trial.out(*(x[batches][:, heads] for x in arrays), pattern)
    trial.same("the permuted output", found, out[batches][:, heads])


@check("bits", few)
def concurrent(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Calls from several Python threads at once give what each gives alone."""
    many = [trial.arrays(n_q, n_k, leading=(2,), dtype=dtype) for _ in range(4)]
    expected = [trial.out(*arrays, pattern) for arrays in many]

    def call(arrays: Any) -> Any:
        return [trial.out(*arrays, pattern) for _ in range(3)]

    with ThreadPoolExecutor(4) as pool:
        for outs, right in zip(pool.map(call, many), expected, strict=True):
            for out in outs:
                trial.same("the output", out, right)
