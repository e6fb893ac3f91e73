"""Patterns against 0/1 matrices written by hand, and against themselves."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from support import CASES, case, mask_of, result_or_refusal, sized_expressions

import subquad
from subquad import (
    Banded,
    BlockSparse,
    Causal,
    Columns,
    Dense,
    Explicit,
    Global,
    LogSparse,
    Neighborhood,
    Packed,
    Random,
    Strided,
    bigbird,
    dilated,
    longformer,
    sparse_transformer_fixed,
    sparse_transformer_strided,
    streaming,
)


def matrix(text):
    """`"110 011"` as [[1, 1, 0], [0, 1, 1]]."""
    return np.array([[int(digit) for digit in row] for row in text.split()], dtype=bool)


# Square; wide (the first query stands at position n_k - n_q); tall (the first positions are negative).
LITERAL = {
    "dense-square": (Dense(), "111 111 111"),
    "dense-wide": (Dense(), "1111 1111"),
    "dense-tall": (Dense(), "11 11 11"),
    "causal-square": (Causal(), "1000 1100 1110 1111"),
    "causal-wide": (Causal(), "11110 11111"),
    "causal-tall": (Causal(), "000 000 100 110 111"),
    "banded-square": (Banded(1), "11000 11100 01110 00111 00011"),
    "banded-wide": (Banded(1), "00111 00011"),
    "banded-tall": (Banded(1), "000 100 110 111 011"),
    "banded-0": (Banded(0), "100 010 001"),
    "banded-wider-than-n": (Banded(9), "111 111 111"),
    "banded-left-square": (Banded((2, 0)), "10000 11000 11100 01110 00111"),
    "banded-left-wide": (Banded((2, 0)), "01110 00111"),
    "banded-left-tall": (Banded((2, 0)), "000 000 100 110 111"),
    "banded-right-square": (Banded((0, 1)), "1100 0110 0011 0001"),
    "banded-right-wide": (Banded((0, 1)), "0011 0001"),
    "banded-right-tall": (Banded((0, 1)), "00 10 11 01"),
    "banded-no-left-square": (Banded((None, 1)), "1100 1110 1111 1111"),
    "banded-no-left-tall": (Banded((None, 1)), "00 10 11 11"),
    "banded-no-right-square": (Banded((1, None)), "1111 1111 0111 0011"),
    "banded-no-right-wide": (Banded((1, None)), "0111 0011"),
    "banded-no-right-tall": (Banded((1, None)), "11 11 11 11"),
    "banded-unbounded": (Banded((None, None)), "111 111"),
    "strided-square": (Strided(3), "100100 010010 001001 100100 010010 001001"),
    "strided-wide": (Strided(3), "10010 01001"),
    "strided-tall": (Strided(2), "101 010 101 010 101"),
    "strided-1": (Strided(1), "11 11"),
    "global-square": (Global([0, 2]), "1111 1010 1111 1010"),
    "global-wide": (Global([0, 2]), "1111 1010"),
    "global-tall": (Global([0]), "10 10 11 10"),
    "global-rows": (Global([0, 2], columns=False), "1111 0000 1111 0000"),
    "global-rows-wide": (Global([0, 2], columns=False), "1111 0000"),
    "global-columns": (Global([0, 2], rows=False), "1010 1010 1010 1010"),
    "global-columns-tall": (Global([1], rows=False), "01 01 01"),
    "blocks-square": (BlockSparse(matrix("10 11"), 2), "1100 1100 1111 1111"),
    "blocks-ragged": (BlockSparse(matrix("10 11"), 2), "110 110 111"),
    "blocks-wide": (BlockSparse(matrix("101"), 2), "11001 11001"),
    "blocks-tall": (BlockSparse(matrix("10 01 00"), 2), "110 110 001 001 000"),
    "union": (Banded(0) | Strided(3), "1001 0100 0010 1001"),
    "intersection": (Causal() & Strided(2), "1000 0100 1010 0101"),
    "difference": (Causal() - Banded(1), "0000 0000 1000 1100"),
    "intersection-tall": (Causal() & Banded((None, 0)), "000 000 100 110 111"),
    "longformer-square": (longformer(1, 1), "11111 11100 11110 10111 10011"),
    "longformer-wide": (longformer(1, 1), "10111 10011"),
    "longformer-tall": (longformer(1, 1), "100 100 111 111 111"),
    "longformer-tokens": (longformer(1, [2]), "11100 11100 11111 00111 00111"),
    "streaming-square": (streaming(1, 2), "10000 11000 11100 10110 10011"),
    "streaming-wide": (streaming(1, 2), "10110 10011"),
    "streaming-tall": (streaming(1, 2), "000 000 100 110 111"),
    "dilated-square": (dilated(1, 2), "10100 01010 10101 01010 00101"),
    "dilated-wide": (dilated(1, 2), "01010 00101"),
    "dilated-tall": (dilated(1, 2), "100 010 101 010 101"),
    "columns-square": (Columns(3, 1), "00100 00100 00100 00100 00100"),
    "columns-wide": (Columns(3, 2), "01101 01101"),
    "columns-tall": (Columns(2, 1), "01 01 01"),
    "columns-all": (Columns(2, 2), "111 111"),
    "log-square": (LogSparse(), "100000 110000 111000 011100 101110 010111"),
    "log-wide": (LogSparse(), "101110 010111"),
    "log-tall": (LogSparse(), "000 000 100 110 111"),
    "explicit-square": (Explicit(scipy.sparse.csr_array(matrix("010 000 101"))), "010 000 101"),
    "explicit-wide": (Explicit(scipy.sparse.csr_array(matrix("01001 10100"))), "01001 10100"),
    "explicit-tall": (Explicit(scipy.sparse.csr_array(matrix("01 10 00"))), "01 10 00"),
    "explicit-zeros": (
        Explicit(scipy.sparse.csr_array(([0, 0], [1, 0], [0, 1, 2]), shape=(2, 2))),
        "01 10",  # entries are what is stored, not what is non-zero
    ),
    "packed": (Packed([2, 3, 1]), "110000 110000 001110 001110 001110 000001"),
    "packed-empty": (Packed([0, 2, 0, 0, 1, 0]), "110 110 001"),
    "packed-causal": (Packed([2, 3]) & Causal(), "10000 11000 00100 00110 00111"),
    "packed-window": (Packed([2, 4]) & Banded((1, 0)), "100000 110000 001000 001100 000110 000011"),
    "neighborhood-3": (Neighborhood(6, 3), "111000 111000 011100 001110 000111 000111"),
    "neighborhood-4": (Neighborhood(6, 4), "111100 111100 111100 011110 001111 001111"),
    "neighborhood-dilated": (Neighborhood(7, 3, 2), "1010100 0101010 1010100 0101010 0010101 0101010 0010101"),
    "neighborhood-causal": (Neighborhood(5, 3, causal=True), "10000 11000 11100 01110 00111"),
    "neighborhood-2d": (Neighborhood((2, 3), (1, 2)), "110000 110000 011000 000110 000110 000011"),
    "neighborhood-2d-causal": (
        Neighborhood((3, 2), 2, causal=(True, False)),
        "110000 110000 111100 111100 001111 001111",
    ),
    "neighborhood-3d": (
        Neighborhood((2, 2, 2), (1, 2, 1)),
        "10100000 01010000 10100000 01010000 00001010 00000101 00001010 00000101",
    ),
    "strided-preset-square": (sparse_transformer_strided(2), "100000 110000 111000 011100 101110 010111"),
    "strided-preset-wide": (sparse_transformer_strided(2), "101110 010111"),
    "fixed-square": (sparse_transformer_fixed(3, 1), "100000 110000 111000 001100 001110 001111"),
    "fixed-wide": (sparse_transformer_fixed(2, 1), "010110 010111"),
    "fixed-tall": (sparse_transformer_fixed(2, 1), "000 100 110 011"),
    "transposed-causal": (Causal().transpose(), "111 011 001"),
    "transposed-columns": (Columns(3, 1).transpose(), "0000 0000 1111 0000"),
    "transposed-blocks-wide": (Banded(0, block=2).transpose(), "0110 0110 0001"),
}


@pytest.mark.parametrize("name", LITERAL)
def test_pattern_is_the_matrix_written_by_hand(name):
    pattern, text = LITERAL[name]
    expected = matrix(text)
    np.testing.assert_array_equal(mask_of(pattern, *expected.shape), expected)
    np.testing.assert_array_equal(pattern.to_csr(*expected.shape).toarray() != 0, expected)


@pytest.mark.parametrize(("n_q", "n_k"), [(12, 12), (5, 12), (14, 11)])
def test_bigbird_is_window_blocks_global_blocks_and_random_blocks(n_q, n_k):
    i, j = np.arange(n_q)[:, None], np.arange(n_k)
    p = i + n_k - n_q
    window = abs(p // 2 - j // 2) <= 1
    tokens = (p >= 0) & (p < 4) | (j < 4)
    expected = window | tokens | mask_of(Random(1, 9, block=2), n_q, n_k)
    pattern = bigbird(2, window_blocks=3, random_blocks=1, global_blocks=2, seed=9)
    np.testing.assert_array_equal(mask_of(pattern, n_q, n_k), expected)


def test_bigbird_defaults():
    assert bigbird(4) == bigbird(4, window_blocks=3, random_blocks=3, global_blocks=2, seed=0)


@given(sized_expressions())
def test_every_view_of_a_pattern_tells_the_same(drawn):
    pattern, n_q, n_k = drawn
    mask = mask_of(pattern, n_q, n_k)
    rows = [pattern.row(i, n_q, n_k) for i in range(n_q)]
    for i, keys in enumerate(rows):
        np.testing.assert_array_equal(keys, np.flatnonzero(mask[i]))
    assert pattern.nnz(n_q, n_k) == mask.sum()
    assert isinstance(pattern.nnz(n_q, n_k), int)
    assert pattern.density(n_q, n_k) == pytest.approx(mask.mean() if mask.size else 0.0)
    csr = pattern.to_csr(n_q, n_k)
    assert isinstance(csr, scipy.sparse.csr_array)
    assert csr.nnz == mask.sum()
    np.testing.assert_array_equal(csr.toarray() != 0, mask)
    if mask.any():
        np.testing.assert_array_equal(csr.indices, np.concatenate(rows))


@given(sized_expressions(largest=30), st.data())
def test_contains_takes_scalars_and_arrays(drawn, data):
    pattern, n_q, n_k = drawn
    if not n_q or not n_k:
        return
    mask = mask_of(pattern, n_q, n_k)
    i, j = data.draw(st.integers(0, n_q - 1)), data.draw(st.integers(0, n_k - 1))
    assert bool(pattern.contains(i, j, n_q, n_k)) == mask[i, j]
    np.testing.assert_array_equal(pattern.contains(np.arange(n_q), j, n_q, n_k), mask[:, j])
    np.testing.assert_array_equal(pattern.contains(i, np.arange(n_k), n_q, n_k), mask[i])


@given(sized_expressions(largest=20, depth=1), st.data())
def test_algebra_is_that_of_sets(drawn, data):
    left, n_q, n_k = drawn
    right = data.draw(st.sampled_from([Banded(3), Strided(4), Random(2, 1), Global([]), Causal()]))
    a, b = mask_of(left, n_q, n_k), mask_of(right, n_q, n_k)
    np.testing.assert_array_equal(mask_of(left | right, n_q, n_k), a | b)
    np.testing.assert_array_equal(mask_of(left & right, n_q, n_k), a & b)
    np.testing.assert_array_equal(mask_of(left - right, n_q, n_k), a & ~b)


def test_nnz_of_large_sizes_is_exact():
    n = 10**6
    assert Dense().nnz(n, n) == n * n
    assert Causal().nnz(n, n) == n * (n + 1) // 2
    assert Banded(128).nnz(n, n) == n * 257 - 128 * 129
    assert Banded((3, 0)).nnz(1, n) == 4
    assert Strided(1000).nnz(n, n) == n * 1000
    assert Global([0, 7]).nnz(n, n) == 4 * n - 4
    assert Random(64, 0).nnz(n, n) == 64 * n
    assert Columns(1000, 3).nnz(n, n) == n * 3000
    assert LogSparse().nnz(n, n) == n + sum(n - 2**k for k in range(20))
    assert Packed([1000] * 1000).nnz(n, n) == 1000 * n
    assert Neighborhood((100, 100, 100), 5, 3).nnz(n, n) == 125 * n
    assert Neighborhood((1000, 1000), 7, causal=True).nnz(n, n) == (7 * 1000 - 21) ** 2
    assert Columns(1000, 3).transpose().nnz(n, n) == n * 3000


ORDERS = {
    "dense": (Dense(), "O(n²)"),
    "causal": (Causal(), "O(n²)"),
    "banded": (Banded(4), "O(n)"),
    "banded-sides": (Banded((4, 0)), "O(n)"),
    "banded-no-left": (Banded((None, 0)), "O(n²)"),
    "banded-no-right": (Banded((0, None)), "O(n²)"),
    "strided": (Strided(8), "O(n²)"),
    "global": (Global([0, 1]), "O(n)"),
    "random": (Random(3, 0), "O(n)"),
    "union-of-linear": (Banded(4) | Random(3, 0), "O(n)"),
    "union-with-square": (Banded(4) | Strided(8), "O(n²)"),
    "intersection": (Causal() & Banded(4), "O(n)"),
    "intersection-of-squares": (Causal() & Strided(8), "O(n²)"),
    "longformer": (longformer(8, 2), "O(n)"),
    "bigbird": (bigbird(8), "O(n)"),
    "streaming": (streaming(4, 16), "O(n)"),
    "dilated": (dilated(4, 2), "O(n)"),
    "columns": (Columns(8, 1), "O(n²)"),
    "log-sparse": (LogSparse(), "O(n log n)"),
    "log-sparse-window": (LogSparse() | Banded(4), "O(n log n)"),
    "explicit": (Explicit(scipy.sparse.csr_array(np.eye(3))), "O(n²)"),
    "packed": (Packed([3, 4]), "O(n)"),
    "packed-causal": (Packed([3, 4]) & Causal(), "O(n)"),
    "neighborhood": (Neighborhood((4, 4), 3), "O(n)"),
    "transposed": (LogSparse().transpose(), "O(n log n)"),
}


@pytest.mark.parametrize("name", ORDERS)
def test_order(name):
    pattern, expected = ORDERS[name]
    assert str(pattern.order) == expected


@pytest.mark.parametrize("name", CASES)
def test_a_pattern_is_a_value(name):
    pattern, again = case(name, 64, 64), case(name, 64, 64)
    assert pattern == again
    assert hash(pattern) == hash(again)
    assert pickle.loads(pickle.dumps(pattern)) == copy.deepcopy(pattern) == pattern
    assert len({pattern, again}) == 1
    assert pattern != Banded(12345)
    with pytest.raises((AttributeError, TypeError)):
        pattern.window = 3
    with pytest.raises(TypeError):
        bool(pattern)
    if "<" not in repr(pattern):  # a layout is too large to write
        assert eval(repr(pattern), vars(subquad)) == pattern


def test_no_pattern_is_dropped_by_or():
    with pytest.raises(TypeError, match=r"\|"):
        Banded(3) or Global([0])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Banded(1), Banded(2)),
        (Banded((1, 0)), Banded((0, 1))),
        (Strided(2), Strided(3)),
        (Global([0]), Global([0], rows=False)),
        (Random(2, 0), Random(2, 1)),
        (Random(2, 0), Random(2, 0, block=2)),
        (BlockSparse(matrix("10 01"), 2), BlockSparse(matrix("11 01"), 2)),
        (Banded(1) | Strided(2), Banded(1) & Strided(2)),
        (Causal() - Banded(1), Banded(1) - Causal()),
    ],
)
def test_different_patterns_are_not_equal(one, other):
    assert one != other


@pytest.mark.parametrize("name", ["window", "sides", "stride", "dilation", "random"])
def test_parameters_far_larger_than_the_sequence(name):
    """No sum of a position and a parameter overflows, and nothing is allocated for a parameter's size."""
    huge = 2**62
    pattern, expected = {
        "window": (Banded(huge), "1111 1111 1111"),
        "sides": (Banded((huge, 0)), "1100 1110 1111"),
        "stride": (Strided(huge), "0100 0010 0001"),
        "dilation": (dilated(huge, huge), "0100 0010 0001"),
        "random": (Random(huge, 1), "1111 1111 1111"),
    }[name]
    np.testing.assert_array_equal(mask_of(pattern, 3, 4), matrix(expected))
    np.testing.assert_array_equal(pattern.plan(3, 4).scatter(), matrix(expected))
    assert pattern.nnz(3, 4) == matrix(expected).sum()


