"""Waves of a backward: every visit of a tile in one block, and no two blocks of a wave that write to one place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CASES, case, sized_expressions
from support_gradients import small_blocks

from subquad import Banded, Causal, Dense, Global, Strided, bigbird, longformer, streaming
from subquad.kernels import layout
from subquad.plan import GatheredPhase, TiledPhase, tables
from subquad.plan.schedule import waves


def places_of(run):
    """Where the keys of a run stand on the axis."""
    return run[layout.AXIS] + np.arange(run[layout.KEY_COUNT])


def keys_of(phase, run):
    t = np.arange(run[layout.KEY_COUNT])
    if run[layout.KEY_LIST] >= 0:
        return phase.keys[run[layout.KEY_LIST] + t]
    return run[layout.FIRST_KEY] + t * run[layout.KEY_STEP]


def rows_of(phase, tile):
    i = np.arange(tile[layout.ROW_COUNT])
    if tile[layout.ROW_LIST] >= 0:
        return phase.rows[tile[layout.ROW_LIST] + i]
    return tile[layout.FIRST_ROW] + i * tile[layout.ROW_STEP]


def written_by(phase, block):
    """What a block visits, as (tile, run, place in the run), and the rows and the keys whose gradients it writes."""
    first, last, begin, end = block
    visits, rows, keys = [], [], []
    for t in range(first, last):
        tile = phase.tiles[t]
        rows.append(rows_of(phase, tile))
        for r in range(tile[layout.RUN_BEGIN], tile[layout.RUN_END]):
            run = phase.runs[r]
            places = places_of(run)
            inside = (begin <= places) & (places < end)
            keys.append(keys_of(phase, run)[inside])
            visits += [(t, r, at) for at in np.nonzero(inside)[0].tolist()]
    return visits, np.concatenate(rows), np.unique(np.concatenate(keys)) if keys else np.arange(0)


def assert_schedule_is_sound(plan, cost=100.0):
    """All waves of all tiled phases; returns how many blocks each wave has."""
    sizes = []
    for number, phase in enumerate(plan.phases):
        if not isinstance(phase, TiledPhase):
            continue
        visited = []
        for wave in waves(plan, number, cost):
            assert wave, "a wave without blocks"
            rows_written, keys_written = np.zeros(plan.shape.n_q, int), np.zeros(plan.shape.n_k, int)
            for block in wave:
                visits, rows, keys = written_by(phase, block)
                assert visits, f"block {block} does nothing"
                visited += visits
                rows_written[rows] += 1
                keys_written[keys] += 1
            assert rows_written.max(initial=0) <= 1, "two blocks of a wave write the gradient of one query row"
            assert keys_written.max(initial=0) <= 1, "two blocks of a wave write the gradient of one key"
            sizes.append(len(wave))
        wanted = [
            (t, r, at)
            for t, tile in enumerate(phase.tiles)
            for r in range(tile[layout.RUN_BEGIN], tile[layout.RUN_END])
            for at in range(phase.runs[r, layout.KEY_COUNT])
        ]
        assert sorted(visited) == wanted, "a visit is missing, or made twice"
    return sizes


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("flops", [1e9, 50_000, 3_000])
@pytest.mark.parametrize("name", CASES)
def test_every_case(name, flops, itemsize, monkeypatch):
    small_blocks(monkeypatch, flops)
    for n_q, n_k in [(97, 97), (150, 330)] if itemsize == 4 else [(130, 40)]:
        sizes = assert_schedule_is_sound(case(name, n_q, n_k).plan(n_q, n_k, itemsize=itemsize))
        if flops == 1e9:
            assert set(sizes) <= {1}, "so little work is one block a wave"


@given(sized_expressions(largest=200), st.sampled_from([1e6, 100_000, 10_000, 1_000]), st.sampled_from([4, 8]))
@settings(max_examples=150)
def test_drawn_expressions(drawn, flops, itemsize):
    pattern, n_q, n_k = drawn
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_blocks(monkeypatch, flops)
        assert_schedule_is_sound(pattern.plan(n_q, n_k, itemsize=itemsize))


# Patterns whose blocks can stand side by side, and about how many can on average; 2,000 rows, about 16 to 60 blocks.
PARALLEL = {
    "dense": (Dense(), 2.5),
    "causal": (Causal(), 2),
    "banded": (Banded(30), 6),
    "banded-left": (Banded((60, 0)), 6),
    "strided": (Strided(50), 6),
    "strided-causal": (Strided(50) & Causal(), 6),
    "blocks": (bigbird(16, window_blocks=5, random_blocks=0, global_blocks=0), 6),
    "streaming": (streaming(0, 60), 6),
}


@pytest.mark.parametrize("name", PARALLEL)
def test_blocks_stand_side_by_side_where_they_can(name, monkeypatch):
    """A schedule of one block after another would be sound as well, and useless."""
    pattern, least = PARALLEL[name]
    work = 100.0 * 2000 * pattern.plan(2000, 2000).phases[0].work.sum() / 2000
    small_blocks(monkeypatch, work / 30)
    plan = pattern.plan(2000, 2000)
    sizes = [len(wave) for wave in waves(plan, 0, 100.0)]
    assert 15 <= sum(sizes) <= 70
    assert sum(sizes) / len(sizes) >= least, sizes


@pytest.mark.parametrize("pattern", [longformer(30, 3), Banded(9) | Global([5, 900], rows=False)], ids=repr)
def test_global_columns_come_in_waves_of_their_own(pattern, monkeypatch):
    small_blocks(monkeypatch, 300_000)
    plan = pattern.plan(1000, 1000)
    found = waves(plan, 0, 100.0)
    listed = [end > 1000 for wave in found for *_, end in wave]
    assert 0 < sum(listed) < len(listed)
    assert listed == sorted(listed)
    assert all(len({end > 1000 for *_, end in wave}) == 1 for wave in found)
    assert_schedule_is_sound(plan)


def test_tokens_of_several_terms_never_stand_side_by_side(monkeypatch):
    """Key 5 belongs to two terms, and to a band beside."""
    small_blocks(monkeypatch, 2_000)
    near, far = Global([0, 5], rows=False) & Banded((300, 0)), Global([5, 9], rows=False) - Banded((350, 0))
    assert_schedule_is_sound((near | far | Banded(3)).plan(1000, 1000))


def test_a_key_is_in_one_list_of_a_plan():
    """What lets blocks of lists stand side by side."""
    tokens = Global([0, 5], rows=False) & Banded((300, 0)) | Global([5, 9], rows=False) - Banded((350, 0)) | Global([5])
    for phase in (tokens | Banded(3)).plan(1000, 1000).phases:
        assert isinstance(phase, GatheredPhase) or len(np.unique(phase.keys)) == len(phase.keys)


@pytest.mark.parametrize("pattern", [Dense(), Causal(), Dense() - Banded(100), bigbird(16)], ids=repr)
def test_tiles_meet_their_keys_in_ascending_order(pattern, monkeypatch):
    """What makes the gradient of a query row independent of the rows beside it."""
    small_blocks(monkeypatch, 200_000)
    met = {}
    for wave in waves(pattern.plan(2000, 2000), 0, 100.0):
        for first, _, begin, _ in wave:
            assert begin > met.get(first, -1)
            met[first] = begin
    assert len(met) > 3


def test_waves_are_kept_with_their_plan():
    plan = Banded(5).plan(100, 100)
    assert waves(plan, 0, 10.0) is waves(plan, 0, 10.0)
    assert waves(plan, 0, 10.0) == waves(plan, 0, 20.0)


@pytest.mark.parametrize("part", [1, 3, 40, 10_000])
@pytest.mark.parametrize("n_q", [0, 1, 50])
@pytest.mark.parametrize("n_k", [1, 7, 300])
def test_lists_are_turned_over_part_by_part(monkeypatch, rng, n_q, n_k, part):
    """However few pairs are sorted at a time, each key has its rows, once and in order."""
    monkeypatch.setattr(tables, "_SORTED", part)
    rows = [np.sort(rng.permutation(n_k)[: rng.integers(0, n_k + 1)]) for _ in range(n_q)]
    lists = GatheredPhase(np.cumsum([0, *map(len, rows)]), np.concatenate([np.arange(0), *rows]))
    found = lists.transposed(n_k)
    for key in range(n_k):
        assert found.indices[slice(*found.indptr[key : key + 2])].tolist() == [i for i in range(n_q) if key in rows[i]]
