"""What may change a score or a weight on its way: functions that kernels call at an address, a step or a list at once.

A kernel knows none of them. The table of a head holds their addresses, 0 where there is none, so that whoever asks for
nothing pays a comparison a step, and a function of the user's own is compiled by itself. All take

    x, y        what is changed, and scratch or derivatives of its shape
    rows, keys  the pairs: see BY_TILE, BY_ROW, BY_COLUMN in `layout`
    n, way      keys (or rows) that are listed, and which of the three it is
    derive      1: multiply y by the derivative of what is done to x; of a mask: the lanes of a tile
    head        the table of the head
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from subquad.kernels import layout
from subquad.kernels.exponential import capped
from subquad.kernels.jit import device
from subquad.kernels.memory import load, load_part, store, store_part
from subquad.kernels.simd import LANES, emit_constant, fma, larger, splat, width_of

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_NEAR = 1 << 23  # distances whose float32 is exact
GOLDEN = 0x9E3779B97F4A7C15


@intrinsic
def call_modifier(typing_context, address, x, y, rows, keys, n, way, derive, head):
    """Call the function at `address`."""

    def codegen(context, builder, sig, args):
        function_type = ir.FunctionType(ir.VoidType(), [a.type for a in args[1:]])
        builder.call(builder.inttoptr(args[0], function_type.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, x, y, rows, keys, types.int64, types.int64, types.int64, head), codegen


@intrinsic
def as_float(typing_context, bits):
    """The float64 of these bits."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), codegen


@device
def modify_scores(s, slopes, rows, keys, n, way, derive, head):
    """Scores after all that is asked for: slopes get the derivatives."""
    if derive != 0:
        lanes = width_of(s)
        for e in range(n * lanes if way == layout.BY_TILE else n):
            slopes[e] = 1.0
    if head[layout.MODIFY] != 0:
        call_modifier(head[layout.MODIFY], s, slopes, rows, keys, n, way, derive, head)
    if head[layout.SCORE_MOD] != 0:
        call_modifier(head[layout.SCORE_MOD], s, slopes, rows, keys, n, way, derive, head)


# --- softcap and ALiBi ------------------------------------------------------------------------------------------------


def _emit_integers(builder, lanes, pointer, count):
    """The first `count` integers from `pointer` on, one a lane; nothing past them is touched."""
    integers = ir.VectorType(_I64, lanes.count)
    mask = builder.icmp_signed("<", ir.Constant(integers, list(range(lanes.count))), _spread(builder, integers, count))
    address = builder.bitcast(pointer, integers.as_pointer())
    arguments = [address, ir.Constant(_I32, 8), mask, ir.Constant(integers, [0] * lanes.count)]
    function_type = ir.FunctionType(integers, [a.type for a in arguments])
    name = f"llvm.masked.load.v{lanes.count}i64.p0"
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)


