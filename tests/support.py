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
from hypothesis import strategies as st

from subquad import (
    Banded,
    BlockSparse,
    Causal,
    Dense,
    Global,
    Random,
    Strided,
    bigbird,
    dilated,
    longformer,
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
}
CASES = list(_CASES)

# Patterns told by the position p alone: a query row means the same whether it is computed alone or among others.
POSITIONAL = [
    name
    for name in CASES
    if not any(word in name for word in ("random", "blocks", "bigbird")) and name not in ("global-none", "nothing")
]


def case(name, n_q, n_k):
    """The pattern of the catalogue's name, at this size."""
    found = _CASES[name]
    return found(n_q, n_k) if callable(found) and not hasattr(found, "contains") else found


@st.composite
def leaves(draw, n_q, n_k):
    """One pattern without algebra that is legal at this size."""
    kind = draw(st.sampled_from(["dense", "causal", "band", "sides", "strided", "global", "random", "blocks"]))
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
    block = draw(st.integers(1, 20))
    if kind == "random":
        return Random(draw(st.integers(1, 6)), draw(seed), block=block)
    return BlockSparse(random_layout(n_q, n_k, block, draw(st.sampled_from([0.1, 0.5, 0.9])), draw(seed)), block)


@st.composite
def expressions(draw, n_q, n_k, depth=3):
    """Unions, intersections and differences of patterns, nested at most `depth` deep."""
    if depth == 0 or draw(st.integers(0, 2)) == 0:
        return draw(leaves(n_q, n_k))
    left, right = (draw(expressions(n_q, n_k, depth - 1)) for _ in range(2))
    return {"|": left | right, "&": left & right, "-": left - right}[draw(st.sampled_from("|&-"))]


@st.composite
def sized_expressions(draw, largest=70, depth=3):
    """`(pattern, n_q, n_k)`, sizes from 0."""
    n_q, n_k = (draw(st.integers(0, largest)) for _ in range(2))
    return draw(expressions(n_q, n_k, depth)), n_q, n_k


# Around the edges of register tiles and vectors; wide, tall, and nothing at all.
SIZES = [(0, 0), (0, 5), (5, 0), (1, 1), (15, 15), (16, 16), (17, 17), (63, 63), (97, 97)]
SIZES += [(1, 200), (16, 111), (33, 64), (111, 16), (64, 17), (200, 63)]
