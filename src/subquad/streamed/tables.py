"""Tables of a plan for some rows and some keys: cut out, and counted from where a buffer begins.

Rows and keys in a buffer lie closer together than in the whole arrays. A kernel asks where they really stand only to
know what a band allows; those masks are moved along where rows and keys have each moved by one distance, and written
as bits where not. Places on the axis of keys stay what they are, so steps of the softmax, and with them every rounding,
are those of a plan for the whole arrays.
"""

from __future__ import annotations

import numpy as np

from subquad.kernels import layout
from subquad.kernels.layout import MASK_BAND, MASK_BITS, MASK_FULL, MASK_OUTSIDE_BAND, NO_LIST
from subquad.patterns.row_lists import expand
from subquad.patterns.spans import Bools, Ints
from subquad.plan.tables import GatheredPhase, Phase, TiledPhase
from subquad.streamed.stretches import KeySpans


def reached(phases: list[Phase], gap: int) -> KeySpans:
    """The keys that the phases visit; stretches at most `gap` keys apart are taken as one."""
    starts, stops = [np.arange(0)], [np.arange(0)]
    for phase in phases:
        if isinstance(phase, GatheredPhase):
            start = phase.indices
            stop = start + 1
        else:
            runs = phase.runs
            listed = runs[:, layout.KEY_LIST] != NO_LIST
            first, count = runs[~listed, layout.FIRST_KEY], runs[~listed, layout.KEY_COUNT]
            starts.append(first)
            stops.append(first + (count - 1) * runs[~listed, layout.KEY_STEP] + 1)
            used = KeySpans.union(
                runs[listed, layout.KEY_LIST], runs[listed, layout.KEY_LIST] + runs[listed, layout.KEY_COUNT]
            )
            start = phase.keys[expand(used.start, used.stop - used.start)]
            stop = start + 1
        found = KeySpans.union(start, stop, gap)
        starts.append(found.start)
        stops.append(found.stop)
    return KeySpans.union(np.concatenate(starts), np.concatenate(stops), gap)


