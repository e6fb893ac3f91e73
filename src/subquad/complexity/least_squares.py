"""Non-negative least squares of one or two terms, for many models and many series at once, in closed form.

A measured cost is a sum of parts that cannot be negative. With two terms at most there are three cases (both, the first
alone, the second alone), so no iteration is needed and thousands of fits are a few matrix products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Solution(NamedTuple):
    """Of models (first axis) fitted to series (second axis)."""

    rss: Floats  # sum of squared residuals
    first: Floats  # coefficients, >= 0
    second: Floats


def one_term(columns: Floats, target: Floats) -> Solution:
    """Fit ``b * columns[m]`` to ``target[s]``: arrays (models, N) and (series, N)."""
    squares, products = (columns * columns).sum(axis=1)[:, None], columns @ target.T
    second = np.maximum(products, 0) / squares
    rss = (target * target).sum(axis=1) - second * products
    return Solution(np.maximum(rss, 0), np.zeros_like(second), second)


def two_terms(first: Floats, columns: Floats, target: Floats) -> Solution:
    """Fit ``a * first + b * columns[m]`` to ``target[s]``, a and b >= 0.

    Parameters
    ----------
    first : array, shape (N,) or (models, N)
    columns : array, shape (models, N)
    target : array, shape (series, N)
    """
    first = np.broadcast_to(first, columns.shape)
    ff, fs, ss = (_dot(first, first), _dot(first, columns), _dot(columns, columns))
    ft, st = first @ target.T, columns @ target.T
    determinant = ff * ss - fs * fs
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (ss * ft - fs * st) / determinant, (ff * st - fs * ft) / determinant
    both = (determinant > 1e-12 * ff * ss) & (a >= 0) & (b >= 0)
    # otherwise the minimum lies on an edge: one of the terms alone
    ft0, st0 = np.maximum(ft, 0), np.maximum(st, 0)
    second_alone = st0**2 / ss >= ft0**2 / ff
    a = np.where(both, a, np.where(second_alone, 0, ft0 / ff))
    b = np.where(both, b, np.where(second_alone, st0 / ss, 0))
    tt = (target * target).sum(axis=1)
    rss = tt - 2 * (a * ft + b * st) + a * a * ff + 2 * a * b * fs + b * b * ss
    return Solution(np.maximum(rss, 0), a, b)


def _dot(x: Floats, y: Floats) -> Floats:
    return np.asarray((x * y).sum(axis=1)[:, None])


def aicc(rss: Any, n: int, parameters: int, floor: float) -> Any:
    """Akaike's criterion with the correction for few points; the variance counts as a parameter of its own.

    `floor` is a relative error below which a model cannot be better: counts and exact formulas would otherwise be told
    apart by rounding. Infinite where there are too few points for the parameters.
    """
    k = parameters + 1
    if n - k - 1 <= 0:
        return np.full_like(np.asarray(rss, np.float64), np.inf)
    return n * np.log(rss / n + floor**2) + 2 * k + 2 * k * (k + 1) / (n - k - 1)
