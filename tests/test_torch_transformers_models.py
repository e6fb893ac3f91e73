"""Whole models on subquad, built small and at random. Oracle: the same model, eager."""

from __future__ import annotations

import copy
import doctest
import importlib

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from support_transformers import (  # noqa: E402
    GENERATORS,
    HOLES,
    LEFT,
    PROMPT,
    RIGHT,
    WINDOW,
    built,
    gradients,
    prompts,
    same,
    same_gradients,
    widened,
)

from subquad.transformers import register  # noqa: E402

register()


@pytest.fixture(autouse=True)
def small():
    """No warnings of the library's own, and one thread: others would only wait for each other."""
    transformers.logging.set_verbosity_error()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
                model.activation_checkpointing_enable({"use_reentrant": reentrant})
            results.append(gradients(model, model(ids, attention_mask=mask, use_cache=False).logits * mask[:, :, None]))
    for found in results[1:]:
        same_gradients(found, results[0])


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, about graphs that break at the attention
def test_a_compiled_model_follows_each_mask():
    eager, ours = built("gemma2", num_hidden_layers=1)
    compiled = torch.compile(ours, backend="eager")
    for padding in (LEFT, RIGHT, None):
        ids, mask = prompts(padding)
        with torch.no_grad():
            found, expected = (model(ids, attention_mask=mask).logits for model in (compiled, eager))
        same(found[mask == 1], expected[mask == 1])
    torch.compiler.reset()


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
