"""Faults put into the kernels' source by hand, each found; interpreted, so that none waits for a compiler.

`test_mutants` does the same to the rest of the library.
"""

from __future__ import annotations

import numpy as np
import pytest
from support import assert_matches_oracle
from support_gradients import assert_gradients_match_oracle, backward_inputs
from support_interpreted import Interpreter

from subquad import Banded, Causal, KVCache, Random, Strided, attention, attention_backward, streaming

N, LONG = 40, 130  # the softmax of the longer goes on from step to step
TILES, MASKS, LISTS, LATER = Banded(6), (Banded(9) - Strided(3)), Random(5, seed=0), Random(4, seed=5) | Banded(12)

#: What is edited, its text and what it becomes, and a pattern that meets it.
FORWARD = {
    "edge comparison": ("tiled", "work.high[passed] < j", "work.high[passed] <= j", TILES),
    "other edge comparison": ("tiled", "work.low[reached] <= j", "work.low[reached] < j", TILES),
    "bits begin late": ("tiled", "bits[run[layout.BITS_AT] + begin + t]", "bits[run[layout.BITS_AT] + t + 1]", MASKS),
    "rescale dropped": ("softmax", "alpha = exp2(before - base)", "alpha = exp2(base - base)", Causal()),
    "maximum forgotten": ("softmax", "store(work.m, 0, top)", "store(work.m, 0, before)", TILES),
    "mask turned": ("softmax", "s = select(mask[j], load", "s = select(~mask[j], load", TILES),
    "last keys left out": (
        "softmax",
        "total = exp2_rows(s_t, n_keys, base)",
        "total = exp2_rows(s_t, n_keys - 1, base)",
        TILES,
    ),
    "lse of base two": ("tiled", "(m + log2(denom)) * splat(out, np.log(2.0))", "(m + log2(denom))", TILES),
    "NaN of another row": ("softmax", "if careful and masked:", "if careful and not masked:", TILES),
    "earlier phase in base e": ("gathered", "lse_row[0] / np.log(2.0) if fold", "lse_row[0] if fold", LATER),
    "tail of a list": ("gathered", "for j in range(whole, n_keys):\n        s[j] = spare[j - whole]", "pass", LISTS),
    "list of base two": ("gathered", "(base + log2(weight)) * splat(s, np.log(2.0))", "(base + log2(weight))", LISTS),
    "list not divided": ("gathered", "store(spare, 0, tail * inverse)", "store(spare, 0, tail)", LISTS),
}
BACKWARD = {
    "scale forgotten": ("backward", "d_v, splat(q, scale), spare)", "d_v, splat(q, 1.0), spare)", TILES),
    "delta without scale": ("backward", "delta[row[i]] * scale", "delta[row[i]]", TILES),
    "weights not normalised": (
        "backward",
        "load(work.lse, 0), load(work.delta, 0)",
        "zero, load(work.delta, 0)",
        TILES,
    ),
    "lanes past the last row": ("backward", "if i < n_rows and kept != -np.inf", "if kept != -np.inf", Causal()),
    "gradients exchanged": (
        "backward",
        "(work.d_v, s_t, d_v) if part == 0",
        "(work.d_v, w_t, d_v) if part == 0",
        TILES,
    ),
    "scale of lists": ("gathered_backward", "splat(p, scale), geometry", "splat(p, 1.0), geometry", LISTS),
    "lists of the wrong row": (
        "gathered_backward",
        "indices[e + r] if by_key else i",
        "indices[e] if by_key else i",
        LISTS,
    ),
    "delta of lists": ("gathered_backward", "- load(common, 0)", "+ load(common, 0)", LISTS),
}
DECODE = {
    "values of the first head": ("at(v, of * n_slots * d_v)", "at(v, 0)"),
    "stretches run together": (
        "starts, counts, row_ptr[i], row_ptr[i + 1])",
        "starts, counts, row_ptr[i], row_ptr[i] + 1)",
    ),
}


def check(pattern, interpreter):
    """Output, lse and gradients against the dense oracle; then with a NaN that few rows may see."""
    n = LONG if pattern == Causal() else N
    arrays = backward_inputs(np.random.default_rng(1), n, n, 7, 5)
    kept = attention(*arrays[1:], pattern, return_lse=True)
    with interpreter.running():
        found = attention(*arrays[1:], pattern, return_lse=True, num_threads=1)
        gradients = attention_backward(*arrays, *kept, pattern, num_threads=1)
    assert_matches_oracle(*found, *arrays[1:], pattern)
    assert_gradients_match_oracle(gradients, *arrays, pattern)
    arrays[3][..., 20, :] = np.nan
    with interpreter.running():
        out = attention(*arrays[1:], pattern, num_threads=1)
    np.testing.assert_array_equal(np.isnan(out).any(axis=-1), pattern.to_csr(n, n).toarray()[:, 20])


def check_decode(interpreter):
    query, key, value = np.random.default_rng(2).standard_normal((3, 2, 30, 9), dtype=np.float32)
    pattern, rows = streaming(2, 6), []
    with interpreter.running():
        cache = KVCache(pattern, heads=2, d=9)
        for t in range(30):
            cache.append(key[:, t : t + 1], value[:, t : t + 1])
            rows.append(cache.attend(query[:, t : t + 1]))
    np.testing.assert_allclose(np.concatenate(rows, axis=1), attention(query, key, value, pattern), atol=1e-5)


PATTERNS = [TILES, MASKS, LISTS, LATER, Causal()]


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_the_source_itself_passes(pattern):
    check(pattern, Interpreter())


def test_the_source_itself_decodes():
    check_decode(Interpreter())


@pytest.mark.parametrize("name", FORWARD | BACKWARD)
def test_a_mutant_is_killed(name):
    module, before, after, pattern = (FORWARD | BACKWARD)[name]
    with pytest.raises((AssertionError, IndexError)):
        check(pattern, Interpreter(**{module: (before, after)}))


@pytest.mark.parametrize("name", DECODE)
def test_a_mutant_of_decoding_is_killed(name):
    with pytest.raises((AssertionError, IndexError)):
        check_decode(Interpreter(decode=DECODE[name]))
