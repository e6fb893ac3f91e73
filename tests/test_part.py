"""Some rows of a pattern against some of its keys: the same pairs as in the whole mask, planned and predicted."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import CASES, case, mask_of

from subquad import Banded, Causal, Explicit, LogSparse, Packed, Strided
from subquad.patterns._part import Index, part
from subquad.patterns.base import Shape


def drawn(draw, n):
    """Rows or keys out of n: a range or a list."""
    a, b = sorted((draw(st.integers(0, n)), draw(st.integers(0, n))))
    if draw(st.booleans()):
        return Index(range(a, b))
    return Index(np.flatnonzero(np.random.default_rng(a * 1000 + b).random(n) < 0.5))


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=12)
@given(data=st.data())
def test_a_part_has_the_pairs_of_the_whole(name, data):
    n_q, n_k = data.draw(st.sampled_from([(97, 97), (64, 97), (97, 63)]))
    pattern = case(name, n_q, n_k)
    rows, keys = drawn(data.draw, n_q), drawn(data.draw, n_k)
    expected = mask_of(pattern, n_q, n_k)[np.ix_(rows.members(), keys.members())]
    local = part(pattern, Shape.aligned(n_q, n_k), rows, keys)
    plan = local.plan(len(rows), len(keys), itemsize=data.draw(st.sampled_from([4, 8])))
    np.testing.assert_array_equal(plan.scatter(), expected)
    assert plan.nnz == np.count_nonzero(expected)
    np.testing.assert_array_equal(mask_of(local, len(rows), len(keys)), expected)
    if len(rows):
        i = data.draw(st.integers(0, len(rows) - 1))
        np.testing.assert_array_equal(local.row(i, len(rows), len(keys)), np.flatnonzero(expected[i]))


@pytest.mark.parametrize("name", CASES)
def test_a_part_of_a_part_and_one_that_was_pickled(name):
    pattern, shape = case(name, 97, 97), Shape.aligned(97, 97)
    first = part(pattern, shape, Index(range(10, 90)), Index(range(5, 80)))
    second = part(first, Shape.aligned(80, 75), Index(range(7, 60)), Index(range(3, 70)))
    expected = mask_of(pattern, 97, 97)[17:70, 8:75]
    np.testing.assert_array_equal(mask_of(second, 53, 67), expected)
    again = pickle.loads(pickle.dumps(second))
    assert again == second
    assert hash(again) == hash(second)
    np.testing.assert_array_equal(again.plan(53, 67).scatter(), expected)


def test_a_window_stays_a_window():
    shape, chunk = Shape.aligned(1000, 1000), Index(range(400, 600))
    assert part(Banded(5), shape, chunk, chunk) == Banded(5)
    before = part(Banded(5), shape, chunk, Index(range(395, 400)))
    assert [before.row(i, 200, 5).tolist() for i in (0, 1, 4, 5)] == [[0, 1, 2, 3, 4], [1, 2, 3, 4], [4], []]
    # every chunk's halo is the same part: they share one plan
    assert before == part(Banded(5), shape, Index(range(600, 800)), Index(range(595, 600)))
    assert part(Causal(), shape, chunk, chunk) == Causal()
    assert part(LogSparse(), shape, chunk, chunk) == LogSparse()


def test_a_stride_stays_a_stride_where_rows_and_keys_are_numbered_alike():
    shape = Shape.aligned(1000, 1000)
    assert part(Strided(7), shape, Index(range(0, 100)), Index(range(20, 100))) == Strided(7)
    assert part(Strided(7), shape, Index(range(0, 100)), Index(range(20, 107))) == Strided(7)
    assert not isinstance(part(Strided(7), shape, Index(range(0, 100)), Index(range(20, 101))), Strided)


def test_parts_of_stored_patterns_are_small():
    from scipy.sparse import eye_array

    shape = Shape.aligned(100_000, 100_000)
    whole = Explicit(eye_array(100_000, format="csr"))
    assert len(pickle.dumps(whole)) > 1_000_000
    few = Index(range(500, 600))
    assert len(pickle.dumps(part(whole, shape, few, few))) < 5000
    packed = Packed([10] * 10_000)
    assert len(pickle.dumps(packed)) > 80_000
    assert len(pickle.dumps(part(packed, shape, few, few))) < 2000


def test_an_index_is_a_range_where_it_has_no_gaps():
    assert Index([3, 4, 5]) == Index(range(3, 6))
    assert Index([3, 5]).listed.tolist() == [3, 5]
    assert Index(range(3, 6)).rank(np.array([-1, 3, 5, 99])).tolist() == [0, 0, 2, 3]
    assert Index([3, 5, 9]).rank(np.array([3, 4, 10])).tolist() == [0, 1, 3]
    assert len(Index([])) == len(Index(range(4, 4))) == 0
