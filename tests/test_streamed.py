"""Attention a range at a time gives what it gives at once: the same bits, or the same up to rounding."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    BFLOAT16,
    CASES,
    FLOAT16,
    assert_matches_oracle,
    assert_same_bits,
    case,
    inputs,
    mask_of,
    result_or_refusal,
    sized_expressions,
)

from subquad import Banded, Causal, Dense, Global, Random, Strided, attention, dilated, longformer, streamed
from subquad.patterns.base import Shape
from subquad.plan.tables import Plan, TiledPhase
from subquad.streamed import budget, call
from subquad.streamed.shares import shares_of
from subquad.streamed.stretches import KeySpans, shared
from subquad.streamed.tables import clipped, in_bits, in_buffer, reached, visited

MB = 1 << 20
LANES = 16


@pytest.fixture
def cut_to(monkeypatch):
    """Makes every range so many rows long, with so many keys at a time."""

    def use(rows, keys, table_bytes=1 << 40):
        monkeypatch.setattr(
            call.budget, "cut", lambda share, sizes, _: budget.Cut(min(len(share), rows), keys, table_bytes)
        )

    return use


def stream(query, key, value, pattern, **options):
    """Output and lse, into buffers full of NaN."""
    shape = (*query.shape[:-1], value.shape[-1])
    out = np.full(shape, np.nan, query.dtype)
    lse = np.full(shape[:-1], np.nan, np.float64 if query.dtype == np.float64 else np.float32)
    return streamed.attention(query, key, value, pattern, out=out, lse=lse, **options)


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [(97, 97), (40, 97), (0, 5), (5, 0), (1, 1)])
@pytest.mark.parametrize("name", CASES)
def test_ranges_whose_keys_fit_have_the_bits_of_the_whole(cut_to, rng, name, n):
    pattern = case(name, *n)
    arrays = inputs(rng, *n, leading=(2,))
    cut_to(48, n[1])
    expected = attention(*arrays, pattern, return_lse=True)
    for found, wanted in zip(stream(*arrays, pattern), expected, strict=True):
        assert_same_bits(found, wanted)


@pytest.mark.parametrize("table_bytes", [1 << 40, 2000])
@pytest.mark.parametrize("name", CASES)
def test_keys_that_pass_by_in_blocks_match_the_oracle(cut_to, rng, name, table_bytes):
    n = 97
    pattern = case(name, n, n)
    arrays = inputs(rng, n, n)
    cut_to(33, 40, table_bytes)
    assert_matches_oracle(*stream(*arrays, pattern), *arrays, pattern)


@settings(max_examples=60)
@given(drawn=sized_expressions(), rows=st.integers(9, 40), keys=st.integers(9, 40), seed=st.integers(0, 9))
def test_any_expression_matches_the_oracle(drawn, rows, keys, seed):
    pattern, n_q, n_k = drawn
    arrays = inputs(np.random.default_rng(seed), n_q, n_k, d=5)
    if isinstance(result_or_refusal(lambda: attention(*arrays, pattern)), str):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call.budget, "cut", lambda share, *_: budget.Cut(min(len(share), rows), keys, 1 << 40))
        out, lse = stream(*arrays, pattern)
    assert_matches_oracle(out, lse, *arrays, pattern)


@pytest.mark.parametrize(
    ("pattern", "rows"),
    [
        (Banded(9), 96),
        (Banded((20, 0), block=16), 96),
        (longformer(7, [0, 1, 2, 700, 1500]), 96),
        (longformer(7, range(0, 1600, 150)), 192),
        (dilated(3, 2), 192),
        (Banded(40) - Banded(4), 96),
    ],
    ids=str,
)
def test_a_plan_that_is_moved_along_is_the_plan_there(cut_to, rng, monkeypatch, pattern, rows):
    arrays = inputs(rng, 1600, 1600, d=8)
    planned = []
    plan = call.shares_of(pattern, Shape.aligned(1600, 1600), 4)[0].__class__.plan
    monkeypatch.setattr("subquad.streamed.shares.Share.plan", lambda *a: planned.append(a[1:]) or plan(*a))
    cut_to(rows, 1600)
    found = stream(*arrays, pattern)
    for got, wanted in zip(found, attention(*arrays, pattern, return_lse=True), strict=True):
        assert_same_bits(got, wanted)
    assert len(planned) < -(-1600 // rows) + 3  # some ranges were not planned at all


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, np.float64])
def test_dtypes(cut_to, rng, dtype):
    arrays = inputs(rng, 100, 130, leading=(2, 4), kv_leading=(2, 2), dtype=dtype)
    pattern = longformer(9, 2)
    cut_to(32, 130)
    out, lse = stream(*arrays, pattern)
    expected = attention(*arrays, pattern, return_lse=True)
    assert_same_bits(out, expected[0])
    assert_same_bits(lse, expected[1])
    assert out.dtype == dtype


def test_a_pattern_for_each_head_and_grouped_queries(cut_to, rng):
    arrays = inputs(rng, 90, 90, leading=(2, 6), kv_leading=(2, 2))
    patterns = [Banded(3), Random(5), Banded(3), Causal(), Banded(3), Random(5)]
    cut_to(32, 90)
    out, lse = stream(*arrays, patterns)
    expected = attention(*arrays, patterns, return_lse=True)
    assert_same_bits(out, expected[0])
    assert_same_bits(lse, expected[1])


def test_a_scale_and_threads_and_no_lse(rng):
    q, k, v = inputs(rng, 64, 64)
    out = streamed.attention(q, k, v, Causal(), out=np.empty_like(q), scale=0.3, num_threads=1)
    assert_same_bits(out, attention(q, k, v, Causal(), scale=0.3))


def test_rows_without_keys_are_zero(cut_to, rng):
    q, k, v = inputs(rng, 50, 20)
    cut_to(16, 8)
    out, lse = stream(q, k, v, Banded(1))
    assert (out[:29] == 0).all()
    assert np.isneginf(lse[:29]).all()
    assert np.isfinite(lse[29:]).all()


def test_a_nan_reaches_the_rows_that_attend_it_alone(cut_to, rng):
    q, k, v = inputs(rng, 200, 200)
    v[100] = np.nan
    cut_to(48, 64)
    out, _ = stream(q, k, v, Banded(5))
    assert np.array_equal(np.isnan(out).any(axis=1), abs(np.arange(200) - 100) <= 5)


def test_wide_rows_that_the_kernel_copies_first(cut_to, rng):
    arrays = inputs(rng, 300, 300, d=520)
    pattern = Banded(9) | Strided(7)
    cut_to(64, 300)
    for found, wanted in zip(stream(*arrays, pattern), attention(*arrays, pattern, return_lse=True), strict=True):
        assert_same_bits(found, wanted)


# --- what is read -----------------------------------------------------------------------------------------------------


class Counted:
    """An array that counts the rows that are read of it."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.rows, self.read = array, array.shape, array.dtype, 0, []

    def __getitem__(self, index):
        self.read.append(index[-1])
        self.rows += len(range(*index[-1].indices(self.shape[-2])))
        return self.array[index]


