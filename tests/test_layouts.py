"""Where the numbers lie in memory changes no bit of the result: strides, views, maps, far addresses."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from support import (
    BFLOAT16,
    CASES,
    FLOAT32,
    FLOAT64,
    assert_matches_oracle,
    assert_same_bits,
    case,
    inputs,
    linux_only,
    result_or_refusal,
)

from subquad import Banded, Dense, Random, Strided, attention, streaming


def memory_mapped(array, tmp_path):
    mapped = np.memmap(tmp_path / f"{id(array)}.bin", dtype=array.dtype, mode="w+", shape=array.shape)
    mapped[...] = array
    mapped.flush()
    return np.memmap(mapped.filename, dtype=array.dtype, mode="r", shape=array.shape)


def with_inner_stride(array, step):
    wide = np.full((*array.shape[:-1], array.shape[-1] * step), np.nan, array.dtype)
    wide[..., ::step] = array
    return wide[..., ::step]


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


# Each holds the same numbers as the array it is given, laid out in another way.
LAYOUTS = {
    "tokens-before-heads": lambda array: np.ascontiguousarray(array.swapaxes(-3, -2)).swapaxes(-3, -2),
    "columns-first": lambda array: np.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2),
    "fortran": np.asfortranarray,
    "reversed-rows": lambda array: np.ascontiguousarray(array[..., ::-1, :])[..., ::-1, :],
    "reversed-columns": lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
    "reversed-heads": lambda array: np.ascontiguousarray(array[..., ::-1, :, :])[..., ::-1, :, :],
    "every-other-row": lambda array: np.repeat(array, 2, axis=-2)[..., ::2, :],
    "every-third-column": lambda array: with_inner_stride(array, 3),
    "read-only": read_only,
}


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, BFLOAT16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["banded-3", "random-5", "strided-7", "longformer", "bigbird"])
def test_layouts_do_not_change_a_bit(rng, name, layout, dtype):
    query, key, value = inputs(rng, 63, 97, 24, 20, (2, 4), (2, 2), dtype)
    pattern, relayout = case(name, 63, 97), LAYOUTS[layout]
    expected = attention(query, key, value, pattern)
    assert_same_bits(attention(relayout(query), relayout(key), relayout(value), pattern), expected)
    assert_same_bits(attention(query, relayout(key), value, pattern), expected)
    assert_same_bits(attention(query, key, relayout(value), pattern), expected)


def far_apart(array, row_length):
    """The same numbers in rows that lie `row_length` elements apart, as heads of one wide projection do."""
    wide = np.full((*array.shape[:-1], row_length), np.nan, array.dtype)
    wide[..., 3 : 3 + array.shape[-1]] = array
    return wide[..., 3 : 3 + array.shape[-1]]


@pytest.mark.parametrize("row_length", [64, 200, 513, 1024])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_rows_far_apart_do_not_change_a_bit(rng, name, dtype, row_length):
    query, key, value = inputs(rng, 163, 211, 24, 20, (2,), dtype=dtype)
    pattern = case(name, 163, 211)
    expected = attention(query, key, value, pattern)
    for apart in [(key,), (value,), (key, value)]:
        laid_out = [far_apart(x, row_length) if any(x is y for y in apart) else x for x in (key, value)]
        assert_same_bits(attention(query, *laid_out, pattern), expected)


@pytest.mark.parametrize("name", ["banded-3", "random-5", "strided-7"])
def test_memory_mapped_inputs(rng, name, tmp_path):
    arrays = inputs(rng, 63, 97)
    mapped = [memory_mapped(array, tmp_path) for array in arrays]
    out = attention(*mapped, case(name, 63, 97))
    assert type(out) is np.ndarray
    assert_same_bits(out, attention(*arrays, case(name, 63, 97)))


@pytest.mark.parametrize("axis", [-3, -2, -1])
@pytest.mark.parametrize("name", ["banded-3", "random-5", "strided-7"])
def test_broadcast_inputs(rng, name, axis):
    arrays = inputs(rng, 63, 63, 16, 16, (4,))
    first = [np.take(array, [0], axis=axis) for array in arrays]
    broadcast = [np.broadcast_to(one, array.shape) for one, array in zip(first, arrays, strict=True)]
    expected = attention(*(array.copy() for array in broadcast), case(name, 63, 63))
    assert_same_bits(attention(*broadcast, case(name, 63, 63)), expected)


def unaligned(array):
    packed = np.zeros(len(array), dtype=[("pad", "u1"), ("row", array.dtype, array.shape[1])])
    packed["row"] = array
    assert not packed["row"].flags.aligned
    return packed["row"]


ODD = {
    "byte-order": lambda array: array.astype(array.dtype.newbyteorder()),
    "masked": np.ma.masked_array,
    "unaligned": unaligned,
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("position", range(3))
def test_odd_arrays_are_converted_or_refused_by_name(rng, position, odd):
    arrays = list(inputs(rng, 20, 20))
    expected = attention(*arrays, Banded(3))
    arrays[position] = ODD[odd](arrays[position])
    out, refusal = result_or_refusal(lambda: attention(*arrays, Banded(3)))
    if refusal is None:
        assert_same_bits(out, expected)
    else:
        assert ["query", "key", "value"][position] in refusal


@pytest.mark.parametrize("layout", ["tokens-before-heads", "columns-first", "reversed-rows", "every-third-column"])
def test_out_with_strides(rng, layout):
    arrays = inputs(rng, 33, 40, 16, 12, (3,))
    expected = attention(*arrays, Banded(5))
    out = LAYOUTS[layout](np.full(expected.shape, np.nan, np.float32))
    assert attention(*arrays, Banded(5), out=out) is out
    assert_same_bits(out, expected)


@pytest.mark.skipif(**linux_only)
@pytest.mark.parametrize("pattern", [Banded((64, 0)), Random(40, 0), streaming(4, 64), Strided(2**27)])
def test_positions_and_addresses_past_32_bits(rng, pattern):
    """Arrays of 2**32 rows, all zero and never touched but for the rows that the pattern reaches."""
    n_k, n_q = 2**32 + 100, 3
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE, which mmap names from Python 3.13 on
    key, value = (np.frombuffer(mmap.mmap(-1, 4 * n_k, flags=flags), np.float32)[:, None] for _ in range(2))
    query = rng.standard_normal((n_q, 1)).astype(np.float32)
    rows = [pattern.row(i, n_q, n_k) for i in range(n_q)]
    assert max(keys[-1] for keys in rows) > 2**31
    for keys in rows:
        key[keys], value[keys] = rng.standard_normal((2, len(keys), 1))
    out, lse = attention(query, key, value, pattern, return_lse=True)
    for i, keys in enumerate(rows):
        assert_matches_oracle(out[[i]], lse[[i]], query[[i]], key[keys], value[keys], Dense())
