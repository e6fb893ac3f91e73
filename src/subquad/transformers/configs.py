"""The pattern of a layer, read from a Hugging Face config: what the model's own masks say, in one expression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from subquad import checks
from subquad.patterns import Banded, Causal, Dense, Global, Pattern
from subquad.patterns.last_block import LastBlock

# Model types whose own masks were compared with what is read here, layer by layer, with transformers 5.23;
# tests/test_torch_transformers_configs.py does so for some of each way of reading. A config of another type may mean
# something else by the same words, or not heed them: Llama takes a sliding_window and ignores it.
# fmt: off
_PAST = frozenset({
    "apertus", "arcee", "aria_text", "biogpt", "bitnet", "cohere", "ctrl", "ernie4_5", "flex_olmo", "fuyu", "gemma",
    "glm", "glm4", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neox", "granite", "granitemoe", "granitemoeshared",
    "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "hyperclovax", "internlm3", "jais2", "jetmoe", "llama",
    "minimax_m2", "moshi", "nanochat", "nemotron", "olmo", "olmo2", "olmoe", "opt", "persimmon", "phi", "seed_oss",
    "stablelm",
})
_WINDOWED = frozenset({
    "cohere2", "cohere2_moe", "cwm", "exaone4", "gemma2", "gpt_oss", "granite_swa", "granitemoe_swa", "llama4_text",
    "ministral", "ministral3", "mistral", "mixtral", "modernbert-decoder", "olmo3", "phi3", "phimoe", "qwen2",
    "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "starcoder2", "vaultgemma",
})
_ENCODERS = frozenset({
    "albert", "bert", "camembert", "data2vec-text", "distilbert", "electra", "ernie", "esm", "nomic_bert",
    "roberta", "roberta-prelayernorm", "roc_bert", "xlm-roberta", "xlm-roberta-xl",
})
# fmt: on


def from_config(config: Any, layer: int) -> Pattern:
    """The pattern of a layer's self-attention, from the model's config.

    Parameters
    ----------
    config : transformers.PretrainedConfig
        Of a model with one stack of layers; of one with several (text and images), that of its text is taken.
    layer : int
        Number of the layer, from 0.

    Returns
    -------
    pattern : Pattern
        The pairs that the layer's mask allows in a sequence without padding; ``pattern.explain(i, n, n)`` tells them.

    Raises
    ------
    TypeError, ValueError
        If it is no config, there is no such layer, or how a model of this type masks is not known: the message names
        the type.

    Notes
    -----
    O(1). A causal ``sliding_window`` of w is w keys, ``Banded((w - 1, 0))``. Both ways, models differ: ModernBERT's
    ``local_attention`` of w is ``Banded(w // 2)``, Longformer's ``attention_window`` of w too. BigBird's pattern is
    that of inference, without the random blocks of training, which depend on the length.

    Examples
    --------
    >>> from types import SimpleNamespace as Config  # stands for MistralConfig(sliding_window=3)
    >>> pattern = from_config(Config(model_type="mistral", num_hidden_layers=2, sliding_window=3), layer=1)
    >>> print(pattern.explain(5, 8, 8))
    query row 5 at position 5 of 8: 3 keys
      keys 3 to 5: Banded((2, 0))
    """
    text = _text_config(config)
    kind = text.model_type
    n_layers = getattr(text, "num_hidden_layers", None)
    if n_layers is None:
        raise ValueError(f"config must have num_hidden_layers; that of model type {kind!r} has none")
    index = checks.integer(layer, "layer", 0)
    if index >= n_layers:
        raise ValueError(f"layer must be below the config's num_hidden_layers = {n_layers}; got {index}")
    if kind in _OWN_WAY:
        return _OWN_WAY[kind](text, index)
    if kind in _ENCODERS:
        return Causal() if getattr(text, "is_decoder", False) else Dense()
    if kind in _PAST:
        return Causal() if getattr(text, "is_causal", True) is not False else Dense()
    if kind in _WINDOWED:
        return _windowed(text, index)
    raise ValueError(
        f"config has model type {kind!r}, whose masks are not known here; write the pattern yourself, such as "
        f"Banded((w - 1, 0)) for a causal window of w keys"
    )


def _text_config(config: Any) -> Any:
    """The config of the one stack of layers that text goes through."""
    if not isinstance(getattr(config, "model_type", None), str):
        raise TypeError(
            f"config must be a Hugging Face config, such as model.config; got {config!r:.120} "
            f"of type {type(config).__name__}"
        )
    if getattr(config, "is_encoder_decoder", False) is True:
        raise ValueError(
            f"config must be of a model with one stack of layers; {config.model_type!r} has an encoder and a decoder"
        )
    return config.get_text_config() if hasattr(config, "get_text_config") else config


# --- decoders ---------------------------------------------------------------------------------------------------------


def _windowed(config: Any, layer: int) -> Pattern:
    """Layers that say what they are, or else a window (or chunks) in every layer where the config has one."""
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        of_all = "full" if chunk is None else "chunked"
        kind = f"{of_all if window is None else 'sliding'}_attention"
    else:
        kind = types[layer]
    causal = getattr(config, "is_causal", True) is not False
    if kind == "full_attention":
        return Causal() if causal else Dense()
    if kind == "sliding_attention":
        size = _size(window, "sliding_window", config)
        return Banded((size - 1, 0)) if causal else Banded(size)  # both ways the bound is inclusive, unlike causally
    if kind == "chunked_attention":
        return Banded(0, block=_size(chunk, "attention_chunk_size", config)) & Causal()
    raise ValueError(
        f"layer {layer} of this {config.model_type!r} is of type {kind!r}; full_attention, sliding_attention and "
        f"chunked_attention have a pattern"
    )


def _size(value: Any, name: str, config: Any) -> int:
    if value is None:
        raise ValueError(f"config.{name} must be set, as a layer of this {config.model_type!r} is of that type")
    return checks.integer(value, f"config.{name}", 1)


def _gemma3(config: Any, layer: int) -> Pattern:
    if not config.use_bidirectional_attention:
        return _windowed(config, layer)
    # the embedding model: the config has halved its window, and the bound is exclusive both ways
    if config.layer_types[layer] == "full_attention":
        return Dense()
    return Banded(_size(config.sliding_window, "sliding_window", config) - 1)


# --- encoders ---------------------------------------------------------------------------------------------------------


def _modernbert(config: Any, layer: int) -> Pattern:
    if config.layer_types[layer] == "full_attention":
        return Dense()
    return Banded(checks.integer(config.local_attention, "config.local_attention", 1) // 2)


def _longformer(config: Any, layer: int) -> Pattern:
    """The window alone: which tokens are global is said in each call, by ``global_attention_mask``."""
    window = config.attention_window
    if not isinstance(window, int):
        window = window[layer]
    return Banded(checks.integer(window, "config.attention_window", 2) // 2)


def _big_bird(config: Any, layer: int) -> Pattern:
    if config.attention_type == "original_full":
        return Causal() if config.is_decoder else Dense()
    block = checks.integer(config.block_size, "config.block_size", 1)
    return Banded(1, block=block) | Global(range(block)) | LastBlock(block)


def _gpt_neo(config: Any, layer: int) -> Pattern:
    if config.attention_layers[layer] == "global":
        return Causal()
    return Banded((checks.integer(config.window_size, "config.window_size", 1) - 1, 0))


_OWN_WAY: dict[str, Callable[[Any, int], Pattern]] = {
    "big_bird": _big_bird,
    "gemma3_text": _gemma3,
    "gpt_neo": _gpt_neo,
    "longformer": _longformer,
    "modernbert": _modernbert,
}
