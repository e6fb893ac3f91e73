"""Forward for the few query rows of a decoding step: keys lie in the slots of a cache, and one call does many heads.

What a row may attend are a few stretches of slots, in the order of its keys. A step reads every key and value once and
does little with it, so memory is all that counts, and it is read in the order in which it lies: a key after another,
whole rows of values. Against the lists of `gathered` (four rows side by side, rows asked for ahead, values in two
halves) that raised 57% of what plain reading reaches to 87% (32 heads, d = 128, 4,096 keys). Query heads that share
keys are worked on together, a block of keys at a time, so that keys and values come from memory once.
"""

import numpy as np

from subquad.kernels import layout
from subquad.kernels.gathered import add_listed, list_scores, weigh_list
from subquad.kernels.jit import device
from subquad.kernels.memory import at, broadcast, load, load_part, store, store_sums
from subquad.kernels.simd import fma, splat, width_of

# Keys in a block: 32 rows of 512 bytes leave half of a 32 KB cache free.
BLOCK = 32


@device
def expand(slots, starts, counts, begin, stop):
    """slots = starts[b], starts[b] + 1, ... (counts[b] of them), then the same of the next stretch; how many in all."""
    n_keys = np.int64(0)
    for b in range(begin, stop):
        start = starts[b]
        for t in range(counts[b]):
            slots[n_keys + t] = start + t
        n_keys += counts[b]
    return n_keys


@device
def dot(x, y, width):
    """The products of two rows, lane by lane."""
    lanes, total = width_of(x), splat(x, 0.0)
    whole = width // lanes * lanes
    for c in range(0, whole, lanes):
        total = fma(load(y, c), load(x, c), total)
    if whole < width:
        total = fma(load_part(y, whole, width - whole), load_part(x, whole, width - whole), total)
    return total


@device
def scores_in_order(s, x, y, slots, begin, stop, width, spare):
    """s[e] = x . y[slots[e]] for begin <= e < stop; the last key stands in for missing ones."""
    last = stop - 1
    for e in range(begin, stop, 4):
        s0, s1 = dot(x, at(y, slots[e] * width), width), dot(x, at(y, slots[min(e + 1, last)] * width), width)
        s2 = dot(x, at(y, slots[min(e + 2, last)] * width), width)
        s3 = dot(x, at(y, slots[min(e + 3, last)] * width), width)
        if e + 4 <= stop:
            store_sums(s, e, s0, s1, s2, s3)
        else:
            store_sums(spare, 0, s0, s1, s2, s3)
            for r in range(stop - e):
                s[e + r] = spare[r]


@device
def add_in_order(o, p, y, slots, begin, stop, width, spare):
    """o += sum_e p[e] y[slots[e]]: eight vectors of columns at a time, which spills one of them, then fewer."""
    lanes, c = width_of(o), np.int64(0)
    while c + 8 * lanes <= width:
        o0, o1, o2, o3 = load(o, c), load(o, c + lanes), load(o, c + 2 * lanes), load(o, c + 3 * lanes)
        o4, o5 = load(o, c + 4 * lanes), load(o, c + 5 * lanes)
        o6, o7 = load(o, c + 6 * lanes), load(o, c + 7 * lanes)
        for e in range(begin, stop):
            weight, row = broadcast(p, e), at(y, slots[e] * width + c)
            o0, o1 = fma(weight, load(row, 0), o0), fma(weight, load(row, lanes), o1)
            o2, o3 = fma(weight, load(row, 2 * lanes), o2), fma(weight, load(row, 3 * lanes), o3)
            o4, o5 = fma(weight, load(row, 4 * lanes), o4), fma(weight, load(row, 5 * lanes), o5)
            o6, o7 = fma(weight, load(row, 6 * lanes), o6), fma(weight, load(row, 7 * lanes), o7)
        store(o, c, o0)
        store(o, c + lanes, o1)
        store(o, c + 2 * lanes, o2)
        store(o, c + 3 * lanes, o3)
        store(o, c + 4 * lanes, o4)
        store(o, c + 5 * lanes, o5)
        store(o, c + 6 * lanes, o6)
        store(o, c + 7 * lanes, o7)
        c += 8 * lanes
    if c < width:
        add_listed(at(o, c), at(p, begin), at(y, c), slots, begin, stop, width - c, width, 1, spare, 0)


def forward_decode(
    q, k, v, out, lse, scale, geometry, head, row_ptr, starts, counts, behind, floats, ints, n_slots, rows, group,
    longest, head_step, first, last,
):  # fmt: skip
    """out[h, i] = softmax(scale q[h, i] . K[h // group, row i]) V[h // group, row i], rows first <= x < last of all.

    Row x is row i = x % rows of the query heads that share key head x // rows.

    q, k, v      as they are stored: (key heads * group, rows, d), (key heads, n_slots, d or d_v), side by side
    out, lse     as they are computed: (key heads * group, rows, d_v), (key heads * group, rows)
    head         options of query head h from h head_step on: of these SINK, and what changes scores
    row_ptr      (rows + 1,): stretches row_ptr[i] <= b < row_ptr[i + 1] belong to row i
    starts, counts  slots starts[b] <= slot < starts[b] + counts[b] are those of the next counts[b] keys of the row
    behind       the same keys as their distances from the row, 0 for its own and below 0 for earlier ones
    ints         scratch: slots of the `longest` row; where scores are changed, its distances and a word as well
    """
    d, d_v = geometry[layout.D], geometry[layout.D_V]
    lanes = width_of(q)
    spare, s = floats, at(floats, lanes + 5 * max(d, d_v))
    padded = (longest + lanes - 1) // lanes * lanes
    slots, keys_behind, here = ints, at(ints, longest), at(ints, 2 * longest)
    for x in range(first, last):
        of, i = x // rows, x % rows
        keys, values = at(k, of * n_slots * d), at(v, of * n_slots * d_v)
        row = of * group * rows + i  # of the first head of the group; the others' lie `rows` apart
        n_keys = expand(slots, starts, counts, row_ptr[i], row_ptr[i + 1])
        if at(head, of * group * head_step)[layout.MODIFIES] != 0:
            expand(keys_behind, behind, counts, row_ptr[i], row_ptr[i + 1])
            here[0] = 0
        for e in range(0, n_keys, BLOCK):
            stop = min(e + BLOCK, n_keys)
            scores_in_order(s, at(q, row * d), keys, slots, e, stop, d, spare)
            for r in range(1, group):  # the block is at hand by now
                others = at(s, r * padded + e)
                list_scores(others, at(q, (row + r * rows) * d), keys, slots, e, stop, d, d, spare, 0)
        for r in range(group):
            place = row + r * rows
            scores, its_out, its_lse = at(s, r * padded), at(out, place * d_v), at(lse, place)
            its_head = at(head, (of * group + r) * head_step)
            weigh_list(scores, n_keys, scale, here, keys_behind, its_out, its_lse, spare, geometry, its_head)
        for e in range(0, n_keys, BLOCK):
            stop = min(e + BLOCK, n_keys)
            add_in_order(at(out, row * d_v), s, values, slots, e, stop, d_v, spare)
            for r in range(1, group):
                weights = at(s, r * padded + e)
                add_listed(at(out, (row + r * rows) * d_v), weights, values, slots, e, stop, d_v, d_v, 1, spare, 0)
