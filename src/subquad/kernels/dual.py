"""Numbers that carry a derivative: a score_mod compiled for them differentiates itself, to rounding.

A `Dual` is (value, slope). Arithmetic follows the rules of the calculus; comparisons look at the value alone, so a
branch has the derivative of the way that is taken. What has no rule here does not compile, and the error says so.
"""

import math
import operator

import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_cast
from numba.extending import intrinsic, models, overload, register_model


class DualType(types.Type):
    """A float of type `scalar` and its derivative."""

    def __init__(self, scalar):
        self.scalar = scalar
        super().__init__(name=f"Dual({scalar})")

    def can_convert_from(self, typing_context, other):
        from numba.core.typeconv import Conversion

        return Conversion.safe if isinstance(other, types.Number) else None

    def unify(self, typing_context, other):
        return self if isinstance(other, types.Number | DualType) else None


@register_model(DualType)
class _DualModel(models.StructModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, [("value", fe_type.scalar), ("slope", fe_type.scalar)])


DUALS = {scalar: DualType(scalar) for scalar in (types.float32, types.float64)}


def _is_dual(x):
    return isinstance(x, DualType)


def _is_number(x):
    return isinstance(x, types.Number | types.Boolean)


@intrinsic
def dual(typing_context, value, slope, like):
    """The number `value` whose derivative is `slope`, in the precision of `like`."""
    kind = like if _is_dual(like) else DUALS[like]

    def codegen(context, builder, sig, args):
        made = cgutils.create_struct_proxy(kind)(context, builder)
        made.value = context.cast(builder, args[0], sig.args[0], kind.scalar)
        made.slope = context.cast(builder, args[1], sig.args[1], kind.scalar)
        return made._getvalue()

    return kind(value, slope, like), codegen


def _part(name):
    @intrinsic
    def part(typing_context, x):
        def codegen(context, builder, sig, args):
            return getattr(cgutils.create_struct_proxy(x)(context, builder, args[0]), name)

        return x.scalar(x), codegen

    return part


value_of, slope_of = _part("value"), _part("slope")


@lower_cast(types.Number, DualType)
def _number_to_dual(context, builder, from_type, to_type, number):
    made = cgutils.create_struct_proxy(to_type)(context, builder)
    made.value = context.cast(builder, number, from_type, to_type.scalar)
    made.slope = context.get_constant(to_type.scalar, 0.0)
    return made._getvalue()


# --- arithmetic -------------------------------------------------------------------------------------------------------


def _binary(operation, both, left, right):
    """A rule for two duals, for a dual and a number, and for a number and a dual."""

    @overload(operation)
    def rule(x, y):
        if _is_dual(x) and _is_dual(y):
            return both
        if _is_dual(x) and _is_number(y):
            return left
        if _is_number(x) and _is_dual(y):
            return right
        return None


_binary(
    operator.add,
    lambda x, y: dual(value_of(x) + value_of(y), slope_of(x) + slope_of(y), x),
    lambda x, y: dual(value_of(x) + y, slope_of(x), x),
    lambda x, y: dual(x + value_of(y), slope_of(y), y),
)
_binary(
    operator.sub,
    lambda x, y: dual(value_of(x) - value_of(y), slope_of(x) - slope_of(y), x),
    lambda x, y: dual(value_of(x) - y, slope_of(x), x),
    lambda x, y: dual(x - value_of(y), -slope_of(y), y),
)
_binary(
    operator.mul,
    lambda x, y: dual(value_of(x) * value_of(y), slope_of(x) * value_of(y) + value_of(x) * slope_of(y), x),
    lambda x, y: dual(value_of(x) * y, slope_of(x) * y, x),
    lambda x, y: dual(x * value_of(y), x * slope_of(y), y),
)
_binary(
    operator.truediv,
    lambda x, y: dual(
        value_of(x) / value_of(y), (slope_of(x) - value_of(x) / value_of(y) * slope_of(y)) / value_of(y), x
    ),
    lambda x, y: dual(value_of(x) / y, slope_of(x) / y, x),
    lambda x, y: dual(x / value_of(y), -x / value_of(y) / value_of(y) * slope_of(y), y),
)
_binary(
    operator.pow,
    lambda x, y: dual(
        value_of(x) ** value_of(y),
        value_of(x) ** (value_of(y) - 1) * (value_of(y) * slope_of(x))
        + value_of(x) ** value_of(y) * math.log(value_of(x)) * slope_of(y),
        x,
    ),
    lambda x, y: dual(value_of(x) ** y, y * value_of(x) ** (y - 1) * slope_of(x), x),
    lambda x, y: dual(x ** value_of(y), x ** value_of(y) * math.log(x) * slope_of(y), y),
)
for _larger in (max, np.maximum, np.fmax):
    _binary(
        _larger,
        lambda x, y: x if value_of(x) >= value_of(y) else y,
        lambda x, y: x if value_of(x) >= y else dual(y, 0.0, x),
        lambda x, y: dual(x, 0.0, y) if x >= value_of(y) else y,
    )
