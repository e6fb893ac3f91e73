"""Pointers that know how far they reach, and the intrinsics of the kernels in NumPy.

A pointer belongs to an array: it may touch the elements of that array and nothing beside or between them, write only
where a kernel is meant to write, and read only what has been written. Anything else is an IndexError that names the
line of the kernel, the array and the index.

A whole vector may be read where only its first lane has been written, since kernels leave lanes out afterwards. Such
lanes hold NaN, so a result that they reach is not the right one.
"""

from __future__ import annotations

import ctypes
import inspect
import linecache
import sys
from functools import partial
from pathlib import Path

import numpy as np

import subquad

KERNELS = Path(subquad.__file__).parent / "kernels"
FLOAT16, BFLOAT16 = np.dtype(np.int16), np.dtype(np.uint16)  # as element types of pointers, as in `kernels.simd`
_VECTOR_BYTES = 64


class Memory:
    """The bytes that an array spans; which of them are its own, and which have been written."""

    def __init__(self, array, written):
        first, last = np.lib.array_utils.byte_bounds(array) if array.size else (array.ctypes.data,) * 2
        self.array, self.start = array, array.ctypes.data - first
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * (last - first)).from_address(first))
        self.inside, self.views = bytearray(last - first), {}
        if array.size:
            flags = np.frombuffer(self.inside, np.uint8)[self.start :]
            shape, strides = (*array.shape, array.itemsize), (*array.strides, 1)
            np.lib.stride_tricks.as_strided(flags, shape, strides)[...] = 1
        self.written = bytearray(self.inside) if written else bytearray(last - first)
        if not written:
            self.bytes[np.frombuffer(self.inside, bool)] = 0xFF  # NaN

    def seen_as(self, dtype):
        """All of it as elements of another type, as far as there are whole ones."""
        if dtype not in self.views:
            self.views[dtype] = self.bytes[: len(self.bytes) // dtype.itemsize * dtype.itemsize].view(dtype)
        return self.views[dtype]


class Pointer:
    """A place in memory, as elements of one type. `count` is shared by all: numbers read and written."""

    __slots__ = ("dtype", "integers", "memory", "name", "size", "start", "values", "writable")
    count = 0

    def __init__(self, memory, dtype, start, name, writable):
        self.memory, self.dtype, self.start, self.name, self.writable = memory, dtype, start, name, writable
        self.values, self.size, self.integers = memory.seen_as(dtype), dtype.itemsize, dtype.kind in "iu"

    def at(self, offset, dtype=None):
        start, dtype = self.start + int(offset), dtype or self.dtype
        return Pointer(self.memory, dtype, start * self.size // dtype.itemsize, self.name, self.writable)

    def view(self, index, count, needed=None):
        """The elements themselves, to be read; the first `needed` of them must have been written."""
        first, written = self.start + int(index), self.memory.written
        begin, end = first * self.size, (first + count) * self.size
        if begin < 0 or end > len(written) or written.find(0, begin, end) >= 0:
            self._check("reads outside of", index, count)
            if written.find(0, begin, end if needed is None else begin + needed * self.size) >= 0:
                self._refuse("reads what was never written in", index, count)
        Pointer.count += count
        return self.values[first : first + count]

    def write(self, index, values):
        first, count, written = self.start + int(index), len(values), self.memory.written
        begin, end = first * self.size, (first + count) * self.size
        if not self.writable:
            self._refuse("writes to the input", index, count)
        if begin < 0 or end > len(written) or written.find(0, begin, end) >= 0:
            self._check("writes outside of", index, count)
            written[begin:end] = b"\1" * (end - begin)
        Pointer.count += count
        self.values[first : first + count] = values

    def __getitem__(self, index):
        first, written = self.start + int(index), self.memory.written
        begin, end = first * self.size, (first + 1) * self.size
        if begin < 0 or end > len(written) or written.find(0, begin, end) >= 0:
            self.view(index, 1)  # says what is wrong
        Pointer.count += 1
        return self.values.item(first) if self.integers else self.values[first]

    def __setitem__(self, index, value):
        if self.dtype == np.int32:
            value = np.uint32(int(value) & 0xFFFFFFFF).view(np.int32)
        self.write(index, (value,))

    def _check(self, what, index, count):
        """Nothing is touched where nothing is asked for, wherever that is."""
        begin, inside = (self.start + int(index)) * self.size, self.memory.inside
        end = begin + count * self.size
        if count and (begin < 0 or end > len(inside) or inside.find(0, begin, end) >= 0):
            self._refuse(what, index, count)

    def _refuse(self, what, index, count):
        frame = sys._getframe()
        while Path(frame.f_code.co_filename).parent != KERNELS:
            frame = frame.f_back
        file, line = frame.f_code.co_filename, frame.f_lineno
        origin = self.memory.start // self.size
        first = self.start + int(index) - origin
        place = f"[{first}]" if count == 1 else f"[{first}:{first + count}]"
        raise IndexError(
            f"{Path(file).name}:{line}, {frame.f_code.co_name}: `{linecache.getline(file, line).strip()}` {what} "
            f"{self.name!r}: {self.name}{place} in elements of {self.dtype}, of an array of shape "
            f"{self.memory.array.shape}, strides {self.memory.array.strides}, dtype {self.memory.array.dtype}"
        )


# --- intrinsics: each is found by its name, what a factory closes over by the names of its last parameters ------------


def computed(pointer):
    """The dtype of lanes."""
    return np.dtype(np.float32) if pointer.dtype in (FLOAT16, BFLOAT16) else pointer.dtype


def width_of(pointer):
    return _VECTOR_BYTES // computed(pointer).itemsize


def widen(stored):
    if stored.dtype == FLOAT16:
        return stored.view(np.float16).astype(np.float32)
    if stored.dtype == BFLOAT16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.copy()


def narrow(values, dtype):
    """To nearest even, as it is stored."""
    if dtype == FLOAT16:
        return values.astype(np.float16).view(np.int16)
    if dtype == BFLOAT16:
        bits = values.view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + (bits >> 16 & 1)
        return (np.where(np.isnan(values), bits | 0x400000, rounded) >> 16).astype(np.uint16)
    return values


def as_bits(lanes):
    return int.from_bytes(np.packbits(lanes, bitorder="little").tobytes(), "little")


def from_bits(bits, count):
    return (int(bits) >> np.arange(count) & 1).astype(bool)


def splat(pointer, scalar):
    return np.full(width_of(pointer), scalar, computed(pointer))


def as_scalar(pointer, number):
    return computed(pointer).type(number)


def fma(x, y, z):
    """Once rounded for float32, but for ties; twice for float64."""
    return (x.astype(np.float64) * y + z).astype(x.dtype)


def larger(x, y):
    return np.where(x > y, x, y)


def halved(x, combine):
    while len(x) > 1:
        x = combine(x[: len(x) // 2], x[len(x) // 2 :])
    return x[0]


def lane_sum(x):
    return halved(x, np.add)


def lane_max(x):
    return halved(x, larger)


def select(bits, x, y):
    return np.where(from_bits(bits, len(x)), x, y)


def compare(x, y, operation):
    return as_bits({">": np.greater, "!=": np.not_equal}[operation](x, y))


def at(pointer, offset):
    return pointer.at(offset)


def seen_as(pointer, other):
    return pointer.at(0, other.dtype)


def is_narrow(pointer):
    return int(pointer.dtype in (FLOAT16, BFLOAT16))


def load(pointer, offset):
    return widen(pointer.view(offset, width_of(pointer), needed=1))


def load_part(pointer, offset, count):
    lanes = splat(pointer, 0.0)
    count = max(0, min(int(count), len(lanes)))
    lanes[:count] = widen(pointer.view(offset, count))
    return lanes


def store(pointer, offset, value):
    pointer.write(offset, narrow(value, pointer.dtype))


def store_part(pointer, offset, count, value):
    pointer.write(offset, narrow(value[: max(0, int(count))], pointer.dtype))


def get(pointer, offset):
    return widen(pointer.view(offset, 1))[0]


def put(pointer, offset, value):
    pointer.write(offset, narrow(np.array([value], computed(pointer)), pointer.dtype))


def broadcast(pointer, offset):
    return splat(pointer, pointer[offset])


def prefetch(pointer, offset):
    """Touches nothing: any place may be asked for."""


def store_sums(pointer, offset, a, b, c, d):
    quarters = [halved(x.reshape(-1, 4), np.add) for x in (a, b, c, d)]
    pointer.write(offset, [(x[0] + x[1]) + (x[2] + x[3]) for x in quarters])


def exp2(x):
    lowest = {4: -127, 8: -1023}[x.itemsize]
    return np.where(x <= lowest, x.dtype.type(0), np.exp2(x))


log2 = np.log2


def capped(x, cap, inverse):
    return cap * np.tanh(x * inverse)


def rows(pointer, n):
    """n vectors that lie one after another."""
    width = width_of(pointer)
    return pointer.view(0, max(0, int(n)) * width).reshape(-1, width)


def exp2_rows(s_t, n, base):
    weights = exp2(rows(s_t, n) - base)
    s_t.write(0, weights.ravel())
    return weights.sum(axis=0, dtype=base.dtype)


def weight_gradient_rows(s_t, w_t, n, lse, delta):
    s, w = rows(s_t, n).copy(), rows(w_t, n).copy()
    power = exp2(s - lse)
    s_t.write(0, power.ravel())
    w_t.write(0, (power * (w - delta)).ravel())
    return (s * 0 + w * 0).sum(axis=0, dtype=lse.dtype)


def product(a, b):
    """A sum of products that rounds but once."""
    return a.astype(np.float64) @ b.astype(np.float64)


def scores_6(s, q_t, d, k, k_off, top):
    keys = np.stack([k.view(k_off[r], int(d)) for r in range(6)])
    scores = product(keys, rows(q_t, d)).astype(top.dtype)
    s.write(0, scores.ravel())
    for score in scores:
        top = larger(score, top)
    return top


def values(o_t, p_t, n, v, v_off, alpha, rows):
    read = np.stack([v.view(v_off[j], rows) for j in range(n)])
    sums = o_t.view(0, rows * len(alpha)).reshape(rows, -1)
    weights = p_t.view(0, int(n) * len(alpha)).reshape(-1, len(alpha))
    o_t.write(0, (sums * alpha + product(read.T, weights)).astype(alpha.dtype).ravel())


def masked_values_1(o_t, p_t, n, v, v_off, alpha, mask):
    total, weights = rows(o_t, 1)[0] * alpha, rows(p_t, n)
    for j in range(n):
        total = select(mask[j], fma(weights[j], splat(o_t, v[v_off[j]]), total), total)
    o_t.write(0, total)


def outer(x, x_off, p, y, rows, blocks):
    lanes = width_of(x)
    starts = [x_off[r] for r in range(rows)]
    before = [x.view(start, blocks * lanes).copy() for start in starts]
    weights = np.stack([p.view(r * lanes, lanes) for r in range(rows)])
    columns = y.view(0, blocks * lanes * lanes).reshape(blocks, lanes, lanes)
    added = np.concatenate([product(weights, block) for block in columns], axis=1)
    for r in reversed(range(rows)):  # the last row's copies come first, so that its own result stays
        x.write(starts[r], (before[r] + added[r]).astype(x.dtype))


def _blocks_in(x_t, x, row_table, row_step, n_columns, factor):
    for i, scale in enumerate(factor):
        row = widen(x.view(row_table[i] * row_step, int(n_columns))) * scale
        for c, value in enumerate(row):
            x_t[c * len(factor) + i] = value


def _blocks_out(x, x_t, row_table, row_step, n_columns, factor):
    columns = rows(x_t, n_columns)
    for i, scale in enumerate(factor):
        x.write(row_table[i] * row_step, narrow(columns[:, i] * scale, x.dtype))


def as_float(bits):
    return float(np.int64(bits).view(np.float64))


def distances(like, indices, offset, count, origin):
    lanes = np.zeros(width_of(like), np.int64)
    count = max(0, min(int(count), len(lanes)))
    lanes[:count] = indices.view(offset, count)
    return (lanes - int(origin)).astype(computed(like))


def as_words(pointer):
    return pointer.at(0, np.dtype(np.int32))


def word_of(seed, index):
    z = seed + index * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ z >> shift) * factor & 0xFFFFFFFFFFFFFFFF
    return (z ^ z >> 31) >> 32


def thinned(weights, words, word, drop_below, keep_scale):
    x = words.view(0, len(weights), needed=1).view(np.uint32) * np.uint32(word & 0xFFFFFFFF)
    x = (x ^ x >> 15) * np.uint32(0x846CA68B)
    return np.where(x >= drop_below, weights * keep_scale, weights.dtype.type(0))


def interpreted(function):
    """What stands for an intrinsic: the function of its name here, with what a factory has closed over."""
    own = globals()[function.__name__]
    closed = inspect.getclosurevars(function).nonlocals
    wanted = {name: closed[name] for name in inspect.signature(own).parameters if name in closed} if closed else {}
    return partial(own, **wanted) if wanted else own
