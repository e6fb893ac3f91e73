"""BigBird's block-sparse self-attention: each block once, however many of its parts meet there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

from subquad.patterns import Banded, BlockSparse, Global, Pattern
from subquad.patterns.last_block import LastBlock
from subquad.transformers.calls import attended
from subquad.transformers.padding import groups, joined

# Sizes at which the model places random blocks as its paper's own code did; then up to this token alone.
_PAPER_SIZES, _PAPER_REACH = (1024, 3072, 4096), 1024


class SparseBigBirdAttention(BigBirdBlockSparseAttention):
    """Blocks of a window, the first block and the last, and in training the random blocks that the model draws.

    The model itself counts a block once for each part that it is in: block 0 is added ``num_random_blocks`` times to
    every row at inference, where its "random" blocks are all block 0.
    """

    _drawn: dict[int, list[npt.NDArray[np.bool_]]] = {}  # noqa: RUF012 - replaced, never changed

    def forward(
        self,
        hidden_states: Tensor,
        band_mask: Tensor | None = None,
        from_mask: Tensor | None = None,
        to_mask: Tensor | None = None,
        from_blocked_mask: Tensor | None = None,
        to_blocked_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """As the model calls it; `to_mask` (batch, 1, 1, n) is 1 where a token is there."""
        if kwargs.get("output_attentions", getattr(self, "config", None) and self.config.output_attentions):
            raise ValueError(
                "output_attentions=True is not supported by a model that subquad has converted: weights are never "
                "stored; restore(model) first"
            )
        batch, n, _ = hidden_states.shape
        if n % self.block_size:
            raise ValueError(f"hidden_states must have a multiple of block_size = {self.block_size} tokens; got {n}")
        there = hidden_states.new_ones(batch, n) if to_mask is None else to_mask.reshape(-1, n).expand(batch, n)
        heads = [
            project(hidden_states).unflatten(-1, (self.num_attention_heads, self.attention_head_size)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        ]
        parts = []
        for group in groups(there - 1):
            patterns = self._patterns(n)
            if group.masked:
                patterns = [pattern - Global(group.masked) for pattern in patterns]
            parts.append((group, _attend([group.take(x) for x in heads], patterns)))
        return joined(parts).transpose(1, 2).flatten(2), None

    def _patterns(self, n: int) -> list[Pattern]:
        """One pattern for all heads, or one for each."""
        block = self.block_size
        always = Banded(1, block=block) | Global(range(block)) | LastBlock(block)
        if not self.training or not self.num_random_blocks:
            return [always]
        return [always | BlockSparse(layout, block) for layout in self._random_layouts(n)]

    def _random_layouts(self, n: int) -> list[npt.NDArray[np.bool_]]:
        """The random blocks of each head, drawn by the model's own code from the layer's own seed: always the same."""
        if self.seed is None or n not in self._drawn:
            state = np.random.get_state()  # noqa: NPY002 - the model draws from NumPy's global generator
            np.random.seed(self.seed)  # noqa: NPY002
            try:
                self._drawn = {n: self._draw(n)}
            finally:
                np.random.set_state(state)  # noqa: NPY002
        return self._drawn[n]

    def _draw(self, n: int) -> list[npt.NDArray[np.bool_]]:
        block, count, n_blocks = self.block_size, self.num_random_blocks, n // self.block_size
        if n in _PAPER_SIZES:
            drawn = [
                self._bigbird_block_rand_mask(
                    self.max_seqlen, self.max_seqlen, block, block, count, last_idx=_PAPER_REACH
                )[: n_blocks - 2]
                for _ in range(self.num_attention_heads)
            ]
        else:
            lengths, counts = self._get_rand_attn_plan(n, block, count)
            drawn = self._bigbird_block_rand_mask_with_head(
                n, n, block, block, self.num_attention_heads, lengths, counts
            )
        layouts = np.zeros((len(drawn), n_blocks, n_blocks), bool)
        for layout, keys in zip(layouts, drawn, strict=True):
            np.put_along_axis(layout[1:-1], np.asarray(keys, np.int64), True, axis=1)
        return list(layouts)


def _attend(heads: list[Tensor], patterns: list[Pattern]) -> Tensor:
    if len(patterns) == 1:
        return attended(heads, patterns[0])
    one_by_one = zip(*(x.split(1, dim=1) for x in heads), patterns, strict=True)
    return torch.cat([attended((q, k, v), pattern) for q, k, v, pattern in one_by_one], dim=1)
