"""The online softmax of one step of keys: scores, weights and weighted values for a tile of query lanes.

Lanes are query rows. So row maxima and sums need no reduction across lanes, and keys and values are read where they
lie, one broadcast element at a time. Scores carry a factor log2(e), so powers are of two.
"""

import numpy as np

from subquad.kernels import layout
from subquad.kernels.exponential import exp2, exp2_rows
from subquad.kernels.jit import device
from subquad.kernels.memory import at, load, store
from subquad.kernels.modifiers import call_modifier, modify_scores
from subquad.kernels.register_tile import masked_values_1, scores_6, values_1, values_4, values_6
from subquad.kernels.simd import fma, greater, larger, select, splat, width_of


@device
def attend_step(work, k, v, n_keys, masked, careful, geometry, head):
    """Fold `n_keys` keys, whose offsets and masks stand in `work`, into the running softmax of the tile.

    A masked score becomes -inf, its weight exactly 0. While a row has seen nothing its maximum is -inf, and 0 is
    subtracted in its place. `careful` leaves masked values out altogether: 0 times one of them may be NaN.
    """
    lanes, s_t, o_t, k_off, v_off, mask = width_of(k), work.s_t, work.o_t, work.k_off, work.v_off, work.mask
    d, d_v = geometry[layout.D], geometry[layout.D_V]
    before, never, zero = load(work.m, 0), splat(k, -np.inf), splat(k, 0.0)

    # S^T = K Q^T, six keys at a time; the last keys are filled up with copies of the last one
    for extra in range(n_keys, n_keys + 5):
        k_off[extra] = k_off[n_keys - 1]
    top = never
    for j in range(0, n_keys, 6):
        top = scores_6(at(s_t, j * lanes), work.q_t, d, k, at(k_off, j), top)
    if head[layout.MASK_MOD] != 0:
        call_modifier(head[layout.MASK_MOD], mask, mask, work.row, work.key, n_keys, layout.BY_TILE, lanes, head)
        masked = np.int64(1)
    if head[layout.MODIFIES] != 0:
        # what keeps the order of scores is done to their maximum too, as to one key more
        rising = np.int64(head[layout.MODIFIES] == layout.RISING)
        store(s_t, n_keys * lanes, top)
        modify_scores(s_t, s_t, work.row, work.key, n_keys + rising, np.int64(layout.BY_TILE), np.int64(0), head)
        top = select(-rising, load(s_t, n_keys * lanes), never)
        for j in range(0 if rising or masked else n_keys):
            top = larger(load(s_t, j * lanes), top)
    top = larger(top, before)
    if masked:
        top = before
        for j in range(n_keys):
            s = select(mask[j], load(s_t, j * lanes), never)
            store(s_t, j * lanes, s)
            top = larger(s, top)

    # P^T = 2^(S^T - maximum)
    base = select(greater(top, never), top, zero)
    alpha = exp2(before - base)
    total = exp2_rows(s_t, n_keys, base)
    store(work.m, 0, top)
    store(work.denom, 0, fma(load(work.denom, 0), alpha, total))
    if head[layout.THIN] != 0:
        call_modifier(head[layout.THIN], s_t, work.spare, work.row, work.key, n_keys, layout.BY_TILE, 0, head)

    # O^T = alpha O^T + V^T P^T, six columns of V at a time, then four, then one
    c = 0
    while c < d_v:
        o, column, left = at(o_t, c * lanes), at(v, c), d_v - c
        if careful and masked:
            masked_values_1(o, s_t, n_keys, column, v_off, alpha, mask)
            c += 1
        elif left >= 6 and left != 8:
            values_6(o, s_t, n_keys, column, v_off, alpha)
            c += 6
        elif left >= 4:
            values_4(o, s_t, n_keys, column, v_off, alpha)
            c += 4
        else:
            values_1(o, s_t, n_keys, column, v_off, alpha)
            c += 1
