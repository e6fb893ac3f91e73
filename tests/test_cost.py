"""Costs against counts made otherwise: masks, arrays, a forward pass that counts its own products, measured memory."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from support import CASES, case, mask_of

from subquad import Banded, BlockSparse, Causal, Dense, Global, Random, Strided, longformer
from subquad.complexity import cost, extra_memory, transformer_cost

GPT2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}


@pytest.mark.parametrize("name", CASES)
def test_pairs_and_flops_are_those_of_the_mask(name):
    n_q, n_k, heads, d, d_v = 63, 97, 6, 24, 40
    pattern = case(name, n_q, n_k)
    pairs = heads * int(mask_of(pattern, n_q, n_k).sum())
    found = cost(pattern, n_q, n_k, d, heads, d_v=d_v, kv_heads=2)
    assert found.pairs == found.exponentials == pairs
    assert found.flops == pairs * (2 * d + 2 * d_v)
    assert found.order == pattern.order
    arrays = [np.empty(shape, np.float32) for shape in ((6, 63, 24), (2, 97, 24), (2, 97, 40), (6, 63, 40))]
    assert found.bytes_compulsory == sum(array.nbytes for array in arrays)
    assert found.scores_bytes == np.empty((6, 63, 97), np.float32).nbytes
    assert found.peak_bytes == found.bytes_compulsory + pattern.plan(n_q, n_k).nbytes
    assert found.intensity == pytest.approx(found.flops / found.bytes_compulsory)


@pytest.mark.parametrize("pattern", [Dense(), Causal(), Banded(20), Banded((40, 0))], ids=repr)
@pytest.mark.parametrize(("dtype", "lanes"), [("float32", 16), ("float64", 8)])
def test_streamed_bytes_are_a_read_of_each_key_for_each_tile_that_sees_it(pattern, dtype, lanes):
    n, d = 130, 16
    mask = mask_of(pattern, n, n)
    visits = sum(int(mask[first : first + lanes].any(axis=0).sum()) for first in range(0, n, lanes))
    itemsize = np.dtype(dtype).itemsize
    found = cost(pattern, n, d=d, heads=3, dtype=dtype)
    assert found.bytes_streamed == 3 * (2 * n * d + visits * 2 * d) * itemsize
    assert found.intensity_streamed < found.intensity


def test_random_keys_are_streamed_pair_by_pair():
    found = cost(Random(5, 1), 200, d=8)
    assert found.bytes_streamed == (2 * 200 * 8 + 1000 * 16) * 4


def test_half_precision_counts_the_float32_copies():
    for dtype in ("float16", np.float16, ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16)):
        found = cost(Banded(3), 100, d=8, dtype=dtype)
        assert found.bytes_compulsory == 4 * 100 * 8 * 2
        assert found.peak_bytes == 4 * 100 * 8 * (2 + 4) + found.plan_bytes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can reset the peak of a process")
@pytest.mark.parametrize("pattern", [Random(64, 0), Banded(128)], ids=repr)
def test_the_peak_is_what_is_measured(pattern):
    """Beside the plan: what is held while it is built, at most as much again, and a workspace."""
    n = 65_536
    plan = cost(pattern, n).plan_bytes
    assert plan - 500_000 <= extra_memory(pattern, n) <= 2.2 * plan + 4_000_000


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_q": 0}, ValueError, "n_q must be an integer >= 1; got 0"),
        ({"n_k": 2.5}, TypeError, "n_k"),
        ({"d": 0}, ValueError, "d must be"),
        ({"heads": 3, "kv_heads": 2}, ValueError, "heads must be a multiple of kv_heads; got 3 and 2"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of float16, bfloat16, float32, float64; got 'int8'"),
        ({"pattern": "dense"}, TypeError, "pattern must be a subquad pattern"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        cost(**({"pattern": Dense(), "n_q": 8} | arguments))


# --- transformers -----------------------------------------------------------------------------------------------------


class Counter:
    """Counts the multiply-adds of every product it is asked for."""

    def __init__(self):
        self.flops = 0

    def product(self, a, b):
        self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return np.zeros((a.shape[0], b.shape[1]))


@pytest.mark.parametrize("pattern", [Dense(), Causal(), Banded(3), Strided(4)], ids=repr)
@pytest.mark.parametrize("gated", [False, True])
def test_a_forward_pass_that_counts_its_products(pattern, gated):
    hidden, layers, heads, kv_heads, head_dim, wide, words, n = 24, 3, 4, 2, 8, 40, 50, 17
    count = dict.fromkeys(("projections", "attention", "feed_forward", "logits"), 0)

    def product(part, a, b):
        counter = Counter()
        result = counter.product(a, b)
        count[part] += counter.flops
        return result

    x, mask, cached = np.zeros((n, hidden)), mask_of(pattern, n, n), 0
    for _ in range(layers):
        query = product("projections", x, np.zeros((hidden, heads * head_dim)))
        for _ in ("key", "value"):
            cached += product("projections", x, np.zeros((hidden, kv_heads * head_dim))).astype(np.float32).nbytes
        for _ in range(heads):
            for row in mask:  # every query against its own keys, and the weighted sum of their values
                keys = np.zeros((int(row.sum()), head_dim))
                weights = product("attention", np.zeros((1, head_dim)), keys.T)
                product("attention", weights, keys)
        x = product("projections", query, np.zeros((heads * head_dim, hidden)))
        for _ in range(2 if gated else 1):
            inner = product("feed_forward", x, np.zeros((hidden, wide)))
        x = product("feed_forward", inner, np.zeros((wide, hidden)))
    product("logits", x, np.zeros((hidden, words)))

    config = SimpleNamespace(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        head_dim=head_dim, intermediate_size=wide, vocab_size=words, model_type="llama" if gated else "gpt2",
    )  # fmt: skip
    found = transformer_cost(config, n, pattern)
    assert {name: getattr(found, name) for name in count} == count
    assert found.total == sum(count.values())
    assert found.kv_cache_bytes == cached
    assert found.attention_share == pytest.approx(count["attention"] / found.total)


def test_known_models_have_their_known_sizes():
    llama = {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "intermediate_size": 11008, "vocab_size": 32000,
    }  # fmt: skip
    found = transformer_cost(llama, 4096, Causal(), dtype="float16")
    assert found.parameters == 6_738_415_616 - 65 * 4096  # as published, without the norms
    assert found.kv_cache_bytes == 2 * 2**30
    assert transformer_cost(llama, 4096, Dense()).overtakes == 2 * 4096 + 3 * 11008 // 2 + 32000 // 64 + 1


@pytest.mark.parametrize("pattern", [Dense(), Causal(), Strided(8), Causal() & Strided(2)], ids=repr)
def test_attention_overtakes_exactly_there(pattern):
    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 10}
    n = transformer_cost(tiny, 1, pattern).overtakes
    before, there = (transformer_cost(tiny, size, pattern) for size in (n - 1, n))
    assert before.attention <= before.total - before.attention
    assert there.attention > there.total - there.attention


def test_a_narrow_window_never_overtakes():
    assert transformer_cost(GPT2, 1024, Banded(256)).overtakes is None
    assert transformer_cost(GPT2, 1024, longformer(64, 1)).overtakes is None
    assert transformer_cost(GPT2, 64, BlockSparse(np.eye(4, dtype=bool), 16)).overtakes is None
    assert transformer_cost(GPT2, 64, Global([60])).overtakes is None
    assert transformer_cost(GPT2, 1024, Banded(20_000)).overtakes is not None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n_embd": None}, ValueError, "config must give hidden_size or n_embd"),
        ({"n_layer": 0}, ValueError, "n_layer must be an integer >= 1; got 0"),
        ({"n_head": "12"}, TypeError, "n_head must be an integer"),
    ],
)
def test_bad_configurations(change, error, message):
    with pytest.raises(error, match=message):
        transformer_cost(GPT2 | change, 10, Dense())
