"""What is computed: patterns, sizes and inputs."""

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np

import subquad

#: What is timed, with its useful operations: a multiply-add per pair and component for the scores and for the values;
#: in a backward for each of its five products.
FORWARD, BACKWARD, TRAINING = "forward", "backward", "forward and backward"
FLOPS_PER_PAIR = {FORWARD: 4, BACKWARD: 10, TRAINING: 14}


@dataclasses.dataclass(frozen=True)
class Case:
    """One pattern at one size. `family` and `size` say it in plain words, for contenders that need more than pairs."""

    name: str
    family: str
    size: int  # window, stride, keys or block: whatever the family is measured in
    n: int
    heads: int = 1
    d: int = 64
    global_tokens: int = 0  # the first so many tokens are global
    # Side of the mask blocks at which FlexAttention was fastest here, of 16, 32, 64, 128 (its default) and 256.
    flex_block: int = 64
    work: str = FORWARD

    @functools.cached_property
    def pattern(self) -> subquad.Pattern:
        return FAMILIES[self.family](self)

    @functools.cached_property
    def pairs(self) -> int:
        """Allowed pairs over all heads."""
        return self.heads * self.pattern.nnz(self.n, self.n)

    @property
    def flops(self) -> int:
        """Useful operations."""
        return FLOPS_PER_PAIR[self.work] * self.d * self.pairs

    def inputs(self) -> list[np.ndarray]:
        """Query, key, value and the gradient of the output, each (heads, n, d)."""
        rng = np.random.default_rng(0)
        return [rng.standard_normal((self.heads, self.n, self.d), dtype=np.float32) for _ in range(4)]

    def dense_mask(self) -> np.ndarray:
        """n x n booleans, for contenders that take nothing else. Built row by row: its indices would be 8 times it."""
        mask = np.empty((self.n, self.n), dtype=bool)
        columns = np.arange(self.n)
        for i in range(self.n):
            mask[i] = self.pattern.contains(i, columns, self.n, self.n)
        return mask


FAMILIES = {
    "banded": lambda case: subquad.Banded(case.size),
    "strided": lambda case: subquad.Strided(case.size),
    "random": lambda case: subquad.Random(case.size, seed=0),
    "bigbird": lambda case: subquad.bigbird(case.size),
    "longformer": lambda case: subquad.longformer(case.size, range(case.global_tokens)),
}

CASES = (
    Case("banded-256", "banded", 256, n=4096, heads=4),
    Case("banded-8", "banded", 8, n=8192, flex_block=16),
    Case("banded-32", "banded", 32, n=8192, flex_block=32),
    Case("banded-128", "banded", 128, n=8192, flex_block=32),
    Case("banded-512", "banded", 512, n=8192),
    Case("random-64", "random", 64, n=16384),
    Case("strided-128", "strided", 128, n=16384, flex_block=16),
    Case("bigbird-64", "bigbird", 64, n=8192),
    Case("longformer-256", "longformer", 256, n=8192, global_tokens=16),
    Case("banded-256-backward", "banded", 256, n=4096, heads=4, work=BACKWARD),
    Case("banded-256-training", "banded", 256, n=4096, heads=4, work=TRAINING),
    Case("longformer-256-training", "longformer", 256, n=4096, global_tokens=16, work=TRAINING),
    Case("random-64-training", "random", 64, n=16384, work=TRAINING),
)
# Measured on their own: two threads against one, memory of a long sequence, a new process.
THREADS_CASE = Case("threads-2", "banded", 256, n=16384, heads=4)
MEMORY_CASE = Case("memory-1m", "banded", 128, n=1_000_000)
TRAINING_MEMORY_CASE = Case("memory-262k-training", "banded", 128, n=262_144, work=TRAINING)
STARTUP = "startup"

CASE_NAMES = (*(case.name for case in CASES), THREADS_CASE.name, MEMORY_CASE.name, TRAINING_MEMORY_CASE.name, STARTUP)


def shortened(cases: Iterable[Case], n: int) -> list[Case]:
    """The same patterns on at most n tokens, where only their working is of interest."""
    return [dataclasses.replace(case, n=min(case.n, n)) for case in cases]
