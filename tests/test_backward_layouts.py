"""Where the arrays of a backward lie in memory changes no bit of a gradient: strides, views, maps, rows far apart."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from support import BFLOAT16, CASES, FLOAT32, FLOAT64, assert_same_bits, case, linux_only, result_or_refusal
from support_gradients import (
    assert_all_same_bits,
    assert_gradients_match_oracle,
    call_arrays,
    oracle_backward,
    small_blocks,
)
from test_layouts import LAYOUTS, ODD, far_apart, memory_mapped

from subquad import Banded, Dense, Random, Strided, attention, attention_backward, dilated, streaming

FOUR_AXES = ["grad_out", "query", "key", "value", "out"]
SUMS = ["lse", "grad_lse"]
NAMES = [*FOUR_AXES, *SUMS]


def changed(arrays, names, relayout):
    """The arrays of a call, some of them laid out in another way; sums are as wide as one column."""
    new = dict(arrays)
    for name in names:
        new[name] = relayout(arrays[name]) if name in FOUR_AXES else relayout(arrays[name][..., None])[..., 0]
        assert_same_bits(new[name], arrays[name])
    return new


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", ["banded-3", "random-5", "strided-7", "longformer", "bigbird"])
def test_layouts_do_not_change_a_bit(rng, name, layout, dtype):
    pattern, relayout = case(name, 63, 97), LAYOUTS[layout]
    arrays = call_arrays(rng, 63, 97, pattern, 24, 20, (2, 4), (2, 2), dtype)
    expected = attention_backward(pattern=pattern, **arrays)
    for names in [*([one] for one in NAMES), ["grad_out", "out"], ["query", "key", "value"], NAMES]:
        grads = attention_backward(pattern=pattern, **changed(arrays, names, relayout))
        for which, grad, wanted in zip(("query", "key", "value"), grads, expected, strict=True):
            np.testing.assert_array_equal(grad, wanted, err_msg=f"gradient of {which}; {names} laid out {layout}")
        assert_all_same_bits(grads, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["banded-3", "random-5", "strided-7"])
def test_layouts_of_all_arrays_at_once_are_right(rng, name, layout):
    """The same to rounding: what a layout may never change, whatever becomes of the last bit."""
    pattern = case(name, 40, 51)
    arrays = call_arrays(rng, 40, 51, pattern, 12, 9, (2, 4), (2, 2))
    grads = attention_backward(pattern=pattern, **changed(arrays, NAMES, LAYOUTS[layout]))
    given = [arrays[key] for key in ("grad_out", "query", "key", "value")]
    assert_gradients_match_oracle(grads, *given, pattern, None, arrays["grad_lse"])


@pytest.mark.parametrize("axes", [(-1,), (-2,), (-3,), (-3, -2, -1)])
@pytest.mark.parametrize("d_v", [3, 16, 40])
@pytest.mark.parametrize("name", ["banded-3", "random-5"])
def test_broadcast_grad_out(rng, name, d_v, axes):
    """The gradient of a sum or an average is one number, repeated with strides of 0."""
    pattern = case(name, 63, 63)
    arrays = call_arrays(rng, 63, 63, pattern, 12, d_v, (4,))
    first = arrays["grad_out"]
    for axis in axes:
        first = np.take(first, [0], axis=axis)
    arrays["grad_out"] = np.broadcast_to(first, arrays["grad_out"].shape)
    grads = attention_backward(pattern=pattern, **arrays)
    expected = attention_backward(pattern=pattern, **{**arrays, "grad_out": arrays["grad_out"].copy()})
    assert_all_same_bits(grads, expected)


@pytest.mark.parametrize("name", ["banded-3", "random-5", "strided-7"])
def test_broadcast_queries_keys_and_lse(rng, name):
    """One row of keys for all: then all weights of a row are the same, and lse repeats as well."""
    pattern = case(name, 63, 63)
    query, key, value, grad_out = (
        np.broadcast_to(rng.standard_normal(8).astype(np.float32), (3, 63, 8)) for _ in range(4)
    )
    out, lse = attention(query, key, value, pattern, return_lse=True)
    lse[...] = np.float32(5)
    grads = attention_backward(grad_out, query, key, value, out, np.broadcast_to(np.float32(5), lse.shape), pattern)
    copies = [array.copy() for array in (grad_out, query, key, value, out, lse)]
    assert_all_same_bits(grads, attention_backward(*copies, pattern))


@pytest.mark.parametrize("row_length", [200, 1027])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_rows_far_apart_do_not_change_a_bit(rng, name, dtype, row_length):
    """From 2 KB on the keys of a step are copied into panels first; `grad_out` and queries come in the same way."""
    pattern = case(name, 163, 211)
    arrays = call_arrays(rng, 163, 211, pattern, 24, 20, (2,), dtype=dtype)
    expected = attention_backward(pattern=pattern, **arrays)
    for names in [("key",), ("value",), ("grad_out", "query", "key", "value", "out")]:
        apart = {name: far_apart(arrays[name], row_length) for name in names}
        assert_all_same_bits(attention_backward(pattern=pattern, **{**arrays, **apart}), expected)


@pytest.mark.parametrize("flops", [5_000, 60_000])
@pytest.mark.parametrize(
    "pattern", [Strided(7), Strided(40) & Banded(150), dilated(5, 6), Dense(), streaming(4, 50)], ids=repr
)
def test_rows_far_apart_in_many_waves(rng, pattern, flops, monkeypatch):
    """A block begins and ends anywhere on the axis, a panel at a multiple of a step."""
    small_blocks(monkeypatch, flops)
    arrays = call_arrays(rng, 310, 310, pattern, 9, 20)
    expected = attention_backward(pattern=pattern, **arrays)
    given = [arrays[key] for key in ("grad_out", "query", "key", "value")]
    assert_gradients_match_oracle(expected, *given, pattern, None, arrays["grad_lse"])
    apart = {name: far_apart(arrays[name], 600) for name in ("key", "value")}
    assert_all_same_bits(attention_backward(pattern=pattern, **{**arrays, **apart}, num_threads=2), expected)


@pytest.mark.parametrize("name", ["banded-3", "strided-7", "random-5", "longformer"])
@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_rows_far_apart_do_not_leak(rng, name, poison):
    """A panel holds keys of the whole step, those that nobody attends among them."""
    pattern = case(name, 20, 150)
    arrays = call_arrays(rng, 20, 150, pattern, 5, 20)
    seen = np.zeros(150, bool)
    for i in range(20):
        seen[pattern.row(i, 20, 150)] = True
    clean = attention_backward(pattern=pattern, **arrays)
    arrays["key"][~seen], arrays["value"][~seen] = poison, poison
    apart = {name: far_apart(arrays[name], 700) for name in ("key", "value")}
    assert_all_same_bits(attention_backward(pattern=pattern, **{**arrays, **apart}), clean)
    arrays["key"][np.argmax(seen)] = np.nan
    apart = {name: far_apart(arrays[name], 700) for name in ("key", "value")}
    grads = attention_backward(pattern=pattern, **{**arrays, **apart})
    # given `out` and `lse` as they were, the poisoned score is that of one key alone
    rows = [i for i in range(20) if np.argmax(seen) in pattern.row(i, 20, 150)]
    np.testing.assert_array_equal(np.isnan(grads[0]).all(axis=1), np.isin(np.arange(20), rows))


@pytest.mark.parametrize("name", ["banded-3", "random-5", "strided-7"])
def test_memory_mapped_inputs(rng, name, tmp_path):
    arrays = call_arrays(rng, 63, 97, case(name, 63, 97), 16, 9)
    mapped = {key: memory_mapped(array, tmp_path) for key, array in arrays.items()}
    grads = attention_backward(pattern=case(name, 63, 97), **mapped)
    assert all(type(grad) is np.ndarray for grad in grads)
    assert_all_same_bits(grads, attention_backward(pattern=case(name, 63, 97), **arrays))


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", NAMES)
def test_odd_arrays_are_converted_or_refused_by_name(rng, name, odd):
    arrays = call_arrays(rng, 20, 20, Banded(3), 16, 16)
    expected = attention_backward(pattern=Banded(3), **arrays)
    if odd == "unaligned" and name in SUMS:
        packed = np.zeros(20, dtype=[("pad", "u1"), ("sum", FLOAT32)])
        packed["sum"] = arrays[name]
        arrays[name] = packed["sum"]
    else:
        arrays[name] = ODD[odd](arrays[name])
    grads, refusal = result_or_refusal(lambda: attention_backward(pattern=Banded(3), **arrays))
    if refusal is None:
        assert_all_same_bits(grads, expected)
    else:
        assert refusal.startswith(name)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_inputs_are_never_written_nor_handed_out(rng, name, dtype):
    arrays = call_arrays(rng, 33, 40, case(name, 33, 40), 9, 12, (2,), dtype=dtype)
    copies = {key: array.copy() for key, array in arrays.items()}
    for array in arrays.values():
        array.flags.writeable = False
    grads = attention_backward(pattern=case(name, 33, 40), **arrays, num_threads=2)
    for key, array in arrays.items():
        assert_same_bits(array, copies[key])
        assert not any(np.shares_memory(grad, array) for grad in grads)
    for grad in grads:
        assert grad.flags.writeable
        assert grad.flags.c_contiguous
    wanted = [grad.copy() for grad in grads]
    for grad in grads:
        grad[...] = 1
    assert_all_same_bits(attention_backward(pattern=case(name, 33, 40), **arrays), wanted)


@pytest.mark.skipif(**linux_only)
@pytest.mark.parametrize("pattern", [Banded((64, 0)), Random(40, 0)], ids=repr)
def test_offsets_past_32_bits(rng, pattern):
    """Rows of keys 16 GB apart in all, of an address space that is never touched but where rows lie."""
    n_k, n_q, step = 300, 3, 2**24
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE, which mmap names from Python 3.13 on
    arrays = call_arrays(rng, n_q, n_k, pattern, 8, 8)
    expected = attention_backward(pattern=pattern, **arrays)
    for name in ("key", "value"):
        flat = np.frombuffer(mmap.mmap(-1, 4 * n_k * step, flags=flags), np.float32)
        far = np.lib.stride_tricks.as_strided(flat, (n_k, 8), (4 * step, 4))
        far[...] = arrays[name]
        arrays[name] = far
    assert_all_same_bits(attention_backward(pattern=pattern, **arrays), expected)
    assert oracle_backward(*(arrays[key] for key in ("grad_out", "query", "key", "value")), pattern)[0][1].any()
