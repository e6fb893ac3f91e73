"""Several Python threads at once, `fork`, `spawn`: the same bits as one thread of one process, and nothing hangs."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from support import assert_matches_oracle, assert_same_bits, case, inputs, run_in_child
from support_gradients import assert_all_same_bits, assert_gradients_match_oracle, call_arrays, gradients, small_blocks

from subquad import Banded, Causal, Global, attention, attention_backward, bigbird

PROCESS_CASES = ["banded-3", "random-5", "strided-7", "longformer", "nested"]


def together(number, work):
    """Run `work(0)`, ..., `work(number - 1)` in as many threads, which start at one time."""
    barrier = threading.Barrier(number)

    def start(index):
        barrier.wait()
        work(index)

    workers = [threading.Thread(target=start, args=(index,)) for index in range(number)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)


def test_eight_threads_at_once(rng):
    arrays = inputs(rng, 301, 301, 32, leading=(4,))
    patterns = [case(name, 301, 301) for name in PROCESS_CASES] + [Global([1, 5]), Causal(), bigbird(16)]
    expected = [attention(*arrays, pattern, num_threads=1) for pattern in patterns]
    results = [[] for _ in patterns]

    def work(index):
        for _ in range(10):
            results[index].append(attention(*arrays, patterns[index], num_threads=2))

    together(8, work)
    for outs, wanted in zip(results, expected, strict=True):
        assert len(outs) == 10
        for out in outs:
            assert_same_bits(out, wanted)


def attention_twice(arrays, expected):
    for name, wanted in zip(PROCESS_CASES, expected, strict=True):
        for num_threads in (1, 2):
            assert_same_bits(attention(*arrays, case(name, 97, 97), num_threads=num_threads), wanted)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_child_processes_after_use(rng, method):
    arrays = inputs(rng, 97, 97, 16, leading=(4,))
    expected = [attention(*arrays, case(name, 97, 97), num_threads=2) for name in PROCESS_CASES]
    run_in_child(method, attention_twice, arrays, expected)
    attention_twice(arrays, expected)


def fork_and_compute(window):
    """Fork a child that computes with a pattern of its own; its exit status, -6 if it had to be ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        small = np.ones((2, 5, 3), np.float32)
        right = (attention(small, small, small, Banded(window), num_threads=2) == 1).all()
        os._exit(0 if right else 1)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGABRT)  # pytest's fault handler prints where the child stands
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.001)
    return os.waitstatus_to_exitcode(ended[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_while_other_threads_compute(rng):
    """A lock that another thread holds at the moment of the fork stays locked in the child for ever."""
    arrays, stop, fresh = inputs(rng, 20, 20, 4, leading=(2,)), threading.Event(), itertools.count(10)
    attention(*arrays, Banded(2), num_threads=2)  # a fork in the middle of a first import is Python's to survive

    def keep_computing():
        while not stop.is_set():
            attention(*arrays, Banded(next(fresh)), num_threads=2)

    workers = [threading.Thread(target=keep_computing) for _ in range(3)]
    for worker in workers:
        worker.start()
    try:
        for window in range(40):
            assert fork_and_compute(window) == 0
    finally:
        stop.set()
        for worker in workers:
            worker.join(120)


def first_calls_at_once():
    """Eight threads of a new process meet in the first call, while kernels are still to be loaded."""
    arrays, outs = inputs(np.random.default_rng(0), 97, 97, 16), []
    together(8, lambda index: outs.append(attention(*arrays, Banded(5))))
    assert len(outs) == 8
    for out in outs:
        assert_matches_oracle(out, None, *arrays, Banded(5))


def test_first_calls_at_once_in_a_new_process():
    run_in_child("spawn", first_calls_at_once)


def test_numpy_and_numba_are_all_it_needs():
    """`None` in `sys.modules` makes an import fail, as for a package that is not installed."""
    code = """
import sys
sys.modules |= dict.fromkeys(["scipy", "ml_dtypes", "matplotlib", "typer", "rich", "torch", "hypothesis"])
import numpy as np
from subquad import Banded, BlockSparse, Random, attention, attention_weights
x = np.ones((6, 4), np.float16)
for pattern in (Banded(1), Random(2, 0), BlockSparse(np.ones((3, 3), bool), 2)):
    assert (attention(x, x, x, pattern) == 1).all()
    assert attention_weights(x, x, pattern).data.sum() > 5.9
try:
    Banded(1).to_csr(6, 6)
except ImportError as error:
    print(error)
"""
    printed = subprocess.check_output([sys.executable, "-W", "error", "-c", code], text=True)
    assert "subquad[scipy]" in printed


def test_eight_backwards_at_once(rng, monkeypatch):
    """Of one set of arrays, by patterns whose plans and waves are made at that moment, by all of them at once."""
    small_blocks(monkeypatch, 1_000_000)
    patterns = [case(name, 301, 301) for name in PROCESS_CASES] + [Global([1, 5]), Causal(), bigbird(16)]
    calls = [{**call_arrays(rng, 301, 301, pattern, 32, 32, (4,), (2,)), "pattern": pattern} for pattern in patterns]
    expected = [attention_backward(**call, num_threads=1) for call in calls]
    results = [[] for _ in calls]
    monkeypatch.setattr("subquad.plan._kept", {})

    def work(index):
        for turn in range(8):
            which = (index + turn) % 8
            results[which].append(attention_backward(**calls[which], num_threads=2))

    together(8, work)
    for grads, wanted in zip(results, expected, strict=True):
        assert len(grads) == 8
        for found in grads:
            assert_all_same_bits(found, wanted)


def backward_twice(calls, expected):
    for call, wanted in zip(calls, expected, strict=True):
        for num_threads in (1, 2):
            assert_all_same_bits(attention_backward(**call, num_threads=num_threads), wanted)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_backward_in_child_processes_after_use(rng, method):
    calls = []
    for name in PROCESS_CASES:
        pattern = case(name, 97, 97)
        calls.append({**call_arrays(rng, 97, 97, pattern, 16, 9, (4,)), "pattern": pattern})
    expected = [attention_backward(**call, num_threads=2) for call in calls]
    run_in_child(method, backward_twice, calls, expected)
    backward_twice(calls, expected)


def first_backwards_at_once():
    """Eight threads of a new process meet in the first backward, while its kernels are still to be loaded."""
    rng, found = np.random.default_rng(0), []
    grad_out, *arrays = (rng.standard_normal((97, 16)).astype(np.float32) for _ in range(4))
    together(8, lambda index: found.append(gradients(grad_out, *arrays, Banded(5) | Global([3]))))
    assert len(found) == 8
    for grads in found:
        assert_gradients_match_oracle(grads, grad_out, *arrays, Banded(5) | Global([3]))


def test_first_backwards_at_once_in_a_new_process():
    run_in_child("spawn", first_backwards_at_once)
