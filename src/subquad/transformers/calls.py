"""Calls of `subquad.torch.attention` as layers make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from subquad.patterns import Pattern
from subquad.transformers.needs import torch

Tensor = torch.Tensor


def attended(heads: Sequence[Tensor], pattern: Pattern, options: dict[str, Any] | None = None) -> Tensor:
    """Attention of (query, key, value), heads before tokens."""
    from subquad.torch import attention

    call: Any = attention
    out: Tensor = call(*heads, pattern, **(options or {}))
    return out


def dropout_options(probability: float, training: bool = True) -> dict[str, Any]:
    """The options for a layer's dropout; ``torch.manual_seed`` decides what is dropped."""
    if not training or not probability:
        return {}
    return {"dropout": float(probability), "seed": torch.randint(2**62, ())}
