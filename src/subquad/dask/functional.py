"""The public calls on Dask arrays: check, cut, build the graph. Nothing is computed here."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, overload

import dask.array as da
import numpy as np
from dask.base import normalize_token

from subquad.dask import graph
from subquad.dask.arrays import check_like, checked
from subquad.patterns.bands import Dense
from subquad.patterns.base import Pattern
from subquad.patterns.stored import Frozen


@normalize_token.register(Pattern)  # type: ignore[no-untyped-call,untyped-decorator]
def _token(pattern: Pattern) -> Any:
    """What tells patterns apart: equal ones give equal names, in every process."""
    if isinstance(pattern, Frozen):
        content: Any = pattern._held
    elif dataclasses.is_dataclass(pattern):
        content = tuple(getattr(pattern, field.name) for field in dataclasses.fields(pattern))
    else:
        content = pattern.__reduce_ex__(4)[1:]
    return type(pattern).__module__, type(pattern).__qualname__, normalize_token(content)


@overload
def attention(
    query: da.Array,
    key: da.Array,
    value: da.Array,
    pattern: Pattern | Sequence[Pattern] = ...,
    *,
    scale: float | None = ...,
    return_lse: Literal[False] = ...,
) -> da.Array: ...


@overload
def attention(
    query: da.Array,
    key: da.Array,
    value: da.Array,
    pattern: Pattern | Sequence[Pattern] = ...,
    *,
    scale: float | None = ...,
    return_lse: Literal[True],
) -> tuple[da.Array, da.Array]: ...


def attention(
    query: da.Array,
    key: da.Array,
    value: da.Array,
    pattern: Pattern | Sequence[Pattern] = Dense(),  # noqa: B008 - a frozen value
    *,
    scale: float | None = None,
    return_lse: bool = False,
) -> da.Array | tuple[da.Array, da.Array]:
    """Softmax attention on Dask arrays over the query-key pairs that a pattern allows, and no others.

    Parameters
    ----------
    query : dask.array.Array, shape (..., n_q, d)
    key : dask.array.Array, shape (..., n_k, d)
    value : dask.array.Array, shape (..., n_k, d_v)
        float32 or float64; float16 and bfloat16 are computed in float32. Leading axes are none, (heads,) or
        (batch, heads); `query` may have a multiple of the heads of `key` (grouped-query attention). Cut along the
        sequence as you like, `query` otherwise than `key`, but `value` as `key`; batch and heads cut alike in all
        three; columns in one chunk.
    pattern : Pattern or sequence of Pattern, optional
        Which keys each query may attend. Query row i stands at position i + n_k - n_q. A sequence has one for each head
        of `query`.
    scale : float, optional
        Factor of the scores; ``d ** -0.5`` by default.
    return_lse : bool, optional
        Also return the natural log of the sum of exponentials of each row's scores.

    Returns
    -------
    out : dask.array.Array, shape (..., n_q, d_v)
        Lazy, in the dtype of the inputs and the chunks of `query`. A row with no allowed key is 0.
    lse : dask.array.Array, shape (..., n_q)
        If asked for: float32 or float64, -inf for a row with no allowed key.

    Raises
    ------
    TypeError, ValueError
        For arrays or chunks that do not fit, unknown chunk sizes among them, before any graph is made.

    Notes
    -----
    Keys travel to the rows that see them, cut where they lie: halos for windows, columns for global tokens, lists for
    strided and random keys. Rows that see everything travel to the keys instead, and their partial results come back.
    Partial results are merged in a tree that the chunks alone decide, so a result does not depend on the scheduler, the
    number of workers or a worker that was lost. A kernel runs on one thread: how many run at once is up to Dask.

    Making the graph takes O(chunks + pieces) for windows, strides, columns and segments; for neighbourhoods, lists and
    random keys O(n) times the keys of a row. Time, pairs and memory of a task are those of `subquad.attention` for its
    part. How partial results are merged: Milakov, Gimelshein (2018); Liu et al., "Ring Attention" (2023), section 3.

    Examples
    --------
    >>> import dask.array as da
    >>> from subquad import Banded, Global
    >>> x = da.random.default_rng(0).standard_normal((2, 1000, 64), chunks=(2, 250, 64))
    >>> out, lse = attention(x, x, x, Banded(16) | Global([0]), return_lse=True)
    >>> out.chunks, lse.dtype
    (((2,), (250, 250, 250, 250), (64,)), dtype('float64'))
    >>> out.compute(scheduler="threads").shape
    (2, 1000, 64)
    """
    out, lse = graph.forward(checked(query, key, value, pattern, scale))
    return (out, lse) if return_lse else out


def attention_backward(
    grad_out: da.Array,
    query: da.Array,
    key: da.Array,
    value: da.Array,
    out: da.Array,
    lse: da.Array,
    pattern: Pattern | Sequence[Pattern] = Dense(),  # noqa: B008 - a frozen value
    *,
    scale: float | None = None,
    grad_lse: da.Array | None = None,
) -> tuple[da.Array, da.Array, da.Array]:
    """Gradients of `subquad.dask.attention` with respect to query, key and value.

    Parameters
    ----------
    grad_out : dask.array.Array, shape (..., n_q, d_v)
        Gradient of a scalar with respect to `out`.
    query, key, value : dask.array.Array
        As they were given to `attention`.
    out : dask.array.Array, shape (..., n_q, d_v)
    lse : dask.array.Array, shape (..., n_q)
        What ``attention(..., return_lse=True)`` returned. Persist them before, or the forward is computed once more.
    pattern : Pattern or sequence of Pattern, optional
        The pattern of that call.
    scale : float, optional
        The scale of that call; ``d ** -0.5`` by default.
    grad_lse : dask.array.Array, shape (..., n_q), optional
        Gradient with respect to `lse`; 0 by default.

    Returns
    -------
    grad_query, grad_key, grad_value : dask.array.Array
        Lazy, in the shapes, dtypes and chunks of query, key and value.

    Raises
    ------
    TypeError, ValueError
        For arrays or chunks that do not fit, before any graph is made.

    Notes
    -----
    Every part of the keys gives its share, from the lse of all of them; shares come back to where the keys lie and are
    added up in the order of the rows. Twice the forward's bytes move: keys and values out, their gradients back.

    Examples
    --------
    >>> import dask.array as da
    >>> from subquad import Banded
    >>> x = da.random.default_rng(0).standard_normal((1000, 64), chunks=(250, 64))
    >>> out, lse = attention(x, x, x, Banded(16), return_lse=True)
    >>> _, grad_key, _ = attention_backward(da.ones_like(out), x, x, x, out, lse, Banded(16))
    >>> grad_key.chunks
    ((250, 250, 250, 250), (64,))
    """
    given = checked(query, key, value, pattern, scale)
    chunks = (*query.chunks[:-1], value.chunks[-1])
    shape = (*query.shape[:-1], value.shape[-1])
    for name, x in (("grad_out", grad_out), ("out", out)):
        check_like(x, name, shape, np.dtype(query.dtype), chunks)
    for name, x in (("lse", lse), *((("grad_lse", grad_lse),) if grad_lse is not None else ())):
        check_like(x, name, shape[:-1], given.compute_dtype, chunks[:-1])
    return graph.backward(given, grad_out, out, lse, grad_lse)
