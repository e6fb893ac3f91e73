"""Longformer and BigBird on subquad. Oracles: Hugging Face's own layers, and dense attention with a mask."""

from __future__ import annotations

import copy
import doctest
import importlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from support_transformers import gradients, same, same_gradients, widened  # noqa: E402

from subquad.transformers import convert, from_config, restore  # noqa: E402

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def longformer(**changes):
    config = transformers.LongformerConfig(
        **SMALL | {"attention_window": [8, 16], "max_position_embeddings": 128} | changes
    )
    torch.manual_seed(0)
    return widened(transformers.LongformerModel(config)).eval()


def big_bird(**changes):
    config = transformers.BigBirdConfig(
        **SMALL | {"block_size": 4, "num_random_blocks": 1, "max_position_embeddings": 128} | changes
    )
    torch.manual_seed(0)
    return widened(transformers.BigBirdModel(config)).eval()


def ids(batch, n, seed=0):
    return torch.randint(3, 64, (batch, n), generator=torch.Generator().manual_seed(seed))


def masked(batch, n, *places):
    """A mask of ones with zeros at the given slices of each element."""
    mask = torch.ones(batch, n, dtype=torch.long)
    for element, place in enumerate(places):
        for one in place:
            mask[element, one] = 0
    return mask


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()


# --- Longformer -------------------------------------------------------------------------------------------------------

S = slice
#: Batches of 4 elements and 70 tokens, more than four of the wider window: what is masked, and what is global.
BATCHES = {
    "nothing": ((), ()),
    "one global token": ((), ([0], [0], [0], [0])),
    "global tokens of each element": ((), ([0], [3, 4, 69], [], [0, 35])),
    "many global tokens": ((), (range(12), range(0, 70, 7), [], range(60, 70))),  # their keys are projected
    "padded to the right": (([S(50, None)], [], [S(1, None)], [S(33, None)]), ([0], [0], [0], [0])),
    "padded to the left": (([S(0, 20)], [], [S(0, 69)], [S(0, 33)]), ([20], [5], [69], [33, 40])),
    "holes": (([S(10, 14), S(60, None)], [S(30, 31)], [S(0, 4), S(40, 44)], []), ([0, 20], [], [5], [1])),
    "global tokens that are masked": (([S(5, 6)], [], [], []), ([5, 6], [1], [1], [1])),
}


@pytest.mark.parametrize("name", BATCHES)
def test_longformer_computes_the_same(name):
    places, tokens = BATCHES[name]
    model, n = longformer(), 70
    mask, of_all = masked(4, n, *places), torch.zeros(4, n, dtype=torch.long)
    for element, chosen in enumerate(tokens):
        of_all[element, list(chosen)] = 1
    given = {"attention_mask": mask, "global_attention_mask": of_all}

    def run():
        out = model(ids(4, n), **given).last_hidden_state
        return out.detach(), gradients(model, out * mask[:, :, None])

    expected, expected_grads = run()
    convert(model)
    found, grads = run()
    same(found[mask == 1], expected[mask == 1])
    same_gradients(grads, expected_grads)


