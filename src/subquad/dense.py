"""Dense attention as one writes it in NumPy: the baseline that sparse attention is measured against."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def attention(query: Array, key: Array, value: Array, *, out: Array | None = None) -> Array:
    """Dense attention through BLAS for arrays (heads, n, d), with the n x n scores of one head at a time.

    The softmax runs in place, and what it divides by is applied to the output rather than to the n² weights: beside the
    two products, the scores are passed over for their maximum, the subtraction, the exponential and the sum alone.
    """
    if out is None:
        out = np.empty((*query.shape[:-1], value.shape[-1]), query.dtype)
    scale = query.dtype.type(query.shape[-1] ** -0.5)
    scores = np.empty((query.shape[1], key.shape[1]), query.dtype)
    for head in range(query.shape[0]):
        np.matmul(query[head] * scale, key[head].T, out=scores)
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        np.matmul(scores, value[head], out=out[head])
        out[head] /= scores.sum(axis=1, keepdims=True)
    return out
