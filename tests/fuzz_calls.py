"""Random calls of the public names with fitting and unfitting arguments: results, or the documented errors.

python tests/fuzz_calls.py 100000
"""

from __future__ import annotations

import collections
import random
import sys
import time
import warnings

import numpy as np
from scipy.sparse import csr_array

import subquad
from subquad import patterns

ALLOWED = (ValueError, TypeError, MemoryError, OSError, IndexError)
ODD = [
    None, True, 0, 1, 2, 3, 7, -1, 16, 1 << 31, 1 << 62, 1 << 63, -(1 << 63), 10**30, 0.5, 2.0, float("nan"),
    float("inf"), "3", b"x", (), (1, 2), (3, None), [0, 1], [2, 1], [-1], range(4), range(10**18), {}, object(),
    np.int64(3), np.float32(2), np.array([1, 2]), np.array(3), np.ones((2, 2), bool), 1j,
]  # fmt: skip
FIELDS = {
    "Banded": ("window",), "Strided": ("stride",), "Columns": ("stride", "width"), "Global": ("tokens",),
    "Random": ("keys", "seed", "block"), "LogSparse": (), "Dense": (), "Causal": (), "Packed": ("lengths",),
    "Neighborhood": ("shape", "window", "dilation"), "BlockSparse": ("layout", "block"), "Explicit": ("csr",),
    "dilated": ("window", "dilation"), "longformer": ("window", "global_tokens"), "bigbird": ("block",),
    "streaming": ("sinks", "window"), "sparse_transformer_fixed": ("stride", "width"),
    "sparse_transformer_strided": ("stride",),
}  # fmt: skip
SIZES = [0, 1, 2, 3, 5, 12, 17, 33]
KINDS = ["float32"] * 8 + ["float64", "float64", "float16", "int32", "complex64", ">f4", "O"]


def number(rng):
    return rng.choice(ODD) if rng.random() < 0.25 else rng.randrange(1, 9)


def pattern(rng, depth=2):
    if depth and rng.random() < 0.3:
        left, right = pattern(rng, depth - 1), pattern(rng, depth - 1)
        return {0: left | right, 1: left & right, 2: left - right}[rng.randrange(3)]
    name = rng.choice(list(FIELDS))
    arguments = {field: number(rng) for field in FIELDS[name]}
    if name == "Explicit" and rng.random() < 0.9:
        n = rng.choice(SIZES[1:])
        matrix = csr_array(np.random.default_rng(rng.randrange(99)).random((n, n)) < 0.3)
        if rng.random() < 0.5 and matrix.nnz:  # index arrays that SciPy itself would follow
            (matrix.indices if rng.random() < 0.5 else matrix.indptr)[-1] = rng.choice([-1, 10**6, 2])
        arguments["csr"] = matrix
    made = getattr(patterns, name)(**arguments)
    return made.transpose() if rng.random() < 0.1 else made


def array(rng, n, d):
    shape = {0: (n, d), 1: (2, n, d), 2: (1, 2, n, d)}.get(rng.randrange(12) % 3)
    if rng.random() < 0.04:
        shape = tuple(rng.choice(SIZES) for _ in range(rng.randrange(6)))
    made = np.random.default_rng(rng.randrange(99)).standard_normal(shape)
    x = made.astype(rng.choice(KINDS) if rng.random() < 0.15 else "float32")
    way = rng.randrange(12)
    if way == 0:
        x = x[..., ::-1]
    elif way == 1 and x.ndim > 1:
        x = x.swapaxes(-1, -2).copy().swapaxes(-1, -2)
    elif way == 2:
        x = np.broadcast_to(x[..., :1], x.shape) if x.ndim else x
    elif way == 3 and x.size and x.dtype.kind == "f":
        x.flat[0] = rng.choice([np.nan, np.inf])
    return x


def options(rng):
    named = {
        "scale": lambda: rng.choice([*ODD, 0.1]),
        "softcap": lambda: rng.choice([*ODD, 5.0]),
        "alibi_slopes": lambda: rng.choice([[0.5, 0.25], 0.5, *ODD]),
        "sinks": lambda: rng.choice([[0.5, 0.25], *ODD]),
        "key_lengths": lambda: number(rng),
        "key_starts": lambda: number(rng),
        "q_offset": lambda: number(rng),
        "dropout": lambda: rng.choice([0.1, 0.9, *ODD]),
        "seed": lambda: number(rng),
        "max_bytes": lambda: rng.choice([1000, 10**6, *ODD]),
        "num_threads": lambda: rng.choice([1, 2, *[x for x in ODD if not isinstance(x, int) or x < 4]]),
    }
    return {name: named[name]() for name in rng.sample(list(named), rng.choice((0, 0, 1, 1, 2)))}


def call(rng):
    one, n_q, d = pattern(rng), rng.choice(SIZES), rng.choice([1, 3, 8, 16])
    n_k = n_q if rng.random() < 0.8 else rng.choice(SIZES)
    shape = random.Random(rng.randrange(1 << 30))
    state = shape.getstate()
    q, k, v = (shape.setstate(state) or array(shape, n, d) for n in (n_q, n_k, n_k))
    way = rng.randrange(8)
    if way < 3:
        subquad.attention(q, k, v, one, **options(rng))
    elif way == 3:
        out, lse = subquad.attention(q, k, v, one, return_lse=True)
        subquad.attention_backward(np.ones_like(out), q, k, v, out, lse, one, **options(rng))
    elif way == 4:
        rng.choice((subquad.attention_scores, subquad.attention_weights))(q, k, one)
    elif way == 5:
        n = number(rng) if rng.random() < 0.5 else n_q
        n = 1 << 20 if isinstance(n, int) and n == 1 << 31 else n  # work that follows n takes a minute at 2**31
        rng.choice((one.nnz, one.density, one.to_csr, one.plan))(n, n if rng.random() < 0.8 else n_k)
    elif way == 6:
        rng.choice((one.row, one.explain))(number(rng), n_q, n_k)
    else:
        one.contains(number(rng), number(rng), n_q, n_k)


def fuzz(count: int, seed: int) -> collections.Counter[str]:
    ends, slowest = collections.Counter(), 0.0
    for turn in range(count):
        rng = random.Random(seed * 1_000_003 + turn)  # so that a call can be made alone: call(random.Random(...))
        began = time.perf_counter()
        try:
            call(rng)
        except ALLOWED as error:
            ends[type(error).__name__] += 1
        except BaseException:
            print(f"call(random.Random({seed * 1_000_003 + turn}))", file=sys.stderr)
            raise
        else:
            ends["result"] += 1
        slowest = max(slowest, time.perf_counter() - began)
        if slowest > 20:
            raise AssertionError(f"call(random.Random({seed * 1_000_003 + turn})) took {slowest:.0f} s")
    return ends


if __name__ == "__main__":
    warnings.simplefilter("error")
    start, total = time.perf_counter(), int(sys.argv[1])
    found = fuzz(total, seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(f"{total:,} calls in {time.perf_counter() - start:.0f} s: {dict(found)}")
