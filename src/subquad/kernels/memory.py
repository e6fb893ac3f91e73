"""Memory, as kernels reach it: `CPointer` values and `getelementptr`. Offsets count elements.

Loads and stores need element alignment only. Half precision is a way of storing float32: pointers to int16 mean
float16, pointers to uint16 bfloat16. A load widens, a store rounds to nearest even, and between them kernels are those
of float32.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from subquad.kernels.simd import BFLOAT16, FLOAT16, LANES, emit_constant, emit_halves, emit_splat

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _align(lanes):
    return lanes.bits // 8


def emit_load(builder, stored, address, count):
    """`count` floats from where elements of the type `stored` lie."""
    lanes = LANES[stored]
    if stored not in (FLOAT16, BFLOAT16):
        wide = ir.VectorType(lanes.ir_element, count)
        return builder.load(builder.bitcast(address, wide.as_pointer()), align=_align(lanes))
    narrow = ir.VectorType(ir.HalfType() if stored == FLOAT16 else ir.IntType(16), count)
    return emit_widen(builder, stored, builder.load(builder.bitcast(address, narrow.as_pointer()), align=2), count)


def emit_widen(builder, stored, value, count):
    wide = ir.VectorType(ir.FloatType(), count)
    if stored == FLOAT16:
        return builder.fpext(value, wide)
    integers = ir.VectorType(_I32, count)
    return builder.bitcast(builder.shl(builder.zext(value, integers), ir.Constant(integers, [16] * count)), wide)


def emit_store(builder, stored, value, address):
    """Write floats where elements of the type `stored` lie, rounded to nearest even if they are narrower."""
    count = value.type.count
    if stored == FLOAT16:
        value = builder.fptrunc(value, ir.VectorType(ir.HalfType(), count))
    elif stored == BFLOAT16:
        integers = ir.VectorType(_I32, count)

        def constant(number):
            return ir.Constant(integers, [number] * count)

        bits = builder.bitcast(value, integers)
        odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
        rounded = builder.add(builder.add(bits, constant(0x7FFF)), odd)
        quiet = builder.or_(bits, constant(0x400000))  # a NaN must not be rounded up to an infinity
        bits = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
        value = builder.trunc(builder.lshr(bits, constant(16)), ir.VectorType(ir.IntType(16), count))
    align = 2 if stored in (FLOAT16, BFLOAT16) else _align(LANES[stored])
    builder.store(value, builder.bitcast(address, value.type.as_pointer()), align=align)


@intrinsic
def at(typing_context, pointer, offset):
    """The pointer `offset` elements further on."""

    def codegen(context, builder, sig, args):
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.intp), codegen


@intrinsic
def load(typing_context, pointer, offset):
    """The lanes stored from `pointer[offset]` on."""
    lanes = LANES[pointer.dtype]

    def codegen(context, builder, sig, args):
        return emit_load(builder, pointer.dtype, builder.gep(args[0], [args[1]]), lanes.count)

    return lanes(pointer, types.intp), codegen


def _emit_first(builder, lanes, count):
    """A mask of the first `count` lanes."""
    integers = ir.VectorType(_I64, lanes.count)
    zeros = ir.Constant(ir.VectorType(_I32, lanes.count), [0] * lanes.count)
    first = builder.insert_element(ir.Constant(integers, ir.Undefined), count, ir.Constant(_I32, 0))
    counts = builder.shuffle_vector(first, ir.Constant(integers, ir.Undefined), zeros)
    return builder.icmp_signed("<", ir.Constant(integers, list(range(lanes.count))), counts)


@intrinsic
def load_part(typing_context, pointer, offset, count):
    """The first `count` lanes stored from `pointer[offset]` on, then zeros; nothing past them is touched."""
    lanes = LANES[pointer.dtype]

    def codegen(context, builder, sig, args):
        narrow, bits = pointer.dtype in (FLOAT16, BFLOAT16), 16 if pointer.dtype in (FLOAT16, BFLOAT16) else lanes.bits
        stored = ir.VectorType(ir.IntType(16), lanes.count) if narrow else lanes.ir
        address = builder.bitcast(builder.gep(args[0], [args[1]]), stored.as_pointer())
        mask = _emit_first(builder, lanes, args[2])
        filler = ir.Constant(stored, [0] * lanes.count) if narrow else emit_constant(lanes, 0.0)
        arguments = [address, ir.Constant(_I32, bits // 8), mask, filler]
        function_type = ir.FunctionType(stored, [a.type for a in arguments])
        name = f"llvm.masked.load.v{lanes.count}{'i' if narrow else 'f'}{bits}.p0"
        value = builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)
        if pointer.dtype == FLOAT16:
            value = builder.bitcast(value, ir.VectorType(ir.HalfType(), lanes.count))
        return emit_widen(builder, pointer.dtype, value, lanes.count) if narrow else value

    return lanes(pointer, types.intp, types.intp), codegen


@intrinsic
def store(typing_context, pointer, offset, value):
    """Write lanes from `pointer[offset]` on."""
    lanes = LANES[pointer.dtype]

    def codegen(context, builder, sig, args):
        emit_store(builder, pointer.dtype, args[2], builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(pointer, types.intp, lanes), codegen


@intrinsic
def store_part(typing_context, pointer, offset, count, value):
    """Write the first `count` lanes from `pointer[offset]` on."""
    lanes = LANES[pointer.dtype]

    def codegen(context, builder, sig, args):
        pointer_, offset_, count_, value_ = args
        address = builder.bitcast(builder.gep(pointer_, [offset_]), lanes.ir.as_pointer())
        arguments = [value_, address, ir.Constant(_I32, _align(lanes)), _emit_first(builder, lanes, count_)]
        function_type = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
        name = f"llvm.masked.store.v{lanes.count}f{lanes.bits}.p0"
        builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), arguments)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, types.intp, lanes), codegen


@intrinsic
def get(typing_context, pointer, offset):
    """The number `pointer[offset]`, however it is stored."""
    lanes = LANES[pointer.dtype]

    def codegen(context, builder, sig, args):
        one = emit_load(builder, pointer.dtype, builder.gep(args[0], [args[1]]), 1)
        return builder.extract_element(one, ir.Constant(_I32, 0))

    return lanes.scalar(pointer, types.intp), codegen


@intrinsic
def put(typing_context, pointer, offset, value):
    """pointer[offset] = value, however it is stored."""
    lanes = LANES[pointer.dtype]

    def codegen(context, builder, sig, args):
        scalar = context.cast(builder, args[2], sig.args[2], lanes.scalar)
        one = ir.Constant(ir.VectorType(lanes.ir_element, 1), ir.Undefined)
        one = builder.insert_element(one, scalar, ir.Constant(_I32, 0))
        emit_store(builder, pointer.dtype, one, builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(pointer, types.intp, value), codegen


@intrinsic
def seen_as(typing_context, pointer, other):
    """The same place as elements of the kind that `other` points to."""

    def codegen(context, builder, sig, args):
        return builder.bitcast(args[0], context.get_value_type(other))

    return other(pointer, other), codegen


@intrinsic
def is_narrow(typing_context, pointer):
    """1 where elements are stored in half precision: a constant."""

    def codegen(context, builder, sig, args):
        return ir.Constant(_I64, int(pointer.dtype in (FLOAT16, BFLOAT16)))

    return types.int64(pointer), codegen


@intrinsic
def broadcast(typing_context, pointer, offset):
    """`pointer[offset]` in every lane."""
    lanes = LANES[pointer.dtype]

    def codegen(context, builder, sig, args):
        return emit_splat(builder, lanes, builder.load(builder.gep(args[0], [args[1]]), align=_align(lanes)))

    return lanes(pointer, types.intp), codegen


@intrinsic
def prefetch(typing_context, pointer, offset):
    """Ask for the cache line of `pointer[offset]`; never faults."""

    def codegen(context, builder, sig, args):
        byte_pointer = ir.IntType(8).as_pointer()
        function_type = ir.FunctionType(ir.VoidType(), [byte_pointer, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        address = builder.bitcast(builder.gep(args[0], [args[1]]), byte_pointer)
        builder.call(function, [address, ir.Constant(_I32, 0), ir.Constant(_I32, 3), ir.Constant(_I32, 1)])
        return context.get_dummy_value()

    return types.void(pointer, types.intp), codegen


@intrinsic
def store_sums(typing_context, pointer, offset, a, b, c, d):
    """pointer[offset + r] = the sum of the lanes of the r-th of four vectors, each by the same tree.

    Neighbouring lanes are added, of two vectors at a time: 12 instructions for four sums instead of 40.
    """
    lanes = LANES[pointer.dtype]

    def codegen(context, builder, sig, args):
        def add_neighbours(x, y):
            picks = [
                ir.Constant(ir.VectorType(_I32, x.type.count), list(range(at, 2 * x.type.count, 2))) for at in (0, 1)
            ]
            return builder.fadd(*(builder.shuffle_vector(x, y, pick) for pick in picks))

        narrow = []
        for value in args[2:]:
            while value.type.count > 4:
                value = builder.fadd(*emit_halves(builder, value))
            narrow.append(value)
        sums = add_neighbours(add_neighbours(*narrow[:2]), add_neighbours(*narrow[2:]))
        address = builder.bitcast(builder.gep(args[0], [args[1]]), sums.type.as_pointer())
        builder.store(sums, address, align=_align(lanes))
        return context.get_dummy_value()

    return types.void(pointer, types.intp, a, a, a, a), codegen
