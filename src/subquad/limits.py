"""`max_bytes`: what a call takes beside its inputs, added up in Python integers before any of it is allocated."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt

from subquad import checks
from subquad.inputs import Inputs
from subquad.kernels import layout

if TYPE_CHECKING:
    from subquad.forward import Part
    from subquad.plan import Phase, Plan

_SORTING = 24  # bytes for each pair of lists that are turned over

Parts = dict[str, int]


def checked(max_bytes: Any) -> int | None:
    return None if max_bytes is None else checks.integer(max_bytes, "max_bytes", 1, what="None or an integer")


def check(parts: Parts, max_bytes: int | None) -> None:
    """Refuse a call that takes more than it may; the message says what takes how much, the most of it first."""
    if max_bytes is not None and sum(parts.values()) > max_bytes:
        refuse(parts, max_bytes)


def refuse(parts: Mapping[str, int], max_bytes: int) -> NoReturn:
    total = sum(parts.values())
    (what, size), *others = sorted(parts.items(), key=lambda part: -part[1])
    rest = "".join(f"; {name}, {checks.size_text(n_bytes)}" for name, n_bytes in others if n_bytes)
    raise MemoryError(
        f"max_bytes must be at least {total:,} ({checks.size_text(total)}) for these arrays and this pattern; "
        f"got {max_bytes:,}. The most of it: {what}, {checks.size_text(size)}{rest}"
    )


class Budget:
    """What one call takes, array by array; without `max_bytes` nothing is counted."""

    def __init__(self, max_bytes: Any, inputs: Inputs, given: Sequence[Any]) -> None:
        self.most, self.parts = checked(max_bytes), Parts()
        if self.most is not None:
            copies = (x.nbytes for x, y in zip(inputs.arrays, given, strict=True) if not _shares(x, y))
            self.parts["inputs, converted"] = sum(copies)

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
        """An array that will be made."""
        if self.most is not None:
            self.parts[name] = math.prod(shape) * np.dtype(dtype).itemsize

    def planning(self) -> contextlib.AbstractContextManager[None]:
        """Within it no list takes more than the arrays leave."""
        if self.most is None:
            return contextlib.nullcontext()
        check(self.parts, self.most)
        return checks.at_most(self.most - sum(self.parts.values()))

    def plan(
        self,
        parts: Sequence[Part],
        inputs: Inputs,
        head: npt.NDArray[np.int64],
        threads: int,
        *,
        backward: bool = False,
    ) -> None:
        """The plans, and the scratch of all threads while the greediest phase runs; refuses a call that is too much.

        A backward has lists by key as well: they are made here, once it is sure that they may be.
        """
        if self.most is None:
            return
        plans = {id(part.plan): part.plan for part in parts}.values()
        phases = [phase for plan in plans for phase in plan.phases]
        if backward:
            phases += _turned(list(plans), self.most - sum(self.parts.values()))
        self.parts["the plan"] = sum(plan.nbytes for plan in plans)
        self.parts[f"scratch of {threads} threads"] = threads * _scratch(phases, inputs, head, backward)
        check(self.parts, self.most)


def _shares(made: npt.NDArray[Any], given: Any) -> bool:
    return isinstance(given, np.ndarray) and bool(np.may_share_memory(made, given))


def _turned(plans: Sequence[Plan], most: int) -> list[Phase]:
    """The lists of plans by key."""
    from subquad.plan import GatheredPhase

    lists = [(plan, n) for plan in plans for n, phase in enumerate(plan.phases) if isinstance(phase, GatheredPhase)]
    pairs = sum(int(plan.phases[n].work.sum()) for plan, n in lists)
    if pairs:
        check({"lists of queries by key, while they are sorted": _SORTING * pairs}, most)
    return [plan.transposed(n) for plan, n in lists]


def _scratch(phases: Sequence[Phase], inputs: Inputs, head: npt.NDArray[np.int64], backward: bool) -> int:
    """Bytes that a thread has while the greediest phase runs."""
    from subquad.forward import needs_panels
    from subquad.plan import GatheredPhase

    (q, _, v), itemsize = inputs.arrays, inputs.compute_dtype.itemsize
    widths, most = (q.shape[-1], v.shape[-1]), 0
    selects = bool(head[..., layout.SELECTS].any())
    for phase in phases:
        if isinstance(phase, GatheredPhase):
            floats, ints = layout.list_scratch_sizes(*widths, itemsize, phase.longest, backward, selects)
        else:
            floats, ints = layout.scratch_sizes(*widths, itemsize, needs_panels(inputs, phase), backward)
        most = max(most, floats * itemsize + 8 * ints + layout.VECTOR_BYTES)
    return most
