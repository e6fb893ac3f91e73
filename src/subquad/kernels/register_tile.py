"""The matrix product in registers: rows of broadcast scalars times vectors of lanes.

Each function below is one loop with `rows` accumulators; llvmlite emits it unrolled over the rows. With 6 rows the 12
accumulators, 2 lane registers and 1 broadcast of AVX2 fit its 16 registers: 1.8 instructions a multiply-add, against
2.1 with 4 rows, which shows wherever the core's front end is shared (88 against 77 GF/s of 95, measured in one run).
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from subquad.kernels.simd import LANES, emit_fma, emit_larger, emit_mask, emit_splat, lanes_address

_OFFSETS = types.CPointer(types.int64)


def _emit_loop(builder, lanes, start, count, vectors, step_pointers, masks=None):
    """Accumulators after `count` rounds of acc[r] += broadcast(pointer r) * vectors[t]; `start` gives the first ones.

    With `masks`, round t leaves the lanes outside masks[t] alone.
    """
    index = ir.IntType(64)
    before = builder.block
    head, end = builder.append_basic_block("tile"), builder.append_basic_block("tile.end")
    builder.cbranch(builder.icmp_signed(">", count, ir.Constant(index, 0)), head, end)
    builder.position_at_end(head)
    t = builder.phi(index)
    t.add_incoming(ir.Constant(index, 0), before)
    running = [builder.phi(lanes.ir) for _ in start]
    offset = builder.mul(t, ir.Constant(index, lanes.count))
    vector = builder.load(lanes_address(builder, vectors, offset, lanes), align=lanes.bits // 8)
    updated = []
    for phi, first, pointer in zip(running, start, step_pointers(t), strict=True):
        scalar = builder.load(pointer, align=lanes.bits // 8)
        value = emit_fma(builder, lanes, emit_splat(builder, lanes, scalar), vector, phi)
        if masks is not None:
            bits = builder.load(builder.gep(masks, [t]))
            value = builder.select(emit_mask(builder, lanes, bits), value, phi)
        phi.add_incoming(first, before)
        updated.append(value)
    after = builder.add(t, ir.Constant(index, 1))
    for phi, value in zip(running, updated, strict=True):
        phi.add_incoming(value, head)
    t.add_incoming(after, head)
    builder.cbranch(builder.icmp_signed("<", after, count), head, end)
    builder.position_at_end(end)
    result = []
    for first, value in zip(start, updated, strict=True):
        phi = builder.phi(lanes.ir)
        phi.add_incoming(first, before)
        phi.add_incoming(value, head)
        result.append(phi)
    return result


def _store_rows(builder, lanes, pointer, values):
    for r, value in enumerate(values):
        offset = ir.Constant(ir.IntType(64), r * lanes.count)
        builder.store(value, lanes_address(builder, pointer, offset, lanes), align=lanes.bits // 8)


def _scores(rows):
    @intrinsic
    def scores(typing_context, s, q_t, d, k, k_off, k_col, top):
        """s[r, :] = sum_c k[k_off[r] + c k_col] q_t[c, :] for each row r; returns the lane maxima of `top` and s."""
        lanes = LANES[s.dtype]

        def codegen(context, builder, sig, args):
            s_, q_t_, d_, k_, k_off_, k_col_, top_ = args
            pointers = [
                builder.gep(k_, [builder.load(builder.gep(k_off_, [ir.Constant(ir.IntType(64), r)]))])
                for r in range(rows)
            ]

            def step(t):
                offset = builder.mul(t, k_col_)
                return [builder.gep(pointer, [offset]) for pointer in pointers]

            zero = ir.Constant(lanes.ir, [0.0] * lanes.count)
            values = _emit_loop(builder, lanes, [zero] * rows, d_, q_t_, step)
            _store_rows(builder, lanes, s_, values)
            for value in values:
                top_ = emit_larger(builder, value, top_)
            return top_

        return lanes(s, q_t, types.intp, k, _OFFSETS, types.intp, lanes), codegen

    return scores


def _emit_values(context, builder, lanes, rows, args, masks=None):
    o_t, p_t, n, v, v_off, v_col, alpha = args
    index = ir.IntType(64)
    start = []
    for r in range(rows):
        address = lanes_address(builder, o_t, ir.Constant(index, r * lanes.count), lanes)
        start.append(builder.fmul(builder.load(address, align=lanes.bits // 8), alpha))
    columns = [builder.mul(v_col, ir.Constant(index, r)) for r in range(rows)]

    def step(t):
        row = builder.gep(v, [builder.load(builder.gep(v_off, [t]))])
        return [builder.gep(row, [column]) for column in columns]

    _store_rows(builder, lanes, o_t, _emit_loop(builder, lanes, start, n, p_t, step, masks))
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


scores_6, scores_4, scores_1 = _scores(6), _scores(4), _scores(1)
values_6, values_4, values_1 = _values(6), _values(4), _values(1)
