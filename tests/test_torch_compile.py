"""Compiled, exported and on their way through text: patterns must be the ones that were meant."""

from __future__ import annotations

import base64
import gc
import os
import pickle
import shutil
import zlib

import numpy as np
import pytest
from hypothesis import given
from support import CASES, case, sized_expressions

from subquad import Banded, BlockSparse, Causal, Dense, Global, Pattern, Random, plan

torch = pytest.importorskip("torch", reason="torch is not installed")

from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

from subquad.torch import SparseMultiheadAttention, attention  # noqa: E402
from subquad.torch.crossing import _PICKLED, pattern_of, text_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

MIXED = (Banded((3, 0)) | Global([0, 4])) & Causal()
# inductor makes code for the operations around ours, and needs a C++ compiler for it
BACKENDS = ["aot_eager"] + ["inductor"] * bool(shutil.which(os.environ.get("CXX", "g++")))


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function, backend="aot_eager"):
    """The function, and a counter of how many times it was compiled."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, fullgraph=True, backend=counter), counter


def inputs(n, dynamic=True, seed=0):
    torch.manual_seed(seed)
    made = [torch.randn(2, 4, n, 8, requires_grad=True) for _ in range(3)]
    for x in made if dynamic else ():
        torch._dynamo.mark_dynamic(x, 2)
    return made


def loss(query, key, value, pattern):
    out, lse = attention(2 * query, key, value, pattern, return_lse=True)
    return out.sin().sum() + lse.sum()


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_graph_for_all_lengths(backend):
    function, counter = compiled(lambda *x: loss(*x, MIXED), backend)
    for n in (40, 56, 17):
        plain, ours = inputs(n), inputs(n)
        expected, got = loss(*plain, MIXED), function(*ours)
        torch.testing.assert_close(got, expected)
        expected.backward()
        got.backward()
        for x, y in zip(ours, plain, strict=True):
            torch.testing.assert_close(x.grad, y.grad)
    assert counter.frame_count == 1


def test_another_pattern_is_another_graph():
    function, counter = compiled(attention)
    x = inputs(30, dynamic=False)
    first, second = Banded(2), Banded(5)
    for pattern in (first, second, first, second):
        assert torch.equal(function(*x, pattern), attention(*x, pattern))
    assert counter.frame_count == 2
    assert torch.equal(function(*x), attention(*x))  # the default


def test_patterns_that_nobody_holds():
    """Guards go by identity: no new pattern may ever stand at the address of one whose graph is kept."""
    function, counter = compiled(attention)
    x = inputs(30, dynamic=False)
    for window in range(7):
        assert torch.equal(function(*x, Banded(window)), attention(*x, Banded(window)))
        text_of.cache_clear()  # caches hold the recent ones
        plan.cache_clear()
        gc.collect()
    assert counter.frame_count == 7


def test_layout_in_a_graph():
    function, _ = compiled(attention)
    x, layout = inputs(32, dynamic=False), BlockSparse([[1, 0], [0, 1]], 16)
    assert torch.equal(function(*x, layout), attention(*x, layout))


def test_options_in_a_graph():
    x = inputs(20)
    function, _ = compiled(lambda q, k, v: attention(q, k, v, MIXED, scale=q.shape[-1] ** -0.25, num_threads=2))
    torch.testing.assert_close(function(*x), attention(*x, MIXED, scale=8**-0.25))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = function(*x)
    assert out.dtype == torch.bfloat16


def test_errors_of_a_graph():
    x = inputs(20, dynamic=False)
    function, _ = compiled(lambda q, k, v: attention(q, k, v, MIXED, num_threads=0))
    with pytest.raises(ValueError, match="num_threads must be an integer >= 1; got 0"):
        function(*x)
    function, _ = compiled(lambda q, k, v: attention(q, k[:, :3], v[:, :3], MIXED))
    with pytest.raises(ValueError, match="query's heads must be a multiple of key's"):
        function(*x)
    function, _ = compiled(lambda q, k, v: attention(q, k, v, Banded(3)))
    with pytest.raises(Exception, match="pattern must be built outside of the function"):
        function(*x)


def test_modules_of_equal_patterns_share_a_graph():
    function, counter = compiled(lambda module, x: module(x, x, x)[0])
    x = torch.randn(2, 30, 16)
    first, second = (SparseMultiheadAttention(16, 2, Banded(4) & Causal()) for _ in range(2))
    for module in (first, second):
        torch.testing.assert_close(function(module, x), module(x, x, x)[0])
    assert counter.frame_count == 1
    second.pattern = Banded(1)
    torch.testing.assert_close(function(second, x), second(x, x, x)[0])
    torch.testing.assert_close(function(first, x), first(x, x, x)[0])
    assert counter.frame_count == 2


def test_exported_program(tmp_path):
    """A graph in a file tells its pattern completely."""
    module, x = SparseMultiheadAttention(16, 2, MIXED), torch.randn(2, 30, 16)
    n = torch.export.Dim("n", min=6)
    program = torch.export.export(module, (x, x, x), dynamic_shapes=[{1: n}] * 3)
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    longer = torch.randn(2, 47, 16)
    torch.testing.assert_close(loaded(longer, longer, longer)[0], module(longer, longer, longer)[0])


# --- patterns as text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_text_tells_the_pattern(name):
    pattern = case(name, 64, 64)
    text = text_of(pattern)
    pattern_of.cache_clear()  # as in another process
    assert pattern_of(text) == pattern
    # what holds arrays, and transposes without a closed form, no expression can say
    assert text.startswith(_PICKLED) == any(sign in repr(pattern) for sign in ("<", ".transpose()"))


def test_a_pickled_pattern_is_checked_anew():
    """A graph may come from a file of someone else's making, and kernels follow the indices."""
    pattern = BlockSparse(np.eye(3, dtype=bool), block=2)
    for indptr, indices, error in [
        ([0, 1, 2, 3], [0, 1, 9], "position 2"),
        ([0, 1, 2, 3], [-1, 1, 2], "position 0"),
        ([0, 2, 1, 3], [0, 1, 2], "falls"),
        ([0, 2, 2, 3], [1, 0, 2], "sorted"),
    ]:
        forged = BlockSparse._of(np.array(indptr), np.array(indices), pattern.layout_shape, 2)
        text = _PICKLED + base64.b64encode(zlib.compress(pickle.dumps(forged))).decode()
        with pytest.raises(ValueError, match=error):
            pattern_of(text)


