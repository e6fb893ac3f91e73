"""Coercing and checking arrays: what comes out is safe to hand to a kernel, as (batch, heads, rows, columns) views."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subquad import checks
from subquad.patterns.base import Pattern

Array = npt.NDArray[Any]

_NATIVE = frozenset(np.dtype(kind + size) for kind in "<>" for size in ("f4", "f8"))
_HALF = ("float16", "bfloat16")  # by name: NumPy itself has no bfloat16


class Inputs(NamedTuple):
    """Checked arrays, 4-D and as kernels read them, with what the caller's own looked like."""

    arrays: tuple[Array, ...]  # (batch, heads, n, columns) each
    leading: tuple[int, ...]  # leading axes of the result
    dtype: np.dtype[Any]  # of the result

    @property
    def narrow(self) -> bool:
        """Whether kernels widen the arrays as they read them."""
        return self.arrays[0].dtype.itemsize == 2

    @property
    def compute_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32) if self.narrow else self.arrays[0].dtype

    @property
    def group(self) -> int:
        """Query heads that share one head of keys."""
        return int(self.arrays[0].shape[1] // max(1, self.arrays[1].shape[1]))


def checked_pattern(pattern: Any) -> Pattern:
    if not isinstance(pattern, Pattern):
        raise TypeError(
            f"pattern must be a subquad pattern, such as Banded(256); got {pattern!r} of type {type(pattern).__name__}"
        )
    return pattern


def checked_patterns(pattern: Any, n_heads: int) -> list[tuple[Pattern, Sequence[int]]]:
    """The pattern of every query head: each different one with the heads that have it."""
    if not isinstance(pattern, list | tuple):
        return [(checked_pattern(pattern), range(n_heads))]
    for head, one in enumerate(pattern):
        if not isinstance(one, Pattern):
            raise TypeError(
                f"pattern must hold subquad patterns alone; got {one!r} of type {type(one).__name__} for head {head}"
            )
    if len(pattern) != n_heads:
        raise ValueError(
            f"pattern must be one pattern, or one for each of the {n_heads} heads of query; got {len(pattern)} patterns"
        )
    heads: dict[Pattern, list[int]] = {}
    for head, one in enumerate(pattern):
        heads.setdefault(one, []).append(head)
    return [(one, found) for one, found in heads.items()]


def checked_scale(scale: Any, d: int, dtype: np.dtype[Any]) -> float:
    if scale is None:
        return float(d**-0.5)
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real | np.floating | np.integer):
        raise TypeError(f"scale must be a real number or None; got {scale!r} of type {type(scale).__name__}")
    try:
        factor = float(scale)
    except OverflowError:
        factor = math.inf
    if not abs(factor) <= float(np.finfo(dtype).max) / 2:
        raise ValueError(f"scale must be finite, in {dtype} too; got {scale!r}")
    return factor


def checked_inputs(query: Any, key: Any, value: Any = None, max_bytes: Any = None) -> Inputs:
    """Query, key and (unless None) value: ranks, sizes, heads and dtypes that go together.

    Arrays that kernels cannot read as they are get copied, unless that alone takes more than `max_bytes`.
    """
    given = {"query": query, "key": key} | ({} if value is None else {"value": value})
    arrays = {name: _checked_array(x, name) for name, x in given.items()}
    _check_dtypes(arrays)
    _check_shapes(arrays)
    q = arrays["query"]
    dtype = q.dtype.newbyteorder("=")
    stored = _stored(dtype)
    if max_bytes is not None:
        from subquad import limits

        copied = sum(x.size for x in arrays.values() if x.dtype != stored or not whole_strides(x)) * stored.itemsize
        limits.check({"inputs, converted": copied}, limits.checked(max_bytes))
    prepared = tuple(_four_axes(_kernel_ready(x, stored)) for x in arrays.values())
    return Inputs(prepared, q.shape[:-2], dtype)


