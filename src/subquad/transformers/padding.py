"""Which tokens of a batch are there: elements that look alike are attended together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Codes = npt.NDArray[np.int8]


class Group(NamedTuple):
    """Elements of a batch whose tokens are masked, local and global at the same places."""

    members: list[int]
    masked: range | tuple[int, ...]
    special: tuple[int, ...]  # tokens of code 1, such as global ones

    def take(self, x: Tensor) -> Tensor:
        """The group's elements of x, without a copy where that is all of them."""
        if self.members == list(range(len(x))):
            return x
        return x[self.members[0] : self.members[0] + 1] if len(self.members) == 1 else x[self.members]


def groups(codes: Tensor) -> list[Group]:
    """Elements of equal rows of `codes` (batch, n): below 0 a masked token, 0 one like most, above 0 a special one."""
    signs: Codes = torch.sign(codes.detach()).to(torch.int8).numpy()
    alike: dict[bytes, list[int]] = {}
    for element, row in enumerate(signs):
        alike.setdefault(row.tobytes(), []).append(element)
    return [
        Group(members, _tokens(np.nonzero(row < 0)[0]), tuple(np.nonzero(row > 0)[0].tolist()))
        for members in alike.values()
        for row in (signs[members[0]],)
    ]


def _tokens(tokens: npt.NDArray[np.intp]) -> range | tuple[int, ...]:
    """A range where they are neighbours, as padding is: however long, it makes a short pattern."""
    if len(tokens) and tokens[-1] - tokens[0] == len(tokens) - 1:
        return range(int(tokens[0]), int(tokens[-1]) + 1)
    return tuple(tokens.tolist())


def joined(parts: list[tuple[Group, Tensor]]) -> Tensor:
    """One batch again, from the results of each group."""
    if len(parts) == 1:
        return parts[0][1]
    order = [element for group, _ in parts for element in group.members]
    back = np.argsort(order).tolist()
    return torch.cat([part for _, part in parts])[back]
