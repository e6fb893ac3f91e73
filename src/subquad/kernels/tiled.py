"""Forward over tiles of query rows: a row of the tile is a lane, keys and values are read where they lie."""

from typing import Any, NamedTuple

import numpy as np

from subquad.kernels import layout
from subquad.kernels.exponential import log2
from subquad.kernels.jit import device
from subquad.kernels.layout import STEP
from subquad.kernels.memory import at, get, load, prefetch, seen_as, store
from subquad.kernels.modifiers import as_float
from subquad.kernels.simd import fma, not_equal_or_nan, select, splat, width_of
from subquad.kernels.softmax import attend_step
from subquad.kernels.transpose import lanes_to_rows, rows_to_lanes


class Work(NamedTuple):
    """One worker's scratch. X^T is (columns of X, lanes)."""

    q_t: Any  # (d, lanes): scaled queries
    o_t: Any  # (d_v, lanes): running sum of weighted values
    s_t: Any  # (STEP + 8, lanes): scores, then weights
    m: Any  # (lanes,): running maximum
    denom: Any  # (lanes,): running sum of the weights
    spare: Any  # (lanes,)
    key: Any  # (STEP + 8,): the keys of this step
    k_off: Any  # (STEP + 8,): where they lie
    v_off: Any  # (STEP + 8,)
    mask: Any  # (STEP + 8,): which rows each key is allowed to
    row: Any  # (lanes,): the rows of the tile; lanes past the last one repeat it
    position: Any  # (lanes,)
    low: Any  # (lanes,): first and last key of a band
    high: Any  # (lanes,)
    panels: Any  # (PANELS + 1, STEP, d + d_v): copies of keys and values
    panel_key: Any  # (PANELS,): first key of each panel
    axis_begin: Any  # int: keys before and after these places of the axis are left out
    axis_end: Any


@device
def append_keys(work, run, keys, bits, geometry, begin, stop, filled):
    """Add keys begin <= t < stop of a run to the step; returns 1 if any of them needs its mask."""
    kind, listed, size = run[layout.MASK], run[layout.KEY_LIST], stop - begin
    key, mask = at(work.key, filled), at(work.mask, filled)
    k_off, v_off = at(work.k_off, filled), at(work.v_off, filled)
    k_row, v_row = geometry[layout.K_ROW], geometry[layout.V_ROW]
    first, step = run[layout.FIRST_KEY] + begin * run[layout.KEY_STEP], run[layout.KEY_STEP]
    if listed >= 0:
        for t in range(size):
            j = keys[listed + begin + t]
            key[t], k_off[t], v_off[t], mask[t] = j, j * k_row, j * v_row, -1
    else:
        for t in range(size):
            j = first + t * step
            key[t], k_off[t], v_off[t], mask[t] = j, j * k_row, j * v_row, -1
    full_begin, full_end = run[layout.FULL_BEGIN] - begin, run[layout.FULL_END] - begin
    if kind == layout.MASK_FULL or (full_begin <= 0 and size <= full_end):
        return np.int64(0)
    if kind == layout.MASK_BITS:
        for t in range(size):
            mask[t] = np.int64(bits[run[layout.BITS_AT] + begin + t])
        return np.int64(1)

    # a band: rows ascend, so the rows that may see a key lie between two counts, which only rise from key to key
    lanes, flip = width_of(work.s_t), -1 if kind == layout.MASK_OUTSIDE_BAND else 0
    reached, passed = 0, 0
    for t in range(size):
        if full_begin <= t < full_end:
            continue
        j = key[t]
        while reached < lanes and work.low[reached] <= j:
            reached += 1
        while passed < lanes and work.high[passed] < j:
            passed += 1
        mask[t] = (((1 << reached) - 1) & ~((1 << passed) - 1)) ^ flip
    return np.int64(1)


@device
def pack_keys(work, run, keys, k, v, geometry, step, begin, stop, filled):
    """Point the step at copies of its keys and values, side by side in a panel; returns the panel.

    A panel holds a whole step of the axis, and is kept for the tiles that come next. Keys of a list are copied each
    time, into a panel of their own. Rows to come are asked for eight ahead.
    """
    lanes, d, d_v, key_step = width_of(k), geometry[layout.D], geometry[layout.D_V], run[layout.KEY_STEP]
    listed = run[layout.KEY_LIST]
    slot = layout.PANELS if listed >= 0 else step % layout.PANELS
    panel = at(work.panels, slot * STEP * (d + d_v))
    first = run[layout.FIRST_KEY] + (step * STEP - run[layout.AXIS]) * key_step
    place = filled if listed >= 0 else run[layout.AXIS] + begin - step * STEP
    for t in range(stop - begin):
        work.k_off[filled + t], work.v_off[filled + t] = (place + t) * d, STEP * d + (place + t) * d_v
    from_key, count = filled, stop - begin
    if listed < 0:
        if work.panel_key[slot] == first:
            return panel
        work.panel_key[slot] = first
        left = (geometry[layout.N_K] - first + key_step - 1) // key_step
        from_key, count = np.int64(0), STEP if left > STEP else left
    for part in range(2):
        x, width, target = (k, d, panel) if part == 0 else (v, d_v, at(panel, STEP * d))
        row_step = geometry[layout.K_ROW] if part == 0 else geometry[layout.V_ROW]
        column_step = geometry[layout.K_COLUMN] if part == 0 else geometry[layout.V_COLUMN]
        whole = width // lanes * lanes if column_step == 1 else 0
        for t in range(count):
            j = keys[listed + begin + t] if listed >= 0 else first + t * key_step
            row, copy, soon = at(x, j * row_step), at(target, (from_key + t) * width), 8 * key_step * row_step
            for c in range(0, whole, lanes):
                prefetch(row, soon + c)
                store(copy, c, load(row, c))
            for c in range(whole, width):
                copy[c] = get(row, c * column_step)
    return panel


