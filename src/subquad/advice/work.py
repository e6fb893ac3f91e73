"""What a plan visits, counted from its tables."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from subquad.kernels import layout
from subquad.patterns.spans import Ints
from subquad.plan import GatheredPhase, Plan, TiledPhase

#: Neighbouring rows whose lists are looked at together: what one has fetched the next finds near.
NEIGHBOURS = 16
#: Groups of neighbouring rows that are looked at.
GROUPS = 64
#: What a key costs whose neighbour is fetched as well, of what a lone one does.
NEXT = 0.3


class Work(NamedTuple):
    """Keys that tiles visit, their runs and tiles; rows that have lists, their pairs, and keys fetched from afar.

    A tile of a window has as many new keys as rows, and counts once; one with more counts for so many.
    """

    keys: int
    runs: int
    tiles: float
    rows: int
    pairs: int
    fetches: float


def work_of(plan: Plan) -> Work:
    """Of one head. O(plan)."""
    keys = runs = rows = pairs = 0
    tiles = fetches = 0.0
    for phase in plan.phases:
        if isinstance(phase, TiledPhase):
            keys += int(phase.work.sum())
            runs += int((phase.tiles[:, layout.RUN_END] - phase.tiles[:, layout.RUN_BEGIN]).sum())
            tiles += len(phase.tiles) * _arrivals(phase, plan.lanes)
        else:
            rows += len(phase.indptr) - 1
            pairs += len(phase.indices)
            fetches += _fetches(phase)
    return Work(keys, runs, tiles, rows, pairs, fetches)


def _arrivals(phase: TiledPhase, lanes: int) -> float:
    """Keys of a tile that the one before it did not visit, by rows of a tile, but 1 at least; judged by some tiles."""
    found = []
    for tile in np.unique(np.linspace(min(1, len(phase.tiles) - 1), len(phase.tiles) - 1, GROUPS).astype(np.int64)):
        before, its = (_keys(phase, which) for which in (max(0, tile - 1), tile))
        found.append(max(1.0, len(np.setdiff1d(its, before, assume_unique=True)) / lanes))
    return float(np.mean(found))


def _keys(phase: TiledPhase, tile: int) -> Ints:
    """The keys that a tile visits, each once."""
    begin, end = phase.tiles[tile, [layout.RUN_BEGIN, layout.RUN_END]]
    runs = phase.runs[begin:end]
    parts = [np.zeros(0, np.int64)]
    for first, step, count, listed in runs[:, [layout.FIRST_KEY, layout.KEY_STEP, layout.KEY_COUNT, layout.KEY_LIST]]:
        parts.append(phase.keys[listed : listed + count] if listed >= 0 else first + step * np.arange(count))
    return np.unique(np.concatenate(parts))


def _fetches(phase: GatheredPhase) -> float:
    """Keys of lists that have to be waited for, judged by some rows: those that no row nearby has.

    Neighbours come in one after another, ahead of their use: each counts for `NEXT` of a key.
    """
    n_rows, seen, fetched = len(phase.indptr) - 1, 0, 0.0
    for begin in np.unique(np.linspace(0, max(0, n_rows - NEIGHBOURS), GROUPS).astype(np.int64)):
        keys = phase.indices[phase.indptr[begin] : phase.indptr[min(n_rows, begin + NEIGHBOURS)]]
        seen += len(keys)
        steps = np.diff(np.unique(keys), prepend=-2)
        fetched += np.count_nonzero(steps > 1) + NEXT * np.count_nonzero(steps == 1)
    return len(phase.indices) * fetched / max(1, seen)
