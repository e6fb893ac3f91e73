"""Forward over one key list per query row: vectors run along d.

A block of rows is worked on at a time: all its scores, then the weights of each row, then the weighted values. So keys
and values are two long streams, whose rows are asked for ahead of time across the ends of lists: 0.73 of the time that
a row at a time took (64 random keys a row, n = 16,384). Taking the keys a cache-sized part at a time, so that
all rows of a block find it there, made it slower: a visit of four keys costs more than their misses.
"""

import numpy as np

from subquad.kernels import layout
from subquad.kernels.exponential import exp2, log2
from subquad.kernels.jit import device
from subquad.kernels.memory import (
    at,
    broadcast,
    get,
    load,
    load_part,
    prefetch,
    put,
    seen_as,
    store,
    store_sums,
)  # fmt: skip
from subquad.kernels.modifiers import as_float, call_modifier, modify_scores
from subquad.kernels.simd import fma, greater, lane_max, lane_sum, larger, not_equal_or_nan, select, splat, width_of

# Keys ahead whose rows are asked for: 8 and 32 are slower. Asking for a line of a row 32 ahead as well is worth a
# quarter where rows are only added up, but nothing here: the scores have more to do than to wait.
AHEAD = 16


@device
def end_of_block(indptr, begin, last):
    """Rows from `begin` on whose lists fit a worker's scratch together; one row at least."""
    end, most = begin + 1, min(last, begin + layout.BLOCK_PAIRS)
    while end < most and indptr[end + 1] - indptr[begin] <= layout.BLOCK_PAIRS:
        end += 1
    return end


@device
def select_lists(ints, indptr, indices, begin, end, by_key, head):
    """Lists of the pairs that are there, of rows (of keys, if `by_key`) begin <= i < end; returns where they lie.

    `ints` is scratch: a word, pointers, the lists, and a word a pair. Rows keep their numbers, and lists their order.
    """
    low, high, mask_mod = head[layout.KEY_BEGIN], head[layout.KEY_END], head[layout.MASK_MOD]
    one, own, filled = ints, at(ints, 1), np.int64(0)
    chosen = at(own, layout.BLOCK_PAIRS + 1)
    allowed = at(chosen, indptr[end] - indptr[begin])
    way = layout.BY_COLUMN if by_key else layout.BY_ROW
    for i in range(begin, end):
        own[i - begin] = filled
        start, stop = indptr[i], indptr[i + 1]
        if by_key and not low <= i < high:
            continue
        for e in range(start, stop):
            allowed[e - start] = 1 if by_key or low <= indices[e] < high else 0
        if mask_mod != 0:
            one[0] = i
            rows, keys = (at(indices, start), one) if by_key else (one, at(indices, start))
            call_modifier(mask_mod, allowed, allowed, rows, keys, stop - start, way, 0, head)
        for e in range(start, stop):
            if allowed[e - start] != 0:
                chosen[filled] = indices[e]
                filled += 1
    own[end - begin] = filled
    return at(own, -begin), chosen


@device
def dots(x, y0, y1, y2, y3, width):
    """The products of `x` with four rows, lane by lane."""
    lanes, whole = width_of(x), width // width_of(x) * width_of(x)
    s0 = s1 = s2 = s3 = splat(x, 0.0)
    for c in range(0, whole, lanes):
        z = load(x, c)
        s0, s1, s2, s3 = (
            fma(load(y0, c), z, s0),
            fma(load(y1, c), z, s1),
            fma(load(y2, c), z, s2),
            fma(load(y3, c), z, s3),
        )
    if whole < width:
        z, left = load_part(x, whole, width - whole), width - whole
        s0, s1 = fma(load_part(y0, whole, left), z, s0), fma(load_part(y1, whole, left), z, s1)
        s2, s3 = fma(load_part(y2, whole, left), z, s2), fma(load_part(y3, whole, left), z, s3)
    return s0, s1, s2, s3


