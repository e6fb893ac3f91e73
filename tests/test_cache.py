"""The cache against attention over all keys: token by token, in chunks and in one call, after any number of turns."""

from __future__ import annotations

import copy
import pickle
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import (
    BFLOAT16,
    FLOAT32,
    FLOAT64,
    assert_matches_oracle,
    assert_same_bits,
    expressions,
    for_query_heads,
    linux_only,
    mask_of,
    oracle,
    oracle_softmax,
    random_csr,
    score_bound,
    tolerance,
)

from subquad import (
    Banded,
    BlockSparse,
    Causal,
    Columns,
    Explicit,
    Global,
    KVCache,
    LogSparse,
    Neighborhood,
    Packed,
    Random,
    Strided,
    attention,
    dilated,
    longformer,
    reference,
    sparse_transformer_fixed,
    sparse_transformer_strided,
    streaming,
)
from subquad.decode import steps
from subquad.decode.reach import fixed_size
from subquad.decode.steps import Store

N = 120

# Causal patterns: a row sees the same keys whenever it is asked for. Those of one size are made for N tokens.
CASES = {
    "window": Banded((7, 0)),
    "window-blocks": Banded((1, 0), block=6) & Causal(),
    "streaming": streaming(3, 9),
    "longformer": longformer((6, 0), [0, 20, 21, 70]) & Causal(),
    "global-rows": (Banded((4, 0)) | Global([30, 90], columns=False)) & Causal(),
    "dilated": dilated(3, 5) & Causal(),
    "fixed": sparse_transformer_fixed(8, 2),
    "columns": (Columns(7, 2) | Banded((3, 0))) & Causal(),
    "strided": sparse_transformer_strided(9),
    "causal": Causal(),
    "log": LogSparse(),
    "log-window": LogSparse() & Banded(20),
    "holes": (Banded((25, 0)) - Banded((4, 2))) | Global(range(2), rows=False) & Causal(),
    "packed": Packed([50, 0, 13, 57]) & Causal(),
    "packed-window": Packed([50, 13, 57]) & Banded((9, 0)),
    "neighborhood": Neighborhood((12, 10), (3, 10), causal=(True, True)),
    "blocks": BlockSparse(np.tril(np.random.default_rng(0).random((8, 8)) < 0.4), 15) & Causal(),
    "explicit": Explicit(random_csr(N, N, 0.1)) & Causal(),
}
WINDOWED = ["window", "window-blocks", "streaming", "dilated", "log-window", "holes", "packed-window"]


@pytest.fixture(scope="module")
def sequence():
    rng = np.random.default_rng(7)
    shapes = (4, N, 12), (2, N, 12), (2, N, 5)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def decoded(pattern, sequence, chunks, **options):
    """All rows, a chunk at a time: `(out, lse)`."""
    query, key, value = sequence
    cache = KVCache(
        pattern, key.shape[0], key.shape[2], d_v=value.shape[2], dtype=key.dtype.newbyteorder("="), **options
    )
    found, begin = [], 0
    for m in chunks:
        part = slice(begin, begin + m)
        cache.append(key[:, part], value[:, part])
        found.append(cache.attend(query[:, part], return_lse=True))
        begin += m
    assert begin == len(cache) == key.shape[1]
    return tuple(np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunks", [[1] * N, [3] * 40, [16, 1, 1, 2, 40, 5, 30, 25], [N], [N - 1, 1]], ids=str)
def test_rows_are_those_of_one_call(name, chunks, sequence):
    pattern = CASES[name]
    out, lse = decoded(pattern, sequence, chunks)
    expected, expected_lse = reference.attention(*sequence, pattern, return_lse=True)
    atol = tolerance(np.float32, N, 12, score_bound(*sequence[:2]), np.abs(sequence[2]).max())
    np.testing.assert_allclose(out, expected, rtol=0, atol=atol)
    np.testing.assert_allclose(lse, expected_lse, rtol=0, atol=1e-5)
    assert (out.dtype, lse.dtype) == (FLOAT32, FLOAT32)


@pytest.mark.parametrize("name", CASES)
def test_a_row_has_the_same_bits_alone_and_in_a_chunk(name, sequence):
    alone = decoded(CASES[name], sequence, [1] * N)
    for chunks in ([2] * 60, [16] * 7 + [8], [1, 5, 16, 3] * 4 + [16, 4]):
        for single, together in zip(alone, decoded(CASES[name], sequence, chunks), strict=True):
            assert_same_bits(together, single)


@pytest.mark.parametrize("name", CASES)
def test_one_call_has_the_bits_of_attention(name, sequence):
    for ours, theirs in zip(
        decoded(CASES[name], sequence, [N]), attention(*sequence, CASES[name], return_lse=True), strict=True
    ):
        assert_same_bits(ours, theirs)


@pytest.mark.parametrize("name", WINDOWED)
def test_long_chunks_after_many_turns(name, sequence):
    """Rows of a chunk that is many times the window need keys from before it."""
    long = tuple(np.tile(x, (1, 5, 1))[:, :N] for x in sequence)
    out, _ = decoded(CASES[name], long, [37, 41, 42])
    assert_matches_oracle(out, None, *long, CASES[name])


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "pattern",
    [
        streaming(3, 30),
        streaming(150, 30),  # pinned keys on both sides of where the window begins
        (Banded((1, 0), block=8) | Columns(12, 2) | Global([1, 26, 27, 200], rows=False)) & Causal(),
        (Banded((20, 0)) - Strided(3)) | Global(range(2), rows=False) & Causal(),
    ],
    ids=repr,
)
@pytest.mark.parametrize("group", [1, 2])
def test_long_chunks_with_pinned_keys(pattern, group, dtype, rng):
    dtype = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    query, key, value = (rng.standard_normal((h, 400, 6)).astype(dtype) for h in (2 * group, 2, 2))
    out, lse = decoded(pattern, (query, key, value), [20, 90, 17, 1, 71, 101, 100], max_rewind=3)
    assert_matches_oracle(out, lse, query, key, value, pattern)


