"""`subquad.attention` and `subquad.merge` for tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

from subquad import checks
from subquad.inputs import checked_pattern, checked_scale
from subquad.patterns import Dense, Pattern
from subquad.torch.crossing import name_of, text_of
from subquad.torch.operators import LSE_DTYPES, Rest, attention_op


class TorchOptions(TypedDict, total=False):
    """Keywords of `attention`."""

    softcap: float | None
    alibi_slopes: Tensor | Sequence[float] | None
    sinks: Tensor | None
    key_lengths: Tensor | Sequence[int] | int | None
    key_starts: Tensor | Sequence[int] | int | None
    q_offset: Tensor | Sequence[int] | int | None
    score_mod: Callable[..., Any] | None
    mask_mod: Callable[..., Any] | None
    dropout: float
    seed: int | Tensor


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern = ...,
    *,
    scale: float | None = ...,
    return_lse: Literal[False] = ...,
    num_threads: int | None = ...,
    **options: Unpack[TorchOptions],
) -> Tensor: ...


@overload
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern = ...,
    *,
    scale: float | None = ...,
    return_lse: Literal[True],
    num_threads: int | None = ...,
    **options: Unpack[TorchOptions],
) -> tuple[Tensor, Tensor]: ...


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern = Dense(),  # noqa: B008 - a frozen value
    *,
    scale: float | None = None,
    return_lse: bool = False,
    num_threads: int | None = None,
    **options: Unpack[TorchOptions],
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention over the pairs that a pattern allows, for CPU tensors, with gradients.

    Parameters
    ----------
    query : Tensor, shape (..., n_q, d)
    key : Tensor, shape (..., n_k, d)
    value : Tensor, shape (..., n_k, d_v)
        float32, float64, float16 or bfloat16 (the last two are computed in float32), on the CPU. Leading axes are none,
        (heads,) or (batch, heads); `query` may have a multiple of the heads of `key` (grouped-query attention). Any
        strides, without a copy by the caller: ``x.view(batch, n, heads, d).transpose(1, 2)`` is fine.
    pattern : Pattern, optional
        Which keys each query may attend. Query row i stands at position i + n_k - n_q.
    scale : float, optional
        Factor of the scores; ``d ** -0.5`` by default. No gradient reaches it.
    return_lse : bool, optional
        Also return the natural log of the sum of exponentials of each row's scores; it has a gradient too.
    num_threads : int, optional
        Threads to use; ``torch.get_num_threads()`` by default. The result does not depend on it.
    softcap, alibi_slopes, key_lengths, key_starts, q_offset, score_mod, mask_mod
        Options of `subquad.attention`; those of heads and batches may be tensors. No gradient reaches them.
    sinks : Tensor, shape (heads,), optional
        That of `subquad.attention`; it has a gradient.
    dropout : float, optional
        Share of the weights that are dropped.
    seed : int or Tensor, optional
        Of dropout; drawn from PyTorch's generator by default, so ``torch.manual_seed`` repeats a run.

    Returns
    -------
    out : Tensor, shape (..., n_q, d_v)
        In the dtype of the inputs, contiguous. A row with no allowed key is 0, and gives no gradient.
    lse : Tensor, shape (..., n_q)
        If asked for: float32 or float64, contiguous, -inf for a row with no allowed key.

    Raises
    ------
    TypeError, ValueError, MemoryError
        For what does not fit, before anything is written.
    NotImplementedError
        Under ``torch.vmap``, and by second derivatives.

    Notes
    -----
    Forward and backward take time O(pairs x (d + d_v)) and keep the inputs, the output and lse.

    Transforms of ``torch.func`` (grad, vjp, jvp, vmap) are refused, by PyTorch itself or by name; use ``backward``.

    Under ``torch.autocast`` inputs that are not float64 are cast to its dtype, as those of PyTorch's own attention are.

    Under ``torch.compile`` the call is one node of the graph, for all lengths. Build the pattern outside the compiled
    function and keep it: the graph belongs to that very object, and another one, though equal, compiles again.
    (`SparseMultiheadAttention` compares patterns by value.)

    Examples
    --------
    >>> import torch
    >>> from subquad import Banded, Causal
    >>> from subquad.torch import attention
    >>> query, key, value = torch.randn(3, 2, 4, 100, 16, requires_grad=True)  # batch of 2, 4 heads
    >>> out, lse = attention(query, key, value, Banded(8) & Causal(), return_lse=True)
    >>> out.shape, lse.shape
    (torch.Size([2, 4, 100, 16]), torch.Size([2, 4, 100]))
    """
    query, key, value = autocast(query, key, value)
    check_tensors(query=query, key=key, value=value)
    if isinstance(scale, Tensor):
        raise TypeError("scale must be a number or None; got a tensor; multiply the query by it, for a gradient")
    prepared = _prepared(options)
    if torch.compiler.is_compiling():
        # numbers are checked where the operator runs
        return attend(query, key, value, _traced_text(pattern), scale, return_lse, num_threads, **prepared)
    text = text_of(checked_pattern(pattern))
    if scale is not None:
        scale = checked_scale(scale, query.shape[-1], np.dtype(np.float64))
    if num_threads is not None:
        num_threads = checks.integer(num_threads, "num_threads", 1)
    return attend(query, key, value, text, scale, return_lse, num_threads, **prepared)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: str,
    scale: float | None,
    return_lse: bool,
    num_threads: int | None,
    **options: Any,
) -> Any:
    """`attention` of checked tensors, its pattern as text."""
    if not torch.compiler.is_compiling():
        _refuse_tangents(query, key, value)
    out, lse = attention_op(query, key, value, *Rest(pattern, scale, num_threads, **options))
    return (out, lse) if return_lse else out


