"""Checks that every public name shares, and the words they answer with.

A message names the argument, the rule and the value received. Sizes are Python integers until they have been checked.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 1 << 62  # of any size, index or parameter


def integer(value: Any, name: str, minimum: int, maximum: int | None = LARGEST, *, what: str = "an integer") -> int:
    """`value` as an int from `minimum` to `maximum`; a float is refused even where it is whole, and so is a bool."""
    try:
        if isinstance(value, bool) or type(value).__name__ == "bool":
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {what} >= {minimum}; got {value!r} of type {type(value).__name__}") from None
    if number < minimum:
        raise ValueError(f"{name} must be {what} >= {minimum}; got {number}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} must be at most {maximum}, for index arithmetic in 64 bits; got {number}")
    return number


def size_text(n_bytes: int) -> str:
    """A number of bytes as people write it."""
    size = float(n_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


@functools.cache
def memory_limit() -> int:
    """Bytes of memory this machine has; without a way to ask, what 64-bit processors address."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 48


_allowed: ContextVar[int | None] = ContextVar("_allowed", default=None)


@contextlib.contextmanager
def at_most(n_bytes: int | None) -> Iterator[None]:
    """Within it, `allocatable` refuses what takes more than this: the rest of a caller's `max_bytes`."""
    token = _allowed.set(n_bytes)
    try:
        yield
    finally:
        _allowed.reset(token)


def allocatable(n_bytes: int, what: str, way_out: str) -> None:
    """Refuse a size that this machine cannot hold, or the caller does not allow, before anything is allocated."""
    limit, allowed = memory_limit(), _allowed.get()
    if n_bytes > limit or (allowed is not None and n_bytes > allowed):
        needed = f"{n_bytes:,} bytes ({size_text(n_bytes)})"
        rule = f"this machine has {size_text(limit)}"
        if allowed is not None and allowed < limit:
            rule = f"max_bytes leaves {size_text(max(0, allowed))}"
        raise MemoryError(f"{what} takes {needed}; {rule}. {way_out}")


def key_range(start: int, stop: int, step: int = 1) -> npt.NDArray[np.int64]:
    """The keys start, start + step, ... below stop, unless they do not fit in memory."""
    n_keys = max(0, -((start - stop) // step))
    allocatable(8 * n_keys, f"a row of {n_keys:,} keys (n_k >= {stop})", "Use a smaller n_k.")
    return np.arange(start, stop, step)
