"""What holds of gradients to the bit: no leaks, no dependence on threads, batches, or where the numbers lie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import (
    BFLOAT16,
    CASES,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    POSITIONAL,
    assert_same_bits,
    case,
    framed,
    linux_only,
    mask_of,
    run_in_child,
    sized_expressions,
)
from support_gradients import (
    assert_all_same_bits,
    assert_gradients_match_oracle,
    backward_inputs,
    call_arrays,
    gradients,
    oracle_backward,
    small_blocks,
)

from subquad import Banded, Dense, Random, Strided, attention, attention_backward, bigbird, longformer, merge

N_Q, N_K = 63, 67
# columns of queries and of values: parts of a vector of lanes, several, and one of each
WIDTHS = [(5, 33), (24, 12)]


# --- no leak ----------------------------------------------------------------------------------------------------------


def reached_by(mask, target, at):
    """Rows whose gradient, and keys whose gradient, what stands in row or key `at` may change."""
    rows = mask[:, at] if target in ("key", "value") else np.arange(len(mask)) == at
    return rows & mask.any(axis=1), mask[rows].any(axis=0)


@pytest.mark.parametrize("target", ["key", "value", "query", "grad_out"])
@pytest.mark.parametrize("name", CASES)
def test_poison_reaches_what_it_must_and_nothing_else(rng, name, target):
    """One NaN: gradients are NaN exactly where the oracle's are, and elsewhere keep their bits. One inf: the latter."""
    pattern = case(name, N_Q, N_K)
    mask = mask_of(pattern, N_Q, N_K)
    for d, d_v in WIDTHS:
        clean_arrays = dict(
            zip(("grad_out", "query", "key", "value"), backward_inputs(rng, N_Q, N_K, d, d_v), strict=True)
        )
        clean = gradients(*clean_arrays.values(), pattern)
        for at, column, poison in [(0, 0, np.nan), (62, 1, np.nan), (17, None, np.nan), (31, 0, np.inf)]:
            arrays = {key: array.copy() for key, array in clean_arrays.items()}
            arrays[target][at, slice(None) if column is None else column] = poison
            grads = gradients(*arrays.values(), pattern)
            rows, keys = reached_by(mask, target, at)
            for grad, was, reached in zip(grads, clean, (rows, keys, keys), strict=True):
                assert_same_bits(grad[~reached], was[~reached])
            if np.isnan(poison):
                expected, _ = oracle_backward(*arrays.values(), pattern)
                for which, grad, right in zip(("query", "key", "value"), grads, expected, strict=True):
                    np.testing.assert_array_equal(np.isnan(grad), np.isnan(right), err_msg=f"gradient of {which}")


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_everything_outside_of_the_pattern_may_be_nan(rng, name, dtype):
    """Keys that no row sees and rows that see no key, all poisoned at once; padding a batch relies on this."""
    for n_q, n_k, d, d_v in [(20, 150, 5, 12), (150, 20, 24, 33), (20, 150, 40, 3)]:
        pattern = case(name, n_q, n_k)
        mask = mask_of(pattern, n_q, n_k)
        unseen, blind = ~mask.any(axis=0), ~mask.any(axis=1)
        arrays = call_arrays(rng, n_q, n_k, pattern, d, d_v, (2,), dtype=dtype)
        clean = attention_backward(pattern=pattern, **arrays)
        arrays["key"][:, unseen], arrays["value"][:, unseen] = np.nan, np.inf
        arrays["query"][:, blind], arrays["grad_out"][:, blind] = np.inf, np.nan
        arrays["out"][:, blind], arrays["grad_lse"][:, blind] = np.nan, -np.inf
        assert_all_same_bits(attention_backward(pattern=pattern, **arrays), clean)
        assert not clean[0][:, blind].astype(bool).any()


@given(sized_expressions(largest=80), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 2**32 - 1))
def test_drawn_patterns_do_not_leak(drawn, d, d_v, cut, seed):
    pattern, n_q, n_k = drawn
    rng, mask = np.random.default_rng(seed), mask_of(pattern, n_q, n_k)
    arrays = backward_inputs(rng, n_q, n_k, d, d_v)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if cut:
            small_blocks(monkeypatch)
        clean = gradients(*arrays, pattern)
        bad_keys, bad_rows = rng.random(n_k) < 0.1, rng.random(n_q) < 0.1
        arrays[2][bad_keys], arrays[3][bad_keys], arrays[0][bad_rows] = np.nan, np.nan, np.nan
        grads = gradients(*arrays, pattern)
    reached = mask.any(axis=1) & (mask[:, bad_keys].any(axis=1) | bad_rows)
    seen = mask[reached].any(axis=0)
    assert_same_bits(grads[0][~reached], clean[0][~reached])
    assert np.isnan(grads[0][reached]).all()
    assert_same_bits(grads[1][~seen], clean[1][~seen])
    assert np.isnan(grads[1][seen]).all()
    assert_same_bits(grads[2][~seen], clean[2][~seen])
    assert np.isnan(grads[2][seen]).all()


