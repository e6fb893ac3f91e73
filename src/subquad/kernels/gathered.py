"""Forward over one key list per query row: vectors run along d, and what is needed soon is asked for ahead of time."""

import numpy as np

from subquad.kernels import layout
from subquad.kernels.exponential import exp2, log2
from subquad.kernels.jit import device
from subquad.kernels.layout import STEP
from subquad.kernels.simd import (
    at,
    broadcast,
    fma,
    greater,
    lane_max,
    lane_sum,
    larger,
    load,
    load_part,
    not_equal_or_nan,
    prefetch,
    select,
    splat,
    store,
    store_sums,
    width_of,
)  # fmt: skip

# Keys ahead whose rows are asked for, while the values of the present ones are. 64 random keys a row, n = 16,384,
# d = 64, against `np.take` of the same key rows: 2.3 x its time with whole rows of keys and values 64 ahead.
AHEAD = 16


@device
def load_row(x_padded, x, column_step, width, factor):
    """x_padded = factor x, with zeros up to a whole vector."""
    lanes = width_of(x)
    if width % lanes != 0:
        store(x_padded, width // lanes * lanes, splat(x, 0.0))
    for c in range(width):
        x_padded[c] = x[c * column_step]
    for c in range(0, width, lanes):
        store(x_padded, c, load(x_padded, c) * factor)


@device
def list_scores(s, q, k, v, spare, indices, begin, stop, geometry):
    """s[e - begin] = q . K[indices[e]], four keys at a time; the last key stands in for missing ones.

    `spare` holds four rows, for keys whose columns are not neighbours. q is padded with zeros.
    """
    lanes, d, k_row, k_column = width_of(q), geometry[layout.D], geometry[layout.K_ROW], geometry[layout.K_COLUMN]
    v_row, fetched = geometry[layout.V_ROW], min(d, geometry[layout.D_V])
    last, end, whole = stop - 1, geometry[layout.INDEX_COUNT] - 1, d // lanes * lanes
    for e in range(begin, stop, 4):
        j0, j1, j2, j3 = indices[e], indices[min(e + 1, last)], indices[min(e + 2, last)], indices[min(e + 3, last)]
        k0, k1, k2, k3 = at(k, j0 * k_row), at(k, j1 * k_row), at(k, j2 * k_row), at(k, j3 * k_row)
        if k_column != 1:
            for c in range(d):
                spare[c], spare[d + c] = k0[c * k_column], k1[c * k_column]
                spare[2 * d + c], spare[3 * d + c] = k2[c * k_column], k3[c * k_column]
            k0, k1, k2, k3 = spare, at(spare, d), at(spare, 2 * d), at(spare, 3 * d)
        v0, v1, v2, v3 = at(v, j0 * v_row), at(v, j1 * v_row), at(v, j2 * v_row), at(v, j3 * v_row)
        soon = e + AHEAD
        n0, n1 = at(k, indices[min(soon, end)] * k_row), at(k, indices[min(soon + 1, end)] * k_row)
        n2, n3 = at(k, indices[min(soon + 2, end)] * k_row), at(k, indices[min(soon + 3, end)] * k_row)
        s0 = s1 = s2 = s3 = splat(q, 0.0)
        for c in range(0, whole, lanes):
            x = load(q, c)
            s0, s1, s2, s3 = (
                fma(load(k0, c), x, s0),
                fma(load(k1, c), x, s1),
                fma(load(k2, c), x, s2),
                fma(load(k3, c), x, s3),
            )
            prefetch(n0, c)
            prefetch(n1, c)
            prefetch(n2, c)
            prefetch(n3, c)
            if c < fetched:
                prefetch(v0, c)
                prefetch(v1, c)
                prefetch(v2, c)
                prefetch(v3, c)
        if whole < d:
            x, left = load(q, whole), d - whole
            s0, s1 = fma(load_part(k0, whole, left), x, s0), fma(load_part(k1, whole, left), x, s1)
            s2, s3 = fma(load_part(k2, whole, left), x, s2), fma(load_part(k3, whole, left), x, s3)
        store_sums(s, e - begin, s0, s1, s2, s3)


@device
def add_listed(o, s, v, spare, indices, begin, stop, v_row, v_column, d_v, alpha):
    """o = alpha o + sum_e s[e - begin] V[indices[e]]: four vectors of columns at a time, then one, then part of one."""
    lanes, c = width_of(o), 0
    while c + 4 * lanes <= d_v and v_column == 1:
        o0, o1 = load(o, c) * alpha, load(o, c + lanes) * alpha
        o2, o3 = load(o, c + 2 * lanes) * alpha, load(o, c + 3 * lanes) * alpha
        for e in range(begin, stop):
            p, row = broadcast(s, e - begin), at(v, indices[e] * v_row + c)
            o0, o1 = fma(p, load(row, 0), o0), fma(p, load(row, lanes), o1)
            o2, o3 = fma(p, load(row, 2 * lanes), o2), fma(p, load(row, 3 * lanes), o3)
        store(o, c, o0)
        store(o, c + lanes, o1)
        store(o, c + 2 * lanes, o2)
        store(o, c + 3 * lanes, o3)
        c += 4 * lanes
    while c < d_v:
        width, total = min(lanes, d_v - c), load(o, c) * alpha
        for e in range(begin, stop):
            row = at(v, indices[e] * v_row + c * v_column)
            if v_column != 1:
                for i in range(width):
                    spare[i] = row[i * v_column]
                row = spare
            total = fma(broadcast(s, e - begin), load_part(row, 0, width), total)
        store(o, c, total)
        c += lanes


@device
def attend_list(q, k, v, o, s, m, denom, spare, indices, begin, stop, geometry):
    """Fold the keys indices[begin:stop] into the running softmax of one row: o, its maximum m and its sum denom."""
    lanes, n_keys = width_of(q), stop - begin
    d_v, v_row, v_column = geometry[layout.D_V], geometry[layout.V_ROW], geometry[layout.V_COLUMN]
    list_scores(s, q, k, v, spare, indices, begin, stop, geometry)
    top = never = splat(q, -np.inf)
    for j in range(n_keys, (n_keys + lanes - 1) // lanes * lanes):
        s[j] = -np.inf

    # s = 2^(s - maximum)
    for j in range(0, n_keys, lanes):
        top = larger(load(s, j), top)
    before = load(m, 0)
    top = larger(splat(q, lane_max(top)), before)
    base = select(greater(top, never), top, splat(q, 0.0))
    alpha, total = exp2(before - base), splat(q, 0.0)
    for j in range(0, n_keys, lanes):
        p = exp2(load(s, j) - base)
        store(s, j, p)
        total = total + p
    store(m, 0, top)
    store(denom, 0, fma(load(denom, 0), alpha, splat(q, lane_sum(total))))

    add_listed(o, s, v, spare, indices, begin, stop, v_row, v_column, d_v, alpha)


def forward_gathered(q, k, v, out, lse, scale, geometry, indptr, indices, floats, first, last):
    """out[i] = softmax(scale q[i] . K[list i]) V[list i] for rows first <= i < last of one head."""
    lanes, d, d_v = width_of(q), geometry[layout.D], geometry[layout.D_V]
    q_row, o = floats, at(floats, (d + lanes - 1) // lanes * lanes)
    s = at(o, (d_v + lanes - 1) // lanes * lanes)
    m, denom, spare = at(s, STEP + lanes), at(s, STEP + 2 * lanes), at(s, STEP + 3 * lanes)
    zero, one, never, fold = splat(q, 0.0), splat(q, 1.0), splat(q, -np.inf), geometry[layout.FOLD] == 1
    factor, out_column = splat(q, scale / np.log(2.0)), geometry[layout.OUT_COLUMN]
    for i in range(first, last):
        if indptr[i] == indptr[i + 1] and fold:
            continue
        out_row, lse_row = at(out, i * geometry[layout.OUT_ROW]), at(lse, i * geometry[layout.LSE_STEP])
        load_row(q_row, at(q, i * geometry[layout.Q_ROW]), geometry[layout.Q_COLUMN], d, factor)
        if fold:
            before = broadcast(lse_row, 0)
            store(denom, 0, select(not_equal_or_nan(before, never), one, zero))
            store(m, 0, before * splat(q, 1.0 / np.log(2.0)))
            load_row(o, out_row, out_column, d_v, one)
        else:
            store(m, 0, never)
            store(denom, 0, zero)
            for c in range(0, d_v, lanes):
                store(o, c, zero)
        for begin in range(indptr[i], indptr[i + 1], STEP):
            stop = min(begin + STEP, indptr[i + 1])
            attend_list(q_row, k, v, o, s, m, denom, spare, indices, begin, stop, geometry)
        # a row that saw no key becomes 0 with lse -inf
        weight = load(denom, 0)
        seen = not_equal_or_nan(weight, zero)
        inverse = select(seen, one / weight, zero)
        for c in range(0, d_v, lanes):
            store(o, c, load(o, c) * inverse)
        for c in range(d_v):
            out_row[c * out_column] = o[c]
        if geometry[layout.KEEP_LSE] == 1:
            store(m, 0, select(seen, (load(m, 0) + log2(weight)) * splat(q, np.log(2.0)), never))
            lse_row[0] = m[0]


def pair_scores(q, k, data, scale, geometry, indptr, indices, floats, first, last):
    """data[e] = scale q[i] . K[indices[e]] for the listed keys of rows first <= i < last of one head."""
    lanes, d = width_of(q), geometry[layout.D]
    q_row, s = floats, at(floats, (d + lanes - 1) // lanes * lanes)
    spare, factor = at(s, STEP + lanes), splat(q, scale)
    for i in range(first, last):
        load_row(q_row, at(q, i * geometry[layout.Q_ROW]), geometry[layout.Q_COLUMN], d, factor)
        for begin in range(indptr[i], indptr[i + 1], STEP):
            stop = min(begin + STEP, indptr[i + 1])
            list_scores(s, q_row, k, k, spare, indices, begin, stop, geometry)
            for e in range(begin, stop):
                data[e] = s[e - begin]
