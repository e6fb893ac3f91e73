"""Memory of one call, measured in a process of its own."""

from __future__ import annotations

import functools
import os
import sys

import numpy as np
import pytest

from subquad import Banded, BlockSparse, Causal, Dense, Random, Strided, attention, attention_backward, longformer
from subquad.child import call_in_child
from subquad.complexity import memory
from subquad.complexity.memory import MemoryUse, dense_memory, extra_memory
from subquad.plan import cache_clear

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can reset the peak of a process")
MB = 10**6


# --- the child --------------------------------------------------------------------------------------------------------


def test_a_call_in_a_child_is_another_process_with_its_own_environment():
    assert call_in_child(os.getpid) != os.getpid()
    assert call_in_child(os.getenv, "OMP_NUM_THREADS", env={"OMP_NUM_THREADS": "7"}) == "7"


def test_what_the_function_prints_does_not_mix_with_its_result():
    assert call_in_child(print, "noise") is None


def test_a_failing_child_tells_its_last_line():
    with pytest.raises(RuntimeError, match=r"run int ended with status 1: ValueError: invalid literal .*'x'"):
        call_in_child(int, "x")
    with pytest.raises(RuntimeError, match=r"run _exit ended with status 3: it wrote nothing"):
        call_in_child(os._exit, 3)


# --- the measure ------------------------------------------------------------------------------------------------------


@linux
def test_the_rise_is_what_a_call_allocates():
    use = call_in_child(memory._rise, functools.partial(np.ones, 2 * MB), env=memory._MALLOC)
    assert use.exact
    assert use.bytes == pytest.approx(16 * MB, abs=MB)


@linux
def test_an_earlier_peak_is_forgotten():
    np.ones(16 * MB)  # freed at once
    peak = memory._peak()
    assert memory._reset_peak()
    assert memory._peak() < peak - 100 * MB


def test_without_a_reset_the_result_is_marked(monkeypatch):
    monkeypatch.setattr(memory, "_reset_peak", lambda: False)
    assert not memory._rise(lambda: None).exact


def test_a_lower_bound_warns(monkeypatch):
    monkeypatch.setattr(memory, "sparse_memory", lambda *args: MemoryUse(5, exact=False))
    with pytest.warns(RuntimeWarning, match="lower bound"):
        assert extra_memory(Causal(), 8) == 5


@linux
def test_dense_numpy_takes_the_scores_of_one_head():
    n = 3000
    use = dense_memory(n, 64, 3, "float32")
    # One matrix of 36 MB, however many heads; and a scaled copy of one head's query.
    assert use.bytes == pytest.approx(4 * n * n + 4 * 64 * n, abs=6 * MB)


@linux
def test_sparse_memory_is_far_below_n_squared():
    n = 50_000
    taken = extra_memory(Banded(32), n)
    assert 0 <= taken < 4 * n * n / 200


@linux
def test_a_pattern_of_one_size_alone_can_be_measured():
    """Its layout does not fit the warm-up."""
    assert extra_memory(BlockSparse(np.eye(32, dtype=bool), 64), 2048, heads=2, num_threads=2) < 16 * MB


def test_a_pattern_that_does_not_fit_is_told_by_the_child():
    with pytest.raises(RuntimeError, match=r"ValueError: .*layout"):
        extra_memory(BlockSparse([[True]], 64), 1000)


def test_dtypes():
    assert extra_memory(Dense(), 300, 16, dtype="float64") < 64 * MB


# --- a backward -------------------------------------------------------------------------------------------------------

N, D = 100_000, 64
CHILD = memory._MALLOC | {"PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])}


def rise_of_backward_of(pattern, num_threads):
    """Bytes by which the peak rises in one backward over N rows, and those of its three gradients and of its plan."""

    def arrays(n):
        query, key, value, grad_out = (np.random.default_rng(k).standard_normal((n, D), np.float32) for k in range(4))
        out, lse = attention(query, key, value, pattern, return_lse=True)
        return grad_out, query, key, value, out, lse

    attention_backward(*arrays(memory.WARM_UP_ROWS), pattern, num_threads=num_threads)
    large, grads = arrays(N), []
    cache_clear()  # the plan counts as well
    use = memory._rise(lambda: grads.extend(attention_backward(*large, pattern, num_threads=num_threads)))
    assert use.exact
    return use.bytes, sum(grad.nbytes for grad in grads), pattern.plan(N, N).nbytes


@linux
@pytest.mark.parametrize("pattern", [Banded(128), Strided(500) & Banded(5000), longformer(64, 4)], ids=repr)
def test_a_backward_over_tiles_takes_its_results_and_little_else(pattern):
    taken, results, plan = call_in_child(rise_of_backward_of, pattern, 2, env=CHILD)
    row = 4 * N  # one float for each row: delta
    # results may take 2 MB more each; half a float for each pair would be more than 40 MB
    assert results <= taken + MB
    assert taken < results + 2 * row + plan + 6 * MB, f"{(taken - results) / MB:.1f} MB beyond the gradients"


@linux
def test_a_backward_over_lists_takes_no_float_for_each_pair_and_column():
    """The lists once more, by key, sorted in place; not the rows that they name, 64 times that."""
    taken, results, plan = call_in_child(rise_of_backward_of, Random(16, 0), 1, env=CHILD)
    assert taken < results + 2 * plan + 6 * MB
