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


def window_of(x, length, window, dilation, causal, stride):
    """Coordinates along one axis that the query at x sees: its dilation group, numbered by itself, and a window there.

    Without borders the window has window // 2 keys before the query and what is left after it. At a border it is
    shifted until it lies inside. A causal window ends with the query and does not shift. With a stride, so many
    neighbours share the window of one among them: the middle one (of two, the right one), causally the last one.
    """
    group = [y for y in range(length) if y % dilation == x % dilation]
    place = group.index(x)
    sharing = [y for y in range(len(group)) if y // stride == place // stride]
    if causal:
        begins = max(0, sharing[0] + stride - 1 - window + 1)
        if sharing[-1] == len(group) - 1:
            begins = max(0, len(group) - window)
        return group[begins : place + 1]
    first = min(sharing[0] + stride // 2, len(group) - 1) - window // 2
    while first < 0:
        first += 1
    while first + window > len(group):
        first -= 1
    return group[first : first + window]


def brute_force(shape, window, dilation, causal, stride):
    n = math.prod(shape)
    mask = np.zeros((n, n), bool)
    grid = np.arange(n).reshape(shape)
    for query in itertools.product(*map(range, shape)):
        axes = [window_of(*of_axis) for of_axis in zip(query, shape, window, dilation, causal, stride, strict=True)]
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
    stride = tuple(draw(st.just(1) | st.integers(1, w)) for w in window)
    return shape, window, dilation, causal, stride


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
    ones, windows = (1,) * len(shape), np.broadcast_to(window, len(shape))
    expected = brute_force(shape, windows, ones, (False,) * len(shape), ones)
    np.testing.assert_array_equal(Neighborhood(shape, window).plan(*expected.shape).scatter(), expected)


def test_every_query_sees_a_whole_window():
    for dilation in (1, 2, 3):
        assert (mask_of(Neighborhood((9, 12), 3, dilation), 108, 108).sum(axis=1) == 9).all()


def test_one_value_stands_for_every_axis():
    assert Neighborhood((6, 6), 3) == Neighborhood([6, 6], (3, 3), (1, 1), (False, False))
    assert Neighborhood(12, 3) == Neighborhood((12,), [3])
    assert Neighborhood((6, 6), 3) != Neighborhood((6, 6), 3, causal=(True, False))


def test_a_stride_as_wide_as_the_window_makes_blocks():
    mask = mask_of(Neighborhood(6, 3, stride=3), 6, 6).astype(int).tolist()
    assert mask == [[1, 1, 1, 0, 0, 0]] * 3 + [[0, 0, 0, 1, 1, 1]] * 3
    causal = mask_of(Neighborhood(4, 2, causal=True, stride=2), 4, 4).astype(int).tolist()
    assert causal == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert Neighborhood(6, 3, stride=3) != Neighborhood(6, 3)
    assert repr(Neighborhood((6, 6), 3, stride=(1, 2))) == "Neighborhood((6, 6), 3, stride=(1, 2))"
    with pytest.raises(ValueError, match=r"stride\[1\] must be at most window = 3; got 4"):
        Neighborhood((6, 6), 3, stride=(1, 4))