def streamed_reads(rng, n, pattern, max_bytes):
    q, k, v = (Counted(x) for x in inputs(rng, n, n, d=16))
    expected = attention(q.array, k.array, v.array, pattern)
    q.rows = k.rows = v.rows = 0
    out = streamed.attention(q, k, v, pattern, out=np.empty_like(expected), max_bytes=max_bytes)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    return q, k, v


_SAMPLED = 15 * 8 + 1  # rows that the fingerprint looks at


def test_a_window_reads_each_key_once_and_in_order(rng):
    q, k, v = streamed_reads(rng, 20_000, Banded(100), 12 * MB)
    assert q.rows == k.rows == v.rows == 20_000 + _SAMPLED
    starts = [part.start for part in k.read[16:]]
    assert len(starts) > 1
    assert starts == sorted(starts)


def test_global_rows_take_one_more_pass(rng):
    _, k, _ = streamed_reads(rng, 20_000, longformer(50, [3, 9_000, 19_999]), 24 * MB)
    assert k.rows <= 2 * 20_000 + _SAMPLED + 3 * 16


def test_blocks_are_read_once_for_each_range(rng):
    n, limit = 3_000, 5_500_000
    _, k, _ = streamed_reads(rng, n, Dense(), limit)
    times, rest = divmod(k.rows - _SAMPLED, n)
    assert rest == 0
    assert times > 1


