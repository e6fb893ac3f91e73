"""Scores and weights of the allowed pairs alone, as sparse matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from subquad.inputs import Array, checked_inputs, checked_pattern, checked_scale, empty
from subquad.patterns.base import Pattern, Shape
from subquad.patterns.spans import Ints
from subquad.threads import share_out, thread_count


@dataclass(frozen=True)
class SparseScores:
    """One number for each allowed pair: CSR rows that all heads share.

    Attributes
    ----------
    indptr : int64 array, shape (n_q + 1,)
    indices : int64 array, shape (nnz,)
        Keys, ascending in each row.
    data : array, shape (..., nnz)
        The numbers, for each head.
    shape : tuple
        (n_q, n_k).
    """

    indptr: Ints
    indices: Ints
    data: Array
    shape: tuple[int, int]

    def row(self, i: int) -> tuple[Ints, Array]:
        """Keys of query row i, and its numbers of shape (..., keys)."""
        if not 0 <= i < self.shape[0]:
            raise IndexError(f"i must be in [0, n_q = {self.shape[0]}); got {i}")
        part = slice(int(self.indptr[i]), int(self.indptr[i + 1]))
        return self.indices[part], self.data[..., part]

    def to_scipy(self, *head: int) -> Any:
        """One head as a SciPy CSR array: ``to_scipy()``, ``to_scipy(h)`` or ``to_scipy(b, h)``, as `data` has axes."""
        try:
            from scipy.sparse import csr_array
        except ImportError:
            raise ImportError('to_scipy returns a SciPy array: pip install "subquad[scipy]"') from None
        given, leading = head, self.data.shape[:-1]
        if len(given) > len(leading) and not any(given[: len(given) - len(leading)]):
            given = given[len(given) - len(leading) :]
        if len(given) != len(leading):
            raise ValueError(f"to_scipy takes one index for each of the leading axes {leading}; got {head}")
        return csr_array((self.data[given], self.indices, self.indptr), shape=self.shape)


def attention_scores(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    pattern: Pattern,
    *,
    scale: float | None = None,
    num_threads: int | None = None,
    max_bytes: int | None = None,
) -> SparseScores:
    """Scaled scores ``scale * dot(query[i], key[j])`` of the allowed pairs: time O(pairs x d), memory O(pairs).

    Parameters are those of `attention`. `max_bytes` bounds keys, numbers, and the memory that listing the pairs takes.

    Examples
    --------
    >>> import numpy as np
    >>> from subquad import Banded
    >>> x = np.eye(4)
    >>> attention_scores(x, x, Banded(1), scale=1.0).row(0)
    (array([0, 1]), array([1., 0.]))
    """
    return _rounded(*_scores(query, key, pattern, scale, num_threads, max_bytes))


def _scores(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    pattern: Pattern,
    scale: float | None,
    num_threads: int | None,
    max_bytes: int | None,
) -> tuple[SparseScores, np.dtype[Any]]:
    """Scores in the dtype that they are computed in, and the one that they are returned in."""
    from subquad import forward, limits
    from subquad.kernels import layout
    from subquad.plan import LISTING, csr_arrays
    from subquad.plan.cost import COLD_PAIR
    from subquad.plan.tables import GatheredPhase, address, cut

    checked = checked_pattern(pattern)
    inputs = checked_inputs(query, key, None, max_bytes)
    q, k = inputs.arrays
    factor, threads = checked_scale(scale, q.shape[-1], inputs.compute_dtype), thread_count(num_threads)
    shape = Shape.aligned(q.shape[2], k.shape[2])
    checked._validate(shape)
    budget = limits.Budget(max_bytes, inputs, (query, key))
    if budget.most is not None:  # counting takes as long as planning
        n_pairs = checked._count(shape)
        budget.array("row pointers and keys", (shape.n_q + 1 + n_pairs,), np.int64)
        budget.array("scores", (*q.shape[:2], n_pairs), inputs.compute_dtype)
        budget.array("listing the pairs", (LISTING, n_pairs), np.uint8)
        limits.check(budget.parts, budget.most)
    indptr, indices = csr_arrays(checked, shape)
    data = empty((*q.shape[:2], len(indices)), inputs.compute_dtype, "scores")

    kernel = forward.kernel_for("scores", inputs)
    table = forward.geometry(shape, (q.shape[-1], 0), [(q, layout.Q_ROW), (k, layout.K_ROW)], None, {})
    lists = GatheredPhase(indptr, indices)
    ranges = cut(lists.work, 2.0 * q.shape[-1] * COLD_PAIR)
    fixed = [address(x) for x in (table, indptr, indices)]
    heads = forward.Heads.of(q.shape[1], q, k, data)

    def worker() -> Callable[[int], None]:
        # scores go straight to where they belong: no list needs scratch
        own = forward.scratch(layout.list_scratch_sizes(q.shape[-1], 1, data.itemsize, 0), data.dtype)
        places = [*fixed, address(own[0])]

        # `_kept`: what the addresses point to must live as long as they do, whatever becomes of the caller
        def do(task: int, _kept: Any = (own, inputs, data, lists, table)) -> None:
            batch_head, part = divmod(task, len(ranges))
            kernel(*heads.begin(*divmod(batch_head, q.shape[1])), factor, *places, *ranges[part])

        return do

    share_out(q.shape[0] * q.shape[1] * len(ranges), worker, threads)
    data = data.reshape(*inputs.leading, len(indices))
    return SparseScores(indptr, indices, data, (shape.n_q, shape.n_k)), inputs.dtype


def _rounded(scores: SparseScores, dtype: np.dtype[Any]) -> SparseScores:
    return replace(scores, data=scores.data.astype(dtype, copy=False))


def attention_weights(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    pattern: Pattern,
    *,
    scale: float | None = None,
    num_threads: int | None = None,
    max_bytes: int | None = None,
) -> SparseScores:
    """Softmax of each row's scores over its allowed keys: what `attention` weighs the values with.

    Parameters are those of `attention`. `max_bytes` bounds keys, numbers, and the memory that listing the pairs takes.

    Examples
    --------
    >>> import numpy as np
    >>> from subquad import Banded
    >>> x = np.zeros((4, 8))
    >>> attention_weights(x, x, Banded(1)).row(0)
    (array([0, 1]), array([0.5, 0.5]))
    """
    scores, dtype = _scores(query, key, pattern, scale, num_threads, max_bytes)
    counts = np.diff(scores.indptr)
    filled = np.nonzero(counts)[0]
    if len(filled):
        data, begin = scores.data, scores.indptr[filled]
        with np.errstate(all="ignore"):  # what is not finite stays so, in its own rows
            data -= np.repeat(np.maximum.reduceat(data, begin, axis=-1), counts[filled], axis=-1)
            np.exp(data, out=data)
            data /= np.repeat(np.add.reduceat(data, begin, axis=-1), counts[filled], axis=-1)
    return _rounded(scores, dtype)
