"""`attention` against the float64 oracle."""

from __future__ import annotations

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
    SIZES,
    assert_matches_oracle,
    assert_same_bits,
    case,
    inputs,
    oracle,
    random_layout,
    sized_expressions,
    tolerance,
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
    longformer,
    reference,
)

DTYPES = [FLOAT32, FLOAT64, FLOAT16, BFLOAT16]


def check(query, key, value, pattern, scale=None, **options):
    out, lse = attention(query, key, value, pattern, scale=scale, return_lse=True, **options)
    assert_matches_oracle(out, lse, query, key, value, pattern, scale)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize(("n_q", "n_k"), SIZES)
@pytest.mark.parametrize("name", CASES)
def test_every_case_at_awkward_sizes(rng, name, n_q, n_k, dtype):
    check(*inputs(rng, n_q, n_k, d=33, d_v=20, dtype=dtype), case(name, n_q, n_k))


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_case_past_many_tiles(rng, name, dtype):
    check(*inputs(rng, 517, 643, d=8, leading=(2,), dtype=dtype), case(name, 517, 643))


# Enough work for one head to be cut into several pieces of a thread's.
LARGE = {
    "dense": Dense(),
    "causal": Causal(),
    "banded": Banded(400),
    "strided": Strided(3),
    "random": Random(200, 1),
    "random-blocks": Random(9, 2, block=64),
    "blocks": BlockSparse(random_layout(1500, 1600, 48), 48),
    "longformer": longformer(400, [0, 700, 1599]),
    "difference": Causal() - Strided(4),
    "union": Random(100, 3) | Banded(100) | Strided(9),
}


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_large_calls_are_right_however_they_are_shared_out(rng, name, dtype):
    arrays = inputs(rng, 1500, 1600, 100, 130, dtype=dtype)
    out, lse = attention(*arrays, LARGE[name], return_lse=True, num_threads=2)
    assert_matches_oracle(out, lse, *arrays, LARGE[name])
    for num_threads in (1, 3):
        again = attention(*arrays, LARGE[name], return_lse=True, num_threads=num_threads)
        assert_same_bits(again[0], out)
        assert_same_bits(again[1], lse)


@pytest.mark.parametrize("d_v", [1, 3, 8, 33, 60, 64, 100])
@pytest.mark.parametrize("d", [1, 3, 8, 33, 60, 64, 100])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("pattern", [Banded(9), Random(5, 1), Strided(6)], ids=repr)
def test_head_sizes(rng, pattern, dtype, d, d_v):
    check(*inputs(rng, 45, 63, d, d_v, dtype=dtype), pattern)


@pytest.mark.parametrize("size", [300, 1000])
@pytest.mark.parametrize("pattern", [Banded(9), Random(5, 1)], ids=repr)
def test_very_wide_heads(rng, pattern, size):
    check(*inputs(rng, 40, 40, size, size + 7), pattern)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("leading", "kv_leading"), LEADING)
@pytest.mark.parametrize("pattern", [Banded(9), Random(5, 1), Banded(3) | Global([0, 5])], ids=repr)
def test_leading_axes_and_grouped_heads(rng, pattern, leading, kv_leading, dtype):
    check(*inputs(rng, 33, 50, 16, 24, leading, kv_leading, dtype), pattern)


@pytest.mark.parametrize("num_threads", [None, 1, 2, 3, 64, np.int64(2)])
@pytest.mark.parametrize("name", CASES)
def test_thread_counts(rng, name, num_threads):
    check(*inputs(rng, 97, 111, leading=(3,)), case(name, 97, 111), num_threads=num_threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [None, 0.0, 1, 0.37, -0.5, np.float32(2.5), 3.0])
@pytest.mark.parametrize("name", ["banded-3", "random-5", "longformer", "strided-7"])
def test_scales(rng, name, scale, dtype):
    check(*inputs(rng, 63, 63, dtype=dtype), case(name, 63, 63), scale=scale)


def test_scale_zero_averages_the_allowed_values(rng):
    query, key, value = inputs(rng, 30, 30)
    out = attention(query, key, value, Banded((2, 0)), scale=0.0)
    np.testing.assert_allclose(out[10], value[8:11].mean(axis=0), rtol=1e-6, atol=1e-6)


def test_dense_is_the_default_pattern(rng):
    arrays = inputs(rng, 20, 30)
    assert_same_bits(attention(*arrays), attention(*arrays, Dense()))


def test_without_lse_the_output_alone_comes_back(rng):
    arrays = inputs(rng, 20, 30)
    out = attention(*arrays, Causal())
    assert isinstance(out, np.ndarray)
    assert_same_bits(out, attention(*arrays, Causal(), return_lse=True)[0])


@given(
    drawn=sized_expressions(largest=120),
    d=st.integers(1, 70),
    d_v=st.integers(1, 70),
    batch=st.sampled_from([None, 0, 1, 2]),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    num_threads=st.integers(1, 3),
    scale=st.none() | st.floats(-2, 2, width=32),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=300)
