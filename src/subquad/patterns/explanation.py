"""Which part of an expression allows each key: the answer to windows that differ by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from subquad.patterns.base import Pattern, checked_shape


@dataclass(frozen=True)
class Explanation(Mapping[int, tuple[Pattern, ...]]):
    """A mapping from each allowed key of one query row to the patterns that allow it; ``print`` it to read it.

    Attributes
    ----------
    row, position : int
        The query row i, and p = i + n_k - n_q.
    n_k : int
        Number of keys.
    parts : mapping of int to tuple of Pattern
        For each allowed key the patterns of the expression that contain the pair.
    """

    row: int
    position: int
    n_k: int
    parts: Mapping[int, tuple[Pattern, ...]]

    def __getitem__(self, key: int) -> tuple[Pattern, ...]:
        return self.parts[key]

    def __iter__(self) -> Iterator[int]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __str__(self) -> str:
        lines = [f"query row {self.row} at position {self.position} of {self.n_k}: {len(self)} keys"]
        # neighbours that the same parts allow share a line
        for (_, parts), group in groupby(enumerate(self.parts.items()), lambda e: (e[1][0] - e[0], e[1][1])):
            keys = [key for _, (key, _) in group]
            name = f"key {keys[0]}" if len(keys) == 1 else f"keys {keys[0]} to {keys[-1]}"
            lines.append(f"  {name}: {', '.join(map(repr, parts))}")
        return "\n".join(lines)


def explain(pattern: Pattern, i: int, n_q: int, n_k: int) -> Explanation:
    """Build the `Explanation` of row i; time and memory follow the row."""
    keys = pattern.row(i, n_q, n_k)
    shape = checked_shape(n_q, n_k)
    rows = np.full_like(keys, i)
    leaves = list(dict.fromkeys(pattern._leaves()))
    allowed = [leaf._contains(rows, keys, shape) for leaf in leaves]
    parts = {
        int(key): tuple(leaf for leaf, inside in zip(leaves, allowed, strict=True) if inside[at])
        for at, key in enumerate(keys)
    }
    return Explanation(int(i), int(i) + shape.shift, shape.n_k, parts)
