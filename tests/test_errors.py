"""A user's mistake gives one error that names the argument and the value, and leaves `out` as it was."""

from __future__ import annotations

import contextlib
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import scipy.sparse
from support import assert_same_bits, inputs, result_or_refusal

from subquad import (
    Banded,
    BlockSparse,
    Causal,
    Dense,
    Global,
    Random,
    Strided,
    attention,
    attention_scores,
    attention_weights,
    bigbird,
    dilated,
    longformer,
    merge,
    streaming,
)

EITHER = (TypeError, ValueError)


@contextlib.contextmanager
def refused(kinds, *needles):
    """The block raises one of `kinds`, from the library itself, with each of `needles` in its message."""
    with pytest.raises(kinds) as caught:
        yield
    error = caught.value
    assert not type(error).__module__.startswith(("numba", "llvmlite")), "a trace of Numba's"
    assert error.__cause__ is None, "two errors where one is enough"
    assert error.__context__ is None or error.__suppress_context__, "two errors where one is enough"
    for needle in needles:
        assert needle in str(error)
    assert len(str(error).split()) >= 5, "too short to name the argument, the rule and the value"


def layout(rows, columns):
    return np.ones((rows, columns), dtype=bool)


def corrupt_csr(field, place, wrong):
    bad = scipy.sparse.csr_array(layout(3, 3))
    getattr(bad, field)[place] = wrong
    return bad