# --- the parts --------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(drawn=sized_expressions(), data=st.data())
def test_the_plan_of_some_rows_and_keys_is_that_part_of_the_mask(drawn, data):
    pattern, n_q, n_k = drawn
    shape = Shape.aligned(n_q, n_k)
    if isinstance(result_or_refusal(lambda: pattern._validate(shape)), str) or 0 in shape:
        return
    low = data.draw(st.integers(0, n_k - 1))
    high = data.draw(st.integers(low + 1, n_k))
    mask, seen = mask_of(pattern, n_q, n_k), np.zeros(n_q, int)
    for share in shares_of(pattern, shape, 4):
        first = data.draw(st.integers(0, len(share) - 1))
        stop = data.draw(st.integers(first + 1, len(share)))
        seen[share.rows(0, len(share))] += 1
        phases = share.plan(first, stop)
        held = reached(phases, data.draw(st.integers(0, 5))).within(low, high)
        slots, local = share.slots(first, stop), Shape.aligned(stop - first, held.total)
        phases = [clipped(phase, low, high, n_k) for phase in phases]
        phases = [visited(phase) if isinstance(phase, TiledPhase) else phase for phase in phases]
        if data.draw(st.booleans()):
            phases = [in_bits(p, LANES, shape.shift) if isinstance(p, TiledPhase) else p for p in phases]
        moved = [in_buffer(phase, slots, held, local.shift, LANES, shape.shift) for phase in phases]
        found = Plan(local, LANES, tuple(moved), 10**6).scatter() if moved else np.zeros((local.n_q, local.n_k), int)
        keys = np.concatenate([np.arange(*span) for span in zip(*held, strict=True)] or [np.arange(0)])
        own = np.isin(slots, share.rows(first, stop))
        assert np.array_equal(found, mask[slots][:, keys] * own[:, None])
        assert mask[share.rows(first, stop), low:high].sum() == found.sum()
    assert (seen == 1).all()


def test_stretches():
    spans = KeySpans.union(np.array([9, 0, 4, 20, 5]), np.array([12, 3, 6, 20, 7]), 1)
    assert [x.tolist() for x in spans] == [[0, 9], [7, 12]]
    assert spans.total == 10
    assert spans.local(np.array([0, 6, 9, 11])).tolist() == [0, 6, 7, 9]
    assert spans.cuts(4) == [(0, 4), (4, 10), (10, 12)]
    assert [x.tolist() for x in spans.within(5, 10)] == [[5, 9], [7, 10]]
    kept, fresh = shared(spans, KeySpans(np.array([2, 10]), np.array([4, 30])))
    assert [x.tolist() for x in kept] == [[2, 10], [4, 12]]
    assert [x.tolist() for x in fresh] == [[0, 4, 9], [2, 7, 10]]


def test_the_import_of_the_library_leaves_it_out():
    code = "import sys, subquad; print(any('streamed' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_other_shares_do_not_hide_a_row():
    shares = shares_of(Global([3, 4, 9]) | Banded(1), Shape.aligned(12, 12), 4)
    assert [share.rows(0, len(share)).tolist() for share in shares] == [[0, 1, 2, 5, 6, 7, 8, 10, 11], [3, 4, 9]]
