"""Dropout of attention weights, from PyTorch's own generator."""

from __future__ import annotations

from typing import Any

import torch


def dropout_options(probability: float, training: bool = True) -> dict[str, Any]:
    """The options of `subquad.torch.attention` for a layer's dropout; ``torch.manual_seed`` decides what is dropped."""
    if not training or not probability:
        return {}
    return {"dropout": float(probability), "seed": int(torch.randint(2**62, ()).item())}
