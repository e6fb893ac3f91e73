"""The plan: the tables that kernels read, and what people may ask of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subquad import checks
from subquad.kernels import layout
from subquad.patterns.base import Shape
from subquad.patterns.row_lists import expand
from subquad.patterns.spans import Ints
from subquad.plan.cost import Choice


class TiledPhase(NamedTuple):
    """Tiles of query rows against runs of keys; the columns of the tables stand in `subquad.kernels.layout`."""

    tiles: Ints  # (tiles, TILE_COLUMNS)
    runs: Ints  # (runs, RUN_COLUMNS)
    rows: Ints  # rows of tiles whose rows are not evenly spaced
    keys: Ints  # key lists, one after another
    bits: npt.NDArray[np.uint16]  # a bit a row, for keys whose mask no two integers can say

    @property
    def work(self) -> Ints:
        """Keys that each tile visits."""
        ends = np.concatenate(([0], np.cumsum(self.runs[:, layout.KEY_COUNT])))
        return ends[self.tiles[:, layout.RUN_END]] - ends[self.tiles[:, layout.RUN_BEGIN]]


class GatheredPhase(NamedTuple):
    """A list of keys for each query row, as CSR."""

    indptr: Ints  # (n_q + 1,)
    indices: Ints  # (pairs,)

    @property
    def work(self) -> Ints:
        """Keys that each row visits."""
        return np.diff(self.indptr)

    @property
    def longest(self) -> int:
        """Keys of the longest list."""
        return int(self.work.max(initial=0))

    def transposed(self, n_k: int) -> GatheredPhase:
        """A list of query rows for each key; made in parts, between which an interrupt is seen."""
        size = max(_SORTED, n_k)
        ends = np.searchsorted(self.indptr, np.arange(size, self.indptr[-1], size), side="right") - 1
        edges = np.unique(np.concatenate(([0], ends, [len(self.indptr) - 1]))).tolist()
        parts = [self._part_by_key(*part, n_k) for part in itertools.pairwise(edges)]
        indptr = np.zeros(n_k + 1, np.int64)
        for counts, _ in parts:
            indptr[1:] += counts
        np.cumsum(indptr, out=indptr)
        if len(parts) < 2:
            return GatheredPhase(indptr, parts[0][1] if parts else self.indices)
        rows, filled = np.empty_like(self.indices), indptr[:-1].copy()
        for counts, of_part in parts:  # the rows of a key follow those that earlier parts have put there
            rows[np.repeat(filled - np.cumsum(counts) + counts, counts) + np.arange(len(of_part))] = of_part
            filled += counts
        return GatheredPhase(indptr, rows)

    def _part_by_key(self, first: int, last: int, n_k: int) -> tuple[Ints, Ints]:
        """How many of the rows first <= i < last each key has, and these rows, by key."""
        # sorted as single numbers, which takes a tenth of what sorting places does
        pairs = self.indices[self.indptr[first] : self.indptr[last]] * max(1, last - first)
        pairs += np.repeat(np.arange(last - first), self.work[first:last])
        pairs.sort()
        keys, rows = np.divmod(pairs, max(1, last - first), out=(np.empty_like(pairs), pairs))
        rows += first
        return np.bincount(keys, minlength=n_k), rows


Phase = TiledPhase | GatheredPhase
Block = tuple[int, int, int, int]  # tiles first <= t < last, places begin <= x < end of the axis

_SORTED = 1 << 22  # pairs of lists that are turned over at a time, a quarter of a second
_TASK_FLOPS = 2e8  # about 2 ms of one thread: short enough to be interrupted, long enough to hide the call


def address(x: npt.NDArray[Any]) -> int:
    return int(x.__array_interface__["data"][0])


def cut(work: npt.NDArray[np.int64], cost: float) -> list[tuple[int, int]]:
    """Ranges of tiles (or rows) of about one task each, by the keys they visit: a rule that knows no threads."""
    if not len(work):
        return []
    done = np.cumsum(work + 1) * cost  # a row without keys still has to be written
    number = ((done - done[0]) // _TASK_FLOPS).astype(np.int64)
    starts = np.concatenate(([0], np.nonzero(np.diff(number))[0] + 1))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(work)], strict=True))


@dataclass(frozen=True)
class Plan:
    """Where the pairs of a pattern lie, each exactly once.

    Phases follow one another; each goes on from the result of those before. The mask is

        for phase in plan.phases:
            for tile in phase.tiles:                      # or, in a gathered phase, for each row
                for run in the tile's runs:
                    for key in the run: the rows of the tile that the run's mask allows

    Attributes
    ----------
    shape : Shape
        (n_q, n_k, position of query row 0).
    lanes : int
        Query rows in a tile.
    phases : tuple of TiledPhase or GatheredPhase
    nnz : int
        Pairs visited.
    choices : tuple of Choice
        For each part of the expression, tiles or lists, and what either was estimated to cost.
    """

    shape: Shape
    lanes: int
    phases: tuple[Phase, ...]
    nnz: int
    choices: tuple[Choice, ...] = ()
    _addresses: dict[int, list[int]] = field(default_factory=dict, repr=False, compare=False)
    _tasks: dict[tuple[int, float], list[tuple[int, int]]] = field(default_factory=dict, repr=False, compare=False)
    _waves: dict[tuple[int, float], list[list[Block]]] = field(default_factory=dict, repr=False, compare=False)
    _transposed: dict[int, GatheredPhase] = field(default_factory=dict, repr=False, compare=False)

    def tasks(self, number: int, cost: float) -> list[tuple[int, int]]:
        """Phase `number` cut into tasks; `cost` is FLOPs for a key that a tile (or row) visits."""
        if (number, cost) not in self._tasks:
            self._tasks[number, cost] = cut(self.phases[number].work, cost)
        return self._tasks[number, cost]

    def addresses(self, number: int) -> list[int]:
        """Where the tables of phase `number` lie."""
        if number not in self._addresses:
            self._addresses[number] = [address(table) for table in self.phases[number]]
        return self._addresses[number]

    def transposed(self, number: int) -> GatheredPhase:
        """The lists of phase `number` by key, made when a backward first asks for them."""
        if number not in self._transposed:
            phase = self.phases[number]
            assert isinstance(phase, GatheredPhase)
            self._transposed[number] = phase.transposed(self.shape.n_k)
        return self._transposed[number]

    @property
    def nbytes(self) -> int:
        """Bytes of all tables."""
        return sum(table.nbytes for phase in (*self.phases, *self._transposed.values()) for table in phase)

    def pairs(self) -> tuple[Ints, Ints]:
        """Query row and key of every visit, in no order: time and memory O(pairs)."""
        checks.allocatable(64 * self.nnz, f"a list of {self.nnz:,} pairs", "Ask for single rows with pattern.row.")
        found = [self._tiled_pairs(p) if isinstance(p, TiledPhase) else _listed_pairs(p) for p in self.phases]
        rows, keys = (np.concatenate([part[k] for part in found] or [np.arange(0)]) for k in (0, 1))
        return rows, keys

    def scatter(self) -> npt.NDArray[np.int64]:
        """How often each pair is visited, dense (n_q, n_k): 0 or 1 everywhere. For small sizes."""
        checks.allocatable(8 * self.shape.n_q * self.shape.n_k, "a dense n_q x n_k array", "Use a smaller size.")
        rows, keys = self.pairs()
        flat = np.bincount(rows * self.shape.n_k + keys, minlength=self.shape.n_q * self.shape.n_k)
        return flat.reshape(self.shape.n_q, self.shape.n_k)

    def describe(self) -> str:
        """The phases in words, with their sizes."""
        n_q, n_k, _ = self.shape
        lines = [f"{self.nnz:,} pairs of {n_q:,} x {n_k:,}; the plan takes {checks.size_text(self.nbytes)}"]
        for phase in self.phases:
            if isinstance(phase, TiledPhase):
                visited = int((phase.work * self.lanes).sum())
                lines.append(
                    f"  tiled: {len(phase.tiles):,} tiles of {self.lanes} rows, {len(phase.runs):,} runs of keys, "
                    f"{visited:,} pairs computed, {phase.bits.size:,} keys with a mask of bits"
                )
            else:
                lines.append(f"  gathered: {len(phase.indices):,} pairs, one list a row")
        if self.choices:
            lines.append("  estimated in pairs of a full tile:")
            lines += [f"    {choice}" for choice in self.choices]
        return "\n".join(lines)

    def _tiled_pairs(self, phase: TiledPhase) -> tuple[Ints, Ints]:
        runs, tiles = phase.runs, phase.tiles
        of_tile = tiles[:, layout.RUN_END] - tiles[:, layout.RUN_BEGIN]
        run = expand(tiles[:, layout.RUN_BEGIN], of_tile)  # neighbouring tiles may share theirs
        count = runs[run, layout.KEY_COUNT]
        tile = np.repeat(np.repeat(np.arange(len(tiles)), of_tile), count)
        run, t = np.repeat(run, count), expand(np.zeros_like(count), count)
        listed = runs[run, layout.KEY_LIST]
        keys = runs[run, layout.FIRST_KEY] + t * runs[run, layout.KEY_STEP]
        if len(phase.keys):
            keys = np.where(listed >= 0, phase.keys[np.maximum(listed, 0) + t * (listed >= 0)], keys)
        rows, present = self._tile_rows(phase)
        allowed = present[tile] & _mask(phase, run, t, keys, rows[tile] + self.shape.shift)
        visit, lane = np.nonzero(allowed)
        return rows[tile[visit], lane], keys[visit]

    def _tile_rows(self, phase: TiledPhase) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """Rows of every tile, (tiles, lanes), and which of them are there."""
        tiles, lane = phase.tiles, np.arange(self.lanes)
        present = np.asarray(lane < tiles[:, [layout.ROW_COUNT]])
        within: Ints = np.minimum(lane, tiles[:, [layout.ROW_COUNT]] - 1)
        rows: Ints = tiles[:, [layout.FIRST_ROW]] + within * tiles[:, [layout.ROW_STEP]]
        listed = tiles[:, [layout.ROW_LIST]]
        if len(phase.rows):
            rows = np.where(listed >= 0, phase.rows[np.maximum(listed, 0) + within * (listed >= 0)], rows)
        return rows, present


def _mask(phase: TiledPhase, run: Ints, t: Ints, keys: Ints, positions: Ints) -> npt.NDArray[np.bool_]:
    """Which rows (at `positions`) may see each visited key, (visits, lanes)."""
    fields = phase.runs[run]
    kind = fields[:, [layout.MASK]]
    block = np.maximum(fields[:, [layout.BLOCK]], 1)
    center, of_key = positions // block, keys[:, None] // block
    band = (center - fields[:, [layout.LEFT]] <= of_key) & (of_key <= center + fields[:, [layout.RIGHT]])
    band ^= kind == layout.MASK_OUTSIDE_BAND
    bits = np.zeros(band.shape, bool)
    if len(phase.bits):
        at = np.where(kind[:, 0] == layout.MASK_BITS, fields[:, layout.BITS_AT] + t, 0)
        bits = (phase.bits[at, None] >> np.arange(positions.shape[1])) & 1 == 1
    full = (fields[:, layout.FULL_BEGIN] <= t) & (t < fields[:, layout.FULL_END])
    full |= kind[:, 0] == layout.MASK_FULL
    return np.asarray(full[:, None] | np.where(kind == layout.MASK_BITS, bits, band))


def _listed_pairs(phase: GatheredPhase) -> tuple[Ints, Ints]:
    return np.repeat(np.arange(len(phase.indptr) - 1), np.diff(phase.indptr)), phase.indices