def _spread(builder, integers, value):
    zeros = ir.Constant(ir.VectorType(_I32, integers.count), [0] * integers.count)
    one = builder.insert_element(ir.Constant(integers, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, ir.Constant(integers, ir.Undefined), zeros)


@intrinsic
def distances(typing_context, like, indices, offset, count, origin):
    """indices[offset + r] - origin for `count` lanes r, exact before it is rounded once."""
    lanes = LANES[like.dtype]

    def codegen(context, builder, sig, args):
        values = _emit_integers(builder, lanes, builder.gep(args[1], [args[2]]), args[3])
        return builder.sitofp(builder.sub(values, _spread(builder, values.type, args[4])), lanes.ir)

    return lanes(like, indices, types.int64, types.int64, types.int64), codegen


@device
def cap_scores(x, y, size, derive, cap):
    """x = cap tanh(x / cap) for `size` scores, a whole vector at a time as long as there is one."""
    lanes, caps, inverse, one, zero = width_of(x), splat(x, cap), splat(x, 1.0 / cap), splat(x, 1.0), splat(x, 0.0)
    whole = size // lanes * lanes
    if derive == 0:
        for e in range(0, whole, lanes):
            store(x, e, capped(load(x, e), caps, inverse))
    else:
        for e in range(0, whole, lanes):
            bent = capped(load(x, e), caps, inverse)
            store(x, e, bent)
            ratio = bent * inverse
            store(y, e, load(y, e) * fma(zero - ratio, ratio, one))
    left = size - whole
    if left > 0:
        bent = capped(load_part(x, whole, left), caps, inverse)
        store_part(x, whole, left, bent)
        if derive != 0:
            ratio = bent * inverse
            store_part(y, whole, left, load_part(y, whole, left) * fma(zero - ratio, ratio, one))


def modify(x, y, rows, keys, n, way, derive, head):
    """Softcap, then ALiBi, of scores in powers of two: c tanh(s / c) - slope |position - key|."""
    lanes, position = width_of(x), head[layout.POSITION]
    cap, slope = as_float(head[layout.SOFTCAP]), as_float(head[layout.SLOPE])
    if cap > 0.0:
        cap_scores(x, y, n * lanes if way == layout.BY_TILE else n, derive, cap)
    if slope == 0.0:
        return
    falls, zero, row, key = splat(x, -slope), splat(x, 0.0), rows[0], keys[0]
    if way == layout.BY_TILE:
        # distances are differences of exact floats, unless they are large
        places, near = distances(x, rows, 0, lanes, row), -_NEAR < rows[lanes - 1] - row < _NEAR
        for t in range(n):
            ahead = keys[t] - position - row
            apart = places - splat(x, np.float64(ahead))
            if not (near and -_NEAR < ahead < _NEAR):
                apart = distances(x, rows, 0, lanes, ahead + row)
            store(x, t * lanes, fma(falls, larger(apart, zero - apart), load(x, t * lanes)))
        return
    for e in range(0, n, lanes):
        count = lanes if n - e >= lanes else n - e
        if way == layout.BY_ROW:
            apart = distances(x, keys, e, count, row + position)
        else:
            apart = distances(x, rows, e, count, key - position)
        store_part(x, e, count, fma(falls, larger(apart, zero - apart), load_part(x, e, count)))


# --- dropout ----------------------------------------------------------------------------------------------------------


@intrinsic
def as_words(typing_context, pointer):
    """The same place as 32-bit integers."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], _I32.as_pointer())

    return types.CPointer(types.int32)(pointer), codegen


@intrinsic
def word_of(typing_context, seed, index):
    """32 random bits of an index: the upper half of splitmix64(seed + index golden)."""

    def codegen(context, builder, sig, args):
        def constant(number):
            return ir.Constant(_I64, number)

        z = builder.add(args[0], builder.mul(args[1], constant(GOLDEN)))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = builder.mul(builder.xor(z, builder.lshr(z, constant(shift))), constant(factor))
        z = builder.xor(z, builder.lshr(z, constant(31)))
        return builder.lshr(z, constant(32))

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def thinned(typing_context, weights, words, word, drop_below, keep_scale):
    """weights x keep_scale in the lanes whose draw, of words[lane] and `word`, is not below drop_below; else 0."""
    lanes = weights

    def codegen(context, builder, sig, args):
        weights_, words_, word_, below_, scale_ = args
        integers = ir.VectorType(_I32, lanes.count)

        def constant(number):
            return ir.Constant(integers, [number] * lanes.count)

        x = builder.load(builder.bitcast(words_, integers.as_pointer()), align=4)
        x = builder.mul(x, _spread(builder, integers, builder.trunc(word_, _I32)))
        x = builder.mul(builder.xor(x, builder.lshr(x, constant(15))), constant(0x846CA68B))
        kept = builder.icmp_unsigned(">=", x, _spread(builder, integers, builder.trunc(below_, _I32)))
        return builder.select(kept, builder.fmul(weights_, scale_), emit_constant(lanes, 0.0))

    return lanes(lanes, words, types.int64, types.int64, lanes), codegen


def thin(x, y, rows, keys, n, way, derive, head):
    """Dropout: weights that are not dropped are divided by the share that is kept. `y` is a vector of scratch.

    The draw of a pair is a function of (seed, batch, head, row, key): a word of the row and one of the key, odd, are
    multiplied and mixed.
    """
    lanes, seed = width_of(x), head[layout.SEED]
    below, scale = head[layout.DROP_BELOW], splat(x, as_float(head[layout.KEEP_SCALE]))
    words = as_words(y)
    if way == layout.BY_TILE:
        for r in range(lanes):
            words[r] = word_of(seed, rows[r])
        for t in range(n):
            store(x, t * lanes, thinned(load(x, t * lanes), words, word_of(~seed, keys[t]) | 1, below, scale))
        return
    word = word_of(~seed, keys[0]) | 1 if way == layout.BY_COLUMN else word_of(seed, rows[0])
    for e in range(0, n, lanes):
        count = lanes if n - e >= lanes else n - e
        for r in range(count):
            words[r] = word_of(seed, rows[e + r]) if way == layout.BY_COLUMN else word_of(~seed, keys[e + r]) | 1
        store_part(x, e, count, thinned(load_part(x, e, count), words, word, below, scale))
