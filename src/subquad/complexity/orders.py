"""Orders of growth, as values that compare by how fast they grow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import total_ordering


@total_ordering
@dataclass(frozen=True)
class Order:
    """An order of growth in n.

    Parameters
    ----------
    notation : str
        As it is written, e.g. ``"O(n log n)"``; also what ``str`` gives.
    rank : tuple of float
        Exponents of n and of log n, which orders compare by.

    Examples
    --------
    >>> str(max(LINEAR, QUADRATIC))
    'O(n²)'
    >>> LINEAR == "O(n)"
    True
    """

    notation: str
    rank: tuple[float, float]

    def __str__(self) -> str:
        return self.notation

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return self.notation == other
        return isinstance(other, Order) and self.rank == other.rank

    def __hash__(self) -> int:
        return hash(self.notation)

    def __lt__(self, other: Order) -> bool:
        return self.rank < other.rank


LINEAR = Order("O(n)", (1, 0))
LINEARITHMIC = Order("O(n log n)", (1, 1))
QUADRATIC = Order("O(n²)", (2, 0))
