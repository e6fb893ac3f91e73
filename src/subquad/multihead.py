"""Multi-head attention as the papers draw it: projections, heads, concatenation, output projection."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from subquad import checks
from subquad.inputs import Array, checked_pattern
from subquad.patterns.base import Pattern
from subquad.scores import SparseScores


class MultiHeadAttention:
    """Self-attention with several heads over one pattern, weights drawn at random: for simulations.

    Parameters
    ----------
    embed_dim : int
        Columns of the input and of the output.
    num_heads : int
        Heads; embed_dim must be a multiple of it.
    pattern : Pattern
        Of every head.
    seed : int
        Of the four projections, (embed_dim, embed_dim) each, uniform in +-sqrt(3 / embed_dim) so that they keep the
        variance of what they project (Glorot, Bengio, 2010).

    Attributes
    ----------
    query_weight, key_weight, value_weight, out_weight : float64 array, shape (embed_dim, embed_dim)
        The projections, ``x @ weight``. Assign others to use them.
    head_dim : int
        ``embed_dim // num_heads``; scores are scaled by ``head_dim ** -0.5``.

    Notes
    -----
    Time O(n embed_dim² + pairs embed_dim). Vaswani et al., "Attention Is All You Need" (2017), section 3.2.2.

    Examples
    --------
    >>> import numpy as np
    >>> from subquad import Banded
    >>> attend = MultiHeadAttention(8, 2, Banded(2), seed=0)
    >>> x = np.random.default_rng(0).standard_normal((5, 8))
    >>> attend(x).shape, attend.weights(x).data.shape
    ((5, 8), (2, 19))
    """

    def __init__(self, embed_dim: int, num_heads: int, pattern: Pattern, *, seed: int) -> None:
        self.embed_dim = checks.integer(embed_dim, "embed_dim", 1)
        self.num_heads = checks.integer(num_heads, "num_heads", 1)
        if self.embed_dim % self.num_heads:
            raise ValueError(
                f"embed_dim must be a multiple of num_heads; got embed_dim = {embed_dim} and num_heads = {num_heads}"
            )
        self.pattern = checked_pattern(pattern)
        self.seed = checks.integer(seed, "seed", 0)
        self.head_dim = self.embed_dim // self.num_heads
        checks.allocatable(32 * self.embed_dim**2, f"four projections of {embed_dim} x {embed_dim}", "Lower embed_dim.")
        bound = (3 / self.embed_dim) ** 0.5
        drawn = np.random.default_rng(self.seed).uniform(-bound, bound, (4, self.embed_dim, self.embed_dim))
        self.query_weight, self.key_weight, self.value_weight, self.out_weight = drawn

    def __repr__(self) -> str:
        return f"MultiHeadAttention({self.embed_dim}, {self.num_heads}, {self.pattern!r}, seed={self.seed})"

    def __call__(self, x: npt.ArrayLike) -> Array:
        """Attend `x`, (n, embed_dim) or (batch, n, embed_dim), float32 or float64; the result is like it."""
        concatenated = self.concatenated(x)
        return np.asarray(concatenated @ self.out_weight.astype(concatenated.dtype))

    def concatenated(self, x: npt.ArrayLike) -> Array:
        """The outputs of the heads side by side, before the output projection: shaped like `x`."""
        from subquad.attention import attention

        out = attention(*self.project(x), self.pattern)
        beside = np.swapaxes(out, -3, -2)
        return beside.reshape(*beside.shape[:-2], self.embed_dim)

    def weights(self, x: npt.ArrayLike) -> SparseScores:
        """The softmax weights of every head, of the allowed pairs alone."""
        from subquad.scores import attention_weights

        query, key, _ = self.project(x)
        return attention_weights(query, key, self.pattern)

    def project(self, x: npt.ArrayLike) -> tuple[Array, Array, Array]:
        """Query, key and value of every head: (heads, n, head_dim), with the batch in front if there is one."""
        checked = self._checked(x)
        projections = (self.query_weight, self.key_weight, self.value_weight)
        query, key, value = (self._heads(checked @ weight.astype(checked.dtype)) for weight in projections)
        return query, key, value

    def _heads(self, projected: Array) -> Array:
        apart = projected.reshape(*projected.shape[:-1], self.num_heads, self.head_dim)
        return np.asarray(np.swapaxes(apart, -3, -2))

    def _checked(self, x: Any) -> Array:
        array = np.asarray(x)
        if array.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise TypeError(f"x must have dtype float32 or float64; got {array.dtype}; convert it with astype")
        if array.ndim not in (2, 3) or array.shape[-1] != self.embed_dim:
            raise ValueError(
                f"x must have shape (n, {self.embed_dim}) or (batch, n, {self.embed_dim}), its last axis being "
                f"embed_dim; got {array.shape}"
            )
        return array
