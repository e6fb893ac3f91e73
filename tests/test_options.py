"""Options of attention, alone and in pairs, forward and backward, against their definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from support import assert_same_bits, inputs
from support_options import OPTIONS, PATTERNS, bend, is_kept, leave_out, oracle

from subquad import (
    Banded,
    Causal,
    Dense,
    Global,
    LogSparse,
    Packed,
    Random,
    Strided,
    attention,
    attention_backward,
    reference,
)
from subquad.draws import kept

N = 40
PAIRS = [
    *((name,) for name in OPTIONS),
    *itertools.combinations(OPTIONS, 2),
    tuple(OPTIONS),
]


def arrays(rng, dtype=np.float64, n=N, d=5, d_v=3):
    return inputs(rng, n, n, d, d_v, leading=(2, 3), dtype=dtype)


def joined(names):
    return {keyword: x for name in names for keyword, x in OPTIONS[name].items()}


def along(function, x, direction):
    """The derivative of a sum of arrays in one direction, a difference of fourth order."""
    h = 1e-3
    steps = [function(x + n * h * direction) for n in (-2, -1, 1, 2)]
    return (steps[0] - 8 * steps[1] + 8 * steps[2] - steps[3]) / (12 * h)


@pytest.mark.parametrize("names", PAIRS, ids=" and ".join)
def test_alone_and_in_pairs(rng, names):
    """Output and lse of both precisions and of the library's own oracle, for a pattern that takes turns."""
    pattern = list(PATTERNS.values())[PAIRS.index(names) % len(PATTERNS)]
    options, given = joined(names), arrays(rng)
    expected = oracle(*given, pattern, **options)
    for attend, tolerance in ((attention, 1e-13), (reference.attention, 1e-13)):
        found = attend(*given, pattern, return_lse=True, **options)
        for x, y in zip(found, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * 100)
    narrow = attention(*(x.astype(np.float32) for x in given), pattern, return_lse=True, **options)
    for x, y in zip(narrow, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=2e-5)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_on_every_way_of_reaching_memory(rng, name, pattern):
    given = arrays(rng)
    expected = oracle(*given, pattern, **OPTIONS[name])
    for x, y in zip(attention(*given, pattern, return_lse=True, **OPTIONS[name]), expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-11)


