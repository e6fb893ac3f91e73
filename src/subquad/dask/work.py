"""What a worker does: the functions of the graph's tasks. They hold no state, and each gives one result in one order.

Kernels run on one thread here: it is Dask that hands out threads.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from subquad.attention import attention, attention_backward, merge
from subquad.dask.pieces import Chosen, Group
from subquad.inputs import Array
from subquad.patterns._part import Index, _PartStrided, part
from subquad.patterns.base import Difference, Pattern, Shape
from subquad.patterns.spans import Ints, Tiles
from subquad.patterns.strided import Strided
from subquad.patterns.whole import WholeRows
from subquad.plan.segments import Axis, segment

Result = tuple[Array, Array]  # out and lse

_ALONE = 4  # contiguous pieces of a group that are attended one by one, in place; more are copied side by side
_LARGE = 8  # a contiguous piece with at least this share of the rows is attended in place anyway
_STRIPS = 256  # neighbouring rows between which `_touched` does not tell, as a share of all


@dataclass(frozen=True)
class Block:
    """Keys and values that lie side by side, and the pieces they are made of."""

    keys: Index
    key: Array
    value: Array
    pieces: list[int]


def take(x: Array, chosen: Chosen) -> Array:
    """Some rows of a chunk: a view where they are neighbours."""
    return x if chosen is None else x[..., chosen, :]


def take_rows(chosen: Ints, *arrays: Array) -> tuple[Array, ...]:
    """Some rows of arrays whose shapes begin alike; the first has columns."""
    axis = arrays[0].ndim - 2
    return tuple(np.take(x, chosen, axis=axis) for x in arrays)


def attend(group: Group, scale: float | None, query: Array, *parts: Array) -> Result:
    """Attention of a group's rows over its pieces, in the dtype of the computation; parts: key and value of each."""
    # the first block writes every row; of zeros each page would be handed out by itself, which took a tenth of the time
    out = np.empty((*query.shape[:-1], parts[1].shape[-1]), computed(query[..., :0]).dtype)
    return attend_into(out, group, scale, query, *parts)


def attend_into(out: Array, group: Group, scale: float | None, query: Array, *parts: Array) -> Result:
    """The same, written where it is wanted."""
    q = computed(query)
    lse = np.empty(q.shape[:-1], q.dtype)
    for number, block in enumerate(_blocks(group, parts)):
        for rows, local in _strips(group, block, number == 0):
            call = functools.partial(
                attention, q[..., rows, :], block.key, block.value, local, scale=scale, return_lse=True, num_threads=1
            )
            if number == 0:
                _, lse[..., rows] = call(out=out[..., rows, :])
            else:
                out[..., rows, :], lse[..., rows] = merge(out[..., rows, :], lse[..., rows], *call())
    return out, lse


def attend_backward(group: Group, scale: float | None, of_rows: Sequence[Array], *parts: Array) -> tuple[Array, ...]:
    """Gradient of the group's queries, then those of key and value of each piece.

    `of_rows` has query, grad_out, out and lse (of all keys, not of the group's alone), and grad_lse where there is one.
    """
    arrays = [computed(x) for x in of_rows]
    grad_query, of_parts = np.zeros_like(arrays[0]), [arrays[0]] * len(parts)
    for number, block in enumerate(_blocks(group, parts)):
        grads = np.zeros_like(block.key), np.zeros_like(block.value)
        for rows, local in _strips(group, block, number == 0):
            q, g, out = (x[..., rows, :] for x in arrays[:3])
            lse, *of_lse = (x[..., rows] for x in arrays[3:])
            of_query, *found = attention_backward(
                g, q, block.key, block.value, out, lse, local, scale=scale, num_threads=1,
                grad_lse=of_lse[0] if of_lse else None,
            )  # fmt: skip
            grad_query[..., rows, :] += of_query
            for total, share in zip(grads, found, strict=True):
                total += share
        begin = 0
        for piece in block.pieces:
            end = begin + len(group.pieces[piece])
            of_parts[2 * piece : 2 * piece + 2] = [x[..., begin:end, :] for x in grads]
            begin = end
    return grad_query, *of_parts


def nothing(query: Array, d_v: int) -> Result:
    """Rows that may attend no key."""
    q = computed(query)
    return np.zeros((*q.shape[:-1], d_v), q.dtype), np.full(q.shape[:-1], -np.inf, q.dtype)


def union(a: Result, b: Result) -> Result:
    """The attention over the keys of both."""
    return merge(*a, *b)


