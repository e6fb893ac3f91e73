"""NATTEN's operators. Oracle: every window gone through, query by query, in float64."""

from __future__ import annotations

import doctest
import importlib
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from test_neighborhood import brute_force, window_of

torch = pytest.importorskip("torch", reason="torch is not installed")

from subquad import natten  # noqa: E402

FUSED = {1: natten.na1d, 2: natten.na2d, 3: natten.na3d}
QK = {1: natten.na1d_qk, 2: natten.na2d_qk, 3: natten.na3d_qk}
AV = {1: natten.na1d_av, 2: natten.na2d_av, 3: natten.na3d_av}
#: shape, kernel_size, dilation, is_causal, stride
CASES = [
    ((11,), (5,), (1,), (False,), (1,)),
    ((13,), (4,), (3,), (False,), (1,)),
    ((13,), (4,), (2,), (True,), (1,)),
    ((7, 9), (3, 5), (1, 1), (False, False), (1, 1)),
    ((8, 7), (3, 2), (2, 3), (True, False), (1, 1)),
    ((6, 9), (4, 3), (1, 2), (False, True), (3, 2)),
    ((3, 4, 5), (2, 3, 3), (1, 1, 1), (False, False, False), (1, 1, 1)),
    ((4, 5, 4), (2, 2, 3), (2, 1, 1), (True, False, True), (1, 2, 1)),
]
NAMES = ["-".join(str(part) for part in case).replace(" ", "") for case in CASES]


def drawn(*shape, seed=0, dtype=torch.float64):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.to(dtype).requires_grad_()


def dense(query, key, value, mask, scale, more=None):
    """Attention of (batch, n, heads, d) with a mask, by softmax of all scores."""
    group = query.shape[2] // key.shape[2]
    q = query.transpose(1, 2)
    k, v = (x.repeat_interleave(group, dim=2).transpose(1, 2) for x in (key, value))
    scores = (q @ k.mT * scale).masked_fill(~mask, -torch.inf)
    if more is not None:
        k, v2 = (x.repeat_interleave(group, dim=2).transpose(1, 2) for x in more)
        scores, v = torch.cat((scores, q @ k.mT * scale), dim=-1), torch.cat((v, v2), dim=2)
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1).transpose(1, 2)


@pytest.mark.parametrize(("shape", "kernel_size", "dilation", "is_causal", "stride"), CASES, ids=NAMES)
@pytest.mark.parametrize("extra", [False, True])
def test_fused_operators(shape, kernel_size, dilation, is_causal, stride, extra):
    n = math.prod(shape)
    query, key, value = drawn(2, *shape, 4, 6), drawn(2, *shape, 2, 6, seed=1), drawn(2, *shape, 2, 3, seed=2)
    more = (drawn(2, 5, 2, 6, seed=3), drawn(2, 5, 2, 3, seed=4)) if extra else None
    given = {"additional_keys": more[0], "additional_values": more[1]} if extra else {}
    out, lse = FUSED[len(shape)](
        query, key, value, kernel_size, stride, dilation, is_causal, 0.7, return_lse=True, **given
    )
    mask = torch.from_numpy(brute_force(shape, kernel_size, dilation, is_causal, stride))
    flat = [x.detach().reshape(2, n, *x.shape[-2:]).requires_grad_() for x in (query, key, value)]
    copies = [x.detach().clone().requires_grad_() for x in more] if extra else None
    expected, sums = dense(*flat, mask, 0.7, copies)
    assert out.shape == (2, *shape, 4, 3)
    assert lse.shape == (2, *shape, 4)
    torch.testing.assert_close(out.reshape(expected.shape), expected)
    torch.testing.assert_close(lse.reshape(sums.shape), sums)
    weights = drawn(*expected.shape, seed=9).detach()
    (out.reshape(expected.shape) * weights).sum().backward()
    (expected * weights).sum().backward()
    pairs = list(zip((query, key, value), flat, strict=True)) + (list(zip(more, copies, strict=True)) if extra else [])
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad.reshape(theirs.grad.shape), theirs.grad)


