"""The kernels' source as plain Python: no access outside of its array, and the results of the compiled kernels."""

from __future__ import annotations

from types import MappingProxyType
from unittest.mock import patch

import numpy as np
import pytest
from support import BFLOAT16, CASES, FLOAT16, FLOAT32, FLOAT64, case, inputs, score_bound, tolerance
from support_gradients import backward_inputs, gradient_tolerance
from support_interpreted import Interpreter, Place
from support_options import OPTIONS, PATTERNS
from support_pointers import Memory, Pointer

from subquad import (
    Banded,
    Causal,
    Columns,
    Dense,
    KVCache,
    Random,
    attention,
    attention_backward,
    attention_scores,
    dilated,
    forward,
    longformer,
)
from subquad.kernels import layout
from subquad.plan import GatheredPhase, Plan, TiledPhase

N = 40
INTERPRETER = Interpreter()


def assert_close(found, expected, atol):
    for one, other in zip(found, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_allclose(one.astype(np.float64), other.astype(np.float64), rtol=0, atol=atol)


def check_forward(query, key, value, pattern, sizes=MappingProxyType({}), **options):
    """Output and lse of the compiled kernels, after those of the interpreted ones were found the same."""
    expected = attention(query, key, value, pattern, return_lse=True, **options)
    with INTERPRETER.running(**sizes):
        found = attention(query, key, value, pattern, return_lse=True, num_threads=1, **options)
    score = score_bound(query, key) + 1
    assert_close(found, expected, tolerance(query.dtype, N, query.shape[-1], score, np.abs(value).max(initial=1)))
    return expected


def check_backward(grad_out, query, key, value, pattern, sizes=MappingProxyType({}), **options):
    """The same of the three gradients."""
    kept = attention(query, key, value, pattern, return_lse=True, **options)
    expected = attention_backward(grad_out, query, key, value, *kept, pattern, **options)
    with INTERPRETER.running(**sizes):
        found = attention_backward(grad_out, query, key, value, *kept, pattern, num_threads=1, **options)
    d, score = query.shape[-1], score_bound(query, key)
    largest = max(np.abs(x).max(initial=1) for x in expected)
    assert_close(found, expected, gradient_tolerance(query.dtype, N, d, score) * largest)


# --- every kind of mask and of phase ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_forward(rng, name):
    check_forward(*inputs(rng, N, N, 7, 5), case(name, N, N))


@pytest.mark.parametrize("name", ["causal", "banded-3", "strided-7", "random-5", "blocks-5", "explicit", "columns"])
@pytest.mark.parametrize(("n_q", "n_k"), [(1, 1), (5, 40), (40, 17)])
def test_forward_of_other_sizes(rng, name, n_q, n_k):
    check_forward(*inputs(rng, n_q, n_k, 3, 4), case(name, n_q, n_k))


DIFFERENTIATED = (
    *("causal", "banded-3", "strided-7", "global", "random-5", "blocks-5", "difference", "explicit", "columns-two"),
    *("union-stride-window", "fixed", "packed-window", "neighborhood-dilated", "transposed-blocks"),
)


@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_backward(rng, name):
    check_backward(*backward_inputs(rng, N, N, 7, 5), case(name, N, N))


# --- how arrays lie, and what they hold -------------------------------------------------------------------------------


def rows_apart(x):
    """Rows so far from each other that keys are copied into panels, and nothing between them may be touched."""
    wide = np.full((*x.shape[:-1], 700), np.nan).astype(x.dtype)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


LAYOUTS = {
    "rows apart": rows_apart,
    "columns apart": lambda x: np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2),
    "backwards": lambda x: np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1],
    "heads apart": lambda x: np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1),
}


