"""Plans: where the pairs of a pattern lie, each once, laid out for the kernels."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from subquad import checks
from subquad.patterns.base import Pattern, Shape
from subquad.patterns.spans import Ints
from subquad.plan.builder import build
from subquad.plan.tables import GatheredPhase, Phase, Plan, TiledPhase

__all__ = ["GatheredPhase", "Phase", "Plan", "TiledPhase", "cache_clear", "csr_arrays", "plan_for"]

_KEPT_BYTES = 256 << 20  # recent plans are kept up to this size, the latest one whatever its size
_kept: OrderedDict[tuple[Pattern, Shape, int], Plan] = OrderedDict()
_lock = threading.Lock()


def plan_for(pattern: Pattern, shape: Shape, itemsize: int) -> Plan:
    """The plan of a pattern, built at most once while it is kept."""
    key = pattern, shape, itemsize
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    plan = build(pattern, shape, itemsize)
    with _lock:
        _kept[key] = plan
        while len(_kept) > 1 and sum(kept.nbytes for kept in _kept.values()) > _KEPT_BYTES:
            _kept.popitem(last=False)
    return plan


def cache_clear() -> None:
    """Forget all plans."""
    with _lock:
        _kept.clear()


def csr_arrays(pattern: Pattern, shape: Shape) -> tuple[Ints, Ints]:
    """Row pointers and sorted keys of every row: time and memory O(pairs log pairs)."""
    if type(pattern)._count is not Pattern._count:  # known without a plan
        n_pairs = pattern._count(shape)
        checks.allocatable(32 * n_pairs, f"the list of {n_pairs:,} pairs", "Use fewer rows or a sparser pattern.")
    rows, keys = pattern.plan(*shape).pairs()
    order = np.lexsort((keys, rows))
    indptr = np.searchsorted(rows[order], np.arange(shape.n_q + 1))
    return indptr.astype(np.int64), keys[order]
