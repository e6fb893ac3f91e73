"""Multi-head attention against einsum over a dense mask."""

from __future__ import annotations

import numpy as np
import pytest
from support import mask_of

from subquad import Banded, Causal, Dense, Global, MultiHeadAttention, Random

PATTERNS = [Dense(), Causal(), Banded(2), Banded(1) | Global([0]), Random(3, 0)]


def expected(attend, x):
    """Concatenated outputs and weights (heads, n, n), in float64."""
    n, h, d = len(x), attend.num_heads, attend.head_dim
    q, k, v = (
        np.einsum("ne,ehd->hnd", x, weight.reshape(-1, h, d))
        for weight in (attend.query_weight, attend.key_weight, attend.value_weight)
    )
    scores = np.einsum("hid,hjd->hij", q, k) / np.sqrt(d)
    weights = np.where(mask_of(attend.pattern, n, n), np.exp(scores), 0)
    weights /= weights.sum(axis=2, keepdims=True)
    return np.einsum("hij,hjd->ihd", weights, v).reshape(n, h * d), weights


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("heads", [1, 3, 12])
def test_is_projections_heads_and_concatenation(rng, pattern, heads):
    attend = MultiHeadAttention(12, heads, pattern, seed=3)
    x = rng.standard_normal((19, 12))
    concatenated, weights = expected(attend, x)
    np.testing.assert_allclose(attend.concatenated(x), concatenated, atol=1e-12)
    np.testing.assert_allclose(attend(x), concatenated @ attend.out_weight, atol=1e-12)
    found = attend.weights(x)
    for h in range(heads):
        np.testing.assert_allclose(found.to_scipy(h).toarray(), weights[h], atol=1e-12)


def test_a_batch_is_its_sequences(rng):
    attend = MultiHeadAttention(16, 2, Banded(3), seed=0)
    x = rng.standard_normal((4, 10, 16), dtype=np.float32)
    out = attend(x)
    assert out.shape == x.shape
    assert out.dtype == np.float32
    for b in range(4):
        np.testing.assert_allclose(out[b], attend(x[b]), atol=1e-6)
        np.testing.assert_allclose(attend.weights(x).data[b], attend.weights(x[b]).data, atol=1e-6)


def test_the_seed_decides_and_the_scale_is_kept():
    first, again, other = (MultiHeadAttention(64, 4, Dense(), seed=seed) for seed in (1, 1, 2))
    assert (first.query_weight == again.query_weight).all()
    assert not (first.query_weight == other.query_weight).any()
    x = np.random.default_rng(0).standard_normal((500, 64))
    assert (x @ first.value_weight).var() == pytest.approx(1, rel=0.1)
    assert repr(first) == "MultiHeadAttention(64, 4, Dense(), seed=1)"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MultiHeadAttention(10, 3, Dense(), seed=0), ValueError, "multiple of num_heads; got embed_dim = 10"),
        (lambda: MultiHeadAttention(0, 1, Dense(), seed=0), ValueError, "embed_dim must be an integer >= 1; got 0"),
        (lambda: MultiHeadAttention(8, 2.0, Dense(), seed=0), TypeError, "num_heads"),
        (lambda: MultiHeadAttention(8, 2, "dense", seed=0), TypeError, "pattern must be a subquad pattern"),
        (lambda: MultiHeadAttention(8, 2, Dense(), seed=-1), ValueError, "seed"),
        (lambda: MultiHeadAttention(8, 2, Dense()), TypeError, "seed"),
        (lambda: MultiHeadAttention(10**9, 1, Dense(), seed=0), MemoryError, "Lower embed_dim"),
        (
            lambda: MultiHeadAttention(8, 2, Dense(), seed=0)(np.zeros((5, 7))),
            ValueError,
            r"x must have shape \(n, 8\)",
        ),
        (lambda: MultiHeadAttention(8, 2, Dense(), seed=0)(np.zeros(8)), ValueError, r"got \(8,\)"),
        (lambda: MultiHeadAttention(8, 2, Dense(), seed=0).weights(np.zeros((5, 8), int)), TypeError, "got int64"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
