"""What 100 million tokens take
============================

What a long sequence takes on k workers: a plan from the cost model, or the model held against a cluster here.

::

    python docs/examples/scaling_plan.py --tokens 100000000 --workers 1 4 16 64
    python docs/examples/scaling_plan.py --check --tokens 262144 524288 1048576 --workers 1 2 --chunk 131072
    python docs/examples/scaling_plan.py --json ...

The rate of one worker is measured in memory on --rows rows, unless --rate gives it; --threads says how many threads a
worker has. `--check` starts a cluster of processes on this machine, one thread each, makes the inputs where they are
needed and times the attention alone. Every run is measured between two measurements of the rate on all workers at
once, and compared with those: by the clock and, since a machine that others use as well is a moving target, by the
processor time that the workers took.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import dask
import dask.array as da
import distributed
import numpy as np

from subquad import attention
from subquad import dask as subquad_dask
from subquad.checks import size_text
from subquad.expression import parse_pattern
from subquad.patterns import Pattern


def random_rows(seed: int, n: int, d: int) -> np.ndarray:
    """Normal float32 rows."""
    return np.random.default_rng(seed).standard_normal((n, d), dtype=np.float32)


class Rate(NamedTuple):
    """FLOPs of the kernel for a second of the clock, and for a second of the processor."""

    clock: float
    processor: float


def rate(pattern: Pattern, n: int, d: int, threads: int = 1, seconds: float = 1.0) -> Rate:
    """The rate in memory on n rows, over about so many seconds."""
    arrays = [random_rows(seed, n, d) for seed in range(3)]
    attention(*arrays, pattern, num_threads=threads)  # the first call loads kernels and plans
    flops, start, busy = 0, time.perf_counter(), time.thread_time()
    while time.perf_counter() - start < seconds:
        attention(*arrays, pattern, num_threads=threads)
        flops += 4 * d * pattern.nnz(n, n)
    return Rate(flops / (time.perf_counter() - start), flops / (time.thread_time() - busy))


def on_workers(client: distributed.Client, tokens: int, chunk: int, d: int, seed: int) -> da.Array:
    """Random rows in chunks that lie in order on the workers, as `scaling_plan` takes them to."""
    workers = addresses(client)
    sizes = [min(chunk, tokens - at) for at in range(0, tokens, chunk)]
    name = f"rows-{tokens}-{chunk}-{seed}"
    rows = {
        (name, number, 0): client.submit(
            random_rows, seed * 10_000 + number, size, d, workers=[workers[number * len(workers) // len(sizes)]]
        )
        for number, size in enumerate(sizes)
    }
    distributed.wait(list(rows.values()))
    return da.Array(rows, name, (tuple(sizes), (d,)), dtype=np.float32)


def addresses(client: distributed.Client) -> list[str]:
    """Of all workers, in one order."""
    return sorted(client.run(int))


def moved(client: distributed.Client) -> int:
    """Bytes that the workers have received from one another so far."""
    of_each = client.run(lambda dask_worker: sum(entry["total"] for entry in dask_worker.transfer_incoming_log))
    return int(sum(of_each.values()))


class Run(NamedTuple):
    """One repetition: seconds, processor seconds of the busiest worker, bytes moved, and the rate before and after."""

    seconds: float
    busy: float
    moved: int
    rate: Rate


def measured(client: distributed.Client, pattern: Pattern, tokens: int, args: argparse.Namespace) -> Iterator[Run]:
    """The attention alone, its inputs being there."""
    arrays = [on_workers(client, tokens, args.chunk, args.d, seed) for seed in range(3)]
    workers = addresses(client)

    def rate_now() -> Rate:
        jobs = [client.submit(rate, pattern, args.rows, args.d, workers=[w], pure=False) for w in workers]
        return min(client.gather(jobs))

    before = rate_now()
    for _ in range(args.repeat):
        received, busy, start = moved(client), client.run(time.process_time), time.perf_counter()
        out = client.persist(subquad_dask.attention(*arrays, pattern))
        distributed.wait(out)
        seconds = time.perf_counter() - start
        took = max(now - busy[worker] for worker, now in client.run(time.process_time).items())
        received = moved(client) - received
        after = rate_now()
        yield Run(seconds, took, received, Rate(*(statistics.mean(pair) for pair in zip(before, after, strict=True))))
        before = after
        del out


# A scheduler that leaves data where they lie: see docs/dask.md
STAY = {
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.unknown-task-duration": "10ms",
    "distributed.scheduler.bandwidth": "10 MB",
}


def check(pattern: Pattern, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The plan and the measurement for every number of workers and of tokens: medians of all repetitions."""
    for workers in args.workers:
        with dask.config.set(STAY):
            cluster = distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0", memory_limit=0
            )
        with cluster, distributed.Client(cluster) as client:
            client.wait_for_workers(workers)
            for tokens in args.tokens:
                runs = list(measured(client, pattern, tokens, args))
                plans = [plan(pattern, tokens, workers, run.rate.clock, args) for run in runs]
                ratios = [run.seconds / one.seconds for run, one in zip(runs, plans, strict=True)]
                busy = [run.busy * run.rate.processor / plans[0].busiest_flops for run in runs]
                middle = statistics.median(run.rate.clock for run in runs)
                yield {
                    "plan": plan(pattern, tokens, workers, middle, args),
                    "rate": middle,
                    "measured_seconds": statistics.median(run.seconds for run in runs),
                    "measured_over_planned": statistics.median(ratios),
                    "processor_over_planned": statistics.median(busy),
                    "measured_moved_bytes": int(statistics.median(run.moved for run in runs)),
                }


