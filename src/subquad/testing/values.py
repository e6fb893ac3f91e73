"""Checks against the definition: what attention computes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from subquad.patterns import Banded, Causal
from subquad.patterns.base import Pattern
from subquad.testing import oracle
from subquad.testing.cases import emptied, few, oblong, plain, square
from subquad.testing.trial import Case, Claims, Dtype, Mismatch, Trial, check, computed_in


@check("values", square)
def dense_oracle(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """The output is that of dense float64 attention over the mask of the pattern."""
    arrays = trial.arrays(n_q, n_k, 16, 24, (2,), dtype=dtype)
    trial.right(trial.out(*arrays, pattern), arrays, pattern)


@check("values", oblong)
def alignment(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Query i stands at position i + n_k - n_q: the last query beside the last key, at any sizes."""
    arrays = trial.arrays(n_q, n_k, dtype=dtype)
    trial.right(trial.out(*arrays, pattern), arrays, pattern)


@check("values", few, "scale")
def scale(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Scores are multiplied by `scale`: d ** -0.5 unless given, and 0 is legal."""
    arrays = trial.arrays(n_q, n_k, 12, dtype=dtype)
    for factor in (None, 0.0, 0.37, -0.5, 1, 2.5):
        trial.right(trial.out(*arrays, pattern, scale=factor), arrays, pattern, factor)


@check("values", square, "return_lse")
def lse(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """lse is the natural log of each row's sum of exponentials, float32 or float64."""
    arrays = trial.arrays(n_q, n_k, dtype=dtype, leading=(2,))
    out, found = trial.both(*arrays, pattern)
    trial.right_lse(found, arrays, pattern)
    if found.dtype != computed_in(dtype):
        raise Mismatch(f"lse has dtype {found.dtype}, not {computed_in(dtype)}")
    trial.right(out, arrays, pattern)


def _groups(claims: Claims) -> Iterator[Case]:
    heads = [((4,), (2,)), ((6,), (2,)), ((3,), (1,)), ((2, 4), (2, 2))]
    return (case | {"heads": x, "shared": y} for case, (x, y) in itertools.product(few(claims), heads))


@check("values", _groups)
def grouped_heads(
    trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype, heads: tuple[int, ...], shared: tuple[int, ...]
) -> None:
    """Neighbouring query heads share a key head: head h that of number h // (heads / key heads)."""
    arrays = trial.arrays(n_q, n_k, 16, 8, heads, shared, dtype)
    trial.right(trial.out(*arrays, pattern), arrays, pattern)


def _leading(claims: Claims) -> Iterator[Case]:
    axes: list[tuple[int, ...]] = [(), (1,), (3,), (1, 1), (2, 3)]
    return (case | {"leading": x} for case, x in itertools.product(few(claims), axes))


@check("values", _leading)
def leading_axes(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype, leading: tuple[int, ...]) -> None:
    """Leading axes are none, (heads,) or (batch, heads)."""
    arrays = trial.arrays(n_q, n_k, leading=leading, dtype=dtype)
    trial.right(trial.out(*arrays, pattern), arrays, pattern)


def _widths(claims: Claims) -> Iterator[Case]:
    pairs = [(1, 1), (7, 3), (8, 60), (33, 15), (64, 64), (100, 129)]
    return (case | {"d": d, "d_v": d_v} for case, (d, d_v) in itertools.product(few(claims), pairs))


@check("values", _widths)
def widths(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype, d: int, d_v: int) -> None:
    """d and d_v are any positive integers, and need not be equal."""
    arrays = trial.arrays(n_q, n_k, d, d_v, dtype=dtype)
    trial.right(trial.out(*arrays, pattern), arrays, pattern)


@check("values", plain)
def large_scores(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Scores of thousands, either way, neither overflow nor vanish."""
    for offset in (-3000.0, 3000.0):
        query, key, value = trial.arrays(n_q, n_k, 4, dtype=dtype)
        query[:, 0], key[:, 0] = 2.0, offset
        trial.right(trial.out(query, key, value, pattern), (query, key, value), pattern)


@check("values", plain)
def late_maximum(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """A largest score that comes last rescales all that was summed before."""
    query, key, value = trial.arrays(n_q, n_k, 4, dtype=dtype)
    query[:, 0], key[:, 0] = 2.0, np.linspace(0, 12, n_k)
    trial.right(trial.out(query, key, value, pattern), (query, key, value), pattern)


@check("values", square)
def result_dtype(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """The output has the dtype of the inputs."""
    found = trial.out(*trial.arrays(n_q, n_k, 4, dtype=dtype), pattern).dtype
    if found != dtype:
        raise Mismatch(f"the output has dtype {found}, not {dtype}")


@check("values", plain)
def weights_add_up(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Where all values are 1, so is the output of each row that has a key."""
    query, key, value = trial.arrays(n_q, n_k, dtype=dtype)
    seen = oracle.mask_of(pattern, n_q, n_k).any(axis=1, keepdims=True)
    expected = np.where(seen, 1.0, np.zeros(value.shape[-1]))
    allowed = oracle.tolerance(dtype, n_k, 1, 1.0, 1.0)
    trial.near("the output", trial.out(query, key, np.ones_like(value), pattern), expected, allowed)


def _onnx(claims: Claims) -> Iterator[Case]:
    sides = itertools.product((None, 5), (None, 3), (False, True))
    for (left, right, causal), shared in itertools.product(sides, (4, 2, 1)):
        pattern = Banded((left, right)) & Causal() if causal else Banded((left, right))
        if claims.default or pattern in claims.patterns:
            case = {"pattern": pattern, "left": left, "right": right, "causal": causal, "shared": shared}
            yield case | {"dtype": claims.dtype}


@check("values", _onnx, "onnx")
def onnx(
    trial: Trial, pattern: Pattern, left: int | None, right: int | None, causal: bool, shared: int, dtype: Dtype
) -> None:
    """Windows, causality and grouped heads agree with the NumPy reference of the ONNX operator Attention."""
    from onnx.reference.ops.op_attention import _compute_attention

    arrays = trial.arrays(23, 23, 8, 6, (2, 4), (2, shared), dtype)
    options: Any = {"left_window_size": left, "right_window_size": right}
    options = {name: -1 if side is None else side for name, side in options.items()} | {"is_causal": causal}
    expected = _compute_attention(*map(oracle.wide, arrays), **options)[0]
    score, largest = oracle.largest_score(*arrays[:2]), float(np.abs(oracle.wide(arrays[2])).max())
    trial.near("the output", trial.out(*arrays, pattern), expected, oracle.tolerance(dtype, 23, 8, score, largest))


@check("empty", emptied)
def rows_without_keys(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """A row with no allowed key is 0."""
    arrays = trial.arrays(n_q, n_k, leading=(2,), dtype=dtype)
    trial.right(trial.out(*arrays, pattern), arrays, pattern)


@check("empty", emptied, "return_lse")
def lse_without_keys(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """The lse of a row with no allowed key is -inf."""
    arrays = trial.arrays(n_q, n_k, leading=(2,), dtype=dtype)
    trial.right_lse(trial.both(*arrays, pattern)[1], arrays, pattern)


def _nothing(claims: Claims) -> Iterator[Case]:
    sizes: list[tuple[int, int, tuple[int, ...]]] = [
        (0, 0, ()),
        (0, 7, (2,)),
        (7, 0, (2,)),
        (7, 7, (0, 3)),
        (7, 7, (0,)),
    ]
    for n_q, n_k, leading in sizes:
        for pattern in claims.fitting(n_q, n_k):
            yield {"pattern": pattern, "n_q": n_q, "n_k": n_k, "leading": leading, "dtype": claims.dtype}


@check("empty", _nothing)
def empty_inputs(trial: Trial, pattern: Pattern, n_q: int, n_k: int, leading: tuple[int, ...], dtype: Dtype) -> None:
    """No queries, no keys, no heads and no batches give arrays of the right shape, of zeros."""
    out = trial.out(*trial.arrays(n_q, n_k, 4, 6, leading, dtype=dtype), pattern)
    trial.near("the output", out, np.zeros((*leading, n_q, 6)), 0.0) if not n_k else None
    if out.shape != (*leading, n_q, 6):
        raise Mismatch(f"the output has shape {out.shape}, not {(*leading, n_q, 6)}")