def test_a_longformer_with_a_head_trains_alike():
    config = transformers.LongformerConfig(**SMALL | {"attention_window": 8, "max_position_embeddings": 128})
    torch.manual_seed(0)
    model = widened(transformers.LongformerForMaskedLM(config)).train()
    other = convert(copy.deepcopy(model))
    x = ids(2, 40)
    losses = []
    for one in (model, other):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.01)
        steps = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = one(x, labels=x).loss
            loss.backward()
            optimizer.step()
            steps.append(loss.item())
        losses.append(steps)
    assert losses[0][0] > losses[0][-1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_a_layer_alone():
    layer = longformer().encoder.layer[0].attention.self
    x = torch.randn(2, 24, 32, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(2, 24)
    mask[0, 20:], mask[1, 3] = -1e4, 1e4
    flags = {"is_index_masked": mask < 0, "is_index_global_attn": mask > 0, "is_global_attn": True}
    expected = layer(x, attention_mask=mask, **flags)[0]
    same(convert(layer)(x, attention_mask=mask, **flags)[0], expected)
    nowhere = torch.zeros(2, 24, dtype=torch.bool)
    expected = restore(layer)(x, torch.zeros(2, 24), nowhere, nowhere, False)[0]
    same(convert(layer)(x)[0], expected)


@pytest.mark.parametrize("n_global", [1, 6])  # rows in the width of the model; keys projected first
def test_longformer_drops_weights_by_the_generator(n_global):
    layer = convert(
        longformer(attention_probs_dropout_prob=0.4, attention_window=[8, 8]).encoder.layer[0].attention.self
    )
    x, mask = torch.randn(1, 16, 32), torch.zeros(1, 16)
    mask[0, :n_global] = 1e4
    with torch.no_grad():
        plain = layer(x, mask)[0]
        layer.train()
        torch.manual_seed(1)
        draws = torch.cat([layer(x, mask)[0] for _ in range(600)])
        torch.manual_seed(1)
        assert torch.equal(layer(x, mask)[0], draws[:1])
    assert not torch.equal(draws[0], draws[1])
    spread = draws.std(dim=0) / 600**0.5
    assert ((draws.mean(dim=0) - plain[0]).abs() < 6 * spread + 1e-6).all()  # kept weights are scaled up


def test_the_mask_of_the_model_is_a_row(monkeypatch):
    model = convert(longformer())
    seen = []
    encoder_forward = type(model.encoder).forward

    def look_on(self, hidden_states, attention_mask=None, **kwargs):
        seen.append(attention_mask)
        return encoder_forward(self, hidden_states, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(type(model.encoder), "forward", look_on)
    model(ids(2, 64), attention_mask=masked(2, 64, [S(60, None)]))
    assert seen[0].untyped_storage().nbytes() == 2 * 64 * 4


# --- BigBird ----------------------------------------------------------------------------------------------------------


def test_big_bird_computes_the_same_where_block_0_is_padding():
    # then what the model counts several times is masked, and each block is there once
    model, x = big_bird(), ids(3, 45)
    mask = masked(3, 45, [S(0, 4)], [S(0, 6), S(30, None)], [S(0, 11), S(20, 22)])

    def run():
        out = model(x, attention_mask=mask).last_hidden_state
        return out.detach(), gradients(model, out * mask[:, :, None])

    expected, expected_grads = run()
    convert(model)
    found, grads = run()
    same(found[mask == 1], expected[mask == 1])
    same_gradients(grads, expected_grads)


def test_big_bird_counts_block_0_once():
    model, x = big_bird(num_random_blocks=3), ids(1, 60)
    theirs = model(x).last_hidden_state
    ours = convert(model)(x).last_hidden_state
    assert (theirs - ours).abs().max().item() > 0.01


@pytest.mark.parametrize("n", [48, 36])
def test_big_bird_trains_with_the_random_blocks_that_the_model_draws(n):
    # none of these lies in the window or a global block, so the model counts each block once here
    model = big_bird(num_random_blocks=1 if n == 36 else 2).train()
    x = ids(2, n)

    def run():
        out = model(x).last_hidden_state
        return out.detach(), gradients(model, out)

    expected, expected_grads = run()
    state = np.random.get_state()[1].tolist()  # noqa: NPY002
    convert(model)
    found, grads = run()
    same(found, expected)
    same_gradients(grads, expected_grads)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002
    assert (model.eval()(x).last_hidden_state - found).abs().max().item() > 0.01


def test_big_bird_at_inference_is_dense_attention_with_the_mask_of_its_pattern():
    model = convert(big_bird(num_random_blocks=3))
    layer, x = model.encoder.layer[1].attention.self, torch.randn(2, 64, 32)
    there = masked(2, 64, [S(50, None)], [S(8, 9)])
    rows, keys = np.arange(64)[:, None], np.arange(64)[None, :]
    mask = torch.tensor(from_config(model.config, 1).contains(rows, keys, 64, 64))
    mask = mask & (there[:, None, None, :] == 1) & (there[:, None, :, None] == 1)
    heads = [p(x).unflatten(-1, (4, 8)).transpose(1, 2) for p in (layer.query, layer.key, layer.value)]
    scores = (heads[0] @ heads[1].mT * 8**-0.5).masked_fill(~mask, -torch.inf)
    expected = scores.softmax(-1).nan_to_num(0) @ heads[2]
    found, weights = layer(x, to_mask=there[:, None, None, :].float())
    assert weights is None
    same(found, expected.transpose(1, 2).flatten(2))


def test_big_bird_is_full_attention_where_its_blocks_are_everything():
    full = big_bird(attention_type="original_full").encoder.layer[0].attention.self
    sparse = convert(big_bird(num_random_blocks=3).encoder.layer[0].attention.self)
    sparse.load_state_dict(full.state_dict())
    x = torch.randn(2, 16, 32)  # four blocks: the first, the last and the two between see one another
    same(sparse(x)[0], full(x)[0])


def test_random_blocks_of_the_sizes_of_the_paper():
    layer = big_bird(block_size=64, num_random_blocks=3, max_position_embeddings=4096).encoder.layer[1].attention.self
    convert(layer).train()
    layouts = layer._random_layouts(1024)
    assert len(layouts) == 4
    assert all(layout.sum(1).tolist() == [0, *[3] * 14, 0] for layout in layouts)
    assert layer._random_layouts(1024)[0] is layouts[0]
    x = torch.randn(1, 1024, 32)
    assert layer(x)[0].shape == (1, 1024, 32)


# --- in place, and back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [longformer, big_bird])
def test_conversion_is_in_place_and_undone(build):
    model, x = build(), ids(1, 48)
    expected, state = model(x).last_hidden_state, {name: p.data_ptr() for name, p in model.named_parameters()}
    before, names = model.config._attn_implementation, list(model.state_dict())
    classes = [type(module) for module in model.modules()]
    assert convert(model) is model
    assert [type(module) for module in model.modules()] != classes
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == state
    assert list(convert(model).state_dict()) == names
    assert restore(model) is model
    assert [type(module) for module in model.modules()] == classes
    assert model.config._attn_implementation == before
    assert torch.equal(model(x).last_hidden_state, expected)
    assert restore(model) is model


@pytest.mark.parametrize("build", [longformer, big_bird])
def test_copies_of_a_converted_model_work(build, tmp_path):
    model, x = build(), ids(1, 48)
    original = model(x).last_hidden_state
    expected = convert(model)(x).last_hidden_state
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x).last_hidden_state, expected)
        same(restore(other)(x).last_hidden_state, original)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert not any(type(module).__name__.startswith("Sparse") for module in loaded.modules())
    same(loaded(x).last_hidden_state, original)


def test_forward_hooks_stay():
    model, calls = longformer(), []
    model.encoder.layer[0].attention.self.register_forward_hook(lambda *args: calls.append(1))
    convert(model)(ids(1, 16))
    assert calls == [1]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [longformer, big_bird])
