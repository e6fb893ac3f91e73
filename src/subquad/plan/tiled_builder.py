"""The tables of a tiled phase: tiles, runs, key lists and bits, a chunk of tiles at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from subquad import checks
from subquad.kernels import layout
from subquad.kernels.layout import MASK_BITS, MASK_FULL, NO_LIST, STEP
from subquad.patterns.bands import Band
from subquad.patterns.base import Pattern, Shape
from subquad.patterns.spans import Ints, Tiles
from subquad.plan.cost import NATURAL, RESIDUES, SHARED
from subquad.plan.counting import count_pairs
from subquad.plan.masks import bits_set, words
from subquad.plan.segments import Axis, Segments, segment
from subquad.plan.tables import TiledPhase
from subquad.plan.terms import Group, Term

_Item = TypeVar("_Item", bound=np.generic)

_CHUNK_TILES = 1 << 12  # tiles planned at a time: bounds the memory beyond the plan
_CHUNK = 1 << 18  # places whose mask is worked out at a time


class TiledBuilder:
    """Collects tiles, runs, key lists and bits of one phase."""

    def __init__(self, shape: Shape, lanes: int, counting: bool) -> None:
        self.shape, self.lanes, self.counting = shape, lanes, counting
        self.tiles: list[Tiles] = []
        self.runs: list[Ints] = []
        self.begin: list[Ints] = []  # where the runs of each tile begin, and end
        self.end: list[Ints] = []
        self.keys: list[Ints] = []
        self.bits: list[npt.NDArray[np.uint16]] = []
        self.n_runs = self.n_keys = self.n_bits = self.nnz = 0
        self.axis_of_lists = -(-shape.n_k // STEP) * STEP  # where the next list begins on the axis
        self.list_place: dict[int, tuple[int, int]] = {}  # of a list: its place in the table, and on the axis

    def natural(self, groups: list[Group], terms: list[list[Term]]) -> TiledPhase:
        """Every row once, in its natural order, against stretches of keys and shared key lists."""
        for group, of_group in zip(groups, terms, strict=True):
            mine = [term for term in of_group if term.way in (NATURAL, SHARED)]
            self.tiles.append(group.tiles)
            for tiles in _in_chunks(group.tiles):
                self.add_tiles(tiles, [(term, Axis(tiles, self.shape, term.keys)) for term in mine])
        return self.finish()

    def residues(self, stride: int, groups: list[Group], terms: list[list[Term]]) -> TiledPhase:
        """The rows of one residue class after those of another, against the keys of their class."""
        for group, of_group in zip(groups, terms, strict=True):
            mine = [term for term in of_group if term.way == RESIDUES and term.stride == stride]
            if mine:
                self.tiles.append(self.class_tiles(stride, group))
                for tiles in _in_chunks(self.tiles[-1]):
                    self.add_tiles(tiles, [(term, Axis(tiles, self.shape, stride=stride)) for term in mine])
        return self.finish()

    def class_tiles(self, stride: int, group: Group) -> Tiles:
        rows = group.rows(self.shape.n_q)
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
            first = rows[0] + np.arange(min(stride, len(rows)))
            return Tiles.stretches(first, -((first - rows[-1] - 1) // stride), self.lanes, stride)
        order = np.argsort(rows % stride, kind="stable")
        rows, residue = rows[order], (rows % stride)[order]
        cuts = np.nonzero(np.diff(residue))[0] + 1
        parts = [Tiles.of(part, self.lanes) for part in np.split(rows, cuts)]
        return Tiles.join(parts or [Tiles.affine(0, 1, 0, self.lanes)])

    def add_tiles(self, tiles: Tiles, terms: list[tuple[Term, Axis]]) -> None:
        """Some tiles with the runs of all their terms; a tile whose runs are those of the one before shares them."""
        found = [self.runs_of(term, axis) for term, axis in terms]
        runs = np.concatenate([found_runs for found_runs, _ in found] or [np.empty((0, layout.RUN_COLUMNS), np.int64)])
        owner = _concatenated([tile for _, tile in found], np.int64)
        if len(found) > 1:
            order = np.argsort(owner, kind="stable")
            runs, owner = runs[order], owner[order]
        ends = np.searchsorted(owner, np.arange(len(tiles) + 1))
        begin, end, kept = _shared(runs, ends)
        self.begin.append(begin + self.n_runs)
        self.end.append(end + self.n_runs)
        self.runs.append(runs if kept.all() else runs[kept])
        self.n_runs += len(self.runs[-1])

    def runs_of(self, term: Term, axis: Axis) -> tuple[Ints, Ints]:
        """The runs of a term, and the tile of each."""
        segments, leaves = segment(term.expression, axis)
        segments, bits_at = self.add_bits(segments, axis, term.expression)
        if self.counting:
            self.nnz += count_pairs(segments, axis, leaves)
        runs, band, tile = _runs(segments, bits_at)
        start = runs[:, layout.AXIS].copy()
        for index in np.unique(band[band >= 0]):
            leaf = leaves[index]
            assert isinstance(leaf, Band)
            mine = (band == index) & (runs[:, layout.MASK] != MASK_BITS)
            runs[mine, layout.LEFT : layout.BLOCK + 1] = leaf.finite_reach(self.shape)
        runs[:, layout.KEY_LIST] = NO_LIST
        runs[:, layout.KEY_STEP] = axis.stride
        if axis.listed is None:
            runs[:, layout.FIRST_KEY] = axis.key(tile, start)
        elif len(runs):
            at, on_axis = self.place_list(axis.listed)
            runs[:, layout.KEY_LIST] = at + start
            runs[:, layout.AXIS] = on_axis + start
        return runs, tile

    def place_list(self, keys: Ints) -> tuple[int, int]:
        """A list of keys, kept once: on the axis each begins at a multiple of STEP, past the keys and other lists."""
        known = next(
            (number for number, kept in enumerate(self.keys) if kept is keys or np.array_equal(kept, keys)), None
        )
        if known is None:
            known = len(self.keys)
            self.keys.append(keys)
            self.list_place[known] = self.n_keys, self.axis_of_lists
            self.n_keys += len(keys)
            self.axis_of_lists += -(-len(keys) // STEP) * STEP
        return self.list_place[known]

    def add_bits(self, segments: Segments, axis: Axis, expression: Pattern) -> tuple[Segments, Ints]:
        """Work out the masks that only bits can say; segments that turn out empty or full need none."""
        wanted = np.nonzero(segments.mask == MASK_BITS)[0]
        bits_at = np.zeros(len(segments.tile), np.int64)
        if not len(wanted):
            return segments, bits_at
        kept, mask = np.ones(len(segments.tile), bool), segments.mask.copy()
        sizes = (segments.stop - segments.start)[wanted]
        checks.allocatable(
            2 * (int(sizes.sum()) + self.n_bits),
            f"the mask of {expression!r}",
            "Join patterns that overlap less, or shorten the input.",
        )
        every = (1 << self.lanes) - 1
        for at in _chunks(sizes):
            chosen, size = wanted[at], sizes[at]
            found = words(expression, segments.take(chosen), axis)
            first = np.cumsum(size) - size
            some = np.bitwise_or.reduceat(found, first) != 0
            full = np.bitwise_and.reduceat(found, first) == every
            kept[chosen], mask[chosen[full]] = some, MASK_FULL
            written = some & ~full
            if not written.all():
                found = found[np.repeat(written, size)]
            if self.counting:
                present = every >> (self.lanes - axis.tiles.count[segments.tile[chosen]])
                self.nnz += int(bits_set(found & np.repeat(present, size * written).astype(np.uint16)).sum())
            bits_at[chosen] = self.n_bits + np.cumsum(size * written) - size * written
            self.bits.append(found)
            self.n_bits += len(found)
        return segments._replace(mask=mask).take(kept), bits_at[kept]

    def finish(self) -> TiledPhase:
        runs = np.concatenate(self.runs) if self.runs else np.empty((0, layout.RUN_COLUMNS), np.int64)
        self.runs.clear()  # before the table of tiles is made: the chunks are as large as the whole
        joined = Tiles.join(self.tiles or [Tiles.affine(0, 1, 0, self.lanes)])
        table = np.empty((len(joined), layout.TILE_COLUMNS), np.int64)
        table[:, layout.FIRST_ROW], table[:, layout.ROW_STEP] = joined.first, joined.step
        table[:, layout.ROW_LIST], table[:, layout.ROW_COUNT] = joined.at, joined.count
        table[:, layout.RUN_BEGIN] = _concatenated(self.begin, np.int64)
        table[:, layout.RUN_END] = _concatenated(self.end, np.int64)
        bits = _concatenated(self.bits, np.uint16)
        return TiledPhase(table, runs, joined.listed, _concatenated(self.keys, np.int64), bits)


def _shared(runs: Ints, ends: Ints) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Begin and end of each tile's runs, those like the tile before left out; and which runs are kept."""
    begin, count = ends[:-1], np.diff(ends)
    kept = np.ones(len(runs), bool)
    if len(count) < 2:
        return begin, ends[1:], kept
    alike = np.zeros(len(count), bool)
    alike[1:] = (count[1:] == count[:-1]) & (count[1:] > 0)
    # the first run of a tile tells most of those apart that differ
    found = np.nonzero(alike)[0]
    alike[found] = (runs[begin[found]] == runs[begin[found - 1]]).all(axis=1)
    found = np.nonzero(alike)[0]
    if not len(found):
        return begin, ends[1:], kept
    run = np.nonzero(np.repeat(alike, count))[0]
    same = (runs[run] == runs[run - np.repeat(count, count)[run]]).all(axis=1)
    alike[found] = np.logical_and.reduceat(same, np.cumsum(count[found]) - count[found])
    kept = ~np.repeat(alike, count)
    ends = np.cumsum(np.where(alike, 0, count))
    return ends - count, ends, kept