@pytest.mark.parametrize("name", CASES)
def test_a_poisoned_head_stays_alone(rng, name):
    pattern = case(name, N_Q, N_K)
    arrays = call_arrays(rng, N_Q, N_K, pattern, 12, 9, (2, 4), (2, 2))
    clean = attention_backward(pattern=pattern, **arrays)
    arrays["grad_out"][1, 2], arrays["lse"][1, 2] = np.nan, np.nan
    grads = attention_backward(pattern=pattern, **arrays)
    for grad, was, head in zip(grads, clean, (2, 1, 1), strict=True):
        apart = np.ones(was.shape[:2], bool)
        apart[1, head] = False
        assert_same_bits(grad[apart], was[apart])


@pytest.mark.parametrize("pattern", [Dense(), Banded(1), Banded(0), Strided(2), Strided(40), Random(4, 0)], ids=repr)
def test_a_key_of_score_minus_infinity_has_no_weight(rng, pattern):
    """The weight is 0, even of a row that sees no other key: no gradient for its value, and no one else notices."""
    query, value = np.ones((40, 1), np.float32), rng.standard_normal((40, 3)).astype(np.float32)
    key, grad_out = np.zeros((40, 1), np.float32), rng.standard_normal((40, 3)).astype(np.float32)
    key[4] = -np.inf
    _, grad_key, grad_value = gradients(grad_out, query, key, value, pattern, scale=1.0)
    assert not grad_value[4].any()
    assert not grad_key[4].any()
    others = np.delete(np.arange(40), 4)
    expected, _ = oracle_backward(grad_out, query, np.where(np.isinf(key), -1e3, key), value, pattern, 1.0)
    np.testing.assert_allclose(grad_value[others], expected[2][others], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad_key[others], expected[1][others], rtol=1e-4, atol=1e-5)


# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "flops"), [(FLOAT32, 200_000), (FLOAT64, 20_000), (BFLOAT16, None)])
@pytest.mark.parametrize("name", CASES)
def test_every_thread_count_gives_the_same_bits(rng, name, dtype, flops, monkeypatch):
    if flops is not None:
        small_blocks(monkeypatch, flops)
    pattern = case(name, 201, 233)
    arrays = call_arrays(rng, 201, 233, pattern, 24, 20, (4,), (2,), dtype)
    expected = attention_backward(pattern=pattern, **arrays, num_threads=1)
    for num_threads in (2, 3, 8, None):
        grads = attention_backward(pattern=pattern, **arrays, num_threads=num_threads)
        assert_all_same_bits(grads, expected)


REPEATED = [Dense(), Banded(40), Random(20, 1), Strided(17), longformer(16, 3), bigbird(16)]


@pytest.mark.parametrize("pattern", REPEATED, ids=repr)
def test_twenty_runs_give_the_same_bits(rng, pattern, monkeypatch):
    """Blocks of about a tenth of a millisecond, so that threads do meet in a wave."""
    small_blocks(monkeypatch, 1_000_000)
    arrays = call_arrays(rng, 700, 700, pattern, 32, 32, (2,))
    expected = attention_backward(pattern=pattern, **arrays, num_threads=1)
    grad_out, query, key, value = (arrays[name] for name in ("grad_out", "query", "key", "value"))
    assert_gradients_match_oracle(expected, grad_out, query, key, value, pattern, None, arrays["grad_lse"])
    for _ in range(20):
        assert_all_same_bits(attention_backward(pattern=pattern, **arrays, num_threads=3), expected)


@pytest.mark.parametrize("flops", [None, 30_000])
@pytest.mark.parametrize("name", CASES)
def test_a_head_alone_gives_the_bits_it_gives_in_a_batch(rng, name, flops, monkeypatch):
    if flops is not None:
        small_blocks(monkeypatch, flops)
    pattern = case(name, 97, 111)
    arrays = call_arrays(rng, 97, 111, pattern, 24, 20, (2, 3))
    grads = attention_backward(pattern=pattern, **arrays)
    for at in [(0, 0), (1, 2)]:
        alone = attention_backward(pattern=pattern, **{key: array[at] for key, array in arrays.items()})
        assert_all_same_bits(alone, [grad[at] for grad in grads])


