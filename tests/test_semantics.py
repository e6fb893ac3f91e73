"""What holds to the bit: no leaks, no dependence on threads, batches or memory; merging."""

from __future__ import annotations

import faulthandler

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import (
    BFLOAT16,
    CASES,
    FLOAT32,
    FLOAT64,
    POSITIONAL,
    assert_matches_oracle,
    assert_same_bits,
    case,
    framed,
    inputs,
    linux_only,
    mask_of,
    oracle,
    run_in_child,
    score_bound,
    sized_expressions,
    tolerance,
)

from subquad import (
    Banded,
    Causal,
    Dense,
    Random,
    Strided,
    attention,
    attention_scores,
    bigbird,
    longformer,
    merge,
)

N_Q, N_K = 63, 67
POISON = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("target", ["key", "value", "both"])
@pytest.mark.parametrize("name", CASES)
def test_a_poisoned_key_changes_no_row_that_may_not_see_it(rng, name, target, poison):
    query, key, value = inputs(rng, N_Q, N_K, 12)
    pattern = case(name, N_Q, N_K)
    mask = mask_of(pattern, N_Q, N_K)
    clean, clean_lse = attention(query, key, value, pattern, return_lse=True)
    for j in (0, 1, 15, 16, 31, 32, 48, N_K - 1):
        dirty_key, dirty_value = key.copy(), value.copy()
        if target != "value":
            dirty_key[j] = POISON[poison]
        if target != "key":
            dirty_value[j] = POISON[poison]
        out, lse = attention(query, dirty_key, dirty_value, pattern, return_lse=True)
        blind = ~mask[:, j]
        assert_same_bits(out[blind], clean[blind])
        assert_same_bits(lse[blind], clean_lse[blind])
        if poison == "nan":
            assert np.isnan(out[~blind]).all()
            assert np.isnan(lse[~blind]).all() or target == "value"
        if target == "value":
            assert not np.isfinite(out[~blind]).any()
            assert_same_bits(lse, clean_lse)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_everything_outside_of_the_pattern_may_be_nan(rng, name, dtype):
    """Keys that no row may see, all poisoned at once; padding a batch relies on this."""
    query, key, value = inputs(rng, 20, 150, 33, 9, (2,), dtype=dtype)
    pattern = case(name, 20, 150)
    unseen = ~mask_of(pattern, 20, 150).any(axis=0)
    clean = attention(query, key, value, pattern)
    key[:, unseen], value[:, unseen] = np.nan, np.inf
    assert_same_bits(attention(query, key, value, pattern), clean)


@given(sized_expressions(largest=80), st.integers(0, 2**32 - 1))
def test_drawn_patterns_do_not_leak(drawn, seed):
    pattern, n_q, n_k = drawn
    if not n_k:
        return
    rng = np.random.default_rng(seed)
    query, key, value = inputs(rng, n_q, n_k, 9, 5)
    clean = attention(query, key, value, pattern)
    poisoned = rng.random(n_k) < 0.2
    key[poisoned], value[poisoned] = np.nan, np.nan
    out = attention(query, key, value, pattern)
    reached = mask_of(pattern, n_q, n_k)[:, poisoned].any(axis=1)
    assert_same_bits(out[~reached], clean[~reached])
    assert np.isnan(out[reached]).all()


@pytest.mark.parametrize("name", CASES)
def test_a_poisoned_value_stays_in_its_column(rng, name):
    query, key, value = inputs(rng, N_Q, N_K, 12)
    pattern = case(name, N_Q, N_K)
    clean = attention(query, key, value, pattern)
    value[20, 5] = np.nan
    out = attention(query, key, value, pattern)
    expected = np.zeros(out.shape, dtype=bool)
    expected[:, 5] = mask_of(pattern, N_Q, N_K)[:, 20]
    np.testing.assert_array_equal(np.isnan(out), expected)
    assert_same_bits(out[~expected], clean[~expected])


@pytest.mark.parametrize("name", CASES)
def test_a_poisoned_query_stays_in_its_row_and_head(rng, name):
    query, key, value = inputs(rng, N_Q, N_K, 12, leading=(2,))
    pattern = case(name, N_Q, N_K)
    clean = attention(query, key, value, pattern)
    query[1, 30, 3] = np.nan
    out = attention(query, key, value, pattern)
    assert np.isnan(out[1, 30]).all() == mask_of(pattern, N_Q, N_K)[30].any()
    out[1, 30] = clean[1, 30]
    assert_same_bits(out, clean)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_thread_count_gives_the_same_bits(rng, name, dtype):
    arrays = inputs(rng, 301, 333, 24, 20, (2, 4), (2, 2), dtype)
    pattern = case(name, 301, 333)
    expected, expected_lse = attention(*arrays, pattern, return_lse=True, num_threads=1)
    for num_threads in (2, 3, 5, 16, None):
        out, lse = attention(*arrays, pattern, return_lse=True, num_threads=num_threads)
        assert_same_bits(out, expected)
        assert_same_bits(lse, expected_lse)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("pattern", [Banded(40), Random(20, 1), Strided(17), longformer(16, 3), bigbird(16)], ids=repr)