def _runs(segments: Segments, bits_at: Ints) -> tuple[Ints, Ints, Ints]:
    """A row for each run, its band and its tile. Full stretches take in the band edges beside them."""
    tile, start, stop, mask, band = segments
    n = len(tile)
    near = np.zeros(n + 1, bool)  # near[k]: segment k goes on where k - 1 ends
    near[1:n] = (tile[1:] == tile[:-1]) & (start[1:] == stop[:-1])
    full, edge = mask == MASK_FULL, (mask != MASK_FULL) & (mask != MASK_BITS)
    index = np.arange(n)
    before, after = np.maximum(index - 1, 0), np.minimum(index + 1, n - 1)
    takes_left = full & near[:-1] & edge[before]
    claimed = np.zeros(n, bool)
    claimed[before[takes_left]] = True
    alike = (mask[before] == mask[after]) & (band[before] == band[after])
    takes_right = full & near[1:] & edge[after] & ~claimed[after] & (~takes_left | alike)
    taken = claimed.copy()
    taken[after[takes_right]] = True

    runs = np.zeros((n, layout.RUN_COLUMNS), np.int64)
    source = np.where(takes_left, before, np.where(takes_right, after, index))  # whose mask the run has
    first = np.where(takes_left, start[before], start)
    last = np.where(takes_right, stop[after], stop)
    runs[:, layout.AXIS], runs[:, layout.KEY_COUNT] = first, last - first
    runs[:, layout.FULL_BEGIN] = np.where(full, start - first, 0)
    runs[:, layout.FULL_END] = np.where(full, stop - first, 0)
    runs[:, layout.MASK] = mask[source]
    runs[:, layout.BITS_AT] = np.where(mask == MASK_BITS, bits_at, 0)
    runs[:, layout.BLOCK] = 1
    if not taken.any():
        return runs, band[source], tile
    return runs[~taken], band[source][~taken], tile[~taken]


def _chunks(sizes: Ints) -> Iterable[slice]:
    """Slices of neighbours whose sizes add up to about one chunk."""
    if not len(sizes):
        return
    number = (np.cumsum(sizes) - sizes) // _CHUNK
    cuts = np.concatenate(([0], np.nonzero(np.diff(number))[0] + 1, [len(sizes)]))
    for a, b in pairwise(cuts):
        yield slice(int(a), int(b))


def _concatenated(parts: Sequence[npt.NDArray[_Item]], dtype: type[_Item]) -> npt.NDArray[_Item]:
    return np.concatenate(parts) if parts else np.empty(0, dtype)


def _in_chunks(tiles: Tiles) -> Iterator[Tiles]:
    for at in range(0, len(tiles), _CHUNK_TILES):
        yield tiles.take(slice(at, at + _CHUNK_TILES))