@pytest.mark.parametrize("name", POSITIONAL)
def test_the_last_query_alone_gets_the_bits_of_its_row(rng, name):
    """Where one block holds a whole row: a schedule that cuts the keys of a row as well sums in the order of waves."""
    for n in (1, 16, 97, 300):
        pattern = case(name, n, n)
        arrays = call_arrays(rng, n, n, pattern, 24, 20)
        grad_query, _, _ = attention_backward(pattern=pattern, **arrays)
        last = {key: array if key in ("key", "value") else array[-1:] for key, array in arrays.items()}
        assert_same_bits(attention_backward(pattern=pattern, **last)[0], grad_query[-1:])


@pytest.mark.parametrize("name", CASES)
def test_permuted_batches_and_heads(rng, name):
    """Heads of keys go with their group of query heads; within a group the order of the sum stays."""
    pattern = case(name, 97, 111)
    arrays = call_arrays(rng, 97, 111, pattern, 24, 20, (3, 6), (3, 3))
    grads = attention_backward(pattern=pattern, **arrays)
    batches, shared = rng.permutation(3), rng.permutation(3)
    heads = (2 * shared[:, None] + np.arange(2)).reshape(-1)

    def permuted(array):
        return array[batches][:, shared if array.shape[1] == 3 else heads]

    again = attention_backward(pattern=pattern, **{key: permuted(array) for key, array in arrays.items()})
    assert_all_same_bits(again, [permuted(grad) for grad in grads])


@pytest.mark.parametrize("name", CASES)
def test_grouped_heads_sum_the_gradients_of_each(rng, name):
    pattern = case(name, 63, 70)
    arrays = call_arrays(rng, 63, 70, pattern, 12, 9, (6,), (2,), FLOAT64)
    grad_query, *of_keys = attention_backward(pattern=pattern, **arrays)
    repeated = {**arrays, "key": np.repeat(arrays["key"], 3, axis=0), "value": np.repeat(arrays["value"], 3, axis=0)}
    alone_query, *alone = attention_backward(pattern=pattern, **repeated)
    assert_same_bits(grad_query, alone_query)
    for grad, each in zip(of_keys, alone, strict=True):
        np.testing.assert_allclose(grad, each.reshape(2, 3, 70, -1).sum(axis=1), rtol=1e-11, atol=1e-12)


# --- frames and guard pages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_frames_of_nan_are_neither_read_nor_written(rng, name, dtype):
    pattern = case(name, N_Q, N_K)
    for d, d_v in [(1, 2), (7, 24), (24, 33)]:
        arrays = call_arrays(rng, N_Q, N_K, pattern, d, d_v, (2,), dtype=dtype)
        expected = attention_backward(pattern=pattern, **arrays)
        frames = {key: framed(array) for key, array in arrays.items()}
        views = {key: frame.view for key, frame in frames.items()}
        assert_all_same_bits(attention_backward(pattern=pattern, **views, num_threads=2), expected)
        for key, frame in frames.items():
            frame.assert_frame_untouched()
            assert_same_bits(frame.view, arrays[key])


def backward_in(placed, pattern, expected):
    assert_all_same_bits(attention_backward(pattern=pattern, **placed, num_threads=2), expected)


@pytest.mark.skipif(**linux_only)
@pytest.mark.parametrize("before", [False, True], ids=["page-after", "page-before"])
@pytest.mark.parametrize("name", CASES)
def test_nothing_outside_of_the_arrays_is_read(rng, guarded, name, before):
    """Run in a forked process, which a stray read of even one vector would kill."""
    calls = []
    for dtype, d, d_v, n_q, n_k in [(FLOAT32, 3, 18, 17, 21), (FLOAT32, 16, 5, 64, 64), (FLOAT64, 9, 70, 33, 50)]:
        pattern = case(name, n_q, n_k)
        arrays = call_arrays(rng, n_q, n_k, pattern, d, d_v, (2,), dtype=dtype)
        expected = attention_backward(pattern=pattern, **arrays)
        placed = {key: guarded(array, before) for key, array in arrays.items()}
        calls.append((placed, pattern, expected))
    run_in_child("fork", all_backwards_in, calls)


def all_backwards_in(calls):
    for call in calls:
        backward_in(*call)


