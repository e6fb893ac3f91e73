"""Neighbourhoods against NATTEN's definition, gone through query by query and axis by axis."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import mask_of

from subquad import Neighborhood


def window_of(x, length, window, dilation, causal):
    """Coordinates along one axis that the query at x sees: its dilation group, numbered by itself, and a window there.

    Without borders the window has window // 2 keys before the query and what is left after it. At a border it is
    shifted until it lies inside. A causal window ends with the query and does not shift.
    """
    group = [y for y in range(length) if y % dilation == x % dilation]
    place = group.index(x)
    if causal:
        return group[max(0, place - window + 1) : place + 1]
    first = place - window // 2
    while first < 0:
        first += 1
    while first + window > len(group):
        first -= 1
    return group[first : first + window]


def brute_force(shape, window, dilation, causal):
    n = math.prod(shape)
    mask = np.zeros((n, n), bool)
    grid = np.arange(n).reshape(shape)
    for query in itertools.product(*map(range, shape)):
        axes = [window_of(*of_axis) for of_axis in zip(query, shape, window, dilation, causal, strict=True)]
        for key in itertools.product(*axes):
            mask[grid[query], grid[key]] = True
    return mask


@st.composite
def neighborhoods(draw):
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    if math.prod(shape) > 200:
        shape = shape[:2]
    dilation = tuple(draw(st.integers(1, min(3, n))) for n in shape)
    window = tuple(draw(st.integers(1, n // r)) for n, r in zip(shape, dilation, strict=True))
    causal = tuple(draw(st.booleans()) for _ in shape)
    return shape, window, dilation, causal


@given(neighborhoods())
def test_is_what_natten_defines(arguments):
    expected = brute_force(*arguments)
    pattern, n = Neighborhood(*arguments), len(expected)
    np.testing.assert_array_equal(mask_of(pattern, n, n), expected)
    np.testing.assert_array_equal(mask_of(pattern.transpose(), n, n), expected.T)
    for turned, mask in ((pattern, expected), (pattern.transpose(), expected.T)):
        for itemsize in (4, 8):
            np.testing.assert_array_equal(turned.plan(n, n, itemsize=itemsize).scatter(), mask)
        assert turned.nnz(n, n) == mask.sum()
        for i in range(0, n, 7):
            np.testing.assert_array_equal(turned.row(i, n, n), np.flatnonzero(mask[i]))


@pytest.mark.parametrize(
    ("shape", "window"), [((17, 19), 7), ((5, 40), (3, 13)), ((14, 14), 7), ((3, 64), 3), ((6, 5, 21), (3, 2, 9))]
)
def test_plan_of_grids_whose_lines_are_no_tiles(shape, window):
    expected = brute_force(shape, np.broadcast_to(window, len(shape)), (1,) * len(shape), (False,) * len(shape))
    np.testing.assert_array_equal(Neighborhood(shape, window).plan(*expected.shape).scatter(), expected)


def test_every_query_sees_a_whole_window():
    for dilation in (1, 2, 3):
        assert (mask_of(Neighborhood((9, 12), 3, dilation), 108, 108).sum(axis=1) == 9).all()


def test_one_value_stands_for_every_axis():
    assert Neighborhood((6, 6), 3) == Neighborhood([6, 6], (3, 3), (1, 1), (False, False))
    assert Neighborhood(12, 3) == Neighborhood((12,), [3])
    assert Neighborhood((6, 6), 3) != Neighborhood((6, 6), 3, causal=(True, False))
