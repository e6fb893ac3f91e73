"""Tables of plans inside of frames of extreme integers: nothing beside them is followed, and nothing is written."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from support import CASES, FLOAT32, FLOAT64, assert_same_bits, case, inputs, linux_only, run_in_child
from support_gradients import assert_all_same_bits

from subquad import KVCache, attention, attention_backward, attention_scores, plan, streaming
from subquad.decode import steps
from subquad.patterns.base import Shape
from subquad.testing import Frame


def framed_plan(found):
    """A plan whose tables each lie in a frame, and the frames."""
    frames = []

    def placed(phase):
        own = [Frame(table, 64, contiguous=True) for table in phase]
        frames.extend(own)
        return type(phase)(*(frame.view for frame in own))

    phases = tuple(map(placed, found.phases))
    turned = {
        number: placed(found.transposed(number))
        for number, phase in enumerate(found.phases)
        if isinstance(phase, plan.GatheredPhase)
    }
    made = dataclasses.replace(found, phases=phases, _addresses={}, _tasks={}, _waves={}, _transposed=turned)
    return made, frames


def results(query, key, value, grad_out, pattern):
    out, lse = attention(query, key, value, pattern, return_lse=True, num_threads=2)
    scores = attention_scores(query, key, pattern)
    return [out, lse, scores.data, *attention_backward(grad_out, query, key, value, out, lse, pattern, num_threads=2)]


def check_framed(names, dtype, n_q, n_k):
    """In a process of its own: an address made of an extreme integer would end it."""
    rng = np.random.default_rng(1)
    for name in names:
        pattern, arrays = case(name, n_q, n_k), inputs(rng, n_q, n_k, 16, 12, (2,), dtype=dtype)
        grad_out = rng.standard_normal((2, n_q, 12)).astype(dtype)
        plan.cache_clear()
        expected = results(*arrays, grad_out, pattern)
        shape = Shape(n_q, n_k, n_k - n_q)
        made, frames = framed_plan(plan.plan_for(pattern, shape, dtype.itemsize))
        plan._kept[pattern, shape, dtype.itemsize] = made
        found = results(*arrays, grad_out, pattern)
        assert plan._kept[pattern, shape, dtype.itemsize] is made, name
        for one, other in zip(found, expected, strict=True):
            assert_same_bits(one, other)
        for frame in frames:
            frame.assert_untouched()


@pytest.mark.skipif(**linux_only)
@pytest.mark.parametrize(("dtype", "n_q", "n_k"), [(FLOAT32, 63, 67), (FLOAT32, 97, 97), (FLOAT64, 40, 150)])
def test_nothing_beside_the_tables_of_a_plan_is_followed(dtype, n_q, n_k):
    run_in_child("fork", check_framed, CASES, dtype, n_q, n_k)


def test_nothing_beside_the_stretches_of_a_cache_is_followed(monkeypatch):
    """Decoding: the table of a step's slots."""
    query, key, value = inputs(np.random.default_rng(2), 60, 60, 16, 12, (2,))
    frames = []

    def decoded():
        cache = KVCache(streaming(3, 9), 2, 16, d_v=12)
        found = []
        for i in range(60):
            cache.append(key[:, i : i + 1], value[:, i : i + 1])
            found.append(cache.attend(query[:, i : i + 1]))
        return found

    expected, plain = decoded(), steps._run

    def framed_run(q, store, lists, *rest):
        frame = Frame(lists.table, 64, contiguous=True)
        frames.append(frame)
        return plain(q, store, lists._replace(table=frame.view), *rest)

    monkeypatch.setattr(steps, "_run", framed_run)
    found = decoded()
    assert len(frames) == 60
    assert_all_same_bits(found[:3], expected[:3])
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one, other)
    for frame in frames:
        frame.assert_untouched()
