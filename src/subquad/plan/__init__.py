"""Plans: where the pairs of a pattern lie, each once, laid out for the kernels."""

from __future__ import annotations

import numpy as np

from subquad import checks
from subquad.patterns.base import Pattern, Shape
from subquad.patterns.spans import Ints
from subquad.plan.builder import build
from subquad.plan.tables import GatheredPhase, Phase, Plan, TiledPhase

__all__ = ["GatheredPhase", "Phase", "Plan", "TiledPhase", "cache_clear", "csr_arrays", "plan_for"]

_KEPT_BYTES = 256 << 20  # recent plans are kept up to this size, the latest one whatever its size
# oldest first; single operations on a dict are atomic, so there is no lock that a fork could leave held
_kept: dict[tuple[Pattern, Shape, int], Plan] = {}


def plan_for(pattern: Pattern, shape: Shape, itemsize: int) -> Plan:
    """The plan of a pattern, built at most once while it is kept."""
    key = pattern, shape, itemsize
    plan = _kept.pop(key, None) or build(pattern, shape, itemsize)
    _kept[key] = plan  # at the end: the latest used
    kept = list(_kept.items())
    total = sum(old.nbytes for _, old in kept)
    for old_key, old in kept[:-1]:
        if total <= _KEPT_BYTES:
            break
        total -= old.nbytes
        _kept.pop(old_key, None)
    return plan


def cache_clear() -> None:
    """Forget all plans."""
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
