"""What one attention call costs, counted before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from subquad import checks
from subquad.complexity.orders import Order
from subquad.inputs import checked_pattern
from subquad.patterns.base import Pattern

_ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Cost:
    """What `cost` counted: all heads together, exact integers.

    Attributes
    ----------
    pairs : int
        Query-key pairs.
    flops : int
        Floating-point operations of the two products, ``2 d`` for a score and ``2 d_v`` for its part of the output.
        One `exponentials` a pair comes on top.
    bytes_compulsory : int
        Query, key and value read once and the output written once: what no algorithm can avoid.
    bytes_streamed : int
        Query read and output written once, keys and values read by every tile of query rows that visits them, or by
        every row where the plan lists keys row by row: what the kernels ask of the caches.
    plan_bytes : int
        The plan's tables, for all heads together.
    peak_bytes : int
        Inputs, output and plan: what must be in memory at once, beside a workspace of a few hundred kilobytes a thread.
    scores_bytes : int
        What the n_q x n_k scores of all heads would take.
    intensity : float
        FLOPs for each compulsory byte.
    order : Order
        Of the pairs in n, the parameters of the pattern fixed.
    """

    pairs: int
    flops: int
    bytes_compulsory: int
    bytes_streamed: int
    plan_bytes: int
    peak_bytes: int
    scores_bytes: int
    order: Order

    @property
    def exponentials(self) -> int:
        """One for each pair."""
        return self.pairs

    @property
    def intensity(self) -> float:
        """FLOPs for each compulsory byte."""
        return self.flops / max(1, self.bytes_compulsory)

    @property
    def intensity_streamed(self) -> float:
        """FLOPs for each streamed byte."""
        return self.flops / max(1, self.bytes_streamed)


def cost(
    pattern: Pattern,
    n_q: int,
    n_k: int | None = None,
    d: int = 64,
    heads: int = 1,
    dtype: Any = "float32",
    *,
    d_v: int | None = None,
    kv_heads: int | None = None,
) -> Cost:
    """Count pairs, FLOPs, bytes and memory of ``attention(query, key, value, pattern)``, without running it.

    Parameters
    ----------
    pattern : Pattern
    n_q, n_k : int
        Rows of query and of key; `n_k` is `n_q` by default.
    d, d_v : int, optional
        Columns of query and key, and of value (by default d).
    heads, kv_heads : int, optional
        Heads of query, and of key and value where those are fewer (grouped-query attention).
    dtype : str or dtype, optional
        float16, bfloat16, float32 or float64, of the arrays. Half precision is converted to float32 first, and
        `peak_bytes` counts those copies.

    Returns
    -------
    Cost
        Exact. Builds the plan: time and memory are those of ``pattern.plan``, O(n) for patterns that are O(n).

    Raises
    ------
    TypeError, ValueError, MemoryError
        For a size that is no integer of at least 1, an unknown dtype, or a pattern that does not fit.

    Examples
    --------
    >>> from subquad import Banded
    >>> found = cost(Banded(128), 8192, d=64, heads=4)
    >>> f"{found.pairs:,} pairs, {found.flops:,} FLOPs, {found.order}"
    '8,355,328 pairs, 2,138,963,968 FLOPs, O(n)'
    """
    checked_pattern(pattern)
    n_q = checks.integer(n_q, "n_q", 1)
    n_k = n_q if n_k is None else checks.integer(n_k, "n_k", 1)
    d, heads = checks.integer(d, "d", 1), checks.integer(heads, "heads", 1)
    d_v = d if d_v is None else checks.integer(d_v, "d_v", 1)
    kv_heads = heads if kv_heads is None else checks.integer(kv_heads, "kv_heads", 1)
    if heads % kv_heads:
        raise ValueError(f"heads must be a multiple of kv_heads; got {heads} and {kv_heads}")
    itemsize = _itemsize(dtype)
    computed = max(4, itemsize)

    plan = pattern.plan(n_q, n_k, itemsize=computed)
    pairs = heads * plan.nnz
    own = heads * n_q * (d + d_v)  # query and output
    shared = kv_heads * n_k * (d + d_v)  # key and value
    visits = heads * sum(int(phase.work.sum()) for phase in plan.phases)
    copies = (own + shared) * computed if itemsize < computed else 0
    return Cost(
        pairs=pairs,
        flops=2 * (d + d_v) * pairs,
        bytes_compulsory=(own + shared) * itemsize,
        bytes_streamed=own * itemsize + visits * (d + d_v) * computed,
        plan_bytes=plan.nbytes,
        peak_bytes=(own + shared) * itemsize + copies + plan.nbytes,
        scores_bytes=heads * n_q * n_k * itemsize,
        order=pattern.order,
    )


def _itemsize(dtype: Any) -> int:
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if name not in _ITEMSIZE:
        raise ValueError(f"dtype must be one of {', '.join(_ITEMSIZE)}; got {dtype!r}")
    return _ITEMSIZE[name]
