"""What a long sequence takes on k workers: a plan from the cost model, or the model held against a cluster here.

    python docs/examples/scaling_plan.py --tokens 100000000 --workers 1 4 16 64
    python docs/examples/scaling_plan.py --check --tokens 262144 524288 1048576 --workers 1 2 --chunk 65536
    python docs/examples/scaling_plan.py --json ...

The rate of one worker is measured on one chunk, in memory, unless --rate gives it; --threads says how many threads a
worker has. `--check` starts a cluster of processes on this machine, one thread each, makes the inputs where they are
needed and times the attention alone. Every run is measured between two measurements of the rate on all workers at
once, and compared with those: a machine that others use as well is a moving target.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any

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


def rate(pattern: Pattern, n: int, d: int, threads: int = 1) -> float:
    """FLOPs a second of the kernel in memory on n rows, the best of three."""
    x = random_rows(0, n, d)
    took = []
    for _ in range(4):  # the first call loads kernels and plans
        start = time.perf_counter()
        attention(x, x, x, pattern, num_threads=threads)
        took.append(time.perf_counter() - start)
    return 4 * d * pattern.nnz(n, n) / min(took[1:])


def on_workers(client: distributed.Client, tokens: int, chunk: int, d: int, seed: int) -> da.Array:
    """Random rows in chunks that lie in order on the workers, as `scaling_plan` takes them to."""
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    sizes = [min(chunk, tokens - at) for at in range(0, tokens, chunk)]
    parts = [
        client.persist(
            da.from_delayed(dask.delayed(random_rows)(seed * 10_000 + number, size, d), (size, d), np.float32),
            workers=[workers[number * len(workers) // len(sizes)]],
        )
        for number, size in enumerate(sizes)
    ]
    whole = client.persist(da.concatenate(parts))
    distributed.wait([parts, whole])
    return whole


def moved(client: distributed.Client) -> int:
    """Bytes that the workers have received from one another so far."""
    of_each = client.run(lambda dask_worker: sum(entry["total"] for entry in dask_worker.transfer_incoming_log))
    return int(sum(of_each.values()))


def measured(
    client: distributed.Client, pattern: Pattern, tokens: int, args: argparse.Namespace
) -> Iterator[tuple[float, int, float]]:
    """Seconds, bytes moved and the rate of one worker around it, for each repetition."""
    arrays = [on_workers(client, tokens, args.chunk, args.d, seed) for seed in range(3)]
    workers = list(client.scheduler_info(n_workers=-1)["workers"])

    def rate_now() -> float:
        jobs = [client.submit(rate, pattern, args.chunk, args.d, workers=[w], pure=False) for w in workers]
        return min(client.gather(jobs))

    rates = [rate_now()]
    for _ in range(args.repeat):
        before, start = moved(client), time.perf_counter()
        out = client.persist(subquad_dask.attention(*arrays, pattern))
        distributed.wait(out)
        seconds = time.perf_counter() - start
        rates.append(rate_now())
        yield seconds, moved(client) - before, (rates[-2] + rates[-1]) / 2
        del out


def check(pattern: Pattern, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The plan and the measurement for every number of workers and of tokens: medians of all repetitions."""
    for workers in args.workers:
        cluster = distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0", memory_limit=0
        )
        with cluster, distributed.Client(cluster) as client:
            for tokens in args.tokens:
                ratios, seconds, bytes_moved, rates = [], [], [], []
                for took, moved_now, rate_now in measured(client, pattern, tokens, args):
                    found = plan(pattern, tokens, workers, rate_now, args)
                    ratios.append(took / found.seconds)
                    seconds.append(took)
                    bytes_moved.append(moved_now)
                    rates.append(rate_now)
                found = plan(pattern, tokens, workers, statistics.median(rates), args)
                yield {
                    "plan": found,
                    "measured_seconds": statistics.median(seconds),
                    "measured_over_planned": statistics.median(ratios),
                    "measured_moved_bytes": int(statistics.median(bytes_moved)),
                    "rate": statistics.median(rates),
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
        one = args.rate * 1e9 if args.rate else rate(pattern, min(args.chunk, 1 << 18), args.d, args.threads)
        entries = ({"plan": plan(pattern, n, k, one, args), "rate": one} for n in args.tokens for k in args.workers)
    if args.json:
        print(json.dumps([{**entry, "plan": dataclasses.asdict(entry["plan"])} for entry in entries], indent=2))
        return
    names = ["tokens", "workers", "tasks", "TFLOP", "held", "moved in", "GF/s", "seconds", "efficiency"]
    names += ["measured", "measured / planned", "moved / planned"] if args.check else []
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for entry in entries:
        print(line(entry), flush=True)


if __name__ == "__main__":
    main()
