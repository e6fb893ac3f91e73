"""Patterns with queries and keys swapped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from support import CASES, case, mask_of, sized_expressions

from subquad import (
    Banded,
    BlockSparse,
    Causal,
    Columns,
    Dense,
    Explicit,
    Global,
    LogSparse,
    Packed,
    Pattern,
    Random,
    Strided,
)

SIZES = [(40, 40), (16, 16), (7, 40), (40, 33), (1, 30), (30, 1), (0, 5), (5, 0)]


def assert_is_the_transpose(pattern, n_q, n_k):
    turned = pattern.transpose()
    mask = mask_of(pattern, n_q, n_k).T
    np.testing.assert_array_equal(mask_of(turned, n_k, n_q), mask)
    np.testing.assert_array_equal(turned.plan(n_k, n_q).scatter(), mask)
    assert turned.nnz(n_k, n_q) == mask.sum()
    for j in range(0, n_k, 5):
        np.testing.assert_array_equal(turned.row(j, n_k, n_q), np.flatnonzero(mask[j]))
    assert turned.transpose() == pattern


@pytest.mark.parametrize(("n_q", "n_k"), SIZES)
@pytest.mark.parametrize("name", CASES)
def test_transpose_of_each_case(name, n_q, n_k):
    assert_is_the_transpose(case(name, n_q, n_k), n_q, n_k)


@given(sized_expressions(depth=2))
@settings(max_examples=100)
def test_transpose_of_drawn_expressions(drawn):
    assert_is_the_transpose(*drawn)


@pytest.mark.parametrize(
    ("pattern", "turned"),
    [
        (Dense(), Dense()),
        (Banded(3), Banded(3)),
        (Banded((3, None)), Banded((None, 3))),
        (Strided(4), Strided(4)),
        (Packed([3, 2]), Packed([3, 2])),
        (BlockSparse([[1, 0, 1], [0, 0, 1]], 4), BlockSparse([[1, 0], [0, 0], [1, 1]], 4)),
        (Banded((2, 0)) - Strided(3), Banded((0, 2)) - Strided(3)),
    ],
)
def test_closed_forms(pattern, turned):
    assert pattern.transpose() == turned


def test_what_the_sizes_decide_is_written_as_a_transpose():
    for pattern in (Causal(), Columns(4, 1), Random(2, 1), LogSparse(), Global([1]), Banded(1, block=4)):
        assert repr(pattern.transpose()) == f"{pattern!r}.transpose()"
        assert pattern.transpose().order == pattern.order


def test_an_explicit_pattern_swaps_its_sizes():
    scipy_sparse = pytest.importorskip("scipy.sparse")
    pattern = Explicit(scipy_sparse.csr_array(np.array([[1, 0, 1], [0, 1, 0]])))
    assert pattern.transpose() == Explicit(scipy_sparse.csr_array(np.array([[1, 0], [0, 1], [1, 0]])))


def test_a_pattern_that_knows_no_closed_form_is_listed():
    class Checkered(Pattern):
        order = Dense().order

        def _contains(self, i, j, shape):
            return (i + 2 * j) % 3 == 0

        def _row(self, i, shape):
            keys = np.arange(shape.n_k)
            return keys[(i + 2 * keys) % 3 == 0]

    assert_is_the_transpose(Checkered(), 20, 31)