_NUMBERS = ("sinks", "alibi_slopes", "key_starts", "key_lengths", "q_offset", "seed")


def _prepared(options: TorchOptions) -> dict[str, Any]:
    """Options as the operators take them: numbers of heads and batches as tensors, functions by name."""
    found: dict[str, Any] = {name: x for name, x in options.items() if x is not None}
    for name in found:
        if name not in TorchOptions.__annotations__:
            raise TypeError(f"attention has no option {name!r}; there are {', '.join(TorchOptions.__annotations__)}")
    for name in ("score_mod", "mask_mod"):
        if name in found:
            found[name] = _named(found[name])
    if found.get("dropout") and "seed" not in found:
        found["seed"] = torch.randint(0, 2**62, ())
    for name in _NUMBERS:
        if name in found and not isinstance(found[name], Tensor):
            found[name] = torch.as_tensor(found[name])
    for name in ("softcap", "dropout"):
        if isinstance(found.get(name), Tensor):
            raise TypeError(f"{name} must be a number; got a tensor")
    return found


@torch.compiler.assume_constant_result
def _named(function: Callable[..., Any]) -> str | None:
    return name_of(function)


# A graph is guarded by the identity of the pattern. The patterns are held, so that no other one can ever be created at
# the same address; there are as many as graphs.
_traced: dict[int, Pattern] = {}


@torch.compiler.assume_constant_result
def _traced_text(pattern: Pattern) -> str:
    """The pattern's text, while a graph is traced: a constant of the graph."""
    try:
        text = text_of(checked_pattern(pattern))
    except AttributeError:  # Dynamo hands over what it has not built yet
        raise ValueError(
            "pattern must be built outside of the function that torch.compile compiles; "
            f"got a {type(pattern).__name__} that is built inside"
        ) from None
    _traced[id(pattern)] = pattern
    return text


def autocast(*tensors: Any) -> Any:
    """Tensors as the surrounding ``torch.autocast`` wants them."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")
    return tuple(
        x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64 else x
        for x in tensors
    )


def check_tensors(**tensors: Any) -> None:
    """Refuse what the operators cannot take. Shapes are checked by `subquad.attention` itself."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{name} must be a torch.Tensor; got {type(x).__name__}; subquad.attention takes NumPy arrays"
            )
        if x.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor; got layout {x.layout}; convert it with {name}.to_dense()")
        if x.device.type != "cpu":
            raise ValueError(f'{name} must be on the CPU; got device {x.device}; move it with {name}.to("cpu")')
        if x.dtype not in LSE_DTYPES:
            raise TypeError(
                f"{name} must have dtype float32, float64, float16 or bfloat16; got {x.dtype}; convert it with "
                f"{name}.to(torch.float32)"
            )
    dtypes = {name: x.dtype for name, x in tensors.items()}
    if len(set(dtypes.values())) > 1:
        found = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"{', '.join(dtypes)} must have one dtype; got {found}; convert with .to(...)")


def _refuse_tangents(*tensors: Tensor) -> None:
    """PyTorch would take a tangent of 0 for an operator that has no forward derivative, without a word."""
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError(
            "subquad.torch.attention has no forward-mode derivative (jvp, jacfwd); use reverse mode: backward, vjp"
        )


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """The attention over two disjoint sets of keys, from the attention over each; with gradients.

    Parameters
    ----------
    out_a, out_b : Tensor, shape (..., n_q, d_v)
    lse_a, lse_b : Tensor, shape (..., n_q)
        What ``attention(..., return_lse=True)`` gave for each set.

    Returns
    -------
    out, lse : Tensor
        Exact up to rounding. Two empty rows give (0, -inf), and gradients of 0.

    Raises
    ------
    TypeError, ValueError
        If the shapes or dtypes do not go together.

    Notes
    -----
    Plain tensor operations, O(n_q d_v): they compile and fuse.

    Examples
    --------
    >>> import torch
    >>> from subquad import Banded, Dense
    >>> from subquad.torch import attention, merge
    >>> x = torch.randn(100, 8, dtype=torch.float64)
    >>> near = attention(x, x, x, Banded(9), return_lse=True)
    >>> far = attention(x, x, x, Dense() - Banded(9), return_lse=True)
    >>> torch.allclose(merge(*near, *far)[0], attention(x, x, x))
    True
    """
    check_tensors(out_a=out_a, out_b=out_b)
    check_tensors(lse_a=lse_a, lse_b=lse_b)
    if out_b.shape != out_a.shape:
        raise ValueError(f"out_b must have out_a's shape {tuple(out_a.shape)}; got {tuple(out_b.shape)}")
    for name, lse in (("lse_a", lse_a), ("lse_b", lse_b)):
        if lse.shape != out_a.shape[:-1]:
            rows = tuple(out_a.shape[:-1])
            raise ValueError(f"{name} must have out_a's shape without its last axis, {rows}; got {tuple(lse.shape)}")
    with torch.no_grad():  # any base gives the same result
        top = torch.maximum(lse_a, lse_b)
        base = torch.where(top == -torch.inf, 0, top)
    weight_a, weight_b = torch.exp(lse_a - base), torch.exp(lse_b - base)
    empty = weight_a + weight_b == 0
    # the branch not taken must be finite too: its gradient is multiplied by 0
    total = torch.where(empty, 1, weight_a + weight_b)
    lse = torch.where(empty, -torch.inf, base + torch.log(total))
    out = _share(weight_a / total, out_a) + _share(weight_b / total, out_b)
    return out.to(out_a.dtype), lse


def _share(share: Tensor, out: Tensor) -> Tensor:
    """share x out, where a part without weight is left out even where it holds NaN."""
    share = share[..., None]
    return share * torch.where(share == 0, 0, out)
