"""The vector layer: a Numba type whose values are 64-byte LLVM vectors, and the few operations kernels need.

A `Lanes` value is an ordinary local variable: 16 float32 or 8 float64, one AVX-512 register, two AVX2 registers or
four NEON registers, whichever the host has: LLVM splits it, the source stays one. Lane masks are plain 64-bit
integers, lane 0 in bit 0.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

VECTOR_BYTES = 64

_I1, _I32, _I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


class Lanes(types.Type):
    """A vector of `count` floats of the Numba type `scalar`."""

    def __init__(self, scalar, n_bytes=VECTOR_BYTES):
        self.scalar = scalar
        self.bits = scalar.bitwidth
        self.count = n_bytes * 8 // scalar.bitwidth
        element = ir.FloatType() if scalar.bitwidth == 32 else ir.DoubleType()
        self.ir_element = element
        self.ir = ir.VectorType(element, self.count)
        self.ir_int = ir.VectorType(ir.IntType(scalar.bitwidth), self.count)
        super().__init__(name=f"lanes_{scalar}x{self.count}")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.ir)


LANES = {scalar: Lanes(scalar) for scalar in (types.float32, types.float64)}
HALVES = {scalar: Lanes(scalar, VECTOR_BYTES // 2) for scalar in LANES}
FLOAT16, BFLOAT16 = types.int16, types.uint16  # as element types of pointers: float32 that is stored in halves
LANES |= dict.fromkeys((FLOAT16, BFLOAT16), LANES[types.float32])


def emit_constant(lanes, value):
    return ir.Constant(lanes.ir, [value] * lanes.count)


def _call(builder, name, lanes, args):
    function_type = ir.FunctionType(lanes.ir, [a.type for a in args])
    suffix = f"v{lanes.count}f{lanes.bits}"
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, f"{name}.{suffix}"), args)


def emit_splat(builder, lanes, scalar):
    one = builder.insert_element(ir.Constant(lanes.ir, ir.Undefined), scalar, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, lanes.count), [0] * lanes.count)
    return builder.shuffle_vector(one, ir.Constant(lanes.ir, ir.Undefined), zeros)


def lanes_address(builder, pointer, offset, lanes):
    return builder.bitcast(builder.gep(pointer, [offset]), lanes.ir.as_pointer())


def emit_fma(builder, lanes, x, y, z):
    return _call(builder, "llvm.fma", lanes, [x, y, z])


def emit_larger(builder, x, y):
    """x where x > y, else y."""
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


@intrinsic
def width_of(typing_context, pointer):
    """Lanes in a vector of what `pointer` points to: a constant."""

    def codegen(context, builder, sig, args):
        return ir.Constant(_I64, LANES[pointer.dtype].count)

    return types.int64(pointer), codegen


# --- constants and arithmetic -----------------------------------------------------------------------------------


@intrinsic
def splat(typing_context, pointer, scalar):
    """The number `scalar` in every lane, in the element type of `pointer`."""
    lanes = LANES[pointer.dtype]

    def codegen(context, builder, sig, args):
        return emit_splat(builder, lanes, context.cast(builder, args[1], sig.args[1], lanes.scalar))

    return lanes(pointer, scalar), codegen


@intrinsic
def as_scalar(typing_context, pointer, number):
    """The number in the element type of `pointer`."""
    lanes = LANES[pointer.dtype]

    def codegen(context, builder, sig, args):
        return context.cast(builder, args[1], sig.args[1], lanes.scalar)

    return lanes.scalar(pointer, number), codegen


def _binary(op, method):
    # typed and lowered by hand: an `overload` would be one more function to compile
    @infer_global(op)
    class Typed(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == 2 and isinstance(args[0], Lanes) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(op, Lanes, Lanes)
    def lowered(context, builder, sig, args):
        return getattr(builder, method)(*args)


_binary(operator.add, "fadd")
_binary(operator.sub, "fsub")
_binary(operator.mul, "fmul")
_binary(operator.truediv, "fdiv")


@intrinsic
def fma(typing_context, x, y, z):
    """x * y + z, rounded once."""

    def codegen(context, builder, sig, args):
        return emit_fma(builder, x, *args)

    return x(x, x, x), codegen


@intrinsic
def larger(typing_context, x, y):
    """x where x > y, else y: a NaN in `x` is dropped, a NaN in `y` is kept."""

    def codegen(context, builder, sig, args):
        return emit_larger(builder, *args)

    return x(x, x), codegen


def emit_halves(builder, value):
    """The lower and the upper half of a vector."""
    half = value.type.count // 2
    undefined = ir.Constant(value.type, ir.Undefined)
    return [
        builder.shuffle_vector(value, undefined, ir.Constant(ir.VectorType(_I32, half), list(range(at, at + half))))
        for at in (0, half)
    ]


@intrinsic
def lane_sum(typing_context, x):
    """The sum of the lanes, by halves: always the same tree, so always the same bits."""

    def codegen(context, builder, sig, args):
        value = args[0]
        for _ in range(x.count.bit_length() - 1):
            value = builder.fadd(*emit_halves(builder, value))
        return builder.extract_element(value, ir.Constant(_I32, 0))

    return x.scalar(x), codegen


@intrinsic
def lane_max(typing_context, x):
    """The largest lane; NaN lanes may be dropped."""

    def codegen(context, builder, sig, args):
        value = args[0]
        for _ in range(x.count.bit_length() - 1):
            value = emit_larger(builder, *emit_halves(builder, value))
        return builder.extract_element(value, ir.Constant(_I32, 0))

    return x.scalar(x), codegen


# --- masks ------------------------------------------------------------------------------------------------------


def emit_mask(builder, lanes, bits):
    narrow = builder.trunc(bits, ir.IntType(lanes.count))
    return builder.bitcast(narrow, ir.VectorType(_I1, lanes.count))


@intrinsic
def select(typing_context, bits, x, y):
    """x in the lanes whose bit is set, else y."""

    def codegen(context, builder, sig, args):
        return builder.select(emit_mask(builder, x, args[0]), args[1], args[2])

    return x(types.int64, x, x), codegen


def _comparison(name, ordered, operation):
    @intrinsic
    def compare(typing_context, x, y):
        def codegen(context, builder, sig, args):
            emit = builder.fcmp_ordered if ordered else builder.fcmp_unordered
            mask = builder.bitcast(emit(operation, *args), ir.IntType(x.count))
            return builder.zext(mask, _I64)

        return types.int64(x, x), codegen

    compare.__name__ = name
    return compare


greater = _comparison("greater", True, ">")
not_equal_or_nan = _comparison("not_equal_or_nan", False, "!=")
