"""Attention on Dask arrays: right, lazy, typed, the same on every scheduler; and only what is needed travels."""

import pickle
import subprocess
import sys
import tracemalloc

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    BFLOAT16,
    CASES,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    assert_matches_oracle,
    assert_same_bits,
    case,
    expressions,
    inputs,
)
from support_gradients import assert_gradients_match_oracle, backward_inputs

import subquad
from subquad import Banded, Causal, Dense, Explicit, Global, LogSparse, Packed, Random, Strided, streaming
from subquad.dask import attention, attention_backward, result, work
from subquad.inputs import empty


@pytest.fixture(autouse=True)
def one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def cut(x, sequence, leading=1):
    """A Dask array of x, cut along the sequence and the axes before it."""
    return da.from_array(x, chunks=(*(leading,) * (x.ndim - 2), sequence, -1))


def lse_of(x, sequence):
    return da.from_array(x, chunks=(*(1,) * (x.ndim - 1), sequence))


def check_with_gradients(pattern, n_q, n_k, rows, keys, seed=0):
    """Output, lse and gradients of rows and keys cut into chunks, against the oracles."""
    grad_out, query, key, value = backward_inputs(np.random.default_rng(seed), n_q, n_k, 8, 5, dtype=FLOAT64)
    chunked = cut(query, rows), cut(key, keys), cut(value, keys)
    results = attention(*chunked, pattern, return_lse=True)
    grads = attention_backward(cut(grad_out, rows), *chunked, *results, pattern)
    out, lse, *grads = dask.compute(*results, *grads)
    assert_matches_oracle(out, lse, query, key, value, pattern)
    assert_gradients_match_oracle(grads, grad_out, query, key, value, pattern)


@pytest.mark.parametrize("name", CASES)
def test_every_pattern(name):
    check_with_gradients(case(name, 97, 97), 97, 97, 40, 33)


@settings(max_examples=20)
@given(st.data())
def test_any_expression_with_any_chunks(data):
    n_q, n_k = data.draw(st.sampled_from([(97, 97), (64, 97), (97, 63)]))
    rows, keys, seed = (data.draw(st.integers(low, high)) for low, high in ((13, 97), (13, 97), (0, 1000)))
    check_with_gradients(data.draw(expressions(n_q, n_k)), n_q, n_k, rows, keys, seed)


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64, FLOAT16, BFLOAT16])
def test_dtypes_shapes_and_chunks(rng, dtype):
    grad_out, query, key, value = backward_inputs(rng, 60, 80, 8, 12, (2, 4), (2, 2), dtype)
    chunked = [
        da.from_array(x, chunks=c) for x, c in ((query, (1, 2, 25, 8)), (key, (1, 1, 30, 8)), (value, (1, 1, 30, 12)))
    ]
    pattern = Banded((40, 0)) | Global([0])
    out, lse = attention(*chunked, pattern, return_lse=True)
    assert out.chunks == ((1, 1), (2, 2), (25, 25, 10), (12,))
    assert lse.chunks == out.chunks[:-1]
    assert out.dtype == out._meta.dtype == dtype
    assert lse.dtype == lse._meta.dtype == (FLOAT64 if dtype == FLOAT64 else FLOAT32)
    assert type(out._meta) is np.ndarray
    found = dask.compute(out, lse)
    assert_matches_oracle(*found, query, key, value, pattern)
    grads = attention_backward(da.from_array(grad_out, chunks=(1, 2, 25, 12)), *chunked, out, lse, pattern)
    for grad, x in zip(grads, chunked, strict=True):
        assert (grad.shape, grad.dtype, grad.chunks) == (x.shape, x.dtype, x.chunks)
    assert_gradients_match_oracle(dask.compute(*grads), grad_out, query, key, value, pattern)


