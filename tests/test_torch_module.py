"""SparseMultiheadAttention against torch.nn.MultiheadAttention with the pattern as a mask."""

from __future__ import annotations

import copy

import pytest
from support import mask_of

from subquad import Banded, Causal, Global, Random

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn

from subquad.torch import SparseMultiheadAttention, attention  # noqa: E402

PATTERN = (Banded((5, 0)) | Global([0, 3])) & Causal()


def blocked(pattern, n_q, n_k):
    """The mask as torch.nn.MultiheadAttention wants it: True where attention is not allowed."""
    return ~torch.from_numpy(mask_of(pattern, n_q, n_k))


def pair(**options):
    """Ours, and theirs with the same weights."""
    theirs = nn.MultiheadAttention(24, 4, batch_first=options.get("batch_first", True), bias=options.get("bias", True))
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours = SparseMultiheadAttention(24, 4, PATTERN, **options)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", ["batch first", "batch second", "no batch"])
@pytest.mark.parametrize("inputs", ["self", "keys are values", "all different"])
def test_equals_multihead_attention(bias, layout, inputs):
    torch.manual_seed(0)
    ours, theirs = pair(bias=bias, batch_first=layout != "batch second")
    n_q, n_k = (20, 20) if inputs == "self" else (17, 20)

    def make(n):
        shape = {"batch first": (3, n, 24), "batch second": (n, 3, 24), "no batch": (n, 24)}[layout]
        return torch.randn(shape, requires_grad=True)

    query = make(n_q)
    key = query if inputs == "self" else make(n_k)
    value = key if inputs != "all different" else make(n_k)
    out, weights = ours(query, key, value)
    expected, _ = theirs(query, key, value, attn_mask=blocked(PATTERN, n_q, n_k), need_weights=False)
    assert weights is None
    assert out.shape == query.shape
    torch.testing.assert_close(out, expected, rtol=0, atol=5e-6)
    wanted = [query, *theirs.parameters()], [query, *ours.parameters()]
    for x, y in zip(*map(torch.autograd.grad, (expected.square().sum(), out.square().sum()), wanted), strict=True):
        torch.testing.assert_close(y, x, rtol=0, atol=3e-6 * float(x.abs().max()))  # sums of terms of that size


def test_state_dict_both_ways():
    ours, theirs = pair()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [x.shape for x in ours.parameters()] == [x.shape for x in theirs.parameters()]
    nn.MultiheadAttention(24, 4).load_state_dict(ours.state_dict())


