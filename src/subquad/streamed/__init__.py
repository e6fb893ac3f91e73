"""Attention over arrays that outgrow memory: files and Zarr arrays, a range of queries at a time.

>>> import numpy as np
>>> from subquad import Banded, streamed
>>> x = np.random.default_rng(0).standard_normal((1000, 64), dtype=np.float32)
>>> out = streamed.attention(x, x, x, Banded(9), out=np.empty_like(x), max_bytes=32 << 20)
>>> out.shape
(1000, 64)
"""

from subquad.streamed.call import attention

__all__ = ["attention"]
