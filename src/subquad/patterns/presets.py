"""Patterns known by name, each an expression of the others and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from subquad import checks
from subquad.patterns.bands import Banded, Causal
from subquad.patterns.base import Pattern
from subquad.patterns.columns import Columns
from subquad.patterns.global_tokens import Global
from subquad.patterns.random_keys import Random
from subquad.patterns.strided import Strided


def dilated(window: int, dilation: int) -> Pattern:
    """A window with gaps: keys p + k dilation for abs(k) <= window.

    O(n window) pairs. Beltagy et al., "Longformer" (2020), section 3.1.

    Examples
    --------
    >>> dilated(2, 3).row(7, 16, 16)
    array([ 1,  4,  7, 10, 13])
    """
    window, dilation = checks.integer(window, "window", 0), checks.integer(dilation, "dilation", 1)
    return Strided(dilation) & Banded(window * dilation)


def longformer(window: int | tuple[int | None, int | None], global_tokens: int | Iterable[int] = 1) -> Pattern:
    """A sliding window and global tokens: ``Banded(window) | Global(global_tokens)``.

    O(n (window + g)) pairs for g global tokens; an int takes the first ones. Beltagy et al., "Longformer" (2020).
    (Hugging Face's ``attention_window`` counts both sides: ``attention_window=512`` is ``window=256``.)

    Examples
    --------
    >>> longformer(1, 1).row(4, 8, 8)
    array([0, 3, 4, 5])
    """
    tokens: Any = global_tokens
    if not isinstance(tokens, Iterable):
        tokens = range(checks.integer(tokens, "global_tokens", 0, what="an iterable of integers, or a number of them"))
    return Banded(window) | Global(tokens)


def bigbird(
    block: int, window_blocks: int = 3, random_blocks: int = 3, global_blocks: int = 2, seed: int = 0
) -> Pattern:
    """Blocks of a window, random blocks and global blocks; each pair once, however they overlap.

    O(n block (window + random + global)) pairs. A query block attends `window_blocks` blocks around itself (an odd
    number), `random_blocks` random ones and the first `global_blocks`, whose own queries attend everything.
    Zaheer et al., "Big Bird" (2020), section 2.

    Examples
    --------
    >>> bigbird(2, window_blocks=3, random_blocks=1, global_blocks=1).nnz(16, 16)
    136
    """
    window_blocks = checks.integer(window_blocks, "window_blocks", 1, what="an odd integer")
    if window_blocks % 2 == 0:
        raise ValueError(f"window_blocks must be an odd integer, the same number on both sides; got {window_blocks}")
    random_blocks = checks.integer(random_blocks, "random_blocks", 0)
    global_blocks = checks.integer(global_blocks, "global_blocks", 0)
    if global_blocks * checks.integer(block, "block", 1) > checks.LARGEST:
        raise ValueError(f"global_blocks x block must be at most 2**62; got {global_blocks} x {block}")
    pattern: Pattern = Banded(window_blocks // 2, block=block)
    if random_blocks:
        pattern = pattern | Random(random_blocks, seed, block=block)
    if global_blocks:
        pattern = pattern | Global(range(global_blocks * block))
    return pattern


def streaming(sinks: int, window: int) -> Pattern:
    """The first `sinks` keys and the last `window` keys, the query's own among them; causal.

    O(n (sinks + window)) pairs. Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (2023).

    Examples
    --------
    >>> streaming(2, 3).row(6, 8, 8)
    array([0, 1, 4, 5, 6])
    """
    sinks, window = checks.integer(sinks, "sinks", 0), checks.integer(window, "window", 1)
    recent = Banded((window - 1, 0))
    if sinks == 0:
        return recent
    return recent | Global(range(sinks), rows=False) & Causal()


def sparse_transformer_strided(stride: int) -> Pattern:
    """The last `stride` keys and every `stride`-th before them: ``(Banded((stride, 0)) | Strided(stride)) & Causal()``.

    O(n (stride + n / stride)) pairs: O(n^1.5) where the stride is about the square root of n. Child et al.,
    "Generating Long Sequences with Sparse Transformers" (2019), section 4.2, "strided".

    Examples
    --------
    >>> sparse_transformer_strided(3).row(8, 10, 10)
    array([2, 5, 6, 7, 8])
    """
    stride = checks.integer(stride, "stride", 1)
    return (Banded((stride, 0)) | Strided(stride)) & Causal()


def sparse_transformer_fixed(stride: int, width: int = 1) -> Pattern:
    """The query's own block of `stride` keys, and the last `width` keys of every block; causal.

    ``(Banded(0, block=stride) | Columns(stride, width)) & Causal()``: O(n (stride + n width / stride)) pairs. Child et
    al., "Generating Long Sequences with Sparse Transformers" (2019), section 4.2, "fixed".

    Examples
    --------
    >>> sparse_transformer_fixed(4, 1).row(9, 12, 12)
    array([3, 7, 8, 9])
    """
    stride = checks.integer(stride, "stride", 1)
    return (Banded(0, block=stride) | Columns(stride, width)) & Causal()
