"""The split operators: the scores of each token's window, and the sums that weights make of its values.

Heads are before tokens here, as they were in NATTEN. The scores are stored, K numbers for each token.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from subquad.natten.gathers import Scores, Weighted, Windows, windows_of
from subquad.natten.windows import NAMES, check_axes, neighborhood
from subquad.patterns.neighborhood import Neighborhood


def _qk(
    n_axes: int,
    query: Tensor,
    key: Tensor,
    kernel_size: Any,
    dilation: Any,
    additional_keys: Tensor | None,
    is_causal: Any,
    rpb: Tensor | None,
) -> Tensor:
    check_axes(n_axes + 3, _layout(n_axes, "head_dim"), query=query, key=key)
    if key.shape != query.shape:
        raise ValueError(f"key must have query's shape {tuple(query.shape)}; got {tuple(key.shape)}")
    shape = tuple(query.shape[2:-1])
    pattern = neighborhood(shape, kernel_size, dilation, is_causal)
    windows = windows_of(pattern)
    leading, n = query.shape[:2], math.prod(shape)
    scores = Scores.apply(
        query.reshape(-1, n, query.shape[-1]).contiguous(), key.reshape(-1, n, key.shape[-1]).contiguous(), windows.keys
    )
    scores = scores.unflatten(0, leading)
    if rpb is not None:
        scores = scores + _of_bias(rpb, query, pattern, windows)
    if windows.there is not None:
        scores = scores.masked_fill(~windows.there, -torch.inf)
    if additional_keys is not None:
        _check_additional("additional_keys", additional_keys, query)
        scores = torch.cat((scores, query.flatten(2, -2) @ additional_keys.mT), dim=-1)
    return scores.unflatten(2, shape)


def _of_bias(rpb: Any, query: Tensor, pattern: Neighborhood, windows: Windows) -> Tensor:
    """The bias of each place of each window: (heads, n, K)."""
    wanted = (query.shape[1], *(2 * w - 1 for w in pattern.window))
    if not isinstance(rpb, Tensor) or tuple(rpb.shape) != wanted:
        got = tuple(rpb.shape) if isinstance(rpb, Tensor) else type(rpb).__name__
        raise ValueError(f"rpb must be a tensor of shape (heads, 2 kernel_size - 1 for each axis), {wanted}; got {got}")
    return rpb.to(query.dtype).flatten(1)[:, windows.bias]


def _av(
    n_axes: int,
    attn: Tensor,
    value: Tensor,
    kernel_size: Any,
    dilation: Any,
    additional_values: Tensor | None,
    is_causal: Any,
) -> Tensor:
    check_axes(n_axes + 3, _layout(n_axes, "places of the window"), attn=attn)
    check_axes(n_axes + 3, _layout(n_axes, "head_dim"), value=value)
    shape = tuple(value.shape[2:-1])
    pattern = neighborhood(shape, kernel_size, dilation, is_causal)
    windows = windows_of(pattern)
    more = 0
    if additional_values is not None:
        _check_additional("additional_values", additional_values, value)
        more = additional_values.shape[2]
    wanted = (*value.shape[:-1], windows.keys.shape[1] + more)
    if tuple(attn.shape) != wanted:
        raise ValueError(
            f"attn must have a weight for each place of each window, shape {wanted}; got {tuple(attn.shape)}"
        )
    weights = attn.to(value.dtype).flatten(2, -2)
    near = weights[..., : wanted[-1] - more]
    if windows.there is not None:
        near = near.masked_fill(~windows.there, 0)
    n, d = math.prod(shape), value.shape[-1]
    out = Weighted.apply(near.flatten(0, 1).contiguous(), value.reshape(-1, n, d).contiguous(), windows.keys)
    out = out.unflatten(0, value.shape[:2])
    if additional_values is not None:
        out = out + weights[..., wanted[-1] - more :] @ additional_values
    return out.unflatten(2, shape)


def _layout(n_axes: int, last: str) -> str:
    return f"(batch, heads, {', '.join(NAMES[:n_axes])}, {last})"


def _check_additional(name: str, x: Any, like: Tensor) -> None:
    check_axes(4, "(batch, heads, additional tokens, head_dim)", **{name: x})
    wanted = (*like.shape[:2], x.shape[2], like.shape[-1])
    if tuple(x.shape) != wanted:
        raise ValueError(
            f"{name} must have shape (batch, heads, additional tokens, head_dim), {wanted}; got {tuple(x.shape)}"
        )


# --- the operators ----------------------------------------------------------------------------------------------------


def na1d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Any,
    dilation: Any = 1,
    additional_keys: Tensor | None = None,
    is_causal: Any = False,
    rpb: Tensor | None = None,
) -> Tensor:
    """Scores of each token of a sequence with its window; see `na2d_qk`.

    Parameters
    ----------
    query, key : Tensor, shape (batch, heads, X, head_dim)
    kernel_size, dilation, additional_keys, is_causal
        As in `na2d_qk`.
    rpb : Tensor, shape (heads, 2 kernel_size - 1), optional

    Returns
    -------
    attn : Tensor, shape (batch, heads, X, K + m)

    Examples
    --------
    >>> import torch
    >>> from subquad.natten import na1d_qk
    >>> x = torch.randn(2, 4, 30, 16)
    >>> na1d_qk(x, x, kernel_size=7).shape
    torch.Size([2, 4, 30, 7])
    """
    return _qk(1, query, key, kernel_size, dilation, additional_keys, is_causal, rpb)


def na1d_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: Any,
    dilation: Any = 1,
    additional_values: Tensor | None = None,
    is_causal: Any = False,
) -> Tensor:
    """The sum of each window's values, by weights in the order of `na1d_qk`; see `na2d_av`.

    Parameters
    ----------
    attn : Tensor, shape (batch, heads, X, K + m)
    value : Tensor, shape (batch, heads, X, head_dim)
    kernel_size, dilation, additional_values, is_causal
        As in `na2d_av`.

    Returns
    -------
    out : Tensor, shape (batch, heads, X, head_dim)

    Examples
    --------
    >>> import torch
    >>> from subquad.natten import na1d_av, na1d_qk
    >>> x = torch.randn(2, 4, 30, 16)
    >>> na1d_av(na1d_qk(x, x, 7).softmax(-1), x, 7).shape
    torch.Size([2, 4, 30, 16])
    """
    return _av(1, attn, value, kernel_size, dilation, additional_values, is_causal)


def na2d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Any,
    dilation: Any = 1,
    additional_keys: Tensor | None = None,
    is_causal: Any = False,
    rpb: Tensor | None = None,
) -> Tensor:
    """Scores of each token of a plane with its window: dot products, without a scale and before any softmax.

    Parameters
    ----------
    query, key : Tensor, shape (batch, heads, X, Y, head_dim)
        On the CPU. Scale the query first: ``query * head_dim ** -0.5``.
    kernel_size, dilation, is_causal
        As in `na2d`.
    additional_keys : Tensor, shape (batch, heads, m, head_dim), optional
        Keys of every query, beside its window.
    rpb : Tensor, shape (heads, 2 kernel_size[0] - 1, 2 kernel_size[1] - 1), optional
        Relative position bias: entry ``kernel_size - 1 + (key - query) / dilation`` of each axis is added.

    Returns
    -------
    attn : Tensor, shape (batch, heads, X, Y, K + m)
        K is the product of `kernel_size`; places of a window row-major, then the additional keys. Places that a
        causal window does not reach are at its end, and -inf.

    Raises
    ------
    TypeError, ValueError
        For what does not fit; the message names the argument.

    Notes
    -----
    Differentiable once. Time O(tokens x K x head_dim), memory O(tokens x (K + head_dim)). Hassani et al.,
    "Neighborhood Attention Transformer" (2023), section 3.1. (`na2d` needs no memory for the pairs.)

    Examples
    --------
    >>> import torch
    >>> from subquad.natten import na2d_av, na2d_qk
    >>> query, key, value = (torch.randn(1, 2, 8, 10, 16) for _ in range(3))
    >>> attn = na2d_qk(query * 16**-0.5, key, kernel_size=(3, 5), rpb=torch.zeros(2, 5, 9))
    >>> attn.shape
    torch.Size([1, 2, 8, 10, 15])
    >>> na2d_av(attn.softmax(-1), value, kernel_size=(3, 5)).shape
    torch.Size([1, 2, 8, 10, 16])
    """
    return _qk(2, query, key, kernel_size, dilation, additional_keys, is_causal, rpb)


def na2d_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: Any,
    dilation: Any = 1,
    additional_values: Tensor | None = None,
    is_causal: Any = False,
) -> Tensor:
    """The sum of each window's values, by weights in the order of `na2d_qk`.

    Parameters
    ----------
    attn : Tensor, shape (batch, heads, X, Y, K + m)
        Weights; those of places that a causal window does not reach are not looked at.
    value : Tensor, shape (batch, heads, X, Y, head_dim)
    kernel_size, dilation, is_causal
        As they were given to `na2d_qk`.
    additional_values : Tensor, shape (batch, heads, m, head_dim), optional

    Returns
    -------
    out : Tensor, shape (batch, heads, X, Y, head_dim)

    Raises
    ------
    TypeError, ValueError
        For what does not fit; the message names the argument.

    Notes
    -----
    Differentiable once; time and memory as `na2d_qk`.

    Examples
    --------
    >>> import torch
    >>> from subquad.natten import na2d_av
    >>> everywhere = torch.ones(1, 2, 8, 10, 9) / 9
    >>> na2d_av(everywhere, torch.randn(1, 2, 8, 10, 16), kernel_size=3).shape
    torch.Size([1, 2, 8, 10, 16])
    """
    return _av(2, attn, value, kernel_size, dilation, additional_values, is_causal)


def na3d_qk(
    query: Tensor,
    key: Tensor,
    kernel_size: Any,
    dilation: Any = 1,
    additional_keys: Tensor | None = None,
    is_causal: Any = False,
    rpb: Tensor | None = None,
) -> Tensor:
    """Scores of each token of a volume with its window; see `na2d_qk`.

    Parameters
    ----------
    query, key : Tensor, shape (batch, heads, X, Y, Z, head_dim)
    kernel_size, dilation, additional_keys, is_causal
        As in `na2d_qk`.
    rpb : Tensor, shape (heads, 2 kernel_size - 1 for each axis), optional

    Returns
    -------
    attn : Tensor, shape (batch, heads, X, Y, Z, K + m)

    Examples
    --------
    >>> import torch
    >>> from subquad.natten import na3d_qk
    >>> x = torch.randn(1, 2, 4, 5, 6, 16)
    >>> na3d_qk(x, x, kernel_size=(2, 3, 3)).shape
    torch.Size([1, 2, 4, 5, 6, 18])
    """
    return _qk(3, query, key, kernel_size, dilation, additional_keys, is_causal, rpb)


def na3d_av(
    attn: Tensor,
    value: Tensor,
    kernel_size: Any,
    dilation: Any = 1,
    additional_values: Tensor | None = None,
    is_causal: Any = False,
) -> Tensor:
    """The sum of each window's values, by weights in the order of `na3d_qk`; see `na2d_av`.

    Parameters
    ----------
    attn : Tensor, shape (batch, heads, X, Y, Z, K + m)
    value : Tensor, shape (batch, heads, X, Y, Z, head_dim)
    kernel_size, dilation, additional_values, is_causal
        As in `na2d_av`.

    Returns
    -------
    out : Tensor, shape (batch, heads, X, Y, Z, head_dim)

    Examples
    --------
    >>> import torch
    >>> from subquad.natten import na3d_av, na3d_qk
    >>> x = torch.randn(1, 2, 4, 5, 6, 16)
    >>> na3d_av(na3d_qk(x, x, (2, 3, 3)).softmax(-1), x, (2, 3, 3)).shape
    torch.Size([1, 2, 4, 5, 6, 16])
    """
    return _av(3, attn, value, kernel_size, dilation, additional_values, is_causal)
