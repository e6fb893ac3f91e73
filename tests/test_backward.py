"""`attention_backward` against the float64 oracle of these tests, which knows nothing of the library's own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    BFLOAT16,
    CASES,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    LEADING,
    assert_same_bits,
    case,
    inputs,
    mask_of,
    oracle,
    sized_expressions,
)
from support_gradients import (
    assert_gradients_match_oracle,
    backward_inputs,
    gradients,
    oracle_backward,
    small_blocks,
)

from subquad import (
    Banded,
    BlockSparse,
    Causal,
    Dense,
    Global,
    Random,
    Strided,
    attention,
    attention_backward,
    bigbird,
    longformer,
    reference,
)

DTYPES = [FLOAT32, FLOAT64, FLOAT16, BFLOAT16]
WIDTHS = [(1, 1), (2, 3), (5, 70), (7, 7), (8, 16), (9, 8), (15, 17), (16, 4), (17, 33), (24, 20), (33, 1), (40, 50)]
WIDTHS += [(61, 62), (63, 13), (64, 64), (65, 66), (70, 5)]
# around the edges of tiles and of six keys; wide, tall
SIZES = [(1, 1), (15, 13), (16, 16), (17, 19), (97, 97), (1, 200), (33, 64), (111, 16), (200, 63)]


def check(grad_out, query, key, value, pattern, scale=None, grad_lse=None, **options):
    grads = gradients(grad_out, query, key, value, pattern, scale=scale, grad_lse=grad_lse, **options)
    assert_gradients_match_oracle(grads, grad_out, query, key, value, pattern, scale, grad_lse)


# --- the oracle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [None, 0.0, -0.7])
@pytest.mark.parametrize("name", ["dense", "banded-left", "strided-7", "random-blocks", "nested", "longformer"])
def test_the_oracle_is_the_slope_of_the_forward_oracle(rng, name, scale):
    """Central differences of sum(grad_out * out) + sum(grad_lse * lse), one element of the inputs at a time."""
    grad_out, *arrays = backward_inputs(rng, 13, 15, 3, 2, (4,), (2,), FLOAT64)
    grad_lse, pattern, step = rng.standard_normal((4, 13)), case(name, 13, 15), 1e-5

    def loss():
        out, lse = oracle(*arrays, pattern, scale)
        return (grad_out * out).sum() + (grad_lse * np.where(np.isfinite(lse), lse, 0)).sum()

    expected, _ = oracle_backward(grad_out, *arrays, pattern, scale, grad_lse)
    for array, gradient in zip(arrays, expected, strict=True):
        for place in [tuple(rng.integers(0, array.shape)) for _ in range(25)]:
            kept = array[place]
            array[place] = kept + step
            above = loss()
            array[place] = kept - step
            slope = (above - loss()) / (2 * step)
            array[place] = kept
            assert abs(slope - gradient[place]) < 1e-7 * max(1, abs(slope))


@pytest.mark.parametrize("name", CASES)
def test_the_library_s_own_reference_agrees_with_the_oracle(rng, name):
    grad_out, *arrays = backward_inputs(rng, 33, 40, 12, 9, (2, 4), (2, 2), FLOAT64)
    pattern, grad_lse = case(name, 33, 40), rng.standard_normal((2, 4, 33))
    out, lse = reference.attention(*arrays, pattern, return_lse=True)
    grads = reference.attention_backward(grad_out, *arrays, out, lse, pattern, grad_lse=grad_lse)
    assert_gradients_match_oracle(grads, grad_out, *arrays, pattern, None, grad_lse)


# --- every case, size, width and dtype --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_case_at_awkward_sizes(rng, name, dtype):
    for n_q, n_k in SIZES:
        check(*backward_inputs(rng, n_q, n_k, 33, 20, dtype=dtype), case(name, n_q, n_k))


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_case_cut_into_many_waves(rng, name, dtype, monkeypatch):
    small_blocks(monkeypatch)
    grad_out, *arrays = backward_inputs(rng, 213, 271, 7, 19, (2,), dtype=dtype)
    check(grad_out, *arrays, case(name, 213, 271), grad_lse=rng.standard_normal((2, 213)).astype(dtype))


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize(("d", "d_v"), WIDTHS)
@pytest.mark.parametrize("pattern", [Banded(9), Random(5, 1), Strided(6), Dense(), longformer(3, [4, 9])], ids=repr)
def test_head_sizes(rng, pattern, d, d_v, dtype):
    check(*backward_inputs(rng, 45, 63, d, d_v, dtype=dtype), pattern)


@pytest.mark.parametrize("pattern", [Banded(9), Random(5, 1)], ids=repr)
def test_very_wide_heads(rng, pattern):
    check(*backward_inputs(rng, 40, 40, 300, 517), pattern)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("leading", "kv_leading"), LEADING)
@pytest.mark.parametrize("pattern", [Banded(9), Random(5, 1), Banded(3) | Global([0, 5])], ids=repr)
def test_leading_axes_and_grouped_heads(rng, pattern, leading, kv_leading, dtype):
    check(*backward_inputs(rng, 33, 50, 16, 24, leading, kv_leading, dtype), pattern)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [None, 0.0, 1, 0.37, -0.5, np.float32(2.5), 3.0])
@pytest.mark.parametrize("name", ["banded-3", "random-5", "longformer", "strided-7"])
def test_scales(rng, name, scale, dtype):
    check(*backward_inputs(rng, 63, 63, dtype=dtype), case(name, 63, 63), scale=scale)


def test_scale_zero_moves_values_alone(rng):
    grad_out, *arrays = backward_inputs(rng, 30, 30)
    grad_query, grad_key, grad_value = gradients(grad_out, *arrays, Banded((2, 0)), scale=0.0)
    assert not grad_query.any()
    assert not grad_key.any()
    # every key is seen by three rows that attend three keys each
    np.testing.assert_allclose(grad_value[10], grad_out[10:13].mean(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradient_of_lse(rng, name):
    grad_out, *arrays = backward_inputs(rng, 63, 97, 12, 9, (2,))
    grad_lse = rng.standard_normal((2, 63)).astype(np.float32)
    check(grad_out, *arrays, case(name, 63, 97), grad_lse=grad_lse)
    check(np.zeros_like(grad_out), *arrays, case(name, 63, 97), grad_lse=grad_lse)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
def test_gradient_of_lse_of_half_precision_is_float32(rng, dtype):
    grad_out, *arrays = backward_inputs(rng, 33, 40, dtype=dtype)
    check(grad_out, *arrays, Banded(5), grad_lse=rng.standard_normal(33).astype(np.float32))


def test_the_gradient_of_the_sum_of_lse_is_the_average_key(rng):
    _, query, key, value = backward_inputs(rng, 30, 30, 8)
    nothing, one = np.zeros_like(query), np.ones(30, np.float32)
    grad_query, _, grad_value = gradients(nothing, query, key, value, Banded((2, 0)), scale=1.0, grad_lse=one)
    scores = query[10] @ key[8:11].T
    weights = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(grad_query[10], weights @ key[8:11], rtol=1e-4, atol=1e-5)
    assert not grad_value.any()


@pytest.mark.parametrize("leading", [(), (0,), (0, 3), (2, 0), (2,)])
@pytest.mark.parametrize("name", CASES)
def test_empty_inputs(rng, name, leading):
    for n_q, n_k in [(0, 0), (0, 7), (7, 0), (7, 7)]:
        grad_out, *arrays = backward_inputs(rng, n_q, n_k, 8, 5, leading)
        grads = gradients(grad_out, *arrays, case(name, n_q, n_k))
        assert [grad.shape for grad in grads] == [array.shape for array in arrays]
        if n_q == 0 or n_k == 0:
            assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_without_keys_have_no_gradient(rng, dtype):
    grads = gradients(*backward_inputs(rng, 50, 20, dtype=dtype), Causal())
    assert not bits_of(grads[0][:30]).any()
    assert all(np.isfinite(grad.astype(float)).all() for grad in grads)
    assert grads[0][30:].any(axis=-1).sum() >= 19  # a row with a single key has a gradient of about 0


def bits_of(array):
    return np.ascontiguousarray(array).view(np.uint8)


def test_dense_is_the_default_pattern(rng):
    grad_out, *arrays = backward_inputs(rng, 20, 30)
    out, lse = attention(*arrays, return_lse=True)
    for grad, expected in zip(
        attention_backward(grad_out, *arrays, out, lse), gradients(grad_out, *arrays, Dense()), strict=True
    ):
        assert_same_bits(grad, expected)


@given(
    drawn=sized_expressions(largest=90),
    d=st.integers(1, 70),
    d_v=st.integers(1, 70),
    batch=st.sampled_from([None, 0, 1, 2]),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    num_threads=st.integers(1, 3),
    scale=st.none() | st.floats(-2, 2, width=32),
    with_lse=st.booleans(),
    flops=st.sampled_from([None, 3_000, 100_000]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=200)
def test_drawn_calls(drawn, d, d_v, batch, kv_heads, group, dtype, num_threads, scale, with_lse, flops, seed):
    pattern, n_q, n_k = drawn
    batches, rng = () if batch is None else (batch,), np.random.default_rng(seed)
    leading, kv_leading = (*batches, kv_heads * group), (*batches, kv_heads)
    grad_out, *arrays = backward_inputs(rng, n_q, n_k, d, d_v, leading, kv_leading, dtype)
    of_lse = rng.standard_normal((*leading, n_q)).astype(FLOAT64 if dtype == FLOAT64 else FLOAT32)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if flops is not None:
            small_blocks(monkeypatch, flops)
        grad_lse = of_lse if with_lse else None
        check(grad_out, *arrays, pattern, scale=scale, grad_lse=grad_lse, num_threads=num_threads)


# --- extreme numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100.0, 1e-30])
@pytest.mark.parametrize("name", CASES)
def test_scores_of_extreme_size(rng, name, size):
    grad_out, *arrays = backward_inputs(rng, 63, 63, 8)
    check(grad_out, *arrays, case(name, 63, 63), scale=size)


@pytest.mark.parametrize("offset", [-1e4, 1e4])
@pytest.mark.parametrize("name", ["banded-3", "random-5", "strided-7", "longformer", "causal"])
def test_a_common_offset_of_the_scores_changes_little(rng, name, offset):
    """Weights come from the difference of a score and lse, both of the size of the offset."""
    query, key = np.ones((63, 1)), np.full((97, 1), offset) + rng.standard_normal((97, 1))
    value, grad_out = rng.standard_normal((97, 12)), rng.standard_normal((63, 12))
    check(grad_out, query, key, value, case(name, 63, 97), scale=1.0)


# --- against a dense float32 backward ---------------------------------------------------------------------------------


def dense_float32(grad_out, query, key, value, mask, scale):
    """The textbook backward in float32, as NumPy computes it."""
    scores = np.where(mask, query @ key.T * np.float32(scale), np.float32(-np.inf))
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    d_p = grad_out @ value.T
    d_s = weights * (d_p - (grad_out * (weights @ value)).sum(axis=1, keepdims=True)) * np.float32(scale)
    return d_s @ key, d_s.T @ query, weights.T @ grad_out


ACCURATE = [Dense(), Causal(), Banded(32), Strided(16), Random(32, 1), longformer(32, 8), bigbird(32)]


@pytest.mark.parametrize("size", [1.0, 3.0])
@pytest.mark.parametrize("pattern", ACCURATE, ids=repr)
def test_as_accurate_as_a_dense_float32_backward(rng, pattern, size):
    n, d = 512, 64
    grad_out, query, key, value = backward_inputs(rng, n, n, d)
    query *= np.float32(size)
    grads = gradients(grad_out, query, key, value, pattern)
    dense = dense_float32(grad_out, query, key, value, mask_of(pattern, n, n), d**-0.5)
    expected, _ = oracle_backward(grad_out, query, key, value, pattern)
    for name, grad, other, right in zip(("query", "key", "value"), grads, dense, expected, strict=True):
        assert grad.dtype == other.dtype == FLOAT32
        error, allowed = (np.sqrt(np.mean((x - right) ** 2)) for x in (grad, other))
        assert error <= 4 * allowed, f"gradient of {name}: {error / allowed:.1f} times the error of dense float32"
        assert abs(grad - right).max() <= 4 * abs(other - right).max(), f"gradient of {name}: largest error"


def test_the_tolerance_notices_one_key_among_many(rng):
    """One key of 401 left out, the smallest mistake, and a gradient that lacks delta: both far past the tolerance."""
    grad_out, *arrays = backward_inputs(rng, 500, 500, 64)
    narrow = gradients(grad_out, *arrays, Banded((200, 199)))
    with pytest.raises(AssertionError, match=r"gradient of query: [0-9]{4,}"):
        assert_gradients_match_oracle(narrow, grad_out, *arrays, Banded(200))
    out, lse = attention(*arrays, Banded(200), return_lse=True)
    no_delta = attention_backward(grad_out, *arrays, np.zeros_like(out), lse, Banded(200))
    with pytest.raises(AssertionError, match=r"gradient of query: [0-9]{4,}"):
        assert_gradients_match_oracle(no_delta, grad_out, *arrays, Banded(200))


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_common_shift_of_keys_changes_no_output_so_gradients_of_keys_add_up_to_nothing(rng, name):
    """softmax(q (k + c)) = softmax(q k): the derivative along c is q . sum_j dS[i, j] = 0, for every row."""
    grad_out, query, key, value = backward_inputs(rng, 63, 97, 6, 9, dtype=FLOAT64)
    one = np.ones_like(query)
    _, grad_key, _ = gradients(grad_out, one, key, value, case(name, 63, 97))
    np.testing.assert_allclose(grad_key.sum(axis=0), 0, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_query_and_key_meet_in_the_scores(rng, name):
    """sum(query * grad_query) = sum(key * grad_key) = sum(S * dS), row for row the derivative by the scale."""
    grad_out, query, key, value = backward_inputs(rng, 63, 97, 6, 9, dtype=FLOAT64)
    grad_lse, pattern, scale, step = rng.standard_normal(63), case(name, 63, 97), 0.4, 1e-5
    grad_query, grad_key, grad_value = gradients(grad_out, query, key, value, pattern, scale=scale, grad_lse=grad_lse)

    def loss(scale):
        out, lse = attention(query, key, value, pattern, scale=scale, return_lse=True)
        return (grad_out * out).sum() + (grad_lse * np.where(np.isfinite(lse), lse, 0)).sum()

    by_scale = (loss(scale + step) - loss(scale - step)) / (2 * step) * scale
    np.testing.assert_allclose((query * grad_query).sum(), by_scale, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose((key * grad_key).sum(), by_scale, rtol=1e-5, atol=1e-7)
    out = attention(query, key, value, pattern, scale=scale)
    np.testing.assert_allclose((value * grad_value).sum(), (grad_out * out).sum(), rtol=1e-10, atol=1e-10)


SYMMETRIC = [Dense(), Banded(9), Strided(5), Banded(3) | Global([0, 7]), BlockSparse(np.eye(6, dtype=bool), 7)]


@pytest.mark.parametrize("pattern", SYMMETRIC, ids=repr)
def test_queries_and_keys_exchange_roles(rng, pattern):
    """Where `lse` is the same for all rows (here 0) the weights exp(S) of q, k are those of k, q transposed.

    Then with V = 1, dout = a 1^T and delta = 0 the weights' gradient is a_i for all keys; with V = b 1^T and dout = 1
    it is b_j for all rows: the same once transposed. So the gradients of queries and keys exchange their roles, though
    one is summed over the keys of a tile and the other over waves of tiles.
    """
    mask = mask_of(pattern, 40, 40)
    assert (mask == mask.T).all()
    query, key = rng.standard_normal((2, 40, 5))
    factor, one, nothing, lse = rng.standard_normal((40, 1)), np.ones((40, 1)), np.zeros((40, 1)), np.zeros(40)
    there = attention_backward(factor, query, key, one, nothing, lse, pattern, scale=0.1)
    back = attention_backward(one, key, query, factor, nothing, lse, pattern, scale=0.1)
    np.testing.assert_allclose(there[0], back[1], rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(there[1], back[0], rtol=1e-11, atol=1e-13)
    weights = np.where(mask, np.exp(0.1 * query @ key.T), 0)
    np.testing.assert_allclose(there[2], weights.T @ factor, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(back[2], weights.sum(axis=1, keepdims=True), rtol=1e-11)


def test_gradients_are_linear_in_what_comes_from_above(rng):
    grad_out, query, key, value = backward_inputs(rng, 63, 97, 6, 9, dtype=FLOAT64)
    other, pattern = rng.standard_normal(grad_out.shape), longformer(5, 3)
    parts = [gradients(part, query, key, value, pattern) for part in (grad_out, other)]
    for a, b, both in zip(*parts, gradients(2 * grad_out - other, query, key, value, pattern), strict=True):
        np.testing.assert_allclose(2 * a - b, both, rtol=1e-10, atol=1e-12)


def test_a_step_along_the_gradient_lowers_the_loss(rng):
    """What the gradients are for: a few steps of descent on the distance to a target, from the public calls alone."""
    query, key, value = inputs(rng, 80, 80, 8)
    target, losses = rng.standard_normal((80, 8)).astype(np.float32), []
    for _ in range(30):
        out, lse = attention(query, key, value, Banded(4), return_lse=True)
        losses.append(float(((out - target) ** 2).sum()))
        grads = attention_backward(2 * (out - target), query, key, value, out, lse, Banded(4))
        for array, grad in zip((query, key, value), grads, strict=True):
            array -= np.float32(0.1) * grad
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < losses[0] / 2
