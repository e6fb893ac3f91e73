"""2**x and log2 of vectors: LLVM has no vector mathematics that Numba can reach, so they are spelled out here."""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from subquad.kernels.simd import LANES, emit_constant, emit_fma, emit_larger, lanes_address

_I64 = ir.IntType(64)


def _exp2_coefficients(degree):
    """Chebyshev interpolant of 2**f on [-1/2, 1/2], lowest power first; the constant is exactly 1, so exp2(0) is."""
    interpolant = np.polynomial.chebyshev.Chebyshev.interpolate(np.exp2, degree, domain=[-0.5, 0.5])
    coefficients = interpolant.convert(kind=np.polynomial.Polynomial).coef
    coefficients[0] = 1.0
    return [float(c) for c in coefficients]


# bits of the mantissa, exponent bias, degree of exp2 (relative error 2e-7 / 3e-16), terms of the log series
_FORMAT = {32: (23, 127, 5, 5), 64: (52, 1023, 11, 11)}


def _emit_exp2(builder, lanes, value):
    mantissa, bias, degree, _ = _FORMAT[lanes.bits]
    magic = emit_constant(lanes, 1.5 * 2.0**mantissa + bias)
    value = emit_larger(builder, emit_constant(lanes, -float(bias)), value)
    shifted = builder.fadd(value, magic)
    fraction = builder.fsub(value, builder.fsub(shifted, magic))
    coefficients = _exp2_coefficients(degree)
    power = emit_constant(lanes, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        power = emit_fma(builder, lanes, power, fraction, emit_constant(lanes, coefficient))
    shift = ir.Constant(lanes.ir_int, [mantissa] * lanes.count)
    scale = builder.bitcast(builder.shl(builder.bitcast(shifted, lanes.ir_int), shift), lanes.ir)
    return builder.fmul(power, scale)


@intrinsic
def exp2(typing_context, x):
    """2**x for x <= 0: a magic number rounds x to n, a polynomial gives 2**f, and n + bias becomes the exponent.

    The exponent multiplies rather than adds to the bits, so a NaN stays one. Below 2**-bias the result is exactly 0.
    """

    def codegen(context, builder, sig, args):
        return _emit_exp2(builder, x, args[0])

    return x(x), codegen


@intrinsic
def exp2_rows(typing_context, s_t, n, base):
    """s_t[j, :] = 2**(s_t[j, :] - base) for n rows; returns their sum.

    LLVM must not unroll this loop: two rows at a time need more than 16 registers, and their sums go through memory.
    It does not where it would have to duplicate something `convergent`; that something is empty.
    """
    lanes = LANES[s_t.dtype]

    def codegen(context, builder, sig, args):
        before = builder.block
        head, end = builder.append_basic_block("exp2"), builder.append_basic_block("exp2.end")
        zero = emit_constant(lanes, 0.0)
        builder.cbranch(builder.icmp_signed(">", args[1], ir.Constant(_I64, 0)), head, end)
        builder.position_at_end(head)
        j, total = builder.phi(_I64), builder.phi(lanes.ir)
        address = lanes_address(builder, args[0], builder.mul(j, ir.Constant(_I64, lanes.count)), lanes)
        power = _emit_exp2(builder, lanes, builder.fsub(builder.load(address, align=lanes.bits // 8), args[2]))
        builder.store(power, address, align=lanes.bits // 8)
        added, following = builder.fadd(total, power), builder.add(j, ir.Constant(_I64, 1))
        rolled = builder.asm(ir.FunctionType(ir.VoidType(), []), "", "", [], side_effect=True)
        rolled.attributes.add("convergent")
        builder.cbranch(builder.icmp_signed("<", following, args[1]), head, end)
        for phi, entering, leaving in ((j, ir.Constant(_I64, 0), following), (total, zero, added)):
            phi.add_incoming(entering, before)
            phi.add_incoming(leaving, head)
        builder.position_at_end(end)
        result = builder.phi(lanes.ir)
        result.add_incoming(zero, before)
        result.add_incoming(added, head)
        return result

    return lanes(s_t, types.intp, lanes), codegen


@intrinsic
def log2(typing_context, x):
    """log2 of positive normal lanes: exponent plus atanh series of the mantissa in [sqrt(1/2), sqrt(2)); NaN stays."""
    mantissa, _, _, terms = _FORMAT[x.bits]

    def codegen(context, builder, sig, args):
        def integers(value):
            return ir.Constant(x.ir_int, [value] * x.count)

        bits = builder.bitcast(args[0], x.ir_int)
        # subtracting the bits of sqrt(1/2) makes the exponent field count from there
        root_half = int(np.array(0.5**0.5, f"f{x.bits // 8}").view(f"i{x.bits // 8}"))
        exponent = builder.ashr(builder.sub(bits, integers(root_half)), integers(mantissa))
        reduced_bits = builder.sub(bits, builder.shl(exponent, integers(mantissa)))
        reduced = builder.bitcast(reduced_bits, x.ir)
        one = emit_constant(x, 1.0)
        ratio = builder.fdiv(builder.fsub(reduced, one), builder.fadd(reduced, one))
        square = builder.fmul(ratio, ratio)
        series = emit_constant(x, 1.0 / (2 * terms + 1))
        for k in reversed(range(terms)):
            series = emit_fma(builder, x, series, square, emit_constant(x, 1.0 / (2 * k + 1)))
        mantissa_log = builder.fmul(builder.fmul(ratio, series), emit_constant(x, 2.0 / float(np.log(2.0))))
        result = builder.fadd(builder.sitofp(exponent, x.ir), mantissa_log)
        return builder.select(builder.fcmp_unordered("uno", args[0], args[0]), args[0], result)

    return x(x), codegen
