"""The pattern of a config's layer. Oracle: the mask that the model itself hands to its attention, eagerly made."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from subquad import Banded, Causal, Dense, Global
from subquad.patterns.last_block import LastBlock
from subquad.transformers import from_config

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

N = 24
SMALL = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "vocab_size": 32,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "pad_token_id": 0,
}
QWEN = {"use_sliding_window": True, "max_window_layers": 2}
#: One of each way of reading: what is passed to the config, and the patterns it then means.
FAMILIES = {
    "mistral": (dict(sliding_window=5), [Banded((4, 0))] * 4),
    "llama": (dict(sliding_window=5), [Causal()] * 4),
    "qwen2": (dict(sliding_window=5, **QWEN), [Causal()] * 2 + [Banded((4, 0))] * 2),
    "qwen3": (dict(sliding_window=5), [Causal()] * 4),
    "phi3": (dict(sliding_window=7), [Banded((6, 0))] * 4),
    "gemma2": (dict(sliding_window=6), [Banded((5, 0)), Causal()] * 2),
    "gemma3_text": (dict(sliding_window=6, sliding_window_pattern=2), [Banded((5, 0)), Causal()] * 2),
    "gpt_oss": (dict(sliding_window=3, num_local_experts=2, num_experts_per_tok=1), [Banded((2, 0)), Causal()] * 2),
    "llama4_text": (
        dict(attention_chunk_size=7, num_local_experts=1, intermediate_size_mlp=16, interleave_moe_layer_step=9),
        [Banded(0, block=7) & Causal()] * 3 + [Causal()],
    ),
    "modernbert": (dict(local_attention=6, global_attn_every_n_layers=2), [Dense(), Banded(3)] * 2),
    "bert": ({}, [Dense()] * 4),
}
# both ways, where a model says so
BOTH_WAYS = {
    "gemma3_text": (
        dict(sliding_window=8, sliding_window_pattern=2, use_bidirectional_attention=True),
        [Banded(4), Dense()] * 2,
    ),
    "mistral": (dict(sliding_window=5, is_causal=False), [Banded(5)] * 4),
    "llama": (dict(is_causal=False), [Dense()] * 4),
}
CASES = [(name, *case) for table in (FAMILIES, BOTH_WAYS) for name, case in table.items()]


@pytest.fixture(scope="module")
def masks():
    """The mask of every layer, as the model itself makes it: an attention function that looks on."""
    seen = []

    def look_on(module, query, key, value, attention_mask, **kwargs):
        seen.append(attention_mask)
        return torch.zeros_like(query).transpose(1, 2), None

    from transformers.masking_utils import eager_mask

    transformers.AttentionInterface.register("subquad_test_probe", look_on)
    transformers.AttentionMaskInterface.register("subquad_test_probe", eager_mask)

    def of(config):
        seen.clear()
        model = transformers.AutoModel.from_config(config, attn_implementation="subquad_test_probe").eval()
        with torch.no_grad():
            model(input_ids=torch.arange(N).reshape(1, N) % 32)
        return [np.ones((N, N), bool) if mask is None else (mask[0, 0] == 0).numpy() for mask in seen]

    return of


@pytest.mark.parametrize(
    ("name", "given", "expected"), CASES, ids=[f"{name}-{k}" for k, (name, *_) in enumerate(CASES)]
)
def test_patterns_are_the_masks_of_the_model(name, given, expected, masks):
    config = transformers.CONFIG_MAPPING[name](**SMALL | given)
    patterns = [from_config(config, layer) for layer in range(4)]
    assert patterns == expected
    found = masks(config)
    assert len(found) == 4
    rows, keys = np.arange(N)[:, None], np.arange(N)[None, :]
    for pattern, mask in zip(patterns, found, strict=True):
        np.testing.assert_array_equal(pattern.contains(rows, keys, N, N), mask)


def test_gpt_neo_alternates():
    config = transformers.GPTNeoConfig(
        hidden_size=16, num_layers=4, num_heads=2, window_size=5, attention_types=[[["global", "local"], 2]]
    )
    assert [from_config(config, layer) for layer in range(4)] == [Causal(), Banded((4, 0))] * 2


def test_longformer_has_a_window_for_each_layer():
    config = transformers.LongformerConfig(num_hidden_layers=3, attention_window=[4, 8, 16])
    assert [from_config(config, layer) for layer in range(3)] == [Banded(2), Banded(4), Banded(8)]
    assert from_config(transformers.LongformerConfig(attention_window=512), 11) == Banded(256)


def test_big_bird_has_two_global_blocks():
    config = transformers.BigBirdConfig(block_size=4, num_random_blocks=2)
    pattern = from_config(config, 0)
    assert pattern == Banded(1, block=4) | Global(range(4)) | LastBlock(4)
    assert pattern.row(20, 48, 48).tolist() == [0, 1, 2, 3, *range(16, 28), 44, 45, 46, 47]
    assert from_config(transformers.BigBirdConfig(attention_type="original_full"), 0) == Dense()
    assert from_config(transformers.BigBirdConfig(attention_type="original_full", is_decoder=True), 0) == Causal()


def test_a_model_of_text_and_images_is_read_by_its_text():
    text = {**SMALL, "sliding_window": 6, "sliding_window_pattern": 2}
    config = transformers.Gemma3Config(text_config=text)
    assert [from_config(config, layer) for layer in range(2)] == [Banded((5, 0)), Causal()]


def test_a_pattern_explains_itself():
    config = transformers.MistralConfig(num_hidden_layers=1, sliding_window=3)
    text = str(from_config(config, 0).explain(5, 8, 8))
    assert text == "query row 5 at position 5 of 8: 3 keys\n  keys 3 to 5: Banded((2, 0))"


CONFIG = SimpleNamespace(model_type="mistral", num_hidden_layers=2, sliding_window=4)


@pytest.mark.parametrize(
    ("config", "layer", "kind", "message"),
    [
        (CONFIG, 2, ValueError, "layer must be below the config's num_hidden_layers = 2; got 2"),
        (CONFIG, -1, ValueError, "layer must be an integer >= 0; got -1"),
        (CONFIG, 0.5, TypeError, "layer must be an integer >= 0; got 0.5"),
        ({"model_type": "mistral"}, 0, TypeError, "config must be a Hugging Face config"),
        (SimpleNamespace(model_type="mamba", num_hidden_layers=2), 0, ValueError, "config has model type 'mamba'"),
        (SimpleNamespace(model_type="mistral"), 0, ValueError, "config must have num_hidden_layers"),
        (SimpleNamespace(model_type="t5", is_encoder_decoder=True), 0, ValueError, "an encoder and a decoder"),
        (
            SimpleNamespace(model_type="qwen2", num_hidden_layers=1, layer_types=["linear_attention"]),
            0,
            ValueError,
            "layer 0 of this 'qwen2' is of type 'linear_attention'",
        ),
        (
            SimpleNamespace(model_type="qwen2", num_hidden_layers=1, layer_types=["sliding_attention"]),
            0,
            ValueError,
            "config.sliding_window must be set",
        ),
        (
            SimpleNamespace(model_type="mistral", num_hidden_layers=1, sliding_window=0),
            0,
            ValueError,
            "config.sliding_window must be an integer >= 1; got 0",
        ),
    ],
)
def test_what_has_no_pattern_is_refused_by_name(config, layer, kind, message):
    with pytest.raises(kind) as error:
        from_config(config, layer)
    assert message in str(error.value)


def test_names_are_imported_on_first_use():
    import subquad.transformers as ours

    assert set(ours.__all__) <= set(dir(ours))
    with pytest.raises(AttributeError, match="has no attribute 'convret'"):
        ours.convret  # noqa: B018
