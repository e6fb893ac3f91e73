"""Whole models on subquad, built small and at random. Oracle: the same model, eager."""

from __future__ import annotations

import copy
import doctest
import importlib

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from support_transformers import gradients, same, same_gradients, widened  # noqa: E402

from subquad.transformers import register  # noqa: E402

register()
WINDOW, PROMPT = 8, 30  # more than three windows
SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": WINDOW,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "attention_dropout": 0.0,
}
GEMMA = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}
GENERATORS = {
    "llama": {},
    "mistral": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 1},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA | {"sliding_window_pattern": 2},
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 2},
}
LEFT, RIGHT, HOLES = "left", "right", "holes"


def built(name, **changes):
    given = SMALL | GENERATORS.get(name, {}) | changes
    config = transformers.CONFIG_MAPPING[name](**given)
    torch.manual_seed(0)
    auto = transformers.AutoModelForMaskedLM if name == "modernbert" else transformers.AutoModelForCausalLM
    eager = widened(auto.from_config(config, attn_implementation="eager"), std=0.2).eval()
    ours = copy.deepcopy(eager)
    ours.set_attn_implementation("subquad")
    assert ours.config._attn_implementation == "subquad"
    return eager, ours


def prompts(padding=None, n=PROMPT):
    ids = torch.randint(2, 64, (3, n), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, n, dtype=torch.long)
    if padding == LEFT:
        mask[0, :11], mask[2, :3] = 0, 0
    elif padding == RIGHT:
        mask[0, 20:], mask[2, 27:] = 0, 0
    elif padding == HOLES:
        mask[0, 4:9], mask[0, 25:], mask[1, 0] = 0, 0, 0
    return ids * mask, mask


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()


@pytest.mark.parametrize("padding", [None, LEFT, RIGHT, HOLES])
@pytest.mark.parametrize("name", [*GENERATORS, "modernbert"])
def test_logits_and_gradients(name, padding):
    changes = {}
    if name == "modernbert":
        changes = {"local_attention": WINDOW, "global_attn_every_n_layers": 2, "num_key_value_heads": 4}
    eager, ours = built(name, **changes)
    ids, mask = prompts(padding)
    results = []
    for model in (eager, ours):
        model.train()
        logits = model(input_ids=ids, attention_mask=None if padding is None else mask).logits
        results.append((logits.detach(), gradients(model, logits * mask[:, :, None])))
    (expected, expected_grads), (found, grads) = results
    same(found[mask == 1], expected[mask == 1])
    same_gradients(grads, expected_grads)
    assert name != "gpt_oss" or any("sinks" in key and grad.abs().max() > 0 for key, grad in grads.items())


@pytest.mark.parametrize("padding", [LEFT, RIGHT])
@pytest.mark.parametrize("name", GENERATORS)
def test_greedy_tokens(name, padding):
    eager, ours = built(name)
    ids, mask = prompts(padding)
    options = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False, "pad_token_id": 0}
    expected = eager.generate(ids, attention_mask=mask, **options)
    assert expected.shape == (3, PROMPT + 64)
    assert len(expected[:, PROMPT:].unique()) > 4
    assert torch.equal(ours.generate(ids, attention_mask=mask, **options), expected)


@pytest.mark.parametrize("name", GENERATORS)
def test_static_caches(name):
    eager, ours = built(name)
    ids, mask = prompts(LEFT)
    options = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    expected = eager.generate(ids, attention_mask=mask, **options)
    assert torch.equal(ours.generate(ids, attention_mask=mask, cache_implementation="static", **options), expected)


def test_beams_and_samples():
    eager, ours = built("mistral")
    ids, mask = prompts(LEFT)
    options = {"attention_mask": mask, "max_new_tokens": 20, "pad_token_id": 0}
    expected = eager.generate(ids, num_beams=3, do_sample=False, **options)
    assert torch.equal(ours.generate(ids, num_beams=3, do_sample=False, **options), expected)
    tokens = []
    for model in (eager, ours):
        torch.manual_seed(5)
        tokens.append(model.generate(ids, do_sample=True, **options))
    assert torch.equal(*tokens)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gpt_oss"])
