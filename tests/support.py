"""What the tests share: an oracle that knows nothing of plans, one tolerance, hostile buffers, a catalogue of patterns.

Nothing here asks the library how it would compute a result: the mask comes from `pattern.contains` alone.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import multiprocessing
import sys
import warnings

import ml_dtypes
import numpy as np
import scipy.sparse
from hypothesis import strategies as st

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

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
FLOAT16 = np.dtype(np.float16)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


# --- oracle -----------------------------------------------------------------------------------------------------------


def mask_of(pattern, n_q, n_k):
    """The pattern as a dense bool matrix, read off its predicate."""
    i, j = np.arange(n_q)[:, None], np.arange(n_k)[None, :]
    return np.array(np.broadcast_to(pattern.contains(i, j, n_q, n_k), (n_q, n_k)), dtype=bool)


def for_query_heads(array, query):
    """Repeat the heads of a key or value array until there are as many as query heads."""
    if array.shape[:-2] == query.shape[:-2]:
        return array
    return np.repeat(array, query.shape[-3] // array.shape[-3], axis=-3)


def oracle_scores(query, key, pattern, scale=None):
    """Scaled scores in float64, -inf outside the pattern."""
    q, k = (np.asarray(array).astype(np.float64) for array in (query, key))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = q @ for_query_heads(k, q).swapaxes(-1, -2) * scale
    return np.where(mask_of(pattern, q.shape[-2], k.shape[-2]), scores, -np.inf)


def oracle_softmax(scores):
    """Weights and lse of each row; a row of -inf has weights 0 and lse -inf."""
    top = scores.max(axis=-1, initial=-np.inf, keepdims=True)
    top = np.where(top == -np.inf, 0.0, top)
    weights = np.exp(scores - top)
    denom = weights.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (top + np.log(denom))[..., 0]
    return weights / np.where(denom == 0, 1.0, denom), lse


def oracle(query, key, value, pattern, scale=None):
    """Naive softmax attention in float64: `(out, lse)`."""
    weights, lse = oracle_softmax(oracle_scores(query, key, pattern, scale))
    v = for_query_heads(np.asarray(value).astype(np.float64), np.asarray(query))
    return weights @ v, lse


def score_bound(query, key, scale=None):
    """No scaled score is larger than this (Cauchy-Schwarz)."""
    q, k = (np.asarray(array).astype(np.float64) for array in (query, key))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return abs(scale) * np.linalg.norm(q, axis=-1).max(initial=0.0) * np.linalg.norm(k, axis=-1).max(initial=0.0)


def tolerance(dtype, row_length, d=1, score=1.0, value=1.0):
    """Absolute error allowed to a softmax average over `row_length` pairs.

    With eps of the type that computes (float32 for half precision), `score` a bound of the scaled scores and `value` of
    the values: a dot product of length d is off by about sqrt(d) / 2 roundings of a number as large as the bound, and
    two more for the scale and the exponent; an error in a score is a relative error of a weight; summing row_length
    weights adds a random walk of sqrt(row_length) roundings. The last term is the rounding to the dtype returned.
    """
    dtype = np.dtype(dtype)
    eps = float(np.finfo(FLOAT64 if dtype == FLOAT64 else FLOAT32).eps)
    relative = eps * (4 + math.sqrt(row_length) / 2 + (2 + math.sqrt(d) / 2) * score)
    if dtype in (FLOAT16, BFLOAT16):
        relative += float(ml_dtypes.finfo(dtype).eps)
    return relative * value


def assert_matches_oracle(out, lse, query, key, value, pattern, scale=None):
    """Output and lse lie within the tolerance of the oracle, with the dtypes and shapes of the contract."""
    expected, expected_lse = oracle(query, key, value, pattern, scale)
    n_k, d = key.shape[-2], query.shape[-1]
    assert out.shape == expected.shape
    assert out.dtype == query.dtype
    score = score_bound(query, key, scale)
    largest = np.abs(np.asarray(value).astype(np.float64)).max(initial=0.0)
    atol = tolerance(query.dtype, n_k, d, score, largest)
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=0, atol=atol)
    empty = expected_lse == -np.inf
    assert not out[empty].any()
    if lse is not None:
        assert lse.dtype == (FLOAT64 if query.dtype == FLOAT64 else FLOAT32)
        assert lse.shape == expected_lse.shape
        np.testing.assert_array_equal(lse[empty], -np.inf)
        atol = tolerance(lse.dtype, n_k, d, score + math.log(n_k + 1))
        np.testing.assert_allclose(lse[~empty], expected_lse[~empty], rtol=0, atol=atol)


def result_or_refusal(call):
    """`(result, None)`, or `(None, message)` where the library refuses by an error of its own choosing."""
    try:
        return call(), None
    except (TypeError, ValueError, MemoryError) as error:
        return None, str(error)


def inputs(rng, n_q, n_k, d=16, d_v=None, leading=(), kv_leading=None, dtype=np.float32):
    """Random `(query, key, value)`."""
    kv_leading = leading if kv_leading is None else kv_leading
    shapes = (*leading, n_q, d), (*kv_leading, n_k, d), (*kv_leading, n_k, d if d_v is None else d_v)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


# --- bits and buffers -------------------------------------------------------------------------------------------------


def bits(array):
    """The bit patterns of an array as unsigned integers: tells NaN payloads and signed zeros apart."""
    array = np.ascontiguousarray(array)
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


def assert_same_bits(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    different = np.argwhere(bits(actual) != bits(expected))
    assert not len(different), f"{len(different)} of {actual.size} elements differ, the first at {different[0]}"


# A NaN no arithmetic produces, so that writing a NaN into the frame is noticed as well.
_NAN_BITS = {FLOAT16: 0x7ECD, BFLOAT16: 0x7FCD, FLOAT32: 0x7FC0CDCD, FLOAT64: 0x7FF8CDCDCDCDCDCD}


class Framed:
    """An array placed as `view` inside a larger buffer of NaN (of the largest integer): a stray read shows as NaN."""

    def __init__(self, array, margin=5):
        array = np.asarray(array)
        buffer = np.empty([n + 2 * margin for n in array.shape], array.dtype)
        buffer_bits = buffer.view(np.dtype(f"u{array.dtype.itemsize}"))
        fill = _NAN_BITS[array.dtype] if array.dtype in _NAN_BITS else np.iinfo(array.dtype).max
        buffer_bits[...] = fill
        window = tuple(slice(margin, margin + n) for n in array.shape)
        self.view = buffer[window]
        self.view[...] = array
        frame = np.ones(buffer.shape, dtype=bool)
        frame[window] = False
        self._frame_bits = lambda: buffer_bits[frame]
        self._fill = fill

    def assert_frame_untouched(self):
        touched = np.count_nonzero(self._frame_bits() != self._fill)
        assert not touched, f"{touched} elements outside of the array were written"


framed = Framed


class GuardedMemory:
    """Arrays that end (or begin) exactly at a page that cannot be read: reading past them kills the process.

    NaN frames show a stray read only if its value is used; a guard page shows any. Linux only.
    """

    _PROT_NONE, _READ_WRITE, _PRIVATE_ANONYMOUS = 0, 3, 0x22

    def __init__(self):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.mmap.restype = ctypes.c_void_p
        self._libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self._libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._blocks = []

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        for address, size in self._blocks:
            self._libc.munmap(address, size)

    def place(self, array, before=False):
        """A C-contiguous copy of `array` that ends, or with `before` begins, at a guard page."""
        page = mmap.PAGESIZE
        body = math.ceil(max(array.nbytes, 1) / page) * page
        address = self._libc.mmap(None, body + 2 * page, self._READ_WRITE, self._PRIVATE_ANONYMOUS, -1, 0)
        assert address not in (None, ctypes.c_void_p(-1).value), "mmap failed"
        self._blocks.append((address, body + 2 * page))
        for guard in (address, address + page + body):
            assert self._libc.mprotect(guard, page, self._PROT_NONE) == 0
        start = address + page if before else address + page + body - array.nbytes
        memory = (ctypes.c_char * array.nbytes).from_address(start)
        placed = np.frombuffer(memory, dtype=np.uint8).view(array.dtype).reshape(array.shape)
        placed[...] = array
        return placed


linux_only = {"condition": not sys.platform.startswith("linux"), "reason": "guard pages are made with Linux's mmap"}


def run_in_child(method, function, *args):
    """Run `function(*args)` in a process started by `fork` or `spawn`; a failure or a crash there fails here."""
    process = multiprocessing.get_context(method).Process(target=function, args=args)
    with warnings.catch_warnings():
        # Python 3.12 and later warn that forking a process with threads may deadlock: that it does not is the claim.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    process.join(120)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"the child ({method}) hangs")
    assert process.exitcode == 0, f"the child ({method}) ended with {process.exitcode} (-11: read outside of an array)"


# --- patterns ---------------------------------------------------------------------------------------------------------


def random_layout(n_q, n_k, block, share=0.4, seed=0):
    """A random block layout of the size that (n_q, n_k) asks for."""
    shape = math.ceil(n_q / block), math.ceil(n_k / block)
    return np.random.default_rng(seed).random(shape) < share


def random_csr(n_q, n_k, share=0.2, seed=0):
    """A random CSR array; some rows are empty where there are many."""
    return scipy.sparse.csr_array(np.random.default_rng(seed).random((n_q, n_k)) < share)


def random_lengths(n, mean=12, seed=0):
    """Lengths of segments, some of them empty, that sum to n."""
    rng = np.random.default_rng(seed)
    return np.diff(np.concatenate(([0], np.sort(rng.integers(0, n + 1, n // mean)), [n])))


# One to three axes for every number of tokens in SIZES; a prime number of tokens is a line.
_GRIDS = {
    15: (3, 5),
    16: (4, 2, 2),
    17: (17,),
    40: (5, 8),
    63: (3, 3, 7),
    64: (8, 8),
    97: (97,),
    300: (5, 6, 10),
}


def grid(n):
    return _GRIDS.get(n, (n,))


def _square(make):
    """A case of a pattern whose n_q must be n_k; elsewhere one that allows nothing."""
    return lambda n_q, n_k: make(n_q) if n_q == n_k > 0 else Global([])


def _fitting(n, window, dilation=1, causal=False):
    """The neighbourhood of the grid of n tokens, its window and dilation cut to what an axis can hold."""
    shape = grid(n)
    dilations = tuple(max(1, min(dilation, axis // window)) for axis in shape)
    windows = tuple(min(window, axis // r) for axis, r in zip(shape, dilations, strict=True))
    return Neighborhood(shape, windows, dilations, tuple(causal and axis % 2 == 0 for axis in range(len(shape))))


def _tokens(n_k, *tokens):
    return [token for token in tokens if token < n_k]


# A case is a pattern, or a function of (n_q, n_k) where the pattern has to fit the sizes.
_CASES = {
    "dense": Dense(),
    "causal": Causal(),
    "banded-0": Banded(0),
    "banded-3": Banded(3),
    "banded-32": Banded(32),
    "banded-left": Banded((5, 0)),
    "banded-right": Banded((0, 5)),
    "banded-uneven": Banded((11, 2)),
    "banded-unbounded-left": Banded((None, 3)),
    "banded-unbounded-right": Banded((4, None)),
    "banded-unbounded": Banded((None, None)),
    "strided-1": Strided(1),
    "strided-7": Strided(7),
    "strided-16": Strided(16),
    "strided-1000": Strided(1000),
    "global": lambda n_q, n_k: Global(_tokens(n_k, 0, 5, 11, 62)),
    "global-rows": lambda n_q, n_k: Global(_tokens(n_k, 1, 2, 30), columns=False),
    "global-columns": lambda n_q, n_k: Global(_tokens(n_k, 0, 1, 17), rows=False),
    "global-none": Global([]),
    "random-1": Random(1, 3),
    "random-5": Random(5, 0),
    "random-blocks": Random(2, 1, block=16),
    "random-odd-blocks": Random(3, 2, block=5),
    "random-all": Random(10_000, 4),
    "blocks-16": lambda n_q, n_k: BlockSparse(random_layout(n_q, n_k, 16), 16),
    "blocks-5": lambda n_q, n_k: BlockSparse(random_layout(n_q, n_k, 5), 5),
    "blocks-1": lambda n_q, n_k: BlockSparse(random_layout(n_q, n_k, 1, share=0.2), 1),
    "longformer": longformer(8, 3),
    "longformer-scattered": lambda n_q, n_k: longformer(4, _tokens(n_k, 2, 40)),
    "bigbird": bigbird(8),
    "streaming": streaming(4, 16),
    "dilated": dilated(4, 3),
    "union-overlapping": Banded(6) | Banded((9, 1)) | Strided(4),
    "union-strides": Strided(6) | Strided(9) | Strided(16),
    "union-stride-window": Strided(25) | Banded((30, 0)) | Global(range(3), rows=False),
    "union-random": Random(4, 5) | Banded(2) | Random(3, 6),
    "intersection": Causal() & Strided(5),
    "intersection-random": Random(9, 7) & Causal(),
    "difference": Dense() - Banded(10),
    "difference-random": Causal() - Random(6, 8),
    "nested": lambda n_q, n_k: ((Strided(3) | Global(_tokens(n_k, 4))) & Banded(20)) - Banded((1, 1)),
    "nothing": Causal() - Causal(),
    "columns": Columns(7, 2),
    "columns-1": Columns(1, 1),
    "columns-wide": Columns(40, 39),
    "columns-causal": Columns(5, 1) & Causal(),
    "columns-left-out": Causal() - Columns(3, 1),
    "columns-two": (Columns(6, 2) & Causal()) | Columns(9, 4) - Banded(3),
    "columns-strided": Strided(6) - Columns(3, 2),
    "log-sparse": LogSparse(),
    "log-sparse-window": LogSparse() | Banded((3, 0)),
    "fixed": sparse_transformer_fixed(8, 2),
    "strided-preset": sparse_transformer_strided(9),
    "narrow": Banded(0) | LogSparse(),
    "explicit": lambda n_q, n_k: Explicit(random_csr(n_q, n_k)),
    "explicit-dense": lambda n_q, n_k: Explicit(random_csr(n_q, n_k, 0.9, 1)),
    "explicit-expression": lambda n_q, n_k: (Explicit(random_csr(n_q, n_k, 0.4, 2)) - Banded(5)) | Strided(8),
    "packed": _square(lambda n: Packed(random_lengths(n))),
    "packed-short": _square(lambda n: Packed(random_lengths(n, 3))),
    "packed-causal": _square(lambda n: Packed(random_lengths(n, 30, 1)) & Causal()),
    "packed-window": _square(lambda n: Packed(random_lengths(n, 40, 2)) & Banded(6)),
    "packed-global": _square(lambda n: (Packed(random_lengths(n, 25, 3)) & Banded((9, 2))) | Global(_tokens(n, 0, 14))),
    "packed-strided": _square(lambda n: Packed(random_lengths(n, 40, 4)) & Strided(3)),
    "neighborhood-3": _square(lambda n: _fitting(n, 3)),
    "neighborhood-4": _square(lambda n: _fitting(n, 4)),
    "neighborhood-dilated": _square(lambda n: _fitting(n, 3, 2)),
    "neighborhood-causal": _square(lambda n: _fitting(n, 3, 2, True)),
    "neighborhood-expression": _square(lambda n: (_fitting(n, 5) | Columns(10, 1)) - Packed(random_lengths(n, 20, 5))),
    "transposed-causal": Causal().transpose(),
    "transposed-columns": Columns(7, 2).transpose() & Causal(),
    "transposed-random": Random(3, 1, block=2).transpose(),
    "transposed-log": LogSparse().transpose() | Banded((3, 1)).transpose(),
    "transposed-blocks": Banded(1, block=5).transpose() | Banded((6, 0)),
    "transposed-global": lambda n_q, n_k: Global(_tokens(n_q, 1, 3), columns=False).transpose(),
    "transposed-neighborhood": _square(lambda n: _fitting(n, 4, 2).transpose()),
}
CASES = list(_CASES)

# Patterns told by the position p alone: a query row means the same whether it is computed alone or among others.
POSITIONAL = [
    name
    for name in CASES
    if not any(word in name for word in ("random", "blocks", "bigbird", "explicit", "packed", "neighborhood"))
    and name not in ("global-none", "nothing", "transposed-columns", "transposed-global")
]


def case(name, n_q, n_k):
    """The pattern of the catalogue's name, at this size."""
    found = _CASES[name]
    return found(n_q, n_k) if callable(found) and not hasattr(found, "contains") else found


