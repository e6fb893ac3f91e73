"""The matrix product in registers: rows of broadcast scalars times vectors of lanes.

Each function is one loop with `rows` accumulators, which llvmlite emits unrolled over the rows and, where the columns
are neighbours in memory, over four rounds. With 6 rows the 12 accumulators, 2 lane registers and 1 broadcast of AVX2
fit its 16 registers. What counts is instructions for each multiply-add, since hyper-threads share the front end of a
core: 1.7 here; with a column step that is only known at run time 1.9, and with 4 rows 2.1.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from subquad.kernels.simd import LANES, emit_fma, emit_larger, emit_mask, emit_splat, lanes_address

_OFFSETS = types.CPointer(types.int64)
_INDEX = ir.IntType(64)
_UNROLL = 4


def _index(value):
    return ir.Constant(_INDEX, value)


def _emit_rounds(builder, lanes, begin, end, unroll, start, vectors, pointers, masks):
    """acc[r] += broadcast(pointers(t)[r]) * vectors[t] for `unroll` rounds at a time; `start` gives the first acc.

    Returns the accumulators and the round that comes next. With `masks`, round t leaves lanes outside masks[t] alone.
    """
    before = builder.block
    head, after = builder.append_basic_block("rounds"), builder.append_basic_block("rounds.end")
    limit = builder.sub(end, _index(unroll))
    builder.cbranch(builder.icmp_signed("<=", begin, limit), head, after)
    builder.position_at_end(head)
    first = builder.phi(_INDEX)
    running = [builder.phi(lanes.ir) for _ in start]
    values: list = running
    for u in range(unroll):
        t = builder.add(first, _index(u))
        offset = builder.mul(t, _index(lanes.count))
        vector = builder.load(lanes_address(builder, vectors, offset, lanes), align=lanes.bits // 8)
        updated = []
        for value, pointer in zip(values, pointers(t), strict=True):
            scalar = emit_splat(builder, lanes, builder.load(pointer, align=lanes.bits // 8))
            updated.append(emit_fma(builder, lanes, scalar, vector, value))
        if masks is not None:
            mask = emit_mask(builder, lanes, builder.load(builder.gep(masks, [t])))
            updated = [builder.select(mask, new, old) for new, old in zip(updated, values, strict=True)]
        values = updated
    following = builder.add(first, _index(unroll))
    builder.cbranch(builder.icmp_signed("<=", following, limit), head, after)
    for phi, entering, leaving in zip([first, *running], [begin, *start], [following, *values], strict=True):
        phi.add_incoming(entering, before)
        phi.add_incoming(leaving, head)
    builder.position_at_end(after)
    results = []
    for entering, leaving in zip([begin, *start], [following, *values], strict=True):
        phi = builder.phi(entering.type)
        phi.add_incoming(entering, before)
        phi.add_incoming(leaving, head)
        results.append(phi)
    return results[1:], results[0]


def _emit_product(builder, lanes, count, column_step, start, vectors, pointers, finish, masks=None):
    """All rounds of a tile, then `finish(accumulators)`; `pointers(t, step)` gives the scalars of round t.

    Compiled twice: for columns side by side, where addresses are constants, and for any step.
    """
    with builder.if_else(builder.icmp_signed("==", column_step, _index(1))) as (neighbours, apart):
        for branch, step, unroll in ((neighbours, _index(1), _UNROLL), (apart, column_step, 1)):
            with branch:
                values, t = start, _index(0)
                for rounds in {unroll: None, 1: None}:
                    values, t = _emit_rounds(
                        builder, lanes, t, count, rounds, values, vectors, lambda t, step=step: pointers(t, step), masks
                    )
                finish(values)


def _row(builder, lanes, pointer, r):
    return lanes_address(builder, pointer, _index(r * lanes.count), lanes)


def _scores(rows):
    @intrinsic
    def scores(typing_context, s, q_t, d, k, k_off, k_col, top):
        """s[r, :] = sum_c k[k_off[r] + c k_col] q_t[c, :] for each row r; returns the lane maxima of `top` and s."""
        lanes = LANES[s.dtype]

        def codegen(context, builder, sig, args):
            s_, q_t_, d_, k_, k_off_, k_col_, top_ = args
            starts = [builder.gep(k_, [builder.load(builder.gep(k_off_, [_index(r)]))]) for r in range(rows)]
            maxima = cgutils.alloca_once(builder, lanes.ir)

            def pointers(t, step):
                offset = builder.mul(t, step)
                return [builder.gep(start, [offset]) for start in starts]

            def finish(values):
                highest = top_
                for r, value in enumerate(values):
                    builder.store(value, _row(builder, lanes, s_, r), align=lanes.bits // 8)
                    highest = emit_larger(builder, value, highest)
                builder.store(highest, maxima)

            zeros = [ir.Constant(lanes.ir, [0.0] * lanes.count)] * rows
            _emit_product(builder, lanes, d_, k_col_, zeros, q_t_, pointers, finish)
            return builder.load(maxima)

        return lanes(s, q_t, types.intp, k, _OFFSETS, types.intp, lanes), codegen

    return scores


def _emit_values(context, builder, lanes, rows, args, masks=None):
    o_t, p_t, n, v, v_off, v_col, alpha = args
    start = [
        builder.fmul(builder.load(_row(builder, lanes, o_t, r), align=lanes.bits // 8), alpha) for r in range(rows)
    ]

    def pointers(t, step):
        row = builder.gep(v, [builder.load(builder.gep(v_off, [t]))])
        return [builder.gep(row, [builder.mul(step, _index(r))]) for r in range(rows)]

    def finish(values):
        for r, value in enumerate(values):
            builder.store(value, _row(builder, lanes, o_t, r), align=lanes.bits // 8)

    _emit_product(builder, lanes, n, v_col, start, p_t, pointers, finish, masks)
    return context.get_dummy_value()


def _values(rows):
    @intrinsic
    def values(typing_context, o_t, p_t, n, v, v_off, v_col, alpha):
        """o_t[r, :] = alpha o_t[r, :] + sum_j v[v_off[j] + r v_col] p_t[j, :] for each row r."""
        lanes = LANES[o_t.dtype]

        def codegen(context, builder, sig, args):
            return _emit_values(context, builder, lanes, rows, args)

        return types.void(o_t, p_t, types.intp, v, _OFFSETS, types.intp, lanes), codegen

    return values


@intrinsic
def masked_values_1(typing_context, o_t, p_t, n, v, v_off, v_col, alpha, mask):
    """`values_1` that leaves the lanes outside mask[j] alone at key j, whatever its value holds."""
    lanes = LANES[o_t.dtype]

    def codegen(context, builder, sig, args):
        return _emit_values(context, builder, lanes, 1, args[:-1], args[-1])

    return types.void(o_t, p_t, types.intp, v, _OFFSETS, types.intp, lanes, _OFFSETS), codegen


scores_6, scores_4 = _scores(6), _scores(4)
values_6, values_4, values_1 = _values(6), _values(4), _values(1)