@given(sized_expressions(), sized_expressions())
def test_texts_differ_where_patterns_do(a, b):
    first, second = a[0], b[0]
    assert (text_of(first) == text_of(second)) == (first == second)
    assert pattern_of(text_of(first)) == first


def test_text_is_readable():
    assert text_of(Banded(256) | Global(range(16))) == "Banded(256) | Global(range(0, 16))"
    assert len(text_of(BlockSparse(np.eye(1000), 64))) < 20_000


@pytest.mark.parametrize("target", [eval, os.system, np.load, pickle.loads])
def test_text_calls_nothing(target):
    class Call:
        def __reduce__(self):
            return target, ("1",)

    import base64
    import zlib

    text = _PICKLED + base64.b64encode(zlib.compress(pickle.dumps(Call()))).decode()
    with pytest.raises(ValueError, match="must hold patterns and arrays alone"):
        pattern_of(text)


def test_pattern_that_cannot_be_told():
    class Local(type(Random(1, 0))):
        __slots__ = ()

        def __repr__(self):
            return "Local()"

    assert isinstance(Local(1, 0), Pattern)
    with pytest.raises(TypeError, match=r"got Local\(\) of type Local; define its class at the top of a module"):
        text_of(Local(1, 0))
    assert text_of(Dense()) == "Dense()"
