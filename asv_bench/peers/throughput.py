"""All contenders on one case: the same inputs, checked against each other, timed in turn."""

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from subquad.kernels.peak import fma_peak

from .cases import Case
from .contenders import Contender, Prepared
from .masks import Refused
from .measure import Effort, Round, interleaved, median_of

PEAK_SECONDS = 0.02
TOLERANCE = 1e-3  # above it, contenders did not do the same work

Progress = Callable[[str], None]


@dataclass
class Entry:
    """What one contender did on one case. `status` is ok, absent, refused or failed; `note` says why it is not ok."""

    contender: str
    same_work: bool
    status: str = "ok"
    note: str = ""
    seconds: float | None = None
    gflops: float | None = None
    share_of_peak: float | None = None
    times_subquad: float | None = None  # its time over subquad's
    max_difference: float | None = None  # from subquad's output
    rounds: int = 0
    prepare_seconds: float | None = None


@dataclass
class CaseResult:
    case: str
    work: str
    pattern: str
    n: int
    heads: int
    d: int
    pairs: int
    peak_gflops: float | None = None
    core_share: float | None = None  # of the time that the core was ours; with several threads, waiting lowers it too
    entries: list[Entry] = field(default_factory=list)


def absent_package(contender: Contender) -> str | None:
    """Why a contender cannot take part at all: the first of its packages that does not import."""
    for package in contender.packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            return first_line(error)
    return None


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def run_case(
    case: Case, contenders: Sequence[Contender], threads: int, effort: Effort, progress: Progress
) -> CaseResult:
    """`contenders` starts with subquad, whose output is the one the others are compared with."""
    result = CaseResult(case.name, case.work, repr(case.pattern), case.n, case.heads, case.d, case.pairs)
    arrays = case.inputs()
    calls: dict[str, Callable[[], object]] = {}
    reference = None
    for contender in contenders:
        if contender.families is not None and case.family not in contender.families:
            continue
        progress(f"{case.name}: preparing {contender.name}")
        entry = Entry(contender.name, contender.same_work)
        result.entries.append(entry)
        first = first_call(contender, case, arrays, threads, entry)
        if first is None:
            continue
        prepared, output = first
        calls[contender.name] = prepared.call
        if contender is contenders[0]:
            reference = output
        elif contender.same_work and reference is not None:
            entry.max_difference = float(np.abs(output - reference).max())
    if calls:
        progress(f"{case.name}: timing {', '.join(calls)}")
        rounds = interleaved(calls, effort, partial(fma_peak, seconds=PEAK_SECONDS))
        summarise(result, case, rounds, threads)
    return result


def first_call(
    contender: Contender, case: Case, arrays: list[np.ndarray], threads: int, entry: Entry
) -> tuple[Prepared, np.ndarray] | None:
    """Prepare, compile and call once; None, and the reason in `entry`, where that fails."""
    start = time.perf_counter()
    reason = absent_package(contender)
    if reason:
        entry.status, entry.note = "absent", reason
        return None
    try:
        prepared = contender.prepare(case, arrays, threads)
        output = prepared.output(prepared.call())
    except Refused as refusal:
        entry.status, entry.note = "refused", str(refusal)
        return None
    except Exception as error:  # whatever a peer raises is a result of the comparison, not an end of it
        entry.status, entry.note = "failed", first_line(error)
        return None
    entry.prepare_seconds = time.perf_counter() - start
    return prepared, output


def summarise(result: CaseResult, case: Case, rounds: list[Round], threads: int) -> None:
    """Medians over the rounds; shares and ratios are medians of what each round gave."""
    gflop = case.flops / 1e9

    def peak(one: Round) -> float:
        return one["gauge"] * threads  # measured on one core

    result.peak_gflops = median_of(rounds, peak)
    result.core_share = median_of(rounds, lambda one: one["core"])
    for entry in result.entries:
        name = entry.contender
        entry.rounds = sum(name in one for one in rounds)
        if entry.rounds == 0:
            continue
        entry.seconds = median_of(rounds, lambda one, name=name: one[name], name)
        entry.gflops = gflop / entry.seconds
        entry.share_of_peak = median_of(rounds, lambda one, name=name: gflop / one[name] / peak(one), name)
        if name != "subquad" and "subquad" in rounds[0]:
            entry.times_subquad = median_of(rounds, lambda one, name=name: one[name] / one["subquad"], name, "subquad")