@device
def keys_there(run, keys, head, begin, count):
    """Where the keys of a run that the head has begin and end, of begin <= t < count; keys ascend."""
    low, high, listed = head[layout.KEY_BEGIN], head[layout.KEY_END], run[layout.KEY_LIST]
    first, step = run[layout.FIRST_KEY], run[layout.KEY_STEP]
    if listed >= 0:
        while begin < count and keys[listed + begin] < low:
            begin += 1
        while begin < count and keys[listed + count - 1] >= high:
            count -= 1
        return begin, count
    if first + begin * step < low:
        begin = (low - first + step - 1) // step
    if first + (count - 1) * step >= high:
        count = (high - first + step - 1) // step
    return begin, count


@device
def visit_runs(do_step, work, tile, runs, keys, bits, k, v, geometry, careful, head):
    """Every key of the tile that lies in work's part of the axis, a step at a time: `do_step` says what is done."""
    nothing = np.int64(0)  # a plain 0 would be a literal type, and every function it meets compiled once more for it
    filled = step = masked = nothing
    lanes, k_step, v_step = width_of(k), seen_as(k, work.s_t), seen_as(v, work.s_t)
    for r in range(tile[layout.RUN_BEGIN], tile[layout.RUN_END]):
        run = at(runs, r * layout.RUN_COLUMNS)
        axis = run[layout.AXIS]
        begin, count = work.axis_begin - axis, work.axis_end - axis
        begin = begin if begin > 0 else nothing
        count = run[layout.KEY_COUNT] if count > run[layout.KEY_COUNT] else count
        begin, count = keys_there(run, keys, head, begin, count)
        if begin >= count:
            continue
        block, left, right = run[layout.BLOCK], run[layout.LEFT], run[layout.RIGHT]
        if run[layout.MASK] == layout.MASK_BAND or run[layout.MASK] == layout.MASK_OUTSIDE_BAND:
            for i in range(lanes):
                position = work.position[i]
                center = position if block == 1 else position // block  # a division takes as long as a key's scores
                work.low[i], work.high[i] = (center - left) * block, (center + right + 1) * block - 1
        while begin < count:
            here = (axis + begin) // STEP
            if filled > 0 and here != step:
                do_step(work, k_step, v_step, filled, masked, careful, geometry, head)
                filled = masked = nothing
            step, end = here, (here + 1) * STEP - axis
            stop = count if count < end else end
            masked |= append_keys(work, run, keys, bits, geometry, begin, stop, filled)
            if geometry[layout.PACK] == 1:
                k_step = v_step = pack_keys(work, run, keys, k, v, geometry, here, begin, stop, filled)
            filled += stop - begin
            begin = stop
    if filled > 0:
        do_step(work, k_step, v_step, filled, masked, careful, geometry, head)


@device
def start_tile(work, tile, out, lse, geometry, head):
    """No keys seen yet but a sink, or the state that an earlier phase left in `out` and `lse`."""
    lanes, d_v, zero, one = width_of(out), geometry[layout.D_V], splat(out, 0.0), splat(out, 1.0)
    if geometry[layout.FOLD] == 0:
        sink = as_float(head[layout.SINK])  # has a weight, and a value of 0
        store(work.m, 0, splat(out, sink))
        store(work.denom, 0, zero if sink == -np.inf else one)
        for c in range(d_v):
            store(work.o_t, c * lanes, zero)
    else:
        for i in range(lanes):
            work.m[i] = lse[work.row[i] * geometry[layout.LSE_STEP]]
        before = load(work.m, 0)
        seen = not_equal_or_nan(before, splat(out, -np.inf))
        store(work.denom, 0, select(seen, one, zero))
        store(work.m, 0, before * splat(out, 1.0 / np.log(2.0)))
        out_row, out_column = geometry[layout.OUT_ROW], geometry[layout.OUT_COLUMN]
        rows_to_lanes(work.o_t, out, work.row, out_row, out_column, d_v, one, work.spare)