PAST_64_BITS = {
    "window": lambda: Banded(2**100),
    "stride": lambda: Strided(2**100),
    "keys": lambda: Random(2**100, 0),
    "seed": lambda: Random(2, 2**100),
    "block": lambda: Random(1, 0, block=2**100),
    "tokens": lambda: Global(range(2**100), rows=False),
    "dilation": lambda: dilated(1, 2**100),
    "global_blocks": lambda: bigbird(2**62),
}


@pytest.mark.parametrize("name", PAST_64_BITS)
def test_parameters_past_64_bits_work_or_are_refused_by_name(name):
    scattered, refusal = result_or_refusal(lambda: PAST_64_BITS[name]().plan(3, 4).scatter())
    if refusal is None:
        np.testing.assert_array_equal(scattered, mask_of(PAST_64_BITS[name](), 3, 4))
    else:
        assert name in refusal


def test_seeds_that_differ_draw_different_keys():
    seeds = [0, 1, -1, 2**31, 2**32, 2**63 - 1, -(2**63)]
    rows = {tuple(Random(20, seed).row(3, 10, 1000)) for seed in seeds}
    assert len(rows) == len(seeds)


@pytest.mark.parametrize("form", [list, set, iter, np.array])
def test_global_takes_any_iterable(form):
    assert Global(form((0, 3))) == Global(range(0, 6, 3)) == Global((0, 3))


