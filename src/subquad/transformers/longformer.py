"""Longformer's self-attention: a window and global tokens, which have projections of their own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from subquad.patterns import Banded, Dense, Global, Pattern
from subquad.transformers.calls import attended, dropout_options
from subquad.transformers.padding import Group, groups, joined

#: What a converted model's config calls its attention: the model's own mask, which would be n x n, becomes one row.
IMPLEMENTATION = "subquad_longformer"


class SparseLongformerSelfAttention(LongformerSelfAttention):
    """Each row sees its window and the global tokens, each key once; global tokens see everything. O(n (w + g))."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        is_index_masked: Tensor | None = None,
        is_index_global_attn: Tensor | None = None,
        is_global_attn: bool | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor]:
        """As the model calls it; `attention_mask` (batch, n): below 0 is masked, 0 local, above 0 global attention."""
        if output_attentions:
            raise ValueError(
                "output_attentions=True is not supported by a model that subquad has converted: weights are never "
                "stored; restore(model) first"
            )
        if attention_mask is None:
            attention_mask = hidden_states.new_zeros(hidden_states.shape[:2])
        near = [self._split(project(hidden_states)) for project in (self.query, self.key, self.value)]
        found = groups(attention_mask)
        out = joined([(group, self._attend(group, group.take(hidden_states), near)) for group in found])
        return (out.transpose(1, 2).flatten(2),)

    def _split(self, x: Tensor) -> Tensor:
        """(batch, n, heads x head_dim) to (batch, heads, n, head_dim)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _attend(self, group: Group, hidden: Tensor, near: list[Tensor]) -> Tensor:
        local: Pattern = Banded(self.one_sided_attn_window_size)
        if group.special:
            local = local | Global(group.special, rows=False)
        if group.masked:
            local = local - Global(group.masked)
        out = attended([group.take(x) for x in near], local, dropout_options(self.dropout, self.training))
        if not group.special:
            return out
        tokens = torch.tensor(group.special)
        there = Dense() - Global(group.masked, rows=False) if group.masked else Dense()
        # by the number of products: rows in the width of the model, or keys and values projected first
        way = self._far_by_rows if 2 * len(tokens) <= self.head_dim else self._far_by_keys
        return out.index_copy(2, tokens, way(hidden, self._split(self.query_global(hidden[:, tokens])), there))

    def _far_by_keys(self, hidden: Tensor, query: Tensor, there: Pattern) -> Tensor:
        """Rows of global tokens: keys and values projected, then attended."""
        key, value = self._split(self.key_global(hidden)), self._split(self.value_global(hidden))
        return attended((query, key, value), there, dropout_options(self.dropout, self.training))

    def _far_by_rows(self, hidden: Tensor, query: Tensor, there: Pattern) -> Tensor:
        """The same, rearranged: q (W x + b) = (q W) x + q b, and a sum of W x + b is W (sum of x) + (sum of 1) b.

        Nothing of n tokens is projected, a third of the layer's time at n = 4096. All heads are rows of one, whose keys
        and values are the tokens themselves with a column of ones for the biases.
        """
        heads, width = self.num_heads, self.embed_dim
        keys, values = (x.weight.unflatten(0, (heads, -1)) for x in (self.key_global, self.value_global))
        bias_k, bias_v = (x.bias.unflatten(0, (heads, -1)) for x in (self.key_global, self.value_global))
        tokens = torch.cat((hidden, hidden.new_ones(*hidden.shape[:2], 1)), dim=-1)
        rows = torch.cat((query @ keys, query @ bias_k[:, :, None]), dim=-1)
        # columns of zeros, to a multiple of the 8 that kernels are fast at
        tokens, rows = (F.pad(x, (0, -(width + 1) % 8)) for x in (tokens, rows))
        options = dropout_options(self.dropout, self.training) | {"scale": self.head_dim**-0.5}
        sums = attended((rows.flatten(1, 2)[:, None], tokens[:, None], tokens[:, None]), there, options)
        sums = sums[:, 0].unflatten(1, (heads, -1))
        return sums[..., :width] @ values.mT + sums[..., width : width + 1] * bias_v[:, None, :]


def _one_row(
    batch_size: int, kv_length: int, attention_mask: Tensor | None = None, dtype: torch.dtype = torch.float32, **_: Any
) -> Tensor:
    """The padding of a batch as an additive mask of one row: all of the mask that Longformer looks at."""
    row = torch.zeros(batch_size, 1, 1, kv_length, dtype=dtype)
    if attention_mask is not None:
        row.masked_fill_(~attention_mask[:, None, None, :], torch.finfo(dtype).min)
    return row


def _no_attention(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError(
        f'attn_implementation="{IMPLEMENTATION}" belongs to models that subquad.transformers.convert has changed; '
        f"{type(module).__name__} is none of them"
    )


AttentionMaskInterface.register(IMPLEMENTATION, _one_row)
AttentionInterface.register(IMPLEMENTATION, _no_attention)
