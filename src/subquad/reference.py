"""The dense float64 oracle: the definition, with nothing clever in it. For tests, and for whoever wants to check."""

from __future__ import annotations

from typing import Literal, overload

import numpy as np
import numpy.typing as npt

from subquad.inputs import Array, checked_inputs, checked_pattern, checked_scale
from subquad.patterns.bands import Dense
from subquad.patterns.base import Pattern

_CHUNK = 1 << 22  # scores held at a time

Floats = npt.NDArray[np.float64]


@overload
def attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    pattern: Pattern = ...,
    *,
    scale: float | None = ...,
    return_lse: Literal[False] = ...,
) -> Floats: ...


@overload
def attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    pattern: Pattern = ...,
    *,
    scale: float | None = ...,
    return_lse: Literal[True],
) -> tuple[Floats, Floats]: ...


def attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    pattern: Pattern = Dense(),  # noqa: B008 - a frozen value
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
    checked_pattern(pattern)
    inputs = checked_inputs(query, key, value)
    q, k, v = (x.astype(np.float64) for x in inputs.arrays)
    factor, n_q, n_k = checked_scale(scale, q.shape[-1], q.dtype), q.shape[2], k.shape[2]
    out, lse = np.zeros((*q.shape[:3], v.shape[3])), np.full(q.shape[:3], -np.inf)
    rows_at_once = max(1, _CHUNK // max(1, n_k))
    for start in range(0, n_q if n_k else 0, rows_at_once):
        rows = np.arange(start, min(n_q, start + rows_at_once))
        allowed = pattern.contains(rows[:, None], np.arange(n_k)[None, :], n_q, n_k)
        for b in range(q.shape[0]):
            for h in range(q.shape[1]):
                shared = h // inputs.group
                out[b, h, rows], lse[b, h, rows] = _rows(q[b, h, rows], k[b, shared], v[b, shared], allowed, factor)
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
        finite = np.isfinite(v).all(axis=1)
        out = shares[:, finite] @ v[finite]
        for j in np.nonzero(~finite)[0]:  # a product with 0 would let them into rows that may not see them
            reached = allowed[:, j]
            out[reached] += shares[reached, j, None] * v[j]
        return out, (top + np.log(total))[:, 0]
