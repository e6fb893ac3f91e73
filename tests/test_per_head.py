"""A pattern for each head, in one call."""

import numpy as np
import pytest

import subquad
from subquad import Banded, Causal, Dense, Global, Random, Strided
from tests.support import assert_same_bits, inputs

PATTERNS = [Banded(3), Random(4) | Strided(7), Banded(3), Causal() | Global([0, 9])]


def given(rng, leading, kv_leading, dtype=np.float32):
    query, key, value = inputs(rng, 45, 50, d=16, d_v=9, leading=leading, kv_leading=kv_leading, dtype=dtype)
    return query, key, value, rng.standard_normal((*leading, 45, 9)).astype(dtype)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_each_head_follows_its_own_pattern_bit_for_bit(kv_heads, num_threads):
    query, key, value, _ = given(np.random.default_rng(0), (2, 4), (2, kv_heads))
    out, lse = subquad.attention(query, key, value, PATTERNS, return_lse=True, num_threads=num_threads)
    for batch in range(2):
        for head, pattern in enumerate(PATTERNS):
            shared = head * kv_heads // 4
            alone = subquad.attention(
                query[batch, head], key[batch, shared], value[batch, shared], pattern, return_lse=True
            )
            assert_same_bits(out[batch, head], alone[0])
            assert_same_bits(lse[batch, head], alone[1])


@pytest.mark.parametrize("num_threads", [1, 3])
def test_gradients_are_those_of_the_heads_summed_where_keys_are_shared(num_threads):
    query, key, value, grad_out = given(np.random.default_rng(1), (2, 4), (2, 2), np.float64)
    out, lse = subquad.attention(query, key, value, PATTERNS, return_lse=True)
    grads = subquad.attention_backward(grad_out, query, key, value, out, lse, PATTERNS, num_threads=num_threads)
    expected = [np.zeros_like(x) for x in (query, key, value)]
    for batch in range(2):
        for head, pattern in enumerate(PATTERNS):
            mine, shared = (batch, head), (batch, head // 2)
            parts = subquad.attention_backward(
                grad_out[mine], query[mine], key[shared], value[shared], out[mine], lse[mine], pattern
            )
            for total, place, part in zip(expected, (mine, shared, shared), parts, strict=True):
                total[place] += part
    for grad, total in zip(grads, expected, strict=True):
        np.testing.assert_allclose(grad, total, rtol=1e-13, atol=1e-13)


def test_the_oracle_takes_them_too():
    query, key, value, grad_out = given(np.random.default_rng(2), (4,), (2,), np.float64)
    out, lse = subquad.attention(query, key, value, PATTERNS, return_lse=True)
    expected, sums = subquad.reference.attention(query, key, value, PATTERNS, return_lse=True)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(lse, sums, rtol=1e-12)
    arguments = grad_out, query, key, value, out, lse, PATTERNS
    for grad, wanted in zip(
        subquad.attention_backward(*arguments), subquad.reference.attention_backward(*arguments), strict=True
    ):
        np.testing.assert_allclose(grad, wanted, rtol=1e-10, atol=1e-12)


def test_one_head_may_be_given_without_an_axis_for_it():
    query, key, value, _ = given(np.random.default_rng(3), (), ())
    assert_same_bits(subquad.attention(query, key, value, [Banded(3)]), subquad.attention(query, key, value, Banded(3)))


@pytest.mark.parametrize(
    ("patterns", "error", "message"),
    [
        ([Banded(1)] * 3, ValueError, "one for each of the 4 heads of query; got 3 patterns"),
        ([], ValueError, "got 0 patterns"),
        ([Banded(1), Banded(1), 7, Banded(1)], TypeError, "got 7 of type int for head 2"),
        ([Dense()] * 3 + [Global([50])], ValueError, "must be below n_k = 50"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(patterns, error, message):
    query, key, value, _ = given(np.random.default_rng(4), (4,), (4,))
    out = np.full((4, 45, 9), 7, np.float32)
    with pytest.raises(error, match=message):
        subquad.attention(query, key, value, patterns, out=out)
    assert (out == 7).all()