def places(shape, kernel_size, dilation, is_causal):
    """For each token the window as (place in the list of scores, flat key, (key - query) / dilation of each axis)."""
    grid = np.arange(math.prod(shape)).reshape(shape)
    for query in itertools.product(*map(range, shape)):
        axes = []
        for x, n, w, r, causal in zip(query, shape, kernel_size, dilation, is_causal, strict=True):
            keys = window_of(x, n, w, r, causal, 1)
            axes.append([(at, y, (y - x) // r) for at, y in enumerate(keys)])
        for window in itertools.product(*axes):
            place = 0
            for w, (at, _, _) in zip(kernel_size, window, strict=True):
                place = place * w + at
            yield grid[query], place, grid[tuple(y for _, y, _ in window)], tuple(step for _, _, step in window)


@pytest.mark.parametrize(("shape", "kernel_size", "dilation", "is_causal"), [case[:4] for case in CASES], ids=NAMES)
@pytest.mark.parametrize("biased", [False, True])
def test_split_operators(shape, kernel_size, dilation, is_causal, biased):
    n, k, axes = math.prod(shape), math.prod(kernel_size), len(shape)
    query, key, value = (drawn(2, 3, *shape, d, seed=d) for d in (5, 5, 4))
    rpb = drawn(3, *(2 * w - 1 for w in kernel_size), seed=6) if biased else None
    scores = QK[axes](query, key, kernel_size, dilation, is_causal=is_causal, rpb=rpb)
    assert scores.shape == (2, 3, *shape, k)
    q, keys, v = (x.detach().reshape(2, 3, n, -1).requires_grad_() for x in (query, key, value))
    table = None if rpb is None else rpb.detach().clone().requires_grad_()
    dense_scores = torch.full((2, 3, n, k), -torch.inf, dtype=torch.float64)
    source = torch.zeros(n, k, dtype=torch.int64)
    for i, place, j, steps in places(shape, kernel_size, dilation, is_causal):
        source[i, place] = int(j)
        dense_scores[:, :, i, place] = (q[:, :, i] * keys[:, :, j]).sum(-1)
        if table is not None:
            entry = tuple(w - 1 + step for w, step in zip(kernel_size, steps, strict=True))
            dense_scores[:, :, i, place] += table[(slice(None), *entry)]
    torch.testing.assert_close(scores.reshape(2, 3, n, k), dense_scores)

    out = AV[axes](scores.softmax(-1), value, kernel_size, dilation, is_causal=is_causal)
    weights = dense_scores.softmax(-1)
    expected = (weights[..., None] * v[:, :, source]).sum(-2)
    torch.testing.assert_close(out.reshape(expected.shape), expected)
    factor = drawn(*expected.shape, seed=9).detach()
    (out.reshape(expected.shape) * factor).sum().backward()
    (expected * factor).sum().backward()
    for ours, theirs in zip((query, key, value), (q, keys, v), strict=True):
        torch.testing.assert_close(ours.grad.reshape(theirs.grad.shape), theirs.grad)
    if table is not None:
        torch.testing.assert_close(rpb.grad, table.grad)


def test_split_operators_compose_to_the_fused_one():
    x = drawn(2, 9, 10, 3, 8, dtype=torch.float32)
    expected = natten.na2d(x, x, x, kernel_size=(5, 3), dilation=(1, 2))
    heads = x.movedim(3, 1)
    attn = natten.na2d_qk(heads * 8**-0.5, heads, (5, 3), (1, 2)).softmax(-1)
    torch.testing.assert_close(natten.na2d_av(attn, heads, (5, 3), (1, 2)).movedim(1, 3), expected)


def test_additional_keys_of_the_split_operators():
    query, key, value = (drawn(2, 3, 12, 4, seed=s) for s in range(3))
    more, sums = drawn(2, 3, 5, 4, seed=3), drawn(2, 3, 5, 4, seed=4)
    scores = natten.na1d_qk(query, key, 3, additional_keys=more)
    torch.testing.assert_close(scores[..., :3], natten.na1d_qk(query, key, 3))
    torch.testing.assert_close(scores[..., 3:], query @ more.mT)
    near, far = scores[..., :3], scores[..., 3:]
    expected = natten.na1d_av(near, value, 3) + far @ sums
    torch.testing.assert_close(natten.na1d_av(scores, value, 3, additional_values=sums), expected)


def test_gradients_of_the_split_operators():
    query, key, value = (drawn(1, 2, 4, 5, 3, seed=s) for s in range(3))
    rpb = drawn(2, 5, 3, seed=5)
    assert torch.autograd.gradcheck(
        lambda q, k, b, v: natten.na2d_av(natten.na2d_qk(q, k, (3, 2), rpb=b), v, (3, 2)), (query, key, rpb, value)
    )


def test_windows_are_gathered_a_few_rows_at_a_time(monkeypatch):
    x = drawn(2, 3, 12, 9, 4)
    expected = natten.na2d_qk(x, x, 3)
    expected.sum().backward()
    grad = x.grad.clone()
    monkeypatch.setattr("subquad.natten.gathers._GATHERED", 1)
    x.grad = None
    found = natten.na2d_qk(x, x, 3)
    found.sum().backward()
    assert torch.equal(found, expected)
    torch.testing.assert_close(x.grad, grad)


def test_nan_outside_of_a_window_does_not_matter():
    value = drawn(1, 1, 6, 2).detach()
    value[:, :, 5] = torch.nan
    out = natten.na1d_av(torch.full((1, 1, 6, 3), 1 / 3, dtype=torch.float64), value, 3, is_causal=True)
    assert out[:, :, :5].isfinite().all()
    assert out[:, :, 5].isnan().all()


def test_arguments_that_tune_change_nothing():
    x = drawn(1, 12, 2, 4)
    expected = natten.na1d(x, x, x, 3)
    assert torch.equal(natten.na1d(x, x, x, kernel_size=3, backend="flex-fna", q_tile_shape=(4,)), expected)
    assert torch.equal(natten.na1d(x, x, x, kernel_size=(3,), stride=1, dilation=1, is_causal=None), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    x = drawn(1, 8, 8, 2, 16, dtype=dtype)
    out = natten.na2d(x, x, x, kernel_size=5)
    assert out.dtype == dtype
    exact = natten.na2d(*[x.detach().double()] * 3, kernel_size=5)
    torch.testing.assert_close(out.double(), exact, atol=1e-2, rtol=1e-2)


X, HEADS = torch.zeros(1, 8, 8, 2, 4), torch.zeros(1, 2, 8, 8, 4)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (
            lambda: natten.na2d(X, X, X, 9),
            ValueError,
            r"kernel_size\[0\] must be at most the 8 tokens of axis X; got 9",
        ),
        (
            lambda: natten.na2d(X, X, X, 3, dilation=(1, 4)),
            ValueError,
            r"kernel_size\[1\] x dilation = 3 x 4 must be at most the 8 tokens of axis Y; got 12",
        ),
        (
            lambda: natten.na2d(X, X, X, 3, stride=4),
            ValueError,
            r"stride\[0\] must be at most kernel_size\[0\] = 3; got 4",
        ),
        (lambda: natten.na2d(X, X, X, 3.0), TypeError, r"kernel_size\[0\] must be an integer >= 1; got 3.0"),
        (
            lambda: natten.na2d(X, X, X, (3,)),
            ValueError,
            "kernel_size must be one value, or one for each of the 2 axes",
        ),
        (lambda: natten.na2d(X, X, X, 3, is_causal=1), TypeError, r"is_causal\[0\] must be True or False; got 1"),
        (lambda: natten.na1d(X, X, X, 3), ValueError, r"query must have 4 axes, \(batch, X, heads, head_dim\)"),
        (lambda: natten.na2d(X, X[:, :7], X, 3), ValueError, "key must have query's batch and tokens"),
        (lambda: natten.na2d(X.numpy(), X, X, 3), TypeError, r"query must be a torch\.Tensor; got ndarray"),
        (lambda: natten.na2d(X, X, X, 3, kernel=5), TypeError, "unexpected keyword argument 'kernel'"),
        (
            lambda: natten.na2d(X, X, X, 3, additional_keys=X[:, 0]),
            ValueError,
            "additional_keys and additional_values must both be tensors, or both None",
        ),
        (lambda: natten.na2d_qk(HEADS, HEADS[:, :1], 3), ValueError, "key must have query's shape"),
        (
            lambda: natten.na2d_qk(HEADS, HEADS, 3, rpb=torch.zeros(2, 5, 4)),
            ValueError,
            r"rpb must be a tensor of shape \(heads, 2 kernel_size - 1 for each axis\), \(2, 5, 5\); got \(2, 5, 4\)",
        ),
        (lambda: natten.na2d_av(HEADS, HEADS, 3), ValueError, r"shape \(1, 2, 8, 8, 9\); got \(1, 2, 8, 8, 4\)"),
        (
            lambda: natten.na2d_qk(HEADS, HEADS, 3, additional_keys=torch.zeros(1, 3, 2, 4)),
            ValueError,
            r"additional_keys must have shape .*, \(1, 2, 2, 4\); got \(1, 3, 2, 4\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_without_torch_the_extra_is_told():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "try: import subquad.natten\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == 'subquad.natten needs PyTorch: pip install "subquad[torch]"\n'


@pytest.mark.parametrize("name", ["natten", "natten.fused", "natten.gathers", "natten.split", "natten.windows"])
def test_examples_run(name):
    module = importlib.import_module(f"subquad.{name}")
    assert module.__doc__
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
