"""Backward over lists: the keys of each query row for its gradient, the query rows of each key for the key's.

Both ways are one kernel: with the roles of queries and keys, and of values and the gradient of the output, exchanged.
"""

import numpy as np

from subquad.kernels import layout
from subquad.kernels.exponential import exp2
from subquad.kernels.gathered import add_listed, list_scores, load_row
from subquad.kernels.layout import STEP
from subquad.kernels.simd import at, load, splat, store, width_of


def backward_gathered(x, y, w, z, lse, delta, d_x, d_w, scale, geometry, indptr, indices, floats, first, last):
    """d_x[i] += sum_e dS_e y[indices[e]] for rows first <= i < last; by key also d_w[i] += sum_e P_e z[indices[e]].

    P = 2^(x.y - lse) and dS = P (w.z - delta). By query (x, y, w, z) are queries, keys, the gradient of the output and
    values, and lse and delta belong to row i; by key they are keys, queries, values and the gradient of the output, and
    lse and delta belong to the listed rows. `geometry` has a second table for w and z in the places of x and y.
    """
    lanes, d, by_key = width_of(x), geometry[layout.D], geometry[layout.BY_KEY] == 1
    other = at(geometry, layout.GEOMETRY_COLUMNS)
    d_v, padded = other[layout.D], STEP + lanes
    x_row = floats
    w_row = at(x_row, (d + lanes - 1) // lanes * lanes)
    d_x_row = at(w_row, (d_v + lanes - 1) // lanes * lanes)
    d_w_row = at(d_x_row, (d + lanes - 1) // lanes * lanes)
    p = at(d_w_row, (d_v + lanes - 1) // lanes * lanes)
    d_s, sums, common = at(p, padded), at(p, 2 * padded), at(p, 3 * padded)
    spare, one = at(p, 4 * padded), splat(x, 1.0)
    y_row, y_column = geometry[layout.K_ROW], geometry[layout.K_COLUMN]
    z_row, z_column = other[layout.K_ROW], other[layout.K_COLUMN]
    for i in range(first, last):
        if indptr[i] == indptr[i + 1]:
            continue
        power, unit = splat(x, scale / np.log(2.0)), np.int64(1)
        load_row(x_row, at(x, i * geometry[layout.Q_ROW]), geometry[layout.Q_COLUMN], d, power)
        load_row(w_row, at(w, i * other[layout.Q_ROW]), other[layout.Q_COLUMN], d_v, splat(x, scale))
        load_row(d_x_row, at(d_x, i * d), unit, d, one)
        if by_key:
            load_row(d_w_row, at(d_w, i * d_v), unit, d_v, one)
        for begin in range(indptr[i], indptr[i + 1], STEP):
            stop = min(begin + STEP, indptr[i + 1])
            list_scores(p, x_row, y, z, spare, indices, begin, stop, geometry)
            list_scores(d_s, w_row, z, y, spare, indices, begin, stop, other)
            for e in range(stop - begin):
                owner = indices[begin + e] if by_key else i
                kept = lse[owner * geometry[layout.LSE_STEP]]
                sums[e] = kept / np.log(2.0) if kept != -np.inf else np.inf  # a row that saw no key gives nothing
                common[e] = delta[owner] * scale
            for e in range(0, stop - begin, lanes):
                weight = exp2(load(p, e) - load(sums, e))
                store(p, e, weight)
                store(d_s, e, weight * (load(d_s, e) - load(common, e)))
            add_listed(d_x_row, d_s, y, spare, indices, begin, stop, y_row, y_column, d, one)
            if by_key:
                add_listed(d_w_row, p, z, spare, indices, begin, stop, z_row, z_column, d_v, one)
        for c in range(d):
            d_x[i * d + c] = d_x_row[c]
        if by_key:
            for c in range(d_v):
                d_w[i * d_v + c] = d_w_row[c]
