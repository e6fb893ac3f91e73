"""`torch.nn.MultiheadAttention` whose mask is a pattern."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from subquad import checks
from subquad.inputs import checked_pattern
from subquad.patterns import Pattern
from subquad.torch.crossing import text_of
from subquad.torch.functional import attend, autocast, check_tensors


class SparseMultiheadAttention(nn.Module):
    """Multi-head attention over the pairs that a pattern allows, with the parameters of `torch.nn.MultiheadAttention`.

    Parameters
    ----------
    embed_dim, num_heads : int
        Width of the model, and heads that share it evenly.
    pattern : Pattern
        Which keys each query may attend; ``pattern & Causal()`` for a language model. May be set anew at any time.
    num_kv_heads : int, optional
        Heads of keys and values, which divide `num_heads` (grouped-query attention); `num_heads` by default.
    bias : bool, optional
        Whether the projections add a bias.
    dropout : float, optional
        0: dropout of attention weights does not exist here. Drop the module's output instead.
    batch_first : bool, optional
        Whether a batch is (batch, n, embed_dim), as by default, or (n, batch, embed_dim).
    num_threads : int, optional
        Threads of the attention; ``torch.get_num_threads()`` by default.
    device, dtype : optional
        Of the parameters.

    Raises
    ------
    TypeError, ValueError
        For sizes that do not divide one another, and, by name, for what `torch.nn.MultiheadAttention` can do and
        this cannot.

    Notes
    -----
    Without `num_kv_heads`, a ``state_dict`` of `torch.nn.MultiheadAttention` (`in_proj_weight`, `in_proj_bias`,
    `out_proj.weight`, `out_proj.bias`) can be loaded, and the other way round; after ``torch.manual_seed`` both start
    from the same weights. In `torch.nn.TransformerEncoderLayer` and its kin it can take the place of ``self_attn``.
    Time O(n embed_dim² + pairs x embed_dim).

    Vaswani et al., "Attention Is All You Need" (2017), section 3.2.2; Ainslie et al., "GQA" (2023).

    Examples
    --------
    >>> import torch
    >>> from subquad import Banded, Causal
    >>> from subquad.torch import SparseMultiheadAttention
    >>> attention = SparseMultiheadAttention(64, 4, Banded(128) & Causal())
    >>> x = torch.randn(2, 1000, 64)
    >>> out, _ = attention(x, x, x)
    >>> out.shape
    torch.Size([2, 1000, 64])
    """

    # Read by the fast path of TransformerEncoderLayer, which would compute dense attention with our weights.
    _qkv_same_embed_dim = False

    in_proj_bias: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        pattern: Pattern,
        *,
        num_kv_heads: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        batch_first: bool = True,
        num_threads: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.embed_dim = checks.integer(embed_dim, "embed_dim", 1)
        self.num_heads = checks.integer(num_heads, "num_heads", 1)
        shared = num_heads if num_kv_heads is None else num_kv_heads
        self.num_kv_heads = checks.integer(shared, "num_kv_heads", 1)
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads = {num_heads}; got {embed_dim}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads must be a multiple of num_kv_heads = {num_kv_heads}; got {num_heads}")
        if dropout != 0:
            raise ValueError(f"dropout of attention weights is not supported; got {dropout}; drop the output instead")
        self.head_dim = self.embed_dim // self.num_heads
        self.batch_first = batch_first
        self.num_threads = None if num_threads is None else checks.integer(num_threads, "num_threads", 1)
        self.pattern = pattern
        where = {"device": device, "dtype": dtype}
        self._widths = [self.embed_dim, *[self.num_kv_heads * self.head_dim] * 2]
        self.in_proj_weight = nn.Parameter(torch.empty(sum(self._widths), self.embed_dim, **where))
        self.register_parameter("in_proj_bias", nn.Parameter(torch.empty(sum(self._widths), **where)) if bias else None)
        self.out_proj = nn.Linear(self.embed_dim, self.embed_dim, bias=bias, **where)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start that `torch.nn.MultiheadAttention` has."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    @property
    def pattern(self) -> Pattern:
        """Which keys each query may attend."""
        return self._pattern

    @pattern.setter
    def pattern(self, pattern: Pattern) -> None:
        # torch.compile guards the text: layers of equal patterns share a graph, and a new pattern gets its own
        self._pattern_text = text_of(checked_pattern(pattern))
        self._pattern = pattern

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: None = None,
        need_weights: bool = False,
        attn_mask: None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Project, attend and project back.

        Parameters
        ----------
        query : Tensor, shape (batch, n_q, embed_dim)
        key, value : Tensor, shape (batch, n_k, embed_dim)
            Or (n_q, embed_dim) and (n_k, embed_dim); with ``batch_first=False`` the batch is the second axis.
        key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            Those of `torch.nn.MultiheadAttention`, in its order. Only their defaults here are supported.

        Returns
        -------
        out : Tensor, shape of `query`
        weights : None

        Raises
        ------
        ValueError
            For an argument that is not supported, and for shapes that do not go together.
        """
        _refuse(key_padding_mask, need_weights, attn_mask, is_causal)
        q, k, v = self._heads(query, key, value)
        out = attend(q, k, v, self._pattern_text, None, False, self.num_threads)
        return self.out_proj(self._joined(out)), None

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Project the inputs to (batch, heads, n, head_dim) views, without a batch where there is none."""
        given = {"query": query, "key": key, "value": value}
        for name, x in given.items():
            if not isinstance(x, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor; got {type(x).__name__}")
            if x.dim() not in (2, 3) or x.shape[-1] != self.embed_dim:
                raise ValueError(
                    f"{name} must have shape (n, embed_dim) or a batch of it, with embed_dim = {self.embed_dim}; "
                    f"got {tuple(x.shape)}"
                )
        projected = [self._split(x) for x in self._projections(query, key, value)]
        heads = autocast(*projected)
        check_tensors(**dict(zip(given, heads, strict=True)))
        return heads

    def _projections(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if query is key and key is value:  # one product instead of three
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).split(self._widths, dim=-1)
        weights = self.in_proj_weight.split(self._widths)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.split(self._widths)
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))

    def _split(self, x: Tensor) -> Tensor:
        """(batch, n, heads x head_dim) to (batch, heads, n, head_dim)."""
        x = x.unflatten(-1, (-1, self.head_dim))
        if x.dim() == 4 and not self.batch_first:
            x = x.transpose(0, 1)
        return x.transpose(-3, -2)

    def _joined(self, x: Tensor) -> Tensor:
        """The way back."""
        x = x.transpose(-3, -2)
        if x.dim() == 4 and not self.batch_first:
            x = x.transpose(0, 1)
        return x.flatten(-2)

    def extra_repr(self) -> str:
        kv_heads = "" if self.num_kv_heads == self.num_heads else f"num_kv_heads={self.num_kv_heads}, "
        return f"{self.embed_dim}, {self.num_heads}, {self.pattern!r}, {kv_heads}batch_first={self.batch_first}"


def _refuse(key_padding_mask: Any, need_weights: Any, attn_mask: Any, is_causal: Any) -> None:
    """What `torch.nn.MultiheadAttention` takes and this does not: never ignored."""
    if key_padding_mask is not None:
        raise ValueError(
            "key_padding_mask is not supported: attend to sequences of one length at a time, or leave padded keys out "
            "by the pattern: pattern - Global(range(length, n), rows=False)"
        )
    if attn_mask is not None:
        raise ValueError("attn_mask is not supported: the pattern says which keys each query may attend")
    if is_causal:
        raise ValueError("is_causal=True is not supported: give the module a causal pattern, pattern & Causal()")
    if need_weights:
        raise ValueError(
            "need_weights=True is not supported; subquad.attention_weights(query, key, pattern) returns the weights of "
            "the allowed pairs alone"
        )
