"""Small models with weights that matter, and what is compared of them."""

from __future__ import annotations

import torch

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
