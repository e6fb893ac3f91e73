"""The arguments that all of NATTEN's operators share, as a pattern."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from subquad import checks
from subquad.patterns.neighborhood import Neighborhood

NAMES = "XYZ"  # of the axes of tokens, as NATTEN's documentation has them


def neighborhood(
    shape: tuple[int, ...], kernel_size: Any, dilation: Any = 1, is_causal: Any = False, stride: Any = 1
) -> Neighborhood:
    """The pattern of windows on a grid; what does not fit is told in the words of the operators."""
    sizes = {
        name: tuple(checks.integer(x, f"{name}[{axis}]", 1) for axis, x in enumerate(per_axis(value, name, len(shape))))
        for name, value in (("kernel_size", kernel_size), ("dilation", dilation), ("stride", stride))
    }
    for axis, n in enumerate(shape):
        width, step, shift = (sizes[name][axis] for name in ("kernel_size", "dilation", "stride"))
        if width * step > n:
            times = "" if step == 1 else f" x dilation = {width} x {step}"
            raise ValueError(
                f"kernel_size[{axis}]{times} must be at most the {n} tokens of axis {NAMES[axis]}; got {width * step}"
            )
        if shift > width:
            raise ValueError(f"stride[{axis}] must be at most kernel_size[{axis}] = {width}; got {shift}")
    causal = per_axis(False if is_causal is None else is_causal, "is_causal", len(shape))
    for axis, flag in enumerate(causal):
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(f"is_causal[{axis}] must be True or False; got {flag!r}")
    return Neighborhood(shape, sizes["kernel_size"], sizes["dilation"], causal, sizes["stride"])


def per_axis(value: Any, name: str, n_axes: int) -> tuple[Any, ...]:
    """One value for each axis of tokens."""
    if not isinstance(value, tuple | list):
        return (value,) * n_axes
    if len(value) != n_axes:
        raise ValueError(f"{name} must be one value, or one for each of the {n_axes} axes of tokens; got {value!r}")
    return tuple(value)


def check_axes(n_axes: int, layout: str, **tensors: Any) -> None:
    """Refuse tensors with another number of axes than the operator's layout has."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor; got {type(x).__name__}")
        if x.is_nested:
            raise ValueError(f"{name} must not be a nested tensor; attend to its parts one by one")
        if x.dim() != n_axes:
            raise ValueError(f"{name} must have {n_axes} axes, {layout}; got shape {tuple(x.shape)}")
