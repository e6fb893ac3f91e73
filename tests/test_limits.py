"""`max_bytes`: what a call takes stays below what it said, and what it may not take is refused by its parts."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from subquad import (
    Banded,
    Causal,
    Random,
    Strided,
    attention,
    attention_backward,
    attention_scores,
    attention_weights,
    limits,
    longformer,
    reference,
)
from subquad.kernels import load
from subquad.plan import cache_clear

N, HEADS, D = 3000, 2, 32
PATTERNS = [Banded(9), longformer(16, 3), Strided(50), Random(8), Banded(9) | Random(4)]


def arrays(dtype="float32", number=3):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((HEADS, N, D)).astype(dtype) for _ in range(number)]


def least(call):
    """The bytes that a call says it takes; one fewer is refused."""
    totals = []
    with pytest.MonkeyPatch.context() as patch:
        plain = limits.check
        patch.setattr(limits, "check", lambda parts, most: (totals.append(sum(parts.values())), plain(parts, most)))
        call(max_bytes=1 << 40)
    for fewer in (1, max(totals) - 1):
        with pytest.raises(MemoryError, match="max_bytes"):
            call(max_bytes=fewer)
    return max(totals)


def peak(call):
    """Bytes that NumPy holds at most, beyond those at the beginning."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_forward_takes_what_it_says(pattern, dtype):
    q, k, v = arrays(dtype)

    def call(**options):
        return attention(q, k, v, pattern, return_lse=True, num_threads=2, **options)

    said = least(call)
    plan = pattern.plan(N, N, itemsize=8 if dtype == "float64" else 4).nbytes
    taken = peak(call) + plan  # the plan is kept from before
    # what is small and not counted: the lists of tasks, Python's own objects
    assert taken <= said + 200_000
    assert taken >= 0.5 * said


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("dtype", ["float32"])
def test_a_backward_takes_what_it_says(pattern, dtype):
    q, k, v, grad = arrays(dtype, 4)
    out, lse = attention(q, k, v, pattern, return_lse=True)

    def call(**options):
        return attention_backward(grad, q, k, v, out, lse, pattern, num_threads=2, **options)

    said = least(call)
    plan = pattern.plan(N, N, itemsize=8 if dtype == "float64" else 4).nbytes
    assert 0.5 * said <= peak(call) + plan <= said + 400_000


@pytest.mark.parametrize("call", [attention_scores, attention_weights])
def test_scores_take_what_they_say(call):
    q, k = arrays(number=2)
    said = least(lambda **options: call(q, k, Banded(20), **options))
    assert peak(lambda: call(q, k, Banded(20))) <= said


def test_a_list_of_pairs_takes_what_it_says():
    said = least(lambda **options: Banded(20).to_csr(N, N, **options))
    assert peak(lambda: Banded(20).to_csr(N, N)) <= said
    with pytest.raises(MemoryError, match=r"max_bytes must be at least .*listing the pairs"):
        Causal().to_csr(10**6, 10**6, max_bytes=10**9)


def test_the_reference_takes_what_it_says():
    q, k, v = arrays()
    said = least(lambda **options: reference.attention(q, k, v, Banded(9), **options))
    assert peak(lambda: reference.attention(q, k, v, Banded(9))) <= said


def test_the_message_says_what_takes_how_much():
    q, k, v = arrays()
    with pytest.raises(MemoryError) as caught:
        attention(q, k, v, Banded(9), return_lse=True, max_bytes=700_000, num_threads=1)
    assert str(caught.value) == (
        "max_bytes must be at least 792,000 (792.0 KB) for these arrays and this pattern; got 700,000. "
        "The most of it: the output, 768.0 KB; lse, 24.0 KB"
    )
    with pytest.raises(MemoryError, match=r"The most of it: the output, 768\.0 KB; (the plan|scratch of 1 threads), "):
        attention(q, k, v, Banded(9), max_bytes=793_000, num_threads=1)


def test_inputs_that_must_be_converted_are_counted():
    q, k, v = arrays()
    with pytest.raises(MemoryError, match=r"inputs, converted, 768\.0 KB"):
        attention(q.astype(">f4"), k, v, Banded(9), max_bytes=10)


def test_inputs_are_not_converted_before_they_are_counted():
    arrays_ = [x.astype(">f4") for x in arrays()]
    calls = [
        lambda: attention(*arrays_, Banded(9), max_bytes=10),
        lambda: attention_scores(*arrays_[:2], Banded(9), max_bytes=10),
    ]
    for call in calls:
        tracemalloc.start()
        with pytest.raises(MemoryError, match=r"The most of it: inputs, converted, (1\.5|2\.3) MB"):
            call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100_000


def test_an_output_of_ones_own_is_not_counted():
    q, k, v = arrays()
    out = np.empty_like(q)
    attention(q, k, v, Banded(9), out=out, max_bytes=300_000, num_threads=1)
    out[:] = 7
    with pytest.raises(MemoryError, match="max_bytes"):
        attention(q, k, v, Banded(9), out=out, max_bytes=3_000, num_threads=1)
    assert (out == 7).all()


def test_lists_that_are_too_long_are_refused_before_they_are_made():
    q, k, v = (np.zeros((1, 200_000, 8), np.float32) for _ in range(3))
    cache_clear()
    load("gathered", "float32")

    def refused():
        with pytest.raises(MemoryError, match=r"max_bytes leaves .*Lower keys in Random\(64"):
            attention(q, k, v, Random(64), max_bytes=50 << 20)

    assert peak(refused) < 1 << 20


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "1GB", 1 << 70])
def test_what_is_no_number_of_bytes(wrong):
    q, k, v = arrays()
    for call in (
        lambda: attention(q, k, v, Banded(1), max_bytes=wrong),
        lambda: attention_scores(q, k, Banded(1), max_bytes=wrong),
        lambda: reference.attention(q, k, v, Banded(1), max_bytes=wrong),
        lambda: Banded(1).to_csr(3, 3, max_bytes=wrong),
    ):
        with pytest.raises((TypeError, ValueError), match=r"^max_bytes must be "):
            call()