def place(whole: Result, few: Result, rows: Ints) -> Result:
    """A copy of a result in which some rows are those of another."""
    out, lse = whole[0].copy(), whole[1].copy()
    out[..., rows, :], lse[..., rows] = few
    return out, lse


def pick(found: tuple[Array, ...], number: int, dtype: Any = None) -> Array:
    """One of a task's results."""
    return found[number] if dtype is None else found[number].astype(dtype, copy=False)


def add_up(shape: tuple[int, ...], dtype: Any, chosen: Sequence[Chosen], *shares: Array) -> Array:
    """The sum of gradients, in order, each at its rows of a chunk."""
    if len(shares) == 1 and chosen[0] is None:
        return shares[0].astype(dtype, copy=False)
    total = np.zeros(shape, shares[0].dtype if shares else dtype)
    for rows, share in zip(chosen, shares, strict=True):
        total[..., slice(None) if rows is None else rows, :] += share
    return total.astype(dtype, copy=False)


def computed(x: Array) -> Array:
    """In the dtype of the computation: half precision as float32, so that what is merged was not rounded before."""
    return x if x.dtype.itemsize >= 4 else x.astype(np.float32)


def _blocks(group: Group, parts: Sequence[Array]) -> Iterator[Block]:
    """Contiguous pieces where they lie, the largest first; then all others side by side."""
    even = [number for number, piece in enumerate(group.pieces) if piece.keys.listed is None]
    if len(even) > _ALONE:
        even = [number for number in even if len(group.pieces[number]) * _LARGE >= len(group.rows)]

    def ready(number: int, which: int) -> Array:
        piece, x = group.pieces[number], parts[2 * number + which]
        return computed(x if piece.sent else take(x, piece.chosen))

    # the first block writes every row; those after it are merged into the few rows that see them
    for number in sorted(even, key=lambda number: -len(group.pieces[number])):
        yield Block(group.pieces[number].keys, ready(number, 0), ready(number, 1), [number])
    rest = [number for number in range(len(group.pieces)) if number not in even]
    if rest:
        index = Index(np.concatenate([group.pieces[number].keys.members() for number in rest]))
        key, value = (np.concatenate([ready(number, which) for number in rest], axis=-2) for which in (0, 1))
        yield Block(index, key, value, rest)


def _strips(group: Group, block: Block, every: bool) -> Iterator[tuple[Chosen, Any]]:
    """Rows that see the block (or every row), as places among the group's, and their patterns.

    Two strips where the rows of the first then meet their keys in residue classes, as strides want them.
    """
    places = Index(range(len(group.rows))) if every else _touched_rows(group, block)
    cuts = [places]
    strides = {leaf.stride for pattern in group.patterns for leaf in pattern._leaves() if isinstance(leaf, Strided)}
    if strides and places.listed is None and group.rows.listed is None and block.keys.listed is None:
        last = group.rows.start + places.stop + group.shape.shift
        cut = places.stop - (last - block.keys.stop) % max(strides)
        if places.start < cut < places.stop:
            cuts = [Index(range(places.start, cut)), Index(range(cut, places.stop))]
    for some in cuts:
        if len(some):
            rows = group.rows.some(some)
            local = [part(pattern, group.shape, rows, block.keys) for pattern in group.patterns]
            chosen = slice(some.start, some.stop) if some.listed is None else some.listed
            yield chosen, local[0] if len(local) == 1 else local


def _touched_rows(group: Group, block: Block) -> Index:
    """Rows, as places among the group's, that may see a key of the block."""
    local = dict.fromkeys(part(pattern, group.shape, group.rows, block.keys) for pattern in group.patterns)
    return _touched(tuple(local), len(group.rows), len(block.keys))


@functools.lru_cache(maxsize=32)
def _touched(patterns: tuple[Pattern, ...], n_rows: int, n_keys: int) -> Index:
    height = max(64, -(-n_rows // _STRIPS))
    tiles = Tiles.affine(0, 1, n_rows, height)
    met = np.zeros(len(tiles), bool)
    for pattern in patterns:
        if isinstance(pattern, Difference) and isinstance(pattern.right, WholeRows):
            pattern = pattern.left  # without the rows that are worked out apart
        if any(isinstance(leaf, WholeRows | Strided | _PartStrided) for leaf in pattern._leaves()):
            return Index(range(n_rows))
        met[segment(pattern, Axis(tiles, Shape.aligned(n_rows, n_keys)))[0].tile] = True
    rows = (np.nonzero(met)[0][:, None] * height + np.arange(height)).ravel()
    return Index(rows[rows < n_rows])
