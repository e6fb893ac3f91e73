"""Who computes it: subquad and its peers, each behind the same two steps.

`prepare(case, arrays, threads)` does what is done once (masks, compilation, index tables) and returns the call to
time with a function that turns its result into an array: the output (heads, n, d), or in training the three gradients
(3, heads, n, d). Torch keeps its inputs as tensors, so no conversion is timed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import subquad

from .cases import BACKWARD, FORWARD, Case
from .masks import Refused, mask_mod


class Prepared(NamedTuple):
    call: Callable[[], Any]
    output: Callable[[Any], np.ndarray]


@dataclass(frozen=True)
class Contender:
    name: str
    about: str
    prepare: Callable[[Case, list[np.ndarray], int], Prepared]
    packages: tuple[str, ...] = ()
    families: frozenset[str] | None = None  # None: every pattern
    same_work: bool = True  # False: computes something else, shown for reference only


def prepare_subquad(case: Case, arrays: list[np.ndarray], threads: int) -> Prepared:
    query, key, value, grad_out = arrays
    pattern = case.pattern
    if case.work == FORWARD:
        return Prepared(lambda: subquad.attention(query, key, value, pattern, num_threads=threads), np.asarray)

    def forward() -> tuple[np.ndarray, np.ndarray]:
        return subquad.attention(query, key, value, pattern, return_lse=True, num_threads=threads)

    kept = forward()

    def call() -> tuple[np.ndarray, ...]:
        out, lse = kept if case.work == BACKWARD else forward()
        return subquad.attention_backward(grad_out, query, key, value, out, lse, pattern, num_threads=threads)

    return Prepared(call, np.stack)


Build = Callable[..., Callable[[], Any]]


def on_torch(build: Build) -> Callable[[Case, list[np.ndarray], int], Prepared]:
    """`build(case, query, key, value)` gets tensors (1, heads, n, d) and returns the call that gives the output."""

    def prepare(case: Case, arrays: list[np.ndarray], threads: int) -> Prepared:
        import torch

        torch.set_num_threads(threads)
        *inputs, grad_out = (torch.from_numpy(array)[None] for array in arrays)
        if case.work == FORWARD:
            # Without autograd, whose bookkeeping FlexAttention does not support on a CPU.
            return Prepared(torch.no_grad()(build(case, *inputs)), lambda tensor: tensor[0].numpy())
        if case.work == BACKWARD:
            raise Refused("torch does not keep a graph for a backward alone: see the case of forward and backward")
        for tensor in inputs:
            tensor.requires_grad_()
        forward = build(case, *inputs)

        def call() -> list[Any]:
            return torch.autograd.grad(forward(), inputs, grad_out)

        return Prepared(call, lambda grads: np.concatenate([grad.numpy() for grad in grads]))

    return prepare


def build_flex(case: Case, query: Any, key: Any, value: Any, block: int = 128) -> Callable[[], Any]:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    refuse_if_too_large(case.n)
    allowed = mask_mod(case)
    # Otherwise the ninth shape of a process is run without compilation.
    torch._dynamo.reset()
    block_mask = create_block_mask(allowed, None, None, case.n, case.n, device="cpu", BLOCK_SIZE=block)
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(query, key, value, block_mask=block_mask)


def refuse_if_too_large(n: int) -> None:
    """`create_block_mask` evaluates every pair: 17 bytes for each were measured at n = 16384."""
    needed = 17 * n * n
    try:
        with open("/proc/meminfo") as file:
            free = next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except OSError:
        return
    if needed > 0.8 * free:
        raise Refused(f"create_block_mask needs {needed / 1e9:.1f} GB at n = {n}, {free / 1e9:.1f} GB are free")


def build_flex_tuned(case: Case, query: Any, key: Any, value: Any) -> Callable[[], Any]:
    return build_flex(case, query, key, value, block=case.flex_block)


def build_sdpa_mask(case: Case, query: Any, key: Any, value: Any) -> Callable[[], Any]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    mask = torch.from_numpy(case.dense_mask())
    return lambda: scaled_dot_product_attention(query, key, value, attn_mask=mask)


def build_sdpa_dense(case: Case, query: Any, key: Any, value: Any) -> Callable[[], Any]:
    from torch.nn.functional import scaled_dot_product_attention

    return lambda: scaled_dot_product_attention(query, key, value)


def build_local_attention(case: Case, query: Any, key: Any, value: Any) -> Callable[[], Any]:
    from local_attention import LocalAttention

    if case.n % case.size:
        raise Refused(f"n = {case.n} is no multiple of the window {case.size}")
    module = LocalAttention(
        window_size=case.size, look_backward=1, look_forward=1, exact_windowsize=True, use_rotary_pos_emb=False
    )
    return lambda: module(query, key, value)


def build_gather(case: Case, query: Any, key: Any, value: Any) -> Callable[[], Any]:
    """Each row's keys and values gathered, then two einsums; `index_select` was the fastest of three gathers."""
    import torch

    flat = torch.from_numpy(np.concatenate([case.pattern.row(i, case.n, case.n) for i in range(case.n)]))
    gathered_shape = (1, case.heads, case.n, -1, case.d)

    def call() -> Any:
        keys = key.index_select(2, flat).view(gathered_shape)
        weights = (torch.einsum("bhnd,bhnmd->bhnm", query, keys) * case.d**-0.5).softmax(-1)
        values = value.index_select(2, flat).view(gathered_shape)
        return torch.einsum("bhnm,bhnmd->bhnd", weights, values)

    return call


