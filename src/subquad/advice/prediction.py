"""Times of sparse and dense attention before either runs, and the length from which sparse is faster."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from subquad import checks
from subquad.advice.calibration import Calibration, calibration
from subquad.advice.work import work_of
from subquad.inputs import checked_pattern
from subquad.patterns.base import Pattern, Shape
from subquad.plan import Plan, TiledPhase, plan_for
from subquad.plan.cost import COLD_PAIR
from subquad.threads import thread_count

#: Lengths at which sparse and dense are compared: from the least, by factors of sqrt 2, at least to the most.
LEAST, MOST = 16, 1 << 16
#: Of a thread more than the first, what it adds.
SECOND_THREAD = 0.9


@dataclass(frozen=True)
class Advice:
    """What `advise` predicts for one forward call; printed, it is a sentence.

    Attributes
    ----------
    pattern : str
    n, d, heads, num_threads : int
    dtype : str
    pairs : int
        Allowed pairs of one head.
    seconds : float
        Of `subquad.attention`, plan and kernels being warm.
    dense_seconds : float
        Of dense attention through NumPy's BLAS with its own threads.
    plan_bytes, scores_bytes : int
        What the plan holds, and what the n x n scores of one head would take.
    crossover : int or None
        The least n from which on sparse is predicted faster at every length looked at; None if there is none, or for a
        pattern that was made for one length.
    """

    pattern: str
    n: int
    d: int
    heads: int
    dtype: str
    num_threads: int
    pairs: int
    seconds: float
    dense_seconds: float
    plan_bytes: int
    scores_bytes: int
    crossover: int | None

    @property
    def speedup(self) -> float:
        """Dense time over sparse time; above 1 sparse is faster."""
        return self.dense_seconds / self.seconds

    def __str__(self) -> str:
        faster = f"{self.speedup:.3g} x faster" if self.speedup >= 1 else f"{1 / self.speedup:.3g} x slower"
        since = "" if self.crossover is None else f" Sparse is faster from about n = {self.crossover:,} on."
        heads = "1 head" if self.heads == 1 else f"{self.heads} heads"
        threads = "1 thread" if self.num_threads == 1 else f"{self.num_threads} threads"
        return (
            f"{self.pattern} at n = {self.n:,}, {heads} of d = {self.d}, {self.dtype}, {threads}: about "
            f"{_time(self.seconds)}, dense attention {_time(self.dense_seconds)}; {faster}.{since}"
        )


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def advise(
    pattern: Pattern,
    n: int,
    d: int = 64,
    heads: int = 1,
    *,
    dtype: Any = "float32",
    num_threads: int | None = None,
    recalibrate: bool = False,
) -> Advice:
    """Predict how long sparse and dense attention take on this machine, and from which n on sparse is faster.

    The plan is counted: keys that tiles visit, runs, tiles, listed pairs, and listed keys that no row nearby has
    fetched. What each takes is measured once for a machine, d and dtype, in a few seconds, and kept in the cache
    directory; so a prediction costs what the plan does.

    Parameters
    ----------
    pattern : Pattern
    n : int
        Queries and keys.
    d, heads : int, optional
    dtype : {"float32", "float64"}, optional
    num_threads : int, optional
        As in `attention`. Dense attention is predicted with the threads that BLAS has.
    recalibrate : bool, optional
        Measure again, as after the machine was busy.

    Returns
    -------
    Advice

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described, or the pattern was made for another n.

    Notes
    -----
    Time and memory of building plans at some twenty lengths up to max(n, 65,536). Predictions are for warm calls of a
    machine that does nothing else.

    Examples
    --------
    >>> from subquad import Banded
    >>> found = advise(Banded(64), 8192)
    >>> found.speedup > 1, found.crossover < 8192
    (True, True)
    """
    checked_pattern(pattern)
    n, d = checks.integer(n, "n", 1), checks.integer(d, "d", 1)
    heads, threads = checks.integer(heads, "heads", 1), thread_count(num_threads)
    name = _checked_dtype(dtype)
    if not isinstance(recalibrate, bool | np.bool_):
        raise TypeError(f"recalibrate must be True or False; got {recalibrate!r}")
    shape = Shape.aligned(n, n)
    pattern._validate(shape)
    machine = calibration(d, name, anew=bool(recalibrate))
    itemsize = np.dtype(name).itemsize
    plan = plan_for(pattern, shape, itemsize)
    return Advice(
        pattern=repr(pattern),
        n=n,
        d=d,
        heads=heads,
        dtype=name,
        num_threads=threads,
        pairs=plan.nnz,
        seconds=_seconds(machine, plan, d, heads, threads),
        dense_seconds=heads * machine.dense_seconds(n),
        plan_bytes=plan.nbytes,
        scores_bytes=n * n * itemsize,
        crossover=_crossover(machine, pattern, n, d, heads, threads, itemsize),
    )


def _checked_dtype(dtype: Any) -> str:
    try:
        name = str(np.dtype(dtype).name)
    except TypeError:
        name = ""
    if name not in ("float32", "float64"):
        raise ValueError(f"dtype must be float32 or float64; got {dtype!r}")
    return name


def _seconds(machine: Calibration, plan: Plan, d: int, heads: int, threads: int) -> float:
    """Tasks of all heads are handed out to the threads one by one."""
    tasks = heads * sum(
        len(plan.tasks(number, 4.0 * d * (plan.lanes if isinstance(phase, TiledPhase) else COLD_PAIR)))
        for number, phase in enumerate(plan.phases)
    )
    together = 1 + SECOND_THREAD * (min(threads, max(1, tasks)) - 1)
    return machine.call + heads * machine.sparse_seconds(work_of(plan), plan.shape.n_k) / together


def _crossover(
    machine: Calibration, pattern: Pattern, n: int, d: int, heads: int, threads: int, itemsize: int
) -> int | None:
    """The least length looked at from which on sparse is never slower."""
    lengths = [round(LEAST * math.sqrt(2) ** k) for k in range(2 * math.ceil(math.log2(max(n, MOST) / LEAST)) + 1)]
    found = None
    for length in reversed(lengths):
        shape = Shape.aligned(length, length)
        try:
            pattern._validate(shape)
        except ValueError:  # made for one length, or too short for its tokens
            break
        plan = plan_for(pattern, shape, itemsize)
        if _seconds(machine, plan, d, heads, threads) > heads * machine.dense_seconds(length):
            break
        found = length
    return found
