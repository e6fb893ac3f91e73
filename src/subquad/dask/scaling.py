"""What a sequence takes on so many workers: FLOPs from the cost model, bytes from the chunks that need them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

from subquad import checks
from subquad.complexity.costs import _itemsize, cost
from subquad.dask.pieces import Group, Partition
from subquad.inputs import checked_pattern
from subquad.patterns._part import part
from subquad.patterns.base import Pattern, Shape


@dataclass(frozen=True)
class ScalingPlan:
    """What `scaling_plan` counted. Of the busiest worker, where it says *busiest*.

    Attributes
    ----------
    tokens, chunk, workers : int
    tasks : int
        Attention tasks of all workers.
    pairs, flops : int
        Of all workers, all heads.
    busiest_flops : int
    moved_bytes : int
        That workers must get from one another: keys and values; query rows that travel instead, and their results.
    busiest_moved_bytes : int
    resident_bytes : int
        The busiest worker's inputs and output.
    seconds_computing, seconds_moving : float
        The busiest worker's FLOPs over its rate, and its bytes over the bandwidth.
    seconds : float
        Their sum: nothing is taken to overlap.
    seconds_alone : float
        One worker with all of it.
    """

    tokens: int
    chunk: int
    workers: int
    tasks: int
    pairs: int
    flops: int
    busiest_flops: int
    moved_bytes: int
    busiest_moved_bytes: int
    resident_bytes: int
    seconds_computing: float
    seconds_moving: float
    seconds_alone: float

    @property
    def seconds(self) -> float:
        """Computing and moving, one after the other."""
        return self.seconds_computing + self.seconds_moving

    @property
    def efficiency(self) -> float:
        """How much of the workers' time is computing that one worker alone would have to do as well."""
        return self.seconds_alone / (self.workers * self.seconds) if self.seconds else 1.0


def scaling_plan(
    pattern: Pattern,
    tokens: int,
    workers: int,
    *,
    chunk: int,
    flops_per_second: float,
    bytes_per_second: float,
    d: int = 64,
    heads: int = 1,
    dtype: Any = "float32",
) -> ScalingPlan:
    """Predict `subquad.dask.attention` of `tokens` queries and keys, cut into chunks that lie in order on the workers.

    Parameters
    ----------
    pattern : Pattern
    tokens, workers, chunk : int
        Workers hold neighbouring chunks, as many each as can be; the last chunk may be shorter.
    flops_per_second : float
        Of one worker with all its threads, for this pattern: measured, as pairs x 4 d over the time of
        `subquad.attention` on one chunk.
    bytes_per_second : float
        At which one worker gets data from the others.
    d, heads, dtype : optional
        As in `subquad.complexity.cost`.

    Returns
    -------
    ScalingPlan
        Pairs, FLOPs and bytes are exact for patterns of one window or one set of columns; seconds are a model.

    Notes
    -----
    Time O(chunks + pieces) and the plans of a few different chunks: those of a window are all alike.

    Examples
    --------
    >>> from subquad import Banded
    >>> found = scaling_plan(
    ...     Banded(128), 1_000_000, 4, chunk=50_000, flops_per_second=50e9, bytes_per_second=1e9
    ... )
    >>> found.pairs == Banded(128).nnz(1_000_000, 1_000_000), found.moved_bytes == 3 * 2 * 128 * 2 * 64 * 4
    (True, True)
    >>> round(found.seconds, 2), round(found.efficiency, 2)
    (0.33, 1.0)
    """
    checked_pattern(pattern)
    tokens, workers = checks.integer(tokens, "tokens", 1), checks.integer(workers, "workers", 1)
    chunk, d, heads = checks.integer(chunk, "chunk", 1), checks.integer(d, "d", 1), checks.integer(heads, "heads", 1)
    for name, speed in (("flops_per_second", flops_per_second), ("bytes_per_second", bytes_per_second)):
        if not 0 < speed < math.inf:
            raise ValueError(f"{name} must be a positive number; got {speed!r}")
    sizes = [min(chunk, tokens - at) for at in range(0, tokens, chunk)]
    shape = Shape.aligned(tokens, tokens)
    pattern._validate(shape)
    partition = Partition((pattern,), shape, sizes, sizes)
    owner = [number * workers // len(sizes) for number in range(len(sizes))]
    pairs, moved, rows = [0] * workers, [0] * workers, [0] * workers
    column, tasks = heads * _itemsize(dtype), 0
    for number, size in enumerate(sizes):
        needs, mine = partition.needs(number), owner[number]
        rows[mine] += size
        for groups, n_rows in ((needs.groups, size), (needs.of_few, 0 if needs.few is None else len(needs.few))):
            tasks += len(groups)
            for group in groups:
                counted = _pairs(group, d, heads, dtype)
                for piece, its_pairs in zip(group.pieces, counted, strict=True):
                    there = owner[piece.chunk]
                    keys, back = 2 * d * len(piece) * column, (2 * d + 1) * n_rows * column
                    stays = piece.sent or keys <= back  # else the rows go to the keys, and their results come back
                    pairs[mine if stays else there] += its_pairs
                    if there != mine and stays:
                        moved[mine] += keys
                    elif there != mine:
                        moved[there] += d * n_rows * column
                        moved[mine] += (d + 1) * n_rows * column
    flops = [4 * d * n for n in pairs]
    busiest = max(range(workers), key=lambda w: flops[w] / flops_per_second + moved[w] / bytes_per_second)
    return ScalingPlan(
        tokens=tokens,
        chunk=chunk,
        workers=workers,
        tasks=tasks,
        pairs=sum(pairs),
        flops=sum(flops),
        busiest_flops=flops[busiest],
        moved_bytes=sum(moved),
        busiest_moved_bytes=moved[busiest],
        resident_bytes=4 * d * max(rows) * column,
        seconds_computing=flops[busiest] / flops_per_second,
        seconds_moving=moved[busiest] / bytes_per_second,
        seconds_alone=sum(flops) / flops_per_second,
    )


def _pairs(group: Group, d: int, heads: int, dtype: Any) -> list[int]:
    """Pairs of each piece, by the cost model; equal pieces are counted once."""
    (pattern,) = group.patterns
    found = []
    for piece in group.pieces:
        local = part(pattern, group.shape, group.rows, piece.keys)
        found.append(_cost(local, len(group.rows), len(piece.keys), d, heads, str(dtype)))
    return found


@functools.lru_cache(maxsize=256)
def _cost(pattern: Pattern, n_q: int, n_k: int, d: int, heads: int, dtype: str) -> int:
    return cost(pattern, n_q, n_k, d, heads, dtype).pairs