def plan(
    pattern: Pattern, tokens: int, workers: int, rate: float, args: argparse.Namespace
) -> subquad_dask.ScalingPlan:
    """The library's plan."""
    return subquad_dask.scaling_plan(
        pattern,
        tokens,
        workers,
        chunk=args.chunk,
        d=args.d,
        heads=args.heads,
        flops_per_second=rate,
        bytes_per_second=args.bandwidth * 1e6,
    )


def line(entry: dict[str, Any]) -> str:
    """A row of the table."""
    found: subquad_dask.ScalingPlan = entry["plan"]
    cells = [f"{found.tokens:,}", str(found.workers), f"{found.tasks:,}", f"{found.flops / 1e12:,.2f}"]
    cells += [size_text(found.resident_bytes), size_text(found.busiest_moved_bytes), f"{entry['rate'] / 1e9:.1f}"]
    cells += [f"{found.seconds:,.2f}", f"{found.efficiency:.2f}"]
    if "measured_seconds" in entry:
        cells += [f"{entry['measured_seconds']:,.2f}", f"{entry['measured_over_planned']:.2f}"]
        cells += [f"{entry['processor_over_planned']:.2f}"]
        cells += [f"{size_text(entry['measured_moved_bytes'])} / {size_text(found.moved_bytes)}"]
    return "| " + " | ".join(cells) + " |"


def main(argv: list[str] | None = None) -> None:
    """Print the table, or with --json a list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pattern", default="Banded(128)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[100_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--chunk", type=int, default=1 << 20)
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of one worker, for the rate that is measured")
    parser.add_argument("--rows", type=int, default=1 << 18, help="for the rate: too many for a cache")
    parser.add_argument("--rate", type=float, help="GFLOP/s of one worker; measured here by default")
    parser.add_argument("--bandwidth", type=float, default=1000, help="MB/s into one worker")
    parser.add_argument("--check", action="store_true", help="measure on a cluster of processes on this machine")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    pattern = parse_pattern(args.pattern)
    if args.check:
        entries = check(pattern, args)
    else:
        one = args.rate * 1e9 if args.rate else rate(pattern, args.rows, args.d, args.threads).clock
        entries = ({"plan": plan(pattern, n, k, one, args), "rate": one} for n in args.tokens for k in args.workers)
    if args.json:
        print(json.dumps([{**entry, "plan": dataclasses.asdict(entry["plan"])} for entry in entries], indent=2))
        return
    names = ["tokens", "workers", "tasks", "TFLOP", "held", "moved in", "GF/s", "seconds", "efficiency"]
    names += ["measured", "over plan", "processor over plan", "moved / planned"] if args.check else []
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for entry in entries:
        print(line(entry), flush=True)


if __name__ == "__main__":
    main()
