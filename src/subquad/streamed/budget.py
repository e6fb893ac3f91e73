"""How many rows and keys are held at a time, so that everything together keeps to a number of bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from subquad import limits
from subquad.kernels import layout
from subquad.streamed.shares import Share, table_bytes
from subquad.streamed.tables import reached

# The tables of the range that is worked on and of the next one, and what planning holds beside them: the peak was 5 to
# 9 times the tables of one range for every preset, at 4,096 rows and at 65,536.
PLAN_FACTOR = 10
PLAN_BYTES = 2 << 20  # of a plan of any size
# Buffers of a range grow to this size and no further, unless rows share so few keys that more rows read less: larger
# ones are no faster, and their pages have to be cleared (1 GB of keys took a third of the time of a pass over them).
_RANGE_BYTES = 128 << 20
_FEW_ROWS, _SOME_ROWS = 256, 1024  # of the ranges that are planned to see how a share grows
_LEAST_KEYS = 2 * layout.STEP


class Sizes(NamedTuple):
    """Elements of one unit of work: some heads, and the columns of each array."""

    query_heads: int
    key_heads: int
    d: int
    d_v: int
    itemsize: int
    n_k: int
    align: int  # rows of the chunks of what is written
    gap: int  # keys that are read though nobody asks for them, where others lie on both sides
    fixed: int  # bytes that do not grow with rows or keys

    @property
    def row(self) -> int:
        """Bytes of a query row: queries, output and lse of two ranges, and the output once more on its way out."""
        return self.query_heads * self.itemsize * (2 * (self.d + self.d_v + 1) + self.d_v)

    @property
    def key(self) -> int:
        """Bytes of a key and its value, of two ranges."""
        return 2 * self.key_heads * self.itemsize * (self.d + self.d_v)


@dataclass(frozen=True)
class Growth:
    """A quantity that grows with the rows of a range: `least` + `per_row` x rows."""

    least: float
    per_row: float

    def of(self, rows: int) -> int:
        return int(self.least + self.per_row * rows) + 1


class Cut(NamedTuple):
    """The ranges of a share: rows in each, and the keys that are held at a time."""

    rows: int
    keys: int
    table_bytes: int  # a range whose tables take more is planned in parts


def cut(share: Share, sizes: Sizes, max_bytes: int) -> Cut:
    """The ranges that read least, of those that keep to `max_bytes`.

    Raises
    ------
    MemoryError
        Where no range does; says what takes how much, and the least `max_bytes`.
    """
    keys, tables = _growth(share, sizes)
    most = len(share)
    least_rows = min(most, max(share.lanes, sizes.align))
    least_keys = min(sizes.n_k, _LEAST_KEYS)

    def needed(rows: int, held: int) -> int:
        return sizes.fixed + rows * sizes.row + held * sizes.key + PLAN_FACTOR * tables.of(rows)

    def all_keys(rows: int) -> int:
        return min(sizes.n_k, keys.of(rows))

    if needed(least_rows, least_keys) > max_bytes:
        _refuse(share, sizes, max_bytes, least_rows, least_keys, tables.of(least_rows))

    def fitting(fits: object) -> int:
        rows = most
        while rows > least_rows and not fits(rows):  # type: ignore[operator]
            rows = max(least_rows, rows // 2 if rows > 2 * _SOME_ROWS else rows * 7 // 8)
        return rows

    def enough(rows: int) -> bool:
        size = rows * sizes.row + all_keys(rows) * sizes.key
        return needed(rows, all_keys(rows)) <= max_bytes and (size <= _RANGE_BYTES or keys.per_row > 2)

    whole = _aligned(fitting(enough), sizes, share, most)
    half = sizes.fixed + (max_bytes - sizes.fixed) // 2
    parted = _aligned(fitting(lambda rows: needed(rows, least_keys) <= half), sizes, share, most)
    found = []
    if enough(whole):
        found.append((-(-most // whole) * (all_keys(whole) - keys.least) + keys.least, whole, all_keys(whole)))
    if needed(parted, least_keys) <= max_bytes:
        held = min((max_bytes - needed(parted, 0)) // sizes.key, _RANGE_BYTES // sizes.key, sizes.n_k)
        found.append((-(-most // parted) * all_keys(parted), parted, held))
    if not found:
        found.append((0, least_rows, least_keys))
    _, rows, held = min(found)
    return Cut(rows, max(held, least_keys), tables.of(rows) * 2 + PLAN_BYTES // PLAN_FACTOR)


def _aligned(rows: int, sizes: Sizes, share: Share, most: int) -> int:
    """Whole chunks of the output, or at least whole tiles."""
    if rows >= most:
        return most
    for unit in (
        math.lcm(sizes.align, max(1, share.period)),
        sizes.align if sizes.align > 1 else share.lanes,
        share.lanes,
    ):
        if rows >= unit:
            return rows // unit * unit
    return rows


def _growth(share: Share, sizes: Sizes) -> tuple[Growth, Growth]:
    """How the keys that a range reaches and the bytes of its tables grow, from ranges at both ends and between."""
    points: list[list[tuple[int, int]]] = []
    few, some = (min(len(share), rows) for rows in (_FEW_ROWS, _SOME_ROWS))
    for rows in (few, some):
        found = []
        for place in range(5):
            first = (len(share) - rows) * place // 4
            phases = share.plan(first, first + rows)
            found.append((reached(phases, sizes.gap).total, table_bytes(phases)))
        points.append(found)
    growths = []
    for which in range(2):
        small, large = (max(found[which] for found in of_size) for of_size in points)
        per_row = max(0.0, (large - small) / (some - few)) if some > few else 0.0
        growths.append(Growth(max(0.0, large - per_row * some), per_row))
    return growths[0], growths[1]


def _refuse(share: Share, sizes: Sizes, max_bytes: int, rows: int, keys: int, tables: int) -> None:
    parts = {
        "buffers of chunks, scratch of threads and lse": sizes.fixed,
        f"queries and output of {rows:,} rows": rows * sizes.row,
        f"keys and values, {keys:,} at a time": keys * sizes.key,
        f"the plan of {share.expression!r}": PLAN_FACTOR * tables,
    }
    limits.refuse(parts, max_bytes)
