"""Time and memory of any function of n, measured so that an order can be fitted to them."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from subquad import checks
from subquad.child import call_in_child
from subquad.complexity.fitting import MIN_POINTS, Fit, bare, fit
from subquad.complexity.least_squares import Floats
from subquad.complexity.memory import _MALLOC, RESOLUTION, _rise
from subquad.complexity.orders import Order, parse_order

#: Told before each call: calls done, calls in all, what comes next.
Progress = Callable[[int, int, str], None]

#: A sample of a fast function is so many seconds of repeated calls: the clock has a resolution, and so has the machine.
SAMPLE_SECONDS = 2e-3


@dataclass(frozen=True)
class Measurement:
    """What `measure` found; sizes that did not fit the budget are in `skipped`."""

    n: Floats
    #: Least time of a call.
    seconds: Floats
    #: Peak of a call beyond what was there before it; None where memory was not asked for.
    bytes: Floats | None = None
    skipped: tuple[int, ...] = ()
    _seed: int = field(default=0, repr=False)

    def fit(self) -> Fit:
        """Order of the time."""
        self._check_points(len(self.n), "times")
        return fit(self.n, self.seconds, seed=self._seed)

    def fit_memory(self) -> Fit:
        """Order of the memory, from the sizes where it can be told from nothing."""
        if self.bytes is None:
            raise ValueError("memory was not measured; ask for it with memory=True")
        seen = self.bytes >= RESOLUTION
        self._check_points(int(seen.sum()), f"amounts of at least {RESOLUTION / 1e6:g} MB")
        return fit(self.n[seen], self.bytes[seen], seed=self._seed)

    def _check_points(self, found: int, what: str) -> None:
        if found < MIN_POINTS:
            left_out = f"; {len(self.skipped)} larger sizes were skipped for the budget" if self.skipped else ""
            raise ValueError(
                f"at least {MIN_POINTS} {what} are needed to fit an order; got {found}{left_out}: "
                "give more sizes, or a larger budget"
            )


def geometric(smallest: int, largest: int, points: int = 9) -> list[int]:
    """Sizes from smallest to largest, each about the same factor larger than the one before.

    Examples
    --------
    >>> geometric(64, 1024, 5)
    [64, 128, 256, 512, 1024]
    """
    smallest = checks.integer(smallest, "smallest", 1)
    largest = checks.integer(largest, "largest", smallest + 1)
    points = checks.integer(points, "points", 2, 10_000)
    return sorted({round(float(x)) for x in np.geomspace(smallest, largest, points)})


def measure(
    fn: Callable[[Any], object],
    ns: Iterable[int] | None = None,
    *,
    setup: Callable[[int], Any] | None = None,
    repeats: int = 5,
    budget: float = 20.0,
    memory: bool = False,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
) -> Measurement:
    """Time ``fn(n)``, or ``fn(setup(n))``, at growing n.

    Parameters
    ----------
    fn : callable
        What is measured: takes n, or what `setup` made of it. One call is thrown away as a warm-up.
    ns : iterable of int, optional
        Sizes; by default nine from 64 to 16,384, geometric.
    setup : callable, optional
        Makes the input for n; not measured.
    repeats : int, optional
        The least of so many samples counts: what disturbs a measurement only ever adds to it. Sizes take turns, so
        that a slow minute of the machine does not fall on one of them alone.
    budget : float, optional
        Seconds for everything but the measuring of memory. Sizes that would not fit are skipped, the largest first;
        each that is kept is measured at least once.
    memory : bool, optional
        Measure the peak of memory too, each n in a process of its own (a second each); `fn` and `setup` must then be
        functions that another process can import.
    clock : callable, optional
        What is read before and after; by default the time on the wall. ``time.process_time`` counts the processor time
        of this process, whatever else the machine does meanwhile; sleeping and waiting take none of it.
    progress : callable, optional
        Told before each sample: how many are done, how many there are, and what comes next.

    Returns
    -------
    Measurement

    Raises
    ------
    TypeError, ValueError
        For sizes below 1, a budget that is not above 0, or a function that cannot be sent to another process.

    Examples
    --------
    >>> found = measure(sorted, [2000, 4000, 8000, 16000, 32000], setup=lambda n: list(range(n, 0, -1)), budget=2)
    >>> len(found.seconds), bool(found.seconds[-1] > found.seconds[0])
    (5, True)
    """
    sizes = _checked_sizes(geometric(64, 16_384) if ns is None else ns)
    repeats = checks.integer(repeats, "repeats", 1, 1000)
    if not (isinstance(budget, int | float) and 0 < budget < math.inf):
        raise ValueError(f"budget must be a number of seconds above 0; got {budget!r}")
    if memory:
        _check_importable(fn, setup)
    total = repeats * len(sizes) + (len(sizes) if memory else 0)
    end, done = time.perf_counter() + budget, len(sizes)
    samplers, skipped = _first_round(fn, setup, sizes, budget, clock, progress, total)
    for _ in range(repeats - 1):
        for sampler in samplers:
            if time.perf_counter() + sampler.cost > end:
                continue
            if progress:
                progress(done, total, f"n = {sampler.n:,}")
            sampler.sample()
            done += 1
    n = np.array([s.n for s in samplers], np.float64)
    taken = None
    if memory:
        taken = np.empty(len(n))
        for k, sampler in enumerate(samplers):
            if progress:
                progress(repeats * len(sizes) + k, total, f"memory, n = {sampler.n:,}")
            taken[k] = max(0, call_in_child(_memory_of, fn, setup, sampler.n, sizes[0], env=_MALLOC))
    return Measurement(n, np.array([s.least for s in samplers]), taken, tuple(skipped))


class _Sampler:
    """One n: how many calls make a sample, and the least time of one so far."""

    def __init__(self, fn: Callable[[Any], object], argument: Any, n: int, clock: Callable[[], float]) -> None:
        self.fn, self.argument, self.n, self.clock = fn, argument, n, clock
        fn(argument)  # the warm-up: first touches of memory, compilers, plans
        warm = time.perf_counter()
        fn(argument)
        once = max(time.perf_counter() - warm, 1e-9)
        self.calls = max(1, math.ceil(SAMPLE_SECONDS / once))
        self.least = math.inf
        self.cost = self.calls * once
        self.sample()

    def sample(self) -> None:
        calls, fn, argument = range(self.calls), self.fn, self.argument
        start = self.clock()
        for _ in calls:
            fn(argument)
        self.least = min(self.least, max(self.clock() - start, 1e-9) / self.calls)


def _first_round(
    fn: Callable[[Any], object],
    setup: Callable[[int], Any] | None,
    sizes: list[int],
    budget: float,
    clock: Callable[[], float],
    progress: Progress | None,
    total: int,
) -> tuple[list[_Sampler], list[int]]:
    """Every size once, until the next would not fit into the budget, by the growth seen so far."""
    samplers: list[_Sampler] = []
    start = time.perf_counter()
    for k, n in enumerate(sizes):
        for _ in range(3):  # an outlier must not end it: the last size is measured again before the next is given up
            left = budget - (time.perf_counter() - start)
            if not samplers or _predicted(samplers, n) <= left:
                break
            if samplers[-1].cost <= left:
                samplers[-1].sample()
        else:
            return samplers, sizes[k:]
        if progress:
            progress(k, total, f"n = {n:,}")
        samplers.append(_Sampler(fn, setup(n) if setup else n, n, clock))
    return samplers, []


def _predicted(samplers: list[_Sampler], n: int) -> float:
    """Seconds of the first sample at the next n: three calls, growing as the last two did, at least linearly."""
    last = samplers[-1]
    growth = 1.0
    if len(samplers) > 1:
        before = samplers[-2]
        growth = max(growth, math.log(last.least / before.least) / math.log(last.n / before.n))
    return 3 * max(last.least * math.pow(n / last.n, growth), SAMPLE_SECONDS)


def _memory_of(fn: Callable[[Any], object], setup: Callable[[int], Any] | None, n: int, smallest: int) -> int:
    """The child's side: one call at the smallest n to load what it needs, then the one that counts."""
    fn(setup(smallest) if setup else smallest)
    argument = setup(n) if setup else n
    return _rise(lambda: fn(argument)).bytes


