"""Sparse attention for PyTorch on the CPU: tensors in and out without a copy, with gradients.

>>> import torch
>>> from subquad import Banded
>>> from subquad.torch import attention
>>> x = torch.randn(4, 2000, 64, requires_grad=True)
>>> attention(x, x, x, Banded(256)).sum().backward()
>>> x.grad.shape
torch.Size([4, 2000, 64])
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":  # PyTorch is there, but something of its own is not: its message says more than ours
        raise
    raise ImportError('subquad.torch needs PyTorch: pip install "subquad[torch]"') from None

from subquad.torch.functional import attention, merge
from subquad.torch.module import SparseMultiheadAttention

__all__ = ["SparseMultiheadAttention", "attention", "merge"]
