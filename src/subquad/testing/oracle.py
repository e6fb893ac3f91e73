"""Dense float64 attention and its gradients from the mask alone, and what rounding may explain.

Nothing here knows of plans or kernels: the mask is read off ``pattern.contains``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from subquad import accuracy
from subquad.patterns.base import Pattern

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def mask_of(pattern: Pattern, n_q: int, n_k: int) -> npt.NDArray[np.bool_]:
    """The pattern as a dense bool matrix."""
    i, j = np.arange(n_q)[:, None], np.arange(n_k)[None, :]
    return np.array(np.broadcast_to(pattern.contains(i, j, n_q, n_k), (n_q, n_k)), dtype=bool)


def attention(
    query: Array, key: Array, value: Array, pattern: Pattern, scale: float | None = None
) -> tuple[Floats, Floats]:
    """Output and lse, of what is finite."""
    q, k, v = wide(query), for_query_heads(key, query), for_query_heads(value, query)
    weights, lse = _softmax(q, k, mask_of(pattern, q.shape[-2], k.shape[-2]), scale)
    return weights @ v, lse


def gradients(
    grad_out: Array, query: Array, key: Array, value: Array, pattern: Pattern, scale: float | None = None
) -> tuple[tuple[Floats, ...], tuple[Floats, ...]]:
    """Gradients of sum(grad_out x output), and the sums of the magnitudes that were added up for each."""
    q, k, v, g = wide(query), for_query_heads(key, query), for_query_heads(value, query), wide(grad_out)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    p, _ = _softmax(q, k, mask_of(pattern, q.shape[-2], k.shape[-2]), scale)
    found = []
    for size in (lambda x: x, abs):
        sign = -1 if size is not abs else 1
        d_p = size(g) @ turned(size(v))
        d_s = size(factor) * p * (d_p + sign * (p * d_p).sum(axis=-1, keepdims=True))
        of_keys = (_of_key_heads(turned(x) @ size(y), key) for x, y in ((d_s, q), (p, g)))
        found.append((d_s @ size(k), *of_keys))
    return found[0], found[1]


def _softmax(q: Floats, k: Floats, mask: npt.NDArray[np.bool_], scale: float | None) -> tuple[Floats, Floats]:
    scores = np.where(mask, q @ turned(k) * (q.shape[-1] ** -0.5 if scale is None else scale), -np.inf)
    top = scores.max(axis=-1, initial=-np.inf, keepdims=True)
    top = np.where(top == -np.inf, 0.0, top)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (top + np.log(total))[..., 0]
    return weights / np.where(total == 0, 1.0, total), lse


def wide(x: Array) -> Floats:
    return np.asarray(x, np.float64)


def turned(x: Floats) -> Floats:
    return x.swapaxes(-1, -2)


def for_query_heads(x: Array, query: Array) -> Floats:
    """Each head of a key or value as often as query heads share it."""
    if x.ndim == 2 or x.shape[-3] == query.shape[-3]:
        return wide(x)
    repeated: Floats = np.repeat(wide(x), query.shape[-3] // x.shape[-3], axis=-3)
    return repeated


def _of_key_heads(x: Floats, key: Array) -> Floats:
    """The sum over the query heads that share a key head."""
    if key.ndim == 2 or x.shape[-3] == key.shape[-3]:
        return x
    grouped: Floats = x.reshape(*key.shape[:-2], -1, *x.shape[-2:])
    return np.asarray(grouped.sum(axis=-3))


def largest_score(query: Array, key: Array, scale: float | None = None) -> float:
    """No scaled score is larger (Cauchy-Schwarz)."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    norms = (float(np.linalg.norm(wide(x), axis=-1).max(initial=0.0)) for x in (query, key))
    return float(abs(factor) * math.prod(norms))


def tolerance(dtype: Any, n: int, d: int, score: float, value: float) -> float:
    """`accuracy.tolerance` of what computes (float32 for halves), and the rounding to half precision at the end."""
    half = dtype.itemsize == 2
    found = accuracy.tolerance(np.float32 if half else dtype, n, d, score, value)
    return float(found + half * value * {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype.name, 0.0))
