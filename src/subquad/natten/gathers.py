"""Windows as lists of places, and the three products that gather by them, with their gradients.

Keys and values are gathered a few rows at a time, never for all pairs at once: memory O(n (K + d)) for n tokens and K
places a window.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from subquad.patterns.neighborhood import Neighborhood

# Bytes of gathered keys at a time: they are read twice, and stay in a cache of this size between.
_GATHERED = 1 << 20


class Windows(NamedTuple):
    """For each of n tokens the K places of its window, row-major; at places past the end of a causal window itself."""

    keys: Tensor  # (n, K) int64
    there: Tensor | None  # (n, K) bool; None where all are
    bias: Tensor  # (n, K) int64: which entry of a table of (2 kernel_size - 1) an axis belongs to a place


@functools.lru_cache(maxsize=8)
def windows_of(pattern: Neighborhood) -> Windows:
    n_axes, shape = len(pattern.shape), pattern.shape
    keys, there, bias = (np.zeros((1,) * 2 * n_axes, np.int64) for _ in range(3))
    whole = there == 0
    for axis, (n, w, r) in enumerate(zip(shape, pattern.window, pattern.dilation, strict=True)):
        x = np.arange(n)
        group, start, stop = pattern._bounds(axis, x)
        place = start[:, None] + np.arange(w)
        inside = place < stop[:, None]
        place = np.where(inside, place, (x // r)[:, None])
        along = tuple(np.expand_dims(table, _others(axis, n_axes)) for table in (place, inside))
        of_group = np.expand_dims(group[:, None], _others(axis, n_axes))
        behind = np.expand_dims((x // r)[:, None], _others(axis, n_axes))
        keys = keys * n + of_group + along[0] * r
        bias = bias * (2 * w - 1) + along[0] - behind + w - 1
        whole = whole & along[1]
    rows, columns = math.prod(shape), math.prod(pattern.window)
    tables = (torch.from_numpy(np.ascontiguousarray(x.reshape(rows, columns))) for x in (keys, whole, bias))
    index, all_there, of_bias = tables
    own = torch.arange(rows)[:, None]
    return Windows(torch.where(all_there, index, own), None if bool(all_there.all()) else all_there, of_bias)


def _others(axis: int, n_axes: int) -> tuple[int, ...]:
    """The axes of (tokens of each axis, places of each axis) that a table of one axis lacks."""
    return tuple(a for a in range(2 * n_axes) if a not in (axis, n_axes + axis))


# --- three products, a few rows at a time -----------------------------------------------------------------------------


def _chunks(x: Tensor, keys: Tensor) -> Iterator[slice]:
    """Ranges of rows whose gathered keys of x (heads, n, d) take about `_GATHERED` bytes."""
    step = max(1, _GATHERED // max(1, x.shape[0] * keys.shape[1] * x.shape[2] * x.element_size()))
    return (slice(at, at + step) for at in range(0, len(keys), step))


def _gathered(x: Tensor, keys: Tensor) -> Tensor:
    """(heads, n, d) at (rows, K): (heads, rows, K, d)."""
    return x.index_select(1, keys.reshape(-1)).unflatten(1, tuple(keys.shape))


def _dots(rows: Tensor, x: Tensor, keys: Tensor) -> Tensor:
    """Each row with each key of its window: (heads, n, K)."""
    out = rows.new_empty(*rows.shape[:2], keys.shape[1])
    for part in _chunks(x, keys):
        torch.matmul(_gathered(x, keys[part]), rows[:, part, :, None], out=out[:, part, :, None])
    return out


def _sums(weights: Tensor, x: Tensor, keys: Tensor) -> Tensor:
    """The keys of each window, weighted: (heads, n, d)."""
    out = x.new_empty(*weights.shape[:2], x.shape[2])
    for part in _chunks(x, keys):
        torch.matmul(weights[:, part, None, :], _gathered(x, keys[part]), out=out[:, part, None, :])
    return out


def _scattered(weights: Tensor, rows: Tensor, keys: Tensor) -> Tensor:
    """The rows, weighted, where the keys of their windows stand: (heads, n, d); the transpose of `_sums`."""
    out = torch.zeros_like(rows)
    for part in _chunks(rows, keys):
        products = weights[:, part, :, None] * rows[:, part, None, :]
        out.index_add_(1, keys[part].reshape(-1), products.flatten(1, 2))
    return out


class Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, keys: Tensor) -> Tensor:
        ctx.save_for_backward(query, key)
        ctx.keys = keys
        return _dots(query, key, keys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        query, key = ctx.saved_tensors
        return _sums(grad, key, ctx.keys), _scattered(grad, query, ctx.keys), None


class Weighted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attn: Tensor, value: Tensor, keys: Tensor) -> Tensor:
        ctx.save_for_backward(attn, value)
        ctx.keys = keys
        return _sums(attn, value, keys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        attn, value = ctx.saved_tensors
        return _dots(grad, value, ctx.keys), _scattered(attn, grad, ctx.keys), None
