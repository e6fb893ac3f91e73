"""The last block as global tokens, against masks written by hand and its definition."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import subquad
from subquad import Banded, Causal, Global, attention
from subquad.patterns.last_block import LastBlock


def mask(pattern, n_q, n_k):
    return pattern.contains(np.arange(n_q)[:, None], np.arange(n_k)[None, :], n_q, n_k).astype(int)


def test_masks_written_by_hand():
    assert mask(LastBlock(2), 4, 4).tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert mask(LastBlock(3), 4, 4).tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]]
    assert mask(LastBlock(2), 1, 4).tolist() == [[1, 1, 1, 1]]
    assert mask(LastBlock(2), 4, 2).tolist() == [[1, 1]] * 4
    assert mask(LastBlock(9), 2, 3).tolist() == [[1, 1, 1]] * 2


@given(st.integers(1, 9), st.integers(0, 20), st.integers(0, 20))
def test_every_view_tells_the_same(block, n_q, n_k):
    pattern = LastBlock(block)
    expected = mask(pattern, n_q, n_k)
    assert pattern.nnz(n_q, n_k) == expected.sum() == pattern.plan(n_q, n_k).nnz
    assert all(pattern.row(i, n_q, n_k).tolist() == np.nonzero(expected[i])[0].tolist() for i in range(n_q))
    assert (mask(pattern.transpose(), n_k, n_q) == expected.T).all()
    joined = Banded(1, block=block) | Global(range(block)) | LastBlock(block)
    assert joined.plan(n_q, n_k).nnz == mask(joined, n_q, n_k).sum()
    assert (LastBlock(block) & Causal()).plan(n_q, n_k).nnz == mask(LastBlock(block) & Causal(), n_q, n_k).sum()


def test_attention_is_that_of_the_mask(rng):
    q, k, v = rng.standard_normal((3, 2, 40, 8))
    pattern = Banded(1, block=8) | Global(range(8)) | LastBlock(8)
    scores = np.where(mask(pattern, 40, 40) == 1, q @ k.swapaxes(1, 2) * 8**-0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    np.testing.assert_allclose(attention(q, k, v, pattern), expected, atol=1e-12)
    np.testing.assert_allclose(subquad.reference.attention(q, k, v, pattern), expected, atol=1e-12)


def test_it_is_a_value():
    assert pickle.loads(pickle.dumps(LastBlock(4))) == LastBlock(4) != LastBlock(5)
    assert hash(LastBlock(4)) == hash(LastBlock(4))
    assert repr(LastBlock(4)) == "LastBlock(4)"
    assert str(LastBlock(4).order) == "O(n)"


@pytest.mark.parametrize(("block", "kind"), [(0, ValueError), (1.0, TypeError), (True, TypeError)])
def test_bad_blocks(block, kind):
    with pytest.raises(kind, match="block must be an integer >= 1"):
        LastBlock(block)


def test_queries_past_the_last_key_are_in_no_block(rng):
    q, k = rng.standard_normal((1, 6, 4)), rng.standard_normal((1, 5, 4))
    found = attention(q, k, k, LastBlock(2), q_offset=2)  # at positions 2 to 7, of which 4 is in the last block
    alone = attention(q, k[:, 4:], k[:, 4:])
    expected = np.concatenate((alone[:, :2], attention(q[:, 2:3], k, k), alone[:, 3:]), axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-12)
