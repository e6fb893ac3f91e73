"""What may be asked of an attention beyond its pattern: checked, and laid out for the kernels."""

from __future__ import annotations

import ctypes
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from subquad import checks
from subquad.inputs import Inputs

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_FARTHEST = 1 << 48  # position of a query: sums and products with it stay within 64 bits


class AttentionOptions(TypedDict, total=False):
    """Keywords of `attention`, `attention_backward` and `reference`; what they mean is said at `attention`."""

    softcap: float | None
    alibi_slopes: npt.ArrayLike | None
    sinks: npt.ArrayLike | None
    key_lengths: npt.ArrayLike | None
    key_starts: npt.ArrayLike | None
    q_offset: npt.ArrayLike | None
    score_mod: Callable[..., Any] | None
    mask_mod: Callable[..., Any] | None
    dropout: float
    seed: int


class Options(NamedTuple):
    """Checked options of one call."""

    softcap: float | None
    slopes: Floats | None  # (heads,)
    sinks: Floats | None  # (heads,)
    key_begin: Ints  # (batch,)
    key_end: Ints
    offset: Ints  # (batch,): position of query row 0
    score_mod: Callable[..., Any] | None
    mask_mod: Callable[..., Any] | None
    dropout: float
    seed: int

    def batches(self) -> dict[int, list[int]]:
        """Batches by the position of their first query row."""
        found: dict[int, list[int]] = {}
        for batch, offset in enumerate(self.offset.tolist()):
            found.setdefault(offset, []).append(batch)
        return found

    def sink_share(self, lse: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The weight of each head's sink in rows of this lse, (batch, heads, n_q)."""
        assert self.sinks is not None
        with np.errstate(invalid="ignore", over="ignore"):
            share = np.exp(self.sinks[:, None].astype(lse.dtype) - lse)
        return np.where(np.isneginf(self.sinks)[:, None], 0, share)


def checked_options(given: AttentionOptions, inputs: Inputs) -> Options:
    """The options of a call on these inputs.

    Raises
    ------
    TypeError, ValueError
        For a name that is none, and for what does not fit the inputs.
    """
    (n_batches, n_heads, n_q, _), n_k = inputs.arrays[0].shape, inputs.arrays[1].shape[2]
    if not given:
        return _none(n_batches, n_q, n_k)
    _check_names(given)
    offset = _per_batch(given.get("q_offset"), "q_offset", n_batches, n_k - n_q, -_FARTHEST, _FARTHEST)
    begin = _per_batch(given.get("key_starts"), "key_starts", n_batches, 0, 0, n_k)
    end = _per_batch(given.get("key_lengths"), "key_lengths", n_batches, n_k, 0, n_k)
    slopes = _per_head(given.get("alibi_slopes"), "alibi_slopes", n_heads, -math.inf)
    sinks = _per_head(given.get("sinks"), "sinks", n_heads, math.inf)
    softcap = given.get("softcap")
    if softcap is not None and not 0 < _real(softcap, "softcap") < math.inf:
        raise ValueError(f"softcap must be above 0 and finite, or None for no cap; got {softcap!r}")
    dropout = given.get("dropout", 0.0)
    if not 0 <= _real(dropout, "dropout") < 1:
        raise ValueError(f"dropout must be in [0, 1), the share of weights to drop; got {dropout!r}")
    seed = checks.integer(given.get("seed", 0), "seed", 0)
    mods: dict[str, Any] = {"score_mod": given.get("score_mod"), "mask_mod": given.get("mask_mod")}
    for name, mod in mods.items():
        if mod is not None and not callable(mod):
            raise TypeError(f"{name} must be a function or None; got {mod!r} of type {type(mod).__name__}")
    cap = None if softcap is None else float(softcap)
    return Options(cap, slopes, sinks, begin, end, offset, mods["score_mod"], mods["mask_mod"], float(dropout), seed)


def _check_names(given: AttentionOptions) -> None:
    for name in given:
        if name not in AttentionOptions.__annotations__:
            import difflib  # only for this message

            near = difflib.get_close_matches(name, AttentionOptions.__annotations__, 1)
            known = ", ".join(AttentionOptions.__annotations__)
            hint = f"did you mean {near[0]}?" if near else f"there are {known}"
            raise TypeError(f"attention has no option {name!r}; {hint}")


@functools.lru_cache(maxsize=64)
def _none(n_batches: int, n_q: int, n_k: int) -> Options:
    """No options: most calls have none, and small ones should not wait for this."""
    begin, end, offset = (np.full(n_batches, x) for x in (0, n_k, n_k - n_q))
    return Options(None, None, None, begin, end, offset, None, None, 0.0, 0)


def _real(x: Any, name: str) -> float:
    if isinstance(x, bool) or not isinstance(x, numbers.Real | np.floating | np.integer):
        raise TypeError(f"{name} must be a real number; got {x!r} of type {type(x).__name__}")
    return float(x)


def _per_batch(x: Any, name: str, n_batches: int, default: int, low: int, high: int) -> Ints:
    if x is None:
        return np.full(n_batches, default, np.int64)
    array = np.asarray(x)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name} must hold integers; got {x!r} of dtype {array.dtype}")
    if array.shape not in ((), (n_batches,)):
        raise ValueError(f"{name} must be an integer, or one for each batch, shape ({n_batches},); got {array.shape}")
    outside = np.flatnonzero((array < low) | (array > high))
    if len(outside):
        at = f" at batch {outside[0]}" if array.shape else ""
        raise ValueError(f"{name} must be in [{low}, {high}]; got {array.ravel()[outside[0]]}{at}")
    return np.broadcast_to(array, (n_batches,)).astype(np.int64)


