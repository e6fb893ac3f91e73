"""Who may write at once: a backward adds to the gradients of keys that many tiles share.

Tiles are cut into chunks, and the axis of keys into cells. What a chunk does to some cells is a block. Blocks that share
no chunk and no cell form a *wave* and may run side by side; waves follow one another. So every gradient is a sum in one
fixed order, whatever the number of threads, with no atomics and no copies to be added up.

Where chunks overlap little (a band, a residue class) a block is a chunk with all its keys. Where every chunk meets every
key (dense, causal) the axis is cut too, and the waves are the diagonals of a grid.
"""

from __future__ import annotations

import math

import numpy as np

from subquad.kernels import layout
from subquad.patterns.block_lists import expand
from subquad.patterns.spans import Bools, Ints
from subquad.plan.tables import Block, Plan, TiledPhase

_BLOCK_FLOPS = 2.5e8  # about 4 ms of one thread
_CELLS = 4  # cells for each chunk, where only chunks are cut: finer cells let more chunks stand side by side


def waves(plan: Plan, number: int, cost: float) -> list[list[Block]]:
    """The waves of phase `number`, kept with the plan; `cost` is FLOPs for a key that a tile visits."""
    if (number, cost) not in plan._waves:
        plan._waves[number, cost] = _waves(plan.phases[number], cost)
    return plan._waves[number, cost]


def _waves(phase: TiledPhase, cost: float) -> list[list[Block]]:
    listed = phase.runs[:, layout.KEY_LIST] >= 0
    found = []
    for chosen in (~listed, listed):  # a listed key may lie in any cell: lists have waves of their own
        if chosen.any():
            found += _coloured(*_blocks(phase, chosen, cost))
    return found


def _blocks(phase: TiledPhase, chosen: Bools, cost: float) -> tuple[list[Block], list[Ints]]:
    """Blocks of some runs, and the cells that each writes to."""
    runs = phase.runs[chosen]
    per_tile = phase.tiles[:, layout.RUN_END] - phase.tiles[:, layout.RUN_BEGIN]
    tile = np.repeat(np.arange(len(phase.tiles)), per_tile)[chosen]
    begin, end = runs[:, layout.AXIS], runs[:, layout.AXIS] + runs[:, layout.KEY_COUNT]
    listed = bool((runs[:, layout.KEY_LIST] >= 0).any())
    residue = runs[:, layout.FIRST_KEY] % np.maximum(runs[:, layout.KEY_STEP], 1)
    origin, length = int(begin.min()), int(end.max() - begin.min())
    work = np.bincount(tile, end - begin, len(phase.tiles)) * cost
    whole = [origin, origin + length]

    n_blocks = max(1, math.ceil(work.sum() / _BLOCK_FLOPS))
    for n_chunks, n_cells in ((n_blocks, 1 if listed else _CELLS * n_blocks), (math.isqrt(n_blocks - 1) + 1,) * 2):
        bounds = _chunks(work, n_chunks)
        chunk = np.searchsorted(bounds, tile, side="right") - 1
        size = max(layout.STEP, -(-length // n_cells))
        first, last = (begin - origin) // size, (end - 1 - origin) // size
        count = last - first + 1
        cell, owner = expand(first, count), np.repeat(chunk, count)
        n_places = int(last.max()) + 1
        resource = np.repeat(residue, count) * n_places + cell
        together = np.unique(owner * (int(resource.max()) + 1) + resource)
        chunk_of, resource_of = np.divmod(together, int(resource.max()) + 1)
        depth = len(together) / len(np.unique(resource_of))  # chunks that meet in a cell
        if listed or depth <= 3 or 2 * depth <= n_chunks:
            cut = chunk_of
            spans = [whole] * len(bounds)
            break
    else:
        cut = chunk_of * n_places + resource_of % n_places
        order = np.argsort(cut, kind="stable")
        cut, chunk_of, resource_of = cut[order], chunk_of[order], resource_of[order]
        spans = [[origin + c * size, min(origin + (c + 1) * size, whole[1])] for c in range(n_places)]
    starts = np.concatenate(([0], np.nonzero(np.diff(cut))[0] + 1))
    blocks, cells = [], np.split(resource_of, starts[1:])
    for at in starts.tolist():
        c = int(chunk_of[at])
        span = spans[int(resource_of[at]) % n_places if spans[0] is not whole else 0]
        blocks.append((int(bounds[c]), int(bounds[c + 1]), span[0], span[1]))
    return blocks, cells


def _chunks(work: Ints, n_chunks: int) -> Ints:
    """Bounds of ranges of tiles with about equal work."""
    done = np.cumsum(work)
    edges = np.searchsorted(done, done[-1] * np.arange(1, n_chunks) / n_chunks, side="left") + 1
    return np.unique(np.concatenate(([0], edges, [len(work)])))


def _coloured(blocks: list[Block], cells: list[Ints]) -> list[list[Block]]:
    """Blocks by wave: each in the first one where neither its tiles nor its cells are taken."""
    taken: dict[int, int] = {}  # waves of a cell (or, below 0, of a chunk) as bits
    found: list[list[Block]] = []
    for block, of_block in zip(blocks, cells, strict=True):
        resources = [-1 - block[0], *of_block.tolist()]
        busy = 0
        for resource in resources:
            busy |= taken.get(resource, 0)
        wave = (~busy & (busy + 1)).bit_length() - 1
        for resource in resources:
            taken[resource] = taken.get(resource, 0) | 1 << wave
        found += [[] for _ in range(wave + 1 - len(found))]
        found[wave].append(block)
    return found