def test_weights_are_refused(build):
    model = convert(build())
    with pytest.raises(ValueError, match="output_attentions=True is not supported"):
        model(ids(1, 48), output_attentions=True)


def test_weights_that_a_config_asks_for_are_refused():
    model = convert(big_bird())
    model.config.output_attentions = True
    with pytest.raises(ValueError, match="output_attentions=True is not supported"):
        model(ids(1, 48))


def test_models_without_such_layers_are_refused():
    config = transformers.BertConfig(**SMALL)
    with pytest.raises(ValueError, match=r"BertModel has neither.*register"):
        convert(transformers.BertModel(config))
    with pytest.raises(ValueError, match=r"attends fully.*set_attention_type\('block_sparse'\)"):
        convert(big_bird(attention_type="original_full"))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn.Module; got str"):
        convert("longformer")
    with pytest.raises(TypeError, match=r"model must be a torch\.nn.Module; got NoneType"):
        restore(None)


def test_what_is_missing_is_told_by_the_extra():
    program = (
        "import sys; sys.modules[{name!r}] = None\n"
        "import subquad.transformers as ours\n"
        "ours.from_config\n"
        "try: ours.{call}\n"
        "except ImportError as error: print(error)\n"
    )
    for name in ("torch", "transformers"):
        for call in ("register", "convert"):
            done = subprocess.run(
                [sys.executable, "-c", program.format(name=name, call=call)], capture_output=True, text=True, check=True
            )
            assert done.stdout == f'subquad.transformers needs {name}: pip install "subquad[transformers]"\n'


def test_a_length_that_is_no_multiple_of_the_block_is_refused():
    layer = convert(big_bird().encoder.layer[0].attention.self)
    with pytest.raises(ValueError, match="a multiple of block_size = 4 tokens; got 30"):
        layer(torch.randn(1, 30, 32))


@pytest.mark.parametrize("name", ["configs", "conversion", "big_bird", "longformer", "needs", "padding"])
def test_examples_run(name):
    module = importlib.import_module(f"subquad.transformers.{name}")
    assert module.__doc__
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
