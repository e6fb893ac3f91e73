"""`register`: attention by name, for every model of Hugging Face that takes it so."""

from __future__ import annotations

from typing import Any

from subquad.patterns import Banded, Causal, Dense, Global, Pattern
from subquad.transformers.calls import attended, averaged_where_empty, dropout_options
from subquad.transformers.needs import torch, transformers

NAME = "subquad"

# What a layer may ask for that would change its result, and is not there.
_NOT_SUPPORTED = {
    "position_bias": "a bias of positions is a number for every pair",
    "cache": "paged caches keep their keys in pieces; use a dynamic or static cache",
    "head_mask": "",
    "layer_head_mask": "",
    "indices": "keys chosen by the model for each query are not looked up here",
    "block_indices": "keys chosen by the model for each query are not looked up here",
    "sinks": "sinks of every token are not supported; one for each head comes as s_aux",
}


def register() -> None:
    """Make ``attn_implementation="subquad"`` known to Hugging Face transformers.

    Both halves are registered: the attention, and the mask, which becomes a description of O(n) instead of n x n
    numbers. Calling it again changes nothing.

    Raises
    ------
    ImportError
        If PyTorch or transformers is not installed.

    Notes
    -----
    For models that take their attention by name: Llama, Mistral, Qwen 2 and 3, Gemma 2 and 3, ModernBERT, gpt-oss and
    others. Honoured are causal, sliding-window, chunked and bidirectional masks, packed ``position_ids``, blocks of
    images, padding on either side and with holes, dynamic, static and sliding caches, grouped heads, ``softcap``,
    sinks, and dropout (from PyTorch's generator). A mask of the caller's own (4-D), a mask function that is not the
    library's, paged caches, position biases and ``output_attentions`` are refused by name.

    A row of padding that no key is allowed to is the average of all values, as in eager attention.

    Examples
    --------
    >>> from transformers import MistralConfig, MistralForCausalLM
    >>> register()
    >>> config = MistralConfig(
    ...     vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
    ...     num_key_value_heads=1, sliding_window=4, attn_implementation="subquad"
    ... )
    >>> model = MistralForCausalLM(config).eval()
    >>> model(torch.arange(20).reshape(1, 20)).logits.shape
    torch.Size([1, 20, 32])
    """
    from subquad.transformers.masks import describe

    transformers.AttentionInterface.register(NAME, attend)
    transformers.AttentionMaskInterface.register(NAME, describe)


@torch.compiler.disable  # what it looks at are values: a graph would hold those of its first call
def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of a layer, as Hugging Face calls it: heads before tokens in, tokens before heads out.

    `query` is (batch, heads, n_q, d), `key` and `value` may have fewer heads; the result (batch, n_q, heads, d_v).
    """
    from subquad.transformers.masks import MaskTensor

    _refuse(module, kwargs)
    options: dict[str, Any] = {"scale": scaling, **dropout_options(dropout)}
    if softcap is not None:
        options["softcap"] = softcap
    if s_aux is not None:
        options["sinks"] = s_aux.to(query.dtype)
    heads = (query, key, value)
    if isinstance(attention_mask, MaskTensor):
        out = _masked(heads, attention_mask.mask, options, kwargs)
    else:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        out = _unmasked(heads, attention_mask, bool(causal), sliding_window, options)
    return out.transpose(1, 2).contiguous(), None


def _refuse(module: torch.nn.Module, kwargs: dict[str, Any]) -> None:
    for name, why in _NOT_SUPPORTED.items():
        if kwargs.get(name) is not None:
            because = f": {why}" if why else ""
            raise ValueError(
                f'{name} of {type(module).__name__} is not supported by attn_implementation="subquad"{because}'
            )
    config = getattr(module, "config", None)
    if kwargs.get("output_attentions", getattr(config, "output_attentions", False)):
        raise ValueError(
            'output_attentions=True is not supported by attn_implementation="subquad": weights are never stored; '
            'use attn_implementation="eager"'
        )


# --- masks ------------------------------------------------------------------------------------------------------------


def _masked(heads: Any, mask: Any, options: dict[str, Any], kwargs: dict[str, Any]) -> torch.Tensor:
    """Attention by a description."""
    query, key, _ = heads
    found = (len(query), query.shape[2], key.shape[2])
    if found != (mask.batch, mask.n_q, mask.n_k):
        raise ValueError(
            f"the mask was made for (batch, queries, keys) = {(mask.batch, mask.n_q, mask.n_k)}; the layer has {found}"
        )
    if kwargs.get("cu_seq_lens_q") is not None and not mask.packed:
        raise ValueError("cu_seq_lens_q must come with packed position_ids, which tell the mask where sequences begin")
    results = []
    for pattern, members in mask.parts:
        every = len(members) == mask.batch
        part = heads if every else tuple(x[list(members)] for x in heads)
        limits = {
            name: x if every else x[list(members)]
            for name, x in (("key_starts", mask.key_starts), ("key_lengths", mask.key_lengths))
            if x is not None
        }
        if mask.q_offset != mask.n_k - mask.n_q:
            limits["q_offset"] = mask.q_offset
        call = averaged_where_empty if mask.padded else attended
        results.append(call(part, pattern, options | limits))
    if len(results) == 1:
        return results[0]
    order = torch.tensor([element for _, members in mask.parts for element in members])
    return torch.cat(results)[order.argsort()]


def _unmasked(
    heads: Any, attention_mask: torch.Tensor | None, causal: bool, sliding_window: int | None, options: dict[str, Any]
) -> torch.Tensor:
    """Attention of a layer that has no mask, or one row of numbers for all queries."""
    query, key, _ = heads
    n_q, n_k = query.shape[2], key.shape[2]
    if attention_mask is not None:
        return _with_row(heads, attention_mask, options)
    if causal and n_q not in (1, n_k):
        raise ValueError(
            f"attention_mask must be given for {n_q} queries and {n_k} keys: without one it is not known where the "
            f"queries stand"
        )
    return attended(heads, _window(causal, sliding_window), options)


def _window(causal: bool, size: int | None) -> Pattern:
    """A window of `size` keys with the query itself: before it, or on each side of it."""
    if size is None:
        return Causal() if causal else Dense()
    if size < 1:
        raise ValueError(f"sliding_window must be at least 1; got {size}")
    return Banded((size - 1, 0)) if causal else Banded(size - 1)


def _with_row(heads: Any, attention_mask: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """Attention with a mask (batch, 1, 1, n_k) of keys that are there, true or 0, and keys that are not."""
    query, key, _ = heads
    batch, n_k = len(query), key.shape[2]
    if tuple(attention_mask.shape[1:]) != (1, 1, n_k) or attention_mask.shape[0] not in (1, batch):
        raise ValueError(
            f"attention_mask of shape {tuple(attention_mask.shape)} is a mask of the caller's own, which "
            f'attn_implementation="subquad" does not take: give the model a mask of padding, (batch, tokens), '
            f'or use attn_implementation="sdpa"'
        )
    from subquad.transformers.padding import groups, joined

    row = attention_mask[:, 0, 0].detach()
    if row.dtype == torch.bool:
        missing = ~row
    else:
        missing = row != 0
        if bool((row[missing] > -1e4).any()):
            raise ValueError("attention_mask must hold 0 and the lowest number alone: a bias is not supported")
    parts = []
    for group in groups(-missing.expand(batch, n_k).to(torch.int8)):
        pattern = Dense() - Global(group.masked, rows=False) if group.masked else Dense()
        parts.append((group, averaged_where_empty([group.take(x) for x in heads], pattern, options)))
    return joined(parts)