def test_windows_wrap_around_for_a_long_time():
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((2, 3000, 8)) for _ in range(3))
    pattern = streaming(2, 30)
    cache, expected = KVCache(pattern, 2, 8, dtype="float64"), attention(query, key, value, pattern)
    for t in range(3000):
        part = slice(t, t + 1)
        cache.append(key[:, part], value[:, part])
        np.testing.assert_allclose(cache.attend(query[:, part]), expected[:, part], rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "pattern", [Random(5, 3), Random(2, 1, block=4) & Causal(), Strided(5), Banded((4, 3)), Global([0, 2])]
)
def test_patterns_that_follow_the_size(pattern, sequence):
    """What is neither causal nor told by the position is that of the sequence so far."""
    query, key, value = sequence
    cache = KVCache(pattern, 2, 12, d_v=5)
    for begin in range(0, N, 4):
        stop = begin + 4
        cache.append(key[:, begin:stop], value[:, begin:stop])
        for m in (1, 4):
            out = cache.attend(query[:, stop - m : stop])
            assert_matches_oracle(out, None, query[:, stop - m : stop], key[:, :stop], value[:, :stop], pattern)


# --- any pattern, any course of events --------------------------------------------------------------------------------


def expected_rows(pattern, size, query, key, value):
    """The last rows over all keys, in float64."""
    m, n = query.shape[1], key.shape[1]
    if size is None:
        return oracle(query, key, value, pattern)
    shift = n - m - (size[1] - size[0])
    mask = mask_of(pattern, *size[:2])[shift : shift + m, :n]
    k, v = (for_query_heads(x.astype(np.float64), query) for x in (key, value))
    scores = query.astype(np.float64) @ k.swapaxes(-1, -2) * query.shape[-1] ** -0.5
    weights, lse = oracle_softmax(np.where(mask, scores, -np.inf))
    return weights @ v, lse


def refused(pattern, size, m, n):
    """Whether the pattern has no such rows."""
    if size is not None:
        return n - m < size[1] - size[0]
    try:
        pattern.contains(np.arange(0), np.arange(0), m, n)
    except ValueError:  # a token that is still to come: attention refuses it, a cache waits
        return True
    return False