@device
def finish_tile(work, tile, out, lse, geometry, careful):
    """Divide by the sum of the weights and write; a row that saw no key becomes 0 with lse -inf.

    Unless `careful`, a tile with a NaN or an infinity is left unwritten, and the answer is 0.
    """
    lanes, d_v, zero, count = width_of(out), geometry[layout.D_V], splat(out, 0.0), tile[layout.ROW_COUNT]
    if not careful:
        # four sums side by side, since each waits for itself: 2% of Banded(8)
        t0 = t1 = t2 = t3 = zero
        whole = d_v // 4 * 4
        for c in range(0, whole, 4):
            o = at(work.o_t, c * lanes)
            t0, t1 = fma(load(o, 0), zero, t0), fma(load(o, lanes), zero, t1)
            t2, t3 = fma(load(o, 2 * lanes), zero, t2), fma(load(o, 3 * lanes), zero, t3)
        for c in range(whole, d_v):
            t0 = fma(load(work.o_t, c * lanes), zero, t0)
        if not_equal_or_nan(t0 + t1 + (t2 + t3), zero) & ((1 << count) - 1) != 0:
            return 0
    m, denom = load(work.m, 0), load(work.denom, 0)
    seen = not_equal_or_nan(denom, zero)
    inverse = select(seen, splat(out, 1.0) / denom, zero)
    out_row, out_column = geometry[layout.OUT_ROW], geometry[layout.OUT_COLUMN]
    lanes_to_rows(out, work.o_t, work.row, out_row, out_column, d_v, inverse, count, work.spare)
    if geometry[layout.KEEP_LSE] == 1:
        natural = (m + log2(denom)) * splat(out, np.log(2.0))
        store(work.spare, 0, select(seen, natural, splat(out, -np.inf)))
        for i in range(count):
            lse[work.row[i] * geometry[layout.LSE_STEP]] = work.spare[i]
    return 1


def forward_tiled(
    q, k, v, out, lse, scale, geometry, head, tiles, runs, rows, keys, bits, floats, ints, first, last
):  # fmt: skip
    """out = softmax(scale Q K^T) V over the runs of tiles first <= t < last of one head.

    Weights of masked keys are 0, but 0 times a NaN or infinite value would leak into rows that may not see it. So a
    tile whose result is not finite is done once more, leaving masked keys out: nothing to pay where all is finite.
    """
    lanes, padded = width_of(q), STEP + 8
    d = geometry[layout.D]
    s_t, q_t = at(floats, 3 * lanes), at(floats, (3 + padded) * lanes)
    row = at(ints, 4 * padded)
    work = Work(
        q_t=q_t,
        o_t=at(q_t, d * lanes),
        s_t=s_t,
        m=floats,
        denom=at(floats, lanes),
        spare=at(floats, 2 * lanes),
        k_off=ints,
        v_off=at(ints, padded),
        mask=at(ints, 2 * padded),
        key=at(ints, 3 * padded),
        row=row,
        position=at(row, lanes),
        low=at(row, 2 * lanes),
        high=at(row, 3 * lanes),
        panels=at(q_t, (d + geometry[layout.D_V]) * lanes),
        panel_key=at(row, 4 * lanes),
        axis_begin=np.int64(0),
        axis_end=np.int64(layout.WHOLE_AXIS),
    )
    factor = splat(q, scale / np.log(2.0))
    for panel in range(layout.PANELS):
        work.panel_key[panel] = -1
    for t in range(first, last):
        tile = at(tiles, t * layout.TILE_COLUMNS)
        n_rows, listed, row_step = tile[layout.ROW_COUNT], tile[layout.ROW_LIST], tile[layout.ROW_STEP]
        for i in range(lanes):
            lane = i if i < n_rows else n_rows - 1
            row[i] = rows[listed + lane] if listed >= 0 else tile[layout.FIRST_ROW] + lane * row_step
            work.position[i] = row[i] + geometry[layout.SHIFT]
            # the rows of the next tile: Banded(8) takes 3.0 ms without, 2.4 ms with this
            following = row[i] + lanes * row_step
            for c in range(0, d, lanes):
                prefetch(q, following * geometry[layout.Q_ROW] + c)
            for c in range(0, geometry[layout.D_V], lanes):
                prefetch(out, following * geometry[layout.OUT_ROW] + c)
        rows_to_lanes(q_t, q, row, geometry[layout.Q_ROW], geometry[layout.Q_COLUMN], d, factor, work.spare)
        for careful in range(2):
            start_tile(work, tile, out, lse, geometry, head)
            visit_runs(attend_step, work, tile, runs, keys, bits, k, v, geometry, careful, head)
            if finish_tile(work, tile, out, lse, geometry, careful) != 0:
                break