def test_a_prompt_in_pieces(name):
    eager, ours = built(name)
    ids, mask = prompts(LEFT)
    whole = eager(input_ids=ids, attention_mask=mask).logits
    past, pieces = None, []
    for start, stop in ((0, 13), (13, 14), (14, 30)):
        out = ours(input_ids=ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=past, use_cache=True)
        past = out.past_key_values
        pieces.append(out.logits)
    positions = mask.bool()
    # rotations count padding here as they do in the whole prompt: positions are those of the cache
    same(torch.cat(pieces, dim=1)[positions], whole[positions])


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text"])
def test_packed_positions(name):
    eager, ours = built(name)
    ids, _ = prompts()
    positions = torch.cat([torch.arange(n) for n in (12, 5, 13)]).expand(3, PROMPT)
    found = ours(input_ids=ids, position_ids=positions, use_cache=False).logits
    same(found, eager(input_ids=ids, position_ids=positions, use_cache=False).logits)
    alone = eager(input_ids=ids[:, 12:17], use_cache=False).logits
    same(found[:, 12:17], alone)


def test_llama_4_in_chunks():
    given = {
        "num_local_experts": 1,
        "intermediate_size_mlp": 32,
        "interleave_moe_layer_step": 9,
        "num_hidden_layers": 4,
    }
    eager, ours = built("llama4_text", attention_chunk_size=WINDOW, **given)
    for padding in (None, LEFT, RIGHT):
        ids, mask = prompts(padding)
        same(ours(ids, attention_mask=mask).logits[mask == 1], eager(ids, attention_mask=mask).logits[mask == 1])
    ids, mask = prompts(LEFT)
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    expected = eager.generate(ids, attention_mask=mask, **options)
    assert torch.equal(ours.generate(ids, attention_mask=mask, **options), expected)


def test_gemma_3_both_ways():
    eager, ours = built("gemma3_text", use_bidirectional_attention=True, sliding_window=2 * WINDOW)
    ids, mask = prompts(LEFT)
    same(ours(ids, attention_mask=mask).logits[mask == 1], eager(ids, attention_mask=mask).logits[mask == 1])


def test_an_encoder_and_a_decoder():
    config = transformers.BartConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    eager = widened(transformers.BartForConditionalGeneration._from_config(config, attn_implementation="eager")).eval()
    ours = copy.deepcopy(eager)
    ours.set_attn_implementation("subquad")
    ids, mask = prompts(RIGHT)
    given = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids[:, :7]}
    same(ours(**given).logits, eager(**given).logits)


def test_half_precision():
    eager, ours = built("mistral")
    ids, mask = prompts(LEFT)
    expected = eager(ids, attention_mask=mask).logits
    found = ours.to(torch.bfloat16)(ids, attention_mask=mask).logits
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected)[mask == 1].abs().max() < 0.1 * expected.abs().max()


def test_dropout_of_attention_in_training():
    _, ours = built("llama", attention_dropout=0.5)
    ids, _ = prompts()
    with torch.no_grad():
        plain = ours(ids).logits
        ours.train()
        torch.manual_seed(0)
        first = ours(ids).logits
        other = ours(ids).logits
        torch.manual_seed(0)
        again = ours(ids).logits
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, plain)


def test_gradient_checkpointing():
    eager, ours = built("mistral")
    ids, mask = prompts(LEFT)
    results = []
    for model, kinds in ((eager, [None]), (ours, [True, False])):
        for reentrant in kinds:
            model.train()
            if reentrant is not None:
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            results.append(gradients(model, model(ids, attention_mask=mask, use_cache=False).logits * mask[:, :, None]))
    for found in results[1:]:
        same_gradients(found, results[0])


def test_a_model_that_computes_with_its_mask_is_told():
    config = transformers.LongformerConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, attention_window=8
    )
    config._attn_implementation = "subquad"
    model = transformers.LongformerModel(config).eval()
    with pytest.raises(NotImplementedError, match="a mask that is a description"):
        model(torch.arange(3, 19).reshape(1, 16))


def test_weights_and_masks_of_the_callers_own_are_refused():
    _, ours = built("mistral")
    ids, _ = prompts()
    with pytest.raises(ValueError, match="output_attentions=True is not supported"):
        ours(ids, output_attentions=True)
    with pytest.raises(ValueError, match="is a mask of the caller's own"):
        ours(ids, attention_mask=torch.zeros(3, 1, PROMPT, PROMPT))


@pytest.mark.parametrize("name", ["calls", "interface", "mask_functions", "masks"])
def test_examples_run(name):
    module = importlib.import_module(f"subquad.transformers.{name}")
    assert module.__doc__
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