@st.composite
def leaves(draw, n_q, n_k):
    """One pattern without algebra that is legal at this size."""
    kinds = ["dense", "causal", "band", "sides", "strided", "columns", "log", "global", "random", "blocks", "explicit"]
    if n_q == n_k > 0:
        kinds += ["packed", "neighborhood"]
    kind = draw(st.sampled_from(kinds))
    seed = st.integers(0, 2**32 - 1)
    if kind == "dense":
        return Dense()
    if kind == "causal":
        return Causal()
    if kind == "band":
        return Banded(draw(st.integers(0, 40)))
    if kind == "sides":
        side = st.none() | st.integers(0, 40)
        return Banded((draw(side), draw(side)))
    if kind == "strided":
        return Strided(draw(st.integers(1, 20)))
    if kind == "global":
        tokens = draw(st.sets(st.integers(0, n_k - 1), max_size=4)) if n_k else set()
        rows, columns = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
        return Global(tokens, rows=rows, columns=columns)
    if kind == "columns":
        stride = draw(st.integers(1, 20))
        return Columns(stride, draw(st.integers(1, stride)))
    if kind == "log":
        return LogSparse()
    if kind == "explicit":
        return Explicit(random_csr(n_q, n_k, draw(st.sampled_from([0.02, 0.3, 0.9])), draw(seed)))
    if kind == "packed":
        return Packed(random_lengths(n_q, draw(st.integers(1, 40)), draw(seed)))
    if kind == "neighborhood":
        return _fitting(n_q, draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.booleans()))
    block = draw(st.integers(1, 20))
    if kind == "random":
        return Random(draw(st.integers(1, 6)), draw(seed), block=block)
    return BlockSparse(random_layout(n_q, n_k, block, draw(st.sampled_from([0.1, 0.5, 0.9])), draw(seed)), block)


