"""Checks of gradients, for who brings a backward."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from subquad.patterns.base import Pattern
from subquad.testing import oracle
from subquad.testing.cases import emptied, few, oblong, partial, plain, square
from subquad.testing.frames import Frame
from subquad.testing.trial import NAMES, Array, Case, Claims, Dtype, Mismatch, Trial, check, computed_in


def _inputs(
    trial: Trial,
    n_q: int,
    n_k: int,
    d: int = 16,
    d_v: int | None = None,
    leading: tuple[int, ...] = (),
    kv_leading: tuple[int, ...] | None = None,
    *,
    dtype: Any,
) -> tuple[Array, Array, Array, Array]:
    query, key, value = trial.arrays(n_q, n_k, d, d_v, leading, kv_leading, dtype)
    return trial.normal((*query.shape[:-1], value.shape[-1]), dtype), query, key, value


def _right(trial: Trial, found: Any, arrays: Any, pattern: Pattern, scale: float | None = None) -> None:
    """Within rounding of the oracle: relative to the sum of the magnitudes of what is added up."""
    grad_out, query, key, value = arrays
    expected, magnitudes = oracle.gradients(grad_out, query, key, value, pattern, scale)
    group = math.prod(query.shape[:-2]) // max(1, math.prod(key.shape[:-2]))
    longest, d = max(group * query.shape[-2], key.shape[-2]), max(query.shape[-1], value.shape[-1])
    score = oracle.largest_score(query, key, scale) + math.log(longest + 1)
    relative = 2 * oracle.tolerance(query.dtype, longest, d, score, 1.0)
    least = max(1e6 * float(np.finfo(computed_in(query.dtype)).tiny), 2.0**-24 if query.dtype == np.float16 else 0.0)
    for name, x, right, size in zip(NAMES, found, expected, magnitudes, strict=True):
        trial.near(f"the gradient of {name}", x, right, relative * size + least)


def _same(trial: Trial, what: str, found: Any, expected: Any) -> None:
    for name, x, right in zip(NAMES, found, expected, strict=True):
        trial.same(f"{what}: the gradient of {name}", x, right)


NEEDS = ("return_lse", "backward")


@check("gradients", square, *NEEDS)
def gradients(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Gradients are those of dense float64 attention, in the dtype of the inputs."""
    arrays = _inputs(trial, n_q, n_k, 16, 24, (2,), dtype=dtype)
    found = trial.gradients(*arrays, pattern)
    _right(trial, found, arrays, pattern)
    for name, x in zip(NAMES, found, strict=True):
        if x.dtype != dtype:
            raise Mismatch(f"the gradient of {name} has dtype {x.dtype}, not {dtype}")


