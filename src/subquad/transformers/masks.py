"""A mask that is a description: what Hugging Face hands from the model to its attention, O(n) instead of n x n."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from subquad.patterns import Banded, Causal, Dense, Global, Packed, Pattern
from subquad.patterns.bands import Band
from subquad.patterns.base import Intersection, Union
from subquad.transformers.mask_functions import All, Any_, Chunks, Meaning, Segments, understood


class Mask(NamedTuple):
    """Which pairs are allowed, for every element of a batch."""

    n_q: int
    n_k: int
    q_offset: int  # where query row 0 stands among the keys
    parts: tuple[tuple[Pattern, tuple[int, ...]], ...]  # each different pattern, with the elements that have it
    key_starts: Tensor | None  # (batch,); None where every key from the first on is there
    key_lengths: Tensor | None
    packed: bool

    @property
    def padded(self) -> bool:
        return self.key_starts is not None

    @property
    def batch(self) -> int:
        return sum(len(members) for _, members in self.parts)


class Place(NamedTuple):
    """Where queries and keys stand, in positions that count from the beginning of the sequence."""

    n_q: int
    n_k: int
    first_query: int
    first_key: int

    @property
    def square(self) -> bool:
        return self.n_q == self.n_k and self.first_query == self.first_key


@torch.compiler.disable  # reads the values of a mask
def describe(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> MaskTensor:
    """The mask function that Hugging Face calls; what else it passes is about numbers, and there are none here."""
    place = Place(int(q_length), int(kv_length), int(q_offset), int(kv_offset))
    meaning = Causal() if mask_function is None else understood(mask_function)
    starts, lengths, holes = _padding(attention_mask, batch_size, place)
    parts: dict[Pattern, list[int]] = {}
    shared = _resolved(meaning, place, 0) if isinstance(meaning, Pattern) or not _per_element(meaning) else None
    for element in range(batch_size):
        pattern = shared if shared is not None else _resolved(meaning, place, element)
        if pattern is None:
            raise ValueError("the mask allows no pair at all")
        if element in holes:
            pattern = pattern - Global(holes[element], rows=False)
        parts.setdefault(pattern, []).append(element)
    packed = any(isinstance(part, Segments) for part in _leaves(meaning))
    found = tuple((pattern, tuple(members)) for pattern, members in parts.items())
    offset = place.first_query - place.first_key
    return MaskTensor(Mask(place.n_q, place.n_k, offset, found, starts, lengths, packed))


# --- padding ----------------------------------------------------------------------------------------------------------


def _padding(
    attention_mask: Tensor | None, batch_size: int, place: Place
) -> tuple[Tensor | None, Tensor | None, dict[int, tuple[int, ...]]]:
    """First key and one past the last that are there, in each element, and the keys missing between."""
    if attention_mask is None:
        return None, None, {}
    if attention_mask.dim() != 2 or attention_mask.shape[0] != batch_size:
        raise ValueError(
            f"attention_mask must have shape (batch = {batch_size}, tokens); got {tuple(attention_mask.shape)}"
        )
    seen = attention_mask[:, place.first_key : place.first_key + place.n_k].bool().numpy()
    there = np.zeros((batch_size, place.n_k), bool)  # keys that the mask does not reach, of a static cache, are not
    there[:, : seen.shape[1]] = seen
    if there.all():
        return None, None, {}
    some = there.any(axis=1)
    starts = np.where(some, there.argmax(axis=1), 0)
    lengths = np.where(some, place.n_k - there[:, ::-1].argmax(axis=1), 0)
    holes = {}
    for element in np.flatnonzero(there.sum(axis=1) != lengths - starts):
        inside = ~there[element, starts[element] : lengths[element]]
        holes[int(element)] = tuple((starts[element] + np.flatnonzero(inside)).tolist())
    return torch.from_numpy(starts), torch.from_numpy(lengths), holes


# --- meanings as patterns ---------------------------------------------------------------------------------------------


def _leaves(meaning: Meaning) -> Iterable[Meaning]:
    if isinstance(meaning, All | Any_):
        for part in meaning.parts:
            yield from _leaves(part)
    else:
        yield meaning


def _per_element(meaning: Meaning) -> bool:
    """Whether elements of a batch may differ."""
    return any(not isinstance(leaf, Pattern) for leaf in _leaves(meaning))


def _resolved(meaning: Meaning, place: Place, element: int) -> Pattern | None:
    """The pattern of one element, its keys counted from the first that is held; None where nothing is allowed."""
    if isinstance(meaning, All):
        parts = [_resolved(part, place, element) for part in meaning.parts]
        return None if None in parts else _meet([part for part in parts if part is not None])
    if isinstance(meaning, Any_):
        return _join([part for m in meaning.parts if (part := _resolved(m, place, element)) is not None])
    if isinstance(meaning, Segments):
        return _segments(meaning.ids[element if len(meaning.ids) > 1 else 0], place)
    if isinstance(meaning, Chunks):
        return _chunks(meaning.size, int(meaning.left_padding[element]), place)
    return meaning


def _meet(parts: list[Pattern]) -> Pattern:
    """The intersection; windows meet in one window."""
    bands = [part for part in parts if isinstance(part, Band) and part.reach()[2] == 1]
    others = [part for part in parts if part not in bands]
    if not bands:
        return reduce(Intersection, others)
    lefts, rights = zip(*((left, right) for left, right, _ in (band.reach() for band in bands)), strict=True)
    left, right = (min((x for x in sides if x is not None), default=None) for sides in (lefts, rights))
    window: Pattern = Banded((left, right))
    if left is None:
        window = Dense() if right is None else Causal() if right == 0 else window
    elif left == right:
        window = Banded(left)
    if isinstance(window, Dense) and others:
        return reduce(Intersection, others)
    return reduce(Intersection, [*others, window])


def _join(parts: list[Pattern]) -> Pattern | None:
    """The union; what lies within a window of it is left out."""
    if any(isinstance(part, Dense) for part in parts):
        return Dense()
    kept = [part for part in parts if not any(_within(part, other) for other in parts if other is not part)]
    return reduce(Union, kept) if kept else None


def _within(part: Pattern, other: Pattern) -> bool:
    """Whether one window is a part of another, and not the same."""
    if not isinstance(part, Band) or not isinstance(other, Band) or part == other:
        return False
    (left, right, block), (left_o, right_o, block_o) = part.reach(), other.reach()
    if block != 1 or block_o != 1:
        return False
    return all(wide is None or (side is not None and side <= wide) for side, wide in ((left, left_o), (right, right_o)))


def _segments(ids: Tensor, place: Place) -> Pattern | None:
    """Tokens with the same id, which must be neighbours."""
    told = ids.numpy()
    queries = told[place.first_query : place.first_query + place.n_q]
    if not (queries >= 0).any():
        return None
    if not place.square:
        raise ValueError(
            f"packed sequences and blocks need as many queries as keys; got {place.n_q} queries and {place.n_k} keys "
            f"(a cache holds the others)"
        )
    runs = np.flatnonzero(np.diff(queries) != 0) + 1
    edges = np.concatenate(([0], runs, [len(queries)]))
    of_run = queries[edges[:-1]]
    if len(np.unique(of_run[of_run >= 0])) != np.count_nonzero(of_run >= 0):
        raise ValueError("tokens of a packed sequence or block must be neighbours; one comes back after another")
    # a token of no segment is one of its own: it sees itself, as it does by the causal mask that is joined
    lengths = np.concatenate(
        [[n] if of >= 0 else np.ones(n, np.int64) for of, n in zip(of_run, np.diff(edges), strict=True)]
    )
    return Packed(lengths.astype(np.int64))


def _chunks(size: int, left_padding: int, place: Place) -> Pattern:
    """Chunks that begin at the first token that is no padding."""
    begin = (left_padding - place.first_key) % size  # the first key at which a chunk begins
    if begin == 0:
        return Banded(0, block=size)
    if place.square:
        rest = max(0, place.n_k - begin)
        return Packed([min(begin, place.n_k), *[size] * (rest // size), *([rest % size] if rest % size else [])])
    first, last = ((place.first_query + row - left_padding) // size for row in (0, place.n_q - 1))
    if first != last:
        raise ValueError(
            f"chunked attention after a cache needs its new tokens in one chunk of {size}; got {place.n_q} tokens that "
            f"lie in several; pass fewer at a time"
        )
    start, stop = (min(max(first_key, 0), place.n_k) for first_key in _keys_of_chunk(first, size, left_padding, place))
    pattern: Pattern = Dense()
    if start > 0:
        pattern = pattern - Global(range(start), rows=False)
    return pattern - Global(range(stop, place.n_k), rows=False) if stop < place.n_k else pattern


def _keys_of_chunk(chunk: int, size: int, left_padding: int, place: Place) -> tuple[int, int]:
    start = left_padding + chunk * size - place.first_key
    return start, start + size


# --- the tensor that carries it ---------------------------------------------------------------------------------------


_Tensor: Any = Tensor  # what it is told to do without numbers is not what its class says


class MaskTensor(_Tensor):
    """A tensor (batch, 1, n_q, n_k) without numbers: models pass it on, and whoever computes with it is told."""

    mask: Mask

    @staticmethod
    def __new__(cls, mask: Mask) -> MaskTensor:
        shape = (mask.batch, 1, mask.n_q, mask.n_k)
        made: MaskTensor = _Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device="cpu")
        return made

    def __init__(self, mask: Mask) -> None:
        self.mask = mask

    def __repr__(self, **_: Any) -> str:
        return f"MaskTensor({self.mask!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ops = torch.ops.aten
        if func in (ops.detach.default, ops.alias.default, ops.clone.default) and isinstance(args[0], cls):
            return cls(args[0].mask)
        raise _no_numbers(func)


def _no_numbers(func: Any) -> NotImplementedError:
    return NotImplementedError(
        f'attn_implementation="subquad" hands the model a mask that is a description, not n x n numbers; this model '
        f'computes with it ({func}), which is not supported: use attn_implementation="sdpa" or "eager"'
    )
