"""The public calls: check, plan, run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import numpy as np
import numpy.typing as npt

from subquad import limits
from subquad.inputs import (
    Array,
    Inputs,
    check_size,
    checked_gradients,
    checked_inputs,
    checked_out,
    checked_patterns,
    checked_result,
    checked_scale,
    empty,
    whole_strides,
)
from subquad.options import AttentionOptions, Options, checked_options, head_table
from subquad.patterns.bands import Dense
from subquad.patterns.base import Pattern, Shape
from subquad.threads import thread_count

if TYPE_CHECKING:
    from subquad.forward import Part


@overload
def attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    pattern: Pattern | Sequence[Pattern] = ...,
    *,
    scale: float | None = ...,
    return_lse: Literal[False] = ...,
    out: Array | None = ...,
    num_threads: int | None = ...,
    max_bytes: int | None = ...,
    **options: Unpack[AttentionOptions],
) -> Array: ...


@overload
def attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    pattern: Pattern | Sequence[Pattern] = ...,
    *,
    scale: float | None = ...,
    return_lse: Literal[True],
    out: Array | None = ...,
    num_threads: int | None = ...,
    max_bytes: int | None = ...,
    **options: Unpack[AttentionOptions],
) -> tuple[Array, Array]: ...


def attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    pattern: Pattern | Sequence[Pattern] = Dense(),  # noqa: B008 - a frozen value
    *,
    scale: float | None = None,
    return_lse: bool = False,
    out: Array | None = None,
    num_threads: int | None = None,
    max_bytes: int | None = None,
    **options: Unpack[AttentionOptions],
) -> Array | tuple[Array, Array]:
    """Softmax attention over the query-key pairs that a pattern allows, and no others.

    Parameters
    ----------
    query : array, shape (..., n_q, d)
    key : array, shape (..., n_k, d)
    value : array, shape (..., n_k, d_v)
        float32 or float64; float16 and bfloat16 are computed in float32. Leading axes are none, (heads,) or
        (batch, heads); `query` may have a multiple of the heads of `key` (grouped-query attention). Any strides.
    pattern : Pattern or sequence of Pattern, optional
        Which keys each query may attend. Query row i stands at position i + n_k - n_q. A sequence has one for each head
        of `query`.
    scale : float, optional
        Factor of the scores; ``d ** -0.5`` by default.
    return_lse : bool, optional
        Also return the natural log of the sum of exponentials of each row's scores.
    out : array, optional
        Where to write the output: its shape and dtype, writeable, apart from the inputs.
    num_threads : int, optional
        Threads to use; by default ``SUBQUAD_NUM_THREADS`` or all processors. The result does not depend on it.
    max_bytes : int, optional
        Bytes that the call may take beside its inputs: output, lse, plan, scratch of its threads, converted inputs.
        More is refused by a MemoryError that lists them.
    softcap : float, optional
        Bends every score s to ``softcap * tanh(s / softcap)``, before anything else is done to it (Gemma 2).
    alibi_slopes : array, shape (heads,), optional
        Subtracts ``slope * abs(p - j)`` from the score of a query at position p and key j (Press et al., 2022).
    score_mod : function (score, b, h, i, j) -> score, optional
        Changes a score last of all: batch, query head, query row and key are integers, the score is scaled, bent and
        biased. Plain Python that Numba can compile, or jitted already; compiled once for each function, so build it
        outside of loops. Differentiated by itself in a backward. Its value for pairs outside the pattern is never used.
    mask_mod : function (b, h, i, j) -> bool, optional
        Leaves out pairs that the pattern allows. The pattern bounds the work: what it leaves out is never asked for.
    sinks : array, shape (heads,), optional
        A logit for each query head that joins the softmax of every row, with a value of 0 (gpt-oss); it is part of lse.
    key_lengths, key_starts : int or array, shape (batch,), optional
        Keys ``key_starts[b] <= j < key_lengths[b]`` are there, others are not read: padding on either side, or a cache
        that is not full.
    q_offset : int or array, shape (batch,), optional
        Position of query row 0, n_k - n_q by default. Random and explicit patterns go by rows, not by positions.
    dropout : float, optional
        Share of the weights that are dropped, in [0, 1); the others are divided by 1 - dropout. lse is that of all.
    seed : int, optional
        Of dropout; which pairs are dropped is a function of (seed, b, h, i, j) alone. 0 by default.

    Returns
    -------
    out : array, shape (..., n_q, d_v)
        In the dtype of the inputs. A row with no allowed key is 0.
    lse : array, shape (..., n_q)
        If asked for: float32 or float64, -inf for a row with no allowed key.

    Raises
    ------
    TypeError, ValueError, MemoryError
        For what does not fit, before anything is written.
    KeyboardInterrupt
        Ctrl-C is seen within milliseconds. Only then, and where a `score_mod` cannot go on, is `out` partly written: a
        note of the exception says so.

    Notes
    -----
    Time O(pairs x (d + d_v)); memory beyond inputs and outputs O(threads x (d + d_v)) plus the plan. Keys outside the
    pattern never influence a result, not even where they hold NaN. Online softmax: Milakov, Gimelshein (2018);
    Dao et al., "FlashAttention" (2022), algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from subquad import Banded, attention
    >>> x = np.random.default_rng(0).standard_normal((2, 1000, 64), dtype=np.float32)
    >>> out, lse = attention(x, x, x, Banded(128), return_lse=True)
    >>> out.shape, lse.shape
    ((2, 1000, 64), (2, 1000))
    """
    from subquad import forward  # plans and kernels are for who calls: importing subquad stays light

    inputs = checked_inputs(query, key, _required(value), max_bytes)
    q, _, v = inputs.arrays
    patterns = checked_patterns(pattern, q.shape[1])
    asked = checked_options(options, inputs)
    factor, threads = checked_scale(scale, q.shape[-1], inputs.compute_dtype), thread_count(num_threads)
    shape = (*inputs.leading, q.shape[2], v.shape[3])
    if out is not None:
        checked_out(out, shape, inputs.dtype, {"query": query, "key": key, "value": value})
    else:
        check_size(shape, q.dtype, "output")
    budget = limits.Budget(max_bytes, inputs, (query, key, value))
    if out is None:
        budget.array("the output", shape, inputs.dtype)
    if return_lse:
        budget.array("lse", shape[:-1], inputs.compute_dtype)
    with budget.planning():
        parts, head = _parts(patterns, inputs, asked), head_table(asked, inputs)

    several = any(len(part.plan.phases) > 1 for part in parts)
    if several and not return_lse:
        budget.array("lse between phases", shape[:-1], inputs.compute_dtype)
    if several and inputs.narrow:
        budget.array("the output in float32", shape, inputs.compute_dtype)
    budget.plan(parts, inputs, head, threads)
    kept = inputs.compute_dtype if several else q.dtype  # what one phase leaves to the next is not rounded to halves
    direct = out is not None and out.dtype == kept and out.dtype.isnative and whole_strides(out)
    result = out if direct and out is not None else empty(shape, kept, "output")
    lse = empty(shape[:-1], inputs.compute_dtype, "lse") if return_lse or several else None
    lead = q.shape[:2]
    rows = None if lse is None else lse.reshape(*lead, q.shape[2])
    try:
        for part in parts:
            forward.run(part, inputs, head, result[(None,) * (4 - result.ndim)], rows, factor, threads)
    except BaseException as error:  # Ctrl-C, for all that is known: what is wrong with a call is told before
        if result is out:
            error.add_note("`out` was being written: what it holds is part new, part old, and of no use")
        raise
    if out is None:
        out = forward.converted(result, inputs.dtype)
    elif result is not out:
        out[...] = result
    return (out, lse) if return_lse and lse is not None else out


def attention_backward(
    grad_out: npt.ArrayLike,
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    out: npt.ArrayLike,
    lse: npt.ArrayLike,
    pattern: Pattern | Sequence[Pattern] = Dense(),  # noqa: B008 - a frozen value
    *,
    scale: float | None = None,
    grad_lse: npt.ArrayLike | None = None,
    num_threads: int | None = None,
    max_bytes: int | None = None,
    **options: Unpack[AttentionOptions],
) -> tuple[Array, ...]:
    """Gradients of `attention` with respect to query, key and value.

    Parameters
    ----------
    grad_out : array, shape (..., n_q, d_v)
        Gradient of a scalar with respect to `out`. Any strides.
    query, key, value : array
        As they were given to `attention`.
    out : array, shape (..., n_q, d_v)
    lse : array, shape (..., n_q)
        What ``attention(..., return_lse=True)`` returned. Where attentions over parts of the keys were merged, the
        merged `out` and `lse`: each part then gives its share of the gradients, and they add up.
    pattern : Pattern or sequence of Pattern, optional
        The pattern of that call.
    scale : float, optional
        The scale of that call; ``d ** -0.5`` by default.
    grad_lse : array, shape (..., n_q), optional
        Gradient with respect to `lse`; 0 by default.
    num_threads : int, optional
        Threads to use, as in `attention`. The result does not depend on it.
    max_bytes : int, optional
        Bytes that the call may take beside its inputs, as in `attention`: gradients, plan, scratch, a number a row.
    **options
        Those of that call: softcap, sinks, dropout and so on.

    Returns
    -------
    grad_query, grad_key, grad_value : array
        In the shapes and the dtype of query, key and value. A row with no allowed key gives and gets 0. Heads that
        share a key sum their gradients.
    grad_sinks : array, shape (heads,)
        If `sinks` are given: float32 or float64.

    Raises
    ------
    TypeError, ValueError, MemoryError
        For what does not fit, before anything is computed.

    Notes
    -----
    Time O(pairs x (3 d + 2 d_v)). Weights are recomputed from `lse`, so nothing of the size of the pairs is stored:
    memory beyond inputs and results is O(threads x (d + d_v) + n_q) plus the plan. Pairs outside the pattern never
    influence a gradient. Dao et al., "FlashAttention" (2022), algorithm 4; how gradients are summed in one order
    without atomics is said in `subquad.plan.schedule`.

    Examples
    --------
    >>> import numpy as np
    >>> from subquad import Banded, attention, attention_backward
    >>> x = np.random.default_rng(0).standard_normal((2, 1000, 64), dtype=np.float32)
    >>> out, lse = attention(x, x, x, Banded(128), return_lse=True)
    >>> grad_query, grad_key, grad_value = attention_backward(np.ones_like(out), x, x, x, out, lse, Banded(128))
    >>> grad_key.shape
    (2, 1000, 64)
    """
    from subquad import backward, forward

    inputs = checked_inputs(query, key, _required(value), max_bytes)
    q, _, v = inputs.arrays
    patterns = checked_patterns(pattern, q.shape[1])
    asked = checked_options(options, inputs)
    factor, threads = checked_scale(scale, q.shape[-1], inputs.compute_dtype), thread_count(num_threads)
    given = {"grad_out": grad_out, "out": out, "lse": lse} | ({} if grad_lse is None else {"grad_lse": grad_lse})
    of_out, result, sums, *of_lse = checked_gradients(given, inputs, q.shape[2], v.shape[3])
    names, budget = ("query", "key", "value"), limits.Budget(max_bytes, inputs, (query, key, value))
    budget.array("a number for each row", q.shape[:3], inputs.compute_dtype)
    for name, x in zip(names, inputs.arrays, strict=True):
        for dtype in {inputs.dtype, inputs.compute_dtype}:  # gradients of halves are summed in float32
            budget.array(f"the gradient of {name} in {dtype}", x.shape, dtype)
    with budget.planning():
        parts, head = _parts(patterns, inputs, asked), head_table(asked, inputs, backward=True)
    budget.plan(parts, inputs, head, threads, backward=True)

    named = zip(inputs.arrays, names, strict=True)
    grads = [empty(x.shape, inputs.compute_dtype, f"gradient of {name}", zero=True) for x, name in named]
    with np.errstate(all="ignore"):  # what is not finite stays so, in its own rows
        delta = backward.row_products(of_out, result, inputs.compute_dtype)
        for x in of_lse:
            delta -= x
    for part in parts:
        backward.run(part, inputs, head, backward.Gradients(of_out, sums, delta, *grads), factor, threads)
    # the leading axes that the caller left out are dropped again
    found = tuple(forward.converted(x[(0,) * (2 - len(inputs.leading))], inputs.dtype) for x in grads)
    if asked.sinks is None:
        return found
    with np.errstate(all="ignore"):
        return (*found, -(asked.sink_share(sums) * delta).sum(axis=(0, 2)))


def _parts(patterns: list[tuple[Pattern, Sequence[int]]], inputs: Inputs, options: Options) -> list[Part]:
    """The plan of every pattern, with the heads that follow it; all are made before any is run."""
    from subquad.forward import Part

    (_, _, n_q, _), n_k = inputs.arrays[0].shape, inputs.arrays[1].shape[2]
    itemsize = inputs.compute_dtype.itemsize
    return [
        Part(pattern._plan(Shape(n_q, n_k, offset), itemsize), batches, heads)
        for offset, batches in options.batches().items()
        for pattern, heads in patterns
    ]


def _required(value: Any) -> Any:
    if value is None:
        raise TypeError("value must be an array of shape (..., n_k, d_v); got None")
    return value


def merge(
    out_a: npt.ArrayLike, lse_a: npt.ArrayLike, out_b: npt.ArrayLike, lse_b: npt.ArrayLike
) -> tuple[Array, Array]:
    """The attention over two disjoint sets of keys, from the attention over each.

    Parameters
    ----------
    out_a, out_b : array, shape (..., n_q, d_v)
    lse_a, lse_b : array, shape (..., n_q)
        What ``attention(..., return_lse=True)`` gave for each set.

    Returns
    -------
    out, lse : array
        Exact up to rounding. Two empty rows give (0, -inf).

    Raises
    ------
    TypeError, ValueError
        If the shapes or dtypes do not go together.

    Examples
    --------
    >>> import numpy as np
    >>> from subquad import Banded, Dense, attention, merge
    >>> x = np.random.default_rng(0).standard_normal((100, 8))
    >>> near = attention(x, x, x, Banded(9), return_lse=True)
    >>> far = attention(x, x, x, Dense() - Banded(9), return_lse=True)
    >>> bool(np.allclose(merge(*near, *far)[0], attention(x, x, x)))
    True
    """
    a, b = checked_result(out_a, "out_a"), checked_result(out_b, "out_b")
    la, lb = checked_result(lse_a, "lse_a"), checked_result(lse_b, "lse_b")
    if a.shape != b.shape or a.dtype != b.dtype:
        raise ValueError(f"out_b must have the shape and dtype of out_a, {a.shape} {a.dtype}; got {b.shape} {b.dtype}")
    for name, lse in (("lse_a", la), ("lse_b", lb)):
        if lse.shape != a.shape[:-1]:
            raise ValueError(f"{name} must have out_a's shape without its last axis, {a.shape[:-1]}; got {lse.shape}")
    top = np.maximum(la, lb)
    base = np.where(np.isneginf(top), 0, top)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight_a, weight_b = np.exp(la - base), np.exp(lb - base)
        total = weight_a + weight_b
        merged = base + np.log(total)
        share_a, share_b = (np.where(w == 0, 0, w / total)[..., None] for w in (weight_a, weight_b))
        # a part without weight is left out even where it holds NaN
        out = np.where(share_a == 0, 0, share_a * a) + np.where(share_b == 0, 0, share_b * b)
    return out.astype(a.dtype, copy=False), merged.astype(np.result_type(la, lb), copy=False)
