"""Time and memory of gradients, plan and kernels warm."""

import functools

import numpy as np

import subquad
from subquad.complexity.memory import extra_memory

from .common import DIM, PATTERNS, THREADS, inputs

ARRAYS = 8  # query, key, value, out and their gradients
FLOAT32 = 4


@functools.cache
def forward(pattern: subquad.Pattern, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Output and lse, after one backward that compiles or loads the kernels."""
    out, lse = subquad.attention(*inputs(n), pattern, return_lse=True, num_threads=THREADS)
    subquad.attention_backward(out, *inputs(n), out, lse, pattern, num_threads=THREADS)
    return out, lse


class Training:
    """The backward alone, and with its forward; the gradient of the output is the output itself."""

    version = "1"
    timeout = 120
    param_names = ("pattern", "n")
    params = (["causal", "banded", "strided", "random", "longformer"], [2048, 8192])

    def setup(self, name, n):
        forward(PATTERNS[name], n)

    def time_backward(self, name, n):
        out, lse = forward(PATTERNS[name], n)
        subquad.attention_backward(out, *inputs(n), out, lse, PATTERNS[name], num_threads=THREADS)

    def time_forward_and_backward(self, name, n):
        out, lse = subquad.attention(*inputs(n), PATTERNS[name], return_lse=True, num_threads=THREADS)
        subquad.attention_backward(out, *inputs(n), out, lse, PATTERNS[name], num_threads=THREADS)


class TrainingMemory:
    """What a forward and a backward take beyond inputs, output and gradients, all of which together are 1."""

    version = "1"
    timeout = 120
    unit = "inputs, output and gradients"
    param_names = ("pattern",)
    params = (["banded", "random"],)
    n = 65_536

    def track_extra_over_arrays(self, name):
        used = extra_memory(PATTERNS[name], self.n, d=DIM, heads=1, num_threads=THREADS, backward=True)
        return max(0, used) / (ARRAYS * self.n * DIM * FLOAT32)
