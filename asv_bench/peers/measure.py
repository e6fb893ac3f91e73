"""Timing that a noisy machine disturbs least: everyone in turn, and ratios taken within a round."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# A sample repeats a fast call until it has lasted this long: the clock and the scheduler then matter little.
SAMPLE_SECONDS = 0.02

Round = dict[str, float]


@dataclass(frozen=True)
class Effort:
    """How long to measure: at least `least` rounds, at most `most`, in between until `seconds` of a contender's own."""

    seconds: float
    least: int
    most: int


def interleaved(
    calls: Mapping[str, Callable[[], object]], effort: Effort, gauge: Callable[[], float] | None = None
) -> list[Round]:
    """Seconds of each call, round by round; `gauge` is read once in every round and kept under "gauge".

    A contender that has used up its seconds drops out of later rounds, the others go on. "core" is the share of the
    round that this thread was running: below 1, something else wanted its core.
    """
    repeats = {name: max(1, math.ceil(SAMPLE_SECONDS / seconds_of(call, 1))) for name, call in calls.items()}
    spent = dict.fromkeys(calls, 0.0)
    rounds: list[Round] = []
    while len(rounds) < effort.most:
        active = [name for name in calls if len(rounds) < effort.least or spent[name] < effort.seconds]
        if not active:
            break
        this_round = {} if gauge is None else {"gauge": gauge()}
        wall, processor = time.perf_counter(), time.thread_time()
        for name in active:
            this_round[name] = seconds_of(calls[name], repeats[name])
            spent[name] += this_round[name] * repeats[name]
        this_round["core"] = (time.thread_time() - processor) / (time.perf_counter() - wall)
        rounds.append(this_round)
    return rounds


def seconds_of(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def median_of(rounds: list[Round], value: Callable[[Round], float], *names: str) -> float:
    """Median of `value(round)` over the rounds in which all of `names` took part."""
    return statistics.median(value(one) for one in rounds if all(name in one for name in names))
