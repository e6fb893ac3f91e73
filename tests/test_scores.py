"""`attention_scores` and `attention_weights`: the allowed pairs alone, as CSR."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from support import (
    CASES,
    FLOAT32,
    FLOAT64,
    case,
    inputs,
    mask_of,
    oracle_scores,
    oracle_softmax,
    score_bound,
    tolerance,
)

from subquad import Banded, Random, attention, attention_scores, attention_weights

SIZES = [(1, 1), (17, 17), (63, 63), (33, 64), (64, 17), (1, 97)]


def assert_structure(scores, pattern, n_q, n_k, leading):
    """`indptr` and `indices` are those of the mask, sorted in each row, and there is one datum per pair and head."""
    mask = mask_of(pattern, n_q, n_k)
    np.testing.assert_array_equal(scores.indptr, np.concatenate([[0], mask.sum(axis=1).cumsum()]))
    np.testing.assert_array_equal(scores.indices, np.nonzero(mask)[1])
    assert scores.data.shape == (*leading, mask.sum())


def values_on(mask, dense):
    return np.broadcast_to(dense, (*dense.shape[:-2], *mask.shape))[..., mask]


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize(("n_q", "n_k"), SIZES)
@pytest.mark.parametrize("name", CASES)
def test_scores_and_weights_of_every_case(rng, name, n_q, n_k, dtype):
    query, key, _ = inputs(rng, n_q, n_k, 12, leading=(2, 4), kv_leading=(2, 2), dtype=dtype)
    pattern, mask = case(name, n_q, n_k), mask_of(case(name, n_q, n_k), n_q, n_k)
    expected = oracle_scores(query, key, pattern)
    atol = tolerance(dtype, 1, 12, score_bound(query, key))
    for function, wanted in [(attention_scores, expected), (attention_weights, oracle_softmax(expected)[0])]:
        result = function(query, key, pattern)
        assert_structure(result, pattern, n_q, n_k, (2, 4))
        assert result.data.dtype == dtype
        np.testing.assert_allclose(result.data, values_on(mask, wanted), rtol=0, atol=atol)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,), (0, 2)])
@pytest.mark.parametrize("function", [attention_scores, attention_weights])
def test_leading_axes(rng, function, leading):
    query, key, _ = inputs(rng, 20, 30, 12, leading=leading)
    assert_structure(function(query, key, Random(3, 0)), Random(3, 0), 20, 30, leading)


@pytest.mark.parametrize(("n_q", "n_k"), [(0, 0), (0, 4), (4, 0)])
@pytest.mark.parametrize("function", [attention_scores, attention_weights])
def test_empty_inputs(rng, function, n_q, n_k):
    query, key, _ = inputs(rng, n_q, n_k, 12)
    assert_structure(function(query, key, Banded(3)), Banded(3), n_q, n_k, ())


@pytest.mark.parametrize("scale", [0.0, 0.5, -1.0, 2])
def test_scale(rng, scale):
    query, key, _ = inputs(rng, 20, 30, 12)
    expected = oracle_scores(query, key, Banded(4), scale)
    mask = mask_of(Banded(4), 20, 30)
    atol = tolerance(FLOAT32, 1, 12, score_bound(query, key, scale))
    np.testing.assert_allclose(attention_scores(query, key, Banded(4), scale=scale).data, expected[mask], atol=atol)
    weights = oracle_softmax(expected)[0][mask]
    np.testing.assert_allclose(attention_weights(query, key, Banded(4), scale=scale).data, weights, atol=atol)


@pytest.mark.parametrize("name", CASES)
def test_weights_of_a_row_sum_to_one_and_applied_to_values_give_attention(rng, name):
    query, key, value = inputs(rng, 63, 80, 12, 10, (2, 4), (2, 2), FLOAT64)
    pattern = case(name, 63, 80)
    out = attention(query, key, value, pattern)
    weights = attention_weights(query, key, pattern)
    rows = mask_of(pattern, 63, 80).any(axis=1)
    for b, h in np.ndindex(2, 4):
        matrix = weights.to_scipy(b, h)
        assert isinstance(matrix, scipy.sparse.csr_array)
        assert matrix.shape == (63, 80)
        assert matrix.has_canonical_format
        np.testing.assert_allclose(matrix.sum(axis=1), rows, atol=1e-12)
        np.testing.assert_allclose(matrix @ value[b, h // 2], out[b, h], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("leading", "where"), [((), ()), ((3,), (1,)), ((2, 3), (1, 2))])
def test_to_scipy_of_each_rank(rng, leading, where):
    query, key, _ = inputs(rng, 20, 30, 12, leading=leading)
    scores = attention_scores(query, key, Banded(4))
    expected = np.where(mask_of(Banded(4), 20, 30), oracle_scores(query[where], key[where], Banded(4)), 0)
    atol = tolerance(FLOAT32, 1, 12, score_bound(query, key))
    np.testing.assert_allclose(scores.to_scipy(*where).toarray(), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("leading", [(), (2, 3)])
def test_row(rng, leading):
    query, key, _ = inputs(rng, 20, 30, 12, leading=leading)
    scores = attention_scores(query, key, Random(5, 1))
    for i in (0, 7, 19):
        keys, data = scores.row(i)
        np.testing.assert_array_equal(keys, Random(5, 1).row(i, 20, 30))
        np.testing.assert_array_equal(data, scores.data[..., scores.indptr[i] : scores.indptr[i + 1]])


@pytest.mark.parametrize("function", [attention_scores, attention_weights])
def test_keys_outside_of_the_pattern_do_not_matter(rng, function):
    query, key, _ = inputs(rng, 30, 30, 12)
    clean = function(query, key, Banded(4)).data
    key[10] = np.nan
    mask = mask_of(Banded(4), 30, 30)
    data, sees = function(query, key, Banded(4)).data, np.broadcast_to(mask[:, 10:11], mask.shape)[mask]
    np.testing.assert_array_equal(data[~sees], clean[~sees])
    pairs_with_it = np.nonzero(mask)[1] == 10
    assert np.isnan(data[pairs_with_it]).all()
