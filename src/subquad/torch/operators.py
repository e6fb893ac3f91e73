"""The two operators that PyTorch sees: attention, and its gradient.

Each is one opaque call to the NumPy side, told to PyTorch by name: what shapes come out (for ``torch.compile`` and
``torch.export``, symbolic lengths included), how to differentiate it, and what it cannot do. Tensors are handed over as
NumPy views of their own memory, results are tensors over NumPy's memory: nothing is copied either way.
"""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import subquad
from subquad.torch.crossing import function_of, pattern_of

Array = npt.NDArray[Any]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]
#: Dtype of lse for each dtype of the inputs.
LSE_DTYPES = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}


# --- memory -----------------------------------------------------------------------------------------------------------


def as_array(tensor: Tensor) -> Array:
    """The tensor's own memory as an array, whatever its strides."""
    tensor = tensor.detach().resolve_neg()
    if tensor.dtype != torch.bfloat16:
        return np.asarray(tensor.numpy())
    return np.asarray(tensor.view(torch.int16).numpy().view(bfloat16()))


def as_tensor(array: Array) -> Tensor:
    """A tensor over the memory of a C-contiguous array."""
    if array.dtype.name == "bfloat16":
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    # without elements, NumPy and PyTorch number strides differently
    return tensor if array.size else torch.empty(array.shape, dtype=tensor.dtype)


def bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        raise ImportError('bfloat16 tensors need the package ml_dtypes: pip install "subquad[torch]"') from None
    return np.dtype(ml_dtypes.bfloat16)


def threads(num_threads: int | None) -> int:
    """PyTorch's own number of threads, as it is when the operator runs, unless the caller has said otherwise."""
    return torch.get_num_threads() if num_threads is None else num_threads


# --- attention --------------------------------------------------------------------------------------------------------

# what both operators take after their tensors of queries, keys and values; numbers of heads or batches are tensors
_OPTIONS = (
    "str pattern, float? scale, SymInt? num_threads, Tensor? sinks=None, Tensor? alibi_slopes=None,"
    " Tensor? key_starts=None, Tensor? key_lengths=None, Tensor? q_offset=None, Tensor? seed=None,"
    " float? softcap=None, float dropout=0.0, str? score_mod=None, str? mask_mod=None"
)
_TENSORS = slice(3, 9)  # of them


class Rest(NamedTuple):
    """`_OPTIONS`, in their order."""

    pattern: str
    scale: float | None
    num_threads: int | None
    sinks: Tensor | None = None
    alibi_slopes: Tensor | None = None
    key_starts: Tensor | None = None
    key_lengths: Tensor | None = None
    q_offset: Tensor | None = None
    seed: Tensor | None = None
    softcap: float | None = None
    dropout: float = 0.0
    score_mod: str | None = None
    mask_mod: str | None = None

    def keywords(self) -> dict[str, Any]:
        """Keywords of `subquad.attention`."""
        names = ("sinks", "alibi_slopes", "key_starts", "key_lengths", "q_offset")
        given = ((name, getattr(self, name)) for name in names)
        found: dict[str, Any] = {name: as_array(tensor) for name, tensor in given if tensor is not None}
        found |= {"scale": self.scale, "softcap": self.softcap, "dropout": self.dropout}
        found |= {"score_mod": function_of(self.score_mod), "mask_mod": function_of(self.mask_mod)}
        if self.seed is not None:
            found["seed"] = int(self.seed.item())
        return found | {"pattern": pattern_of(self.pattern), "num_threads": threads(self.num_threads)}


# lse is returned always: it costs n_q numbers, and the gradient starts from it
@torch.library.custom_op(
    "subquad::attention",
    mutates_args=(),
    schema=f"(Tensor query, Tensor key, Tensor value, {_OPTIONS}) -> (Tensor out, Tensor lse)",
)
def attention_op(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    q, k, v = (as_array(x) for x in (query, key, value))
    out, lse = subquad.attention(q, k, v, return_lse=True, **Rest(*rest).keywords())
    return as_tensor(out), as_tensor(lse)


@attention_op.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    rows = query.shape[:-1]
    out = torch.empty((*rows, value.shape[-1]), dtype=query.dtype, device=query.device)
    return out, torch.empty(rows, dtype=LSE_DTYPES[query.dtype], device=query.device)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, *rest = inputs
    ctx.save_for_backward(query, key, value, *output, *rest[_TENSORS])
    ctx.rest = rest
    ctx.rest[_TENSORS] = [None] * len(rest[_TENSORS])  # autograd holds tensors itself
    ctx.set_materialize_grads(False)  # an lse that nobody used has no gradient, rather than one of zeros


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    query, key, value, out, lse, *numbers = ctx.saved_tensors
    wanted: list[Tensor | None] = [None] * len(ctx.needs_input_grad)  # without arguments left at their defaults
    if grad_out is None:
        if grad_lse is None:
            return tuple(wanted)
        grad_out = out.new_zeros(()).expand(out.shape)
    rest = [*ctx.rest]
    rest[_TENSORS] = numbers
    grads = attention_backward_op(grad_out, grad_lse, query, key, value, out, lse, *rest)
    for at, grad in zip((0, 1, 2, 3 + Rest._fields.index("sinks")), grads, strict=True):
        if at < len(wanted) and ctx.needs_input_grad[at]:
            wanted[at] = grad
    return tuple(wanted)


attention_op.register_autograd(_differentiate, setup_context=_keep)


# --- its gradient -----------------------------------------------------------------------------------------------------


@torch.library.custom_op(
    "subquad::attention_backward",
    mutates_args=(),
    schema="(Tensor grad_out, Tensor? grad_lse, Tensor query, Tensor key, Tensor value, Tensor out, Tensor lse,"
    f" {_OPTIONS}) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_sinks)",
)
def attention_backward_op(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *rest: Any,
) -> Gradients:
    g, q, k, v, o, sums = (as_array(x) for x in (grad_out, query, key, value, out, lse))
    g_sums = None if grad_lse is None else as_array(grad_lse)
    options = Rest(*rest)
    grads = subquad.attention_backward(g, q, k, v, o, sums, grad_lse=g_sums, **options.keywords())
    grad_query, grad_key, grad_value = (as_tensor(grad) for grad in grads[:3])
    sinks = options.sinks
    grad_sinks = query.new_empty(0) if sinks is None else as_tensor(grads[3]).to(sinks.dtype)
    return grad_query, grad_key, grad_value, grad_sinks


@attention_backward_op.register_fake
def _(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *rest: Any,
) -> Gradients:
    grad_query, grad_key, grad_value = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value)
    )
    sinks = Rest(*rest).sinks
    return grad_query, grad_key, grad_value, query.new_empty(0) if sinks is None else torch.empty_like(sinks)


# --- what neither can do ----------------------------------------------------------------------------------------------


def _no_second_derivative(ctx: Any, *grads: Tensor | None) -> NoReturn:
    raise NotImplementedError(
        "subquad.torch.attention has first derivatives only; for second ones (create_graph=True, hessian) use "
        "torch.nn.functional.scaled_dot_product_attention with the pattern as a dense mask, at a size that allows it"
    )


def _no_vmap(info: Any, in_dims: Any, *args: Any) -> NoReturn:
    raise NotImplementedError(
        "subquad.torch.attention cannot be mapped by torch.vmap; give it the mapped axis as one of its own: "
        "(batch, heads, n, d)"
    )


attention_backward_op.register_autograd(_no_second_derivative)
attention_op.register_vmap(_no_vmap)
attention_backward_op.register_vmap(_no_vmap)