for _smaller in (min, np.minimum, np.fmin):
    _binary(
        _smaller,
        lambda x, y: x if value_of(x) <= value_of(y) else y,
        lambda x, y: x if value_of(x) <= y else dual(y, 0.0, x),
        lambda x, y: dual(x, 0.0, y) if x <= value_of(y) else y,
    )


def _compare(operation):
    _binary(
        operation,
        lambda x, y: operation(value_of(x), value_of(y)),
        lambda x, y: operation(value_of(x), y),
        lambda x, y: operation(x, value_of(y)),
    )


for _comparison in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne):
    _compare(_comparison)


def _unary(functions, rule):
    for function in functions:

        @overload(function)
        def of_dual(x):
            return rule if _is_dual(x) else None


_unary([operator.neg], lambda x: dual(-value_of(x), -slope_of(x), x))
_unary([operator.pos], lambda x: x)
_unary([abs, np.abs, math.fabs, np.fabs], lambda x: x if value_of(x) >= 0 else dual(-value_of(x), -slope_of(x), x))
_unary([math.exp, np.exp], lambda x: dual(math.exp(value_of(x)), math.exp(value_of(x)) * slope_of(x), x))
_unary([np.exp2], lambda x: dual(np.exp2(value_of(x)), np.exp2(value_of(x)) * math.log(2.0) * slope_of(x), x))
_unary([math.expm1, np.expm1], lambda x: dual(math.expm1(value_of(x)), math.exp(value_of(x)) * slope_of(x), x))
_unary([math.log, np.log], lambda x: dual(math.log(value_of(x)), slope_of(x) / value_of(x), x))
_unary([math.log1p, np.log1p], lambda x: dual(math.log1p(value_of(x)), slope_of(x) / (1 + value_of(x)), x))
_unary([math.sqrt, np.sqrt], lambda x: dual(math.sqrt(value_of(x)), slope_of(x) / (2 * math.sqrt(value_of(x))), x))
_unary([math.sin, np.sin], lambda x: dual(math.sin(value_of(x)), math.cos(value_of(x)) * slope_of(x), x))
_unary([math.cos, np.cos], lambda x: dual(math.cos(value_of(x)), -math.sin(value_of(x)) * slope_of(x), x))
_unary([math.atan, np.arctan], lambda x: dual(math.atan(value_of(x)), slope_of(x) / (1 + value_of(x) ** 2), x))
_unary([np.square], lambda x: dual(value_of(x) ** 2, 2 * value_of(x) * slope_of(x), x))
_unary(
    [math.tanh, np.tanh],
    lambda x: dual(math.tanh(value_of(x)), (1 - math.tanh(value_of(x)) ** 2) * slope_of(x), x),
)
_unary(
    [math.erf],
    lambda x: dual(math.erf(value_of(x)), 2 / math.sqrt(math.pi) * math.exp(-(value_of(x) ** 2)) * slope_of(x), x),
)
_unary([math.isinf, np.isinf], lambda x: math.isinf(value_of(x)))
_unary([math.isnan, np.isnan], lambda x: math.isnan(value_of(x)))
_unary([math.isfinite, np.isfinite], lambda x: math.isfinite(value_of(x)))


@overload(np.where)
def _where(condition, x, y):
    if _is_dual(x) and _is_dual(y):
        return lambda condition, x, y: x if condition else y
    if _is_dual(x) and _is_number(y):
        return lambda condition, x, y: x if condition else dual(y, 0.0, x)
    if _is_number(x) and _is_dual(y):
        return lambda condition, x, y: dual(x, 0.0, y) if condition else y
    return None


@overload(float)
def _float(x):
    return (lambda x: x) if _is_dual(x) else None