@st.composite
def expressions(draw, n_q, n_k, depth=3):
    """Unions, intersections and differences of patterns (or of transposed ones), nested at most `depth` deep."""
    if depth == 0 or draw(st.integers(0, 2)) == 0:
        if draw(st.integers(0, 3)) == 0:
            return draw(leaves(n_k, n_q)).transpose()
        return draw(leaves(n_q, n_k))
    left, right = (draw(expressions(n_q, n_k, depth - 1)) for _ in range(2))
    return {"|": left | right, "&": left & right, "-": left - right}[draw(st.sampled_from("|&-"))]


@st.composite
def sized_expressions(draw, largest=70, depth=3):
    """`(pattern, n_q, n_k)`, sizes from 0."""
    n_q = draw(st.integers(0, largest))
    n_k = draw(st.just(n_q) | st.sampled_from([n for n in _GRIDS if n <= largest]) | st.integers(0, largest))
    if n_k in _GRIDS and draw(st.booleans()):
        n_q = n_k
    return draw(expressions(n_q, n_k, depth)), n_q, n_k


# Around the edges of register tiles and vectors; wide, tall, and nothing at all.
SIZES = [(0, 0), (0, 5), (5, 0), (1, 1), (15, 15), (16, 16), (17, 17), (63, 63), (97, 97)]
SIZES += [(1, 200), (16, 111), (33, 64), (111, 16), (64, 17), (200, 63)]

# Leading axes of queries, and of keys and values: none, heads, batch and heads, grouped heads.
LEADING = [
    ((), ()),
    ((1,), (1,)),
    ((3,), (3,)),
    ((6,), (2,)),
    ((4,), (1,)),
    ((2, 3), (2, 3)),
    ((3, 6), (3, 2)),
    ((2, 4), (2, 1)),
    ((1, 1), (1, 1)),
]
