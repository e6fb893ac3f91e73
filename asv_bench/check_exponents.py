"""Fails when a tracked figure of this commit has left its band: for CI, which has no other commit to compare with.

    cd asv_bench && python check_exponents.py               # about three minutes; exits 1 where one has left
    cd asv_bench && python check_exponents.py --only exponent_n

Bands are wide enough for a noisy machine and narrow enough for another order of growth: an exponent that moves by 0.5
has left every one of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks import scaling


class Band(NamedTuple):
    low: float
    high: float

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


LINEAR, QUADRATIC, AT_MOST_LINEAR = Band(0.7, 1.3), Band(1.7, 2.3), Band(0.0, 1.2)
WINDOW = Band(0.5, 1.2)  # edges of the band and tokens cost the same for every window

#: What is tracked, then the pattern.
BANDS: dict[str, dict[str, Band]] = {
    "exponent_n": {
        "banded": LINEAR,
        "longformer": LINEAR,
        "random": LINEAR,
        "bigbird": LINEAR,
        "causal": QUADRATIC,
        "dense": QUADRATIC,
    },
    "exponent_w": {"banded": WINDOW, "longformer": WINDOW},
    "memory_exponent": {"banded": AT_MOST_LINEAR, "random": AT_MOST_LINEAR},
}
TRACKED: dict[str, type] = {
    "exponent_n": scaling.Exponent,
    "exponent_w": scaling.WindowExponent,
    "memory_exponent": scaling.MemoryExponent,
}


def measured(kind: str, pattern: str) -> float:
    benchmark = TRACKED[kind]()
    if hasattr(benchmark, "setup"):
        benchmark.setup(pattern)
    return float(getattr(benchmark, f"track_{kind}")(pattern))


def check(kinds: list[str], measure: Callable[[str, str], float] = measured) -> Iterator[tuple[str, bool]]:
    """A line and whether it holds, for each figure."""
    for kind in kinds:
        for pattern, band in BANDS[kind].items():
            value = measure(kind, pattern)
            if not band.holds(value):  # a busy neighbour may have: it would have to be as busy again
                value = measure(kind, pattern)
            holds = band.holds(value)
            state = "ok" if holds else "LEFT ITS BAND"
            yield f"{kind:<16} {pattern:<12} {value:6.2f}  in [{band.low:g}, {band.high:g}]  {state}", holds


def main(argv: list[str] | None = None, measure: Callable[[str, str], float] = measured) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(BANDS), action="append", help="track these alone")
    kinds = parser.parse_args(argv).only or list(BANDS)
    left = 0
    for line, holds in check(kinds, measure):
        print(line, flush=True)
        left += not holds
    if left:
        print(f"{left} left its band" if left == 1 else f"{left} left their bands")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
