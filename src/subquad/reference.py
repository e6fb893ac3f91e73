"""The dense float64 oracle: the definition, with nothing clever in it. For tests, and for whoever wants to check."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, Unpack, overload

import numpy as np
import numpy.typing as npt

from subquad import limits
from subquad.draws import kept
from subquad.inputs import Array, checked_inputs, checked_patterns, checked_scale
from subquad.options import AttentionOptions, Options, checked_options
from subquad.patterns.bands import Dense
from subquad.patterns.base import Pattern, Shape

_CHUNK = 1 << 22  # scores held at a time
_HELD = 6  # arrays of them

Floats = npt.NDArray[np.float64]


@overload
def attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    pattern: Pattern | Sequence[Pattern] = ...,
    *,
    scale: float | None = ...,
    return_lse: Literal[False] = ...,
    max_bytes: int | None = ...,
    **options: Unpack[AttentionOptions],
) -> Floats: ...


@overload
def attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    pattern: Pattern | Sequence[Pattern] = ...,
    *,
    scale: float | None = ...,
    return_lse: Literal[True],
    max_bytes: int | None = ...,
    **options: Unpack[AttentionOptions],
) -> tuple[Floats, Floats]: ...


def attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    pattern: Pattern | Sequence[Pattern] = Dense(),  # noqa: B008 - a frozen value
    *,
    scale: float | None = None,
    return_lse: bool = False,
    max_bytes: int | None = None,
    **options: Unpack[AttentionOptions],
) -> Floats | tuple[Floats, Floats]:
    """`subquad.attention` in float64, every score computed and masked by ``pattern.contains``.

    Takes and returns what `subquad.attention` does, but float64. Time O(n²); a block of rows is held at a time. A
    score_mod or mask_mod is called in Python with arrays of b, h, i and j, or pair by pair if it cannot take those.

    Examples
    --------
    >>> import numpy as np
    >>> attention(np.zeros((2, 1)), np.zeros((2, 1)), np.array([[1.0], [3.0]]))
    array([[2.],
           [2.]])
    """
    inputs = checked_inputs(query, key, value)
    patterns = checked_patterns(pattern, inputs.arrays[0].shape[1])
    asked = checked_options(options, inputs)
    budget = limits.Budget(max_bytes, inputs, inputs.arrays)
    (*of_rows, _), d_v, n_keys = inputs.arrays[0].shape, inputs.arrays[2].shape[3], inputs.arrays[1].shape[2]
    budget.array("the output", (*of_rows, d_v + 1), np.float64)
    budget.array(
        "scores of a block of rows", (_HELD, min(of_rows[2], max(1, _CHUNK // max(1, n_keys))), n_keys), np.float64
    )
    budget.array("inputs in float64", (sum(x.size for x in inputs.arrays),), np.float64)
    limits.check(budget.parts, budget.most)
    q, k, v = (x.astype(np.float64) for x in inputs.arrays)
    factor, n_q, n_k = checked_scale(scale, q.shape[-1], q.dtype), q.shape[2], k.shape[2]
    out, lse = np.zeros((*q.shape[:3], v.shape[3])), np.full(q.shape[:3], -np.inf)
    if asked.sinks is not None:
        lse[...] = asked.sinks[:, None]
    for member, rows, allowed in _blocks(patterns, asked, q.shape[0], n_q, n_k):
        b, h = member
        block = _Block(b, h, rows, allowed, factor, asked)
        shared = b, h // inputs.group
        out[b, h, rows], lse[b, h, rows] = _rows(q[b, h, rows], k[shared], v[shared], block)
    result, sums = out.reshape(*inputs.leading, n_q, v.shape[3]), lse.reshape(*inputs.leading, n_q)
    return (result, sums) if return_lse else result


class _Block(NamedTuple):
    """Some query rows of one head, the pairs (rows, n_k) they may attend, and what is done to their scores."""

    batch: int
    head: int
    rows: Array
    allowed: Array
    scale: float
    options: Options

    @property
    def keys(self) -> Array:
        return np.arange(self.allowed.shape[1])

    def scores(self, q: Floats, k: Floats) -> Floats:
        return self.modified(self.scale * (q @ k.T))

    def modified(self, scores: Floats) -> Floats:
        """Softcap, ALiBi, score_mod, then the mask."""
        options, i, j = self.options, self.rows[:, None], self.keys
        if options.softcap is not None:
            scores = options.softcap * np.tanh(scores / options.softcap)
        if options.slopes is not None:
            position = i + options.offset[self.batch]
            scores = scores - options.slopes[self.head] * np.abs(position - j)
        if options.score_mod is not None:
            scores = _called(options.score_mod, scores, self.batch, self.head, i, j)
        return np.where(self.allowed, scores, -np.inf)

    def slopes(self, q: Floats, k: Floats) -> Floats:
        """Derivatives of modified scores by plain ones, as differences of fourth order where no formula is known."""
        plain, options = self.scale * (q @ k.T), self.options
        if options.score_mod is None:
            return np.ones_like(plain) if options.softcap is None else 1 - np.tanh(plain / options.softcap) ** 2
        h, unmasked = 1e-3, self._replace(allowed=np.ones_like(self.allowed))
        ahead, behind = ([unmasked.modified(plain + side * n * h) for n in (1, 2)] for side in (1, -1))
        return np.asarray((8 * (ahead[0] - behind[0]) - (ahead[1] - behind[1])) / (12 * h))

    def thinned(self) -> Floats:
        """What dropout multiplies every weight by."""
        options, pairs = self.options, (self.rows[:, None], self.keys)
        if not options.dropout:
            return np.ones(self.allowed.shape)
        found = kept(options.seed, self.batch, self.head, *pairs, options.dropout)
        return np.where(found, 1 / (1 - options.dropout), 0.0)


def _called(mod: Any, *arguments: Any) -> Array:
    """A function of pairs for arrays of them."""
    mod = getattr(mod, "py_func", mod)
    try:
        with np.errstate(all="ignore"):
            found = mod(*arguments)
    except (ValueError, TypeError):  # such as a branch on an array
        found = np.vectorize(mod, otypes=[float])(*arguments)
    return np.asarray(np.broadcast_to(found, np.broadcast_shapes(*(np.shape(x) for x in arguments))))


def _blocks(
    patterns: list[tuple[Pattern, Sequence[int]]], options: Options, n_batches: int, n_q: int, n_k: int
) -> Iterator[tuple[tuple[int, int], Array, Array]]:
    """(batch, head), rows, and the pairs that those rows may attend: all of it, a bounded number of pairs at a time."""
    rows_at_once = max(1, _CHUNK // max(1, n_k))
    for start in range(0, n_q if n_k else 0, rows_at_once):
        rows = np.arange(start, min(n_q, start + rows_at_once))
        i, j = np.broadcast_arrays(rows[:, None], np.arange(n_k))
        for (one, heads), b in itertools.product(patterns, range(n_batches)):
            shape = Shape(n_q, n_k, int(options.offset[b]))
            one._validate(shape)
            there = (options.key_begin[b] <= j) & (j < options.key_end[b])
            allowed = one._contains(i, j, shape) & there
            for h in heads:
                if options.mask_mod is None:
                    yield (b, h), rows, allowed
                else:
                    yield (b, h), rows, allowed & (_called(options.mask_mod, b, h, i, j) != 0)


def _rows(q: Floats, k: Floats, v: Floats, block: _Block) -> tuple[Floats, Floats]:
    """Attention of some rows of one head."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        sinks = block.options.sinks
        sink = -np.inf if sinks is None else sinks[block.head]
        scores = block.scores(q, k)
        top = np.maximum(scores.max(axis=1, keepdims=True), sink)
        base = np.where(np.isneginf(top), 0, top)
        weights = np.exp(scores - base)
        total = weights.sum(axis=1, keepdims=True) + np.exp(sink - base)
        shares = np.where(block.allowed, weights / np.where(total == 0, 1, total), 0) * block.thinned()
        return _product(shares, v, block.allowed), (base + np.log(total))[:, 0]


