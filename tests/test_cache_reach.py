"""What a pattern can still reach: literal answers, and never less than the pattern allows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from support import expressions, mask_of

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
    dilated,
    longformer,
    sparse_transformer_fixed,
    sparse_transformer_strided,
    streaming,
)
from subquad.decode.intervals import row_intervals
from subquad.decode.moved import moved, period
from subquad.decode.reach import Reach, fixed_size

# pattern, position, the oldest recent key from there on, pinned keys below 20, lag
LITERAL = [
    (Dense(), 15, 0, [], None),
    (Causal(), 15, 0, [], None),
    (Banded(4), 15, 11, [], 4),
    (Banded((4, 0)), 3, 0, [], 4),
    (Banded((None, 2)), 15, 0, [], None),
    (Banded((1, 0), block=5), 14, 5, [], 9),
    (Banded((1, 0), block=5), 15, 10, [], 9),
    (Strided(3), 15, 0, [], None),
    (LogSparse(), 15, 0, [], None),
    (LogSparse() & Banded(6), 15, 9, [], 6),
    (Random(3), 15, 0, [], None),
    (Random(3) & Banded((5, 0)), 15, 10, [], 5),
    (dilated(2, 3), 15, 9, [], 6),
    (streaming(3, 5), 15, 11, [0, 1, 2], 4),
    (Global([2, 9], rows=False), 15, 15, [2, 9], 0),
    (Global([2, 9]), 9, 0, [2, 9], 0),
    (Global([2, 9]), 10, 10, [2, 9], 0),
    (Global([]), 15, 15, [], 0),
    (longformer((4, 0), [7]) & Causal(), 7, 0, [7], 4),
    (longformer((4, 0), [7]) & Causal(), 8, 4, [7], 4),
    (Columns(8, 2), 15, 15, [6, 7, 14, 15], 0),
    (sparse_transformer_fixed(8, 1), 15, 8, [7, 15], 7),
    (sparse_transformer_strided(8), 15, 0, [], None),
    (Columns(8, 2) & Banded(4), 15, 11, [], 4),
    (Columns(8, 2) & Global(range(10), rows=False), 15, 15, range(10), 0),
    (Banded(4) - Causal(), 15, 11, [], 4),
    ((Banded(4) | Banded((9, 0))) & Banded(6), 15, 9, [], 6),
    (Packed([5, 0, 10, 5]), 4, 0, [], 9),
    (Packed([5, 0, 10, 5]), 14, 5, [], 9),
    (Packed([5, 0, 10, 5]), 15, 15, [], 9),
    (Packed([5, 15]) & Banded(3), 6, 5, [], 3),
    (Neighborhood((4, 5), 2), 14, 5, [], 9),  # its own line of the grid, and the one before
    (BlockSparse([[1, 0], [1, 0]], 10), 15, 0, [], 19),
    (BlockSparse([[1, 0], [0, 1]], 10), 15, 10, [], 9),
    (Explicit(scipy.sparse.eye_array(20, format="csr")), 15, 15, [], 0),
]


@pytest.mark.parametrize(("pattern", "position", "oldest", "pinned", "lag"), LITERAL, ids=repr)
def test_literal(pattern, position, oldest, pinned, lag):
    reach = Reach(pattern)
    assert reach.oldest(position) == oldest
    assert reach.pinned(0, 20).tolist() == list(pinned)
    assert reach.lag == lag


def test_pinned_keys_of_a_stretch():
    assert Reach(Columns(4, 1) | Global([5, 30], rows=False)).pinned(4, 13).tolist() == [5, 7, 11]


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        (Banded(3), None),
        (Random(2) | Global([4]), None),
        (Packed([3, 4]) & Causal(), (7, 7)),
        (Neighborhood((2, 3), 2), (6, 6)),
        (BlockSparse(np.ones((2, 3)), 4), (8, 12)),
        (BlockSparse(np.ones((2, 2)), 4) & Packed([3, 4]), (7, 7)),
        (Explicit(scipy.sparse.csr_array((2, 3), dtype=bool)), (2, 3)),
        (BlockSparse(np.ones((2, 2)), 5) | BlockSparse(np.ones((2, 2)), 4), (8, 8)),
    ],
    ids=repr,
)
def test_size_a_pattern_was_made_for(pattern, size):
    found = fixed_size(pattern)
    assert (found and tuple(found[:2])) == size


def rows_of(pattern, n):
    """(position, keys) of each row that a cache may be asked for, up to n tokens."""
    size = fixed_size(pattern, n)
    if size is not None:
        for i, row in enumerate(mask_of(pattern, *size[:2])):
            yield i + size.shift, np.nonzero(row)[0]
        return
    for t in range(1, n + 1):
        try:
            yield t - 1, np.nonzero(mask_of(pattern, 1, t)[0])[0]
        except ValueError:  # tokens beyond the t-th
            continue


@given(st.data(), st.integers(1, 40))
def test_no_row_reaches_farther(data, n):
    pattern = data.draw(expressions(n, n))
    reach = Reach(pattern, n)
    pinned = set(reach.pinned(0, n).tolist())
    oldest = [reach.oldest(position) for position in range(n)]
    assert oldest == sorted(oldest)
    for position, keys in rows_of(pattern, n):
        assert all(j >= oldest[position] or j in pinned for j in keys.tolist())
    if reach.lag is not None and fixed_size(pattern, n) is not None:
        # in the long run: past the last row that sees everything
        late = max(
            (max(leaf.tokens) for leaf in pattern._leaves() if isinstance(leaf, Global) and leaf.tokens), default=-1
        )
        assert all(position - old <= reach.lag for position, old in enumerate(oldest) if position >= max(old, late + 1))


@given(st.data(), st.integers(1, 40))
def test_intervals_are_the_row(data, n):
    pattern = data.draw(expressions(n, n))
    intervals = row_intervals(pattern)
    if intervals is None:
        return
    for position, keys in rows_of(pattern, n):
        found = intervals(position, n if fixed_size(pattern) else position + 1)
        assert all(start < stop for start, stop in found)
        assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(found))
        assert [j for start, stop in found for j in range(start, stop)] == keys.tolist()


@given(st.data(), st.integers(1, 60))
def test_moved_pattern_allows_the_same_pairs(data, n):
    pattern = data.draw(expressions(n, n))
    step = period(pattern)
    if step is None:
        return
    origin = data.draw(st.integers(0, (n - 1) // step)) * step
    m = data.draw(st.integers(1, n - origin))
    mask = mask_of(pattern, m, n)[:, origin:]
    found = moved(pattern, origin, n)
    np.testing.assert_array_equal(found is not None and mask_of(found, m, n - origin), mask)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (Banded(3), 1),
        (Banded(2, block=6) | Columns(4, 1), 12),
        (Strided(7) & LogSparse(), 1),
        (Global([3]) - Banded(0, block=5), 5),
        (Random(3) | Banded(3), None),
        (Packed([4]) & Causal(), None),
        (Banded(1, block=4).transpose(), None),
    ],
    ids=repr,
)
def test_period_of_a_pattern(pattern, expected):
    assert period(pattern) == expected
