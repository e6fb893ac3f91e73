"""Bad input to a cache: one clear error that names the argument, and a cache that is as it was."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
from support import assert_same_bits

from subquad import Banded, BlockSparse, Causal, Explicit, KVCache, Neighborhood, Packed, checks, streaming


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("banded", 2, 8), {}, TypeError, r"pattern must be a subquad pattern.*got 'banded'"),
        ((Causal(), 0, 8), {}, ValueError, r"heads must be an integer >= 1; got 0"),
        ((Causal(), 2.0, 8), {}, TypeError, r"heads must be an integer >= 1; got 2.0 of type float"),
        ((Causal(), 2, -1), {}, ValueError, r"d must be an integer >= 1; got -1"),
        ((Causal(), 2, 8), {"d_v": 0}, ValueError, r"d_v must be an integer >= 1; got 0"),
        ((Causal(), 2, 8), {"dtype": "int32"}, TypeError, r"dtype must be float32, .* or bfloat16; got int32"),
        ((Causal(), 2, 8), {"dtype": "float31"}, TypeError, r"dtype must be float32, .* or bfloat16; got 'float31'"),
        ((Causal(), 2, 8), {"dtype": "complex64"}, TypeError, r"dtype must be float32, .* or bfloat16; got complex64"),
        ((Causal(), 2, 8), {"max_rewind": -1}, ValueError, r"max_rewind must be an integer >= 0; got -1"),
        ((Causal(), 2, 8), {"max_rewind": True}, TypeError, r"max_rewind must be an integer >= 0; got True"),
        ((Causal(), 2, 8), {"capacity": 0}, ValueError, r"capacity must be an integer >= 1; got 0"),
        ((Packed([3, 4]) & Neighborhood(8, 3), 2, 8), {}, ValueError, r"shape \(8,\) has 8 tokens"),
        ((BlockSparse(np.eye(3), 4), 2, 8), {"capacity": 20}, ValueError, r"layout has 3 x 3 blocks of 4"),
        ((Causal(), 1 << 30, 1 << 30), {}, MemoryError, r"a cache of 1 tokens x 1073741824 heads .* takes"),
    ],
)
def test_of_its_own(arguments, options, error, message):
    with pytest.raises(error, match=message):
        KVCache(*arguments, **options)


@pytest.fixture
def cache():
    """Twenty tokens of streaming(2, 5), with room to go three back."""
    cache = KVCache(streaming(2, 5), 2, 8, d_v=4, max_rewind=3, capacity=25)
    x = np.random.default_rng(0).standard_normal((2, 20, 8), dtype=np.float32)
    for t in range(20):
        cache.append(x[:, t : t + 1], x[:, t : t + 1, :4])
    return cache


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


BAD_APPENDS = [
    (zeros(3, 1, 8), zeros(2, 1, 4), ValueError, r"key must have shape \(heads = 2, m, d = 8\).*got \(3, 1, 8\)"),
    (zeros(2, 1, 9), zeros(2, 1, 4), ValueError, r"key must have shape \(heads = 2, m, d = 8\).*got \(2, 1, 9\)"),
    (zeros(2, 8), zeros(2, 1, 4), ValueError, r"key must have shape \(heads = 2, m, d = 8\).*got \(2, 8\)"),
    (zeros(2, 1, 8), zeros(2, 1, 8), ValueError, r"value must have shape \(heads = 2, m, d_v = 4\).*got \(2, 1, 8\)"),
    (zeros(2, 2, 8), zeros(2, 1, 4), ValueError, r"value must have as many tokens as key, 2; got 1"),
    (
        zeros(2, 1, 8, dtype="f8"),
        zeros(2, 1, 4),
        TypeError,
        r"key must have the dtype of the cache, float32; got float64",
    ),
    (zeros(2, 1, 8), zeros(2, 1, 4, dtype="f2"), TypeError, r"value must have the dtype .* float32; got float16"),
    (zeros(2, 1, 8), zeros(2, 1, 4, dtype=int), TypeError, r"value must have the dtype .* float32; got int64"),
    (np.ma.zeros((2, 1, 8), "f4"), zeros(2, 1, 4), TypeError, r"key must not be a masked array"),
    (None, zeros(2, 1, 4), TypeError, r"key must have the dtype of the cache, float32; got object"),
    (zeros(2, 6, 8), zeros(2, 6, 4), ValueError, r"at most capacity = 25 tokens; it has 20 and got 6 more"),
]

BAD_QUERIES = [
    (zeros(3, 1, 8), {}, ValueError, r"query must have shape \(heads = 2 or a multiple, m, d = 8\).*got \(3, 1, 8\)"),
    (zeros(0, 1, 8), {}, ValueError, r"query must have shape .* got \(0, 1, 8\)"),
    (zeros(2, 1, 7), {}, ValueError, r"query must have shape .* got \(2, 1, 7\)"),
    (zeros(1, 2, 1, 8), {}, ValueError, r"query must have shape .* got \(1, 2, 1, 8\)"),
    (zeros(2, 1, 8, dtype="f8"), {}, TypeError, r"query must have the dtype of the cache, float32; got float64"),
    (zeros(2, 21, 8), {}, ValueError, r"query must have at most as many rows as the cache has tokens, 20; got 21"),
    (zeros(2, 10, 8), {}, ValueError, r"query must have at most 4 rows: .* no longer held; got 10.*max_rewind = 3"),
    (zeros(2, 1, 8), {"scale": np.inf}, ValueError, r"scale must be finite"),
    (zeros(2, 1, 8), {"scale": "1"}, TypeError, r"scale must be a real number or None"),
    (zeros(2, 1, 8), {"num_threads": 0}, ValueError, r"num_threads must be an integer >= 1; got 0"),
]


def same_as_before(cache, nbytes, out):
    assert (len(cache), cache.nbytes) == (20, nbytes)
    assert_same_bits(cache.attend(np.ones((2, 3, 8), np.float32)), out)


@pytest.mark.parametrize(("key", "value", "error", "message"), BAD_APPENDS)
def test_append(cache, key, value, error, message):
    before = cache.nbytes, cache.attend(np.ones((2, 3, 8), np.float32))
    with pytest.raises(error, match=message):
        cache.append(key, value)
    same_as_before(cache, *before)


@pytest.mark.parametrize("rows", [-1, 1.5])
def test_rows_to_come(cache, rows):
    before = cache.nbytes, cache.attend(np.ones((2, 3, 8), np.float32))
    with pytest.raises((TypeError, ValueError), match="rows must be an integer >= 0"):
        cache.append(zeros(2, 1, 8), zeros(2, 1, 4), rows=rows)
    same_as_before(cache, *before)


@pytest.mark.parametrize(("query", "options", "error", "message"), BAD_QUERIES)
def test_attend(cache, query, options, error, message):
    before = cache.nbytes, cache.attend(np.ones((2, 3, 8), np.float32))
    with pytest.raises(error, match=message):
        cache.attend(query, **options)
    same_as_before(cache, *before)


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (-1, ValueError, r"k must be an integer >= 0; got -1"),
        (1.0, TypeError, r"k must be an integer >= 0; got 1.0 of type float"),
        (21, ValueError, r"k must be at most the 20 tokens of the cache; got 21"),
        (4, ValueError, r"k must be at most 3: .* no longer held; got 4\. .* max_rewind >= 4, or drop .* 20 tokens"),
    ],
)
def test_rewind(cache, k, error, message):
    before = cache.nbytes, cache.attend(np.ones((2, 3, 8), np.float32))
    with pytest.raises(error, match=message):
        cache.rewind(k)
    same_as_before(cache, *before)


def test_rewind_counts_from_the_longest(cache):
    cache.rewind(2)
    with pytest.raises(ValueError, match=r"k must be at most 1: "):
        cache.rewind(2)
    cache.append(zeros(2, 1, 8), zeros(2, 1, 4))
    with pytest.raises(ValueError, match=r"k must be at most 2: "):
        cache.rewind(3)
    with pytest.raises(ValueError, match=r"query must have at most 3 rows: .* got 4"):
        cache.attend(zeros(2, 4, 8))
    cache.rewind(2)
    assert len(cache) == 17


def test_rows_that_were_not_announced(cache):
    cache.append(zeros(2, 5, 8), zeros(2, 5, 4), rows=1)
    assert cache.attend(zeros(2, 4, 8)).shape == (2, 4, 4)  # as far as it could be taken back
    with pytest.raises(ValueError, match=r"query must have at most 4 rows: .* got 5"):
        cache.attend(zeros(2, 5, 8))


def test_an_empty_cache():
    cache = KVCache(Banded((5, 0)), 2, 8)
    with pytest.raises(ValueError, match=r"at most as many rows as the cache has tokens, 0; got 1: append first"):
        cache.attend(zeros(2, 1, 8))
    assert cache.attend(zeros(4, 0, 8)).shape == (4, 0, 8)


def test_the_size_of_a_pattern_is_its_capacity():
    cache = KVCache(Packed([4, 6]) & Causal(), 1, 8)
    assert cache.capacity == 10
    cache.append(zeros(1, 10, 8), zeros(1, 10, 8))
    with pytest.raises(ValueError, match=r"at most capacity = 10 tokens; it has 10 and got 1 more"):
        cache.append(zeros(1, 1, 8), zeros(1, 1, 8))


def test_positions_without_a_row():
    cache = KVCache(Explicit(scipy.sparse.csr_array(np.ones((2, 5)))), 1, 8)
    cache.append(zeros(1, 3, 8), zeros(1, 3, 8))
    with pytest.raises(ValueError, match=r"has rows from position 3 on; got a query at position 2"):
        cache.attend(zeros(1, 1, 8))


def test_more_than_memory_leaves_the_cache_as_it_was(cache, monkeypatch):
    before = cache.nbytes, cache.attend(np.ones((2, 3, 8), np.float32))
    monkeypatch.setattr(checks, "memory_limit", lambda: 500)
    with pytest.raises(MemoryError, match=r"a cache of .* tokens x 2 heads x \(8 \+ 4\) float32 takes"):
        cache.append(zeros(2, 5, 8), zeros(2, 5, 4))
    monkeypatch.undo()
    same_as_before(cache, *before)