@check("gradients", oblong, *NEEDS)
def gradients_alignment(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """So they are at other numbers of keys than of queries."""
    arrays = _inputs(trial, n_q, n_k, 16, 7, dtype=dtype)
    _right(trial, trial.gradients(*arrays, pattern), arrays, pattern)


@check("gradients", plain, "scale", *NEEDS)
def gradients_scale(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """The scale is part of every gradient of a score."""
    arrays = _inputs(trial, n_q, n_k, 12, 9, dtype=dtype)
    for factor in (0.0, 0.37, -0.5):
        _right(trial, trial.gradients(*arrays, pattern, scale=factor), arrays, pattern, factor)


@check("gradients", few, *NEEDS)
def gradients_of_groups(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Query heads that share a key head add up their gradients."""
    for heads, shared in (((6,), (2,)), ((2, 4), (2, 1))):
        arrays = _inputs(trial, n_q, n_k, 8, 8, heads, shared, dtype=dtype)
        _right(trial, trial.gradients(*arrays, pattern), arrays, pattern)


@check("gradients", emptied, *NEEDS)
def gradients_without_keys(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """A row without keys, and a key that no row sees, have gradients of 0."""
    mask = oracle.mask_of(pattern, n_q, n_k)
    found = trial.gradients(*_inputs(trial, n_q, n_k, dtype=dtype), pattern)
    for name, x, there in zip(NAMES, found, (mask.any(axis=1), mask.any(axis=0), mask.any(axis=0)), strict=True):
        if x[~there].astype(bool).any():
            raise Mismatch(f"the gradient of {name} is not 0 in rows without a pair")


@check("gradients", partial, *NEEDS)
def gradients_nan_outside(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """A key that holds NaN changes the gradients of rows that attend it, and of their keys, and no other bit."""
    grad_out, query, key, value = _inputs(trial, n_q, n_k, dtype=dtype)
    mask, clean = oracle.mask_of(pattern, n_q, n_k), trial.gradients(grad_out, query, key, value, pattern)
    for j in (0, n_k // 2, n_k - 1):
        held = key[j].copy(), value[j].copy()
        key[j], value[j] = np.nan, np.inf
        with np.errstate(all="ignore"):
            found = trial.gradients(grad_out, query, key, value, pattern)
        rows = mask[:, j]
        keys = mask[rows].any(axis=0)
        for name, x, was, reached in zip(NAMES, found, clean, (rows, keys, keys), strict=True):
            trial.same(f"beyond the reach of key {j}: the gradient of {name}", x[~reached], was[~reached])
        key[j], value[j] = held


@check("gradients", plain, "num_threads", *NEEDS)
def gradients_threads(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Gradients do not depend on the number of threads, nor on the run."""
    grad_out, *arrays = _inputs(trial, n_q, n_k, 16, 16, (2, 4), (2, 2), dtype=dtype)
    given = grad_out, *arrays, *trial.both(*arrays, pattern), pattern
    expected = trial.backward(*given, num_threads=1)
    for count in (2, 3, 16, None):
        _same(trial, f"num_threads={count}", trial.backward(*given, num_threads=count), expected)


@check("gradients", plain, *NEEDS)
def gradients_alone(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Gradients of a head have the same bits alone as in a batch, and in any order of batches."""
    arrays = _inputs(trial, n_q, n_k, 8, 8, (3, 2), dtype=dtype)
    found, order = trial.gradients(*arrays, pattern), trial.rng.permutation(3)
    _same(trial, "one head alone", trial.gradients(*(x[1, 1] for x in arrays), pattern), [x[1, 1] for x in found])
    again = trial.gradients(*(x[order][:, ::-1] for x in arrays), pattern)
    _same(trial, "in another order", again, [x[order][:, ::-1] for x in found])


@check("gradients", square, *NEEDS)
def gradients_frames(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """A frame of NaN around every array of a backward changes no bit, nor itself; inputs are not written."""
    arrays = _inputs(trial, n_q, n_k, 7, 5, dtype=dtype)
    given = (*arrays, *trial.both(*arrays[1:], pattern))
    framed, expected = [Frame(x) for x in given], trial.backward(*given, pattern)
    _same(trial, "inside of frames", trial.backward(*(x.view for x in framed), pattern), expected)
    for frame, x in zip(framed, given, strict=True):
        frame.assert_untouched()
        trial.same("an input of the backward, once the call is over,", frame.view, x)


def _turned(claims: Claims) -> Iterator[Case]:
    return (case for case in itertools.chain(plain(claims), oblong(claims)) if claims.default)


@check("gradients", _turned, *NEEDS)
def duality(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """The transposed pattern, queries and keys exchanged, gives the gradients of queries and keys exchanged.

    With an lse that is the same for all rows and an output of 0, a score's gradient exp(s - lse) (g . v) does not tell
    (query, gradient of the output) from (key, value).
    """
    grad_out, query, key, value = _inputs(trial, n_q, n_k, 16, 16, dtype=dtype)

    def halves(g: Array, q: Array, k: Array, v: Array, of: Pattern) -> tuple[Array, ...]:
        level = np.full(len(q), 2.0, computed_in(dtype))
        return trial.backward(g, q, k, v, np.zeros_like(g), level, of)[:2]

    of_query, of_key = halves(grad_out, query, key, value, pattern)
    turned_query, turned_key = halves(value, key, query, grad_out, pattern.transpose())
    for name, x, other in (("query", of_query, turned_key), ("key", of_key, turned_query)):
        size = float(np.abs(oracle.wide(other)).max(initial=0.0))
        allowed = 64 * math.sqrt(max(n_q, n_k)) * float(np.spacing(np.array(size, dtype)))
        trial.near(f"the gradient of {name}", x, other, allowed)


@check("gradients", plain, *NEEDS)
def gradients_balance(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Query times its gradient and key times its gradient have the same sum, as scores are bilinear in both."""
    arrays = _inputs(trial, n_q, n_k, dtype=dtype)
    of_query, of_key, of_value = (oracle.wide(x) for x in trial.gradients(*arrays, pattern))
    grad_out, query, key, _ = map(oracle.wide, arrays)
    attended = oracle.mask_of(pattern, n_q, n_k).any(axis=1)
    slack = 64 * float(np.finfo(dtype).eps) if dtype.name != "bfloat16" else 0.5
    sides = [(of_query * query).sum(), (of_key * key).sum()]
    trial.near("the sum over queries", np.array(sides[0]), np.array(sides[1]), slack * abs(of_query * query).sum())
    given = np.abs(grad_out).sum(axis=0)
    trial.near("the sum of the gradient of values", of_value.sum(axis=0), grad_out[attended].sum(axis=0), slack * given)