@given(st.data(), st.integers(1, 60), st.integers(0, 12))
def test_any_course_of_events(data, n, max_rewind):
    pattern = data.draw(expressions(n, n, depth=2))
    size = fixed_size(pattern, n)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    cache = KVCache(pattern, 1, 4, max_rewind=max_rewind, capacity=n)
    key, value = (np.empty((1, 0, 4), np.float32) for _ in range(2))
    longest = 0
    for _ in range(data.draw(st.integers(1, 8))):
        if len(cache) and data.draw(st.booleans()):
            k = data.draw(st.integers(0, min(len(cache), max(0, max_rewind - (longest - len(cache))))))
            cache.rewind(k)
            key, value = (x[:, : x.shape[1] - k] for x in (key, value))
        m = data.draw(st.integers(0, n - len(cache)))
        more = rng.standard_normal((2, 1, m, 4), dtype=np.float32)
        cache.append(*more)
        longest = max(longest, len(cache))
        key, value = (np.concatenate(pair, axis=1) for pair in zip((key, value), more, strict=True))
        if data.draw(st.booleans()):
            cache = cache.fork()
        m = m or min(1, len(cache))
        m = data.draw(st.integers(min(1, m), m))
        query = rng.standard_normal((2, m, 4), dtype=np.float32)
        if not refused(pattern, size, m, len(cache)):
            out, lse = cache.attend(query, return_lse=True)
            expected, expected_lse = expected_rows(pattern, size, query, key, value)
            atol = tolerance(FLOAT32, n, 4, score_bound(query, key), np.abs(value).max(initial=0))
            np.testing.assert_allclose(out, expected, rtol=0, atol=atol)
            np.testing.assert_allclose(lse, expected_lse, rtol=0, atol=1e-5)


@given(st.data(), st.integers(1, 60))
def test_keys_that_no_row_may_see_are_never_read(data, n):
    """Every key and value that the asked rows may not attend is NaN, and so is every slot that holds no token."""
    pattern = data.draw(expressions(n, n, depth=2))
    size = fixed_size(pattern, n)
    m = data.draw(st.integers(1, n))
    if refused(pattern, size, m, n):
        return
    mask = mask_of(pattern, *(size or (m, n))[:2])[-m:]
    rng = np.random.default_rng(0)
    query, (key, value) = rng.standard_normal((1, m, 4)), rng.standard_normal((2, 1, n, 4))
    key[:, ~mask.any(axis=0)] = value[:, ~mask.any(axis=0)] = np.nan
    cache = KVCache(pattern, 1, 4, dtype="float64", capacity=n)
    for x in cache._slots.store[:2]:
        x[...] = np.nan
    for begin in range(0, n - m, 3):
        stop = min(begin + 3, n - m)
        cache.append(key[:, begin:stop], value[:, begin:stop])
    cache.append(key[:, n - m :], value[:, n - m :])
    out = cache.attend(query)
    expected, _ = expected_rows(pattern, size, query, np.nan_to_num(key), np.nan_to_num(value))
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "tokens"),
    [(streaming(4, 60), 4 + 60), (Banded((99, 0)), 100), (dilated(8, 4) & Causal(), 33)],
    ids=repr,
)
def test_memory_of_a_window_is_constant(pattern, tokens):
    cache, held = KVCache(pattern, 2, 16, d_v=8, max_rewind=10), set()
    x, y = np.zeros((2, 1000, 16), np.float32), np.zeros((2, 1000, 8), np.float32)
    for m in [1] * 20 + [5] * 20 + [11, 1, 10]:
        cache.append(x[:, :m], y[:, :m])
        held.add(cache.nbytes)
    for _ in range(50):
        cache.append(x, y, rows=1)
        held.add(cache.nbytes)
    assert held == {(tokens + 10) * 2 * (16 + 8) * 4}


def test_a_chunk_is_held_for_its_rows_and_then_let_go():
    cache = KVCache(streaming(4, 60), 2, 16)
    before, x = cache.nbytes, np.zeros((2, 5000, 16), np.float32)
    cache.append(x, x)
    assert cache.nbytes >= x.nbytes * 2
    cache.append(x[:, :1], x[:, :1])
    assert cache.nbytes == before


