"""A pattern with queries and keys swapped, where only the sizes can tell what that is."""

from __future__ import annotations

from dataclasses import dataclass

from subquad.complexity.orders import Order
from subquad.patterns.base import Pattern, Shape
from subquad.patterns.spans import Bools, Ints


@dataclass(frozen=True, slots=True, repr=False)
class Transposed(Pattern):
    """Row j and key i where `base` allows row i and key j. It is planned as what `base` says it is at these sizes."""

    base: Pattern

    @property
    def order(self) -> Order:
        return self.base.order

    def transpose(self) -> Pattern:
        return self.base

    def _resolved(self, shape: Shape) -> Pattern:
        return self.base._transposed(shape)._resolved(shape)

    def _validate(self, shape: Shape) -> None:
        self.base._validate(shape.swapped)

    def _check_plan(self, shape: Shape) -> None:
        self.base._check_plan(shape.swapped)
        super(Transposed, self)._check_plan(shape)

    def _contains(self, i: Ints, j: Ints, shape: Shape) -> Bools:
        return self.base._contains(j, i, shape.swapped)

    def _row(self, i: int, shape: Shape) -> Ints:
        return self._resolved(shape)._row(i, shape)

    def _count(self, shape: Shape) -> int:
        return self.base._count(shape.swapped)

    def __repr__(self) -> str:
        return f"{self.base!r}.transpose()"
