"""Checks of one call against others: what must agree up to rounding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from subquad.attention import merge
from subquad.patterns import Banded, Dense
from subquad.patterns.base import Pattern
from subquad.testing.cases import plain
from subquad.testing.oracle import mask_of
from subquad.testing.trial import Case, Claims, Dtype, Mismatch, Trial, check


def _pieces(claims: Claims) -> Iterator[Case]:
    n = claims.size
    return (
        {"n_q": n_q, "n_k": n, "dtype": dtype, "pieces": pieces}
        for n_q, dtype, pieces in itertools.product((1, n), claims.dtypes, range(2, 9))
        if Dense() in claims.patterns and dtype.itemsize > 2
    )


@check("relations", _pieces, "return_lse")
def pieces(trial: Trial, n_q: int, n_k: int, dtype: Dtype, pieces: int) -> None:
    """Keys in two to eight pieces, attended one by one and merged, give what all keys give."""
    query, key, value = trial.arrays(n_q, n_k, leading=(2,), dtype=dtype)
    cuts = [0, *sorted(trial.rng.choice(np.arange(1, n_k), pieces - 1, replace=False)), n_k]
    parts = [slice(*pair) for pair in itertools.pairwise(cuts)]
    out, lse = trial.both(query, key[:, parts[0]], value[:, parts[0]], Dense())
    for part in parts[1:]:
        out, lse = merge(out, lse, *trial.both(query, key[:, part], value[:, part], Dense()))
    trial.right(out, (query, key, value), Dense())
    trial.right_lse(lse, (query, key, value), Dense())


def _with_complement(claims: Claims) -> Iterator[Case]:
    whole = claims.default or Dense() in claims.patterns
    return (case for case in plain(claims) if whole and case["dtype"].itemsize > 2)


@check("relations", _with_complement, "return_lse")
def complement(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """A pattern and what it leaves out, merged, give dense attention."""
    arrays = trial.arrays(n_q, n_k, leading=(2,), dtype=dtype)
    near, far = (trial.both(*arrays, part) for part in (pattern, Dense() - pattern))
    out, lse = merge(*near, *far)
    trial.right(out, arrays, Dense())
    trial.right_lse(lse, arrays, Dense())


@check("relations", lambda claims: (case for case in plain(claims) if isinstance(case["pattern"], Banded)))
def translation(trial: Trial, pattern: Banded, n_q: int, n_k: int, dtype: Dtype) -> None:
    """A band that moves along with its tokens gives the same rows."""
    arrays = trial.arrays(n_q, n_k, dtype=dtype)
    query, key, value = arrays
    out, mask = trial.out(*arrays, pattern), mask_of(pattern, n_q, n_k)
    for cut in (1, n_k // 5, n_k // 2):
        there = ~mask[cut:, :cut].any(axis=1)  # rows that see nothing of what is cut away
        moved = trial.out(query[cut:], key[cut:], value[cut:], pattern)
        largest = float(np.abs(value.astype(np.float64)).max())
        allowed = 64 * float(np.spacing(np.array(largest, dtype)))
        trial.near(f"rows {cut} tokens further on: the output", moved[there], out[cut:][there], allowed)


def _causal(claims: Claims) -> Iterator[Case]:
    """Patterns whose every row means the same to the query alone that is the last."""
    for case in plain(claims):
        pattern, n = case["pattern"], case["n_k"]
        mask, steps = mask_of(pattern, n, n), (1, n // 4, n // 2 + 1, n)
        fits = all(pattern in claims.fitting(1, m) for m in steps)
        alone = fits and all(np.array_equal(mask[m - 1 : m, :m], mask_of(pattern, 1, m)) for m in steps)
        if alone and not np.triu(mask, 1).any():
            yield case


@check("relations", _causal)
def decode(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """One query at a time over the keys so far gives the rows of one call over all."""
    query, key, value = trial.arrays(n_q, n_k, leading=(2,), dtype=dtype)
    out = trial.out(query, key, value, pattern)
    mask, largest = mask_of(pattern, n_q, n_k), float(np.abs(value.astype(np.float64)).max())
    for m in range(1, n_k + 1, max(1, n_k // 20)):
        step = trial.out(query[:, m - 1 : m], key[:, :m], value[:, :m], pattern)
        if np.array_equal(mask[m - 1 : m, :m], mask_of(pattern, 1, m)):
            allowed = 64 * float(np.spacing(np.array(largest, dtype)))
            trial.near(f"step {m}: the output", step, out[:, m - 1 : m], allowed)


@check("relations", plain)
def linear_in_values(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Twice the values give exactly twice the output, unless it is rounded to half precision."""
    query, key, value = trial.arrays(n_q, n_k, dtype=dtype)
    out, twice = trial.out(query, key, value, pattern), trial.out(query, key, 2 * value, pattern)
    different = np.argwhere(twice != 2 * out)
    if len(different) and dtype.itemsize > 2:
        raise Mismatch(
            f"{len(different)} elements are not twice as large, the first at {tuple(map(int, different[0]))}"
        )