def test_drawn_calls(drawn, d, d_v, batch, kv_heads, group, dtype, num_threads, scale, seed):
    pattern, n_q, n_k = drawn
    batches = () if batch is None else (batch,)
    leading, kv_leading = (*batches, kv_heads * group), (*batches, kv_heads)
    arrays = inputs(np.random.default_rng(seed), n_q, n_k, d, d_v, leading, kv_leading, dtype)
    check(*arrays, pattern, scale=scale, num_threads=num_threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_out_receives_the_result(rng, name, dtype):
    arrays = inputs(rng, 33, 40, 16, 12, (2,), dtype=dtype)
    pattern = case(name, 33, 40)
    expected, expected_lse = attention(*arrays, pattern, return_lse=True)
    out = np.full(expected.shape, np.nan, dtype)
    assert attention(*arrays, pattern, out=out) is out
    assert_same_bits(out, expected)
    out[...] = np.nan
    again, lse = attention(*arrays, pattern, out=out, return_lse=True)
    assert again is out
    assert_same_bits(out, expected)
    assert_same_bits(lse, expected_lse)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("size", [1e4, 1e-30])
@pytest.mark.parametrize("name", CASES)
def test_scores_of_extreme_size(rng, name, size, dtype):
    query, key, value = inputs(rng, 63, 63, 8, dtype=dtype)
    check(query, key, value, case(name, 63, 63), scale=size)


@pytest.mark.parametrize("offset", [-1e4, 1e4, -2e38, 2e38])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("name", ["banded-3", "random-5", "strided-7", "longformer", "causal"])
def test_a_common_offset_of_the_scores_neither_overflows_nor_vanishes(rng, name, dtype, offset):
    query, key = np.ones((63, 1), dtype), np.full((97, 1), offset, dtype)
    value = rng.standard_normal((97, 12)).astype(dtype)
    out, lse = attention(query, key, value, case(name, 63, 97), scale=1.0, return_lse=True)
    expected, expected_lse = oracle(query, np.zeros_like(key), value, case(name, 63, 97))
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance(dtype, 97, 1, 1.0, np.abs(value).max()))
    np.testing.assert_allclose(lse, expected_lse + offset, rtol=4 * np.finfo(dtype).eps)


def test_growing_scores_rescale_what_was_summed_before(rng):
    """Each key outdoes all before it, so the running maximum moves at every step of the online softmax."""
    n = 200
    query, value = np.ones((n, 1), np.float32), inputs(rng, n, n)[2]
    for key in (np.arange(n), np.arange(n)[::-1], 30 * np.arange(n), -30 * np.arange(n)):
        check(query, key.astype(np.float32)[:, None], value, Dense(), scale=1.0)


@pytest.mark.parametrize("leading", [(), (0,), (0, 3), (2, 0), (2,)])
@pytest.mark.parametrize(("n_q", "n_k"), [(0, 0), (0, 7), (7, 0), (7, 7)])
@pytest.mark.parametrize("name", CASES)
def test_empty_inputs(rng, name, n_q, n_k, leading):
    query, key, value = inputs(rng, n_q, n_k, 8, 5, leading)
    out, lse = attention(query, key, value, case(name, n_q, n_k), return_lse=True)
    assert out.shape == (*leading, n_q, 5)
    assert lse.shape == (*leading, n_q)
    if n_k == 0:
        assert not out.any()
        assert (lse == -np.inf).all()


def test_rows_without_keys_are_zero(rng):
    out, lse = attention(*inputs(rng, 50, 20), Causal(), return_lse=True)
    assert not out[:30].any()
    assert (lse[:30] == -np.inf).all()
    assert np.isfinite(lse[30:]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_inputs_are_never_written(rng, name, dtype):
    arrays = inputs(rng, 33, 40, leading=(2,), dtype=dtype)
    copies = [array.copy() for array in arrays]
    attention(*arrays, case(name, 33, 40), num_threads=2)
    for array, copy in zip(arrays, copies, strict=True):
        assert_same_bits(array, copy)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_the_tolerance_notices_one_key_among_many(rng, dtype):
    """The smallest mistake, one key of 401 left out, is far above what the tolerance forgives."""
    arrays = inputs(rng, 800, 800, 64, dtype=dtype)
    right, _ = oracle(*arrays, Banded(200))
    wrong, _ = oracle(*arrays, Banded((200, 199)))
    assert np.median(abs(right - wrong)[300:400]) > 10 * tolerance(dtype, 401, 64, 15.0, 4.0)


@pytest.mark.parametrize("name", CASES)
def test_the_library_s_own_reference_agrees_with_the_oracle(rng, name):
    arrays = inputs(rng, 33, 40, 12, 9, (2, 4), (2, 2), FLOAT64)
    out, lse = reference.attention(*arrays, case(name, 33, 40), return_lse=True)
    assert_matches_oracle(out, lse, *arrays, case(name, 33, 40))
