"""What a mask function of Hugging Face means, read off its parts and never called for all pairs.

The library builds a mask from functions of (batch, head, query, key) that it joins: causal, a window, padding. Each is
recognised by its code, which all closures of one definition share, and its numbers are taken from the closure. What is
not recognised is refused by name: a mask that is not understood cannot be honoured without looking at n x n pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import masking_utils

from subquad.patterns import Banded, Causal, Dense, Pattern


class Segments(NamedTuple):
    """Query and key in the same segment, where `ids` (batch, n) are equal; an id below 0 belongs to none."""

    ids: Tensor


class Chunks(NamedTuple):
    """Query and key in the same chunk of so many tokens, counted from the first one that is no padding."""

    size: int
    left_padding: Tensor  # (batch,)


class All(NamedTuple):
    """Pairs that all of the parts allow."""

    parts: tuple[Any, ...]


class Any_(NamedTuple):
    """Pairs that any of the parts allows."""

    parts: tuple[Any, ...]


Meaning = Pattern | Segments | Chunks | All | Any_


def understood(function: Callable[..., Any]) -> Meaning:
    """The meaning of a mask function.

    Raises
    ------
    ValueError
        If it is none of the library's own, nor joined of them; the message names it.
    """
    code = getattr(function, "__code__", None)
    read = _readers().get(code) if code is not None else None
    if read is None and code is not None:
        read = next((found for known, found in _copies() if _same(code, known)), None)
    if read is not None:
        return read(**_cells(function))
    if _constant(function):
        return Dense()
    name = f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
    raise ValueError(
        f'attn_implementation="subquad" does not know the mask function {name}, and would have to call it for every '
        f'pair; use attn_implementation="sdpa" for this model, or subquad.torch.attention with a pattern of your own'
    )


def _cells(function: Any) -> dict[str, Any]:
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    return dict(zip(function.__code__.co_freevars, cells, strict=True))


@functools.cache
def _readers() -> dict[CodeType, Callable[..., Meaning]]:
    """What the library's own functions mean, by their code."""
    m = masking_utils

    def code(function: Any) -> CodeType:
        found: CodeType = function.__code__
        return found

    return {
        code(m.causal_mask_function): Causal,
        code(m.bidirectional_mask_function): Dense,
        code(m.sliding_window_overlay(1)): lambda sliding_window: _window(int(sliding_window) - 1, None),
        code(m.sliding_window_bidirectional_overlay(1)): lambda sliding_window: _window(*[int(sliding_window)] * 2),
        code(m.chunked_overlay(1, None)): lambda chunk_size, left_padding: Chunks(int(chunk_size), left_padding),
        code(m.blockwise_overlay(None)): lambda block_sequence_ids: Segments(block_sequence_ids),
        code(m.packed_sequence_mask_function(None)): lambda packed_sequence_mask: Segments(packed_sequence_mask),
        code(m.remap_positions_for_packed_sequence(None, None)): _remapped,
        code(m.and_masks(_exclusive(1))): lambda mask_functions: All(tuple(map(understood, mask_functions))),
        code(m.or_masks(_exclusive(1))): lambda mask_functions: Any_(tuple(map(understood, mask_functions))),
    }


def _copies() -> Iterator[tuple[CodeType, Callable[..., Meaning]]]:
    """Functions that models define for themselves, again and again."""
    # both ways, the bound exclusive: Gemma 3 as an embedding model
    yield _exclusive(1).__code__, lambda sliding_window: _window(*[int(sliding_window) - 1] * 2)


def _exclusive(sliding_window: int) -> Callable[..., Any]:
    def inner_mask(batch_idx: int, head_idx: int, q_idx: int, kv_idx: int) -> bool:
        """Distances below the window. What is compared has a docstring too: it takes a place among its constants."""
        return abs(q_idx - kv_idx) < sliding_window

    return inner_mask


def _same(a: CodeType, b: CodeType) -> bool:
    """Whether two functions do the same, whatever their documentation says."""

    def told(code: CodeType) -> Any:
        constants = tuple(x for x in code.co_consts if not isinstance(x, str))
        return code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars

    return bool(told(a) == told(b))


def _window(left: int, right: int | None) -> Pattern:
    if left < 0:
        raise ValueError(f"sliding_window must be at least 1; got {left + 1}")
    return Banded(left if left == right else (left, right))


def _remapped(mask_function: Callable[..., Any], position_ids: Tensor) -> Meaning:
    """A mask of positions that begin anew in every packed sequence, each counting on by 1."""
    return _anew(understood(mask_function), position_ids)


def _anew(meaning: Meaning, position_ids: Tensor) -> Meaning:
    if isinstance(meaning, Pattern):  # of distances alone, which are the same within a sequence
        return meaning
    if isinstance(meaning, All | Any_):
        return type(meaning)(tuple(_anew(part, position_ids) for part in meaning.parts))
    if isinstance(meaning, Chunks):
        chunk = (position_ids - meaning.left_padding[:, None]) // meaning.size
        begins = torch.ones_like(position_ids, dtype=torch.bool)
        begins[:, 1:] = (position_ids.diff(dim=-1) != 1) | (chunk.diff(dim=-1) != 0)
        return Segments(begins.cumsum(-1))
    raise ValueError("packed position_ids together with blocks of their own are not supported: pass one of them")


def _constant(function: Callable[..., Any]) -> bool:
    """Whether it says yes to all pairs at once: for queries and keys of its own axes, one truth value comes back."""
    try:
        index = [
            torch.zeros(shape, dtype=torch.int64) for shape in ((1, 1, 1, 1), (1, 1, 1, 1), (1, 1, 2, 1), (1, 1, 1, 2))
        ]
        found = function(*index)
    except Exception:  # a function of any kind may raise anything
        return False
    return isinstance(found, Tensor) and found.dim() == 0 and found.dtype == torch.bool and bool(found)
