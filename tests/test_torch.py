"""Attention of tensors: values, gradients, layouts, refusals. Oracles: gradcheck and PyTorch's own attention."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
import threading

import numpy as np
import pytest
from support import case, mask_of

import subquad
from subquad import Banded, BlockSparse, Causal, Dense, Global, Random, Strided, patterns

torch = pytest.importorskip("torch", reason="torch is not installed")
F = torch.nn.functional

from subquad.torch import SparseMultiheadAttention, attention, merge  # noqa: E402
from subquad.torch.operators import as_array, as_tensor, attention_backward_op, attention_op  # noqa: E402

MIXED = (Banded((3, 0)) | Global([0, 4])) & Causal()
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
N = 9
# PyTorch's own, about itself
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
#: One of each pattern and preset, for N queries and N keys.
OF_EACH_NAME = {
    "Dense": lambda p: p.Dense(),
    "Causal": lambda p: p.Causal(),
    "Banded": lambda p: p.Banded((2, 1)),
    "Strided": lambda p: p.Strided(3),
    "Columns": lambda p: p.Columns(4, 2),
    "Global": lambda p: p.Global([0, 5]),
    "Random": lambda p: p.Random(3, seed=1),
    "LogSparse": lambda p: p.LogSparse(),
    "BlockSparse": lambda p: p.BlockSparse([[1, 0, 1], [0, 0, 0], [1, 1, 0]], 3),
    "Explicit": lambda p: p.Explicit(Banded(1).to_csr(N, N)),
    "Packed": lambda p: p.Packed([4, 5]),
    "Neighborhood": lambda p: p.Neighborhood((3, 3), 3),
    "dilated": lambda p: p.dilated(1, 2),
    "longformer": lambda p: p.longformer(1, 2),
    "bigbird": lambda p: p.bigbird(2, 1, 1, 1),
    "sparse_transformer_strided": lambda p: p.sparse_transformer_strided(3),
    "sparse_transformer_fixed": lambda p: p.sparse_transformer_fixed(3, 1),
    "streaming": lambda p: p.streaming(1, 3),
}


def tensors(n_q, n_k, *, heads=(2, 2), d=3, d_v=3, dtype=torch.float64, seed=0, batch=()):
    """Query, key and value that want gradients."""
    generator = torch.Generator().manual_seed(seed)

    def make(heads, n, columns):
        x = torch.randn(*batch, heads, n, columns, dtype=torch.float64, generator=generator)
        return x.to(dtype).requires_grad_()

    return make(heads[0], n_q, d), make(heads[1], n_k, d), make(heads[1], n_k, d_v)


def detached(inputs):
    return [x.detach() for x in inputs]


def finite(lse):
    """lse with 0 for empty rows: gradcheck would take -inf from -inf."""
    return torch.where(lse == -torch.inf, 0, lse)


def out_and_lse(pattern, **options):
    def call(query, key, value):
        out, lse = attention(query, key, value, pattern, return_lse=True, **options)
        return out, finite(lse)

    return call


def torch_mask(pattern, n_q, n_k):
    return torch.from_numpy(mask_of(pattern, n_q, n_k))


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(patterns.__all__) - {"Pattern"}))
def test_gradients_of_every_pattern(name):
    pattern = OF_EACH_NAME[name](patterns)
    assert torch.autograd.gradcheck(out_and_lse(pattern), tensors(N, N))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({"n_q": 5, "n_k": 12}, {}),
        ({"n_q": 12, "n_k": 5}, {}),  # seven rows stand before the first key
        ({"n_q": 1, "n_k": 8}, {}),
        ({"n_q": 7, "n_k": 7, "d": 5, "d_v": 2}, {}),
        ({"n_q": 7, "n_k": 7, "d": 2, "d_v": 5}, {"scale": 1.7}),
        ({"n_q": 7, "n_k": 7}, {"scale": 0.0}),
        ({"n_q": 7, "n_k": 7, "heads": (4, 2)}, {"num_threads": 2}),
        ({"n_q": 6, "n_k": 8, "heads": (3, 1), "batch": (2,)}, {}),
    ],
)
def test_gradients_of_every_shape(shape, options):
    pattern = (Banded((2, 0)) | Global(range(1), rows=False)) & Causal()
    assert torch.autograd.gradcheck(out_and_lse(pattern, **options), tensors(**shape))


def test_gradients_of_lse_alone():
    assert torch.autograd.gradcheck(lambda *x: finite(attention(*x, MIXED, return_lse=True)[1]), tensors(8, 8))


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)])
def test_gradients_of_some_inputs(wanted):
    every = tensors(8, 8)
    attention(*every, MIXED).square().sum().backward()
    some = [x.detach().requires_grad_(bool(wants)) for x, wants in zip(every, wanted, strict=True)]
    attention(*some, MIXED).square().sum().backward()
    for x, full, wants in zip(some, every, wanted, strict=True):
        assert (x.grad is not None) == bool(wants)
        if wants:
            torch.testing.assert_close(x.grad, full.grad, rtol=0, atol=0)


def test_rows_without_keys_give_no_gradient():
    query, key, value = tensors(6, 6)
    out, lse = attention(query, key, value, Dense() - Global([2], columns=False), return_lse=True)
    assert not out[:, 2].any()
    assert (lse[:, 2] == -torch.inf).all()
    (out.sum() + lse[:, 2].sum()).backward()
    assert not query.grad[:, 2].any()
    assert all(x.grad.isfinite().all() for x in (query, key, value))
    assert query.grad[:, [0, 1, 3, 4, 5]].abs().min() > 0


def test_keys_outside_the_pattern_give_no_gradient():
    query, key, value = tensors(6, 6)
    with torch.no_grad():
        key[:, 5], value[:, 5] = torch.nan, torch.inf
    attention(query, key, value, Causal() - Global([5], rows=False)).sum().backward()
    assert all(x.grad.isfinite().all() for x in (query, key, value))
    assert not key.grad[:, 5].any()
    assert not value.grad[:, 5].any()


@pytest.mark.parametrize(
    "name", ["banded-left", "strided-7", "random-5", "blocks-5", "bigbird", "nested", "longformer"]
)
def test_equals_scaled_dot_product_attention(name):
    n_q = n_k = 48
    pattern = case(name, n_q, n_k)
    mask = torch_mask(pattern, n_q, n_k)
    pattern, mask = pattern | Banded(0), mask | torch.eye(n_q, dtype=torch.bool)  # theirs has no meaning for empty rows
    ours, theirs = (tensors(n_q, n_k, heads=(4, 2), d=8, d_v=5, batch=(2,)) for _ in range(2))
    weight = torch.linspace(-1, 1, 5, dtype=torch.float64)
    out = attention(*ours, pattern)
    query, key, value = theirs
    expected = F.scaled_dot_product_attention(
        query, *(x.repeat_interleave(2, dim=1) for x in (key, value)), attn_mask=mask
    )
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    half = tensors(40, 40, d=16, d_v=8, dtype=dtype)
    single = [x.detach().float().requires_grad_() for x in half]
    out, lse = attention(*half, MIXED, return_lse=True)
    expected, expected_lse = attention(*single, MIXED, return_lse=True)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(out, expected.to(dtype), rtol=0, atol=0)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=0)
    out.sum().backward()
    expected.sum().backward()
    for x, y in zip(half, single, strict=True):
        assert x.grad.dtype == dtype
        eps = torch.finfo(dtype).eps  # the output that comes back in is rounded too
        torch.testing.assert_close(x.grad.float(), y.grad, rtol=2 * eps, atol=4 * eps)


# --- merge ------------------------------------------------------------------------------------------------------------


def test_window_and_complement_make_dense():
    window = Banded(3) | Global([1])
    whole, parts = tensors(17, 17), tensors(17, 17)
    expected = attention(*whole, return_lse=True)
    merged = merge(*attention(*parts, window, return_lse=True), *attention(*parts, Dense() - window, return_lse=True))
    for got, wanted in zip(merged, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-13)
    for out, lse in (merged, expected):
        (out.square().sum() + lse.sin().sum()).backward()
    for x, y in zip(parts, whole, strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-13)


def test_merge_differentiates():
    def call(out_a, lse_a, out_b, lse_b):
        out, lse = merge(out_a, lse_a, out_b, lse_b)
        return out, finite(lse)

    generator = torch.Generator().manual_seed(0)
    out_a, out_b = (torch.randn(2, 5, 3, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    lse_a, lse_b = (torch.randn(2, 5, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(call, (out_a, lse_a, out_b, lse_b))


def test_merge_of_empty_rows():
    out, lse = torch.full((2, 3), torch.nan), torch.full((2,), -torch.inf)
    full, of_full = torch.arange(6.0).reshape(2, 3), torch.tensor([0.5, -torch.inf])
    inputs = [x.requires_grad_() for x in (out, lse, full, of_full)]
    merged, of_merged = merge(*inputs)
    assert merged.tolist() == [[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]
    assert of_merged.tolist() == [0.5, -torch.inf]
    (merged.sum() + of_merged[:1].sum()).backward()
    assert all(x.grad.isfinite().all() for x in inputs)
    assert full.grad.tolist() == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_is_that_of_arrays(dtype):
    parts = [*attention(*tensors(12, 12, dtype=dtype), Banded(2), return_lse=True)]
    parts += attention(*tensors(12, 12, dtype=dtype), Causal() - Banded(2), return_lse=True)
    out, lse = merge(*parts)
    expected, expected_lse = subquad.merge(*(as_array(x) for x in parts))
    assert (out.dtype, lse.dtype) == (dtype, parts[1].dtype)
    atol = 4 * torch.finfo(dtype).eps  # outputs are averages of values of about 1
    np.testing.assert_allclose(as_array(out).astype(float), expected.astype(float), rtol=0, atol=atol)
    np.testing.assert_allclose(as_array(lse), expected_lse, rtol=0, atol=16 * torch.finfo(lse.dtype).eps)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({0: torch.zeros(2, 4)}, ValueError, "out_b must have out_a's shape (2, 4); got (2, 3)"),
        ({1: torch.zeros(5)}, ValueError, "lse_a must have out_a's shape without its last axis, (2,); got (5,)"),
        ({2: torch.zeros(2, 3).double()}, TypeError, "out_a, out_b must have one dtype"),
        ({3: np.zeros(2)}, TypeError, "lse_b must be a torch.Tensor; got ndarray"),
    ],
)
def test_merge_refuses_results_of_another_call(change, error, words):
    parts = dict(enumerate((torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 3), torch.zeros(2)))) | change
    with pytest.raises(error) as caught:
        merge(*parts.values())
    assert words in str(caught.value)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x.transpose(1, 2),
        lambda x: x[:, ::2],
        lambda x: x[:1].expand(5, -1, -1),
        lambda x: x[..., 1:3],
    ],
)
def test_tensors_cross_without_a_copy(dtype, view):
    tensor = view(torch.randn(3, 4, 6).to(dtype).requires_grad_())
    array = as_array(tensor)
    assert array.ctypes.data == tensor.data_ptr()
    assert array.shape == tuple(tensor.shape)
    assert [stride // array.itemsize for stride in array.strides] == list(tensor.stride())
    np.testing.assert_array_equal(array.astype(float), tensor.detach().double().numpy())
    back = as_tensor(np.ascontiguousarray(array))
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_lazily_negated_tensors():
    negated = torch.view_as_complex(torch.randn(5, 4, 2)).conj().imag
    assert negated.is_neg()
    np.testing.assert_array_equal(as_array(negated), negated.clone().numpy())


def test_layout_of_models():
    """(batch, n, heads x d) split into heads and transposed, keys of one head for all, a gradient of equal numbers."""
    x = torch.randn(2, 20, 4 * 6, dtype=torch.float64, requires_grad=True)
    query = x.view(2, 20, 4, 6).transpose(1, 2)
    key = x[..., :6].unsqueeze(1).expand(-1, 4, -1, -1)
    out = attention(query, key, key, MIXED)
    assert out.is_contiguous()
    copied = x.detach().clone().requires_grad_()
    query, key = copied.view(2, 20, 4, 6).transpose(1, 2), copied[..., :6].unsqueeze(1).expand(-1, 4, -1, -1)
    expected = F.scaled_dot_product_attention(query, key, key, attn_mask=torch_mask(MIXED, 20, 20))
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    out.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, copied.grad, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [{"n_q": 0, "n_k": 4}, {"n_q": 4, "n_k": 0}, {"n_q": 0, "n_k": 0}])
@pytest.mark.parametrize("batch", [(), (2,), (0,)])
def test_empty_sizes(shape, batch):
    inputs = tensors(**shape, batch=batch, d_v=5)
    out, lse = attention(*inputs, return_lse=True)
    assert out.shape == (*batch, 2, shape["n_q"], 5)
    assert out.is_contiguous()
    assert not out.any()
    assert (lse == -torch.inf).all()
    out.sum().backward()
    for x in inputs:
        assert x.grad.shape == x.shape
        assert not x.grad.any()


# --- operators --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grad", [True, False])
def test_opcheck(dtype, grad):
    inputs = tensors(11, 13, heads=(4, 2), d=6, d_v=5, dtype=dtype, batch=(2,))
    if not grad:
        inputs = detached(inputs)
    torch.library.opcheck(attention_op, (*inputs, repr(MIXED), 0.3, None))
    transposed = [x.detach().transpose(-1, -2).requires_grad_(grad) for x in tensors(6, 6, d=6, d_v=6, dtype=dtype)]
    torch.library.opcheck(attention_op, (*transposed, "Causal()", None, 1))


@pytest.mark.parametrize("with_lse", [True, False])
def test_opcheck_backward(with_lse):
    inputs = detached(tensors(11, 13, heads=(4, 2), d=6, d_v=5))
    out, lse = attention(*inputs, MIXED, return_lse=True)
    grad_lse = torch.ones_like(lse) if with_lse else None
    grad_out = torch.ones(()).double().expand(out.shape)
    torch.library.opcheck(attention_backward_op, (grad_out, grad_lse, *inputs, out, lse, repr(MIXED), None, None))


def test_threads_are_those_of_torch(monkeypatch):
    used = []
    genuine = subquad.attention
    monkeypatch.setattr(subquad, "attention", lambda *x, **kw: (used.append(kw["num_threads"]), genuine(*x, **kw))[1])
    inputs = detached(tensors(4, 4))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        attention(*inputs)
        attention(*inputs, num_threads=2)
    finally:
        torch.set_num_threads(before)
    assert used == [3, 2]


def test_no_grad_and_inference():
    inputs = tensors(8, 8)
    expected = attention(*inputs, MIXED)
    assert expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = attention(*inputs, MIXED)
        assert not out.requires_grad
        assert torch.equal(out, expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoint(reentrant):
    from torch.utils.checkpoint import checkpoint

    def block(*x):
        out, lse = attention(*x, MIXED, return_lse=True)
        return out.sin() + lse[..., None]

    plain, kept = tensors(8, 8), tensors(8, 8)
    block(*plain).sum().backward()
    checkpoint(block, *kept, use_reentrant=reentrant).sum().backward()
    for x, y in zip(plain, kept, strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=0)


def test_autocast():
    inputs = tensors(20, 20, d=8, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(inputs[0], inputs[1].bfloat16(), inputs[2], MIXED)
        double = attention(*tensors(8, 8), MIXED)
    assert (out.dtype, double.dtype) == (torch.bfloat16, torch.float64)
    assert torch.equal(out, attention(*(x.bfloat16() for x in inputs), MIXED))
    out.sum().backward()
    assert all(x.grad.dtype == torch.float32 and x.grad.isfinite().all() for x in inputs)


def test_changed_output_is_noticed():
    inputs = tensors(8, 8)
    out = attention(*inputs, MIXED)
    out.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_many_threads():
    inputs = detached(tensors(64, 64, d=8))
    wanted = [Banded(w) | Random(2, seed=w) for w in range(8)]
    expected = [attention(*inputs, pattern) for pattern in wanted]
    failures = []

    def work(which):
        for _ in range(20):
            if not torch.equal(attention(*inputs, Banded(which) | Random(2, seed=which)), expected[which]):
                failures.append(which)

    workers = [threading.Thread(target=work, args=(which,)) for which in range(len(wanted))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            {"query": np.zeros((2, 4, 3))},
            TypeError,
            "query must be a torch.Tensor; got ndarray; subquad.attention takes",
        ),
        ({"key": torch.zeros(2, 4, 3)}, TypeError, "got query torch.float64, key torch.float32, value torch.float64"),
        ({"value": torch.zeros(2, 4, 3, dtype=torch.int64)}, TypeError, "value must have dtype float32, float64"),
        ({"query": torch.zeros(2, 4, 3, device="meta")}, ValueError, "query must be on the CPU; got device meta"),
        (
            {"key": torch.eye(4, 3).double().to_sparse()},
            TypeError,
            "key must be a dense tensor; got layout torch.sparse",
        ),
        ({"key": torch.zeros(2, 4, 5).double()}, ValueError, "key must have query's last axis d = 3"),
        ({"value": torch.zeros(2, 5, 3).double()}, ValueError, "value must match key but for the last axis"),
        ({"pattern": BlockSparse(np.eye(9), 16)}, ValueError, "layout has 9 x 9 blocks of 16; n_q = 4 and n_k = 4"),
        ({"pattern": Global([7])}, ValueError, "7"),
        ({"pattern": [1]}, TypeError, "pattern must be a subquad pattern"),
        ({"scale": torch.ones((), requires_grad=True)}, TypeError, "got a tensor; multiply the query by it"),
        ({"scale": "0.5"}, TypeError, "scale must be a real number or None"),
        ({"scale": float("inf")}, ValueError, "scale must be finite"),
        ({"num_threads": 0}, ValueError, "num_threads must be an integer >= 1; got 0"),
        ({"num_threads": 1.5}, TypeError, "num_threads must be an integer >= 1; got 1.5"),
    ],
)
def test_refusals(change, error, words):
    query, key, value = tensors(4, 4)
    arguments = {"query": query, "key": key, "value": value, "pattern": Dense()} | change
    with pytest.raises(error) as caught:
        attention(**arguments)
    assert type(caught.value) is error
    assert words in str(caught.value)


def test_operator_refuses_as_the_library_does():
    query, key, value = detached(tensors(4, 4))
    with pytest.raises(TypeError, match="must have one dtype; got query float64, key float32"):
        attention_op(query, key.float(), value, "Dense()", None, None)
    with pytest.raises(ValueError, match="did you mean Banded"):
        attention_op(query, key, value, "Bande(3)", None, None)


def test_second_derivatives_are_refused():
    query, key, value = tensors(4, 4)
    (grad,) = torch.autograd.grad(attention(query, key, value).square().sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        grad.sum().backward()


def test_vmap_is_refused():
    query, key, value = detached(tensors(4, 4))
    with pytest.raises(NotImplementedError, match="the mapped axis as one of its own"):
        torch.vmap(lambda q: attention(q, key[0], value[0], Strided(2)))(query)


def test_forward_mode_is_refused():
    query, key, value = detached(tensors(4, 4))
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(lambda q: attention(q, key, value), (query,), (query,))
    module, x = SparseMultiheadAttention(4, 2, Causal()), torch.ones(3, 4)
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(lambda x: module(x, x, x)[0], (x,), (x,))


def test_other_transforms_are_refused():
    query, key, value = detached(tensors(4, 4))
    with pytest.raises(RuntimeError, match="functorch transforms"):  # PyTorch's own words
        torch.func.grad(lambda q: attention(q, key, value).sum())(query)


# --- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".functional", ".module", ".operators", ".crossing"])
def test_examples_run(name):
    module = importlib.import_module(f"subquad.torch{name}")
    assert module.__doc__
    assert doctest.testmod(module).failed == 0


def test_without_torch():
    """Nobody else imports PyTorch, and its absence names the extra."""
    code = (
        "import sys; sys.modules['torch'] = None; import subquad\n"
        "try: import subquad.torch\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == 'subquad.torch needs PyTorch: pip install "subquad[torch]"\n'
    code = "import sys, subquad; subquad.attention([[1.0]], [[1.0]], [[1.0]]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ImportError, match=r'pip install "subquad\[torch\]"'):
        attention(*tensors(4, 4, dtype=torch.bfloat16))
