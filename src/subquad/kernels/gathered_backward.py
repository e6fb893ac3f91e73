"""Backward over lists: the keys of each query row for its gradient, the query rows of each key for the key's.

Both ways are one kernel: with the roles of queries and keys, and of values and the gradient of the output, exchanged.
"""

import numpy as np

from subquad.kernels import layout
from subquad.kernels.exponential import exp2
from subquad.kernels.gathered import add_lists, end_of_block, score_lists, select_lists
from subquad.kernels.jit import device
from subquad.kernels.memory import at, load, store
from subquad.kernels.modifiers import call_modifier, modify_scores
from subquad.kernels.simd import splat, width_of


@device
def modify_lists(p, slopes, indptr, indices, begin, end, scale, by_key, one, head):
    """The scores of some rows' lists, scaled, as modifiers leave them, and their derivatives."""
    way, origin, filled = np.int64(layout.BY_COLUMN if by_key else layout.BY_ROW), indptr[begin], indptr[end]
    for e in range(filled - origin):
        p[e] *= scale / np.log(2.0)
    for i in range(begin, end):
        start, size = indptr[i], indptr[i + 1] - indptr[i]
        one[0] = i
        rows, keys = (at(indices, start), one) if by_key else (one, at(indices, start))
        modify_scores(at(p, start - origin), at(slopes, start - origin), rows, keys, size, way, np.int64(1), head)


@device
def thin_lists(x, indptr, indices, begin, end, by_key, spare, one, head):
    """Dropout on some rows' lists."""
    way, origin = layout.BY_COLUMN if by_key else layout.BY_ROW, indptr[begin]
    for i in range(begin, end):
        start, size = indptr[i], indptr[i + 1] - indptr[i]
        one[0] = i
        rows, keys = (at(indices, start), one) if by_key else (one, at(indices, start))
        call_modifier(head[layout.THIN], at(x, start - origin), spare, rows, keys, size, way, 0, head)


@device
def weight_gradients(p, d_s, indptr, indices, begin, end, lse, delta, scale, spare, geometry, head):
    """p = 2^(p - lse) and d_s = p (d_s - delta) for the lists of some rows, products having no scale yet.

    Scores have none either, unless they were modified.
    """
    lanes, by_key, origin = width_of(p), geometry[layout.BY_KEY] == 1, indptr[begin]
    power = splat(p, 1.0 if head[layout.MODIFIES] != 0 else scale / np.log(2.0))
    factor, lse_step = splat(p, scale), geometry[layout.LSE_STEP]
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
    x, y, w, z, lse, delta, d_x, d_w, scale, geometry, head, indptr, indices, floats, ints, first, last
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
        end, lists, listed = end_of_block(indptr, begin, last), indptr, indices
        if head[layout.SELECTS] != 0:
            lists, listed = select_lists(ints, indptr, indices, begin, end, by_key, head)
        size = lists[end] - lists[begin]
        d_s, slopes = at(p, size), at(p, 2 * size)
        for part in range(2):
            s, rows, others = (p, x, y) if part == 0 else (d_s, w, z)
            score_lists(s, rows, others, lists, listed, begin, end, part, spare, geometry)
        if head[layout.MODIFIES] != 0:
            modify_lists(p, slopes, lists, listed, begin, end, scale, by_key, ints, head)
        if head[layout.THIN] != 0:
            thin_lists(d_s, lists, listed, begin, end, by_key, spare, ints, head)
        weight_gradients(p, d_s, lists, listed, begin, end, lse, delta, scale, spare, geometry, head)
        for e in range(size if head[layout.MODIFIES] != 0 else 0):
            d_s[e] *= slopes[e]
        if by_key and head[layout.THIN] != 0:
            thin_lists(p, lists, listed, begin, end, by_key, spare, ints, head)
        for part in range(1 + by_key):
            o, s, others, where = (d_x, d_s, y, places) if part == 0 else (d_w, p, z, places_v)
            add_lists(o, s, others, lists, listed, begin, end, where, spare)
        begin = end