def test_a_pattern_for_each_head(rng):
    query, key, value = inputs(rng, 64, 64, 8, leading=(4,), kv_leading=(2,), dtype=FLOAT64)
    patterns = [Banded(3), Strided(5), Strided(5), Causal() | Global([7])]
    chunked = [da.from_array(x, chunks=(heads, 20, -1)) for x, heads in ((query, 2), (key, 1), (value, 1))]
    out, lse = dask.compute(*attention(*chunked, patterns, return_lse=True, scale=0.3))
    for head, pattern in enumerate(patterns):
        mine = query[head], key[head // 2], value[head // 2]
        assert_matches_oracle(out[head], lse[head], *mine, pattern, scale=0.3)


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0), (1, 40)])
def test_few_rows_or_none(rng, sizes):
    query, key, value = inputs(rng, *sizes, 8, dtype=FLOAT64)
    pattern = Banded(30) | Global(range(2))
    found = dask.compute(
        *attention(*(da.from_array(x, chunks=(7, -1)) for x in (query, key, value)), pattern, return_lse=True)
    )
    assert_matches_oracle(*found, query, key, value, pattern)


def test_gradients_of_lse(rng):
    grad_out, query, key, value = backward_inputs(rng, 50, 50, 8, dtype=FLOAT64)
    of_lse = rng.standard_normal(50)
    chunked = [cut(x, 16) for x in (query, key, value)]
    results = attention(*chunked, Dense(), return_lse=True)
    grads = attention_backward(cut(grad_out, 16), *chunked, *results, Dense(), grad_lse=lse_of(of_lse, 16))
    assert_gradients_match_oracle(dask.compute(*grads), grad_out, query, key, value, Dense(), grad_lse=of_lse)


def test_keys_outside_the_pattern_never_matter(rng):
    query, key, value = inputs(rng, 64, 64, 8)
    pattern = Causal() & Banded(20) | Global([3], rows=False)
    expected = attention(*(cut(x, 16) for x in (query, key, value)), pattern).compute()
    key[40:], value[40:] = np.nan, np.inf
    found = attention(*(cut(x, 16) for x in (query, key, value)), pattern).compute()
    assert_same_bits(found[:40], expected[:40])


def test_nothing_is_computed_before_it_is_asked_for():
    def never(block):
        raise AssertionError("computed")

    x = da.ones((1000, 8), chunks=(100, 8)).map_blocks(never, dtype=float, meta=np.empty((0, 0)))
    out, lse = attention(x, x, x, Banded(3) | Global([0]), return_lse=True)
    attention_backward(out, x, x, x, out, lse, Banded(3) | Global([0]))
    with pytest.raises(AssertionError, match="computed"):
        out.compute()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_every_scheduler_gives_the_same_bits(rng):
    x = rng.standard_normal((300, 16), dtype=np.float32)
    pattern = Banded(20) | Global(range(3)) | Random(3, 1)
    chunked = cut(x, 100)
    out, lse = attention(chunked, chunked, chunked, pattern, return_lse=True)
    grads = attention_backward(chunked, chunked, chunked, chunked, out, lse, pattern)
    expected = dask.compute(out, lse, *grads, scheduler="synchronous")
    for scheduler, workers in (("threads", 2), ("threads", 5), ("processes", 1)):
        found = dask.compute(out, lse, *grads, scheduler=scheduler, num_workers=workers)
        for one, other in zip(found, expected, strict=True):
            assert_same_bits(one, other)


