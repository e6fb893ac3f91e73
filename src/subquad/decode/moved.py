"""The same pattern over a sequence whose first tokens are gone."""

from __future__ import annotations

import math

from subquad.patterns.bands import Band
from subquad.patterns.base import Intersection, Pattern, Union, _Joined
from subquad.patterns.columns import Columns
from subquad.patterns.global_tokens import Global
from subquad.patterns.log_sparse import LogSparse
from subquad.patterns.strided import Strided


def period(pattern: Pattern) -> int | None:
    """A pattern can be moved by multiples of this; None where it cannot be moved at all."""
    if isinstance(pattern, _Joined):
        left, right = period(pattern.left), period(pattern.right)
        return None if left is None or right is None else math.lcm(left, right)
    if isinstance(pattern, Band):
        return pattern.reach()[2]
    if isinstance(pattern, Columns):
        return pattern.stride
    return 1 if isinstance(pattern, Strided | LogSparse | Global) else None


def moved(pattern: Pattern, origin: int, n: int) -> Pattern | None:
    """The pattern over the tokens origin <= j < n alone, numbered from 0; None where it allows nothing there.

    `origin` is a multiple of the pattern's `period`.
    """
    if isinstance(pattern, Global):
        tokens = pattern.tokens
        if isinstance(tokens, range):
            kept: range | list[int] = range(max(tokens.start - origin, 0), max(tokens.stop - origin, 0))
        else:
            kept = [token - origin for token in tokens if origin <= token < n]
        return Global(kept, rows=pattern.rows, columns=pattern.columns) if kept else None
    if not isinstance(pattern, _Joined):
        return pattern
    left, right = moved(pattern.left, origin, n), moved(pattern.right, origin, n)
    if left is None or right is None:
        alone = left if right is None else right
        return {Union: alone, Intersection: None}.get(type(pattern), left)
    return type(pattern)(left, right)
