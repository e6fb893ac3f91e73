"""Options of a step of decoding: the rows of `attention` with the same options, and every other option refused."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from support import FLOAT16, FLOAT32, FLOAT64, assert_same_bits, random_csr, score_bound, tolerance

from subquad import (
    Banded,
    Causal,
    Explicit,
    Global,
    KVCache,
    LogSparse,
    Packed,
    attention,
    dilated,
    reference,
    streaming,
)
from subquad.decode import steps

N = 90
SLOPES, SINKS = [0.25, 0.0, -0.1, 0.7], [1.5, -math.inf, -0.25, 40.0]
OPTIONS = {
    "softcap": {"softcap": 1.5},
    "alibi": {"alibi_slopes": SLOPES},
    "sinks": {"sinks": SINKS},
    "softcap-alibi": {"softcap": 1.5, "alibi_slopes": SLOPES},
    "softcap-sinks": {"softcap": 1.5, "sinks": SINKS},
    "alibi-sinks": {"alibi_slopes": SLOPES, "sinks": SINKS},
    "all-and-scale": {"softcap": 1.5, "alibi_slopes": SLOPES, "sinks": SINKS, "scale": 0.9},
}
PATTERNS = {
    "streaming": streaming(3, 9),
    "window": Banded((7, 0)),
    "causal": Causal(),
    "log": LogSparse(),
    "dilated": dilated(3, 5) & Causal(),
    "pins": (Global([2, 11, 12], rows=False) | Banded((4, 0))) & Causal(),
    "packed": Packed([30, 60]) & Causal(),
    "explicit": Explicit(random_csr(N, N, 0.2)) & Causal(),
}
CHUNKS = {"one": [1] * N, "few": [5] * 18, "mixed": [20, 1, 30, 4, 1, 34]}  # beyond 16 rows: plans of `attention`


@pytest.fixture(scope="module")
def sequence():
    rng = np.random.default_rng(11)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in ((4, N, 12), (2, N, 12), (2, N, 5)))


def decoded(pattern, sequence, chunks, **options):
    """All rows and their lse, a chunk at a time."""
    query, key, value = sequence
    cache = KVCache(pattern, 2, 12, d_v=5, dtype=key.dtype)
    found, begin = [], 0
    for m in chunks:
        part = slice(begin, begin + m)
        cache.append(key[:, part], value[:, part])
        found.append(cache.attend(query[:, part], return_lse=True, **options))
        begin += m
    return tuple(np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("chunks", CHUNKS)
def test_rows_are_those_of_one_call(chunks, pattern, options, sequence):
    out, lse = decoded(PATTERNS[pattern], sequence, CHUNKS[chunks], **OPTIONS[options])
    expected, expected_lse = reference.attention(*sequence, PATTERNS[pattern], return_lse=True, **OPTIONS[options])
    atol = tolerance(np.float32, N, 12, score_bound(*sequence[:2]), np.abs(sequence[2]).max())
    np.testing.assert_allclose(out, expected, rtol=0, atol=atol)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_row_has_the_same_bits_alone_and_in_a_chunk(options, sequence):
    alone = decoded(streaming(3, 9), sequence, [1] * N, **OPTIONS[options])
    for single, together in zip(
        alone, decoded(streaming(3, 9), sequence, [16, 5, 1, 8] * 3, **OPTIONS[options]), strict=True
    ):
        assert_same_bits(together, single)


def test_one_call_has_the_bits_of_attention(sequence):
    options = OPTIONS["all-and-scale"]
    found = decoded(Causal(), sequence, [N], **options)
    for ours, theirs in zip(found, attention(*sequence, Causal(), return_lse=True, **options), strict=True):
        assert_same_bits(ours, theirs)


def test_a_sink_by_hand():
    """Keys of 0 weigh the same: 3 of them and a sink of log 5 leave 3 / 8 of their mean."""
    cache = KVCache(Causal(), 1, 4, d_v=1)
    cache.append(np.zeros((1, 3, 4), np.float32), np.array([[[1.0], [2.0], [6.0]]], np.float32))
    out, lse = cache.attend(np.ones((1, 1, 4), np.float32), return_lse=True, sinks=[math.log(5)])
    np.testing.assert_allclose(out, [[[3 * 3 / 8]]], rtol=1e-6)
    np.testing.assert_allclose(lse, [[math.log(8)]], rtol=1e-6)


def test_alibi_by_hand():
    """Keys of 0, a slope of log 2: weights 1/4, 1/2, 1 of the keys two behind, one behind and its own."""
    cache = KVCache(Banded((2, 0)), 1, 4, d_v=3)
    cache.append(np.zeros((1, 9, 4), np.float32), np.tile(np.eye(3, dtype=np.float32), (3, 1))[None])
    out = cache.attend(np.ones((1, 1, 4), np.float32), alibi_slopes=[math.log(2)])
    np.testing.assert_allclose(out, [[[1 / 7, 2 / 7, 4 / 7]]], rtol=1e-6)


@pytest.mark.parametrize("dtype", [FLOAT16, FLOAT64])
@pytest.mark.parametrize("widens", [True, False])
def test_other_dtypes(dtype, widens, sequence, monkeypatch):
    if not widens:
        monkeypatch.setattr(steps, "widens", lambda name: False)
        monkeypatch.setattr(steps, "_WIDENED_BYTES", 1)  # a head at a time
    arrays = [x.astype(dtype) for x in sequence]
    options = OPTIONS["all-and-scale"]
    out, _ = decoded(streaming(3, 9), arrays, [1] * 40 + [50], **options)
    expected = reference.attention(*arrays, streaming(3, 9), **options)
    assert out.dtype == dtype
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-3 if dtype == FLOAT16 else 1e-12)


def test_no_thread_count_changes_a_bit(rng):
    """Rows that are enough for several threads, each head with a table of its own."""
    query, key, value = (rng.standard_normal((8, n, 64), dtype=np.float32) for n in (4, 3000, 3000))
    cache = KVCache(Causal(), 8, 64)
    cache.append(key, value)
    options = {"softcap": 3.0, "sinks": np.arange(8.0), "alibi_slopes": 2.0 ** -np.arange(1, 9)}
    one, three = (cache.attend(query, num_threads=threads, **options) for threads in (1, 3))
    assert_same_bits(one, three)
    np.testing.assert_allclose(one, reference.attention(query, key, value, Causal(), **options), atol=2e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key_lengths": 3}, TypeError, r"KVCache.attend has no option 'key_lengths': a cache is one length"),
        ({"key_starts": 3}, TypeError, r"no option 'key_starts': a cache begins with its first token"),
        ({"q_offset": 3}, TypeError, r"no option 'q_offset': .* use rewind"),
        ({"score_mod": max}, TypeError, r"no option 'score_mod': its row number would start again"),
        ({"mask_mod": max}, TypeError, r"no option 'mask_mod': its row number would start again"),
        ({"dropout": 0.1}, TypeError, r"no option 'dropout': a cache is for inference"),
        ({"seed": 1}, TypeError, r"no option 'seed': a cache is for inference"),
        ({"softcpa": 1.0}, TypeError, r"no option 'softcpa': did you mean softcap\?"),
        ({"windows": 1.0}, TypeError, r"no option 'windows': there are softcap, alibi_slopes, sinks"),
        ({"softcap": 0.0}, ValueError, r"softcap must be above 0 and finite, or None for no cap; got 0.0"),
        ({"softcap": "x"}, TypeError, r"softcap must be a real number; got 'x'"),
        ({"sinks": [1.0]}, ValueError, r"sinks must hold one number for each head of query, shape \(4,\); got \(1,\)"),
        ({"alibi_slopes": [0, 1, 2, math.nan]}, ValueError, r"alibi_slopes must be finite; got nan for head 3"),
    ],
)
def test_what_does_not_fit_is_refused(options, error, message, sequence):
    query, key, value = sequence
    cache = KVCache(Causal(), 2, 12, d_v=5)
    cache.append(key, value)
    before = copy.copy(cache)
    with pytest.raises(error, match=message):
        cache.attend(query[:, -1:], **options)
    assert_same_bits(cache.attend(query[:, -1:]), before.attend(query[:, -1:]))


def test_none_is_no_option(sequence):
    query, key, value = sequence
    cache = KVCache(Causal(), 2, 12, d_v=5, dtype=FLOAT32)
    cache.append(key, value)
    none = cache.attend(query[:, -1:], softcap=None, alibi_slopes=None, sinks=None)
    assert_same_bits(none, cache.attend(query[:, -1:]))
