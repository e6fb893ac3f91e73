"""Building a plan: groups of rows, terms, phases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from subquad import checks
from subquad.kernels import layout
from subquad.kernels.layout import MASK_BAND, MASK_BITS, MASK_FULL, NO_LIST, STEP
from subquad.patterns.bands import Band
from subquad.patterns.base import Pattern, Shape
from subquad.patterns.global_tokens import KeySet
from subquad.patterns.spans import Ints, Tiles
from subquad.patterns.strided import Strided
from subquad.plan.segments import Axis, Segments, segment
from subquad.plan.tables import GatheredPhase, Phase, Plan, TiledPhase
from subquad.plan.terms import Group, Term, disjoint_terms, expand_globals, is_listed, row_groups

_Item = TypeVar("_Item", bound=np.generic)

_CHUNK = 1 << 20  # pairs whose mask is worked out at a time


def build(pattern: Pattern, shape: Shape, itemsize: int) -> Plan:
    """The plan of a pattern; time and memory follow the rows and what the plan holds, never n_q x n_k."""
    lanes = layout.lanes_of(itemsize)
    groups = row_groups(expand_globals(pattern), shape, lanes)
    terms = [disjoint_terms(g.expression, shape) if g.expression is not None else [] for g in groups]
    drivers = [term.driver for of_group in terms for term in of_group]
    strides = sorted({d.stride for d in drivers if isinstance(d, Strided) and not is_listed(d, shape)})
    listed = any(d is not None and is_listed(d, shape) for d in drivers)
    in_order = any(d is None or isinstance(d, KeySet) for d in drivers)

    phases: list[Phase] = []
    builders: list[_TiledBuilder] = []

    counting = type(pattern)._count is Pattern._count

    def tiled() -> _TiledBuilder:
        builders.append(_TiledBuilder(shape, lanes, counting))
        return builders[-1]

    # the first phase must write every row: strides do only where all rows have the first of them, lists always do
    covered = bool(strides) and len(groups) == 1
    if in_order or not (covered or (listed and not strides)):
        phases.append(tiled().natural(groups, terms))
    phases += [tiled().residues(stride, groups, terms) for stride in strides]
    # a single pattern knows its pairs in closed form
    nnz = sum(builder.nnz for builder in builders) if counting else pattern._count(shape)
    if listed:
        lists = _gathered(shape, groups, terms)
        phases.append(lists)
        nnz += len(lists.indices) if counting else 0
    for table in (table for phase in phases for table in phase):
        table.flags.writeable = False
    return Plan(shape, lanes, tuple(phases), nnz)


class _TiledBuilder:
    """Collects tiles, runs, key lists and bits of one phase."""

    def __init__(self, shape: Shape, lanes: int, counting: bool) -> None:
        self.shape, self.lanes, self.counting = shape, lanes, counting
        self.tiles: list[Tiles] = []
        self.runs: list[Ints] = []
        self.tile_of_run: list[Ints] = []
        self.keys: list[Ints] = []
        self.bits: list[npt.NDArray[np.uint16]] = []
        self.n_tiles = self.n_keys = self.n_bits = self.nnz = 0
        self.list_place: dict[KeySet, tuple[Ints, int]] = {}

    def natural(self, groups: list[Group], terms: list[list[Term]]) -> TiledPhase:
        """Every row once, in its natural order, against stretches of keys and shared key lists."""
        for group, of_group in zip(groups, terms, strict=True):
            for driver, expression in of_group:
                if driver is None:
                    self.add(group.tiles, Axis(group.tiles, self.shape), driver, expression)
                elif isinstance(driver, KeySet):
                    self.add(group.tiles, Axis(group.tiles, self.shape, self.key_list(driver)), driver, expression)
            self.end_tiles(group.tiles)
        return self.finish()

    def residues(self, stride: int, groups: list[Group], terms: list[list[Term]]) -> TiledPhase:
        """The rows of one residue class after those of another, against the keys of their class."""
        for group, of_group in zip(groups, terms, strict=True):
            mine = [term for term in of_group if isinstance(term.driver, Strided) and term.driver.stride == stride]
            if not mine:
                continue
            tiles = self.class_tiles(stride, group)
            for driver, expression in mine:
                self.add(tiles, Axis(tiles, self.shape, stride=stride), driver, expression)
            self.end_tiles(tiles)
        return self.finish()

    def class_tiles(self, stride: int, group: Group) -> Tiles:
        first = np.arange(min(stride, self.shape.n_q))
        if group.members is None:
            count = -((first - self.shape.n_q) // stride)
            parts = [Tiles.affine(int(a), stride, int(n), self.lanes) for a, n in zip(first, count, strict=True)]
        else:
            order = np.argsort(group.members % stride, kind="stable")
            rows, residue = group.members[order], (group.members % stride)[order]
            cuts = np.nonzero(np.diff(residue))[0] + 1
            parts = [Tiles.of(part, self.lanes) for part in np.split(rows, cuts)]
        return Tiles.join(parts or [Tiles.affine(0, 1, 0, self.lanes)])

    def key_list(self, driver: KeySet) -> Ints:
        """The keys of a driver, kept once in the table of lists."""
        if driver not in self.list_place:
            keys = driver.members(self.shape)
            self.list_place[driver] = keys, self.n_keys
            self.keys.append(keys)
            self.n_keys += len(keys)
        return self.list_place[driver][0]

    def add(self, tiles: Tiles, axis: Axis, driver: Pattern | None, expression: Pattern) -> None:
        """Runs of an expression for some tiles."""
        segments, leaves = segment(expression, driver, axis)
        segments, bits_at = self.add_bits(segments, axis, expression)
        if self.counting:
            self.count(segments, axis, leaves)
        runs = _runs(segments, bits_at)
        tile, start = runs[:, -1], runs[:, layout.AXIS].copy()
        bands = {index: leaf.finite_reach(self.shape) for index, leaf in enumerate(leaves) if isinstance(leaf, Band)}
        for index, reach in bands.items():
            mine = (runs[:, -2] == index) & (runs[:, layout.MASK] != MASK_BITS)
            runs[mine, layout.LEFT : layout.BLOCK + 1] = reach
        runs[:, layout.KEY_LIST] = NO_LIST
        runs[:, layout.KEY_STEP] = axis.stride
        if isinstance(driver, KeySet):
            at = self.list_place[driver][1]
            runs[:, layout.KEY_LIST] = at + start
            # each list begins on the axis at a multiple of STEP of its own, past the keys and the lists before it
            before = [-(-len(keys) // STEP) * STEP for keys, place in self.list_place.values() if place < at]
            runs[:, layout.AXIS] = start + -(-self.shape.n_k // STEP) * STEP + sum(before)
        else:
            runs[:, layout.FIRST_KEY] = axis.key(tile, start)
        self.tile_of_run.append(tile + self.n_tiles)
        self.runs.append(runs[:, : layout.RUN_COLUMNS])

    def add_bits(self, segments: Segments, axis: Axis, expression: Pattern) -> tuple[Segments, Ints]:
        """Work out the masks that only bits can say; segments that turn out empty or full need none."""
        bits_at = np.zeros(len(segments.tile), np.int64)
        kept, mask = np.ones(len(segments.tile), bool), segments.mask.copy()
        wanted = np.nonzero(mask == MASK_BITS)[0]
        sizes = (segments.stop - segments.start)[wanted]
        checks.allocatable(
            2 * int(sizes.sum()),
            f"the mask of {expression!r}",
            "Join patterns that overlap less, or shorten the input.",
        )
        for at in _chunks(sizes * self.lanes):
            chosen = wanted[at]
            size = (segments.stop - segments.start)[chosen]
            owner = np.repeat(np.arange(len(chosen)), size)
            ends = np.cumsum(size)
            place = np.arange(int(ends[-1])) - np.repeat(ends - size, size) + np.repeat(segments.start[chosen], size)
            tile = segments.tile[chosen][owner]
            rows, key = axis.tiles.rows(tile), axis.key(tile, place)
            allowed = expression._contains(rows, np.broadcast_to(key[:, None], rows.shape), self.shape)
            words = (allowed * (1 << np.arange(self.lanes))).sum(axis=1).astype(np.uint16)
            some = np.logical_or.reduceat(words != 0, ends - size)
            every = np.logical_and.reduceat(words == (1 << self.lanes) - 1, ends - size)
            kept[chosen], mask[chosen[every]] = some, MASK_FULL
            written = some & ~every
            present = np.arange(self.lanes) < axis.tiles.count[tile, None]
            self.nnz += int((allowed & present & written[owner, None]).sum())
            bits_at[chosen] = self.n_bits + np.cumsum(size * written) - size * written
            self.bits.append(words[written[owner]])
            self.n_bits += len(self.bits[-1])
        return segments._replace(mask=mask).take(kept), bits_at[kept]

    def count(self, segments: Segments, axis: Axis, leaves: list[Pattern]) -> None:
        """Add up the pairs of full and of band segments; those of bits have been counted."""
        height, size = axis.tiles.count[segments.tile], segments.stop - segments.start
        self.nnz += int((height * size)[segments.mask == MASK_FULL].sum())
        for index, leaf in enumerate(leaves):
            edges = np.nonzero((segments.band == index) & (segments.mask != MASK_FULL))[0]
            for at in _chunks(np.full(len(edges), 4 * self.lanes)):
                tile, start, stop, mask, _ = segments.take(edges[at])
                rows = axis.tiles.rows(tile)
                low, high = leaf._bounds(rows + self.shape.shift, self.shape)  # type: ignore[attr-defined]
                tiles = np.broadcast_to(tile[:, None], rows.shape)
                low, high = (np.clip(axis.place(tiles, j), start[:, None], stop[:, None]) for j in (low, high))
                inside = np.maximum(high - low, 0)
                outside = (stop - start)[:, None] - inside
                present = np.arange(self.lanes) < axis.tiles.count[tile, None]
                self.nnz += int((np.where(mask[:, None] == MASK_BAND, inside, outside) * present).sum())

    def end_tiles(self, tiles: Tiles) -> None:
        self.tiles.append(tiles)
        self.n_tiles += len(tiles)

    def finish(self) -> TiledPhase:
        joined = Tiles.join(self.tiles or [Tiles.affine(0, 1, 0, self.lanes)])
        owner = _concatenated(self.tile_of_run, np.int64)
        runs = np.concatenate(self.runs) if self.runs else np.empty((0, layout.RUN_COLUMNS), np.int64)
        if len(self.runs) > 1:
            order = np.argsort(owner, kind="stable")
            owner, runs = owner[order], runs[order]
        table = np.empty((len(joined), layout.TILE_COLUMNS), np.int64)
        table[:, layout.FIRST_ROW], table[:, layout.ROW_STEP] = joined.first, joined.step
        table[:, layout.ROW_LIST], table[:, layout.ROW_COUNT] = joined.at, joined.count
        ends = np.searchsorted(owner, np.arange(len(joined) + 1))
        table[:, layout.RUN_BEGIN], table[:, layout.RUN_END] = ends[:-1], ends[1:]
        bits = _concatenated(self.bits, np.uint16)
        return TiledPhase(table, runs, joined.listed, _concatenated(self.keys, np.int64), bits)


def _runs(segments: Segments, bits_at: Ints) -> Ints:
    """A row for each run, then its band and its tile. Full stretches take in the band edges beside them."""
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

    runs = np.zeros((n, layout.RUN_COLUMNS + 2), np.int64)
    source = np.where(takes_left, before, np.where(takes_right, after, index))  # whose mask the run has
    first = np.where(takes_left, start[before], start)
    last = np.where(takes_right, stop[after], stop)
    runs[:, layout.AXIS], runs[:, layout.KEY_COUNT] = first, last - first
    runs[:, layout.FULL_BEGIN] = np.where(full, start - first, 0)
    runs[:, layout.FULL_END] = np.where(full, stop - first, 0)
    runs[:, layout.MASK] = mask[source]
    runs[:, layout.BITS_AT] = np.where(mask == MASK_BITS, bits_at, 0)
    runs[:, layout.BLOCK] = 1
    runs[:, -2], runs[:, -1] = band[source], tile
    return runs[~taken]


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


def _gathered(shape: Shape, groups: list[Group], terms: list[list[Term]]) -> GatheredPhase:
    """The lists of all rows: each driver's own pairs, less those that the rest of its expression forbids."""
    found: list[Ints] = []
    for group, of_group in zip(groups, terms, strict=True):
        for driver, expression in of_group:
            if driver is None or not is_listed(driver, shape):
                continue
            indptr, indices = driver._pairs(shape)  # type: ignore[attr-defined]
            if driver == expression and group.members is None and len(found) == 0 and len(of_group) == 1:
                return GatheredPhase(indptr, indices)
            rows = np.repeat(np.arange(shape.n_q), np.diff(indptr))
            kept = expression._contains(rows, indices, shape)
            if group.members is not None:
                kept &= np.isin(rows, group.members)
            found.append(rows[kept] * shape.n_k + indices[kept])
    rows, indices = np.divmod(np.sort(np.concatenate(found)), max(1, shape.n_k))
    return GatheredPhase(np.searchsorted(rows, np.arange(shape.n_q + 1)), indices)