def test_numpy_integers_are_integers():
    four = np.int64(4)
    assert Banded(four) == Banded(4)
    assert Banded((four, np.int32(0))) == Banded((4, 0))
    assert Strided(four) == Strided(4)
    assert Random(four, four, block=four) == Random(4, 4, block=4)
    assert repr(Banded(four)) == repr(Banded(4))


@pytest.mark.parametrize("form", [scipy.sparse.csr_array, scipy.sparse.csr_matrix, scipy.sparse.bsr_array])
def test_block_layout_from_scipy(form, rng):
    layout = rng.random((6, 8)) < 0.3
    pattern = BlockSparse(form(layout), 4)
    np.testing.assert_array_equal(mask_of(pattern, 24, 32), np.kron(layout, np.ones((4, 4), dtype=bool)))


def test_block_layout_is_copied(rng):
    layout = rng.random((4, 4)) < 0.5
    pattern = BlockSparse(layout, 2)
    before, key = mask_of(pattern, 8, 8), hash(pattern)
    layout[...] = ~layout
    np.testing.assert_array_equal(mask_of(pattern, 8, 8), before)
    assert hash(pattern) == key


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("n_q", "n_k"), [(40, 40), (7, 40), (40, 33)])
def test_explain_accounts_for_every_key_of_the_row(name, n_q, n_k):
    pattern = case(name, n_q, n_k)
    for i in (0, n_q // 2, n_q - 1):
        explained = pattern.explain(i, n_q, n_k)
        assert len(explained) == len(pattern.row(i, n_q, n_k))
        assert list(itertools.islice(explained, n_k + 1)) == pattern.row(i, n_q, n_k).tolist()
        for key in pattern.row(i, n_q, n_k):
            assert explained[key]
            assert all(part.contains(i, key, n_q, n_k) for part in explained[key])


def test_explain_names_the_parts():
    window, tokens = Banded(1), Global([0, 7], rows=False)
    explained = ((window | tokens) - Strided(5)).explain(1, 8, 8)
    assert {key: set(explained[key]) for key in explained.parts} == {0: {window, tokens}, 2: {window}, 7: {tokens}}
    for part in ("Banded(1)", "Global", "rows=False"):
        assert part in str(explained)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (streaming(4, 8), "100 110 111"),
        (longformer(0, 16), "111 111 111"),
        (bigbird(4), "111 111 111"),
        (Global(range(2, 16), rows=False), "001 001 001"),
    ],
    ids=["streaming", "longformer", "bigbird", "range"],
)
def test_the_first_tokens_of_a_short_sequence_are_all_of_it(pattern, expected):
    """Decoding starts with one key: counts and ranges are cut at the end, where a token named by itself is refused."""
    np.testing.assert_array_equal(mask_of(pattern, 3, 3), matrix(expected))
    assert pattern.nnz(3, 3) == matrix(expected).sum()
    np.testing.assert_array_equal(pattern.plan(1, 1).scatter(), mask_of(pattern, 1, 1))


