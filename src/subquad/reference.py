"""The dense float64 oracle: the definition, with nothing clever in it. For tests, and for whoever wants to check."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
import numpy.typing as npt

from subquad.inputs import Array, checked_inputs, checked_patterns, checked_scale
from subquad.patterns.bands import Dense
from subquad.patterns.base import Pattern

_CHUNK = 1 << 22  # scores held at a time

Floats = npt.NDArray[np.float64]


@overload
def attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    pattern: Pattern | Sequence[Pattern] = ...,
    *,
    scale: float | None = ...,
    return_lse: Literal[False] = ...,
) -> Floats: ...


@overload
def attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    pattern: Pattern | Sequence[Pattern] = ...,
    *,
    scale: float | None = ...,
    return_lse: Literal[True],
) -> tuple[Floats, Floats]: ...


def attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    pattern: Pattern | Sequence[Pattern] = Dense(),  # noqa: B008 - a frozen value
    *,
    scale: float | None = None,
    return_lse: bool = False,
) -> Floats | tuple[Floats, Floats]:
    """`subquad.attention` in float64, every score computed and masked by ``pattern.contains``.

    Takes and returns what `subquad.attention` does, but float64. Time O(n²); a block of rows is held at a time.

    Examples
    --------
    >>> import numpy as np
    >>> attention(np.zeros((2, 1)), np.zeros((2, 1)), np.array([[1.0], [3.0]]))
    array([[2.],
           [2.]])
    """
    inputs = checked_inputs(query, key, value)
    patterns = checked_patterns(pattern, inputs.arrays[0].shape[1])
    q, k, v = (x.astype(np.float64) for x in inputs.arrays)
    factor, n_q, n_k = checked_scale(scale, q.shape[-1], q.dtype), q.shape[2], k.shape[2]
    out, lse = np.zeros((*q.shape[:3], v.shape[3])), np.full(q.shape[:3], -np.inf)
    rows_at_once = max(1, _CHUNK // max(1, n_k))
    for start in range(0, n_q if n_k else 0, rows_at_once):
        rows = np.arange(start, min(n_q, start + rows_at_once))
        for one, heads in patterns:
            allowed = one.contains(rows[:, None], np.arange(n_k)[None, :], n_q, n_k)
            for b, h in itertools.product(range(q.shape[0]), heads):
                kept = b, h // inputs.group
                out[b, h, rows], lse[b, h, rows] = _rows(q[b, h, rows], k[kept], v[kept], allowed, factor)
    result, sums = out.reshape(*inputs.leading, n_q, v.shape[3]), lse.reshape(*inputs.leading, n_q)
    return (result, sums) if return_lse else result


def _rows(q: Floats, k: Floats, v: Floats, allowed: Array, scale: float) -> tuple[Floats, Floats]:
    """Attention of some rows of one head."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        scores = np.where(allowed, scale * (q @ k.T), -np.inf)
        top = scores.max(axis=1, keepdims=True)
        weights = np.exp(scores - np.where(np.isneginf(top), 0, top))
        total = weights.sum(axis=1, keepdims=True)
        shares = np.where(allowed, weights / np.where(total == 0, 1, total), 0)
        return _product(shares, v, allowed), (top + np.log(total))[:, 0]


def _product(a: Floats, b: Floats, allowed: Array) -> Floats:
    """a @ b, where only allowed entries of `a` count, whatever `b` holds."""
    finite = np.isfinite(b).all(axis=1)
    result: Floats = a[:, finite] @ b[finite]
    for j in np.nonzero(~finite)[0]:  # a product with 0 would let them into rows that may not see them
        reached = allowed[:, j]
        result[reached] += a[reached, j, None] * b[j]
    return result


def attention_backward(
    grad_out: npt.ArrayLike,
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    out: npt.ArrayLike,
    lse: npt.ArrayLike,
    pattern: Pattern | Sequence[Pattern] = Dense(),  # noqa: B008 - a frozen value
    *,
    scale: float | None = None,
    grad_lse: npt.ArrayLike | None = None,
) -> tuple[Floats, Floats, Floats]:
    """`subquad.attention_backward` in float64, every weight recomputed densely from `lse`.

    Takes and returns what `subquad.attention_backward` does, but float64. Time O(n²), a block of rows at a time.

    Examples
    --------
    >>> import numpy as np
    >>> q, k, v = np.ones((2, 1)), np.ones((2, 1)), np.array([[1.0], [3.0]])
    >>> out, lse = attention(q, k, v, return_lse=True)
    >>> attention_backward(np.ones((2, 1)), q, k, v, out, lse)[2]
    array([[1.],
           [1.]])
    """
    inputs = checked_inputs(query, key, value)
    patterns = checked_patterns(pattern, inputs.arrays[0].shape[1])
    q, k, v = (x.astype(np.float64) for x in inputs.arrays)
    factor, n_q, n_k = checked_scale(scale, q.shape[-1], q.dtype), q.shape[2], k.shape[2]
    o, g = (np.asarray(x, np.float64).reshape(*q.shape[:3], v.shape[3]) for x in (out, grad_out))
    sums = np.asarray(lse, np.float64).reshape(q.shape[:3])
    with np.errstate(invalid="ignore"):
        delta = (o * g).sum(axis=-1)
        if grad_lse is not None:
            delta = delta - np.asarray(grad_lse, np.float64).reshape(q.shape[:3])
    grads = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    rows_at_once = max(1, _CHUNK // max(1, n_k))
    for start in range(0, n_q if n_k else 0, rows_at_once):
        rows = np.arange(start, min(n_q, start + rows_at_once))
        for one, heads in patterns:
            allowed = one.contains(rows[:, None], np.arange(n_k)[None, :], n_q, n_k)
            for b, h in itertools.product(range(q.shape[0]), heads):
                kept = b, h // inputs.group
                mine = q[b, h, rows], k[kept], v[kept], g[b, h, rows], sums[b, h, rows], delta[b, h, rows]
                parts = _row_gradients(*mine, allowed, factor)
                for grad, at, part in zip(grads, ((b, h, rows), kept, kept), parts, strict=True):
                    grad[at] += part
    d_q, d_k, d_v = grads
    return (
        d_q.reshape(*inputs.leading, n_q, q.shape[3]),
        d_k.reshape(*np.shape(key)),
        d_v.reshape(*np.shape(value)),
    )


def _row_gradients(
    q: Floats, k: Floats, v: Floats, g: Floats, lse: Floats, delta: Floats, allowed: Array, scale: float
) -> tuple[Floats, Floats, Floats]:
    """What some rows of one head give to the three gradients."""
    with np.errstate(invalid="ignore", over="ignore"):
        weights = np.where(allowed, np.exp(scale * (q @ k.T) - lse[:, None]), 0)
        d_scores = np.where(allowed, scale * weights * (g @ v.T - delta[:, None]), 0)
        return _product(d_scores, k, allowed), _product(d_scores.T, q, allowed.T), _product(weights.T, g, allowed.T)