def _per_head(x: Any, name: str, n_heads: int, allowed: float) -> Floats | None:
    """A number for each query head: finite, or -`allowed`."""
    if x is None:
        return None
    array = np.asarray(x)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} must hold real numbers; got dtype {array.dtype}")
    if array.shape != (n_heads,):
        raise ValueError(f"{name} must hold one number for each head of query, shape ({n_heads},); got {array.shape}")
    numbers_ = array.astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(numbers_) | (numbers_ == -allowed)))
    if len(wrong):
        rule = "finite, or -inf for no sink" if allowed == math.inf else "finite"
        raise ValueError(f"{name} must be {rule}; got {numbers_[wrong[0]]} for head {wrong[0]}")
    return numbers_


# --- for the kernels --------------------------------------------------------------------------------------------------


def no_options(inputs: Inputs) -> Ints:
    """The table of a call without any."""
    return head_table(checked_options({}, inputs), inputs)


def head_table(options: Options, inputs: Inputs, backward: bool = False) -> Ints:
    """What `kernels.layout` calls head, (batch, heads, HEAD_COLUMNS)."""
    from subquad.kernels import layout

    q, k = inputs.arrays[:2]
    (n_batches, n_heads, n_q, _), n_k = q.shape, k.shape[2]
    if options is _none(n_batches, n_q, n_k):
        return _plain_table(n_batches, n_heads, n_q, n_k)
    table = _plain_table(n_batches, n_heads, n_q, n_k).copy()
    numbers_ = table.view(np.float64)
    for column, x in (
        (layout.KEY_BEGIN, options.key_begin),
        (layout.KEY_END, options.key_end),
        (layout.POSITION, options.offset),
    ):
        table[..., column] = x[:, None]
    base_two = 1 / math.log(2)
    if options.sinks is not None:
        numbers_[..., layout.SINK] = options.sinks * base_two
    compute = "float64" if inputs.compute_dtype.itemsize == 8 else "float32"
    if options.softcap is not None or options.slopes is not None:
        numbers_[..., layout.SOFTCAP] = (options.softcap or 0.0) * base_two
        numbers_[..., layout.SLOPE] = 0.0 if options.slopes is None else options.slopes * base_two
        table[..., layout.MODIFY] = _address("modify", compute)
    if options.score_mod is not None:
        from subquad.kernels.functions import score_address, slope_address

        find = slope_address if backward else score_address
        table[..., layout.SCORE_MOD] = find(options.score_mod, compute)
    if options.mask_mod is not None:
        from subquad.kernels.functions import mask_address

        table[..., layout.MASK_MOD] = mask_address(options.mask_mod)
    table[..., layout.MODIFIES] = (table[..., layout.MODIFY] != 0) | (table[..., layout.SCORE_MOD] != 0)
    if options.softcap is not None and options.slopes is None and options.score_mod is None:
        table[..., layout.MODIFIES] = layout.RISING
    limited = (options.key_begin > 0) | (options.key_end < k.shape[2])
    table[..., layout.SELECTS] = limited[:, None] | (options.mask_mod is not None)
    if options.dropout:
        from subquad.draws import head_seeds, threshold

        table[..., layout.THIN] = _address("thin", compute)
        table[..., layout.SEED] = head_seeds(options.seed, *q.shape[:2]).view(np.int64)
        table[..., layout.DROP_BELOW] = threshold(options.dropout)
        numbers_[..., layout.KEEP_SCALE] = 1 / (1 - options.dropout)
    return table


@functools.lru_cache(maxsize=32)
def _plain_table(n_batches: int, n_heads: int, n_q: int, n_k: int) -> Ints:
    """The table of a call without options; not to be written to."""
    from subquad.kernels import layout

    table = np.zeros((n_batches, n_heads, layout.HEAD_COLUMNS), np.int64)
    table[..., layout.BATCH] = np.arange(n_batches)[:, None]
    table[..., layout.HEAD] = np.arange(n_heads)
    table[..., layout.KEY_END], table[..., layout.POSITION] = n_k, n_k - n_q
    table.view(np.float64)[..., layout.SINK] = -math.inf
    table.flags.writeable = False
    return table


def _address(name: str, dtype: str) -> int:
    from subquad.kernels import load

    return ctypes.cast(load(name, dtype), ctypes.c_void_p).value or 0
