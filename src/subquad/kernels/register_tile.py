"""The matrix product in registers: rows of broadcast scalars times vectors of lanes.

Each function is one loop with `rows` accumulators, which llvmlite emits unrolled over the rows and over four rounds.
With 6 rows the 12 accumulators, 2 lane registers and 1 broadcast of AVX2 fit its 16 registers. What counts is
instructions for each multiply-add, since hyper-threads share the front end of a core: 1.7 here, 1.9 where the column
step is only known at run time, 2.1 with 4 rows. So columns are side by side here: others are copied into panels first.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from subquad.kernels.simd import HALVES, LANES, emit_fma, emit_larger, emit_mask, emit_splat, lanes_address

_OFFSETS = types.CPointer(types.int64)
_INDEX = ir.IntType(64)
_UNROLL = 4


def _index(value):
    return ir.Constant(_INDEX, value)


def _emit_broadcast(builder, lanes, pointer):
    return emit_splat(builder, lanes, builder.load(pointer, align=lanes.bits // 8))


def _emit_rounds(builder, lanes, begin, end, unroll, start, vectors, step, pointers, masks):
    """acc[v][r] += broadcast(pointers(t)[r]) * vectors[v][t step] for `unroll` rounds at a time, from `start` on.

    Returns the accumulators and the round that comes next. With `masks`, round t leaves lanes outside masks[t] alone.
    """
    n_rows = len(start) // len(vectors)
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
        offset = builder.mul(t, _index(step))
        rows, columns = pointers(t), [lanes_address(builder, base, offset, lanes) for base in vectors]
        updated = list(values)
        # the few stay in registers, the many come one after another: so is it written, and so LLVM leaves it
        if n_rows < len(columns):
            scalars = [_emit_broadcast(builder, lanes, row) for row in rows]
            for v, column in enumerate(columns):
                vector = builder.load(column, align=lanes.bits // 8)
                for r, scalar in enumerate(scalars, v * n_rows):
                    updated[r] = emit_fma(builder, lanes, scalar, vector, values[r])
        else:
            loaded = [builder.load(column, align=lanes.bits // 8) for column in columns]
            for r, row in enumerate(rows):
                scalar = _emit_broadcast(builder, lanes, row)
                for at, vector in enumerate(loaded):
                    updated[at * n_rows + r] = emit_fma(builder, lanes, scalar, vector, values[at * n_rows + r])
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


def _emit_product(builder, lanes, count, start, vectors, pointers, masks=None):
    """Accumulators after all rounds of a tile; `pointers(t)` gives the scalars of round t."""
    operands = [vectors], lanes.count, pointers, masks
    values, t = _emit_rounds(builder, lanes, _index(0), count, _UNROLL, start, *operands)
    return _emit_rounds(builder, lanes, t, count, 1, values, *operands)[0]


def _row(builder, lanes, pointer, r):
    return lanes_address(builder, pointer, _index(r * lanes.count), lanes)


def _store_rows(builder, lanes, pointer, values):
    for r, value in enumerate(values):
        builder.store(value, _row(builder, lanes, pointer, r), align=lanes.bits // 8)


@intrinsic
def scores_6(typing_context, s, q_t, d, k, k_off, top):
    """s[r, :] = sum_c k[k_off[r] + c] q_t[c, :] for six rows r; returns the lane maxima of `top` and s."""
    lanes = LANES[s.dtype]

    def codegen(context, builder, sig, args):
        s_, q_t_, d_, k_, k_off_, top_ = args
        starts = [builder.gep(k_, [builder.load(builder.gep(k_off_, [_index(r)]))]) for r in range(6)]
        zeros = [ir.Constant(lanes.ir, [0.0] * lanes.count)] * 6
        values = _emit_product(builder, lanes, d_, zeros, q_t_, lambda t: [builder.gep(start, [t]) for start in starts])
        _store_rows(builder, lanes, s_, values)
        for value in values:
            top_ = emit_larger(builder, value, top_)
        return top_

    return lanes(s, q_t, types.intp, k, _OFFSETS, lanes), codegen


def _emit_values(context, builder, lanes, rows, args, masks=None):
    o_t, p_t, n, v, v_off, alpha = args
    start = [
        builder.fmul(builder.load(_row(builder, lanes, o_t, r), align=lanes.bits // 8), alpha) for r in range(rows)
    ]

    def pointers(t):
        row = builder.gep(v, [builder.load(builder.gep(v_off, [t]))])
        return [builder.gep(row, [_index(r)]) for r in range(rows)]

    _store_rows(builder, lanes, o_t, _emit_product(builder, lanes, n, start, p_t, pointers, masks))
    return context.get_dummy_value()


def _values(rows):
    @intrinsic
    def values(typing_context, o_t, p_t, n, v, v_off, alpha):
        """o_t[r, :] = alpha o_t[r, :] + sum_j v[v_off[j] + r] p_t[j, :] for each row r."""
        lanes = LANES[o_t.dtype]

        def codegen(context, builder, sig, args):
            return _emit_values(context, builder, lanes, rows, args)

        return types.void(o_t, p_t, types.intp, v, _OFFSETS, lanes), codegen

    return values


@intrinsic
def masked_values_1(typing_context, o_t, p_t, n, v, v_off, alpha, mask):
    """`values_1` that leaves the lanes outside mask[j] alone at key j, whatever its value holds."""
    lanes = LANES[o_t.dtype]

    def codegen(context, builder, sig, args):
        return _emit_values(context, builder, lanes, 1, args[:-1], args[-1])

    return types.void(o_t, p_t, types.intp, v, _OFFSETS, lanes, _OFFSETS), codegen


values_6, values_4, values_1 = _values(6), _values(4), _values(1)


def _outer(rows, blocks):
    @intrinsic
    def outer(typing_context, x, x_off, p, y):
        """x[x_off[r] + columns] += sum_i p[r, i] y[columns, i] for some rows r and blocks of columns, a vector each.

        Written from the last row to the first: where rows are filled up with copies of the last one, its own result
        stays.
        """
        lanes, half = LANES[x.dtype], HALVES[x.dtype]

        def codegen(context, builder, sig, args):
            x_, x_off_, p_, y_ = args
            starts = [builder.gep(x_, [builder.load(builder.gep(x_off_, [_index(r)]))]) for r in range(rows)]
            columns = [_index(v * half.count) for v in range(2 * blocks)]
            targets = [lanes_address(builder, start, column, half) for column in columns for start in starts]
            before = [builder.load(target, align=half.bits // 8) for target in targets]
            corners = [b * lanes.count**2 + h * half.count for b in range(blocks) for h in range(2)]
            vectors = [builder.gep(y_, [_index(corner)]) for corner in corners]
            weights = [builder.gep(p_, [_index(r * lanes.count)]) for r in range(rows)]
            values, _ = _emit_rounds(
                builder,
                half,
                _index(0),
                _index(lanes.count),
                _UNROLL,
                before,
                vectors,
                lanes.count,
                lambda t: [builder.gep(weight, [t]) for weight in weights],
                None,
            )
            for target, value in reversed(list(zip(targets, values, strict=True))):
                builder.store(value, target, align=half.bits // 8)
            return context.get_dummy_value()

        return types.void(x, _OFFSETS, x, x), codegen

    return outer


# Three rows of two vectors take 1.67 instructions a multiply-add, six rows of one 1.75: 4% of a backward. By halves of
# vectors 12 accumulators, 3 broadcasts and the one half that is multiplied fit the 16 registers of AVX2.
outer_6, outer_3x2 = _outer(6, 1), _outer(3, 2)
