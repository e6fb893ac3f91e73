"""The random draws of dropout: a function of (seed, batch, head, row, key) alone, so that a backward draws the same.

A word of 32 bits for each row and an odd one for each key of a head, from splitmix64 (Steele et al., 2014), are
multiplied and mixed. The kernels do the same in registers, `kernels.modifiers.thin`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
_GOLDEN = 0x9E3779B97F4A7C15
_ALL = (1 << 64) - 1


def _mixed(z: Words) -> Words:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z ^ (z >> np.uint64(31))


def head_seeds(seed: int, n_batches: int, n_heads: int) -> Words:
    """A seed for each head of each batch, (batch, heads)."""
    start = _mixed(np.array([(seed + _GOLDEN) & _ALL], np.uint64))
    batches = _mixed(start + np.arange(1, n_batches + 1, dtype=np.uint64) * np.uint64(_GOLDEN))
    return _mixed(batches[:, None] + np.arange(1, n_heads + 1, dtype=np.uint64) * np.uint64(_GOLDEN))


def threshold(dropout: float) -> int:
    """A pair is dropped if its draw of 32 bits is below this."""
    return min(round(dropout * 2**32), 2**32 - 1)


def kept(seed: int, batch: int, head: int, i: npt.ArrayLike, j: npt.ArrayLike, dropout: float) -> npt.NDArray[np.bool_]:
    """Which pairs of a query row and a key dropout leaves; the arrays are broadcast together.

    Examples
    --------
    >>> kept(0, 0, 0, 3, np.arange(8), 0.5)
    array([False, False,  True, False, False,  True,  True,  True])
    """
    of_head = head_seeds(seed, batch + 1, head + 1)[batch, head]
    with np.errstate(over="ignore"):  # as integers of C do
        of_rows, of_keys = (np.atleast_1d(x).astype(np.uint64) * np.uint64(_GOLDEN) for x in (i, j))
        rows, keys = ((_mixed(z) >> np.uint64(32)).astype(np.uint32) for z in (of_rows + of_head, of_keys + ~of_head))
        x = rows * (keys | np.uint32(1))
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return np.asarray(x >= threshold(dropout))
