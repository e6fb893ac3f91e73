"""Backward over tiles of query rows: the five products of a tile in one pass, each weight recomputed from lse."""

from typing import Any, NamedTuple

import numpy as np

from subquad.kernels import layout
from subquad.kernels.exponential import weight_gradient_rows
from subquad.kernels.jit import device
from subquad.kernels.layout import STEP
from subquad.kernels.memory import at, get, load, store
from subquad.kernels.modifiers import call_modifier, modify_scores
from subquad.kernels.register_tile import masked_values_1, outer_3x2, outer_6, scores_6, values_1, values_4, values_6
from subquad.kernels.simd import fma, not_equal_or_nan, select, splat, width_of
from subquad.kernels.tiled import visit_runs
from subquad.kernels.transpose import lanes_to_rows, rows_to_lanes


class GradientWork(NamedTuple):
    """One worker's scratch, and the gradients of keys and values. X^T is (columns of X, lanes).

    Rows of a tile are also kept as blocks: (columns / lanes, lanes, lanes), a vector of columns for each row; the last
    block ends at the last column, with zeros for columns that the block before holds.
    """

    q_t: Any  # (d, lanes): queries, with the factor that makes scores powers of two
    g_t: Any  # (d_v, lanes): gradient of the output, with the scale
    d_q_t: Any  # (d, lanes): gradient of the queries
    q_rows: Any  # blocks of the queries
    g_rows: Any  # blocks of the gradient of the output
    s_t: Any  # (STEP + 8, lanes): scores, then weights
    w_t: Any  # (STEP + 8, lanes): gradients of the weights, then of the scores
    f_t: Any  # (STEP + 8, lanes): derivatives of modified scores
    lse: Any  # (lanes,): in powers of two; inf for rows that give nothing
    delta: Any  # (lanes,): what all weights of a row have in common, with the scale
    spare: Any  # (lanes,)
    key: Any  # (STEP + 8,): the keys of this step
    k_off: Any  # (STEP + 8,): where they lie
    v_off: Any  # (STEP + 8,)
    g_off: Any  # (STEP + 8,): where their gradients lie
    mask: Any  # (STEP + 8,): which rows each key is allowed to
    row: Any  # (lanes,): the rows of the tile; lanes past the last one repeat it
    position: Any  # (lanes,)
    low: Any  # (lanes,): first and last key of a band
    high: Any  # (lanes,)
    panels: Any  # (PANELS + 1, STEP, d + d_v): copies of keys and values
    panel_key: Any  # (PANELS,): first key of each panel
    axis_begin: Any  # int: keys before and after these places of the axis are left out
    axis_end: Any
    d_k: Any  # (n_k, d)
    d_v: Any  # (n_k, d_v)


@device
def add_outer(work, x, p_t, blocks, n_keys, width, careful):
    """x[key j] += sum_i p_t[j, i] row i for every key of the step, x being (n_k, width).

    `careful` leaves out the rows that a key is not allowed to: 0 times one of them may be NaN.
    """
    lanes, g_off, mask = width_of(x), work.g_off, work.mask
    for j in range(n_keys):
        g_off[j] = work.key[j] * width
    for extra in range(n_keys, n_keys + 5):
        g_off[extra] = g_off[n_keys - 1]
    n_blocks, vectors = (width + lanes - 1) // lanes, width >= lanes
    if vectors and not careful:  # key by key through the gradients, as they lie in memory
        paired = width // (2 * lanes) * 2
        for j in range(0, n_keys, 3):
            for b in range(0, paired, 2):
                outer_3x2(at(x, b * lanes), at(g_off, j), at(p_t, j * lanes), at(blocks, b * lanes * lanes))
        for b in range(paired, n_blocks):
            column = min(b * lanes, width - lanes)
            for j in range(0, n_keys, 6):
                outer_6(at(x, column), at(g_off, j), at(p_t, j * lanes), at(blocks, b * lanes * lanes))
        return
    for j in range(n_keys):
        for b in range(n_blocks):
            target, block = at(x, g_off[j] + min(b * lanes, max(width - lanes, 0))), at(blocks, b * lanes * lanes)
            for i in range(lanes):
                if mask[j] >> i & 1 == 0:
                    continue
                row, weight = at(block, i * lanes), p_t[j * lanes + i]
                if vectors:
                    store(target, 0, fma(splat(x, weight), load(row, 0), load(target, 0)))
                else:
                    for c in range(width):
                        target[c] += weight * row[c]


