"""PyTorch's autograd through a dense masked softmax: a second oracle, which shares no line with the first."""

from __future__ import annotations

import numpy as np
import pytest
from support import CASES, FLOAT32, FLOAT64, case, mask_of
from support_gradients import backward_inputs, gradients

torch = pytest.importorskip("torch", reason="torch is not installed")


def autograd(grad_out, grad_lse, query, key, value, mask, scale):
    """Gradients of sum(grad_out * out) + sum(grad_lse * lse), in float64, over the rows that see a key."""
    query, key, value, grad_out, grad_lse = (
        torch.tensor(array.astype(np.float64)) for array in (query, key, value, grad_out, grad_lse)
    )
    leaves = [x.requires_grad_() for x in (query, key, value)]
    group, seen = query.shape[0] // key.shape[0], torch.tensor(mask.any(axis=1))
    k, v = (x.repeat_interleave(group, dim=0) for x in (key, value))
    scores = (scale * query @ k.transpose(-1, -2)).masked_fill(~torch.tensor(mask), -torch.inf)[:, seen]
    loss = (torch.softmax(scores, dim=-1) @ v * grad_out[:, seen]).sum()
    loss = loss + (torch.logsumexp(scores, dim=-1) * grad_lse[:, seen]).sum()
    loss.backward()
    return [np.zeros(x.shape) if x.grad is None else x.grad.numpy() for x in leaves]


@pytest.mark.parametrize("scale", [0.3, -1.0])
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_autograd_agrees(rng, name, dtype, scale):
    grad_out, *arrays = backward_inputs(rng, 45, 63, 12, 9, (4,), (2,), dtype)
    grad_lse, pattern = rng.standard_normal((4, 45)).astype(dtype), case(name, 45, 63)
    grads = gradients(grad_out, *arrays, pattern, scale=scale, grad_lse=grad_lse)
    expected = autograd(grad_out, grad_lse, *arrays, mask_of(pattern, 45, 63), scale)
    tolerance = 100 * np.finfo(dtype).eps
    for grad, right in zip(grads, expected, strict=True):
        np.testing.assert_allclose(grad, right, rtol=tolerance, atol=10 * tolerance)