class TestRandom:
    @given(
        keys=st.integers(1, 8),
        seed=st.integers(0, 2**32 - 1),
        block=st.integers(1, 9),
        n_q=st.integers(1, 40),
        n_k=st.integers(0, 60),
    )
    def test_each_query_block_sees_distinct_key_blocks(self, keys, seed, block, n_q, n_k):
        mask = mask_of(Random(keys, seed, block=block), n_q, n_k)
        n_key_blocks = -(-n_k // block)
        for start in range(0, n_q, block):
            rows = mask[start : start + block]
            assert (rows == rows[0]).all()
            blocks, sizes = np.unique(np.flatnonzero(rows[0]) // block, return_counts=True)
            assert len(blocks) == min(keys, n_key_blocks)
            np.testing.assert_array_equal(sizes, np.minimum(block, n_k - blocks * block))

    @pytest.mark.parametrize("block", [1, 4])
    def test_a_row_does_not_depend_on_the_number_of_queries(self, block):
        pattern = Random(5, 11, block=block)
        np.testing.assert_array_equal(mask_of(pattern, 13, 90), mask_of(pattern, 200, 90)[:13])

    def test_keys_are_drawn_uniformly(self):
        n_q, n_k, keys = 4000, 50, 5
        counts = mask_of(Random(keys, 1), n_q, n_k).sum(axis=0)
        expected = n_q * keys / n_k
        # Drawing without replacement makes the counts of the columns a little less spread than chi-square has them.
        statistic = ((counts - expected) ** 2).sum() / expected * (n_k - 1) / (n_k - keys)
        assert 1e-4 < scipy.stats.chi2.sf(statistic, n_k - 1) < 1 - 1e-4

    @pytest.mark.parametrize(("row_step", "seed_step"), [(1, 0), (0, 1), (1, 1), (1, -1), (64, 0)])
    def test_rows_and_seeds_are_independent(self, row_step, seed_step):
        n_q, n_k, keys = 4000, 50, 5
        one = mask_of(Random(keys, 100), n_q, n_k)[: n_q - row_step]
        other = mask_of(Random(keys, 100 + seed_step), n_q, n_k)[row_step:]
        shared = (one & other).sum(axis=1)
        mean = keys**2 / n_k
        deviation = np.sqrt(mean * (1 - keys / n_k) * (n_k - keys) / (n_k - 1) / len(shared))
        assert abs(shared.mean() - mean) < 4 * deviation

    @pytest.mark.parametrize("hash_seed", ["1", "2"])
    def test_another_process_draws_the_same(self, hash_seed):
        code = "from subquad import Random; print(Random(6, 7, block=2).row(5, 10, 1000).tolist())"
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        printed = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
        assert printed.strip() == str(Random(6, 7, block=2).row(5, 10, 1000).tolist())
