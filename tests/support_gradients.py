"""What the tests of gradients share: an oracle derived from the mask and the definition, and its tolerance."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import scipy.sparse
from support import FLOAT32, FLOAT64, assert_same_bits, inputs, mask_of, oracle_softmax, score_bound, tolerance

from subquad import attention, attention_backward


def _heads_apart(array, axes):
    """As float64 with `axes` axes, the leading ones filled up with 1."""
    array = np.asarray(array).astype(np.float64)
    return array[(None,) * (axes - array.ndim)]


def _head_gradients(g, g_lse, q, k, v, mask, scale):
    """What one head gives to its three gradients, and the sums of the magnitudes that were added up for each.

    With P = softmax(S), out = P V and lse = log sum exp S over the allowed pairs, dS = P (dP - rowsum(P dP) + dlse) for
    dP = dout V^T. Products go over stored pairs alone, so what a pair outside of the mask holds never enters.
    """
    i, j = np.nonzero(mask)
    scores = np.full(mask.shape, -np.inf)
    scores[i, j] = scale * (q @ k.T)[i, j]
    p, d_p, magnitude = oracle_softmax(scores)[0][i, j], (g @ v.T)[i, j], (abs(g) @ abs(v).T)[i, j]

    def over_pairs(data):
        return scipy.sparse.csr_array((data, (i, j)), shape=mask.shape)

    def of_rows(data):
        return np.bincount(i, data, len(q))[i]

    weights, d_s = over_pairs(p), over_pairs(scale * p * (d_p - of_rows(p * d_p) + g_lse[i]))
    gradients = d_s @ k, d_s.T @ q, weights.T @ g
    d_s = over_pairs(abs(scale) * p * (magnitude + of_rows(p * magnitude) + abs(g_lse[i])))
    return gradients, (d_s @ abs(k), d_s.T @ abs(q), weights.T @ abs(g))


def oracle_backward(grad_out, query, key, value, pattern, scale=None, grad_lse=None):
    """Gradients of sum(grad_out * out) + sum(grad_lse * lse) in float64, and the magnitudes summed for each element."""
    q, k, v, g = (_heads_apart(array, 4) for array in (query, key, value, grad_out))
    g_lse = np.zeros(q.shape[:3]) if grad_lse is None else _heads_apart(grad_lse, 3)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    mask, group = mask_of(pattern, q.shape[2], k.shape[2]), q.shape[1] // max(1, k.shape[1])
    gradients, magnitudes = ([np.zeros(array.shape) for array in (q, k, v)] for _ in range(2))
    with np.errstate(invalid="ignore", over="ignore"):  # poison is for some tests the point
        for b, h in np.ndindex(q.shape[:2]):
            own, shared = (b, h), (b, h // group)
            parts = _head_gradients(g[own], g_lse[own], q[own], k[shared], v[shared], mask, scale)
            for totals, of_head in zip((gradients, magnitudes), parts, strict=True):
                for total, head, part in zip(totals, (own, shared, shared), of_head, strict=True):
                    total[head] += part
    shapes = [np.shape(array) for array in (query, key, value)]
    return tuple(
        tuple(array.reshape(shape) for array, shape in zip(arrays, shapes, strict=True))
        for arrays in (gradients, magnitudes)
    )


def gradient_tolerance(dtype, row_length, d, score):
    """Error allowed to a gradient, relative to the sum of the magnitudes of what is added up for it.

    A weight is off as in the forward pass, once more for lse; its gradient is the difference of two dot products whose
    magnitudes are part of that sum. Half precision rounds `out` before the backward, and the gradient after it.
    """
    return 2 * tolerance(dtype, row_length, d, score + math.log(row_length + 1))


def assert_gradients_match_oracle(grads, grad_out, query, key, value, pattern, scale=None, grad_lse=None):
    """The three gradients lie within the tolerance of the oracle, with the shapes and the dtype of the inputs."""
    expected, magnitudes = oracle_backward(grad_out, query, key, value, pattern, scale, grad_lse)
    group = math.prod(query.shape[:-2]) // max(1, math.prod(key.shape[:-2]))
    longest, widest = max(group * query.shape[-2], key.shape[-2]), max(query.shape[-1], value.shape[-1])
    rtol = gradient_tolerance(query.dtype, longest, widest, score_bound(query, key, scale))
    computed = FLOAT64 if query.dtype == FLOAT64 else FLOAT32
    # weights below the smallest number of the type that computes are 0, and so is what is below that of the result
    least = max(float(ml_dtypes.finfo(query.dtype).smallest_subnormal), 1e6 * float(np.finfo(computed).tiny))
    named = zip(("query", "key", "value"), grads, expected, magnitudes, (query, key, value), strict=True)
    for name, grad, right, magnitude, array in named:
        assert grad.shape == array.shape, name
        assert grad.dtype == array.dtype, name
        error = abs(grad.astype(np.float64) - right)
        wrong = np.argwhere(~(error <= rtol * magnitude + least))
        assert not len(wrong), (
            f"gradient of {name}: {len(wrong)} of {error.size} elements are off, the first at {wrong[0]}: "
            f"{grad[tuple(wrong[0])]} for {right[tuple(wrong[0])]}, {error[tuple(wrong[0])]:.2g} apart"
        )
    untouched = ~mask_of(pattern, query.shape[-2], key.shape[-2]).any(axis=1)
    assert not grads[0][..., untouched, :].any(), "a row without keys has a gradient"
    unseen = ~mask_of(pattern, query.shape[-2], key.shape[-2]).any(axis=0)
    assert not grads[1][..., unseen, :].any(), "a key that no row sees has a gradient"
    assert not grads[2][..., unseen, :].any(), "a value that no row sees has a gradient"


def backward_inputs(rng, n_q, n_k, d=16, d_v=None, leading=(), kv_leading=None, dtype=np.float32):
    """Random `(grad_out, query, key, value)`."""
    query, key, value = inputs(rng, n_q, n_k, d, d_v, leading, kv_leading, dtype)
    return rng.standard_normal((*query.shape[:-1], value.shape[-1])).astype(dtype), query, key, value


def gradients(grad_out, query, key, value, pattern, **options):
    """The three gradients, from the forward on: `attention`, then `attention_backward`."""
    scale = options.get("scale")
    out, lse = attention(query, key, value, pattern, scale=scale, return_lse=True)
    return attention_backward(grad_out, query, key, value, out, lse, pattern, **options)


def small_blocks(monkeypatch, flops=20_000):
    """Blocks and tasks of a backward so small that little inputs are cut into many waves; plans are made anew."""
    monkeypatch.setattr("subquad.plan.schedule._BLOCK_FLOPS", flops)
    monkeypatch.setattr("subquad.plan.tables._TASK_FLOPS", flops)
    monkeypatch.setattr("subquad.plan._kept", {})


def assert_all_same_bits(actual, expected):
    for name, one, other in zip(("query", "key", "value"), actual, expected, strict=True):
        try:
            assert_same_bits(one, other)
        except AssertionError as error:
            raise AssertionError(f"gradient of {name}: {error}") from None


def call_arrays(rng, n_q, n_k, pattern, d, d_v, leading=(), kv_leading=None, dtype=FLOAT32):
    """All seven arrays of a call, by name."""
    grad_out, query, key, value = backward_inputs(rng, n_q, n_k, d, d_v, leading, kv_leading, dtype)
    out, lse = attention(query, key, value, pattern, return_lse=True)
    of_lse = rng.standard_normal(lse.shape).astype(lse.dtype)
    return {
        "grad_out": grad_out,
        "query": query,
        "key": key,
        "value": value,
        "out": out,
        "lse": lse,
        "grad_lse": of_lse,
    }
