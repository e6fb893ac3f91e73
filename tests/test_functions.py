"""Functions of the user's own: what they may hold, when they are compiled, their derivatives, and what goes wrong."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest
from numba import njit
from support_options import bend, leave_out

from subquad import Banded, Random, attention, attention_backward
from subquad.kernels import functions

WINDOW = Banded(4)
X = np.random.default_rng(7).standard_normal((2, 30, 4))


def run(pattern=WINDOW, **options):
    return attention(X, X, X, pattern, **options)


def test_plain_jitted_and_closed_over():
    factor, offsets = 0.25, np.linspace(0, 1, 30)

    def biased(score, b, h, i, j):
        return score * factor + offsets[j]

    expected = run(score_mod=biased)
    np.testing.assert_array_equal(run(score_mod=njit(biased)), expected)
    scores = 0.25 * 0.5 * np.einsum("hid,hjd->hij", X, X) + offsets
    near = abs(np.subtract.outer(range(30), range(30))) <= 4
    weights = np.where(near, np.exp(scores), 0)
    np.testing.assert_allclose(expected, weights / weights.sum(-1, keepdims=True) @ X, rtol=1e-12)


def test_documents_by_a_mask():
    documents = np.repeat([0, 1, 2], 10)
    found = run(mask_mod=lambda b, h, i, j: documents[i] == documents[j])
    for part in (slice(0, 10), slice(10, 20), slice(20, 30)):
        alone = X[:, part].copy()
        np.testing.assert_allclose(found[:, part], attention(alone, alone, alone, Banded(4)), rtol=0, atol=1e-14)


def test_compiled_once_for_a_function(monkeypatch):
    compiled, compile_one = [], functions._compile
    monkeypatch.setattr(functions, "_compile", lambda *args: (compiled.append(args), compile_one(*args))[1])

    def shifted(score, b, h, i, j):
        return score - 0.1 * j

    for n in (5, 17, 30):
        for pattern in (Banded(2), Random(3)):
            x = X[:, :n]
            attention(x, x, x, pattern, score_mod=shifted)
    assert len(compiled) == 1
    known = len(functions._compiled)
    del shifted
    compiled.clear()
    gc.collect()
    assert len(functions._compiled) < known  # what belongs to a function goes with it


def pieces(score, b, h, i, j):
    if score > 0.2:
        return math.exp(score / 4) + score**2 / (1 + abs(score))
    return max(score, -0.5) - min(0.5, score) * 0.3 + np.where(score > -0.3, score, -0.3)


def many(score, b, h, i, j):
    a = math.sin(score) + np.cos(score) - math.log(3.0 + score) + np.sqrt(score + 4) + np.abs(score)
    return a / (1.5 + np.tanh(score)) + (-score) * 0.1 + 2.0**score + np.maximum(score, 0) - np.exp2(score) * 0.2


def more(score, b, h, i, j):
    a = math.atan(score) + math.erf(score) + np.expm1(score / 3) + math.log1p(score**2) + np.square(score)
    return (a if math.isfinite(a) else 0.0) - (1 - score) / (2 + score**2) + 3 / (4 + np.exp(score)) - score


@pytest.mark.parametrize("function", [pieces, many, more, bend], ids=lambda f: f.__name__)
def test_derivatives(function):
    """Of one score, read from the gradient of lse: the derivative of the function, times that of the product."""
    for score in (-1.2, -0.4, 0.1, 0.7, 1.9):
        q, one = np.array([[score]]), np.ones((1, 1))
        out, lse = attention(q, one, one, scale=1.0, return_lse=True, score_mod=function)
        nothing, whole = np.zeros((1, 1)), np.ones(1)
        grad, *_ = attention_backward(
            nothing, q, one, one, out, lse, scale=1.0, grad_lse=whole, score_mod=function
        )  # fmt: skip
        h = 1e-4
        ahead, behind = (function(score + side * h, 0, 0, 0, 0) for side in (1, -1))
        np.testing.assert_allclose(grad[0, 0], (ahead - behind) / (2 * h), rtol=1e-6)
        np.testing.assert_allclose(lse[0], function(score, 0, 0, 0, 0), rtol=1e-14)


def test_a_score_mod_may_mask():
    def causal(score, b, h, i, j):
        return -math.inf if j > i else score

    def constant(score, b, h, i, j):
        return 1.0

    expected = run(Banded((4, 0)))
    np.testing.assert_allclose(run(score_mod=causal), expected, rtol=0, atol=1e-14)
    out, lse = attention(X, X, X, Banded(4), return_lse=True, score_mod=causal)
    grads = attention_backward(out, X, X, X, out, lse, Banded(4), score_mod=causal)
    theirs = attention_backward(out, X, X, X, out, lse, Banded((4, 0)))
    for grad, their in zip(grads, theirs, strict=True):
        np.testing.assert_allclose(grad, their, rtol=0, atol=1e-12)
    out, lse = attention(X, X, X, Banded(4), return_lse=True, score_mod=constant)
    grad_query, *_ = attention_backward(out, X, X, X, out, lse, Banded(4), score_mod=constant)
    assert not grad_query.any()


# --- what goes wrong --------------------------------------------------------------------------------------------------


def undefined(score, b, h, i, j):
    twice = 2 * score
    return twice + nowhere  # noqa: F821


def not_an_attribute(score, b, h, i, j):
    return score.numpy()


def text(score, b, h, i, j):
    return "high" if score > 0 else "low"


def no_rule(score, b, h, i, j):
    return math.gamma(score)


@pytest.mark.parametrize(
    ("function", "line", "reason"),
    [
        (undefined, "return twice + nowhere", "name 'nowhere' is not defined"),
        (not_an_attribute, "return score.numpy()", "numpy"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_what_does_not_compile_is_said_with_its_line(function, line, reason):
    with pytest.raises(TypeError) as caught:
        run(score_mod=function)
    message = str(caught.value)
    number = function.__code__.co_firstlineno + (2 if function is undefined else 1)
    assert f"score_mod cannot be compiled: line {number} of {__file__}" in message
    assert line in message
    assert reason in message
    assert "\n" not in message


def test_other_mistakes():
    out, lse = attention(X, X, X, Banded(4), return_lse=True)
    with pytest.raises(TypeError, match=r"score_mod must return a number; text returns"):
        run(score_mod=text)
    with pytest.raises(TypeError, match=r"has no derivative that is known: line \d+ of .*gamma"):
        attention_backward(out, X, X, X, out, lse, Banded(4), score_mod=no_rule)
    with pytest.raises(TypeError, match=r"mask_mod must take \(b, h, i, j\); bend takes \(score, b, h, i, j\)"):
        run(mask_mod=bend)
    with pytest.raises(TypeError, match=r"score_mod must take \(score, b, h, i, j\); leave_out takes"):
        run(score_mod=leave_out)
    with pytest.raises(TypeError, match="score_mod must be a function or None; got 3"):
        run(score_mod=3)
    with pytest.raises(TypeError, match="must be a Python function of"):
        run(score_mod=print)


BAD = [
    ({"softcap": 0}, ValueError, "softcap must be above 0"),
    ({"softcap": "high"}, TypeError, "softcap must be a real number"),
    ({"softcap": np.inf}, ValueError, "softcap must be above 0 and finite"),
    ({"alibi_slopes": [1.0]}, ValueError, r"alibi_slopes must hold one number for each head of query, shape \(2,\)"),
    ({"alibi_slopes": [1.0, np.nan]}, ValueError, "alibi_slopes must be finite; got nan for head 1"),
    ({"alibi_slopes": ["a", "b"]}, TypeError, "alibi_slopes must hold real numbers"),
    ({"sinks": [1.0, 2.0, 3.0]}, ValueError, "sinks must hold one number for each head"),
    ({"sinks": [np.inf, 0.0]}, ValueError, "sinks must be finite, or -inf for no sink; got inf for head 0"),
    ({"key_lengths": 31}, ValueError, r"key_lengths must be in \[0, 30\]; got 31"),
    ({"key_lengths": [1, 2]}, ValueError, r"one for each batch, shape \(1,\)"),
    ({"key_lengths": 2.5}, TypeError, "key_lengths must hold integers"),
    ({"key_starts": -1}, ValueError, r"key_starts must be in \[0, 30\]; got -1"),
    ({"q_offset": 1 << 60}, ValueError, "q_offset must be in"),
    ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\)"),
    ({"dropout": -0.1}, ValueError, r"dropout must be in \[0, 1\)"),
    ({"dropout": None}, TypeError, "dropout must be a real number"),
    ({"seed": -1}, ValueError, "seed must be an integer >= 0"),
    ({"soft_cap": 1.0}, TypeError, "no option 'soft_cap'; did you mean softcap"),
    ({"window": 1.0}, TypeError, "no option 'window'; there are softcap, "),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[str(bad[0]) for bad in BAD])
def test_bad_options(options, error, message):
    out = np.full_like(X, 7)
    with pytest.raises(error, match=message):
        attention(X, X, X, Banded(4), out=out, **options)
    assert (out == 7).all()
    with pytest.raises(error, match=message):
        attention_backward(X, X, X, X, X, X[..., 0], Banded(4), **options)