def _check_importable(*functions: Callable[..., Any] | None) -> None:
    for function in functions:
        try:
            sent = pickle.dumps(function)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"fn and setup must be importable functions for memory=True, as each n is measured in a process of its "
                f"own; got {function!r} ({error}). Put it at the top of a module, or leave memory out"
            ) from None
        if b"__main__" in sent:
            raise ValueError(
                f"fn and setup must come from a module that another process can import for memory=True; got "
                f"{function!r} of __main__. Put it in a module, or leave memory out"
            )


def _checked_sizes(ns: Iterable[int]) -> list[int]:
    sizes = sorted({checks.integer(n, "ns", 1, what="integers") for n in ns})
    if not sizes:
        raise ValueError("ns must hold at least one size; got none")
    return sizes


def assert_scales(
    fn: Callable[[Any], object],
    order: Order | str,
    ns: Iterable[int] | None = None,
    *,
    setup: Callable[[int], Any] | None = None,
    exactly: bool = False,
    memory: bool = False,
    tolerance: float = 0.1,
    repeats: int = 5,
    budget: float = 20.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Fit:
    """Raise AssertionError where the time of ``fn(n)`` grows faster than an order: for your own tests.

    Parameters
    ----------
    fn, ns, setup, repeats, budget, clock
        As for `measure`.
    order : Order or str
        Such as ``"O(n log n)"``: an upper bound, as O() is.
    exactly : bool, optional
        Fail where it grows more slowly, too.
    memory : bool, optional
        Judge the peak of memory instead of the time.
    tolerance : float, optional
        How far the exponent's interval may lie above the order's own exponent on these n.

    Returns
    -------
    Fit
        What was found, where it holds.

    Raises
    ------
    AssertionError
        Says the declared order, the one found, the interval of the exponent and the times.
    ValueError
        Where nothing can be told: too few sizes, or a range of n below 4.

    Notes
    -----
    It fails on evidence alone: measurements so noisy that the interval is wide pass. Seven sizes or more, over a range
    of 16 or more and well above the function's overhead, leave little room.

    Examples
    --------
    >>> import time
    >>> sizes = geometric(10_000, 640_000, 7)
    >>> found = assert_scales(sum, "O(n)", sizes, setup=range, clock=time.process_time)
    >>> found.holds("O(n²)")
    True
    """
    declared = parse_order(order)
    measurement = measure(fn, ns, setup=setup, repeats=repeats, budget=budget, memory=memory, clock=clock)
    found = measurement.fit_memory() if memory else measurement.fit()
    if found.reason.startswith("n grows"):
        raise ValueError(f"ns: {found.reason}")
    if not found.holds(declared, exactly=exactly, tolerance=tolerance):
        relation = "grow like" if exactly else "stay within"
        unit = "bytes" if memory else "s"
        series = ", ".join(f"{n:,.0f}: {y:.3g} {unit}" for n, y in zip(found.n, found.y, strict=True))
        raise AssertionError(f"does not {relation} {bare(declared)}: {found} ({series})")
    return found