@device
def gradient_step(work, k, v, n_keys, masked, present, geometry, head):
    """Add what `n_keys` keys, whose offsets and masks stand in `work`, give to the three gradients."""
    lanes, s_t, w_t, k_off, v_off, mask = width_of(k), work.s_t, work.w_t, work.k_off, work.v_off, work.mask
    d, d_v, zero = geometry[layout.D], geometry[layout.D_V], splat(k, 0.0)

    # S^T = K Q^T and dP^T = V dO^T, six keys at a time; the last keys are filled up with copies of the last one
    for extra in range(n_keys, n_keys + 5):
        k_off[extra], v_off[extra] = k_off[n_keys - 1], v_off[n_keys - 1]
    for part in range(2):
        x, x_t, width = (k, work.q_t, d) if part == 0 else (v, work.g_t, d_v)
        target, x_off = (s_t, k_off) if part == 0 else (w_t, v_off)
        for j in range(0, n_keys, 6):
            scores_6(at(target, j * lanes), x_t, width, x, at(x_off, j), zero)

    tile, modifies, thin = np.int64(layout.BY_TILE), head[layout.MODIFIES] != 0, head[layout.THIN]
    if head[layout.MASK_MOD] != 0:
        call_modifier(head[layout.MASK_MOD], mask, mask, work.row, work.key, n_keys, tile, lanes, head)
        masked = np.int64(1)
    if modifies:
        modify_scores(s_t, work.f_t, work.row, work.key, n_keys, tile, np.int64(1), head)
    if thin != 0:
        call_modifier(thin, w_t, work.spare, work.row, work.key, n_keys, tile, 0, head)

    # P^T = 2^(S^T - lse) and dS^T = P^T (dP^T - delta)
    total = weight_gradient_rows(s_t, w_t, n_keys, load(work.lse, 0), load(work.delta, 0))
    for j in range(n_keys if modifies else 0):
        store(w_t, j * lanes, load(w_t, j * lanes) * load(work.f_t, j * lanes))
    if thin != 0:
        call_modifier(thin, s_t, work.spare, work.row, work.key, n_keys, tile, 0, head)
    careful = not_equal_or_nan(total, zero) != 0
    if masked or careful:
        for j in range(n_keys):
            mask[j] &= present
            if mask[j] == present:
                continue  # weights of lanes past the last row are 0
            store(s_t, j * lanes, select(mask[j], load(s_t, j * lanes), zero))
            store(w_t, j * lanes, select(mask[j], load(w_t, j * lanes), zero))

    # dV += P dO and dK += dS Q, key by key
    for part in range(2):
        x, p_t, width = (work.d_v, s_t, d_v) if part == 0 else (work.d_k, w_t, d)
        add_outer(work, x, p_t, work.g_rows if part == 0 else work.q_rows, n_keys, width, careful)

    # dQ^T += K^T dS^T; the loop of `softmax.attend_step` once more: as a function of both it adds 0.4 s to a first call
    c, one = 0, splat(k, 1.0)
    while c < d:
        target, column, left = at(work.d_q_t, c * lanes), at(k, c), d - c
        if careful:
            masked_values_1(target, w_t, n_keys, column, k_off, one, mask)
            c += 1
        elif left >= 6 and left != 8:
            values_6(target, w_t, n_keys, column, k_off, one)
            c += 6
        elif left >= 4:
            values_4(target, w_t, n_keys, column, k_off, one)
            c += 4
        else:
            values_1(target, w_t, n_keys, column, k_off, one)
            c += 1