@device
def list_scores(s, x, y, indices, begin, stop, width, y_row, spare, ahead):
    """s[e - begin] = x . y[indices[e]] for begin <= e < stop, four keys at a time.

    The last key stands in for missing ones; `spare` has a vector. Rows of `y` are asked for until list entry `ahead`.
    """
    lanes, last, fours = width_of(x), stop - 1, stop - (stop - begin) % 4
    for e in range(begin, fours, 4):
        if e + AHEAD + 4 <= ahead:
            n0, n1 = at(y, indices[e + AHEAD] * y_row), at(y, indices[e + AHEAD + 1] * y_row)
            n2, n3 = at(y, indices[e + AHEAD + 2] * y_row), at(y, indices[e + AHEAD + 3] * y_row)
            for c in range(0, width, lanes):
                prefetch(n0, c)
                prefetch(n1, c)
                prefetch(n2, c)
                prefetch(n3, c)
        y0, y1 = at(y, indices[e] * y_row), at(y, indices[e + 1] * y_row)
        y2, y3 = at(y, indices[e + 2] * y_row), at(y, indices[e + 3] * y_row)
        s0, s1, s2, s3 = dots(x, y0, y1, y2, y3, width)
        store_sums(s, e - begin, s0, s1, s2, s3)
    if fours < stop:
        y0, y1 = at(y, indices[fours] * y_row), at(y, indices[min(fours + 1, last)] * y_row)
        y2, y3 = at(y, indices[min(fours + 2, last)] * y_row), at(y, indices[last] * y_row)
        s0, s1, s2, s3 = dots(x, y0, y1, y2, y3, width)
        store_sums(spare, 0, s0, s1, s2, s3)
        for r in range(stop - fours):
            s[fours - begin + r] = spare[r]


@device
def list_scores_apart(s, x, y, indices, begin, stop, width, y_row, y_column, spare):
    """The same for columns that are no neighbours: they are copied into `spare`, which has a vector and four rows."""
    last, z0 = stop - 1, seen_as(at(spare, width_of(x)), y)
    z1, z2, z3 = at(z0, width), at(z0, 2 * width), at(z0, 3 * width)
    for e in range(begin, stop, 4):
        y0, y1 = at(y, indices[e] * y_row), at(y, indices[min(e + 1, last)] * y_row)
        y2, y3 = at(y, indices[min(e + 2, last)] * y_row), at(y, indices[min(e + 3, last)] * y_row)
        for c in range(width):
            z0[c], z1[c], z2[c], z3[c] = y0[c * y_column], y1[c * y_column], y2[c * y_column], y3[c * y_column]
        s0, s1, s2, s3 = dots(x, z0, z1, z2, z3, width)
        store_sums(spare, 0, s0, s1, s2, s3)
        for r in range(min(4, stop - e)):
            s[e - begin + r] = spare[r]


@device
def score_lists(s, x, y, indptr, indices, begin, end, part, spare, geometry):
    """s[e - indptr[begin]] = x[i] . y[indices[e]] for every key of rows begin <= i < end.

    `part` 0 takes queries and keys for x and y, 1 the gradient of the output and values.
    """
    width = geometry[layout.D] if part == 0 else geometry[layout.D_V]
    x_row = geometry[layout.Q_ROW] if part == 0 else geometry[layout.G_ROW]
    x_column = geometry[layout.Q_COLUMN] if part == 0 else geometry[layout.G_COLUMN]
    y_row = geometry[layout.K_ROW] if part == 0 else geometry[layout.V_ROW]
    y_column = geometry[layout.K_COLUMN] if part == 0 else geometry[layout.V_COLUMN]
    origin, ahead, copy = indptr[begin], indptr[end], seen_as(at(spare, width_of(x) + 4 * width), x)
    for i in range(begin, end):
        row = at(x, i * x_row)
        if x_column != 1:
            for c in range(width):
                copy[c] = row[c * x_column]
            row = copy
        e, stop = indptr[i], indptr[i + 1]
        if y_column == 1:
            list_scores(at(s, e - origin), row, y, indices, e, stop, width, y_row, spare, ahead)
        else:
            list_scores_apart(at(s, e - origin), row, y, indices, e, stop, width, y_row, y_column, spare)


