"""Sparse attention on Dask arrays: sequences that outgrow one memory or one machine.

>>> import dask.array as da
>>> from subquad import Banded
>>> from subquad.dask import attention
>>> x = da.random.default_rng(0).standard_normal((4, 8000, 64), chunks=(4, 2000, 64), dtype="float32")
>>> attention(x, x, x, Banded(256)).chunks
((4,), (2000, 2000, 2000, 2000), (64,))
"""

try:
    import dask.array as _array  # noqa: F401
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "dask":  # it is there, but something of its own is not
        raise
    raise ImportError('subquad.dask needs Dask: pip install "subquad[dask]"') from None

from subquad.dask.functional import attention, attention_backward
from subquad.dask.scaling import ScalingPlan, scaling_plan

__all__ = ["ScalingPlan", "attention", "attention_backward", "scaling_plan"]
