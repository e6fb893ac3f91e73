"""Who computes it: subquad and its peers, each behind the same three steps.

`prepare(case, arrays, threads)` does what is done once (masks, compilation, index tables) and returns the call to
time with a function that turns its result into an array (heads, n, d). Torch keeps its inputs as tensors, so no
conversion is timed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import subquad

from .cases import Case
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
    return Prepared(lambda: subquad.attention(*arrays, case.pattern, num_threads=threads), np.asarray)


def torch_inputs(arrays: list[np.ndarray], threads: int) -> list[Any]:
    """Tensors (1, heads, n, d). Without autograd, whose bookkeeping FlexAttention does not support on a CPU."""
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return [torch.from_numpy(array)[None] for array in arrays]


def first_of_batch(tensor: Any) -> np.ndarray:
    return tensor[0].numpy()


def prepare_flex(case: Case, arrays: list[np.ndarray], threads: int, block: int = 128) -> Prepared:
    query, key, value = torch_inputs(arrays, threads)
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    refuse_if_too_large(case.n)
    allowed = mask_mod(case)
    # Otherwise the ninth shape of a process is run without compilation.
    torch._dynamo.reset()
    block_mask = create_block_mask(allowed, None, None, case.n, case.n, device="cpu", BLOCK_SIZE=block)
    compiled = torch.compile(flex_attention, dynamic=False)
    return Prepared(lambda: compiled(query, key, value, block_mask=block_mask), first_of_batch)


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


def prepare_flex_tuned(case: Case, arrays: list[np.ndarray], threads: int) -> Prepared:
    return prepare_flex(case, arrays, threads, block=case.flex_block)


def prepare_sdpa_mask(case: Case, arrays: list[np.ndarray], threads: int) -> Prepared:
    query, key, value = torch_inputs(arrays, threads)
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    mask = torch.from_numpy(case.dense_mask())
    return Prepared(lambda: scaled_dot_product_attention(query, key, value, attn_mask=mask), first_of_batch)


def prepare_sdpa_dense(case: Case, arrays: list[np.ndarray], threads: int) -> Prepared:
    query, key, value = torch_inputs(arrays, threads)
    from torch.nn.functional import scaled_dot_product_attention

    return Prepared(lambda: scaled_dot_product_attention(query, key, value), first_of_batch)


def prepare_local_attention(case: Case, arrays: list[np.ndarray], threads: int) -> Prepared:
    query, key, value = torch_inputs(arrays, threads)
    from local_attention import LocalAttention

    if case.n % case.size:
        raise Refused(f"n = {case.n} is no multiple of the window {case.size}")
    module = LocalAttention(
        window_size=case.size, look_backward=1, look_forward=1, exact_windowsize=True, use_rotary_pos_emb=False
    )
    return Prepared(lambda: module(query, key, value), first_of_batch)


def prepare_gather(case: Case, arrays: list[np.ndarray], threads: int) -> Prepared:
    """Each row's keys and values gathered, then two einsums; `index_select` was the fastest of three gathers."""
    query, key, value = (tensor[0] for tensor in torch_inputs(arrays, threads))
    import torch

    flat = torch.from_numpy(np.concatenate([case.pattern.row(i, case.n, case.n) for i in range(case.n)]))
    gathered_shape = (case.heads, case.n, -1, case.d)

    def call() -> Any:
        keys = key.index_select(1, flat).view(gathered_shape)
        weights = torch.einsum("hnd,hnmd->hnm", query, keys).mul_(case.d**-0.5).softmax(-1)
        values = value.index_select(1, flat).view(gathered_shape)
        return torch.einsum("hnm,hnmd->hnd", weights, values)

    return Prepared(call, lambda tensor: tensor.numpy())


def prepare_longformer(case: Case, arrays: list[np.ndarray], threads: int) -> Prepared:
    """Hugging Face's layer with its projections replaced by the given tensors, which takes their time off."""
    tensors = torch_inputs(arrays, threads)
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

    def output(result: tuple[Any, ...]) -> np.ndarray:
        return result[0].view(case.n, case.heads, case.d).transpose(0, 1).numpy()

    return Prepared(lambda: layer(hidden, **arguments), output)


CONTENDERS = (
    Contender("subquad", "this library", prepare_subquad),
    Contender("flex", "FlexAttention, compiled, default blocks of 128", prepare_flex, ("torch",)),
    Contender(
        "flex-tuned",
        "FlexAttention, compiled, the block size that suits it best",
        prepare_flex_tuned,
        ("torch",),
    ),
    Contender("sdpa-mask", "scaled_dot_product_attention with a boolean mask", prepare_sdpa_mask, ("torch",)),
    Contender("sdpa-dense", "scaled_dot_product_attention, all pairs", prepare_sdpa_dense, ("torch",), same_work=False),
    Contender(
        "hf-longformer",
        "Hugging Face LongformerSelfAttention, projections taken off",
        prepare_longformer,
        ("torch", "transformers"),
        frozenset({"banded", "longformer"}),
    ),
    Contender(
        "local-attention",
        "local-attention with the exact window",
        prepare_local_attention,
        ("torch", "local_attention"),
        frozenset({"banded"}),
    ),
    Contender("gather", "torch index_select and einsum", prepare_gather, ("torch",), frozenset({"random"})),
)
