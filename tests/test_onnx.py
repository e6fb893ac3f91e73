"""A second oracle that nobody here wrote: the NumPy reference of the ONNX operator Attention."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx.reference.ops.op_attention import _compute_attention
from support import inputs

from subquad import Banded, Causal, Dense, attention

WINDOWS = [(-1, -1), (5, -1), (0, 3), (6, 6), (11, 0)]


def onnx_attention(query, key, value, **options):
    return _compute_attention(query, key, value, **options)[0]


@pytest.mark.parametrize("softcap", [None, 0.8])
@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("window", "causal"), [*itertools.product(WINDOWS, [False, True])])
def test_windows_softcap_and_grouped_heads(rng, window, causal, heads, shared, softcap):
    q, k, v = inputs(rng, 23, 23, 8, 6, leading=(2, heads), kv_leading=(2, shared), dtype=np.float64)
    left, right = (None if side < 0 else side for side in window)
    pattern = Banded((left, right)) & Causal() if causal else Banded((left, right))
    expected = onnx_attention(
        q, k, v, left_window_size=window[0], right_window_size=window[1], is_causal=causal, softcap=softcap or 0.0
    )
    np.testing.assert_allclose(attention(q, k, v, pattern, softcap=softcap), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("causal", [False, True])
def test_a_cache_of_another_length_in_each_batch(rng, window, causal):
    """`nonpad_kv_seqlen`: the queries of a batch are the last of its keys."""
    q, k, v = inputs(rng, 5, 40, 8, 6, leading=(3, 2), dtype=np.float64)
    lengths = np.array([40, 5, 17])
    left, right = (None if side < 0 else side for side in window)
    pattern = Banded((left, right)) & Causal() if causal else Banded((left, right))
    expected = onnx_attention(
        q, k, v, nonpad_kv_seqlen=lengths, left_window_size=window[0], right_window_size=window[1], is_causal=causal
    )
    found = attention(q, k, v, pattern, key_lengths=lengths, q_offset=lengths - 5)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_scale_and_a_past(rng):
    q, k, v = inputs(rng, 4, 30, 8, 8, leading=(1, 2), dtype=np.float64)
    expected = onnx_attention(
        q, k[:, :, 26:], v[:, :, 26:], past_key=k[:, :, :26], past_value=v[:, :, :26], scale=0.3, is_causal=True
    )
    np.testing.assert_allclose(attention(q, k, v, Causal(), scale=0.3), expected, rtol=0, atol=1e-13)
    expected = onnx_attention(q, k, v, scale=0.3)
    np.testing.assert_allclose(attention(q, k, v, Dense(), scale=0.3), expected, rtol=0, atol=1e-13)