@device
def rows_to_blocks(blocks, x, row_table, row_step, column_step, width):
    """The rows of a tile as blocks: see GradientWork."""
    lanes = width_of(x)
    whole = width // lanes * lanes if column_step == 1 else 0
    last, zero = max(width - lanes, 0), splat(x, 0.0)
    for i in range(lanes):
        row, target = at(x, row_table[i] * row_step), at(blocks, i * lanes)
        for c in range(0, whole, lanes):
            store(target, c * lanes, load(row, c))
        if whole < width:
            if width % lanes != 0:
                store(target, width // lanes * lanes * lanes, zero)
            for c in range(whole, width):
                at_last = width % lanes != 0 and c >= width // lanes * lanes
                block, start = (width // lanes, last) if at_last else (c // lanes, c // lanes * lanes)
                target[block * lanes * lanes + c - start] = get(row, c * column_step)


@device
def start_rows(work, tile, rows, q, g, d_q, lse, delta, scale, geometry):
    """Bring the rows of a tile in, and their gradient so far."""
    lanes, d, d_v, row, spare = width_of(q), geometry[layout.D], geometry[layout.D_V], work.row, work.spare
    n_rows, listed, row_step = tile[layout.ROW_COUNT], tile[layout.ROW_LIST], tile[layout.ROW_STEP]
    for i in range(lanes):
        lane = i if i < n_rows else n_rows - 1
        row[i] = rows[listed + lane] if listed >= 0 else tile[layout.FIRST_ROW] + lane * row_step
        work.position[i] = row[i] + geometry[layout.SHIFT]
        kept = lse[row[i] * geometry[layout.LSE_STEP]]
        # lanes past the last row, and rows that saw no key, get weights of 0
        work.lse[i] = kept / np.log(2.0) if i < n_rows and kept != -np.inf else np.inf
        work.delta[i] = delta[row[i]] * scale
    one = splat(q, 1.0)
    rows_to_lanes(
        work.q_t, q, row, geometry[layout.Q_ROW], geometry[layout.Q_COLUMN], d, splat(q, scale / np.log(2.0)), spare
    )
    rows_to_lanes(work.g_t, g, row, geometry[layout.G_ROW], geometry[layout.G_COLUMN], d_v, splat(q, scale), spare)
    rows_to_lanes(work.d_q_t, d_q, row, d, np.int64(1), d, one, spare)
    for part in range(2):
        x, blocks, width = (q, work.q_rows, d) if part == 0 else (g, work.g_rows, d_v)
        x_row = geometry[layout.Q_ROW] if part == 0 else geometry[layout.G_ROW]
        x_column = geometry[layout.Q_COLUMN] if part == 0 else geometry[layout.G_COLUMN]
        rows_to_blocks(blocks, x, row, x_row, x_column, width)


def backward_tiled(
    q, k, v, g, lse, delta, d_q, d_k, d_v, scale, geometry, head,
    tiles, runs, rows, keys, bits, floats, ints, first, last, axis_begin, axis_end,
):  # fmt: skip
    """Add to the gradients what tiles first <= t < last of one head give, over the keys of a part of the axis.

    A masked weight is 0, but 0 times a NaN or an infinity would leak into gradients that may not see it. A step whose
    scores are not all finite leaves masked pairs out one by one: nothing to pay where all is finite.
    """
    lanes, padded, width, width_v = width_of(q), STEP + 8, geometry[layout.D], geometry[layout.D_V]
    blocks, blocks_v = (width + lanes - 1) // lanes, (width_v + lanes - 1) // lanes
    s_t = at(floats, 3 * lanes)
    w_t = at(s_t, padded * lanes)
    f_t = at(w_t, padded * lanes)
    q_rows = at(f_t, padded * lanes)
    g_rows = at(q_rows, blocks * lanes * lanes)
    q_t = at(g_rows, blocks_v * lanes * lanes)
    d_q_t = at(q_t, blocks * lanes * lanes)
    g_t = at(d_q_t, blocks * lanes * lanes)
    row = at(ints, 5 * padded)
    work = GradientWork(
        q_t=q_t,
        g_t=g_t,
        d_q_t=d_q_t,
        q_rows=q_rows,
        g_rows=g_rows,
        s_t=s_t,
        w_t=w_t,
        f_t=f_t,
        lse=floats,
        delta=at(floats, lanes),
        spare=at(floats, 2 * lanes),
        key=ints,
        k_off=at(ints, padded),
        v_off=at(ints, 2 * padded),
        g_off=at(ints, 3 * padded),
        mask=at(ints, 4 * padded),
        row=row,
        position=at(row, lanes),
        low=at(row, 2 * lanes),
        high=at(row, 3 * lanes),
        panels=at(g_t, blocks_v * lanes * lanes),
        panel_key=at(row, 4 * lanes),
        axis_begin=axis_begin,
        axis_end=axis_end,
        d_k=d_k,
        d_v=d_v,
    )
    for panel in range(layout.PANELS):
        work.panel_key[panel] = -1
    for t in range(first, last):
        tile = at(tiles, t * layout.TILE_COLUMNS)
        start_rows(work, tile, rows, q, g, d_q, lse, delta, scale, geometry)
        count = tile[layout.ROW_COUNT]
        visit_runs(gradient_step, work, tile, runs, keys, bits, k, v, geometry, (1 << count) - 1, head)
        lanes_to_rows(d_q, work.d_q_t, row, width, np.int64(1), width, splat(q, 1.0), count, work.spare)