def build_longformer(case: Case, *tensors: Any) -> Callable[[], Any]:
    """Hugging Face's layer with its projections replaced by the given tensors, which takes their time off."""
    import torch
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    width = 2 * case.size
    if case.n % width:
        raise Refused(f"n = {case.n} is no multiple of its chunk {width}")

    class Given(torch.nn.Module):
        """Stands in for a projection. Copies, since the layer scales the query in place."""

        def __init__(self, rows: Any):
            super().__init__()
            self.rows = rows

        def forward(self, hidden: Any) -> Any:
            return self.rows[: len(hidden)].clone()

    embed = case.heads * case.d
    config = LongformerConfig(hidden_size=embed, num_attention_heads=case.heads, attention_window=[width])
    layer = LongformerSelfAttention(config, layer_id=0).eval()
    # The global projections see the same tensors: the query's is handed the global tokens, which are the first rows.
    for name, tensor in zip(("query", "key", "value"), tensors, strict=True):
        given = Given(tensor[0].transpose(0, 1).reshape(case.n, 1, embed))
        setattr(layer, name, given)
        setattr(layer, f"{name}_global", given)

    hidden = torch.zeros(1, case.n, embed)
    is_global = torch.zeros(1, case.n, dtype=torch.bool)
    is_global[:, : case.global_tokens] = True
    arguments = {
        "attention_mask": is_global.float() * 10_000,
        "is_index_masked": torch.zeros_like(is_global),
        "is_index_global_attn": is_global,
        "is_global_attn": case.global_tokens > 0,
    }

    def call() -> Any:
        return layer(hidden, **arguments)[0].view(1, case.n, case.heads, case.d).transpose(1, 2)

    return call


CONTENDERS = (
    Contender("subquad", "this library", prepare_subquad),
    Contender("flex", "FlexAttention, compiled, default blocks of 128", on_torch(build_flex), ("torch",)),
    Contender(
        "flex-tuned",
        "FlexAttention, compiled, the block size that suits it best",
        on_torch(build_flex_tuned),
        ("torch",),
    ),
    Contender("sdpa-mask", "scaled_dot_product_attention with a boolean mask", on_torch(build_sdpa_mask), ("torch",)),
    Contender(
        "sdpa-dense", "scaled_dot_product_attention, all pairs", on_torch(build_sdpa_dense), ("torch",), same_work=False
    ),
    Contender(
        "hf-longformer",
        "Hugging Face LongformerSelfAttention, projections taken off",
        on_torch(build_longformer),
        ("torch", "transformers"),
        frozenset({"banded", "longformer"}),
    ),
    Contender(
        "local-attention",
        "local-attention with the exact window",
        on_torch(build_local_attention),
        ("torch", "local_attention"),
        frozenset({"banded"}),
    ),
    Contender("gather", "torch index_select and einsum", on_torch(build_gather), ("torch",), frozenset({"random"})),
)
