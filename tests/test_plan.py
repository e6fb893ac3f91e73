"""A plan, scattered, is the mask: every allowed pair once and no other."""

from __future__ import annotations

import statistics
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from support import CASES, SIZES, case, mask_of, run_in_child, sized_expressions

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
from subquad.kernels import layout
from subquad.plan import GatheredPhase, TiledPhase, cache_clear


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
    "columns": Columns(448, 8) & Causal(),
    "columns-left-out": Causal() - Columns(64, 8),
    "fixed": sparse_transformer_fixed(448, 8),
    "strided-preset": sparse_transformer_strided(448),
    "packed": Packed([1000] * 200),
    "packed-causal": Packed([999, 1001] * 100) & Causal(),
    "packed-window": Packed([999, 1001] * 100) & Banded(128),
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


def lengths(n, seed=0):
    """About a thousand tokens a segment, none like the other."""
    ends = np.sort(np.random.default_rng(seed).choice(np.arange(1, n), n // 1000, replace=False))
    return np.diff(np.concatenate(([0], ends, [n])))


LINEAR = {
    "longformer": lambda n: longformer(256, range(16)),
    "bigbird": lambda n: bigbird(64),
    "packed-window": lambda n: Packed(lengths(n)) & Banded(128),
    "packed-causal": lambda n: Packed(lengths(n)) & Causal(),
    "packed-global": lambda n: (Packed(lengths(n)) & Banded((64, 0))) | Global(range(0, n, n // 10)),
    "fixed": lambda n: sparse_transformer_fixed(256, 2) - Columns(256, 1),
    "window-less-columns": lambda n: Banded(256) - Columns(64, 8),
    "log-sparse": lambda n: LogSparse(),
    "random": lambda n: Random(16, 0) | Banded(8),
    "dense-less-random": lambda n: Banded(100) - Random(4, 1),
    "grid": lambda n: Neighborhood((n // 256, 256), 7),
    "transposed-random": lambda n: Random(8, 1).transpose() & Causal(),
}


def peak_of_plan(pattern, n):
    """Bytes at the height of building a plan, and bytes of the plan."""
    cache_clear()
    tracemalloc.start()
    try:
        plan = pattern.plan(n, n)
        return tracemalloc.get_traced_memory()[1], plan.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", LINEAR)
def test_memory_of_building_is_linear(name):
    n = 65_536
    LINEAR[name](256 * 8).plan(256 * 8, 256 * 8)  # imports
    (small, _), (large, held) = (peak_of_plan(LINEAR[name](size), size) for size in (n, 2 * n))
    assert large < 2.3 * small
    assert large < 3 * held + 64e6  # beside the plan a chunk of tiles, however many there are


def test_a_packed_batch_costs_its_segments():
    """The keys that tiles visit, and the tables, are those of the segments planned one by one."""
    n = 100_000
    for rest in (Causal(), Banded(128)):
        packed = (Packed(lengths(n)) & rest).plan(n, n)
        alone = [rest.plan(int(length), int(length)) for length in lengths(n)]
        assert packed.nnz == sum(plan.nnz for plan in alone)
        visited = sum(int(phase.work.sum()) for plan in alone for phase in plan.phases if isinstance(phase, TiledPhase))
        assert sum(int(phase.work.sum()) for phase in packed.phases) <= 1.05 * visited
        assert packed.nbytes <= 1.1 * sum(plan.nbytes for plan in alone)


def test_tiles_of_one_block_share_their_runs():
    plan = bigbird(64).plan(65_536, 65_536)
    (phase,) = plan.phases
    shared = phase.tiles[1:, layout.RUN_BEGIN] == phase.tiles[:-1, layout.RUN_BEGIN]
    assert shared.mean() > 0.7


def csr(n, density):
    scipy_sparse = pytest.importorskip("scipy.sparse")
    return scipy_sparse.csr_array(np.random.default_rng(0).random((n, n)) < density)


# Which way is the faster one: measured both ways, far from where they meet.
FASTER = {
    "diagonal": (Banded(0), "lists"),
    "narrow": (Banded(1), "lists"),
    "window": (Banded(16), "tiles"),
    "narrow-causal": (Banded((1, 0)) & Causal(), "lists"),
    "narrow-beside-wide": (Banded(0) | Banded((64, 0)), "tiles"),
    "log-sparse": (LogSparse(), "lists"),
    "random": (Random(48, 0), "lists"),
    "random-small-blocks": (Random(12, 0, block=4), "lists"),
    "random-blocks": (Random(3, 0, block=32), "tiles"),
    "small-neighborhood": (Neighborhood((32, 64), 3), "lists"),
    "large-neighborhood": (Neighborhood((32, 64), 13), "tiles"),
    "sparse-graph": (Explicit(csr(2048, 0.01)), "lists"),
    "dense-graph": (Explicit(csr(2048, 0.4)), "tiles"),
    "layout": (BlockSparse(np.eye(64), 32), "tiles"),
    "dilated-narrow": (dilated(1, 8), "lists"),
    "dilated-wide": (dilated(16, 8), "tiles of residue classes"),
    "columns": (Columns(64, 4) & Causal(), "tiles over a shared list of keys"),
    "strided": (Strided(32), "tiles of residue classes"),
    "strided-few": (Strided(2000), "lists"),
}


@pytest.mark.parametrize("name", FASTER)
def test_the_faster_way_is_chosen(name):
    pattern, way = FASTER[name]
    plan = pattern.plan(2048, 2048)
    assert {choice.way for choice in plan.choices} == {way}
    assert any(isinstance(phase, GatheredPhase) for phase in plan.phases) == (way == "lists")
    assert any(isinstance(phase, TiledPhase) for phase in plan.phases) == (way != "lists")


@pytest.mark.parametrize("pattern", [Banded(2), Banded(16), LogSparse(), Columns(5, 1) & Causal(), dilated(3, 5)])
def test_the_choice_does_not_follow_the_number_of_queries(pattern):
    """A row has one result, alone or in a batch."""
    ways = {tuple(choice.way for choice in pattern.plan(n_q, 1000).choices) for n_q in (1, 17, 999, 1000)}
    assert len(ways) == 1


def test_describe_tells_the_choice_and_what_it_was_made_by():
    text = (Banded(64) | Random(8, 0)).plan(4096, 4096).describe()
    assert "Banded(64): tiles, estimated" in text
    assert "Random(8, seed=0): lists, estimated" in text
    assert "(as tiles:" in text
