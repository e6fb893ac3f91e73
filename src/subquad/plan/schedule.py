"""Who may write at once: a backward adds to the gradients of keys that many tiles share.

Tiles are cut into chunks, and the axis of keys into cells. What a chunk does to some cells is a block. Blocks that
share no chunk and no cell form a *wave* and may run side by side; waves follow one another. So every gradient is a sum
in one fixed order, whatever the number of threads, with no atomics and no copies to be added up.

Where chunks overlap little (a band, a residue class) a block is a chunk with all its keys. Where every chunk meets
every key (dense, causal) the axis is cut too, and the waves cross a grid from corner to corner.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from subquad.kernels import layout
from subquad.kernels.layout import NO_LIST
from subquad.patterns.row_lists import expand
from subquad.patterns.spans import Ints
from subquad.plan.tables import Block, Plan, TiledPhase

_BLOCK_FLOPS = 2.5e8  # about 4 ms of one thread
_CELLS = 4  # cells for each chunk, where only chunks are cut: finer cells let more chunks stand side by side


class _Visits(NamedTuple):
    """Stretches of the axis that tiles visit, ascending by tile."""

    tile: Ints
    begin: Ints
    end: Ints
    residue: Ints  # classes of keys have places in common, but no keys


class _Cells(NamedTuple):
    """The cells that chunks of tiles write to, each once, ascending by chunk."""

    bounds: Ints  # chunk c is tiles bounds[c] <= t < bounds[c + 1]
    edges: Ints  # cell x is places edges[x] <= p < edges[x + 1]
    chunk: Ints
    cell: Ints
    key: Ints  # the same for the same cell of the same residue class

    @property
    def depth(self) -> float:
        """Chunks that meet in a cell."""
        return len(self.key) / len(_distinct(self.key))


def waves(plan: Plan, number: int, cost: float) -> list[list[Block]]:
    """The waves of a tiled phase, kept with the plan; `cost` is FLOPs for a key that a tile visits."""
    if (number, cost) not in plan._waves:
        phase = plan.phases[number]
        assert isinstance(phase, TiledPhase)
        found: list[list[Block]] = []
        # A listed key has a place of its own in one list, and may lie in any cell beside: so lists have waves of their
        # own, after the others.
        for listed in (False, True):
            visits = _visits(phase, listed)
            if len(visits.tile):
                found += _coloured(*_blocks(visits, len(phase.tiles), cost))
        plan._waves[number, cost] = found
    return plan._waves[number, cost]


def _visits(phase: TiledPhase, listed: bool) -> _Visits:
    begin, count = phase.tiles[:, layout.RUN_BEGIN], phase.tiles[:, layout.RUN_END] - phase.tiles[:, layout.RUN_BEGIN]
    run, tile = expand(begin, count), np.repeat(np.arange(len(begin)), count)  # tiles may share their runs
    chosen = (phase.runs[run, layout.KEY_LIST] != NO_LIST) == listed
    tile, runs = tile[chosen], phase.runs[run[chosen]]
    place = runs[:, layout.AXIS]
    return _Visits(tile, place, place + runs[:, layout.KEY_COUNT], runs[:, layout.FIRST_KEY] % runs[:, layout.KEY_STEP])


def _blocks(visits: _Visits, n_tiles: int, cost: float) -> tuple[list[Block], list[Ints]]:
    """Blocks of about equal work, and the cells of each, as keys."""
    work = np.bincount(visits.tile, cost * (visits.end - visits.begin), n_tiles)
    n_blocks = max(1, math.ceil(work.sum() / _BLOCK_FLOPS))
    cells = _cells(visits, _chunks(work, n_blocks), _CELLS * n_blocks)
    if cells.depth <= 3 or 2 * cells.depth <= n_blocks:
        first = np.nonzero(np.diff(cells.chunk, prepend=-1))[0]
        begin, end = np.full(len(first), cells.edges[0]), np.full(len(first), cells.edges[-1])
    else:
        side = math.isqrt(n_blocks - 1) + 1
        cells = _cells(visits, _chunks(work, side), side)
        order = np.lexsort((cells.key, cells.cell, cells.chunk))
        cells = cells._replace(chunk=cells.chunk[order], cell=cells.cell[order], key=cells.key[order])
        first = np.nonzero(np.diff(cells.chunk, prepend=-1) | np.diff(cells.cell, prepend=-1))[0]
        begin, end = cells.edges[cells.cell[first]], cells.edges[cells.cell[first] + 1]
    chunk = cells.chunk[first]
    table = np.stack([cells.bounds[chunk], cells.bounds[chunk + 1], begin, end], axis=1)
    return [(a, b, c, d) for a, b, c, d in table.tolist()], np.split(cells.key, first[1:])


def _chunks(work: Ints, n_chunks: int) -> Ints:
    """Bounds of ranges of tiles of about equal work."""
    done = np.cumsum(work)
    inner = np.searchsorted(done, done[-1] * np.arange(1, n_chunks) / n_chunks) + 1
    return np.unique(np.concatenate(([0], np.minimum(inner, len(work)), [len(work)])))


def _cells(visits: _Visits, bounds: Ints, n_cells: int) -> _Cells:
    """The axis cut into about `n_cells` cells, and who writes to which."""
    origin, end = int(visits.begin.min()), int(visits.end.max())
    size = max(layout.STEP, -(-(end - origin) // n_cells))
    first = (visits.begin - origin) // size
    count = (visits.end - 1 - origin) // size - first + 1
    n_cells = -(-(end - origin) // size)
    chunk = np.repeat(np.searchsorted(bounds, visits.tile, side="right") - 1, count)
    key = np.repeat(visits.residue, count) * n_cells + expand(first, count)
    n_keys = int(key.max()) + 1
    chunk, key = np.divmod(_distinct(chunk * n_keys + key), n_keys)
    edges = np.minimum(origin + size * np.arange(n_cells + 1), end)
    return _Cells(bounds, edges, chunk, key % n_cells, key)


def _distinct(x: Ints) -> Ints:
    """`np.unique`, whose hash table takes five times as long here: half a second in which no interrupt is seen."""
    ascending: Ints = np.sort(x)
    found: Ints = ascending[np.diff(ascending, prepend=-1) != 0]
    return found


def _coloured(blocks: list[Block], cells: list[Ints]) -> list[list[Block]]:
    """Blocks by wave: each in the first one where its cells are free, after the earlier blocks of its tiles.

    Blocks come by tiles, then by cells: so a tile meets its keys in ascending order, and the gradient of a query row
    has the same bits whatever rows are beside it.
    """
    taken: dict[int, int] = {}  # waves of a cell as bits
    next_wave: dict[int, int] = {}  # of the tiles from a first one on
    found: list[list[Block]] = []
    for block, keys in zip(blocks, cells, strict=True):
        wanted = keys.tolist()
        busy = (1 << next_wave.get(block[0], 0)) - 1
        for cell in wanted:
            busy |= taken.get(cell, 0)
        wave = (~busy & (busy + 1)).bit_length() - 1
        for cell in wanted:
            taken[cell] = taken.get(cell, 0) | 1 << wave
        next_wave[block[0]] = wave + 1
        found += [[] for _ in range(wave + 1 - len(found))]
        found[wave].append(block)
    return found