@device
def add_listed(o, p, y, indices, begin, stop, width, y_row, y_column, spare, ahead):
    """o += sum_e p[e - begin] y[indices[e]]: four vectors of columns at a time, then one, then part of one."""
    lanes, c = width_of(o), 0
    while c + 4 * lanes <= width and y_column == 1:
        o0, o1, o2, o3 = load(o, c), load(o, c + lanes), load(o, c + 2 * lanes), load(o, c + 3 * lanes)
        for e in range(begin, stop):
            weight, row = broadcast(p, e - begin), at(y, indices[e] * y_row + c)
            if e + AHEAD < ahead:
                soon = at(y, indices[e + AHEAD] * y_row + c)
                prefetch(soon, 0)
                prefetch(soon, lanes)
                prefetch(soon, 2 * lanes)
                prefetch(soon, 3 * lanes)
            o0, o1 = fma(weight, load(row, 0), o0), fma(weight, load(row, lanes), o1)
            o2, o3 = fma(weight, load(row, 2 * lanes), o2), fma(weight, load(row, 3 * lanes), o3)
        store(o, c, o0)
        store(o, c + lanes, o1)
        store(o, c + 2 * lanes, o2)
        store(o, c + 3 * lanes, o3)
        c += 4 * lanes
    while c < width:
        part = min(lanes, width - c)
        total = load_part(o, c, part)
        for e in range(begin, stop):
            row = at(y, indices[e] * y_row + c * y_column)
            if y_column != 1:
                copy = seen_as(spare, y)
                for i in range(part):
                    copy[i] = row[i * y_column]
                row = copy
            total = fma(broadcast(p, e - begin), load_part(row, 0, part), total)
        store(spare, 0, total)
        for i in range(part):
            put(o, c + i, spare[i])
        c += lanes


@device
def add_lists(o, p, y, indptr, indices, begin, end, places, spare):
    """o[i] += sum_e p[e - indptr[begin]] y[indices[e]] over the list of every row begin <= i < end.

    `places` are the width and the strides of rows and columns of o and of y.
    """
    width, o_row, o_column, y_row, y_column = places
    origin, ahead, copy = indptr[begin], indptr[end], seen_as(at(spare, width_of(o)), o)
    for i in range(begin, end):
        e, stop, row = indptr[i], indptr[i + 1], at(o, i * o_row)
        target = row if o_column == 1 else copy
        if o_column != 1:
            for c in range(width):
                copy[c] = row[c * o_column]
        add_listed(target, at(p, e - origin), y, indices, e, stop, width, y_row, y_column, spare, ahead)
        if o_column != 1:
            for c in range(width):
                row[c * o_column] = copy[c]


