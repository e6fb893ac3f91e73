"""Tokens that see everything and that everything sees."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from subquad import checks
from subquad.complexity.orders import LINEAR, Order
from subquad.patterns.base import Pattern, Shape, Union
from subquad.patterns.spans import Bools, Ints
from subquad.patterns.whole import KeySet, RowSet, Tokens, how_many


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Global(Pattern):
    """Pairs whose query or key is one of `tokens`: O(n g) pairs for g tokens.

    Parameters
    ----------
    tokens : iterable of int
        Positions, each at least 0; ``range(g)`` for the first g, however many keys there are. Tokens that are listed
        one by one must be below n_k wherever the pattern is used.
    rows, columns : bool
        Whether the tokens attend everything, and whether everything attends them.

    Raises
    ------
    TypeError, ValueError
        If a token is no integer or negative, or both halves are switched off; in use, if a listed token is past the
        last key.

    References
    ----------
    Beltagy, Peters, Cohan, "Longformer" (2020), section 3.1.

    Examples
    --------
    >>> Global([0, 5]).row(2, 8, 8)
    array([0, 5])
    >>> len(Global([0, 5]).row(5, 8, 8))
    8
    """

    tokens: Tokens
    rows: bool
    columns: bool

    def __init__(self, tokens: Any, *, rows: bool = True, columns: bool = True) -> None:
        for name, half in (("rows", rows), ("columns", columns)):
            if not isinstance(half, bool | np.bool_):
                raise TypeError(f"{name} must be True or False; got {half!r}")
        if not rows and not columns:
            raise ValueError("rows and columns must not both be False: the pattern would allow nothing")
        object.__setattr__(self, "tokens", _checked_tokens(tokens))
        object.__setattr__(self, "rows", bool(rows))
        object.__setattr__(self, "columns", bool(columns))

    @property
    def order(self) -> Order:
        return LINEAR

    def _validate(self, shape: Shape) -> None:
        if isinstance(self.tokens, tuple) and self.tokens[-1] >= shape.n_k:
            raise ValueError(f"tokens must be below n_k = {shape.n_k}; got {self.tokens[-1]} in {self!r}")

    def _halves(self) -> list[Pattern]:
        """The whole rows and the whole columns this pattern is made of."""
        return [half(self.tokens) for half, on in ((RowSet, self.rows), (KeySet, self.columns)) if on]

    def _resolved(self, shape: Shape) -> Pattern:
        return reduce(Union, self._halves())

    def _transposed(self, shape: Shape) -> Pattern:
        return reduce(Union, [half._transposed(shape) for half in self._halves()])

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        found = [half._contains(i, j, shape) for half in self._halves()]
        return np.asarray(np.logical_or.reduce(found), bool)

    def _row(self, i: int, shape: Shape) -> Ints:
        if self.rows and i + shape.shift in self.tokens:
            return checks.key_range(0, shape.n_k)
        return KeySet(self.tokens).members(shape) if self.columns else np.arange(0)

    def _count(self, shape: Shape) -> int:
        rows = how_many(self.tokens, shape.shift, shape.n_k) if self.rows else 0
        columns = how_many(self.tokens, 0, shape.n_k) if self.columns else 0
        return rows * shape.n_k + columns * shape.n_q - rows * columns

    def __repr__(self) -> str:
        halves = "".join(f", {name}=False" for name in ("rows", "columns") if not getattr(self, name))
        return f"Global({self.tokens!r}{halves})"


def _checked_tokens(tokens: Any) -> Tokens:
    """A range as it is, so that a long one stays small; anything else sorted, each token once."""
    if isinstance(tokens, range) and tokens.step == 1:
        if tokens and tokens.start < 0:
            raise ValueError(f"tokens must hold integers >= 0; got {tokens!r}")
        if tokens.stop > checks.LARGEST:
            raise ValueError(f"tokens must be at most 2**62; got {tokens!r}")
        return tokens if tokens else range(0)
    if isinstance(tokens, str | bytes) or not isinstance(tokens, Iterable):
        raise TypeError(
            f"tokens must be an iterable of integers >= 0, such as range(16); got {tokens!r} "
            f"of type {type(tokens).__name__}"
        )
    if isinstance(tokens, Sized):
        checks.allocatable(128 * len(tokens), f"a list of {len(tokens):,} tokens", "Use a range of step 1.")
    found = {checks.integer(token, "tokens", 0, what="an iterable of integers") for token in tokens}
    return tuple(sorted(found)) if found else range(0)
