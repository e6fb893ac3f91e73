"""Small models with weights that matter, and what is compared of them."""

from __future__ import annotations

import copy

import torch
import transformers

#: Of what a model computes in float32: rounding of sums in another order, grown by a few layers.
ROUNDING = 2e-5


def widened(model, seed=0, std=0.3):
    """The model, its weights drawn widely enough that attention is far from an average."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or "sinks" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model


def gradients(model, output, seed=1):
    """The gradient of every parameter of a weighted sum of the output."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)).to(output.dtype)
    model.zero_grad(set_to_none=True)
    (output * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same_gradients(found, expected, rtol=ROUNDING):
    """Each within rounding of the largest of its kind: a bias of keys has a gradient of 0, and rounding alone."""
    assert found.keys() == expected.keys()
    largest = max(grad.abs().max().item() for grad in expected.values())
    for name, grad in expected.items():
        scale = max(grad.abs().max().item(), largest * 1e-2)
        assert (found[name] - grad).abs().max().item() <= rtol * scale, name


def same(found, expected, rtol=ROUNDING):
    assert found.shape == expected.shape
    assert (found - expected).abs().max().item() <= rtol * max(1.0, expected.abs().max().item())


# --- models that generate --------------------------------------------------------------------------------------------

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
    "llama": {"sliding_window": None},
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