@pytest.mark.parametrize("names", [*((name,) for name in OPTIONS), tuple(OPTIONS)], ids=" and ".join)
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_gradients(rng, names, pattern):
    """Along a random direction of each input, against differences of the oracle of the library, tested above."""
    options, given = joined(names), arrays(rng, n=24)
    options = {name: np.minimum(x, 24) if name == "key_lengths" else x for name, x in options.items()}
    out, lse = attention(*given, pattern, return_lse=True, **options)
    g, g_lse = rng.standard_normal(out.shape), np.where(np.isneginf(lse), 0, rng.standard_normal(lse.shape))
    grads = attention_backward(g, *given, out, lse, pattern, grad_lse=g_lse, **options)
    sinks = options.get("sinks")
    assert len(grads) == (3 if sinks is None else 4)
    theirs = reference.attention_backward(g, *given, out, lse, pattern, grad_lse=g_lse, **options)

    def total(new, at):
        arguments, keywords = list(given), dict(options)
        if at == 3:
            keywords["sinks"] = new
        else:
            arguments[at] = new
        x, y = reference.attention(*arguments, pattern, return_lse=True, **keywords)
        return (x * g).sum() + (np.where(np.isneginf(y), 0, y) * g_lse).sum()

    for at, grad in enumerate(grads):
        x = sinks if at == 3 else given[at]
        direction = rng.standard_normal(x.shape)
        if at == 3:
            direction[np.isneginf(x)] = 0
        derivative = along(lambda new, at=at: total(new, at), x, direction)
        np.testing.assert_allclose((grad * direction).sum(), derivative, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(grad, theirs[at], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_is_given_has_an_effect(rng, name):
    given = arrays(rng)
    plain = attention(*given, Banded(12), return_lse=True)
    found = attention(*given, Banded(12), return_lse=True, **OPTIONS[name])
    assert np.abs(found[0] - plain[0]).max() > 1e-2
    assert (found[1] == plain[1]).all() == (name == "dropout")  # lse is that of all weights
    grads, others = (
        attention_backward(plain[0], *given, *result, Banded(12), **options)
        for result, options in ((plain, {}), (found, OPTIONS[name]))
    )
    assert all(np.abs(x - y).max() > 1e-3 for x, y in zip(grads, others, strict=False))


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_the_same_bits_for_any_number_of_threads(rng, pattern, monkeypatch):
    from subquad.plan import tables

    monkeypatch.setattr(tables, "_TASK_FLOPS", 3e3)
    given, options = arrays(rng, np.float32), joined(OPTIONS)
    g = rng.standard_normal((2, 3, N, 3)).astype(np.float32)

    def run(threads):
        from subquad.plan import cache_clear

        cache_clear()
        out, lse = attention(*given, pattern, return_lse=True, num_threads=threads, **options)
        return out, lse, *attention_backward(g, *given, out, lse, pattern, num_threads=threads, **options)

    for one, three in zip(run(1), run(3), strict=True):
        assert_same_bits(one, three)


def test_grouped_heads_have_slopes_and_sinks_of_their_own(rng):
    q, k, v = inputs(rng, 30, 30, 4, 4, leading=(2, 6), kv_leading=(2, 2), dtype=np.float64)
    options = {"alibi_slopes": np.linspace(0.1, 0.6, 6), "sinks": np.arange(6.0), "score_mod": bend}
    for x, y in zip(
        attention(q, k, v, Banded(7), return_lse=True, **options), oracle(q, k, v, Banded(7), **options), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12)


# --- keys that are not there ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_keys_that_are_not_there_are_never_read(rng, pattern, poison):
    q, k, v = arrays(rng, np.float32)
    options = {"key_starts": [4, 0], "key_lengths": [33, 27], "mask_mod": leave_out}
    for x in (k, v):
        for b in range(2):
            x[b, :, : options["key_starts"][b]] = poison
            x[b, :, options["key_lengths"][b] :] = poison
    out, lse = attention(q, k, v, pattern, return_lse=True, **options)
    grads = attention_backward(out, q, k, v, out, lse, pattern, **options)
    assert all(np.isfinite(x).all() for x in (out, *grads))
    clean = [np.where(np.isfinite(x), x, 1) for x in (k, v)]
    assert_same_bits(attention(q, *clean, pattern, **options), out)
    for b in range(2):
        assert not grads[1][b, :, : options["key_starts"][b]].any()
        assert not grads[2][b, :, options["key_lengths"][b] :].any()


def test_a_batch_of_many_lengths_is_each_sequence_alone(rng):
    q, k, v = arrays(rng, np.float32)
    out = attention(q, k, v, Banded(9) & Causal(), key_lengths=[17, 33])
    for b, length in enumerate((17, 33)):
        alone = [x[b, :, :length].copy() for x in (q, k, v)]
        np.testing.assert_allclose(out[b, :, :length], attention(*alone, Banded(9) & Causal()), rtol=0, atol=1e-6)


def test_no_key_at_all(rng):
    q, k, v = arrays(rng)
    out, lse = attention(q, k, v, Random(5), return_lse=True, key_starts=20, key_lengths=[20, 10])
    assert not out.any()
    assert np.isneginf(lse).all()
    out, lse = attention(q, k, v, Random(5), return_lse=True, key_lengths=0, sinks=[1.0, 2.0, -np.inf])
    assert not out.any()
    np.testing.assert_allclose(lse[:, :2], np.broadcast_to([[1.0], [2.0]], (2, 2, N)), rtol=1e-15)
    assert np.isneginf(lse[:, 2]).all()


def test_a_sink_alone_when_there_are_no_keys():
    q, empty = np.ones((1, 2, 3, 4)), np.ones((1, 2, 0, 4))
    _, lse = attention(q, empty, empty, Dense(), return_lse=True, sinks=[0.5, -np.inf])
    np.testing.assert_array_equal(lse[0], [[0.5] * 3, [-np.inf] * 3])
    _, expected = reference.attention(q, empty, empty, Dense(), return_lse=True, sinks=[0.5, -np.inf])
    np.testing.assert_array_equal(lse, expected)


@pytest.mark.parametrize("offset", [-20, 0, 7, 22, 60])
@pytest.mark.parametrize("name", ["tiles", "residues", "bits"])
def test_queries_anywhere(rng, name, offset):
    """Before the keys, among them, across their end and past it."""
    q, k, v = inputs(rng, 18, N, 5, 3, leading=(1, 2), dtype=np.float64)
    expected = oracle(q, k, v, PATTERNS[name], q_offset=offset)
    for x, y in zip(attention(q, k, v, PATTERNS[name], return_lse=True, q_offset=offset), expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12)


def test_a_chunk_of_queries_is_those_rows_of_the_whole(rng):
    q, k, v = arrays(rng, np.float32)
    for pattern in (Banded((9, 4)), LogSparse(), Strided(5) | Global([2, 30])):
        whole, chunk = attention(q, k, v, pattern), attention(q[:, :, 12:29], k, v, pattern, q_offset=12)
        np.testing.assert_allclose(chunk, whole[:, :, 12:29], rtol=0, atol=1e-6)


def test_patterns_of_a_whole_sequence_refuse_an_offset(rng):
    x = rng.standard_normal((10, 4))
    with pytest.raises(ValueError, match=r"n_q = 10 and n_k = 10 and q_offset = 3"):
        attention(x, x, x, Packed([4, 6]), q_offset=3)


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pattern", [Dense(), Random(N)], ids=["tiles", "lists"])
def test_which_pairs_are_dropped(dtype, pattern):
    """With values that are the unit vectors the output is the weights: those dropped are 0, and drawn as described."""
    q, value = np.zeros((2, 2, N, 1), dtype), np.broadcast_to(np.eye(N, dtype=dtype), (2, 2, N, N))
    weights = attention(q, q, value, pattern, dropout=0.4, seed=5)
    for b, h, i, j in np.ndindex(2, 2, N, N):
        assert (weights[b, h, i, j] != 0) == is_kept(5, b, h, i, j, 0.4)
    np.testing.assert_allclose(weights[weights != 0], 1 / N / 0.6, rtol=1e-6)
    np.testing.assert_array_equal(kept(5, 1, 1, *np.ogrid[:N, :N], 0.4), weights[1, 1] != 0)


def test_draws_are_even_and_independent():
    found = np.stack([kept(seed, 0, 0, *np.ogrid[:256, :256], 0.25) for seed in range(8)])
    spread = (found - 0.75) / np.sqrt(0.25 * 0.75)
    assert abs(spread.mean()) * np.sqrt(spread.size) < 4
    for axis in (1, 2):  # sums of rows and of columns vary as sums of independent draws do
        sums = spread.sum(axis=axis) / 16
        assert abs(sums.var() - 1) < 4 * np.sqrt(2 / sums.size)
    rows = spread.transpose(1, 0, 2).reshape(256, -1)
    pairs = rows @ rows.T / np.sqrt(rows.shape[1])
    assert np.abs(pairs[~np.eye(256, dtype=bool)]).max() < 5.5


def test_dropout_of_nothing_is_nothing(rng):
    given = arrays(rng)
    assert_same_bits(attention(*given, Banded(5), dropout=0.0, seed=3), attention(*given, Banded(5)))


# --- large numbers ----------------------------------------------------------------------------------------------------


def test_softcap_from_tiny_scores_to_huge_ones():
    """A single key pair: the difference of two lse tells the capped score, to the precision of the dtype."""
    for dtype, tolerance in ((np.float32, 5e-7), (np.float64, 1e-15)):
        for score in (1e-6, 1e-3, 0.1, 1.0, 5.0, 30.0, 1e4):
            q, k = np.full((1, 1), score, dtype), np.ones((1, 1), dtype)
            for sign in (1, -1):
                _, lse = attention(sign * q, k, k, Dense(), scale=1.0, softcap=7.0, return_lse=True)
                expected = sign * 7 * np.tanh(np.float64(dtype(score)) / 7)
                np.testing.assert_allclose(lse[0], expected, rtol=tolerance, atol=1e-12)


def test_slopes_far_from_the_beginning():
    """Distances are exact where positions are past the integers of float32."""
    far = 1 << 26
    q, k = np.zeros((8, 1), np.float32), np.zeros((8, 1), np.float32)
    v = np.eye(8, dtype=np.float32)
    near = attention(q, k, v, Dense(), alibi_slopes=[0.25], q_offset=0)
    weights = attention(q, k, v, Dense(), alibi_slopes=[2.0**-26], q_offset=far)
    expected = np.exp(-(2.0**-26) * (far + np.arange(8)[:, None] - np.arange(8)))
    np.testing.assert_allclose(weights, expected / expected.sum(1, keepdims=True), rtol=1e-6)
    assert near[0, 0] > near[0, 7] * 5
