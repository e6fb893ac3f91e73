"""What Dask costs on one machine
==============================

What Dask costs on one machine: the same attention in memory and on Dask arrays, on equally many threads.

::

    python docs/examples/dask_speed.py                    # n = 1,048,576, Banded(128), d = 64, chunks of 65,536

*persist* leaves the result in chunks; *compute* makes one array, into which each task puts its chunk. *joined* is the
same by `dask.compute`, which keeps all chunks and joins them at the end, as it must where they come from other
processes. All are called once in a round, in any order; the figures are medians of the ratios of one round, by the
clock and by processor time.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np

from subquad import attention
from subquad import dask as subquad_dask
from subquad.expression import parse_pattern


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    start, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - busy


def in_any_order(calls: list[Callable[[], Any]], seed: int) -> list[tuple[float, float]]:
    """Each call timed once: what one leaves of memory, another finds."""
    order = random.Random(seed).sample(range(len(calls)), len(calls))
    found = {number: timed(calls[number]) for number in order}
    return [found[number] for number in range(len(calls))]


def main(argv: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--pattern", default="Banded(128)")
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=1 << 16)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(argv)
    pattern = parse_pattern(args.pattern)
    arrays = [np.random.default_rng(seed).standard_normal((args.tokens, args.d), dtype=np.float32) for seed in range(3)]
    chunked = [da.from_array(x, chunks=(args.chunk, args.d), name=f"x{k}") for k, x in enumerate(arrays)]
    lazy = subquad_dask.attention(*chunked, pattern)
    print("| threads | in memory, s | persist over it | compute over it | joined over it | … in processor time |")
    print("|---|---|---|---|---|---|")
    for threads in args.threads:
        options = {"scheduler": "threads", "num_workers": threads}
        calls: list[Callable[[], Any]] = [
            lambda threads=threads: attention(*arrays, pattern, num_threads=threads),
            lambda options=options: lazy.persist(**options),
            lambda options=options: lazy.compute(**options),
            lambda options=options: dask.compute(lazy, **options),
        ]
        for call in calls:
            call()
        rounds = [in_any_order(calls, number) for number in range(args.rounds)]
        ratios = [[statistics.median(r[k][by] / r[0][by] for r in rounds) for by in (0, 1)] for k in (1, 2, 3)]
        seconds = statistics.median(r[0][0] for r in rounds)
        by_clock, by_processor = ([f"{ratio[by]:.2f}" for ratio in ratios] for by in (0, 1))
        print(f"| {threads} | {seconds:.2f} | {' | '.join(by_clock)} | {', '.join(by_processor)} |", flush=True)


if __name__ == "__main__":
    main()
