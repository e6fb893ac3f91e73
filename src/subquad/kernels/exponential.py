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


def _emit_parts(builder, lanes, value):
    """2**value as (1 + fraction * series) * scale."""
    mantissa, bias, degree, _ = _FORMAT[lanes.bits]
    magic = emit_constant(lanes, 1.5 * 2.0**mantissa + bias)
    value = emit_larger(builder, emit_constant(lanes, -float(bias)), value)
    shifted = builder.fadd(value, magic)
    fraction = builder.fsub(value, builder.fsub(shifted, magic))
    coefficients = _exp2_coefficients(degree)
    series = emit_constant(lanes, coefficients[-1])
    for coefficient in reversed(coefficients[1:-1]):
        series = emit_fma(builder, lanes, series, fraction, emit_constant(lanes, coefficient))
    shift = ir.Constant(lanes.ir_int, [mantissa] * lanes.count)
    scale = builder.bitcast(builder.shl(builder.bitcast(shifted, lanes.ir_int), shift), lanes.ir)
    return fraction, series, scale


def _emit_exp2(builder, lanes, value):
    fraction, series, scale = _emit_parts(builder, lanes, value)
    return builder.fmul(emit_fma(builder, lanes, series, fraction, emit_constant(lanes, 1.0)), scale)


@intrinsic
def exp2(typing_context, x):
    """2**x for x <= 0: a magic number rounds x to n, a polynomial gives 2**f, and n + bias becomes the exponent.

    The exponent multiplies rather than adds to the bits, so a NaN stays one. Below 2**-bias the result is exactly 0.
    """

    def codegen(context, builder, sig, args):
        return _emit_exp2(builder, x, args[0])

    return x(x), codegen


# tanh(x) = x P(u) / Q(u), u = (scale x)², on |x| <= 8.15, from where it is 1 up to 2e-7: a minimax fit of degree 7
# over 8 whose error, 2e-7, is that of exp2. With this scale both begin with 1 u**n, an addition, and processors add
# beside what they multiply. (9 over 8 with factors there took 1.2 times as long.)
_TANH_BOUND, _TANH_SCALE = 8.15, 0.14620204529791056
_TANH_ABOVE = (0.8662339458036011, 5.232825336627157, 5.567934046187974)
_TANH_BELOW = (0.8662340935491613, 18.741269993434422, 45.042214633693085, 20.99082354766878)


def _emit_monic(builder, lanes, x, coefficients):
    """x**n + coefficients[n - 1] x**(n - 1) + ... + coefficients[0]."""
    power = builder.fadd(x, emit_constant(lanes, coefficients[-1]))
    for coefficient in reversed(coefficients[:-1]):
        power = emit_fma(builder, lanes, power, x, emit_constant(lanes, coefficient))
    return power


def _emit_cap_rational(builder, lanes, x, cap, inverse):
    bound = builder.fmul(cap, emit_constant(lanes, _TANH_BOUND))
    x = emit_larger(builder, builder.fsub(emit_constant(lanes, 0.0), bound), x)
    x = builder.select(builder.fcmp_ordered("<", bound, x), bound, x)
    ratio = builder.fmul(x, builder.fmul(inverse, emit_constant(lanes, _TANH_SCALE)))
    square = builder.fmul(ratio, ratio)
    above = builder.fmul(_emit_monic(builder, lanes, square, _TANH_ABOVE), x)
    return builder.fdiv(above, _emit_monic(builder, lanes, square, _TANH_BELOW))


def _emit_tanh_exponential(builder, lanes, x):
    """-e / (2 + e) with e = 2**y - 1 and y = -2 |x| log2(e); e loses no digits where it is small."""
    bits = builder.bitcast(x, lanes.ir_int)
    sign = ir.Constant(lanes.ir_int, [1 << (lanes.bits - 1)] * lanes.count)
    negative = builder.bitcast(builder.or_(bits, sign), lanes.ir)
    power = builder.fmul(negative, emit_constant(lanes, 2.0 / float(np.log(2.0))))
    fraction, series, scale = _emit_parts(builder, lanes, power)
    less = builder.fsub(scale, emit_constant(lanes, 1.0))
    minus_one = emit_fma(builder, lanes, builder.fmul(fraction, series), scale, less)
    ratio = builder.fdiv(minus_one, builder.fadd(minus_one, emit_constant(lanes, 2.0)))
    size = builder.and_(builder.bitcast(ratio, lanes.ir_int), builder.not_(sign))
    return builder.bitcast(builder.or_(size, builder.and_(bits, sign)), lanes.ir)


