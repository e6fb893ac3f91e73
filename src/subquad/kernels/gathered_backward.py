"""Backward over lists: the keys of each query row for its gradient, the query rows of each key for the key's.

Both ways are one kernel: with the roles of queries and keys, and of values and the gradient of the output, exchanged.
"""

import numpy as np

from subquad.kernels import layout
from subquad.kernels.exponential import exp2
from subquad.kernels.gathered import add_lists, end_of_block, score_lists
from subquad.kernels.jit import device
from subquad.kernels.simd import at, load, splat, store, width_of


@device
def weight_gradients(p, d_s, indptr, indices, begin, end, lse, delta, scale, spare, geometry):
    """p = 2^(p - lse) and d_s = p (d_s - delta) for the lists of some rows, scores and products having no scale yet."""
    lanes, by_key, origin = width_of(p), geometry[layout.BY_KEY] == 1, indptr[begin]
    power, factor, lse_step = splat(p, scale / np.log(2.0)), splat(p, scale), geometry[layout.LSE_STEP]
    sums, common, some, others = spare, at(spare, lanes), at(spare, 2 * lanes), at(spare, 3 * lanes)
    for i in range(begin, end):
        for e in range(indptr[i], indptr[i + 1], lanes):
            count = min(lanes, indptr[i + 1] - e)
            if by_key or e == indptr[i]:
                for r in range(count if by_key else lanes):
                    owner = indices[e + r] if by_key else i
                    kept = lse[owner * lse_step]
                    sums[r] = kept / np.log(2.0) if kept != -np.inf else np.inf  # rows that saw no key give nothing
                    common[r] = delta[owner]
            weights, products = at(p, e - origin), at(d_s, e - origin)
            if count < lanes:  # the next row's begin behind them
                for r in range(count):
                    some[r], others[r] = weights[r], products[r]
                weights, products = some, others
            weight = exp2(load(weights, 0) * power - load(sums, 0))
            store(weights, 0, weight)
            store(products, 0, weight * factor * (load(products, 0) - load(common, 0)))
            if count < lanes:
                for r in range(count):
                    p[e - origin + r], d_s[e - origin + r] = some[r], others[r]


def backward_gathered(
    x, y, w, z, lse, delta, d_x, d_w, scale, geometry, indptr, indices, floats, first, last
):  # fmt: skip
    """d_x[i] += sum_e dS_e y[indices[e]] for rows first <= i < last; by key also d_w[i] += sum_e P_e z[indices[e]].

    P = 2^(x.y - lse) and dS = P (w.z - delta). By query (x, y, w, z) are queries, keys, the gradient of the output and
    values, and lse and delta belong to row i; by key they are keys, queries, values and the gradient of the output, and
    lse and delta belong to the listed rows.
    """
    d, d_v, by_key = geometry[layout.D], geometry[layout.D_V], geometry[layout.BY_KEY]
    spare, column = floats, np.int64(1)
    p = at(spare, 4 * width_of(x) + 5 * max(d, d_v))
    places = d, d, column, geometry[layout.K_ROW], geometry[layout.K_COLUMN]
    places_v = d_v, d_v, column, geometry[layout.V_ROW], geometry[layout.V_COLUMN]
    begin = first
    while begin < last:
        end = end_of_block(indptr, begin, last)
        d_s = at(p, indptr[end] - indptr[begin])
        for part in range(2):
            s, rows, listed = (p, x, y) if part == 0 else (d_s, w, z)
            score_lists(s, rows, listed, indptr, indices, begin, end, part, spare, geometry)
        weight_gradients(p, d_s, indptr, indices, begin, end, lse, delta, scale, spare, geometry)
        for part in range(1 + by_key):
            o, s, listed, where = (d_x, d_s, y, places) if part == 0 else (d_w, p, z, places_v)
            add_lists(o, s, listed, indptr, indices, begin, end, where, spare)
        begin = end
