"""Plans: where the pairs of a pattern lie, each once, laid out for the kernels."""

from __future__ import annotations

import numpy as np

from subquad import checks
from subquad.patterns.base import Pattern, Shape
from subquad.patterns.spans import Ints
from subquad.plan.builder import build
from subquad.plan.tables import GatheredPhase, Phase, Plan, TiledPhase

__all__ = ["LISTING", "GatheredPhase", "Phase", "Plan", "TiledPhase", "cache_clear", "csr_arrays", "plan_for"]

LISTING = 64  # bytes for each pair, while a plan's pairs are put in order
# Recent plans are kept up to this size and number, the latest one whatever its size.
_KEPT_BYTES = 256 << 20
_KEPT_PLANS = 64
# oldest first; single operations on a dict are atomic, so there is no lock that a fork could leave held
_kept: dict[tuple[Pattern, Shape, int], Plan] = {}


def plan_for(pattern: Pattern, shape: Shape, itemsize: int) -> Plan:
    """The plan of a pattern, checked and built at most once while it is kept."""
    key = pattern, shape, itemsize
    plan = _kept.pop(key, None)
    if plan is not None:
        _kept[key] = plan  # at the end: the latest used
        return plan
    pattern._validate(shape)
    pattern._check_plan(shape)
    plan = _kept[key] = build(pattern, shape, itemsize)
    oldest_first = list(_kept.items())
    total = sum(kept.nbytes for _, kept in oldest_first)
    for number, (old_key, old) in enumerate(oldest_first[:-1]):
        if total <= _KEPT_BYTES and len(oldest_first) - number <= _KEPT_PLANS:
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
    rows, keys = pattern._plan(shape).pairs()
    order = np.lexsort((keys, rows))
    indptr = np.searchsorted(rows[order], np.arange(shape.n_q + 1))
    return indptr.astype(np.int64), keys[order]
