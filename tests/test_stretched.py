"""Rows of expressions as stretches of keys, against the mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import expressions, mask_of

from subquad import Banded, Causal, Columns, Dense, Global, Packed, Random, Strided, sparse_transformer_fixed
from subquad.patterns.base import checked_shape
from subquad.patterns.stretched import counts_between, most_stretches, stretches_of

FEW = st.recursive(
    st.one_of(
        st.integers(0, 9).map(Banded),
        st.builds(lambda left, block: Banded((left, None), block=block), st.integers(0, 3), st.integers(1, 4)),
        st.builds(lambda stride, width: Columns(stride, min(stride, width)), st.integers(1, 7), st.integers(1, 3)),
        st.lists(st.integers(0, 2), max_size=3, unique=True).map(Global),
        st.integers(0, 4).map(lambda g: Global(range(g), columns=False)),
        st.sampled_from([Dense(), Causal()]),
    ),
    lambda inner: st.one_of(
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a - b, inner, inner),
    ),
    max_leaves=6,
)


def as_mask(found, n_rows, n_k):
    mask = np.zeros((n_rows, n_k), int)
    for owner, start, stop in zip(*found, strict=True):
        mask[owner, start:stop] += 1
    return mask


@given(FEW, st.integers(1, 30), st.integers(3, 30))
def test_stretches_are_the_rows(pattern, n_q, n_k):
    shape, rows = checked_shape(n_q, n_k), np.arange(0, n_q, 2)
    resolved = pattern._resolved(shape)
    found = stretches_of(resolved, rows, shape)
    np.testing.assert_array_equal(as_mask(found, len(rows), n_k), mask_of(pattern, n_q, n_k)[rows])
    assert np.bincount(found.owner, minlength=1).max() <= most_stretches(resolved, shape)
    place = found.owner * (n_k + 1) + found.start
    assert (np.diff(place) > 0).all()
    assert (found.start < found.stop).all()


@given(st.data(), st.integers(1, 30))
def test_what_is_known_of_any_expression_holds(data, n):
    pattern, shape = data.draw(expressions(n, n)), checked_shape(n, n)
    resolved = pattern._resolved(shape)
    if most_stretches(resolved, shape) is not None:
        np.testing.assert_array_equal(
            as_mask(stretches_of(resolved, np.arange(n), shape), n, n), mask_of(pattern, n, n)
        )


@given(FEW, st.integers(3, 30), st.lists(st.integers(0, 30), unique=True))
def test_counts_between_edges(pattern, n, inner):
    shape = checked_shape(n, n)
    edges = np.array([0, *sorted(edge for edge in inner if 0 < edge < n), n])
    found = counts_between(stretches_of(pattern._resolved(shape) & Dense(), np.arange(n), shape), n, edges)
    np.testing.assert_array_equal(found, np.add.reduceat(mask_of(pattern, n, n), edges[:-1], axis=1, dtype=int))


@pytest.mark.parametrize(
    ("pattern", "most"),
    [
        (Banded(20_000) | Global(range(100)), 3),
        (sparse_transformer_fixed(65536, 2048), 1 + 16 + 1),
        (Global([3, 5, 9]), 4),
        (Packed([400_000, 600_000]) & Causal(), 2),
        (Strided(2), None),
        (Banded(3) | Random(4), None),
    ],
    ids=repr,
)
def test_most_of_a_million_keys(pattern, most):
    shape = checked_shape(1_000_000, 1_000_000)
    assert most_stretches(pattern._resolved(shape), shape) == most
