"""float16 and bfloat16: storage that kernels widen as they read, computed as float32 is, to the bit."""

from __future__ import annotations

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from support import BFLOAT16, FLOAT16, assert_same_bits, inputs
from support_options import OPTIONS, PATTERNS

from subquad import Banded, attention, attention_backward, attention_scores, attention_weights

HALVES = [FLOAT16, BFLOAT16]


def given(rng, dtype, n=45, d=21, d_v=19):
    return inputs(rng, n, n, d, d_v, leading=(2, 3), dtype=dtype)


def wide(arrays):
    return [x.astype(np.float32) for x in arrays]


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_the_bits_of_float32_rounded_once(rng, dtype, pattern):
    halves = given(rng, dtype)
    out, lse = attention(*halves, pattern, return_lse=True)
    expected, expected_lse = attention(*wide(halves), pattern, return_lse=True)
    assert out.dtype == dtype
    assert_same_bits(out, expected.astype(dtype))
    assert_same_bits(lse, expected_lse)
    g = rng.standard_normal(out.shape).astype(dtype)
    grads = attention_backward(g, *halves, out, lse, pattern)
    theirs = attention_backward(*wide((g, *halves, out)), lse, pattern)
    for grad, their in zip(grads, theirs, strict=True):
        assert_same_bits(grad, their.astype(dtype))


@pytest.mark.parametrize("d", [1, 5, 16, 40, 64])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_any_width_and_layout(rng, dtype, d):
    halves = [x.swapaxes(1, 2) for x in inputs(rng, 3, 3, d, d, leading=(2, 37), dtype=dtype)]
    for pattern in (PATTERNS["tiles"], PATTERNS["lists"]):
        columns = [np.asfortranarray(x[1, 1]) for x in halves]  # neighbours of a column lie side by side
        for arrays in (halves, [x[:, ::-1] for x in halves], columns):
            out = np.zeros_like(arrays[2])
            assert_same_bits(attention(*arrays, pattern, out=out), attention(*wide(arrays), pattern).astype(dtype))
    for call in (attention_scores, attention_weights):
        data = call(*halves[:2], Banded(4)).data
        assert data.dtype == dtype
        expected = call(*wide(halves[:2]), Banded(4)).data
        np.testing.assert_allclose(data.astype(np.float32), expected, rtol=float(ml_dtypes.finfo(dtype).eps), atol=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_options(rng, name):
    halves = given(rng, BFLOAT16, n=40)
    for pattern in (PATTERNS["tiles"], PATTERNS["lists"]):
        found = attention(*halves, pattern, **OPTIONS[name])
        assert_same_bits(found, attention(*wide(halves), pattern, **OPTIONS[name]).astype(BFLOAT16))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_half_is_read_and_written_right(dtype):
    """All 65,536 of them as values of a key that a row attends alone: what comes out is what went in."""
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    q = np.zeros((1 << 16, 1), dtype)
    for pattern in (Banded(0), Banded(0) & PATTERNS["tiles"]):
        out = attention(q, q, every[:, None], pattern)[:, 0]
        with np.errstate(invalid="ignore"):  # some of them signal
            nan = np.isnan(every)
        assert np.isnan(out[nan]).all()
        # -0 becomes 0 where it is added to the sum
        np.testing.assert_array_equal(out[~nan].astype(np.float32), every[~nan].astype(np.float32))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_results_round_to_nearest_even(rng, dtype):
    """The mean of two neighbouring halves lies half way: ties go to the even one, as NumPy's conversion has it."""
    v = rng.standard_normal(4096).astype(dtype)
    v[1::2] = np.nextafter(v[::2], dtype.type(np.inf)) if dtype == FLOAT16 else (v[::2].view(np.uint16) + 1).view(dtype)
    q = np.zeros((4096, 1), dtype)
    pairs = attention(q, q, v[:, None], Banded((1, 0)))[1::2, 0]
    expected = ((v[::2].astype(np.float32) + v[1::2].astype(np.float32)) / 2).astype(dtype)
    assert_same_bits(pairs, expected)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_inputs_are_never_copied(rng, dtype):
    n = 1 << 16
    halves = inputs(rng, n, n, 64, 64, dtype=dtype)
    attention(*[x[:64] for x in halves], Banded(8))
    Banded(8).plan(n, n)
    tracemalloc.start()
    try:
        attention(*halves, Banded(8), num_threads=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    result, float32_copy = n * 64 * 2, n * 64 * 4
    assert peak < result + float32_copy / 2
