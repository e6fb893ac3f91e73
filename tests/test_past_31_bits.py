"""Sizes, pairs and byte offsets past 2**31, over memory that is never touched but where a pattern reaches."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from support import FLOAT32, FLOAT64, assert_same_bits, inputs, linux_only

from subquad import (
    Banded,
    Causal,
    Columns,
    Dense,
    Global,
    Random,
    Strided,
    attention,
    attention_backward,
    attention_scores,
)

FAR = 2**31 + 2**12  # bytes
PATTERNS = [Dense(), Banded(3), Random(4, 0), Strided(5), Global([0, 5]) | Banded(1)]


def far_apart(array, axis):
    """A copy in lazily committed memory, its neighbours along an axis more than 2**31 bytes apart."""
    near = np.ascontiguousarray(array)
    strides = list(near.strides)
    strides[axis] = FAR
    size = FAR * (near.shape[axis] - 1) + near.nbytes
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE, which mmap names from Python 3.13 on
    memory = np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)
    placed = np.lib.stride_tricks.as_strided(memory.view(near.dtype)[:1], near.shape, strides)
    placed[...] = near
    return placed


@pytest.mark.skipif(**linux_only)
@pytest.mark.parametrize("axis", [0, 1], ids=["heads", "rows"])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_byte_offsets(rng, pattern, dtype, axis):
    """Heads, and rows, two gigabytes apart: tiles and lists, forward, backward and scores."""
    arrays = inputs(rng, 20, 23, 8, 12, (3,), dtype=dtype)
    out, lse = attention(*arrays, pattern, return_lse=True)
    grad_out = rng.standard_normal(out.shape).astype(dtype)
    grads = attention_backward(grad_out, *arrays, out, lse, pattern)
    far = [far_apart(x, axis) for x in (grad_out, *arrays, out)]
    target = far_apart(np.zeros_like(out), axis)
    attention(*far[1:4], pattern, out=target)
    assert_same_bits(np.ascontiguousarray(target), out)
    for found, expected in zip(attention_backward(*far, lse, pattern), grads, strict=True):
        assert_same_bits(found, expected)
    assert_same_bits(attention_scores(*far[1:3], pattern).data, attention_scores(*arrays[:2], pattern).data)


@pytest.mark.parametrize(
    "pattern", [Banded((64, 0)), Strided(2**28), Random(40, 0), Columns(2**27, 1) & Causal()], ids=repr
)
def test_broadcast_keys_past_31_bits(rng, pattern):
    """n_k x d = 2**37 elements of one key that is repeated: every weight is the same, so the output is its value."""
    query = rng.standard_normal((3, 32)).astype(np.float32)
    key, value = (np.broadcast_to(rng.standard_normal(32).astype(np.float32), (2**32, 32)) for _ in range(2))
    out, lse = attention(query, key, value, pattern, return_lse=True)
    np.testing.assert_allclose(out, value[:3], rtol=1e-6)
    pairs = [len(pattern.row(i, 3, 2**32)) for i in range(3)]
    np.testing.assert_allclose(lse, query @ key[0] / np.sqrt(32) + np.log(pairs), rtol=1e-5)


@pytest.mark.parametrize(
    ("pattern", "pairs"),
    [
        (Dense(), 2**64),
        (Causal(), 2**31 * (2**32 + 1)),
        (Banded((2**16 - 1, 0)), 2**48 - 2**15 * (2**16 - 1)),
        (Strided(2**16), 2**48),
        (Global([7], rows=False), 2**32),
        (Columns(2**10, 3), 3 * 2**54),
    ],
    ids=repr,
)
def test_pairs(pattern, pairs):
    """Counted in Python's integers, past 63 bits."""
    assert pattern.nnz(2**32, 2**32) == pairs
