"""What new patterns refuse, where they are built: the argument, the position and what was there."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from subquad import Columns, Explicit, Neighborhood, Packed, sparse_transformer_fixed, sparse_transformer_strided


def csr(indptr, indices, shape=(2, 4)):
    """A CSR array whose index arrays SciPy does not look at."""
    array = scipy.sparse.csr_array(shape, dtype=np.float32)
    array.indptr, array.indices = np.asarray(indptr), np.asarray(indices)
    array.data = np.ones(len(array.indices), np.float32)
    return array


EXPLICIT = {
    "unsorted": (csr([0, 2, 3], [2, 1, 0]), "sorted within a row; row 0 has 2 and then 1, at position 1"),
    "unsorted-later": (csr([0, 1, 3], [2, 3, 0]), "sorted within a row; row 1 has 3 and then 0, at position 2"),
    "duplicate": (csr([0, 1, 3], [2, 3, 3]), "each there once within a row; row 1 has 3 and then 3, at position 2"),
    "too-large": (csr([0, 1, 2], [2, 4]), r"indices must hold integers in \[0, 3\]; got 4 at position 1"),
    "negative": (csr([0, 1, 2], [-1, 2]), r"indices must hold integers in \[0, 3\]; got -1 at position 0"),
    "falls": (csr([0, 2, 1], [0, 1]), "indptr must rise .* falls after entry 1"),
    "beyond": (csr([0, 1, 5], [0, 1]), "indptr must rise .* goes from 0 to 5"),
    "late": (csr([1, 1, 2], [0, 1]), "indptr must rise .* goes from 1 to 2"),
    "short": (csr([0, 2], [0, 1]), "indptr must have 3 entries, one more than rows; got 2"),
}


@pytest.mark.parametrize("name", EXPLICIT)
def test_explicit_names_the_offending_position(name):
    array, message = EXPLICIT[name]
    with pytest.raises(ValueError, match=message):
        Explicit(array)


def test_sorted_rows_may_begin_anew():
    assert Explicit(csr([0, 2, 2, 4], [1, 3, 0, 1], (3, 4))).row(2, 3, 4).tolist() == [0, 1]
    assert Explicit(csr([0, 0, 0], [])).nnz(2, 4) == 0


def test_indices_past_the_last_row_are_not_read():
    assert Explicit(csr([0, 1, 2], [0, 3, 99])).nnz(2, 4) == 2


def test_indices_that_are_no_integers():
    with pytest.raises(TypeError, match=r"csr's indices must hold integers; got 0.0 of type float at position 0"):
        Explicit(csr([0, 1, 2], np.array([0.0, 1.5])))


@pytest.mark.parametrize("value", [np.eye(3), [[1, 0]], scipy.sparse.csc_array(np.eye(3)), None])
def test_explicit_takes_csr_alone(value):
    with pytest.raises(TypeError, match=r"csr must be a SciPy CSR array.*Convert it"):
        Explicit(value)


def test_explicit_has_one_size():
    pattern = Explicit(scipy.sparse.csr_array(np.ones((2, 4))))
    for call in (pattern.nnz, pattern.plan, pattern.density, pattern.to_csr):
        with pytest.raises(ValueError, match=r"csr has shape \(2, 4\).*n_q = 4 and n_k = 4"):
            call(4, 4)
    with pytest.raises(ValueError, match=r"csr has shape"):
        pattern.transpose().nnz(2, 4)


def test_explicit_is_copied_and_frozen():
    array = scipy.sparse.csr_array(np.array([[1, 0], [0, 1]]))
    pattern, same = Explicit(array), Explicit(array)
    array.indices[:] = 1
    assert pattern == same
    assert pattern.row(0, 2, 2).tolist() == [0]
    with pytest.raises(ValueError, match="read-only"):
        pattern.indices[0] = 1


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([3, -1], ValueError, r"lengths must hold integers in \[0, .*; got -1 at position 1"),
        ([3, 1.5], TypeError, "lengths must hold integers; got 1.5 of type float at position 1"),
        ([3, True], TypeError, "lengths must hold integers; got True of type bool at position 1"),
        (["a"], TypeError, "lengths must hold integers; got 'a' of type str at position 0"),
        (5, TypeError, "lengths must be a sequence of integers; got 5"),
        ("12", TypeError, "lengths must be a sequence of integers; got '12'"),
        (np.ones((2, 2), int), ValueError, "lengths must be a sequence of integers; got an array"),
        (np.ones(2), TypeError, "lengths must hold integers; got 1.0 of type float at position 0"),
        ([[1, 2], [3]], TypeError, "lengths must hold integers"),
        ([2**62, 2**62], ValueError, r"lengths must sum to at most 2\*\*62"),
        ([1, 2**70], ValueError, "lengths must hold integers in .* at position 1"),
        (None, TypeError, "lengths must be a sequence of integers; got None"),
    ],
)
def test_packed_refuses(lengths, error, message):
    with pytest.raises(error, match=message):
        Packed(lengths)


@pytest.mark.parametrize(("n_q", "n_k"), [(4, 4), (6, 6), (5, 6), (1, 5)])
def test_lengths_that_do_not_sum_to_n(n_q, n_k):
    with pytest.raises(ValueError, match=rf"lengths must sum to .* sums to 5, n_q = {n_q} and n_k = {n_k}"):
        Packed([2, 3]).plan(n_q, n_k)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (((4, 4), 5), ValueError, "window must fit into axis 0 of 4 tokens; got 5"),
        (((8, 4), (3, 5)), ValueError, "window must fit into axis 1 of 4 tokens; got 5"),
        (((8, 8), 3, (1, 3)), ValueError, "window x dilation = 3 x 3 must fit into axis 1 of 8 tokens; got 9"),
        (((8, 8), 0), ValueError, r"window\[0\] must be .* got 0"),
        (((8, 8), 3, 0), ValueError, r"dilation\[0\] must be .* got 0"),
        (((8, 8), 2.0), TypeError, r"window\[0\] must be an integer"),
        (((8, 8.0), 2), TypeError, r"shape\[1\] must be an integer"),
        (((8, 0), 2), ValueError, r"shape\[1\] must be .* got 0"),
        (((2, 2, 2, 2), 2), ValueError, "shape must have 1, 2 or 3 axes; got 4"),
        (((), 2), ValueError, "shape must have 1, 2 or 3 axes; got 0"),
        (((8, 8), (3, 3, 3)), ValueError, r"window must be one value, or one for each of the 2 axes.*\(3, 3, 3\)"),
        (((8, 8), 3, 1, 1), TypeError, r"causal\[0\] must be True or False; got 1"),
        (((8, 8), 3, 1, (True, None)), TypeError, r"causal\[1\] must be True or False; got None"),
        (((2**40, 2**40), 3), ValueError, r"shape must have at most 2\*\*62 tokens"),
    ],
)
def test_neighborhood_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        Neighborhood(*arguments)


def test_a_grid_of_another_size():
    with pytest.raises(ValueError, match=r"shape \(4, 4\) has 16 tokens; it cannot be used with n_q = 15 and n_k = 16"):
        Neighborhood((4, 4), 3).nnz(15, 16)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Columns(0, 1), ValueError, "stride must be .* got 0"),
        (lambda: Columns(4, 0), ValueError, "width must be .* got 0"),
        (lambda: Columns(4, 5), ValueError, "width must be at most stride = 4; got 5"),
        (lambda: Columns(4, 1.0), TypeError, "width must be an integer"),
        (lambda: Columns(2**63, 1), ValueError, "stride must be at most"),
        (lambda: sparse_transformer_fixed(4, 5), ValueError, "width must be at most stride = 4; got 5"),
        (lambda: sparse_transformer_fixed(0), ValueError, "stride"),
        (lambda: sparse_transformer_strided(1.5), TypeError, "stride"),
    ],
)
def test_columns_and_presets_refuse(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_mismatch_inside_an_expression_is_found():
    with pytest.raises(ValueError, match="lengths must sum to"):
        ((Columns(3, 1) | Packed([2, 3])) - Packed([5])).plan(6, 6)
