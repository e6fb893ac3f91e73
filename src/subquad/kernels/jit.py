"""The one place that sets Numba options."""

from numba import njit

# No fast-math at all: kernels spell their vectors and fused multiply-adds out, so there is nothing to gain, and
# `reassoc` would fold away the magic-number rounding of exp2 and let sums differ from one CPU to the next.
OPTIONS = {"error_model": "numpy", "fastmath": False, "boundscheck": False, "_nrt": False}


def device(function):
    """A function for kernels to call, without the wrappers that Python would need.

    Numba takes a quarter of a second for each, however short, and longer still to copy one into its caller
    (`inline="always"`): so there are few of them, one a stage.
    """
    return njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)(function)
