"""Where dense wins
================

The n below which dense attention is faster than a sparse pattern: NumPy with BLAS, and PyTorch's
`scaled_dot_product_attention` without a mask, on one thread each. Prints the tables of the page on performance::

    python docs/examples/dense_wins.py          # two minutes; needs the extra "torch"

Contenders take turns, and the least processor time of each counts. Plans, kernels and buffers are warm, as in a
model's second step.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import subquad
from subquad import Banded, Causal, Dense, Pattern, Random, Strided, bigbird, dense, longformer

HEADS, D = 4, 64
PATTERNS: dict[str, Pattern] = {
    "Banded(16)": Banded(16),
    "Banded(64)": Banded(64),
    "Banded(256)": Banded(256),
    "Strided(16)": Strided(16),
    "longformer(64, range(16))": longformer(64, range(16)),
    "bigbird(64)": bigbird(64),
    "Random(32, seed=0)": Random(32, seed=0),
    "Causal()": Causal(),
    "Dense()": Dense(),
}


def least(contenders: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """The least time of each, taken in turn for about so long: at least five times."""
    found = dict.fromkeys(contenders, float("inf"))
    for call in contenders.values():
        call()
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 5 or time.perf_counter() < end:
        for name, call in contenders.items():
            start = time.process_time()
            call()
            found[name] = min(found[name], time.process_time() - start)
        rounds += 1
    return found


def times(n: int, seconds: float) -> dict[str, float]:
    """Of every pattern and both dense ones, at one n."""
    query, key, value = np.random.default_rng(0).standard_normal((3, HEADS, n, D), dtype=np.float32)
    out = np.empty_like(value)
    tensors = [torch.from_numpy(x)[None] for x in (query, key, value)]
    contenders: dict[str, Callable[[], object]] = {
        name: partial(subquad.attention, query, key, value, pattern, out=out, num_threads=1)
        for name, pattern in PATTERNS.items()
    }
    contenders["NumPy"] = partial(dense.attention, query, key, value, out=out)
    contenders["PyTorch"] = partial(torch.nn.functional.scaled_dot_product_attention, *tensors)
    with torch.no_grad():
        return least(contenders, seconds)


def first_won(ns: list[int], mine: list[float], theirs: list[float]) -> str:
    """The n from which on every size is faster than dense."""
    lost = [n for n, a, b in zip(ns, mine, theirs, strict=True) if a >= b]
    if not lost:
        return f"never slower ({ns[0]} on)"
    after = [n for n in ns if n > lost[-1]]
    return str(after[0]) if after else f"slower up to {ns[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description="The n below which dense attention is faster.")
    parser.add_argument("--n", default="16,32,64,128,256,512,1024", help="sizes, separated by commas")
    parser.add_argument("--seconds", type=float, default=15, help="for each n")
    options = parser.parse_args()
    torch.set_num_threads(1)
    ns = [int(n) for n in options.n.split(",")]
    found = [times(n, options.seconds) for n in ns]
    print(f"\nMicroseconds of a call, {HEADS} heads, d = {D}\n")
    print("| | " + " | ".join(f"n = {n:,}" for n in ns) + " |\n" + "|---" * (len(ns) + 1) + "|")
    for name in found[0]:
        label = name if name in ("NumPy", "PyTorch") else f"`{name}`"
        print(f"| {label} | " + " | ".join(f"{1e6 * one[name]:,.0f}" for one in found) + " |")
    print("\nFaster than dense from this n on\n\n| | than NumPy | than PyTorch |\n|---|---|---|")
    for name in PATTERNS:
        won = [
            first_won(ns, [one[name] for one in found], [one[rival] for one in found]) for rival in ("NumPy", "PyTorch")
        ]
        print(f"| `{name}` | {won[0]} | {won[1]} |")


if __name__ == "__main__":
    main()
