"""A peer behind an adapter, put to the part of the contract that it claims."""

from __future__ import annotations

import numpy as np
import pytest

from subquad.testing import check_attention

torch = pytest.importorskip("torch", reason="needs PyTorch")
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402


def masked_sdpa(query, key, value, pattern, *, scale=None):
    """PyTorch's attention with the pattern as a mask of n_q x n_k."""
    n_q, n_k = query.shape[-2], key.shape[-2]
    i, j = np.arange(n_q)[:, None], np.arange(n_k)[None]
    allowed = np.array(np.broadcast_to(pattern.contains(i, j, n_q, n_k), (n_q, n_k)))
    q, k, v = (torch.from_numpy(np.array(x, order="C")[(None,) * (4 - x.ndim)]) for x in (query, key, value))
    out = scaled_dot_product_attention(
        q, k, v, torch.from_numpy(allowed), scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.numpy().reshape(*query.shape[:-1], value.shape[-1])


def test_sdpa_keeps_the_values_it_claims():
    report = check_attention(
        masked_sdpa,
        options=["scale"],
        dtypes=["float32", "float64"],
        skip=["errors", "isolation", "bits", "empty-inputs", "linear-in-values"],
        size=40,
    )
    assert report.passed, str(report)
    assert report.cases > 300
    assert {"lse", "threads", "out-receives"}.isdisjoint(o.name for o in report.outcomes if not o.skipped)


def test_sdpa_lets_nan_through_a_mask():
    """A masked weight of 0 times NaN is NaN: what the contract forbids, and the check for it finds."""
    report = check_attention(masked_sdpa, options=["scale"], dtypes=["float32"], only=["nan-outside"], size=40)
    assert report.failed == ("nan-outside",), str(report)
    assert np.isnan(report.failures[0].difference)
