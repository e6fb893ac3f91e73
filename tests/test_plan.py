"""A plan, scattered, is the mask: every allowed pair once and no other."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest
from hypothesis import given, settings
from support import CASES, SIZES, case, mask_of, run_in_child, sized_expressions

from subquad import Banded, Causal, Dense, Strided, bigbird, longformer, streaming


def assert_plan_is_mask(pattern, n_q, n_k):
    mask = mask_of(pattern, n_q, n_k)
    for itemsize in (4, 8):
        plan = pattern.plan(n_q, n_k, itemsize=itemsize)
        visits = plan.scatter()
        assert visits.shape == (n_q, n_k)
        wrong = np.argwhere(visits != mask)
        assert not len(wrong), f"{pattern}: pair {wrong[0]} is visited {visits[tuple(wrong[0])]} times"
        assert plan.nnz == mask.sum()


@pytest.mark.parametrize(("n_q", "n_k"), [*SIZES, (300, 300), (130, 500)])
@pytest.mark.parametrize("name", CASES)
def test_plan_of_each_case(name, n_q, n_k):
    assert_plan_is_mask(case(name, n_q, n_k), n_q, n_k)


@given(sized_expressions(largest=150))
@settings(max_examples=300)
def test_plan_of_drawn_expressions(drawn):
    assert_plan_is_mask(*drawn)


LARGE = {
    "dense": Dense(),
    "causal": Causal(),
    "banded": Banded(128),
    "banded-left": Banded((256, 0)),
    "strided": Strided(448),
    "strided-causal": Strided(448) & Causal(),
    "longformer": longformer(256, 16),
    "bigbird": bigbird(64),
    "streaming": streaming(4, 512),
    "complement": Dense() - Banded(64),
}


@pytest.mark.parametrize("name", LARGE)
def test_plan_is_far_smaller_than_its_pairs(name):
    n, pattern = 200_000, LARGE[name]
    plan = pattern.plan(n, n)
    assert plan.nnz == pattern.nnz(n, n)
    assert plan.nbytes * 10 < plan.nnz


def test_plan_of_a_window_is_linear_in_n():
    small, large = (Banded(128).plan(n, n).nbytes for n in (50_000, 200_000))
    assert large < 5 * small


def test_plan_of_one_late_query_is_small():
    assert Banded((128, 0)).plan(1, 10**9).nbytes < 10_000
    assert longformer(128, 4).plan(1, 10**9).nbytes < 10_000


def plan_one_token_after_another():
    pattern, taken = Banded((7, 0)), []
    for n in range(1, 3001):
        start = time.perf_counter()
        pattern.plan(1, n)
        taken.append(time.perf_counter() - start)
    early, late = statistics.median(taken[50:150]), statistics.median(taken[-100:])
    assert late < 4 * early, f"{early * 1e6:.0f} microseconds at first, {late * 1e6:.0f} later"


def test_a_new_plan_costs_the_same_however_many_came_before():
    """Decoding asks for one new size a token: what is kept of the old ones must not be gone through for each."""
    run_in_child("spawn", plan_one_token_after_another)
