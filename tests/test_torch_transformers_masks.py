"""Masks as descriptions. Oracle: the boolean mask that Hugging Face itself makes of the same arguments."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from transformers import masking_utils as hf  # noqa: E402
from transformers.models.gemma3 import modeling_gemma3 as gemma3  # noqa: E402

from subquad import Banded, Causal, Dense, Global, Packed  # noqa: E402
from subquad.patterns.base import Shape  # noqa: E402
from subquad.transformers import register  # noqa: E402
from subquad.transformers.interface import attend  # noqa: E402
from subquad.transformers.masks import MaskTensor, describe  # noqa: E402


def pairs(mask):
    """The pairs of a description, (batch, n_q, n_k)."""
    rows, keys = np.broadcast_arrays(np.arange(mask.n_q)[:, None], np.arange(mask.n_k)[None, :])
    dense = np.zeros((mask.batch, mask.n_q, mask.n_k), bool)
    for pattern, members in mask.parts:
        shape = Shape(mask.n_q, mask.n_k, mask.q_offset)
        pattern._validate(shape)
        dense[list(members)] = pattern._contains(rows, keys, shape)
    for limit, compare in ((mask.key_starts, np.greater_equal), (mask.key_lengths, np.less)):
        if limit is not None:
            dense &= compare(keys, limit.numpy()[:, None, None])
    return dense


def same_as_theirs(function, batch, n_q, n_k, q_offset=0, kv_offset=0, attention_mask=None):
    sizes = {"batch_size": batch, "q_length": n_q, "kv_length": n_k, "q_offset": q_offset, "kv_offset": kv_offset}
    theirs = hf.sdpa_mask(
        **sizes, mask_function=function, attention_mask=attention_mask, allow_is_causal_skip=False, use_vmap=False
    )
    ours = describe(**sizes, mask_function=function, attention_mask=attention_mask).mask
    np.testing.assert_array_equal(pairs(ours), theirs.expand(batch, 1, n_q, n_k)[:, 0].numpy())
    return ours


FUNCTIONS = {
    "causal": hf.causal_mask_function,
    "window": hf.sliding_window_causal_mask_function(4),
    "window of one": hf.sliding_window_causal_mask_function(1),
    "both ways": hf.bidirectional_mask_function,
    "window both ways": hf.sliding_window_bidirectional_mask_function(3),
    "gemma 3, embedding": hf.or_masks(
        hf.sliding_window_causal_mask_function(4), gemma3._bidirectional_window_overlay(4)
    ),
    "window and then causal": hf.and_masks(hf.causal_mask_function, hf.sliding_window_overlay(5)),
}


@given(
    st.sampled_from(sorted(FUNCTIONS)),
    st.integers(1, 9),
    st.integers(0, 12),
    st.integers(0, 5),
    st.integers(0, 4),
    st.data(),
)
def test_masks_with_caches_and_padding(name, n_q, past, unused, dropped, data):
    """Keys before the queries, the first dropped by a sliding cache, and slots that a static one has not filled."""
    dropped = min(dropped, past)
    n_k = past + n_q + unused - dropped
    mask = None
    if data.draw(st.booleans()):
        length = data.draw(st.sampled_from([past + n_q, past + n_q + unused]))
        bits = data.draw(st.lists(st.booleans(), min_size=3 * length, max_size=3 * length))
        mask = torch.tensor(bits, dtype=torch.bool).reshape(3, length)
    same_as_theirs(FUNCTIONS[name], 3, n_q, n_k, past, dropped, mask)


def test_masks_are_the_patterns_one_would_write():
    def pattern(name, *sizes):
        return describe(1, *sizes, mask_function=FUNCTIONS[name]).mask.parts[0][0]

    assert pattern("causal", 9, 9) == Causal()
    assert pattern("window", 9, 9) == Banded((3, 0))
    assert pattern("window and then causal", 9, 9) == Banded((4, 0))
    assert pattern("both ways", 9, 9) == Dense()
    assert pattern("window both ways", 9, 9) == Banded(3)
    assert pattern("gemma 3, embedding", 9, 9) == Banded(3)


def test_padding_is_two_numbers_for_each_element():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    found = describe(4, 5, 5, attention_mask=mask).mask
    assert found.parts == ((Causal(), (0, 1, 2, 3)),)
    assert found.key_starts.tolist() == [2, 0, 0, 0]
    assert found.key_lengths.tolist() == [5, 3, 5, 0]
    holes = describe(2, 5, 5, attention_mask=torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)).mask
    assert dict(holes.parts) == {Causal() - Global([1], rows=False): (0,), Causal(): (1,)}
    everywhere = describe(2, 5, 5, attention_mask=torch.ones(2, 5, dtype=torch.bool)).mask
    assert everywhere.key_starts is None
    assert everywhere.key_lengths is None


@pytest.mark.parametrize("left", [(0, 0), (2, 0), (5, 9)])
@pytest.mark.parametrize(("n_q", "past", "dropped"), [(11, 0, 0), (1, 10, 0), (1, 10, 7), (2, 9, 3)])
def test_chunks(left, n_q, past, dropped):
    mask = torch.ones(2, past + n_q, dtype=torch.bool)
    for element, n in enumerate(left):
        mask[element, :n] = False
    function = hf.chunked_causal_mask_function(4, torch.tensor(left))
    try:
        same_as_theirs(function, 2, n_q, past + n_q - dropped, past, dropped, mask)
    except ValueError as error:
        assert "needs its new tokens in one chunk of 4; got 2 tokens" in str(error)  # noqa: PT017
        assert (n_q, past) == (2, 9)
        assert any((9 - n) // 4 != (10 - n) // 4 and (dropped - n) % 4 for n in left)


def packed(function, positions, ids):
    """A mask of several sequences in one, as the library joins it."""
    remapped = hf.remap_positions_for_packed_sequence(function, positions)
    return hf.and_masks(hf.packed_sequence_mask_function(ids), remapped)


def test_packed_positions():
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 12]])
    ids = hf.find_packed_sequence_indices(positions)
    for inner in ("causal", "window", "window both ways", "both ways"):
        function = packed(FUNCTIONS[inner], positions, ids)
        found = same_as_theirs(function, 2, 9, 9)
        assert found.packed
    chunked = hf.chunked_causal_mask_function(3, torch.zeros(2, dtype=torch.int64))
    same_as_theirs(packed(chunked, positions, ids), 2, 9, 9)
    windowed = packed(FUNCTIONS["window"], positions, ids)
    assert describe(2, 9, 9, mask_function=windowed).mask.parts[0][0] == Packed([3, 2, 4]) & Banded((3, 0))


def test_blocks_of_images():
    blocks = torch.tensor([[-1, 0, 0, 0, -1, -1, 1, 1, -1], [-1] * 9])
    function = hf.or_masks(hf.causal_mask_function, hf.blockwise_overlay(blocks))
    same_as_theirs(function, 2, 9, 9)
    windowed = hf.and_masks(function, hf.sliding_window_overlay(3))
    same_as_theirs(windowed, 2, 9, 9)
    # after the images a cache is read token by token
    same_as_theirs(function, 2, 1, 9, 8)
    with pytest.raises(ValueError, match="need as many queries as keys; got 3 queries and 9 keys"):
        describe(2, 3, 9, q_offset=6, mask_function=function)


def test_segments_that_come_back_are_refused():
    ids = torch.tensor([[0, 0, 1, 1, 0]])
    with pytest.raises(ValueError, match="must be neighbours; one comes back"):
        describe(1, 5, 5, mask_function=hf.and_masks(hf.causal_mask_function, hf.packed_sequence_mask_function(ids)))


def test_a_function_that_allows_everything_is_recognised():
    function = hf.or_masks(hf.causal_mask_function, lambda *args: torch.tensor(True, dtype=torch.bool))
    assert describe(1, 5, 5, mask_function=function).mask.parts == ((Dense(), (0,)),)


def my_own_mask(batch_idx, head_idx, q_idx, kv_idx):
    return (q_idx + kv_idx) % 2 == 0


def nothing(batch_idx, head_idx, q_idx, kv_idx):
    return torch.tensor(False)


@pytest.mark.parametrize("function", [my_own_mask, nothing, print, hf.and_masks(hf.causal_mask_function, my_own_mask)])
def test_other_functions_are_refused_by_name(function):
    name = function.__name__ if function.__name__ != "and_mask" else "my_own_mask"
    with pytest.raises(ValueError, match=rf"does not know the mask function .*{name}"):
        describe(1, 5, 5, mask_function=function)


def test_a_mask_carries_no_numbers():
    mask = describe(2, 1000, 100_000_000, q_offset=5)
    assert isinstance(mask, torch.Tensor)
    assert mask.shape == (2, 1, 1000, 100_000_000)
    assert mask.dtype == torch.bool
    for passed_on in (mask.detach(), mask.clone(), mask.to("cpu")):
        assert passed_on.mask == mask.mask
    for use in (lambda: mask[:, :, :, :5], lambda: mask + 1, lambda: mask.float(), lambda: torch.where(mask, 0, 1)):
        with pytest.raises(NotImplementedError, match="a mask that is a description, not n x n numbers"):
            use()
    assert "q_offset=5" in repr(mask)


# --- the attention function alone -------------------------------------------------------------------------------------

Q = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
K, V = (torch.randn(2, 2, 6, n, generator=torch.Generator().manual_seed(n)) for n in (8, 5))


class Layer(torch.nn.Module):
    is_causal = True


def theirs(mask, q=Q, k=K, v=V):
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return out.transpose(1, 2)


def lower(n, left, right=0):
    distance = torch.arange(n)[:, None] - torch.arange(n)[None, :]
    return (distance <= left) & (distance >= -right)


def test_without_a_mask_the_layer_says_what_is_causal():
    layer = Layer()
    found, weights = attend(layer, Q, K, V, None)
    assert weights is None
    assert found.is_contiguous()
    torch.testing.assert_close(found, theirs(lower(6, 9)))
    torch.testing.assert_close(attend(layer, Q, K, V, None, is_causal=False)[0], theirs(None))
    torch.testing.assert_close(attend(layer, Q, K, V, None, sliding_window=3)[0], theirs(lower(6, 2)))
    both = attend(layer, Q, K, V, None, sliding_window=3, is_causal=False)[0]
    torch.testing.assert_close(both, theirs(lower(6, 2, 2)))
    layer.is_causal = False
    torch.testing.assert_close(attend(layer, Q, K, V, None)[0], theirs(None))
    torch.testing.assert_close(attend(torch.nn.Module(), Q, K, V, None)[0], theirs(lower(6, 9)))
    one = attend(Layer(), Q[:, :, -1:], K, V, None)[0]
    torch.testing.assert_close(one, theirs(lower(6, 9))[:, -1:])


def test_a_row_of_padding_is_honoured():
    row = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    row[0, ..., 4:], row[1, ..., [0, 3]] = False, False
    torch.testing.assert_close(attend(Layer(), Q, K, V, row)[0], theirs(row))
    numbers = torch.zeros(row.shape).masked_fill(~row, torch.finfo(torch.float32).min)
    torch.testing.assert_close(attend(Layer(), Q, K, V, numbers)[0], theirs(row))
    torch.testing.assert_close(attend(Layer(), Q, K, V, row[1:])[0], theirs(row[1:].expand(2, 1, 1, 6)))


def test_dropout_follows_the_generator():
    torch.manual_seed(3)
    first = attend(Layer(), Q, K, V, None, dropout=0.5)[0]
    second = attend(Layer(), Q, K, V, None, dropout=0.5)[0]
    torch.manual_seed(3)
    assert torch.equal(attend(Layer(), Q, K, V, None, dropout=0.5)[0], first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("mask", "given", "message"),
    [
        (torch.ones(2, 1, 6, 6, dtype=torch.bool), {}, r"shape \(2, 1, 6, 6\) is a mask of the caller's own"),
        (torch.zeros(2, 1, 6, 6), {}, r"shape \(2, 1, 6, 6\) is a mask of the caller's own"),
        (torch.ones(2, 6), {}, r"shape \(2, 6\) is a mask of the caller's own"),
        (torch.full((2, 1, 1, 6), -0.5), {}, "a bias is not supported"),
        (None, {"position_bias": torch.zeros(1, 4, 6, 6)}, "position_bias of Layer is not supported"),
        (None, {"cache": object()}, "cache of Layer is not supported.*paged"),
        (None, {"head_mask": torch.ones(4)}, "head_mask of Layer is not supported"),
        (None, {"sinks": torch.ones(4)}, "sinks of Layer is not supported"),
        (None, {"output_attentions": True}, "output_attentions=True is not supported"),
        (None, {"sliding_window": 0}, "sliding_window must be at least 1; got 0"),
        (describe(2, 6, 7), {}, r"made for \(batch, queries, keys\) = \(2, 6, 7\); the layer has \(2, 6, 6\)"),
        (
            describe(2, 6, 6),
            {"cu_seq_lens_q": torch.tensor([0, 3, 6])},
            "cu_seq_lens_q must come with packed position_ids",
        ),
    ],
)
def test_what_is_not_supported_is_refused_by_name(mask, given, message):
    with pytest.raises(ValueError, match=message):
        attend(Layer(), Q, K, V, mask, **given)


def test_queries_whose_place_is_unknown_are_refused():
    with pytest.raises(ValueError, match="attention_mask must be given for 3 queries and 6 keys"):
        attend(Layer(), Q[:, :, :3], K, V, None)


def test_registering_twice_changes_nothing():
    register()
    register()
    assert transformers.AttentionInterface()["subquad"] is attend
    assert transformers.AttentionMaskInterface()["subquad"] is describe
    assert isinstance(hf.ALL_MASK_ATTENTION_FUNCTIONS["subquad"](1, 3, 3), MaskTensor)
