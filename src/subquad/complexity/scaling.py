"""Measured growth of `subquad.attention` against the order that each pattern declares."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

import subquad
from subquad import checks
from subquad.complexity.fitting import MIN_POINTS, MIN_RANGE, Fit, fit
from subquad.complexity.measuring import Measurement, measure
from subquad.complexity.memory import RESOLUTION, extra_memory
from subquad.complexity.orders import Order
from subquad.inputs import Array
from subquad.patterns import Pattern

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is the same for every pattern."""

    heads: int = 1
    d: int = 64
    num_threads: int = 1
    #: How far the interval of an exponent may lie above the declared one.
    tolerance: float = 0.15
    #: Seconds of timing for each pattern; the largest n are left out where they would take more.
    budget: float = 30.0
    repeats: int = 5
    #: Measure memory too, a second or two for each n.
    memory: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Scaling:
    """One pattern: what it declares and what was found."""

    pattern: str
    declared: Order
    #: Of the exact number of pairs.
    pairs: Fit
    #: Of the least time of a warm call, plan kept: processor time on one thread, time on the wall on several.
    time: Fit
    #: Of the memory beyond inputs and output; None where it was not measured, or is too little to be.
    memory: Fit | None
    skipped: tuple[int, ...]
    tolerance: float

    @property
    def broken(self) -> list[str]:
        """Which of pairs, time and memory grow faster than declared."""
        found = {"pairs": self.pairs, "time": self.time, "memory": self.memory}
        return [
            name
            for name, one in found.items()
            if one is not None and not one.holds(self.declared, tolerance=self.tolerance)
        ]


def scale(
    patterns: Mapping[str, Pattern],
    ns: Sequence[int],
    setting: Setting | None = None,
    *,
    order: Order | None = None,
    progress: Progress | None = None,
) -> list[Scaling]:
    """Measure each pattern at each n and fit orders to pairs, time and (if asked for) memory.

    Parameters
    ----------
    patterns
        Name to pattern.
    ns
        Numbers of tokens: at least 5, the largest at least 4 times the smallest.
    setting
        The rest.
    order
        Declared for all patterns, instead of what each declares itself.
    progress
        Told before each sample.

    Raises
    ------
    ValueError, MemoryError
        Too few n, or a pattern or inputs that do not fit one; before anything is measured.
    """
    setting = setting or Setting()
    sizes = _checked(patterns, ns, setting)
    found = []
    for number, (name, pattern) in enumerate(patterns.items()):

        def told(done: int, total: int, what: str, number: int = number, name: str = name) -> None:
            if progress:
                progress(number * total + done, len(patterns) * total, f"{name}, {what}")

        found.append(_scale_one(name, pattern, sizes, setting, order or pattern.order, told))
    return found


def _checked(patterns: Mapping[str, Pattern], ns: Sequence[int], setting: Setting) -> list[int]:
    sizes = sorted({checks.integer(n, "n", 1) for n in ns})
    if len(sizes) < MIN_POINTS or sizes[-1] < MIN_RANGE * sizes[0]:
        raise ValueError(
            f"n: at least {MIN_POINTS} different sizes, the largest {MIN_RANGE:g} times the smallest or more, are "
            f"needed to tell orders apart; got {', '.join(map(str, sizes)) or 'none'}"
        )
    if not patterns:
        raise ValueError("patterns: give at least one")
    checks.allocatable(
        16 * sizes[-1] * setting.heads * setting.d,
        f"n = {sizes[-1]:,}: four float32 arrays of {setting.heads} x {sizes[-1]:,} x {setting.d}",
        "Give a smaller n.",
    )
    for pattern in patterns.values():
        for n in (sizes[0], sizes[-1]):
            pattern._validate(subquad.patterns.base.checked_shape(n, n))
    return sizes


def _scale_one(
    name: str, pattern: Pattern, sizes: list[int], setting: Setting, declared: Order, progress: Progress
) -> Scaling:
    if any(not pattern.nnz(n, n) for n in sizes):
        raise ValueError(f"{name}: allows no pair at some n; nothing grows")
    measured = _times(pattern, sizes, setting, progress)
    n = [int(x) for x in measured.n]
    memory = None
    if setting.memory:
        memory = _memory(pattern, n, setting, progress)
    pairs = fit(n, [pattern.nnz(x, x) for x in n])
    return Scaling(name, declared, pairs, measured.fit(), memory, measured.skipped, setting.tolerance)


def _times(pattern: Pattern, sizes: list[int], setting: Setting, progress: Progress) -> Measurement:
    rng = np.random.default_rng(setting.seed)

    def arrays(n: int) -> list[Array]:
        return [rng.standard_normal((setting.heads, n, setting.d), np.float32) for _ in range(4)]

    def call(arrays: list[Array]) -> None:
        query, key, value, out = arrays
        subquad.attention(query, key, value, pattern, out=out, num_threads=setting.num_threads)

    call(arrays(sizes[0]))  # kernels are compiled or loaded before the budget begins
    # one thread's processor time is its time on the wall, but for what else the machine does
    clock = time.process_time if setting.num_threads == 1 else time.perf_counter
    return measure(
        call, sizes, setup=arrays, repeats=setting.repeats, budget=setting.budget, clock=clock, progress=progress
    )


def _memory(pattern: Pattern, n: list[int], setting: Setting, progress: Progress) -> Fit | None:
    taken = []
    for k, size in enumerate(n):
        progress(k, len(n), f"memory at n = {size:,}")
        taken.append(extra_memory(pattern, size, setting.d, setting.heads, num_threads=setting.num_threads))
    seen = [(size, use) for size, use in zip(n, taken, strict=True) if use >= RESOLUTION]
    if len(seen) < MIN_POINTS:
        return None
    return fit(*zip(*seen, strict=True))


def verdict(found: Sequence[Scaling]) -> str:
    """One sentence about all of them."""
    broken = [one for one in found if one.broken]
    if not broken:
        return f"All {len(found)} declared orders hold." if len(found) > 1 else "The declared order holds."
    one = broken[0]
    grown = getattr(one, one.broken[0])
    low, high = grown.interval
    return (
        f"{one.pattern} does not hold {one.declared}: {one.broken[0]} grows like n^{grown.exponent:.2f} "
        f"(95% interval {low:.2f} to {high:.2f})."
    )


def as_json(found: Sequence[Scaling]) -> str:
    """Everything as a JSON object; numbers that are not finite become null."""
    rows = [
        {
            "pattern": one.pattern,
            "declared": str(one.declared),
            "holds": not one.broken,
            "broken": one.broken,
            "skipped_n": list(one.skipped),
            "pairs": _fit_json(one.pairs),
            "time": _fit_json(one.time),
            "memory": one.memory and _fit_json(one.memory),
        }
        for one in found
    ]
    return json.dumps({"rows": rows, "summary": verdict(found)}, indent=2, ensure_ascii=False)


def _fit_json(found: Fit) -> dict[str, object]:
    def finite(x: float) -> float | None:
        return x if math.isfinite(x) else None

    return {
        "order": str(found.order),
        "exponent": finite(found.exponent),
        "interval": [finite(x) for x in found.interval],
        "distinguishable": found.distinguishable,
        "reason": found.reason,
        "n": found.n.tolist(),
        "y": found.y.tolist(),
    }