def test_equal_calls_have_equal_names_in_every_process(rng):
    from scipy.sparse import eye_array

    x, y = (da.from_array(rng.standard_normal((100, 8)), chunks=(30, 8), name=name) for name in ("x", "y"))
    edges = [Explicit(eye_array(100, k=k, format="csr")) for k in (0, 0, 1)]
    assert attention(x, x, y, edges[0]).name == attention(x, x, y, edges[1]).name
    different = [
        attention(x, x, y, edges[0]),
        attention(x, x, y, edges[2]),
        attention(x, y, y, edges[0]),
        attention(x, x, y, edges[0], scale=0.5),
        *(
            attention(x, x, y, p)
            for p in (Banded(3), Banded(4), Banded((3, 0)), Causal(), LogSparse(), Packed([60, 40]))
        ),
        *(attention(x, x, y, p) for p in (Banded(3) | Causal(), Banded(3) & Causal(), Causal() | Banded(3))),
    ]
    assert len({one.name for one in different}) == len(different)
    code = (
        "import dask.array as da; from subquad import Banded, Global; from subquad.dask import attention;"
        "x = da.ones((100, 8), chunks=(30, 8), name='x'); print(attention(x, x, x, Banded(3) | Global([1, 5])).name)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ones = da.ones((100, 8), chunks=(30, 8), name="x")
    assert child.stdout.strip() == attention(ones, ones, ones, Banded(3) | Global([1, 5])).name


# --- what travels -----------------------------------------------------------------------------------------------------


def sent(pattern, n=1000, chunk=100, n_q=None, kind="keys"):
    """Of each chunk of rows the chunks of keys from which it is sent some, and how many."""
    x, q = (da.ones((size, 8), chunks=(chunk, 8), name=str(size)) for size in (n, n_q or n))
    graph = attention(q, x, x, pattern).__dask_graph__()
    found = {}
    for key, task in graph.items():
        if isinstance(key, tuple) and key[0].endswith("near-parts") and key[-1] == ("keys", "values").index(kind):
            block = np.arange(chunk)[task.args[1]]
            found[key[1:-1]] = block.tolist()
    return found


def test_halos_are_exact():
    found = sent(Banded(4))
    assert found == sent(Banded(4), kind="values")
    assert len(found) == 18
    assert found[5, 4] == [96, 97, 98, 99]
    assert found[5, 6] == [0, 1, 2, 3]
    assert set(sent(Banded((4, 0)))) == {(row, row - 1) for row in range(1, 10)}
    assert sent(Causal() & Banded(4)) == sent(Banded((4, 0)))
    # a band of blocks, and rows that lie otherwise than keys
    assert sent(Banded(1, block=10))[5, 4] == list(range(90, 100))
    assert sent(Banded((4, 0)), n_q=300)[1, 7] == [96, 97, 98, 99]


def test_columns_are_broadcast_and_whole_rows_travel_to_the_keys():
    pattern = Global([0, 105], columns=True, rows=False)
    found = sent(pattern)
    assert found[7, 0] == [0]
    assert found[7, 1] == [5]
    assert len(found) == 20
    graph = attention(*(da.ones((1000, 8), chunks=(100, 8)),) * 3, Global([0, 105], columns=False)).__dask_graph__()
    keys = [key for key in graph if isinstance(key, tuple)]
    assert not any("keys" in key[0] for key in keys)
    assert sum(key[0].endswith("-rows") for key in keys) == 2
    assert sum(key[0].endswith("-far") and "merge" not in key[0] for key in keys) == 20


def test_scattered_keys_are_gathered():
    assert sent(Strided(250), chunk=50) == {}  # whole chunks, or none at all
    found = sent(Strided(210), chunk=40)  # keys 210 to 249 are those of rows 0 to 39
    assert found[0, 5] == list(range(10, 40))
    assert found[0, 6] == list(range(10))
    # 100 rows draw one of 1000 keys each
    found = sent(Random(1, 7))
    mine = np.unique(np.concatenate([Random(1, 7).row(i, 1000, 1000) for i in range(300, 400)]))
    assert sorted(100 * chunk + j for (row, chunk), of in found.items() if row == 3 for j in of) == mine.tolist()
    # rows 500 to 599 meet keys 372 to 471 at distance 128, 244 to 343 at 256, 0 to 87 at 512; chunks 4 and 5 are whole
    found = {chunk: of for (row, chunk), of in sent(LogSparse()).items() if row == 5}
    assert found == {3: [*range(44), *range(72, 100)], 2: [*range(44, 100)], 0: [*range(88)]}


def test_the_graph_of_a_window_grows_with_the_chunks_alone():
    def tasks(chunks):
        x = da.ones((chunks << 20, 64), chunks=(1 << 20, 64))
        return len(dict(attention(x, x, x, streaming(4, 4096)).__dask_graph__()))

    assert tasks(64) - tasks(32) == 2 * (tasks(32) - tasks(16))


# --- what is refused --------------------------------------------------------------------------------------------------


def ones(*shape, chunks=10, dtype=np.float32):
    return da.ones(shape, chunks=(*(1,) * (len(shape) - 2), chunks, -1), dtype=dtype)


GOOD = ones(40, 8)


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ((np.ones((40, 8), np.float32), GOOD, GOOD), TypeError, r"query must be a Dask array; got ndarray"),
        ((GOOD, GOOD, None), TypeError, r"value must be a Dask array; got NoneType"),
        ((GOOD, GOOD.rechunk({1: 4}), GOOD), ValueError, r"key must have all its 8 columns in one chunk.*\(4, 4\)"),
        ((GOOD, GOOD, GOOD.rechunk({0: 20})), ValueError, r"value must be chunked as key along axis 0.*\(20, 20\)"),
        ((GOOD, GOOD, ones(30, 8)), ValueError, r"value must match key"),
        ((GOOD, ones(40, 6), GOOD), ValueError, r"key must have query's last axis d = 8"),
        ((GOOD, GOOD.astype(float), GOOD), TypeError, r"must have one dtype"),
        ((GOOD.astype(int),) * 3, TypeError, r"query must have dtype float32"),
        ((GOOD[0],) * 3, ValueError, r"query must have shape \(n, d\)"),
        ((GOOD[GOOD[:, 0] > 0],) * 3, ValueError, r"query must have known chunk sizes.*compute_chunk_sizes"),
        ((ones(4, 40, 8), ones(2, 40, 8).rechunk({0: 2}), ones(2, 40, 8).rechunk({0: 2})), ValueError,
         r"query must be chunked along axis 0 \(heads\) 2 for each of key's, \(4,\); got \(1, 1, 1, 1\)"),
        ((ones(2, 3, 40, 8).rechunk({0: 2}), ones(2, 3, 40, 8), ones(2, 3, 40, 8)), ValueError,
         r"query must be chunked along axis 0 \(batch\) as key, \(1, 1\); got \(2,\)"),
        ((ones(3, 40, 8), ones(2, 40, 8), ones(2, 40, 8)), ValueError, r"multiple of key's"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(arrays, error, message):
    with pytest.raises(error, match=message):
        attention(*arrays, Banded(3))


def test_other_arguments_are_checked_when_the_graph_is_made():
    with pytest.raises(TypeError, match="pattern must be a subquad pattern"):
        attention(GOOD, GOOD, GOOD, "banded")
    with pytest.raises(ValueError, match="tokens must be below n_k = 40"):
        attention(GOOD, GOOD, GOOD, Global([40]))
    with pytest.raises(ValueError, match="sums to 30"):
        attention(GOOD, GOOD, GOOD, Packed([30]) & Causal())
    with pytest.raises(ValueError, match="scale must be finite"):
        attention(GOOD, GOOD, GOOD, Banded(3), scale=float("nan"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"grad_out": np.ones((40, 8), np.float32)}, TypeError, "grad_out must be a Dask array"),
        ({"grad_out": GOOD[:30]}, ValueError, r"grad_out must have the shape of the forward's result, \(40, 8\)"),
        ({"out": GOOD.astype(float)}, TypeError, "out must have the dtype of the forward's result, float32"),
        ({"out": GOOD.rechunk({0: 20})}, ValueError, r"out must be chunked as the forward's result along axis 0"),
        ({"lse": GOOD}, ValueError, r"lse must have the shape of the forward's result, \(40,\)"),
        ({"grad_lse": GOOD[:, 0].rechunk(40)}, ValueError, "grad_lse must be chunked"),
    ],
)
def test_what_a_backward_is_given_must_fit_the_forward(change, error, message):
    given = {"grad_out": GOOD, "out": GOOD, "lse": GOOD[:, 0]} | change
    with pytest.raises(error, match=message):
        attention_backward(query=GOOD, key=GOOD, value=GOOD, pattern=Banded(3), **given)


