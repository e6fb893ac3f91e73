"""A pattern as a small picture, for any n: memory O(pixels), never n x n."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from subquad import checks
from subquad.inputs import checked_pattern
from subquad.patterns.base import Pattern, Shape, checked_shape
from subquad.patterns.spans import Bools, Ints
from subquad.patterns.stretched import counts_between, most_stretches, stretches_of
from subquad.patterns.whole import RowSet

Picture = npt.NDArray[np.float32]

#: Query rows that stand for the rows of a pixel, and keys tested in each pixel of such a row.
ROWS = 4
KEYS = 4
#: Rows are listed key by key where all together seem to have at most so many keys, and sampled otherwise.
LISTED = 40_000_000
#: Rows are known by their stretches of keys where all together have at most so many.
STRETCHES = 4_000_000
#: Token rows that are looked at beyond the sample.
MOST_TOKENS = 4096
#: Keys tested to guess the length of a row.
MOST_TESTS = 4096
#: Pairs tested at a time.
BATCH = 1 << 18


def raster(pattern: Pattern, n_q: int, n_k: int, height: int, width: int) -> Picture:
    """What share of its pairs each pixel allows: float32 (height, width), 0 where no allowed pair was found.

    Up to height x width pairs there is a pixel for each pair, and the picture is exact. Beyond, a pixel stands for a
    rectangle of pairs, and four query rows stand for all of its rows, the first and the last among them, and rows of
    global tokens besides. Such a row is counted exactly where it is a few stretches of keys (windows, segments, tokens,
    columns), or listed key by key where it has few, so a band or a column one key wide is never missed; of any other
    row four keys in each pixel are tested.

    Time O(pixels), some 0.3 s for a megapixel of a million tokens; memory O(pixels).
    """
    shape = checked_shape(n_q, n_k)
    checked_pattern(pattern)._validate(shape)
    height = min(checks.integer(height, "height", 1, 1 << 14), max(1, shape.n_q))
    width = min(checks.integer(width, "width", 1, 1 << 14), max(1, shape.n_k))
    picture = np.zeros((height, width), np.float32)
    if not shape.n_q or not shape.n_k:
        return picture
    if (height, width) == (shape.n_q, shape.n_k):
        for rows in np.array_split(np.arange(shape.n_q), -(-shape.n_q // 64)):
            i, j = np.broadcast_arrays(rows[:, None], np.arange(shape.n_k))
            picture[rows] = pattern._contains(i, j, shape)
        return picture
    edges, pattern = edges_of(shape.n_k, width), pattern._resolved(shape)
    stretches = most_stretches(pattern, shape)
    stretched = stretches is not None and stretches * ROWS * height <= STRETCHES
    tests = min(MOST_TESTS, max(64, 2 * ROWS * height * shape.n_k // LISTED), shape.n_k)
    sampled, together = _sampled_rows(pattern, shape, height), max(1, BATCH // (ROWS * max(tests, KEYS * width)))
    while batch := list(itertools.islice(sampled, together)):
        rows, counts = np.concatenate([rows for _, rows in batch]), [len(rows) for _, rows in batch]
        begins = np.cumsum([0, *counts[:-1]])
        if stretched:
            found = counts_between(stretches_of(pattern, rows, shape), len(rows), edges) / np.diff(edges)
        else:
            most = np.full(len(rows), LISTED // (ROWS * height))
            most[begins] *= ROWS  # of denser rows one for each row of pixels: every second key would else be specks
            found = _shares(pattern, rows, _lengths(pattern, rows, tests, shape) <= most, shape, edges)
        picture[[u for u, _ in batch]] = np.add.reduceat(found, begins, axis=0) / np.array(counts)[:, None]
    return picture


def edges_of(n: int, pixels: int) -> Ints:
    """Where pixels begin, and the end: exact for n beyond what a float64 tells apart."""
    return np.array([n * pixel // pixels for pixel in range(pixels + 1)], np.int64)


def _sampled_rows(pattern: Pattern, shape: Shape, height: int) -> Iterator[tuple[int, Ints]]:
    """For each row of pixels the query rows that stand for it."""
    edges = edges_of(shape.n_q, height)
    tokens = np.array(sorted(_token_rows(pattern, shape)), np.int64)
    for u in range(height):
        first, last = int(edges[u]), int(edges[u + 1]) - 1
        # evenly, but for a little irregularity: a stride must not meet the same residue every time
        evenly = [first + (last - first) * k // (ROWS - 1) for k in range(ROWS)]
        inner = [min(last, max(first, row + (u * 7 + k * 3) % 11 - 5)) for k, row in enumerate(evenly[1:-1])]
        begin, end = np.searchsorted(tokens, [first, last + 1])
        yield u, np.unique([first, *inner, last, *tokens[begin : min(end, begin + ROWS)]])


def _token_rows(pattern: Pattern, shape: Shape) -> set[int]:
    """Query rows of global tokens, at most `MOST_TOKENS` of each leaf."""
    rows: set[int] = set()
    for leaf in pattern._leaves():
        if isinstance(leaf, RowSet):
            positions = (token - shape.shift for token in leaf.tokens[:MOST_TOKENS])
            rows.update(row for row in positions if 0 <= row < shape.n_q)
    return rows


def _shares(pattern: Pattern, rows: Ints, few: Bools, shape: Shape, edges: Ints) -> npt.NDArray[np.float64]:
    """For each query row the share of keys that each pixel allows, by listing the rows that have few."""
    sizes = np.diff(edges)
    shares = np.empty((len(rows), len(sizes)))
    for k in np.nonzero(few)[0]:
        # fetched in the order of the keys: a row is sorted
        ends = np.searchsorted(pattern._row(int(rows[k]), shape), edges)
        shares[k] = np.diff(ends) / sizes
    long = rows[~few]
    if len(long):
        keys = _somewhere(edges, (len(long), KEYS)).transpose(0, 2, 1)
        shares[~few] = pattern._contains(np.broadcast_to(long[:, None, None], keys.shape), keys, shape).mean(axis=2)
    return shares


def _lengths(pattern: Pattern, rows: Ints, tests: int, shape: Shape) -> npt.NDArray[np.float64]:
    """About how many keys each row has, by testing some."""
    keys = _somewhere(edges_of(shape.n_k, tests), (len(rows),))
    found = pattern._contains(np.broadcast_to(rows[:, None], keys.shape), keys, shape)
    return np.asarray(found.mean(axis=1) * shape.n_k)


def _somewhere(edges: Ints, times: tuple[int, ...]) -> Ints:
    """Random numbers between every two neighbouring edges, the same in every run; even spacing would meet strides."""
    return np.random.default_rng(0).integers(edges[:-1], edges[1:], (*times, len(edges) - 1))