def _product(a: Floats, b: Floats, allowed: Array) -> Floats:
    """a @ b, where only allowed entries of `a` count, whatever `b` holds."""
    finite = np.isfinite(b).all(axis=1)
    result: Floats = a[:, finite] @ b[finite]
    for j in np.nonzero(~finite)[0]:  # a product with 0 would let them into rows that may not see them
        reached = allowed[:, j]
        result[reached] += a[reached, j, None] * b[j]
    return result


def attention_backward(
    grad_out: npt.ArrayLike,
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    out: npt.ArrayLike,
    lse: npt.ArrayLike,
    pattern: Pattern | Sequence[Pattern] = Dense(),  # noqa: B008 - a frozen value
    *,
    scale: float | None = None,
    grad_lse: npt.ArrayLike | None = None,
    **options: Unpack[AttentionOptions],
) -> tuple[Floats, ...]:
    """`subquad.attention_backward` in float64, every weight recomputed densely from `lse`.

    Takes and returns what `subquad.attention_backward` does, but float64. Time O(n²), a block of rows at a time.

    Examples
    --------
    >>> import numpy as np
    >>> q, k, v = np.ones((2, 1)), np.ones((2, 1)), np.array([[1.0], [3.0]])
    >>> out, lse = attention(q, k, v, return_lse=True)
    >>> attention_backward(np.ones((2, 1)), q, k, v, out, lse)[2]
    array([[1.],
           [1.]])
    """
    inputs = checked_inputs(query, key, value)
    patterns = checked_patterns(pattern, inputs.arrays[0].shape[1])
    asked = checked_options(options, inputs)
    q, k, v = (x.astype(np.float64) for x in inputs.arrays)
    factor, n_q, n_k = checked_scale(scale, q.shape[-1], q.dtype), q.shape[2], k.shape[2]
    o, g = (np.asarray(x, np.float64).reshape(*q.shape[:3], v.shape[3]) for x in (out, grad_out))
    sums = np.asarray(lse, np.float64).reshape(q.shape[:3])
    with np.errstate(invalid="ignore"):
        delta = (o * g).sum(axis=-1)
        if grad_lse is not None:
            delta = delta - np.asarray(grad_lse, np.float64).reshape(q.shape[:3])
    grads = np.zeros(q.shape), np.zeros(k.shape), np.zeros(v.shape)
    for member, rows, allowed in _blocks(patterns, asked, q.shape[0], n_q, n_k):
        b, h = member
        block = _Block(b, h, rows, allowed, factor, asked)
        shared = b, h // inputs.group
        mine = q[b, h, rows], k[shared], v[shared], g[b, h, rows], sums[b, h, rows], delta[b, h, rows]
        for grad, at, part in zip(grads, ((b, h, rows), shared, shared), _row_gradients(*mine, block), strict=True):
            grad[at] += part
    shapes = (*inputs.leading, n_q, q.shape[3]), np.shape(key), np.shape(value)
    found = tuple(grad.reshape(shape) for grad, shape in zip(grads, shapes, strict=True))
    if asked.sinks is None:
        return found
    with np.errstate(invalid="ignore"):
        of_sinks = [-(np.exp(sink - sums[:, h]) * delta[:, h]).sum() for h, sink in enumerate(asked.sinks)]
    return (*found, np.nan_to_num(of_sinks, nan=0.0))


def _row_gradients(
    q: Floats, k: Floats, v: Floats, g: Floats, lse: Floats, delta: Floats, block: _Block
) -> tuple[Floats, Floats, Floats]:
    """What some rows of one head give to the three gradients."""
    allowed, thinned = block.allowed, block.thinned()
    with np.errstate(invalid="ignore", over="ignore"):
        weights = np.where(allowed, np.exp(block.scores(q, k) - lse[:, None]), 0)
        d_weights = thinned * (g @ v.T) - delta[:, None]
        d_scores = np.where(allowed, block.scale * weights * d_weights * block.slopes(q, k), 0)
        weights = weights * thinned
        return _product(d_scores, k, allowed), _product(d_scores.T, q, allowed.T), _product(weights.T, g, allowed.T)