def test_dask_is_imported_only_for_who_asks_and_its_absence_names_the_extra():
    code = (
        "import sys, subquad; assert 'dask' not in sys.modules; sys.modules['dask'] = None\n"
        "try: import subquad.dask\nexcept ImportError as error: print(error)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == 'subquad.dask needs Dask: pip install "subquad[dask]"'


def test_it_agrees_with_the_call_in_memory(rng):
    x = rng.standard_normal((3, 5000, 32), dtype=np.float32)
    chunked = da.from_array(x, chunks=(1, 1024, 32))
    for pattern in (Banded(64), Strided(71), streaming(4, 200)):
        expected = subquad.attention(x, x, x, pattern)
        np.testing.assert_allclose(attention(chunked, chunked, chunked, pattern).compute(), expected, atol=1e-5)


# --- compute ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def several(rng):
    """Chunks along every axis that may have them, and results that are merged."""
    query, key, value = inputs(rng, 60, 60, 8, leading=(2, 4), kv_leading=(2, 4), dtype=FLOAT32)
    chunked = [da.from_array(x, chunks=(1, 2, 25, 8)) for x in (query, key, value)]
    return attention(*chunked, Banded((20, 3)) | Global([0, 31]), return_lse=True)


@pytest.mark.parametrize("scheduler", ["threads", "sync", "processes"])
def test_compute_gives_what_dask_joins_itself(several, scheduler):
    """Alone, an array is put together in place; of two at once, Dask joins the chunks."""
    together = dask.compute(*several, scheduler="synchronous")
    for lazy, joined in zip(several, together, strict=True):
        alone = lazy.compute(scheduler=scheduler, num_workers=2)
        assert_same_bits(alone, joined)
        assert alone.flags.writeable
        assert alone.flags.c_contiguous


def test_compute_in_place_keeps_no_chunks(rng):
    """Dask's own way holds all chunks beside the result: twice its bytes."""
    x = da.from_array(rng.standard_normal((1 << 15, 64), dtype=np.float32), chunks=(1 << 11, 64))
    lazy = attention(x, x, x, Banded(3))
    lazy.compute(scheduler="sync")
    peaks = []
    for call in (lambda: lazy.compute(scheduler="sync"), lambda: dask.compute(lazy, scheduler="sync")):
        tracemalloc.start()
        call()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 1.4 * lazy.nbytes
    assert peaks[1] > 1.9 * lazy.nbytes


@pytest.mark.parametrize("pattern", [Banded(9), Banded(9) | Global([0])], ids=repr)
def test_compute_has_tasks_write_where_their_chunks_belong(rng, monkeypatch, pattern):
    made, places, real = [], [], work.attend_into

    def spy(out, *args):
        places.append(out)
        return real(out, *args)

    monkeypatch.setattr(work, "attend_into", spy)
    monkeypatch.setattr(result, "empty", lambda *args: made.append(empty(*args)) or made[0])
    x = da.from_array(rng.standard_normal((400, 8), dtype=np.float32), chunks=(100, 8))
    found = attention(x, x, x, pattern).compute(scheduler="threads")
    # a row that sees everything is put into its chunk by a task of its own
    assert sum(np.may_share_memory(place, made[0]) for place in places) == (4 if pattern == Banded(9) else 3)
    assert found is made[0]


def test_keywords_of_compute(several):
    out, lse = several
    expected = dask.compute(out, scheduler="sync")[0]
    assert_same_bits(out.compute(scheduler="sync", optimize_graph=False), expected)
    assert_same_bits(out.compute(scheduler="threads", traverse=False), expected)
    assert_same_bits(np.asarray(out), expected)
    assert_same_bits(out[0, 1:, 7:].compute(), expected[0, 1:, 7:])
    assert_same_bits(pickle.loads(pickle.dumps(lse)).compute(), lse.compute())
    with pytest.raises(ValueError, match="Expected one of"):
        out.compute(scheduler="nowhere")


def test_an_error_in_a_task_comes_out(rng):
    x = da.from_array(rng.standard_normal((40, 8)), chunks=(10, 8))
    broken = x.map_blocks(lambda block: 1 // 0, dtype=x.dtype, meta=x._meta)
    with pytest.raises(ZeroDivisionError):
        attention(x, broken, x, Banded(2)).compute(scheduler="threads")
