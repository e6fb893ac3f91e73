"""The fused operators: scores, softmax and sum in one, forward and backward."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from subquad.natten.windows import NAMES, check_axes, neighborhood
from subquad.patterns import Dense
from subquad.torch import attention, merge

# They choose and tune NATTEN's kernels for graphics processors, and change no result.
_TUNING = frozenset(
    {
        "attention_kwargs",
        "backend",
        "backward_kv_splits",
        "backward_kv_tile_shape",
        "backward_q_tile_shape",
        "backward_use_pt_reduction",
        "kernel_schedule",
        "kv_tile_shape",
        "q_tile_shape",
        "run_persistent_kernel",
        "torch_compile",
    }
)


def _attend(
    n_axes: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Any,
    stride: Any,
    dilation: Any,
    is_causal: Any,
    scale: float | None,
    additional_keys: Tensor | None,
    additional_values: Tensor | None,
    return_lse: bool,
    tuning: dict[str, Any],
) -> Any:
    unknown = sorted(set(tuning) - _TUNING)
    if unknown:
        raise TypeError(f"na{n_axes}d() got an unexpected keyword argument {unknown[0]!r}")
    layout = f"(batch, {', '.join(NAMES[:n_axes])}, heads, head_dim)"
    check_axes(n_axes + 3, layout, query=query, key=key, value=value)
    shape = tuple(query.shape[1 : n_axes + 1])
    for name, x in (("key", key), ("value", value)):
        if x.shape[: n_axes + 1] != query.shape[: n_axes + 1]:
            raise ValueError(
                f"{name} must have query's batch and tokens, {tuple(query.shape[: n_axes + 1])}; "
                f"got shape {tuple(x.shape)}"
            )
    pattern = neighborhood(shape, kernel_size, dilation, is_causal, stride)
    q, k, v = (x.flatten(1, n_axes).transpose(1, 2) for x in (query, key, value))
    more = _additional(additional_keys, additional_values)
    out: Tensor
    if not more and not return_lse:
        out = attention(q, k, v, pattern, scale=scale)
        return out.transpose(1, 2).unflatten(1, shape)
    out, lse = attention(q, k, v, pattern, scale=scale, return_lse=True)
    if more:
        added = attention(q, more[0], more[1], Dense(), scale=scale, return_lse=True)
        out, lse = merge(out, lse, *added)
    out, lse = (x.transpose(1, 2).unflatten(1, shape) for x in (out, lse))
    return (out, lse) if return_lse else out


def _additional(keys: Any, values: Any) -> list[Tensor]:
    """Keys and values that every query sees, heads first; none if there are none."""
    if keys is None and values is None:
        return []
    if keys is None or values is None:
        raise ValueError("additional_keys and additional_values must both be tensors, or both None")
    layout = "(batch, additional tokens, heads, head_dim)"
    check_axes(4, layout, additional_keys=keys, additional_values=values)
    return [keys.transpose(1, 2), values.transpose(1, 2)]


def na1d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Any,
    stride: Any = 1,
    dilation: Any = 1,
    is_causal: Any = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    *,
    return_lse: bool = False,
    **tuning: Any,
) -> Any:
    """Neighborhood attention along one axis of tokens; see `na2d`.

    Parameters
    ----------
    query : Tensor, shape (batch, X, heads, head_dim)
    key : Tensor, shape (batch, X, heads_kv, head_dim)
    value : Tensor, shape (batch, X, heads_kv, head_dim_v)
    kernel_size, stride, dilation, is_causal, scale, additional_keys, additional_values, return_lse, **tuning
        As in `na2d`.

    Returns
    -------
    out : Tensor, shape (batch, X, heads, head_dim_v)
    lse : Tensor, shape (batch, X, heads)
        If asked for.

    Examples
    --------
    >>> import torch
    >>> from subquad.natten import na1d
    >>> x = torch.randn(2, 100, 4, 16)
    >>> na1d(x, x, x, kernel_size=13, dilation=2, is_causal=True).shape
    torch.Size([2, 100, 4, 16])
    """
    given = (kernel_size, stride, dilation, is_causal, scale, additional_keys, additional_values, return_lse, tuning)
    return _attend(1, query, key, value, *given)


def na2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Any,
    stride: Any = 1,
    dilation: Any = 1,
    is_causal: Any = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    *,
    return_lse: bool = False,
    **tuning: Any,
) -> Any:
    """Neighborhood attention on a plane of tokens: each attends the window around itself, forward and backward.

    Parameters
    ----------
    query : Tensor, shape (batch, X, Y, heads, head_dim)
    key : Tensor, shape (batch, X, Y, heads_kv, head_dim)
    value : Tensor, shape (batch, X, Y, heads_kv, head_dim_v)
        On the CPU: float32, float64, float16 or bfloat16. `heads` is a multiple of `heads_kv`.
    kernel_size : int or (int, int)
        Width of the window along each axis. At a border the window moves inside, it is not cut.
    stride : int or (int, int), optional
        So many neighbours share a window, at most `kernel_size`.
    dilation : int or (int, int), optional
        Distance of neighbours; ``kernel_size * dilation`` is at most the tokens of the axis.
    is_causal : bool or (bool, bool), optional
        Along a causal axis the window ends with the token itself, and is cut at the beginning.
    scale : float, optional
        Factor of the scores; ``head_dim ** -0.5`` by default.
    additional_keys : Tensor, shape (batch, m, heads_kv, head_dim), optional
    additional_values : Tensor, shape (batch, m, heads_kv, head_dim_v), optional
        Tokens that every query attends beside its window.
    return_lse : bool, optional
        Also return the natural log of the sum of exponentials of each token's scores.
    **tuning
        `backend`, `q_tile_shape` and the like of NATTEN tune its own kernels; they change no result, and nothing here.

    Returns
    -------
    out : Tensor, shape (batch, X, Y, heads, head_dim_v)
    lse : Tensor, shape (batch, X, Y, heads)
        If asked for.

    Raises
    ------
    TypeError, ValueError
        For what does not fit; the message names the argument and the axis.

    Notes
    -----
    Time O(tokens x window x head_dim), memory O(tokens x head_dim). The pattern is `subquad.Neighborhood`. Hassani et
    al., "Neighborhood Attention Transformer" (2023); for strides "Generalized Neighborhood Attention" (2025).

    Examples
    --------
    >>> import torch
    >>> from subquad.natten import na2d
    >>> x = torch.randn(1, 16, 20, 2, 8, requires_grad=True)
    >>> na2d(x, x, x, kernel_size=(3, 7), is_causal=(True, False)).sum().backward()
    >>> x.grad.shape
    torch.Size([1, 16, 20, 2, 8])
    """
    given = (kernel_size, stride, dilation, is_causal, scale, additional_keys, additional_values, return_lse, tuning)
    return _attend(2, query, key, value, *given)


def na3d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Any,
    stride: Any = 1,
    dilation: Any = 1,
    is_causal: Any = False,
    scale: float | None = None,
    additional_keys: Tensor | None = None,
    additional_values: Tensor | None = None,
    *,
    return_lse: bool = False,
    **tuning: Any,
) -> Any:
    """Neighborhood attention in a volume of tokens, such as a video; see `na2d`.

    Parameters
    ----------
    query : Tensor, shape (batch, X, Y, Z, heads, head_dim)
    key : Tensor, shape (batch, X, Y, Z, heads_kv, head_dim)
    value : Tensor, shape (batch, X, Y, Z, heads_kv, head_dim_v)
    kernel_size, stride, dilation, is_causal, scale, additional_keys, additional_values, return_lse, **tuning
        As in `na2d`.

    Returns
    -------
    out : Tensor, shape (batch, X, Y, Z, heads, head_dim_v)
    lse : Tensor, shape (batch, X, Y, Z, heads)
        If asked for.

    Examples
    --------
    >>> import torch
    >>> from subquad.natten import na3d
    >>> x = torch.randn(1, 4, 6, 8, 2, 16)
    >>> na3d(x, x, x, kernel_size=(2, 3, 5), is_causal=(True, False, False)).shape
    torch.Size([1, 4, 6, 8, 2, 16])
    """
    given = (kernel_size, stride, dilation, is_causal, scale, additional_keys, additional_values, return_lse, tuning)
    return _attend(3, query, key, value, *given)
