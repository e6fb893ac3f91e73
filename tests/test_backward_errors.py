"""A user's mistake in a backward gives one error that names the argument and the value, before anything is computed."""

from __future__ import annotations

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from support import inputs
from test_errors import CALLS, EITHER, HEADS, D, N, array, broadcast, refused

from subquad import Banded, Dense, attention, attention_backward

# What is changed in a backward that is right: what a call of `attention` refuses, and then what comes from above.
OF_OUT, OF_LSE = (HEADS, N, D), (HEADS, N)
BACKWARD_CALLS = {
    **{name: call for name, call in CALLS.items() if "out" not in call[0]},
    **{
        f"{name}-{kind}": ({name: wrong}, *error)
        for name, shape in [("grad_out", OF_OUT), ("out", OF_OUT), ("lse", OF_LSE), ("grad_lse", OF_LSE)]
        for kind, wrong, error in [
            ("row-more", array(HEADS, N + 1, *shape[2:]), (ValueError, f"{name} must", "13", "12")),
            ("axis-more", array(1, *shape), (ValueError, f"{name} must", "(1, 4, 12")),
            ("axis-less", array(*shape[1:]), (ValueError, f"{name} must", "(12")),
            ("head-less", array(3, *shape[1:]), (ValueError, f"{name} must", "(3, 12")),
            ("float64", array(*shape, dtype=float), (TypeError, f"{name} must", "float64", "float32")),
            ("float16", array(*shape, dtype=np.float16), (TypeError, f"{name} must", "float16", "float32")),
            ("integers", array(*shape, dtype=int), (TypeError, f"{name} must", "int64")),
            ("complex", array(*shape, dtype=complex), (TypeError, f"{name} must", "complex128")),
            ("objects", array(*shape, dtype=object), (TypeError, f"{name} must", "object")),
            ("masked", np.ma.masked_array(array(*shape)), (TypeError, f"{name} must", "masked")),
            ("list", array(*shape).tolist(), (TypeError, f"{name} must", "float64")),
            ("text", "gradient", (TypeError, f"{name} must")),
            ("number", 1.0, (EITHER, f"{name} must")),
        ]
    },
    **{f"{name}-None": ({name: None}, TypeError, f"{name} must") for name in ("grad_out", "value", "out", "lse")},
    "grad_out-of-queries": (
        {"value": array(HEADS, N, 5), "out": array(HEADS, N, 5)},
        ValueError,
        "grad_out must",
        "(4, 12, 5)",
        "(4, 12, 8)",
    ),
    "out-of-another-value": ({"out": array(HEADS, N, 5)}, ValueError, "out must", "(4, 12, 8)", "(4, 12, 5)"),
    "lse-as-a-column": ({"lse": array(HEADS, N, 1)}, ValueError, "lse must", "(4, 12)", "(4, 12, 1)"),
    "batches-of-another-call": (
        {name: array(2, HEADS, N, D) for name in ("query", "key", "value")},
        ValueError,
        "grad_out must",
        "(2, 4, 12, 8)",
        "(4, 12, 8)",
    ),
    "half-precision-without-half-out": (
        {name: array(HEADS, N, D, dtype=np.float16) for name in ("query", "key", "value", "grad_out")},
        TypeError,
        "out must",
        "float16",
        "float32",
    ),
    "half-precision-with-half-lse": (
        {name: array(HEADS, N, D, dtype=np.float16) for name in ("query", "key", "value", "grad_out", "out")}
        | {"lse": array(HEADS, N, dtype=np.float16)},
        TypeError,
        "lse must",
        "float32",
        "float16",
    ),
    "bfloat16-and-float16": (
        {name: array(HEADS, N, D, dtype=np.float16) for name in ("query", "key", "value", "grad_out")}
        | {"out": array(HEADS, N, D, dtype=ml_dtypes.bfloat16)},
        TypeError,
        "out must",
        "float16",
        "bfloat16",
    ),
}


@pytest.mark.parametrize("name", BACKWARD_CALLS)
def test_a_backward_refuses(rng, name):
    change, kinds, *needles = BACKWARD_CALLS[name]
    query, key, value = inputs(rng, N, N, D, leading=(HEADS,))
    call = {"grad_out": value.copy(), "query": query, "key": key, "value": value, "pattern": Banded(2)}
    call["out"], call["lse"] = attention(query, key, value, Banded(2), return_lse=True)
    with refused(kinds, *needles):
        attention_backward(**{**call, **change})


def test_a_backward_takes_its_options_by_keyword_alone(rng):
    query, key, value = inputs(rng, N, N)
    out, lse = attention(query, key, value, return_lse=True)
    with pytest.raises(TypeError, match="positional"):
        attention_backward(out, query, key, value, out, lse, Dense(), 1.0)
    with pytest.raises(TypeError, match="drop_out"):
        attention_backward(out, query, key, value, out, lse, Dense(), drop_out=0.1)


def test_a_backward_too_large_to_allocate_is_refused_before_anything_is():
    x, lse = broadcast(2**46, 8), broadcast(2**46)
    tracemalloc.start()
    try:
        with refused((MemoryError, ValueError), "n_q"):
            attention_backward(x, x, x, x, x, lse, Banded(3))
        with refused((MemoryError, ValueError), "gradient of"):
            attention_backward(broadcast(3, 8), broadcast(3, 8), x, x, broadcast(3, 8), broadcast(3), Banded((3, 0)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000