def test_same_start_as_multihead_attention():
    torch.manual_seed(3)
    theirs = nn.MultiheadAttention(24, 4)
    torch.manual_seed(3)
    ours = SparseMultiheadAttention(24, 4, PATTERN)
    assert all(torch.equal(x, y) for x, y in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_grouped_query_heads():
    torch.manual_seed(0)
    module = SparseMultiheadAttention(24, 6, PATTERN, num_kv_heads=2)
    assert module.in_proj_weight.shape == (24 + 2 * 8, 24)
    x = torch.randn(2, 15, 24)
    projected = nn.functional.linear(x, module.in_proj_weight, module.in_proj_bias)
    query, key, value = (part.unflatten(-1, (-1, 4)).transpose(1, 2) for part in projected.split([24, 8, 8], -1))
    every_key, every_value = (part.repeat_interleave(3, dim=1) for part in (key, value))
    expected = nn.functional.scaled_dot_product_attention(
        query, every_key, every_value, attn_mask=~blocked(PATTERN, 15, 15)
    )
    expected = module.out_proj(expected.transpose(1, 2).flatten(-2))
    torch.testing.assert_close(module(x, x, x)[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_in_a_transformer_layer(training, grad):
    """In evaluation PyTorch's layer has a fast path of its own, which would attend densely."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.0, batch_first=True)
    reference = copy.deepcopy(layer).train(training)
    layer.self_attn = SparseMultiheadAttention(24, 4, PATTERN)
    layer.self_attn.load_state_dict(reference.self_attn.state_dict())
    layer.train(training)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    x = torch.randn(2, 30, 24)
    with torch.set_grad_enabled(grad):
        out, whole = layer(x), stack(x)
        expected = reference(x, src_mask=blocked(PATTERN, 30, 30))
        torch.testing.assert_close(out, expected, rtol=0, atol=5e-6)
        again = reference(expected, src_mask=blocked(PATTERN, 30, 30))
        torch.testing.assert_close(whole, again, rtol=0, atol=1e-5)


def test_autocast_and_copies():
    torch.manual_seed(0)
    module = SparseMultiheadAttention(24, 4, PATTERN)
    x = torch.randn(2, 12, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = module(x, x, x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), module(x, x, x)[0], rtol=0, atol=0.05)
    twin = copy.deepcopy(module)
    twin.pattern = Banded(1)
    assert module.pattern == PATTERN
    assert not torch.equal(twin(x, x, x)[0], module(x, x, x)[0])
    half = module.to(torch.bfloat16)
    assert half(*[x.bfloat16()] * 3)[0].dtype == torch.bfloat16


def test_repr():
    assert repr(SparseMultiheadAttention(24, 4, Banded(3), num_kv_heads=2)).startswith(
        "SparseMultiheadAttention(\n  24, 4, Banded(3), num_kv_heads=2, batch_first=True\n"
    )


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"embed_dim": 25}, ValueError, "embed_dim must be a multiple of num_heads = 4; got 25"),
        ({"num_kv_heads": 3}, ValueError, "num_heads must be a multiple of num_kv_heads = 3; got 4"),
        ({"num_heads": 0}, ValueError, "num_heads must be an integer >= 1; got 0"),
        ({"dropout": 0.1}, ValueError, "dropout of attention weights is not supported; got 0.1"),
        ({"num_threads": 0}, ValueError, "num_threads must be an integer >= 1"),
        ({"pattern": "Banded(3)"}, TypeError, "pattern must be a subquad pattern"),
        ({"add_zero_attn": True}, TypeError, "add_zero_attn"),
    ],
)
def test_construction_refuses(options, error, words):
    with pytest.raises(error) as caught:
        SparseMultiheadAttention(**{"embed_dim": 24, "num_heads": 4, "pattern": PATTERN} | options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key_padding_mask": torch.zeros(2, 9, dtype=torch.bool)}, "key_padding_mask is not supported"),
        ({"attn_mask": torch.zeros(9, 9)}, "attn_mask is not supported: the pattern says"),
        ({"is_causal": True}, "is_causal=True is not supported: give the module a causal pattern"),
        ({"need_weights": True}, "need_weights=True is not supported; subquad.attention_weights"),
        ({"key": torch.zeros(2, 9, 23)}, "key must have shape (n, embed_dim) or a batch of it, with embed_dim = 24"),
        ({"key": torch.zeros(3, 9, 24), "value": torch.zeros(3, 9, 24)}, "key must have query's batch size 2"),
        ({"value": torch.zeros(2, 8, 24)}, "value must match key"),
    ],
)
def test_call_refuses(options, words):
    module, x = SparseMultiheadAttention(24, 4, PATTERN), torch.zeros(2, 9, 24)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the words follow
        module(**{"query": x, "key": x, "value": x} | options)
    assert words in str(caught.value)


def test_refuses_another_device():
    module, x = SparseMultiheadAttention(24, 4, Random(2, 0), device="meta"), torch.zeros(2, 9, 24, device="meta")
    with pytest.raises(ValueError, match="query must be on the CPU; got device meta"):
        module(x, x, x)


def test_way_out_for_padding():
    """What the message about key_padding_mask says."""
    module, n, length = SparseMultiheadAttention(24, 4, PATTERN), 12, 7
    x = torch.randn(1, n, 24)
    padding = torch.arange(n)[None] >= length
    _, theirs = pair()
    theirs.load_state_dict(module.state_dict())
    module.pattern = PATTERN - Global(range(length, n), rows=False)
    mask = blocked(PATTERN, n, n)
    expected, _ = theirs(x, x, x, attn_mask=mask, key_padding_mask=padding, need_weights=False)
    torch.testing.assert_close(module(x, x, x)[0][:, :length], expected[:, :length], rtol=0, atol=1e-6)
    assert attention(x, x, x, PATTERN).shape == x.shape
