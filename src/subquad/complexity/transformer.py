"""What a whole transformer costs at n tokens, part by part, and where attention overtakes the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from subquad import checks
from subquad.complexity.costs import _itemsize
from subquad.complexity.orders import LINEARITHMIC
from subquad.inputs import checked_pattern
from subquad.patterns.base import Pattern

#: Names that Hugging Face configurations give to the same number.
_NAMES: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim", "d_kv"),
    "feed_forward": ("intermediate_size", "n_inner", "d_ff", "ffn_dim", "hidden_dim"),
    "vocabulary": ("vocab_size",),
}
#: Models whose feed-forward has a gate: three matrices instead of two.
_GATED = ("llama", "mistral", "mixtral", "qwen", "gemma", "phi3", "olmo", "smollm", "deepseek", "granite", "cohere")
#: How far to look for the length at which attention overtakes: where pairs are counted by a formula, and by a plan.
_FARTHEST, _FARTHEST_PLANNED = 1 << 40, 1 << 17


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer that its cost depends on."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    gated: bool

    def linear_flops(self) -> dict[str, int]:
        """FLOPs for each token, of what does not depend on the number of tokens."""
        query_and_out = 2 * self.hidden * self.heads * self.head_dim
        key_and_value = 2 * self.hidden * self.kv_heads * self.head_dim
        return {
            "projections": 2 * self.layers * (query_and_out + key_and_value),
            "feed_forward": 2 * self.layers * (3 if self.gated else 2) * self.hidden * self.feed_forward,
            "logits": 2 * self.hidden * self.vocabulary,
        }

    def attention_flops(self, pattern: Pattern, n: int) -> int:
        """Scores and weighted sums of all heads and layers: 4 head_dim for each pair."""
        return 4 * self.layers * self.heads * self.head_dim * pattern.nnz(n, n)


@dataclass(frozen=True)
class TransformerCost:
    """What `transformer_cost` counted for one sequence of n tokens. FLOPs are those of matrix products, 2 m n k each.

    Attributes
    ----------
    projections, attention, feed_forward, logits : int
        FLOPs: query, key, value and output projections; scores and weighted values of the allowed pairs; the two or
        three matrices of the feed-forward; hidden states times the vocabulary.
    kv_cache_bytes : int
        Keys and values of all layers for n tokens.
    parameters : int
        Numbers in those matrices, input embedding and output matrix counted once each.
    overtakes : int or None
        The smallest n at which attention takes more FLOPs than all the rest together; None where it never does, or
        only beyond 131,072 tokens for a pattern whose pairs no formula counts.
    """

    n: int
    projections: int
    attention: int
    feed_forward: int
    logits: int
    kv_cache_bytes: int
    parameters: int
    overtakes: int | None

    @property
    def total(self) -> int:
        """FLOPs of all parts."""
        return self.projections + self.attention + self.feed_forward + self.logits

    @property
    def attention_share(self) -> float:
        """FLOPs of attention over those of all parts."""
        return self.attention / self.total


def transformer_cost(config: Any, n: int, pattern: Pattern, *, dtype: Any = "float32") -> TransformerCost:
    """Count the FLOPs of a transformer's forward pass over n tokens, and the bytes of its key-value cache.

    Parameters
    ----------
    config : mapping or object
        A Hugging Face configuration, or a mapping with its names: ``hidden_size``, ``num_hidden_layers``,
        ``num_attention_heads``, ``vocab_size``; optional ``num_key_value_heads``, ``head_dim``, ``intermediate_size``
        (by default 4 hidden_size) and ``gated`` (a feed-forward of three matrices, as Llama's; by default what
        ``model_type`` says).
    n : int
        Tokens.
    pattern : Pattern
        Of every head of every layer.
    dtype : str or dtype, optional
        Of the cache.

    Raises
    ------
    TypeError, ValueError
        The configuration lacks a size, or one is no integer of at least 1.

    Notes
    -----
    Normalisations, activations, softmax and biases are left out: O(n hidden) each. Attention overtakes the rest at
    ``n = 2 hidden + 3/2 feed_forward + vocabulary / (2 layers)`` for a dense pattern and a gated feed-forward (1
    instead of 3/2 without the gate), at twice that for a causal one, and never in a window of fewer keys.

    Examples
    --------
    >>> from subquad import Banded, Dense
    >>> gpt2 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 50257}
    >>> transformer_cost(gpt2, 1024, Dense()).overtakes
    6703
    >>> transformer_cost(gpt2, 1024, Banded(256)).overtakes is None
    True
    """
    shape, n = read_config(config), checks.integer(n, "n", 1)
    checked_pattern(pattern)
    linear = shape.linear_flops()
    return TransformerCost(
        n=n,
        attention=shape.attention_flops(pattern, n),
        kv_cache_bytes=2 * shape.layers * shape.kv_heads * shape.head_dim * n * _itemsize(dtype),
        parameters=sum(linear.values()) // 2 + shape.hidden * shape.vocabulary,
        overtakes=_overtakes(shape, pattern),
        **{name: flops * n for name, flops in linear.items()},
    )


def read_config(config: Any) -> Shape:
    """The sizes that a configuration gives, under whichever of the usual names."""
    values: Mapping[str, Any] = config if isinstance(config, Mapping) else _Attributes(config)
    found = {name: _first(values, names) for name, names in _NAMES.items()}
    for name in ("hidden", "layers", "heads", "vocabulary"):
        if found[name] is None:
            raise ValueError(f"config must give {' or '.join(_NAMES[name])}; got {config!r}")
    sizes = {
        name: checks.integer(value, next(n for n in _NAMES[name] if values.get(n) is not None), 1)
        for name, value in found.items()
        if value is not None
    }
    hidden, heads = sizes["hidden"], sizes["heads"]
    sizes.setdefault("kv_heads", heads)
    sizes.setdefault("head_dim", max(1, hidden // heads))
    sizes.setdefault("feed_forward", 4 * hidden)
    gated = values.get("gated")
    if gated is None:
        gated = str(values.get("model_type") or "").startswith(_GATED)
    return Shape(gated=bool(gated), **sizes)


class _Attributes(Mapping[str, Any]):
    """An object's attributes by name."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self._config, name)
        except AttributeError:
            raise KeyError(name) from None

    def __iter__(self) -> Any:
        return iter(vars(self._config))

    def __len__(self) -> int:
        return len(vars(self._config))


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((values.get(name) for name in names if values.get(name) is not None), None)


def _overtakes(shape: Shape, pattern: Pattern) -> int | None:
    """Doubling, then halving: pairs a token must grow with n, as they do for every pattern here."""
    rest = sum(shape.linear_flops().values())

    def ahead(n: int) -> bool:
        return shape.attention_flops(pattern, n) > n * rest

    farthest = _FARTHEST if type(pattern)._count is not Pattern._count else _FARTHEST_PLANNED
    n = 1
    try:
        while not ahead(n):
            n *= 2
            if n > farthest or (pattern.order < LINEARITHMIC and n > _FARTHEST_PLANNED):
                return None
    except ValueError:  # a layout or a token that fits no such length
        return None
    low, high = n // 2, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if ahead(middle) else (middle, high)
    return high
