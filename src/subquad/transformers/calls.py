"""Calls of `subquad.torch.attention` as layers make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from subquad.patterns import Pattern
from subquad.transformers.needs import torch

if TYPE_CHECKING:
    from torch import Tensor


def attended(heads: Sequence[Tensor], pattern: Pattern, options: dict[str, Any] | None = None) -> Tensor:
    """Attention of (query, key, value), heads before tokens."""
    from subquad.torch import attention

    call: Any = attention
    out: Tensor = call(*heads, pattern, **(options or {}))
    return out


def averaged_where_empty(heads: Sequence[Tensor], pattern: Pattern, options: dict[str, Any]) -> Tensor:
    """The same, but a row that may attend no key is the average of all values instead of 0.

    So it is in eager attention, whose masks are large negative numbers: without any other, all keys weigh the same. Of
    padded prompts such a row can be the one that the first new token is read from.
    """
    from subquad.torch import attention

    call: Any = attention
    out, lse = call(*heads, pattern, return_lse=True, **options)
    empty = lse.detach() == -torch.inf
    if not bool(empty.any()):
        return cast("Tensor", out)
    value = heads[2]
    average = value.mean(dim=2, keepdim=True).repeat_interleave(out.shape[1] // value.shape[1], dim=1)
    return torch.where(empty[..., None], average, out)


def dropout_options(probability: float, training: bool = True) -> dict[str, Any]:
    """The options for a layer's dropout; ``torch.manual_seed`` decides what is dropped."""
    if not training or not probability:
        return {}
    return {"dropout": float(probability), "seed": torch.randint(2**62, ())}