def test_twenty_runs_give_the_same_bits(rng, pattern, num_threads):
    arrays = inputs(rng, 700, 700, 32, leading=(3,))
    expected = attention(*arrays, pattern, num_threads=1)
    for _ in range(20):
        assert_same_bits(attention(*arrays, pattern, num_threads=num_threads), expected)


@pytest.mark.parametrize("name", CASES)
def test_a_head_alone_gives_the_bits_it_gives_in_a_batch(rng, name):
    query, key, value = inputs(rng, 97, 111, 24, 20, (3, 4), (3, 2))
    pattern = case(name, 97, 111)
    out, lse = attention(query, key, value, pattern, return_lse=True)
    for b, h in np.ndindex(3, 4):
        alone, alone_lse = attention(query[b, h], key[b, h // 2], value[b, h // 2], pattern, return_lse=True)
        assert_same_bits(alone, out[b, h])
        assert_same_bits(alone_lse, lse[b, h])


@pytest.mark.parametrize("name", CASES)
def test_permuted_batches_and_heads(rng, name):
    arrays = inputs(rng, 97, 111, 24, 20, (3, 4))
    pattern = case(name, 97, 111)
    out = attention(*arrays, pattern)
    batches, heads = rng.permutation(3), rng.permutation(4)
    permuted = attention(*(array[batches][:, heads] for array in arrays), pattern)
    assert_same_bits(permuted, out[batches][:, heads])


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("name", POSITIONAL)
def test_the_last_query_alone_gives_the_bits_of_its_row(rng, name, dtype):
    """Decoding one token is `n_q = 1`: it must agree with the call that computed the whole sequence."""
    for n in (1, 16, 97, 300):
        query, key, value = inputs(rng, n, n, 24, 20, dtype=dtype)
        pattern = case(name, n, n)
        out, lse = attention(query, key, value, pattern, return_lse=True)
        alone, alone_lse = attention(query[-1:], key, value, pattern, return_lse=True)
        assert_same_bits(alone, out[-1:])
        assert_same_bits(alone_lse, lse[-1:])


@pytest.mark.parametrize("name", ["banded-3", "banded-left", "causal", "longformer", "streaming"])
def test_the_last_queries_give_the_bits_of_their_rows(rng, name):
    query, key, value = inputs(rng, 200, 200, 24)
    pattern = case(name, 200, 200)
    out = attention(query, key, value, pattern)
    for m in (2, 5, 17, 64, 199):
        assert_same_bits(attention(query[-m:], key, value, pattern), out[-m:])


@pytest.mark.parametrize("d", [1, 7, 24])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_frames_of_nan_are_neither_read_nor_written(rng, name, dtype, d):
    arrays = inputs(rng, N_Q, N_K, d, d + 1, (2,), dtype=dtype)
    pattern = case(name, N_Q, N_K)
    expected = attention(*arrays, pattern)
    frames = [framed(array) for array in arrays]
    out = framed(np.full_like(expected, np.nan))
    attention(*(frame.view for frame in frames), pattern, out=out.view, num_threads=2)
    assert_same_bits(out.view, expected)
    for frame, array in zip(frames, arrays, strict=True):
        frame.assert_frame_untouched()
        assert_same_bits(frame.view, array)
    out.assert_frame_untouched()


def attention_in(placed, pattern, out, expected):
    attention(*placed, pattern, out=out, num_threads=2)
    assert_same_bits(out, expected)


@pytest.mark.skipif(**linux_only)
@pytest.mark.parametrize("before", [False, True], ids=["page-after", "page-before"])
@pytest.mark.parametrize("name", CASES)
def test_nothing_outside_of_the_arrays_is_read(rng, guarded, name, before):
    """Run in a forked process, which a stray read of even one vector would kill."""
    for dtype, d, n_q, n_k in [(FLOAT32, 3, 17, 21), (FLOAT32, 16, 64, 64), (FLOAT64, 5, 33, 50)]:
        arrays = inputs(rng, n_q, n_k, d, d + 2, (2,), dtype=dtype)
        pattern = case(name, n_q, n_k)
        expected = attention(*arrays, pattern)
        placed = [guarded(array, before) for array in arrays]
        out = guarded(np.full_like(expected, np.nan), before)
        run_in_child("fork", attention_in, placed, pattern, out, expected)


def assert_merges_to(arrays, parts, whole):
    (out_a, lse_a), (out_b, lse_b) = (attention(*arrays, part, return_lse=True) for part in parts)
    out, lse = merge(out_a, lse_a, out_b, lse_b)
    assert_matches_oracle(out, lse, *arrays, whole)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_pattern_and_its_complement_merge_to_dense(rng, name, dtype):
    pattern = case(name, 97, 111)
    arrays = inputs(rng, 97, 111, 24, 20, (2, 2), dtype=dtype)
    assert_merges_to(arrays, (pattern, Dense() - pattern), Dense())


@given(sized_expressions(largest=60, depth=1), st.data())
def test_disjoint_parts_merge_to_their_union(drawn, data):
    left, n_q, n_k = drawn
    right = data.draw(st.sampled_from([Dense(), Causal(), Banded(7), Strided(3), Random(4, 2)])) - left
    assert_merges_to(inputs(np.random.default_rng(0), n_q, n_k, 8), (left, right), left | right)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_merge_of_empty_parts(rng, dtype):
    zero, nothing = np.zeros((5, 3), dtype), np.full(5, -np.inf, dtype)
    out, lse = merge(zero, nothing, zero, nothing)
    assert_same_bits(out, zero)
    assert_same_bits(lse, nothing)
    some, some_lse = rng.standard_normal((5, 3)).astype(dtype), rng.standard_normal(5).astype(dtype)
    for out, lse in (merge(some, some_lse, zero, nothing), merge(zero, nothing, some, some_lse)):
        np.testing.assert_array_equal(out, some)
        np.testing.assert_array_equal(lse, some_lse)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_merge_of_extreme_parts(rng, size):
    query, key, value = np.ones((9, 1), np.float32), np.full((20, 1), size, np.float32), inputs(rng, 9, 20)[2]
    key[10:] += 1
    (out_a, lse_a), (out_b, lse_b) = (
        attention(query, key[part], value[part], scale=1.0, return_lse=True) for part in (slice(10), slice(10, 20))
    )
    out, lse = merge(out_a, lse_a, out_b, lse_b)
    expected, expected_lse = oracle(query, key, value, Dense(), scale=1.0)
    atol = tolerance(FLOAT32, 20, 1, score_bound(query, key, 1.0), np.abs(value).max())
    np.testing.assert_allclose(out, expected, rtol=0, atol=atol)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6)


def write_past(array, step):
    faulthandler.disable()
    np.lib.stride_tricks.as_strided(array, (len(array) + 1,), (step,))[-1] = 1


@pytest.mark.skipif(**linux_only)
def test_the_guard_pages_and_frames_of_this_suite_work(guarded):
    run_in_child("fork", write_past, guarded(np.ones(5)), 0)
    with pytest.raises(AssertionError, match="-11"):
        run_in_child("fork", write_past, guarded(np.ones(5)), 8)
    with pytest.raises(AssertionError, match="-11"):
        run_in_child("fork", write_past, guarded(np.ones(1), before=True), -8)
    frame = framed(np.ones(5, np.float32))
    frame.assert_frame_untouched()
    write_past(frame.view, 4)
    with pytest.raises(AssertionError, match="1 elements"):
        frame.assert_frame_untouched()


@pytest.mark.parametrize("pattern", [Dense(), Banded(1), Strided(2), Random(4, 0), Causal()], ids=repr)
def test_a_key_of_score_minus_infinity_weighs_nothing(pattern):
    query, key, value = np.ones((9, 1), np.float32), np.zeros((9, 1), np.float32), np.arange(9.0, dtype=np.float32)
    key[4] = -np.inf
    out, lse = attention(query, key, value[:, None], pattern, scale=1.0, return_lse=True)
    allowed = mask_of(pattern, 9, 9)
    allowed[:, 4] = False
    count = allowed.sum(axis=1)
    expected = np.divide(allowed @ value, count, out=np.zeros(9), where=count > 0)
    np.testing.assert_allclose(out[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(lse[count > 0], np.log(count[count > 0]), rtol=1e-6)


@pytest.mark.parametrize("name", ["banded-3", "random-5", "strided-7", "longformer", "global", "blocks-5", "nested"])
def test_what_was_returned_is_the_caller_s(rng, name):
    """Writing into a result changes no later result: nothing that is kept for the next call is handed out."""
    query, key, value = inputs(rng, 40, 40)
    pattern = case(name, 40, 40)
    out, scores = attention(query, key, value, pattern), attention_scores(query, key, pattern)
    wanted = [array.copy() for array in (out, scores.indptr, scores.indices, scores.data)]
    for array in (out, scores.indptr, scores.indices, scores.data, *(pattern.row(i, 40, 40) for i in range(40))):
        array[...] = 0
    again = attention_scores(query, key, pattern)
    for array, expected in zip((again.indptr, again.indices, again.data), wanted[1:], strict=True):
        assert_same_bits(array, expected)
    assert_same_bits(attention(query, key, value, pattern), wanted[0])