PATTERNS = {
    "window-negative": (lambda: Banded(-1), ValueError, "window", "-1"),
    "window-negative-numpy": (lambda: Banded(np.int64(-4)), ValueError, "window", "-4"),
    "window-left-negative": (lambda: Banded((-2, 3)), ValueError, "window", "-2"),
    "window-right-negative": (lambda: Banded((3, -2)), ValueError, "window", "-2"),
    "window-fraction": (lambda: Banded(2.5), EITHER, "window", "2.5"),
    "window-numpy-fraction": (lambda: Banded(np.float64(2.5)), EITHER, "window", "2.5"),
    "window-numpy-float": (lambda: Banded(np.float32(4)), EITHER, "window", "4"),
    "window-nan": (lambda: Banded(float("nan")), EITHER, "window", "nan"),
    "window-side-fraction": (lambda: Banded((1, 0.5)), EITHER, "window", "0.5"),
    "window-bool": (lambda: Banded(True), EITHER, "window", "True"),
    "window-numpy-bool": (lambda: Banded(np.True_), EITHER, "window", "True"),
    "window-text": (lambda: Banded("3"), EITHER, "window", "3"),
    "window-none": (lambda: Banded(None), EITHER, "window", "None"),
    "window-one-side": (lambda: Banded((1,)), EITHER, "window", "1"),
    "window-three-sides": (lambda: Banded((1, 2, 3)), EITHER, "window", "3"),
    "window-array": (lambda: Banded(np.array([[1, 2], [3, 4]])), EITHER, "window"),
    "stride-zero": (lambda: Strided(0), ValueError, "stride", "0"),
    "stride-negative": (lambda: Strided(-3), ValueError, "stride", "-3"),
    "stride-fraction": (lambda: Strided(2.5), EITHER, "stride", "2.5"),
    "stride-bool": (lambda: Strided(True), EITHER, "stride", "True"),
    "stride-none": (lambda: Strided(None), EITHER, "stride", "None"),
    "tokens-negative": (lambda: Global([3, -1]), ValueError, "tokens", "-1"),
    "tokens-fraction": (lambda: Global([1.5]), EITHER, "tokens", "1.5"),
    "tokens-numpy-fraction": (lambda: Global(np.array([0.5, 2.0])), EITHER, "tokens", "0.5"),
    "tokens-bool": (lambda: Global([True]), EITHER, "tokens", "True"),
    "tokens-text": (lambda: Global(["a"]), EITHER, "tokens", "a"),
    "tokens-not-iterable": (lambda: Global(None), EITHER, "tokens", "None"),
    "global-of-no-half": (lambda: Global([0], rows=False, columns=False), ValueError, "rows", "columns", "False"),
    "keys-zero": (lambda: Random(0, 1), ValueError, "keys", "0"),
    "keys-negative": (lambda: Random(-2, 1), ValueError, "keys", "-2"),
    "keys-fraction": (lambda: Random(2.5, 1), EITHER, "keys", "2.5"),
    "keys-bool": (lambda: Random(True, 1), EITHER, "keys", "True"),
    "random-block-zero": (lambda: Random(2, 1, block=0), ValueError, "block", "0"),
    "random-block-fraction": (lambda: Random(2, 1, block=1.5), EITHER, "block", "1.5"),
    "seed-fraction": (lambda: Random(2, 0.5), EITHER, "seed", "0.5"),
    "seed-none": (lambda: Random(2, None), EITHER, "seed", "None"),
    "layout-block-zero": (lambda: BlockSparse(layout(2, 2), 0), ValueError, "block", "0"),
    "layout-block-fraction": (lambda: BlockSparse(layout(2, 2), 2.5), EITHER, "block", "2.5"),
    "layout-one-axis": (lambda: BlockSparse(np.ones(4, dtype=bool), 2), EITHER, "layout", "4"),
    "layout-three-axes": (lambda: BlockSparse(np.ones((2, 2, 3), dtype=bool), 2), EITHER, "layout", "3"),
    "layout-objects": (lambda: BlockSparse(np.array([[None, "x"]], dtype=object), 2), EITHER, "layout", "object"),
    "layout-none": (lambda: BlockSparse(None, 2), EITHER, "layout"),
    "layout-index-past-the-end": (lambda: BlockSparse(corrupt_csr("indices", 4, 7), 2), ValueError, "layout", "7"),
    "layout-index-negative": (lambda: BlockSparse(corrupt_csr("indices", 4, -1), 2), ValueError, "layout", "-1"),
    "layout-indptr-falls": (lambda: BlockSparse(corrupt_csr("indptr", 1, 9), 2), ValueError, "layout", "indptr"),
    "layout-indptr-too-long": (lambda: BlockSparse(corrupt_csr("indptr", 3, 99), 2), ValueError, "layout", "indptr"),
    "longformer-window": (lambda: longformer(-1, 2), ValueError, "window", "-1"),
    "longformer-tokens": (lambda: longformer(4, -1), ValueError, "tokens", "-1"),
    "longformer-tokens-fraction": (lambda: longformer(4, 1.5), EITHER, "tokens", "1.5"),
    "longformer-tokens-bool": (lambda: longformer(4, True), EITHER, "tokens", "True"),
    "bigbird-block": (lambda: bigbird(0), ValueError, "block", "0"),
    "bigbird-window-blocks": (lambda: bigbird(8, window_blocks=-1), ValueError, "window_blocks", "-1"),
    "bigbird-random-blocks": (lambda: bigbird(8, random_blocks=-2), ValueError, "random_blocks", "-2"),
    "bigbird-random-blocks-fraction": (lambda: bigbird(8, random_blocks=2.5), EITHER, "random_blocks", "2.5"),
    "bigbird-global-blocks": (lambda: bigbird(8, global_blocks=-1), ValueError, "global_blocks", "-1"),
    "streaming-sinks": (lambda: streaming(-1, 4), ValueError, "sinks", "-1"),
    "streaming-window": (lambda: streaming(2, 0), ValueError, "window", "0"),
    "streaming-window-fraction": (lambda: streaming(2, 4.5), EITHER, "window", "4.5"),
    "dilated-window": (lambda: dilated(-1, 2), ValueError, "window", "-1"),
    "dilated-dilation": (lambda: dilated(2, 0), ValueError, "dilation", "0"),
    "dilated-dilation-fraction": (lambda: dilated(2, 1.5), EITHER, "dilation", "1.5"),
    "n_q-negative": (lambda: Banded(1).nnz(-1, 5), ValueError, "n_q", "-1"),
    "n_k-negative": (lambda: Banded(1).plan(5, -1), ValueError, "n_k", "-1"),
    "n_q-fraction": (lambda: Causal().plan(2.5, 5), EITHER, "n_q", "2.5"),
    "tokens-past-the-end": (lambda: Global([0, 12]).plan(12, 12), ValueError, "tokens", "12"),
    "layout-of-another-size": (lambda: BlockSparse(layout(2, 3), 4).plan(12, 12), ValueError, "layout", "2", "3"),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_refuse(name):
    make, kinds, *needles = PATTERNS[name]
    with refused(kinds, *needles):
        make()


@pytest.mark.parametrize("other", [3, "causal", None, np.ones((2, 2), dtype=bool), Banded], ids=str)
def test_algebra_with_no_pattern(other):
    for operation in ("__or__", "__and__", "__sub__"):
        assert getattr(Banded(1), operation)(other) is NotImplemented
    with pytest.raises(TypeError):
        Banded(1) | other
    with pytest.raises(TypeError):
        other - Banded(1)


@pytest.mark.parametrize("i", [-13, 12, 100])
def test_row_out_of_range(i):
    for method in (Banded(1).row, Banded(1).explain):
        with refused((IndexError, ValueError), "i", str(i)):
            method(i, 12, 12)


HEADS, N, D = 4, 12, 8


def array(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def read_only_out():
    out = array(HEADS, N, D)
    out.flags.writeable = False
    return {"out": out}


def out_over(name, shift=0):
    """`out` that shares memory with an input, some elements further on."""
    memory = array(2 * HEADS * N * D)
    size = HEADS * N * D
    parts = memory[:size], memory[shift : shift + size]
    return {name: parts[0].reshape(HEADS, N, D), "out": parts[1].reshape(HEADS, N, D)}


# What is changed in a call that is right, the error, and what its message names.
CALLS = {
    "query-one-axis": ({"query": array(D)}, ValueError, "query", "axes"),
    "query-five-axes": ({"query": array(1, 1, HEADS, N, D)}, ValueError, "query", "axes"),
    "query-scalar": ({"query": np.float32(1)}, EITHER, "query"),
    "query-none": ({"query": None}, EITHER, "query"),
    "key-rank": ({"key": array(N, D)}, ValueError, "key", "(12, 8)"),
    "value-rank": ({"value": array(1, HEADS, N, D)}, ValueError, "value", "(1, 4, 12, 8)"),
    "key-width": ({"key": array(HEADS, N, 5)}, ValueError, "key", "5", "8"),
    "value-length": ({"value": array(HEADS, 7, D)}, ValueError, "value", "7", "12"),
    "key-length": ({"key": array(HEADS, 9, D)}, ValueError, "key", "9", "12"),
    "heads-do-not-divide": (
        {"key": array(3, N, D), "value": array(3, N, D)},
        ValueError,
        "head",
        "3",
        "4",
    ),
    "more-key-heads": ({"key": array(8, N, D), "value": array(8, N, D)}, ValueError, "head", "8", "4"),
    "no-key-heads": ({"key": array(0, N, D), "value": array(0, N, D)}, ValueError, "head", "0", "4"),
    "value-heads": ({"value": array(2, N, D)}, ValueError, "value", "2", "4"),
    "batches": (
        {"query": array(2, HEADS, N, D), "key": array(3, HEADS, N, D), "value": array(3, HEADS, N, D)},
        ValueError,
        "batch",
        "2",
        "3",
    ),
    "batches-do-not-broadcast": (
        {"query": array(2, HEADS, N, D), "key": array(1, HEADS, N, D), "value": array(1, HEADS, N, D)},
        ValueError,
        "batch",
        "2",
        "1",
    ),
    "no-width": ({"query": array(HEADS, N, 0), "key": array(HEADS, N, 0)}, ValueError, "0"),
    "no-value-width": ({"value": array(HEADS, N, 0)}, ValueError, "value", "0"),
    **{
        f"{name}-{dtype}": ({name: np.ones((HEADS, N, D), dtype)}, EITHER, name, dtype)
        for name in ("query", "key", "value")
        for dtype in ("int32", "uint8", "bool", "object", "complex64")
    },
    "query-text": ({"query": np.full((HEADS, N, D), "x")}, EITHER, "query"),
    "query-longdouble": ({"query": array(HEADS, N, D, dtype=np.longdouble)}, EITHER, "query", str(np.dtype("g"))),
    "query-float8": ({"query": array(HEADS, N, D, dtype=ml_dtypes.float8_e4m3fn)}, EITHER, "query", "float8"),
    "key-of-another-dtype": ({"key": array(HEADS, N, D, dtype=float)}, EITHER, "key", "float64", "float32"),
    "value-of-another-dtype": ({"value": array(HEADS, N, D, dtype=np.float16)}, EITHER, "value", "float16", "float32"),
    **{
        f"pattern-{text}": ({"pattern": pattern}, EITHER, "pattern", text)
        for text, pattern in [("causal", "causal"), ("256", 256), ("None", None), ("Banded", Banded), ("0.5", 0.5)]
    },
    "pattern-mask": ({"pattern": layout(N, N)}, EITHER, "pattern"),
    "pattern-csr": ({"pattern": scipy.sparse.csr_array(layout(N, N))}, EITHER, "pattern"),
    "tokens-out-of-range": ({"pattern": Global([3, 12])}, ValueError, "tokens", "12"),
    "tokens-out-of-range-within": ({"pattern": Banded(2) | Global([99], rows=False)}, ValueError, "tokens", "99"),
    "layout-too-small": ({"pattern": BlockSparse(layout(2, 2), 4)}, ValueError, "layout", "2 x 2", "3 x 3"),
    "layout-too-large": ({"pattern": BlockSparse(layout(4, 3), 4)}, ValueError, "layout", "4 x 3", "3 x 3"),
    "layout-within": ({"pattern": Causal() & BlockSparse(layout(3, 4), 4)}, ValueError, "layout", "3 x 4", "3 x 3"),
    "threads-zero": ({"num_threads": 0}, ValueError, "num_threads", "0"),
    "threads-negative": ({"num_threads": -2}, ValueError, "num_threads", "-2"),
    "threads-fraction": ({"num_threads": 2.5}, EITHER, "num_threads", "2.5"),
    "threads-numpy-fraction": ({"num_threads": np.float64(1.5)}, EITHER, "num_threads", "1.5"),
    "threads-bool": ({"num_threads": True}, EITHER, "num_threads", "True"),
    "threads-text": ({"num_threads": "two"}, EITHER, "num_threads", "two"),
    "scale-text": ({"scale": "big"}, EITHER, "scale", "big"),
    "scale-complex": ({"scale": 1j}, EITHER, "scale", "1j"),
    "scale-nan": ({"scale": float("nan")}, ValueError, "scale", "nan"),
    "scale-infinite": ({"scale": -np.inf}, ValueError, "scale", "inf"),
    "scale-past-float32": ({"scale": 1e300}, ValueError, "scale", "1e+300", "float32"),
    "scale-array": ({"scale": np.array([1.0, 2.0])}, EITHER, "scale", "2"),
    "out-shape": ({"out": array(HEADS, N, D + 1)}, ValueError, "out", "(4, 12, 9)", "(4, 12, 8)"),
    "out-rank": ({"out": array(HEADS * N * D)}, ValueError, "out", "(384,)", "(4, 12, 8)"),
    "out-dtype": ({"out": array(HEADS, N, D, dtype=float)}, EITHER, "out", "float64", "float32"),
    "out-list": ({"out": [[0.0]]}, EITHER, "out", "list"),
    "out-read-only": (read_only_out(), ValueError, "out", "read-only"),
    "out-is-query": (out_over("query"), ValueError, "out", "query"),
    "out-is-key": (out_over("key"), ValueError, "out", "key"),
    "out-is-value": (out_over("value"), ValueError, "out", "value"),
    "out-overlaps-query": (out_over("query", 100), ValueError, "out", "query"),
    "out-overlaps-key": (out_over("key", 1), ValueError, "out", "key"),
    "out-overlaps-value": (out_over("value", HEADS * N * D - 1), ValueError, "out", "value"),
}


@pytest.mark.parametrize("name", CALLS)
def test_attention_refuses_and_leaves_out_alone(rng, name):
    change, kinds, *needles = CALLS[name]
    query, key, value = inputs(rng, N, N, D, leading=(HEADS,))
    out = np.full(query.shape, np.nan, np.float32)
    call = {"query": query, "key": key, "value": value, "pattern": Banded(2), "out": out, **change}
    if name.startswith("batches"):
        call["out"] = np.full((2, HEADS, N, D), np.nan, np.float32)
    before = np.array(call["out"], copy=True)
    with refused(kinds, *needles):
        attention(**call)
    assert_same_bits(np.asarray(call["out"]), before)


SCORE_CALLS = [name for name in CALLS if set(CALLS[name][0]) <= {"query", "key", "pattern", "scale"}]


@pytest.mark.parametrize("function", [attention_scores, attention_weights])
@pytest.mark.parametrize("name", [name for name in SCORE_CALLS if name != "key-length"])
def test_scores_refuse(rng, name, function):
    change, kinds, *needles = CALLS[name]
    query, key, _ = inputs(rng, N, N, D, leading=(HEADS,))
    with refused(kinds, *needles):
        function(**{"query": query, "key": key, "pattern": Banded(2), **change})


def test_an_unknown_argument_is_refused(rng):
    with pytest.raises(TypeError, match="window"):
        attention(*inputs(rng, N, N), Banded(2), window=3)


def test_out_beside_the_inputs_in_one_buffer_does_not_overlap(rng):
    """Query, key, value and output as columns of one array share a buffer, but no element."""
    fused = rng.standard_normal((N, 4 * D)).astype(np.float32)
    query, key, value, out = (fused[:, start : start + D] for start in range(0, 4 * D, D))
    copies = query.copy(), key.copy(), value.copy()
    attention(query, key, value, Banded(2), out=out)
    assert_same_bits(out, attention(*copies, Banded(2)))
    for array_, copy in zip((query, key, value), copies, strict=True):
        assert_same_bits(array_, copy)


MERGES = {
    "lse-length": ({"lse_a": array(HEADS, N + 1)}, ValueError, "lse_a", "13"),
    "lse-rank": ({"lse_b": array(HEADS, N, 1)}, ValueError, "lse_b", "(4, 12, 1)"),
    "out-shapes": ({"out_b": array(HEADS, N, D + 1)}, ValueError, "out_b", "9", "8"),
    "out-integers": ({"out_a": array(HEADS, N, D, dtype=int)}, EITHER, "out_a", "int64"),
    "lse-integers": ({"lse_b": array(HEADS, N, dtype=int)}, EITHER, "lse_b", "int64"),
    "out-dtypes": ({"out_b": array(HEADS, N, D, dtype=float)}, EITHER, "out_b", "float64", "float32"),
}


@pytest.mark.parametrize("name", MERGES)
def test_merge_refuses(name):
    change, kinds, *needles = MERGES[name]
    out, lse = array(HEADS, N, D), array(HEADS, N)
    parts = {"out_a": out, "lse_a": lse, "out_b": out, "lse_b": lse}
    with refused(kinds, *needles):
        merge(**{**parts, **change})


def broadcast(*shape):
    return np.broadcast_to(np.float32(1), shape)


# No machine has these bytes. An attempt to allocate part of them first would show in the peak.
TOO_LARGE = {
    "output": (lambda: attention(broadcast(2**46, 8), broadcast(8, 8), broadcast(8, 8), Banded(3)), "output"),
    "output-square": (lambda: attention(*[broadcast(2**46, 8)] * 3, Banded(3)), "output"),
    "output-heads": (lambda: attention(*[broadcast(2**40, 99, 8)] * 3, Banded(3)), "output"),
    "scores": (lambda: attention_scores(broadcast(2**23, 8), broadcast(2**23, 8), Dense()), "pairs"),
    "weights": (lambda: attention_weights(broadcast(2**23, 8), broadcast(2**23, 8), Causal()), "pairs"),
    "scores-heads": (lambda: attention_scores(*[broadcast(2**40, 99, 8)] * 2, Banded(3)), "scores"),
    "csr": (lambda: Strided(2).to_csr(2**23, 2**23), "pairs"),
    "row": (lambda: Dense().row(0, 1, 2**50), "n_k"),
    "plan": (lambda: Banded(3).plan(2**46, 2**46), "n_q"),
    "random-plan": (lambda: Random(2**18, 0).plan(2**24, 2**24), "Random"),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_cannot_be_allocated_is_refused_before_anything_is(name):
    call, needle = TOO_LARGE[name]
    tracemalloc.start()
    try:
        with refused((MemoryError, ValueError), needle):
            call()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("pattern", [Dense(), Causal(), Strided(3), Banded(2**40), Random(2**40, 0)], ids=repr)
def test_counts_past_64_bits_are_exact_or_refused(pattern):
    """No count wraps around in silence."""
    n = 2**35
    exact = {"Dense": n * n, "Causal": n * (n + 1) // 2, "Strided": (n * n + 2) // 3}.get(type(pattern).__name__, n * n)
    count, refusal = result_or_refusal(lambda: pattern.nnz(n, n))
    if refusal is None:
        assert count == exact
    else:
        assert "n_q" in refusal