@device
def weigh_list(s, n_keys, scale, row, keys, out_row, lse_row, spare, geometry, head):
    """Scores of one row to weights that add up to 1, with what an earlier phase left in `out_row` and `lse_row`.

    The row of the output starts as what is left of that, or as 0; a row that saw no key has 0 and lse -inf.
    """
    lanes, d_v, out_column = width_of(s), geometry[layout.D_V], geometry[layout.OUT_COLUMN]
    never, zero, factor = splat(s, -np.inf), splat(s, 0.0), splat(s, scale / np.log(2.0))
    fold, whole = geometry[layout.FOLD] == 1, n_keys // lanes * lanes
    before = splat(s, lse_row[0] / np.log(2.0) if fold else as_float(head[layout.SINK]))
    if head[layout.MODIFIES] != 0:
        for j in range(n_keys):
            s[j] *= scale / np.log(2.0)
        modify_scores(s, s, row, keys, n_keys, np.int64(layout.BY_ROW), np.int64(0), head)
        factor = splat(s, 1.0)
    # the last vector of scores is worked on in `spare`: the next row's scores stand behind it
    store(spare, 0, never)
    for j in range(whole, n_keys):
        spare[j - whole] = s[j]
    tail, left = load(spare, 0), (1 << (n_keys - whole)) - 1
    tail = select(left, tail * factor, never)
    top = larger(tail, before)
    for j in range(0, whole, lanes):
        scaled = load(s, j) * factor
        store(s, j, scaled)
        top = larger(scaled, top)
    top = splat(s, lane_max(top))
    base = select(greater(top, never), top, zero)
    tail, kept = exp2(tail - base), exp2(before - base)
    total = tail
    for j in range(0, whole, lanes):
        weight = exp2(load(s, j) - base)
        store(s, j, weight)
        total = total + weight
    weight = splat(s, lane_sum(total)) + kept
    seen = not_equal_or_nan(weight, zero)
    inverse = select(seen, splat(s, 1.0) / weight, zero)
    for j in range(0, whole, lanes):
        store(s, j, load(s, j) * inverse)
    store(spare, 0, tail * inverse)
    for j in range(whole, n_keys):
        s[j] = spare[j - whole]
    if head[layout.THIN] != 0:
        call_modifier(head[layout.THIN], s, spare, row, keys, n_keys, layout.BY_ROW, 0, head)
    store(spare, 0, kept * inverse)
    share = spare[0]
    for c in range(d_v):
        put(out_row, c * out_column, get(out_row, c * out_column) * share if fold else 0.0)
    if geometry[layout.KEEP_LSE] == 1:
        store(spare, 0, select(seen, (base + log2(weight)) * splat(s, np.log(2.0)), never))
        lse_row[0] = spare[0]


def forward_gathered(
    q, k, v, out, lse, scale, geometry, head, indptr, indices, floats, ints, first, last
):  # fmt: skip
    """out[i] = softmax(scale q[i] . K[list i]) V[list i] for rows first <= i < last of one head."""
    d_v, out_step, lse_step = geometry[layout.D_V], geometry[layout.OUT_ROW], geometry[layout.LSE_STEP]
    spare, s = floats, at(floats, width_of(q) + 5 * max(geometry[layout.D], d_v))
    places = d_v, out_step, geometry[layout.OUT_COLUMN], geometry[layout.V_ROW], geometry[layout.V_COLUMN]
    begin, row = first, ints
    while begin < last:
        end, lists, listed = end_of_block(indptr, begin, last), indptr, indices
        if head[layout.SELECTS] != 0:
            lists, listed = select_lists(ints, indptr, indices, begin, end, 0, head)
        origin = lists[begin]
        score_lists(s, q, k, lists, listed, begin, end, np.int64(0), spare, geometry)
        for i in range(begin, end):
            n_keys = lists[i + 1] - lists[i]
            if n_keys > 0 or geometry[layout.FOLD] == 0:
                own, own_out, own_lse = at(s, lists[i] - origin), at(out, i * out_step), at(lse, i * lse_step)
                row[0] = i
                weigh_list(
                    own, n_keys, scale, row, at(listed, lists[i]), own_out, own_lse, spare, geometry, head
                )  # fmt: skip
        add_lists(out, s, v, lists, listed, begin, end, places, spare)
        begin = end


def pair_scores(q, k, data, scale, geometry, indptr, indices, floats, first, last):
    """data[e] = scale q[i] . K[indices[e]] for the listed keys of rows first <= i < last of one head."""
    s = at(data, indptr[first])
    score_lists(s, q, k, indptr, indices, first, last, np.int64(0), floats, geometry)
    for e in range(indptr[last] - indptr[first]):
        s[e] *= scale