def clipped(phase: Phase, low: int, high: int, n_k: int) -> Phase:
    """The part of a phase whose keys are low <= j < high."""
    if isinstance(phase, GatheredPhase):
        kept = (phase.indices >= low) & (phase.indices < high)
        return GatheredPhase(np.concatenate(([0], np.cumsum(kept)))[phase.indptr], phase.indices[kept])
    runs = phase.runs
    first, step, count = runs[:, layout.FIRST_KEY], runs[:, layout.KEY_STEP], runs[:, layout.KEY_COUNT]
    begin, end = (-((first - edge) // step) for edge in (low, high))
    listed = runs[:, layout.KEY_LIST] != NO_LIST
    if listed.any():
        # key lists ascend, and follow one another: (list, key) as one ascending number
        number = np.concatenate(([0], np.cumsum(np.diff(phase.keys) <= 0)))
        codes = number * (n_k + 1) + phase.keys
        at = runs[listed, layout.KEY_LIST]
        begin[listed], end[listed] = (
            np.searchsorted(codes, number[at] * (n_k + 1) + min(edge, n_k)) - at for edge in (low, high)
        )
    begin, end = np.clip(begin, 0, count), np.clip(end, 0, count)
    return _with_parts(phase, np.arange(len(runs)), begin, end)


def _with_parts(phase: TiledPhase, of: Ints, begin: Ints, end: Ints) -> TiledPhase:
    """Places begin <= t < end of the runs `of` (ascending) in place of the runs; empty ones are left out."""
    kept = begin < end
    numbers = np.searchsorted(of[kept], np.arange(len(phase.runs) + 1))
    of, begin, end = of[kept], begin[kept], end[kept]
    runs = phase.runs[of]
    runs[:, layout.FIRST_KEY] += begin * runs[:, layout.KEY_STEP]
    runs[:, layout.KEY_LIST] += np.where(runs[:, layout.KEY_LIST] == NO_LIST, 0, begin)
    runs[:, layout.AXIS] += begin
    runs[:, layout.KEY_COUNT] = end - begin
    for column in (layout.FULL_BEGIN, layout.FULL_END):
        runs[:, column] = np.clip(runs[:, column] - begin, 0, end - begin)
    runs[:, layout.BITS_AT] += np.where(runs[:, layout.MASK] == MASK_BITS, begin, 0)
    tiles = phase.tiles.copy()
    for column in (layout.RUN_BEGIN, layout.RUN_END):
        tiles[:, column] = numbers[tiles[:, column]]
    return phase._replace(tiles=tiles, runs=runs)


def visited(phase: TiledPhase) -> TiledPhase:
    """Without the tiles that visit no key."""
    return phase._replace(tiles=phase.tiles[phase.tiles[:, layout.RUN_BEGIN] < phase.tiles[:, layout.RUN_END]])


def in_bits(phase: TiledPhase, lanes: int, shift: int) -> TiledPhase:
    """The same phase with the edges of bands written as bits; `shift` is the position of row 0."""
    if not _of_bands(phase.runs).any():
        return phase
    count = phase.tiles[:, layout.RUN_END] - phase.tiles[:, layout.RUN_BEGIN]
    run, tile = expand(phase.tiles[:, layout.RUN_BEGIN], count), np.repeat(np.arange(len(count)), count)
    ends = np.cumsum(count)
    tiles = phase.tiles.copy()
    tiles[:, layout.RUN_BEGIN], tiles[:, layout.RUN_END] = ends - count, ends
    phase = phase._replace(tiles=tiles, runs=phase.runs[run])  # a mask is of one tile: none are shared

    runs = phase.runs
    band, size = _of_bands(runs), runs[:, layout.KEY_COUNT]
    full = (runs[:, layout.FULL_BEGIN] < runs[:, layout.FULL_END]) & band
    left = np.where(band, np.where(full, runs[:, layout.FULL_BEGIN], size), 0)
    right = np.where(full, runs[:, layout.FULL_END], size)
    # the edge before what is full (all, where nothing is), what is full, the edge after it
    begin = np.stack([np.zeros_like(size), left, right], axis=1).ravel()
    end = np.stack([left, np.where(band, right, size), np.where(band, size, 0)], axis=1).ravel()
    kept = begin < end
    of = np.repeat(np.arange(len(runs)), 3)[kept]
    is_edge = (np.tile([True, False, True], len(runs)) & np.repeat(band, 3))[kept]
    split = _with_parts(phase, of, begin[kept], end[kept])
    edges = split.runs[is_edge]
    sizes = edges[:, layout.KEY_COUNT]
    masks = _words(split, edges, tile[of[is_edge]], lanes, shift)
    split.runs[is_edge, layout.MASK] = MASK_BITS
    split.runs[is_edge, layout.BITS_AT] = len(phase.bits) + np.cumsum(sizes) - sizes
    split.runs[is_edge, layout.FULL_BEGIN] = split.runs[is_edge, layout.FULL_END] = 0
    split.runs[~is_edge & band[of], layout.MASK] = MASK_FULL
    return split._replace(bits=np.concatenate((phase.bits, masks)))


def _of_bands(runs: Ints) -> Bools:
    return np.asarray((runs[:, layout.MASK] == MASK_BAND) | (runs[:, layout.MASK] == MASK_OUTSIDE_BAND))


def _words(phase: TiledPhase, edges: Ints, tile: Ints, lanes: int, shift: int) -> Ints:
    """For each key of some runs of bands, a bit for each row of the tile."""
    size = edges[:, layout.KEY_COUNT]
    run, t = np.repeat(np.arange(len(edges)), size), expand(np.zeros_like(size), size)
    keys = edges[run, layout.FIRST_KEY] + t * edges[run, layout.KEY_STEP]
    listed = edges[run, layout.KEY_LIST]
    if len(phase.keys):
        keys = np.where(listed == NO_LIST, keys, phase.keys[np.maximum(listed, 0) + t * (listed != NO_LIST)])
    of_tile, block = phase.tiles[tile], edges[:, layout.BLOCK]
    words = np.zeros(len(keys), np.uint16)
    for lane in range(lanes):
        within = np.minimum(lane, of_tile[:, layout.ROW_COUNT] - 1)
        row = of_tile[:, layout.FIRST_ROW] + within * of_tile[:, layout.ROW_STEP]
        if len(phase.rows):
            at = of_tile[:, layout.ROW_LIST]
            row = np.where(at >= 0, phase.rows[np.maximum(at, 0) + within * (at >= 0)], row)
        center = (row + shift) // block
        low, high = (center - edges[:, layout.LEFT]) * block, (center + edges[:, layout.RIGHT] + 1) * block
        inside = (low[run] <= keys) & (keys < high[run])
        words |= inside.astype(np.uint16) << np.uint16(lane)
    outside = edges[:, layout.MASK] == MASK_OUTSIDE_BAND
    return np.where(outside[run], words ^ np.uint16((1 << lanes) - 1), words)


def in_buffer(phase: Phase, rows: Ints, held: KeySpans, first_position: int, lanes: int, shift: int) -> Phase:
    """A phase with rows and keys counted from where they lie in buffers.

    `rows` are those that lie there, ascending; keys lie as `held` says. The kernel takes buffer row r to stand at
    position `first_position` + r, the whole arrays' row i at `shift` + i.
    """
    if isinstance(phase, GatheredPhase):
        return phase._replace(indices=held.local(phase.indices))
    one_by_one = len(rows) == 0 or int(rows[-1] - rows[0]) == len(rows) - 1
    origin = int(rows[0]) if len(rows) else 0
    bands = _of_bands(phase.runs)
    moved_along = phase.runs[bands, layout.BLOCK : layout.BLOCK + 1] == 1
    if not one_by_one or not moved_along.all() or (phase.runs[bands, layout.KEY_LIST] != NO_LIST).any():
        phase = in_bits(phase, lanes, shift)
        bands = np.zeros(len(phase.runs), bool)
    runs, tiles = phase.runs.copy(), phase.tiles.copy()
    unlisted = runs[:, layout.KEY_LIST] == NO_LIST
    first = runs[:, layout.FIRST_KEY].copy()
    runs[unlisted, layout.FIRST_KEY] = held.local(first[unlisted])
    if bands.any():
        # how much farther a key has moved than a row
        farther = (first - runs[:, layout.FIRST_KEY] - (origin + shift - first_position))[bands]
        runs[bands, layout.LEFT] += farther
        runs[bands, layout.RIGHT] -= farther
    listed_rows = phase.rows
    if one_by_one:
        tiles[:, layout.FIRST_ROW] -= origin
        listed_rows = listed_rows - origin
    else:
        tiles, listed_rows = _ranked(phase, tiles, rows, lanes)
    if (runs[:, layout.KEY_STEP] > 1).any():
        # The kernel copies whole steps of keys that lie far apart, and would begin before the buffer. It goes by the
        # first run; this one belongs to no tile.
        first_run = np.zeros((1, layout.RUN_COLUMNS), np.int64)
        first_run[0, layout.KEY_STEP], first_run[0, layout.KEY_LIST] = 1, NO_LIST
        runs = np.concatenate((first_run, runs))
        tiles[:, [layout.RUN_BEGIN, layout.RUN_END]] += 1
    return TiledPhase(tiles, runs, listed_rows, held.local(phase.keys), phase.bits)


def _ranked(phase: TiledPhase, tiles: Ints, rows: Ints, lanes: int) -> tuple[Ints, Ints]:
    """Tiles whose rows are all listed, by their rank among `rows`."""
    within = np.minimum(np.arange(lanes), tiles[:, [layout.ROW_COUNT]] - 1)
    of_tile = tiles[:, [layout.FIRST_ROW]] + within * tiles[:, [layout.ROW_STEP]]
    if len(phase.rows):
        at = tiles[:, [layout.ROW_LIST]]
        of_tile = np.where(at >= 0, phase.rows[np.maximum(at, 0) + within * (at >= 0)], of_tile)
    tiles[:, layout.FIRST_ROW], tiles[:, layout.ROW_STEP] = 0, 1
    tiles[:, layout.ROW_LIST] = np.arange(len(tiles)) * lanes
    return tiles, np.searchsorted(rows, of_tile).ravel()
