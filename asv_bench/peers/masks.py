"""`mask_mod` functions for FlexAttention: the pattern of a case as tensor arithmetic on one pair of indices."""

from collections.abc import Callable

import numpy as np

from .cases import Case


class Refused(Exception):
    """A contender cannot do a case; the message says why."""


def mask_mod(case: Case) -> Callable:
    return BUILDERS[case.family](case)


def banded(case: Case) -> Callable:
    window = case.size
    return lambda batch, head, i, j: (i - j).abs() <= window


def strided(case: Case) -> Callable:
    stride = case.size
    return lambda batch, head, i, j: (i - j) % stride == 0


def longformer(case: Case) -> Callable:
    window, tokens = case.size, case.global_tokens
    return lambda batch, head, i, j: ((i - j).abs() <= window) | (i < tokens) | (j < tokens)


def bigbird(case: Case) -> Callable:
    """A table of (n / block)² booleans: its random blocks have no formula."""
    import torch

    block = case.size
    first_rows = np.arange(0, case.n, block)
    layout = case.pattern.contains(first_rows[:, None], first_rows[None, :], case.n, case.n)
    table = torch.from_numpy(np.ascontiguousarray(layout))
    return lambda batch, head, i, j: table[i // block, j // block]


def random(case: Case) -> Callable:
    raise Refused("random keys of each token have no mask_mod short of an n x n table")


BUILDERS = {"banded": banded, "strided": strided, "longformer": longformer, "bigbird": bigbird, "random": random}
