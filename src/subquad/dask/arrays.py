"""Dask arrays that come in: checked by their shapes, dtypes and chunks alone, before any graph is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import dask.array as da
import numpy as np

from subquad.inputs import _HALF, _NATIVE, _check_dtypes, _check_shapes, checked_patterns, checked_scale
from subquad.patterns.base import Pattern, Shape

Chunks = tuple[int, ...]


class Given(NamedTuple):
    """Query, key and value whose chunks go together."""

    query: Any
    key: Any
    value: Any
    patterns: tuple[Pattern, ...]  # of every head, or one for all of them
    scale: float

    @property
    def shape(self) -> Shape:
        return Shape.aligned(int(self.query.shape[-2]), int(self.key.shape[-2]))

    @property
    def compute_dtype(self) -> np.dtype[Any]:
        dtype = np.dtype(self.query.dtype)
        return dtype if dtype in _NATIVE else np.dtype(np.float32)

    def patterns_of(self, heads: slice) -> tuple[Pattern, ...]:
        """The patterns of some heads, or the one pattern of all."""
        found = self.patterns if len(self.patterns) == 1 else self.patterns[heads]
        return found if len(set(found)) > 1 else found[:1]


def checked(query: Any, key: Any, value: Any, pattern: Any, scale: Any) -> Given:
    """Query, key and value as they are, once it is sure that they and their chunks go together."""
    arrays = {"query": query, "key": key, "value": value}
    for name, x in arrays.items():
        _check_array(x, name)
    _check_dtypes(arrays)
    _check_shapes(arrays)
    _check_leading(query, key)
    for axis in range(query.ndim - 1):
        if value.chunks[axis] != key.chunks[axis]:
            raise ValueError(
                f"value must be chunked as key along axis {axis}, {_brief(key.chunks[axis])}; got "
                f"{_brief(value.chunks[axis])}; use value.rechunk({{{axis}: key.chunks[{axis}]}})"
            )
    heads = query.shape[-3] if query.ndim > 2 else 1
    found: dict[int, Pattern] = {head: one for one, of_it in checked_patterns(pattern, heads) for head in of_it}
    shape = Shape.aligned(int(query.shape[-2]), int(key.shape[-2]))
    for one in dict.fromkeys(found.values()):
        one._validate(shape)
    several = isinstance(pattern, list | tuple)
    patterns = tuple(found[head] for head in range(heads)) if several else (pattern,)
    factor = checked_scale(scale, query.shape[-1], np.dtype(query.dtype))
    return Given(query, key, value, patterns, factor)


def check_like(x: Any, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: Sequence[Chunks]) -> None:
    """Refuse what a backward is given, unless it is shaped, typed and chunked as the forward's result."""
    _check_dask(x, name)
    if x.shape != shape:
        raise ValueError(f"{name} must have the shape of the forward's result, {shape}; got {x.shape}")
    if np.dtype(x.dtype) != dtype:
        raise TypeError(f"{name} must have the dtype of the forward's result, {dtype}; got {x.dtype}")
    for axis, (wanted, got) in enumerate(zip(chunks, x.chunks, strict=True)):
        if wanted != got:
            raise ValueError(
                f"{name} must be chunked as the forward's result along axis {axis}, {_brief(wanted)}; got "
                f"{_brief(got)}; use {name}.rechunk({{{axis}: ...}})"
            )


def _check_dask(x: Any, name: str) -> None:
    if not isinstance(x, da.Array):
        raise TypeError(
            f"{name} must be a Dask array; got {type(x).__name__}; use dask.array.from_array(..., chunks=...), "
            "or subquad.attention for arrays in memory"
        )
    if any(math.isnan(n) for n in x.shape):
        raise ValueError(f"{name} must have known chunk sizes; got shape {x.shape}; call {name}.compute_chunk_sizes()")


def _check_array(x: Any, name: str) -> None:
    _check_dask(x, name)
    if not 2 <= x.ndim <= 4:
        raise ValueError(
            f"{name} must have shape (n, d), (heads, n, d) or (batch, heads, n, d); got {x.ndim} axes, {x.shape}"
        )
    dtype = np.dtype(x.dtype)
    if dtype not in _NATIVE and dtype.name not in _HALF:
        raise TypeError(
            f"{name} must have dtype float32, float64, float16 or bfloat16; got {dtype}; convert it with astype"
        )
    if x.shape[-1] == 0:
        raise ValueError(f"{name} must have at least one column; got shape {x.shape}")
    if len(x.chunks[-1]) > 1:
        raise ValueError(
            f"{name} must have all its {x.shape[-1]} columns in one chunk; got chunks {_brief(x.chunks[-1])}; "
            f"use {name}.rechunk({{-1: -1}})"
        )


def _check_leading(query: Any, key: Any) -> None:
    """Batch and heads must be cut alike: a head of keys lies beside the heads of queries that share it."""
    for axis in range(query.ndim - 2):
        heads = axis == query.ndim - 3
        group = query.shape[axis] // max(1, key.shape[axis]) if heads else 1
        wanted = tuple(size * group for size in key.chunks[axis])
        if query.chunks[axis] != wanted:
            each = f"{group} for each of key's, {_brief(wanted)}" if group > 1 else f"as key, {_brief(wanted)}"
            raise ValueError(
                f"query must be chunked along axis {axis} ({'heads' if heads else 'batch'}) {each}; got "
                f"{_brief(query.chunks[axis])}; use query.rechunk({{{axis}: {_brief(wanted)}}})"
            )


def _brief(chunks: Chunks) -> str:
    return repr(chunks) if len(chunks) <= 6 else f"({chunks[0]}, {chunks[1]}, ..., {chunks[-1]}), {len(chunks)} chunks"