def test_a_long_prompt_takes_no_memory_beyond_the_window(sequence):
    x = np.zeros((1, 200_000, 8), np.float32)
    cache = KVCache(streaming(4, 100), 1, 8)
    tracemalloc.start()
    try:
        cache.append(x, x, rows=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_columns_are_all_that_grows():
    cache, sizes = KVCache(sparse_transformer_fixed(50, 1), 1, 8, max_rewind=0), []
    x = np.zeros((1, 1, 8), np.float32)
    for _ in range(4000):
        cache.append(x, x)
        sizes.append(cache.nbytes // x.nbytes // 2)
    assert sizes == sorted(sizes)
    assert 50 + 80 <= sizes[-1] <= 50 + 2 * 80


def test_all_keys_grow_by_doubling():
    cache, sizes = KVCache(Causal(), 1, 8), set()
    x = np.zeros((1, 1, 8), np.float32)
    for _ in range(3000):
        cache.append(x, x)
        sizes.add(cache.nbytes // x.nbytes // 2)
    assert sorted(sizes) == [64, 128, 256, 512, 1024, 2048, 4096]


# --- rewind, fork and copies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_speculation(name, sequence):
    """Drafts that are taken back leave no trace, not even in the bits."""
    query, key, value = sequence
    pattern, rng = CASES[name], np.random.default_rng(1)
    cache = KVCache(pattern, 2, 12, d_v=5, max_rewind=6)
    found = []
    for t in range(N):
        draft = min(rng.integers(0, 7), N - t)
        if draft:
            cache.append(np.full((2, draft, 12), np.nan, np.float32), np.full((2, draft, 5), np.nan, np.float32))
            cache.attend(query[:, :draft])
            cache.rewind(draft)
        cache.append(key[:, t : t + 1], value[:, t : t + 1])
        found.append(cache.attend(query[:, t : t + 1]))
    assert_same_bits(np.concatenate(found, axis=1), decoded(pattern, sequence, [1] * N)[0])


def test_rewind_to_nothing_and_start_again(sequence):
    query, key, value = sequence
    cache = KVCache(streaming(3, 9), 2, 12, d_v=5)
    cache.append(value.repeat(3, axis=2)[:, :, :12], value)
    cache.append(key[:, :1], value[:, :1])
    cache.rewind(len(cache))
    assert len(cache) == 0
    for t in range(N):
        cache.append(key[:, t : t + 1], value[:, t : t + 1])
    expected = attention(query, key, value, streaming(3, 9))[:, -1:]
    np.testing.assert_allclose(cache.attend(query[:, -1:]), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("copied", [KVCache.fork, copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_are_independent(copied, sequence):
    query, key, value = sequence
    pattern = sparse_transformer_fixed(8, 2)
    cache = KVCache(pattern, 2, 12, d_v=5)
    cache.append(key[:, :60], value[:, :60])
    twin = copied(cache)
    cache.append(key[:, 60:], value[:, 60:])
    junk = np.full((2, 60, 12), np.nan, np.float32)
    twin.append(junk, junk[..., :5])
    twin.rewind(60)
    del junk
    twin.append(key[:, 60:61], value[:, 60:61])
    expected = attention(query, key, value, pattern)
    np.testing.assert_allclose(cache.attend(query[:, -1:]), expected[:, -1:], rtol=0, atol=1e-6)
    np.testing.assert_allclose(twin.attend(query[:, 60:61]), expected[:, 60:61], rtol=0, atol=1e-6)
    assert (len(cache), len(twin)) == (N, 61)


# --- arrays of every kind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize(("d", "d_v"), [(1, 1), (8, 20), (20, 7), (64, 64), (128, 130), (150, 257)])
def test_dtypes_and_widths(dtype, group, d, d_v, rng):
    dtype = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    pattern = streaming(2, 13)
    query = rng.standard_normal((2 * group, 60, d)).astype(dtype)
    key, value = (rng.standard_normal((2, 60, width)).astype(dtype) for width in (d, d_v))
    out, lse = decoded(pattern, (query, key, value), [1] * 20 + [7] * 5 + [5])
    assert_matches_oracle(out, lse, query, key, value, pattern)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_that_the_processor_cannot_widen(dtype, monkeypatch, rng):
    dtype = BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)
    query, key, value = (rng.standard_normal((h, 60, 20)).astype(dtype) for h in (4, 2, 2))
    expected = decoded(streaming(2, 13), (query, key, value), [1] * 60)
    monkeypatch.setattr(steps, "widens", lambda name: False)
    for ours, theirs in zip(decoded(streaming(2, 13), (query, key, value), [1] * 60), expected, strict=True):
        assert_same_bits(ours, theirs)


@pytest.mark.skipif(**linux_only)
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize(("d", "d_v", "group"), [(5, 3, 1), (24, 40, 2), (128, 129, 1), (64, 64, 3)])
def test_nothing_beside_the_slots_is_touched(d, d_v, group, before, guarded, rng):
    pattern = streaming(2, 11)
    query, key, value = (rng.standard_normal((h, 50, w)) for h, w in ((2 * group, d), (2, d), (2, d_v)))
    cache = KVCache(pattern, 2, d, d_v=d_v, dtype="float64")
    cache._slots.store = Store.of(*(guarded(x, before) for x in cache._slots.store[:2]))
    for t in range(50):
        cache.append(key[:, t : t + 1], value[:, t : t + 1])
        out = cache.attend(guarded(query[:, t : t + 1], before))
    assert_matches_oracle(out, None, query[:, -1:], key, value, pattern)


def test_half_precision_takes_half_the_memory():
    sizes = {dtype: KVCache(Banded((99, 0)), 2, 16, dtype=dtype).nbytes for dtype in ("float32", "float16", "bfloat16")}
    assert sizes["float32"] == 2 * sizes["float16"] == 2 * sizes["bfloat16"]


def test_any_strides_and_byte_order(sequence):
    pattern = streaming(3, 9)
    apart = [np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1) for x in sequence]
    backwards = [np.ascontiguousarray(x[:, ::-1])[:, ::-1] for x in sequence]
    swapped = [x.astype(x.dtype.newbyteorder()) for x in sequence]
    columns = [np.asfortranarray(x) for x in sequence]
    frozen = [x.copy() for x in sequence]
    for x in frozen:
        x.flags.writeable = False
    expected, _ = decoded(pattern, sequence, [4] * 30)
    for other in (apart, backwards, swapped, columns, frozen):
        assert_same_bits(decoded(pattern, other, [4] * 30)[0], expected)
    cache = KVCache(pattern, 2, 12, d_v=5)
    for t in range(0, N, 4):
        cache.append(frozen[1][:, t : t + 4], frozen[2][:, t : t + 4])
    assert_same_bits(cache.attend(frozen[0][:, -4:]), expected[:, -4:])


def test_what_is_appended_is_copied(sequence):
    query, key, value = sequence
    cache = KVCache(Causal(), 2, 12, d_v=5)
    mine = key.copy()
    cache.append(mine, value)
    mine[...] = np.nan
    assert_same_bits(cache.attend(query), attention(query, key, value, Causal()))


@pytest.mark.parametrize("m", [1, 5, 40])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_threads_do_not_change_a_bit(m, dtype, rng):
    cache = KVCache(streaming(4, 700), 4, 64, dtype=dtype)
    x = rng.standard_normal((4, 2000, 64)).astype(dtype)
    query = rng.standard_normal((8, m, 64)).astype(dtype)
    cache.append(x[:, :1500], x[:, :1500])
    cache.append(x[:, 1500:], x[:, 1500:])
    one = cache.attend(query, num_threads=1)
    for threads in (2, 5):
        assert_same_bits(cache.attend(query, num_threads=threads), one)
    with_lse, _ = cache.attend(query, return_lse=True)
    assert_same_bits(with_lse, one)


def test_several_threads_attend_at_once(rng):
    cache = KVCache(streaming(4, 300), 4, 32)
    x = rng.standard_normal((4, 1000, 32), dtype=np.float32)
    cache.append(x, x, rows=1)
    queries = rng.standard_normal((8, 4, 1, 32), dtype=np.float32)
    expected = [cache.attend(q) for q in queries]
    wrong = []

    def attend(k):
        for _ in range(50):
            if not np.array_equal(cache.attend(queries[k]), expected[k]):
                wrong.append(k)

    threads = [threading.Thread(target=attend, args=(k,)) for k in range(len(queries))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_scale_and_empty_rows(sequence):
    query, key, value = sequence
    pattern = Banded((9, 0)) - Banded(4)
    cache = KVCache(pattern, 2, 12, d_v=5)
    cache.append(key[:, :3], value[:, :3])
    out, lse = cache.attend(query[:, :3], return_lse=True)
    assert not out.any()
    assert (lse == -np.inf).all()
    cache.append(key[:, 3:20], value[:, 3:20])
    out = cache.attend(query[:, 19:20], scale=0.0)
    np.testing.assert_allclose(out, value[:, 10:15].mean(axis=1, keepdims=True).repeat(2, axis=0), rtol=0, atol=1e-6)
    assert cache.attend(query[:, :0]).shape == (4, 0, 5)


def test_what_it_says_of_itself():
    cache = KVCache(Banded((7, 0)), 3, 8, d_v=4, dtype=np.float64, max_rewind=5, capacity=1000)
    x = np.zeros((3, 20, 8))
    cache.append(x, x[..., :4], rows=1)
    assert (cache.heads, cache.d, cache.d_v, cache.dtype, cache.max_rewind, cache.capacity) == (
        3,
        8,
        4,
        FLOAT64,
        5,
        1000,
    )
    assert cache.pattern == Banded((7, 0))
    assert cache.nbytes == 13 * 3 * 12 * 8
    assert repr(cache) == "KVCache(Banded((7, 0)), 3, 8, d_v=4, dtype='float64') of 20 tokens in 13 slots, 3.7 KB"
