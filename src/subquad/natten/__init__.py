"""Neighborhood attention on the CPU, under the names and in the layouts of NATTEN.

`na1d`, `na2d` and `na3d` are the fused operators, tokens before heads. The split ones, which NATTEN has removed, have
heads before tokens: `na1d_qk` and its like give the scores of each window, with a relative position bias if there is
one, and `na1d_av` and its like the sums that weights make of it.

>>> import torch
>>> from subquad.natten import na2d
>>> query, key, value = torch.randn(3, 1, 14, 14, 4, 32)  # (batch, height, width, heads, head_dim)
>>> na2d(query, key, value, kernel_size=7).shape
torch.Size([1, 14, 14, 4, 32])
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError('subquad.natten needs PyTorch: pip install "subquad[torch]"') from None

from subquad.natten.fused import na1d, na2d, na3d
from subquad.natten.split import na1d_av, na1d_qk, na2d_av, na2d_qk, na3d_av, na3d_qk

__all__ = ["na1d", "na1d_av", "na1d_qk", "na2d", "na2d_av", "na2d_qk", "na3d", "na3d_av", "na3d_qk"]