@pytest.mark.parametrize("place", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("pattern", [Banded(9), Random(4)], ids=str)
def test_layouts(rng, pattern, place):
    arrays = backward_inputs(rng, 20, 20, 17, 3, leading=(2,), kv_leading=(1,))
    check_forward(*map(place, arrays[1:]), pattern)
    check_backward(*map(place, arrays), pattern)


@pytest.mark.parametrize("dtype", [FLOAT64, FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("pattern", [Banded(9), Random(4), Banded(9) | Random(2, seed=1)], ids=str)
def test_dtypes(rng, pattern, dtype):
    arrays = backward_inputs(rng, 20, 20, 9, 10, dtype=dtype)
    check_forward(*arrays[1:], pattern)
    check_backward(*arrays, pattern)


@pytest.mark.parametrize("pattern", [Banded(9), Random(4)], ids=str)
@pytest.mark.parametrize(("d", "d_v"), [(33, 35), (64, 8)])
def test_rows_of_several_vectors(rng, pattern, d, d_v):
    arrays = backward_inputs(rng, 9, 9, d, d_v, dtype=FLOAT64)
    check_forward(*arrays[1:], pattern)
    check_backward(*arrays, pattern)


@pytest.mark.parametrize("most", [1, 7, 30])
def test_lists_in_several_blocks(rng, most):
    """Scratch holds no more than a block needs."""
    arrays, sizes = backward_inputs(rng, N, N, 7, 5, leading=(1, 1)), {"BLOCK_PAIRS": most}
    check_forward(*arrays[1:], Random(5), sizes)
    check_backward(*arrays, Random(5), sizes, key_lengths=np.array([N - 7]))


@pytest.mark.parametrize("place", [np.array, rows_apart], ids=["together", "apart"])
@pytest.mark.parametrize("pattern", [Causal(), longformer(30, (0, 150)), dilated(40, 2)], ids=str)
def test_several_steps(rng, pattern, place):
    """More keys than a step holds, and panels that are kept from step to step."""
    arrays = [place(x) for x in backward_inputs(rng, 17, 210, 16, 16)]
    check_forward(*arrays[1:], pattern)
    check_backward(*arrays, pattern)


@pytest.mark.parametrize("d", [9, 17])
@pytest.mark.parametrize("pattern", [Banded(9), Random(2)], ids=str)
def test_what_is_not_finite(rng, pattern, d):
    """Tiles are done a second time, and steps of a backward pair by pair, with masked keys left out."""
    grad_out, query, key, value = backward_inputs(rng, N, N, d, 3)
    value[11, 1], key[17, 0] = np.nan, np.inf
    with np.errstate(all="ignore"):
        out, lse = attention(query, key, value, pattern, return_lse=True)
        arrays = grad_out, query, key, value, out, lse
        expected = out, *attention_backward(*arrays, pattern)
        with INTERPRETER.running():
            found_out = attention(query, key, value, pattern, num_threads=1)
            found = found_out, *attention_backward(*arrays, pattern, num_threads=1)
    assert_close(found, expected, 1e-5 * np.abs(np.nan_to_num(out)).max())
    assert all(0 < np.isfinite(x).sum() < x.size for x in expected[:3])


@pytest.mark.parametrize("pattern", [Banded(9), Random(4)], ids=str)
def test_an_output_of_columns_apart(rng, pattern):
    arrays, (out, expected) = inputs(rng, 20, 20, 5, 6), np.empty((2, 6, 20), FLOAT32).swapaxes(1, 2)
    attention(*arrays, pattern, out=expected)
    with INTERPRETER.running():
        attention(*arrays, pattern, out=out, num_threads=1)
    assert_close([out], [expected], 1e-5)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("pattern", [PATTERNS["tiles"], PATTERNS["lists"]], ids=["tiles", "lists"])
def test_options(rng, pattern, name):
    arrays = backward_inputs(rng, N, N, 16, 17, leading=(2, 3))
    arrays = (*(x[:, :, :5] for x in arrays[:2]), *arrays[2:])
    check_forward(*arrays[1:], pattern, **OPTIONS[name])
    if name != "score_mod":  # its derivative is a matter of Numba's types
        check_backward(*arrays, pattern, **OPTIONS[name])


@pytest.mark.parametrize(
    "options",
    [
        {"key_lengths": [31, 25], "key_starts": [5, 0]},
        {"alibi_slopes": [0.5, 0.125, 0.25]},
        {"alibi_slopes": [1e-8, 0.0, 1e-9], "q_offset": [1 << 24, 0]},
    ],
    ids=str,
)
@pytest.mark.parametrize("pattern", [Columns(4, 1), Dense()], ids=str)
def test_options_of_whole_columns(rng, pattern, options):
    """Lists of keys that tiles share, some of which are not there; keys that all rows see; distances past float32."""
    arrays = backward_inputs(rng, 7, N, 16, 8, leading=(2, 3))
    given = {name: np.array(x) for name, x in options.items()}
    check_forward(*arrays[1:], pattern, **given)
    check_backward(*arrays, pattern, **given)


# --- scores and decoding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", ["banded-3", "random-5", "global", "strided-7"])
def test_scores(rng, name, dtype):
    query, key, _ = inputs(rng, N, 37, 10, leading=(2,), dtype=dtype)
    pattern = case(name, N, 37)
    expected = attention_scores(query, key, pattern).data
    with INTERPRETER.running():
        found = attention_scores(query, key, pattern, num_threads=1).data
    assert_close([found], [expected], tolerance(dtype, 1, 10, score_bound(query, key)))


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, FLOAT16], ids=str)
@pytest.mark.parametrize("name", ["causal", "streaming", "strided-7", "columns"])
def test_decode(rng, name, dtype):
    """Token by token, two query heads for each head of the keys."""
    query, key, value = inputs(rng, N, N, 10, 65, leading=(4,), kv_leading=(2,), dtype=dtype)
    pattern = case(name, N, N) & Causal()
    expected = attention(query, key, value, pattern)
    with INTERPRETER.running():
        cache, found = KVCache(pattern, 2, 10, d_v=65, dtype=dtype), []
        for begin, end in ((0, 35), *((t, t + 1) for t in range(35, N))):
            cache.append(key[:, begin:end], value[:, begin:end])
            found.append(cache.attend(query[:, begin:end], num_threads=1))
    assert_close([np.concatenate(found, axis=1)], [expected], tolerance(dtype, N, 10, score_bound(query, key), 4))


# --- faults that must be seen -----------------------------------------------------------------------------------------


def one_more(column, of):
    """A table of the plan whose last row says one more than there is."""

    def spoil(phase):
        table = getattr(phase, of).copy()
        table[-1:, column] += 1
        return phase._replace(**{of: table})

    return TiledPhase, spoil


def key_too_far(phase):
    return phase._replace(indices=phase.indices + (phase.indices == phase.indices.max()))


TABLES = {
    "a row more": (Banded(9), *one_more(layout.ROW_COUNT, "tiles"), r"rows_to_lanes: .*outside of 'q': q\[200\]"),
    "a run more": (Banded(9), *one_more(layout.RUN_END, "tiles"), r"tiled.py:\d+, visit_runs: .*outside of 'runs'"),
    "a list too far": (longformer(8, 2), *one_more(layout.KEY_LIST, "runs"), r"tiled.py:\d+, .*outside of 'keys'"),
    "a key too far": (Random(4), GatheredPhase, key_too_far, r"gathered.py:\d+, dots: .*outside of 'k': k\[200"),
}


@pytest.mark.parametrize(("pattern", "kind", "spoil", "message"), TABLES.values(), ids=TABLES)
def test_a_wrong_table_is_seen(rng, pattern, kind, spoil, message):
    def addresses(plan, number):
        phase = plan.phases[number]
        return [Place.of(table) for table in (spoil(phase) if isinstance(phase, kind) else phase)]

    seen = pytest.raises(IndexError, match=message)
    with INTERPRETER.running(), patch.object(Plan, "addresses", addresses), seen:
        attention(*inputs(rng, N, N, 5), pattern, num_threads=1)


@pytest.mark.parametrize("which", ["floats", "ints"])
@pytest.mark.parametrize("pattern", [Banded(9), Random(4)], ids=str)
def test_short_scratch_is_seen(rng, monkeypatch, pattern, which):
    real = forward.scratch

    def short(sizes, dtype):
        floats, ints = sizes
        return real((floats // 4, ints) if which == "floats" else (floats, ints // 4), dtype)

    monkeypatch.setattr(forward, "scratch", short)
    with INTERPRETER.running(BLOCK_PAIRS=1), pytest.raises(IndexError, match=rf"(reads|writes) outside of '{which}'"):
        attention(*inputs(rng, N, N, 9), pattern, num_threads=1)


EDITS = {  # module, what stands there, what a slip of the pen would make of it, what is said of it
    "past the lanes": ("tiled", "i if i < n_rows else n_rows - 1", "i", r"rows_to_lanes.*'q'"),
    "one step too many": ("tiled", "for c in range(whole, width):", "for c in range(whole, width + 1):", "'k'"),
    "scores never made": ("softmax", "for j in range(0, n_keys, 6):", "for j in range(6, n_keys, 6):", "never written"),
    "queries for sums": ("tiled", "o_t=at(q_t, d * lanes)", "o_t=q", "writes to the input 'q'"),
}


@pytest.mark.parametrize(("module", "before", "after", "message"), EDITS.values(), ids=EDITS)
def test_a_slip_in_a_kernel_is_seen(rng, module, before, after, message):
    interpreter = Interpreter(**{module: (before, after)})
    arrays = [rows_apart(x) for x in inputs(rng, N, N, 5)]
    with interpreter.running(), pytest.raises(IndexError, match=message):
        attention(*arrays, Banded(30), num_threads=1)


def test_what_a_pointer_refuses():
    """Called from no kernel, so the line is that of one by its own code object."""
    memory = Memory(np.arange(12.0).reshape(3, 4)[:, :2], written=True)
    code = compile("answer = touch()", str(Interpreter().module("tiled").__file__), "exec")
    pointer = Pointer(memory, FLOAT64, 0, "x", writable=False)
    assert pointer[5] == 5.0
    for touch, message in (
        (lambda: pointer[2], "reads outside of 'x': x[2]"),  # between two rows
        (lambda: pointer[10], "x[10]"),
        (lambda: pointer[-1], "x[-1]"),
        (lambda: pointer.view(0, 3), "x[0:3]"),
        (lambda: pointer.__setitem__(0, 1.0), "writes to the input 'x'"),
    ):
        with pytest.raises(IndexError) as caught:
            exec(code, {"touch": touch})
        assert message in str(caught.value)
        assert "tiled.py:1" in str(caught.value)