@pytest.mark.skipif(**linux_only)
@pytest.mark.parametrize("name", ["strided-7", "banded-3", "random-5", "longformer-scattered"])
def test_nothing_outside_of_rows_far_apart_is_read(rng, guarded, name):
    """The panels that rows far apart are copied into: the last row ends where the page does."""
    pattern, calls = case(name, 60, 77), []
    arrays = call_arrays(rng, 60, 77, pattern, 24, 20)
    expected = attention_backward(pattern=pattern, **arrays)
    for before in (False, True):
        placed = dict(arrays)
        for which in ("key", "value", "query", "grad_out"):
            n, columns = arrays[which].shape
            wide = guarded(np.full(((n - 1) * 600 + columns,), np.nan, FLOAT32), before)
            view = np.lib.stride_tricks.as_strided(wide, (n, columns), (2400, 4))
            view[...] = arrays[which]
            placed[which] = view
        calls.append((placed, pattern, expected))
    run_in_child("fork", all_backwards_in, calls)


# --- merged attentions ------------------------------------------------------------------------------------------------


def merged_gradients(grad_out, query, key, value, parts, grad_lse):
    """Gradients of the merged attention over some disjoint patterns: each part's share, added up."""
    found = [attention(query, key, value, part, return_lse=True) for part in parts]
    out, lse = found[0]
    for other, other_lse in found[1:]:
        out, lse = merge(out, lse, other, other_lse)
    shares = [attention_backward(grad_out, query, key, value, out, lse, part, grad_lse=grad_lse) for part in parts]
    return [sum(share[k] for share in shares) for k in range(3)]


@pytest.mark.parametrize("name", CASES)
def test_a_pattern_and_its_complement_add_up_to_dense(rng, name):
    pattern = case(name, 61, 70)
    grad_out, *arrays = backward_inputs(rng, 61, 70, 24, 20, (2, 2))
    grad_lse = rng.standard_normal((2, 2, 61)).astype(np.float32)
    merged = merged_gradients(grad_out, *arrays, [pattern, Dense() - pattern], grad_lse)
    assert_gradients_match_oracle(merged, grad_out, *arrays, Dense(), None, grad_lse)


@pytest.mark.parametrize("pieces", [2, 3, 4, 5])
def test_keys_in_pieces(rng, pieces):
    """Out of core: each piece of the keys is an array of its own, and gets its own gradients."""
    grad_out, query, key, value = backward_inputs(rng, 50, 103, 9, 17)
    cuts = np.sort(rng.choice(np.arange(1, 103), pieces - 1, replace=False))
    parts = list(zip(np.split(key, cuts), np.split(value, cuts), strict=True))
    out, lse = attention(query, *parts[0], return_lse=True)
    for k, v in parts[1:]:
        out, lse = merge(out, lse, *attention(query, k, v, return_lse=True))
    shares = [attention_backward(grad_out, query, k, v, out, lse) for k, v in parts]
    grads = sum(share[0] for share in shares), *(np.concatenate([share[k] for share in shares]) for k in (1, 2))
    assert_gradients_match_oracle(grads, grad_out, query, key, value, Dense())


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16], ids=str)
def test_half_precision_is_rounded_once(rng, dtype):
    """The float32 gradients of the same numbers, rounded at the end: nothing is kept in half precision on the way."""
    arrays = call_arrays(rng, 90, 90, Banded(40), 12, 20, dtype=dtype)
    grads = attention_backward(pattern=Banded(40), **arrays)
    wide = attention_backward(pattern=Banded(40), **{key: array.astype(np.float32) for key, array in arrays.items()})
    assert_all_same_bits(grads, [grad.astype(dtype) for grad in wide])


@pytest.mark.parametrize("pattern", [Dense(), Dense() - Banded(300)], ids=repr)
def test_the_gradient_of_a_query_row_alone_where_keys_are_cut_into_cells(rng, pattern):
    n = 1500
    query, key, value, grad_out = (rng.standard_normal((n, 64)).astype(np.float32) for _ in range(4))
    out, lse = attention(query, key, value, pattern, return_lse=True)
    together = attention_backward(grad_out, query, key, value, out, lse, pattern)[0]
    for last in (1, 5, 17):
        rows = slice(n - last, n)
        alone = attention_backward(grad_out[rows], query[rows], key, value, out[rows], lse[rows], pattern)[0]
        assert_same_bits(alone, together[rows])


@pytest.mark.parametrize("pattern", [Dense(), Banded(20), Strided(2), Random(4, 0)], ids=repr)
def test_rows_whose_scores_are_all_minus_infinity_give_values_nothing(rng, pattern):
    """Such a row counts as empty, in tiles and in lists: lse is -inf, and every weight 0 instead of NaN."""
    query, key = np.ones((40, 1), np.float32), np.full((40, 1), -np.inf, np.float32)
    value, grad_out = (rng.standard_normal((40, 3)).astype(np.float32) for _ in range(2))
    out, lse = attention(query, key, value, pattern, return_lse=True)
    assert (lse == -np.inf).all()
    assert not attention_backward(grad_out, query, key, value, out, lse, pattern)[2].any()
