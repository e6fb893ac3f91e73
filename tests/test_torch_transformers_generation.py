"""Tokens that models generate on subquad, with every kind of cache. Oracle: the same model, eager."""

from __future__ import annotations

import inspect

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from support_transformers import GENERATORS, LEFT, PROMPT, RIGHT, built, prompts, same  # noqa: E402

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


def generated(model, padding, n, **options):
    """Tokens, and the scores that each was chosen by."""
    ids, mask = prompts(padding)
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0,
        output_logits=True, return_dict_in_generate=True, **options
    )  # fmt: skip
    assert out.sequences.shape == (3, PROMPT + n)
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("padding", [LEFT, RIGHT])
@pytest.mark.parametrize("name", GENERATORS)
def test_greedy_tokens(name, padding):
    eager, ours = built(name)
    expected, scores = generated(eager, padding, 64)
    found, our_scores = generated(ours, padding, 64)
    assert len(expected[:, PROMPT:].unique()) > 2
    assert torch.equal(found, expected)
    same(our_scores, scores, rtol=1e-4)


@pytest.mark.parametrize("name", GENERATORS)
def test_static_caches(name):
    eager, ours = built(name)
    expected, scores = generated(eager, LEFT, 20, cache_implementation="static")
    found, our_scores = generated(ours, LEFT, 20, cache_implementation="static")
    assert torch.equal(found, expected)
    same(our_scores, scores, rtol=1e-4)


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
    # from version 5.24 on the cache has another name
    name_of_cache = "cache" if "cache" in inspect.signature(ours.forward).parameters else "past_key_values"
    past, pieces = None, []
    for start, stop in ((0, 13), (13, 14), (14, 30)):
        given = {"attention_mask": mask[:, :stop], "use_cache": True, name_of_cache: past}
        out = ours(input_ids=ids[:, start:stop], **given)
        past = out[name_of_cache]
        pieces.append(out.logits)
    positions = mask.bool()
    # rotations count padding here as they do in the whole prompt: positions are those of the cache
    same(torch.cat(pieces, dim=1)[positions], whole[positions])