@intrinsic
def capped(typing_context, x, cap, inverse):
    """cap tanh(x inverse), inverse = 1 / cap: a rational function for float32, exponentials for float64."""

    def codegen(context, builder, sig, args):
        if x.bits == 32:
            return _emit_cap_rational(builder, x, *args)
        return builder.fmul(args[1], _emit_tanh_exponential(builder, x, builder.fmul(args[0], args[2])))

    return x(x, cap, inverse), codegen


def _emit_rolled(builder, n, start, round_of):
    """carried = round_of(j, carried) for 0 <= j < n, from `start` on: a loop that LLVM must not unroll.

    Two rows at a time need more than 16 registers, and sums would go through memory. LLVM does not where it would have
    to duplicate something `convergent`; that something is empty.
    """
    before = builder.block
    head, end = builder.append_basic_block("rolled"), builder.append_basic_block("rolled.end")
    builder.cbranch(builder.icmp_signed(">", n, ir.Constant(_I64, 0)), head, end)
    builder.position_at_end(head)
    j, carried = builder.phi(_I64), builder.phi(start.type)
    leaving, following = round_of(j, carried), builder.add(j, ir.Constant(_I64, 1))
    rolled = builder.asm(ir.FunctionType(ir.VoidType(), []), "", "", [], side_effect=True)
    rolled.attributes.add("convergent")
    builder.cbranch(builder.icmp_signed("<", following, n), head, end)
    for phi, first, then in ((j, ir.Constant(_I64, 0), following), (carried, start, leaving)):
        phi.add_incoming(first, before)
        phi.add_incoming(then, head)
    builder.position_at_end(end)
    result = builder.phi(start.type)
    result.add_incoming(start, before)
    result.add_incoming(leaving, head)
    return result


def _row(builder, pointer, j, lanes):
    return lanes_address(builder, pointer, builder.mul(j, ir.Constant(_I64, lanes.count)), lanes)


@intrinsic
def exp2_rows(typing_context, s_t, n, base):
    """s_t[j, :] = 2**(s_t[j, :] - base) for n rows; returns their sum."""
    lanes = LANES[s_t.dtype]

    def codegen(context, builder, sig, args):
        s_t_, n_, base_ = args

        def one_row(j, total):
            address = _row(builder, s_t_, j, lanes)
            power = _emit_exp2(builder, lanes, builder.fsub(builder.load(address, align=lanes.bits // 8), base_))
            builder.store(power, address, align=lanes.bits // 8)
            return builder.fadd(total, power)

        return _emit_rolled(builder, n_, emit_constant(lanes, 0.0), one_row)

    return lanes(s_t, types.intp, lanes), codegen


@intrinsic
def weight_gradient_rows(typing_context, s_t, w_t, n, lse, delta):
    """For n rows: s_t[j, :] = p = 2**(s_t[j, :] - lse) and w_t[j, :] = p (w_t[j, :] - delta), in place.

    Returns lanes of 0, or of NaN where a row held one or an infinity.
    """
    lanes = LANES[s_t.dtype]

    def codegen(context, builder, sig, args):
        s_t_, w_t_, n_, lse_, delta_ = args
        zero = emit_constant(lanes, 0.0)

        def one_row(j, total):
            s_address, w_address = (_row(builder, pointer, j, lanes) for pointer in (s_t_, w_t_))
            s, w = (builder.load(address, align=lanes.bits // 8) for address in (s_address, w_address))
            power = _emit_exp2(builder, lanes, builder.fsub(s, lse_))
            builder.store(power, s_address, align=lanes.bits // 8)
            builder.store(builder.fmul(power, builder.fsub(w, delta_)), w_address, align=lanes.bits // 8)
            return emit_fma(builder, lanes, w, zero, emit_fma(builder, lanes, s, zero, total))

        return _emit_rolled(builder, n_, zero, one_row)

    return lanes(s_t, s_t, types.intp, lanes, lanes), codegen


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