def _stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that kernels read: float32 in place of a half that this processor cannot widen."""
    if dtype in _NATIVE:
        return dtype
    from subquad.kernels.build import widens

    return dtype if widens(dtype.name) else np.dtype(np.float32)


def _checked_given(x: Any, name: str) -> Array:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: a pattern says what is masked; pass {name}.filled(0)")
    array = np.asarray(x)
    if not _is_floating(array):
        raise TypeError(
            f"{name} must have dtype float32, float64, float16 or bfloat16; got {array.dtype}; convert it with astype"
        )
    return array


def _checked_array(x: Any, name: str) -> Array:
    array = _checked_given(x, name)
    if not 2 <= array.ndim <= 4:
        raise ValueError(
            f"{name} must have shape (n, d), (heads, n, d) or (batch, heads, n, d); "
            f"got {array.ndim} axes, {array.shape}"
        )
    if array.shape[-1] == 0:
        raise ValueError(f"{name} must have at least one column; got shape {array.shape}")
    return array


def _is_floating(array: Array) -> bool:
    return array.dtype in _NATIVE or array.dtype.name in _HALF


def _check_dtypes(arrays: dict[str, Array]) -> None:
    if len({x.dtype for x in arrays.values()}) == 1:
        return
    first, *others = (x.dtype.newbyteorder("=") for x in arrays.values())
    if any(dtype != first for dtype in others):
        found = ", ".join(f"{name} {x.dtype}" for name, x in arrays.items())
        raise TypeError(f"{' and '.join(arrays)} must have one dtype; got {found}; convert with astype")


def _check_shapes(arrays: dict[str, Array]) -> None:
    q, k = arrays["query"], arrays["key"]
    for name, x in arrays.items():
        if x.ndim != q.ndim:
            raise ValueError(f"{name} must have as many axes as query; got {x.shape} and query {q.shape}")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"key must have query's last axis d = {q.shape[-1]}; got {k.shape} and query {q.shape}")
    if "value" in arrays and arrays["value"].shape[:-1] != k.shape[:-1]:
        raise ValueError(f"value must match key but for the last axis; got {arrays['value'].shape} and key {k.shape}")
    if q.ndim == 4 and q.shape[0] != k.shape[0]:
        raise ValueError(f"key must have query's batch size {q.shape[0]}; got {k.shape} and query {q.shape}")
    if q.ndim > 2:
        heads, shared = q.shape[-3], k.shape[-3]
        if (heads % shared if shared else heads) != 0:
            raise ValueError(
                f"query's heads must be a multiple of key's (grouped-query attention); got {heads} and {shared}"
            )


def _kernel_ready(x: Array, dtype: np.dtype[Any]) -> Array:
    """In the kernel's dtype, native byte order, aligned, strides of whole elements; a copy only where it must be."""
    ready = x if x.dtype is dtype else x.astype(dtype, copy=False)
    return ready if whole_strides(ready) else np.array(ready, order="C")


def whole_strides(x: Array) -> bool:
    """Whether elements lie where the machine wants them, whole elements apart."""
    flags = x.flags
    return flags.aligned and (flags.c_contiguous or all(stride % x.itemsize == 0 for stride in x.strides))


def _four_axes(x: Array) -> Array:
    return x[(None,) * (4 - x.ndim)]


def checked_out(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: dict[str, Any]) -> Array:
    """`out` as the caller gave it, once it is sure that the result may be written there."""
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out must be a NumPy array; got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"out must have the result's shape {shape}; got {out.shape}")
    if out.dtype != dtype:
        raise TypeError(f"out must have the result's dtype {dtype}; got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out must be writeable; got a read-only array")
    if 0 in out.strides and any(step == 0 and n > 1 for step, n in zip(out.strides, out.shape, strict=True)):
        raise ValueError(f"out must not repeat its own memory (a stride of 0); got strides {out.strides}")
    for name, x in inputs.items():
        if isinstance(x, np.ndarray) and _overlap(out, x):
            raise ValueError(f"out must not overlap {name}: the result would be written over what is still to be read")
    return out


def _overlap(a: Array, b: Array) -> bool:
    if not np.may_share_memory(a, b):
        return False
    try:
        return bool(np.shares_memory(a, b, max_work=100_000))  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], name: str, zero: bool = False) -> Array:
    """An array for a result, or a MemoryError that names it."""
    check_size(shape, dtype, name)
    try:
        return np.zeros(shape, dtype) if zero else np.empty(shape, dtype)
    except MemoryError:
        raise MemoryError(f"the {name} of shape {shape} and dtype {dtype} cannot be allocated now") from None


def check_size(shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> None:
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes > checks.memory_limit():
        what = f"the {name} of shape {shape} and dtype {dtype}"
        checks.allocatable(n_bytes, what, "Work on fewer rows or heads at a time.")


def checked_gradients(given: dict[str, Any], inputs: Inputs, n_q: int, d_v: int) -> tuple[Array, ...]:
    """grad_out, out, lse and (None allowed) grad_lse of a backward, as 4-D (3-D for sums) arrays for the kernels."""
    shape, sums = (*inputs.leading, n_q, d_v), (*inputs.leading, n_q)
    prepared = []
    for name, x in given.items():
        array = _checked_given(x, name)
        of_rows = name.endswith("lse")
        wanted, dtype = (sums, inputs.compute_dtype) if of_rows else (shape, inputs.dtype)
        whole = "lse" if of_rows else "output"
        if array.shape != wanted:
            raise ValueError(f"{name} must have the shape of the {whole} for these inputs, {wanted}; got {array.shape}")
        if array.dtype.newbyteorder("=") != dtype:
            raise TypeError(f"{name} must have the dtype of the {whole} for these inputs, {dtype}; got {array.dtype}")
        ready = _kernel_ready(array, inputs.compute_dtype if of_rows else inputs.arrays[0].dtype)
        prepared.append(ready[(None,) * ((3 if of_rows else 4) - ready.ndim)])
    return tuple(prepared)


def checked_result(x: Any, name: str) -> Array:
    """An output or lse that a call has given, on its way back in."""
    array = np.asarray(x)
    if not _is_floating(array):
        raise TypeError(f"{name} must have a floating dtype, as attention returned it; got {array.dtype}")
    return array
