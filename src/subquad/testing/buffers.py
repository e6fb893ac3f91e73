"""Checks of how arrays are taken and given back: layouts, frames, `out`, and what is refused."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from subquad.patterns.base import Pattern
from subquad.testing.cases import few, plain, square
from subquad.testing.frames import Frame
from subquad.testing.trial import NAMES, Array, Case, Claims, Dtype, Trial, check


@check("arrays", square)
def inputs_unwritten(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Inputs are never written."""
    arrays = trial.arrays(n_q, n_k, leading=(2,), dtype=dtype)
    before = [x.copy() for x in arrays]
    trial.out(*arrays, pattern)
    for name, x, was in zip(NAMES, arrays, before, strict=True):
        trial.same(f"{name}, once the call is over,", x, was)


def _read_only(x: Array) -> Array:
    x = x.copy()
    x.flags.writeable = False
    return x


def _unaligned(x: Array) -> Array:
    memory = np.zeros(x.nbytes + 1, np.uint8)
    view = memory[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "read-only": _read_only,
    "Fortran order": lambda x: np.asarray(x, order="F"),
    "tokens before heads": lambda x: np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1),
    "negative strides": lambda x: np.ascontiguousarray(x[:, ::-1, ::-1])[:, ::-1, ::-1],
    "every third column": lambda x: np.repeat(x, 3, axis=-1)[..., ::3],
    "unaligned": _unaligned,
}


def _layouts(claims: Claims) -> Iterator[Case]:
    return (case | {"layout": name} for case, name in itertools.product(few(claims), LAYOUTS))


@check("arrays", _layouts)
def layouts(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype, layout: str) -> None:
    """How inputs lie in memory changes no bit."""
    arrays = trial.arrays(n_q, n_k, 16, 24, (2,), dtype=dtype)
    expected = trial.out(*arrays, pattern)
    trial.same("the output", trial.out(*map(LAYOUTS[layout], arrays), pattern), expected)


@check("arrays", few)
def broadcast(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Arrays that repeat their memory (strides of 0) are taken as what they show."""
    arrays = [np.broadcast_to(x, (3, *x.shape[1:])) for x in trial.arrays(n_q, n_k, leading=(1,), dtype=dtype)]
    expected = trial.out(*(x.copy() for x in arrays), pattern)
    trial.same("the output", trial.out(*arrays, pattern), expected)


@check("arrays", square)
def frames(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Nothing outside of the inputs is read or written: a frame of NaN around each changes no bit, nor itself."""
    for d, d_v in ((7, 5), (16, 24)):
        arrays = trial.arrays(n_q, n_k, d, d_v, (2,), dtype=dtype)
        framed, expected = [Frame(x) for x in arrays], trial.out(*arrays, pattern)
        trial.same("inside of frames the output", trial.out(*(x.view for x in framed), pattern), expected)
        for frame in framed:
            frame.assert_untouched()


@check("arrays", square, "out")
def out_receives(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """`out` receives the whole result and is returned; what lies around it is not written."""
    arrays = trial.arrays(n_q, n_k, 16, 5, (2,), dtype=dtype)
    expected = trial.out(*arrays, pattern)
    frame = Frame(np.full_like(expected, np.nan))
    found = trial.out(*arrays, pattern, out=frame.view)
    trial.same("out", frame.view, expected)
    trial.same("the output that is returned", found, expected)
    frame.assert_untouched()


@check("arrays", few, "out")
def out_overlapping(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """An `out` that overlaps an input is refused, and the input left as it was."""
    arrays = trial.arrays(n_q, n_k, dtype=dtype)
    before = [x.copy() for x in arrays]
    for name, x in zip(NAMES, arrays, strict=True):
        if x.shape == (n_q, arrays[2].shape[-1]):
            trial.refused(f"out that is {name}", functools.partial(trial.raw, *arrays, pattern, out=x), "out")
    for name, x, was in zip(NAMES, arrays, before, strict=True):
        trial.same(f"{name}, after a call that was refused,", x, was)


def _wrong(query: Array, key: Array, value: Array) -> dict[str, tuple[tuple[Any, ...], str]]:
    """Inputs that do not go together, and the name that a message must have."""
    other = np.float64 if query.dtype == np.float32 else np.float32
    return {
        "a key with another d": ((query, key[..., :-1], value), "key"),
        "a value with fewer rows": ((query, key, value[..., :-1, :]), "value"),
        "a key of another dtype": ((query, key.astype(other), value), "dtype"),
        "integer queries": ((query.astype(np.int64), key, value), "query"),
        "heads that are no multiple": ((query[:2], key[:3], value[:3]), "heads"),
        "one axis": ((query[0, 0], key, value), "query"),
    }


def _refusals(claims: Claims) -> Iterator[Case]:
    names = _wrong(*(np.zeros((4, 2, 2)),) * 3)
    return (case | {"input": name} for case, name in itertools.product(list(few(claims))[:2], names))


@check("errors", _refusals)
def bad_inputs(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype, input: str) -> None:
    """Arrays that do not go together are refused by a TypeError or ValueError that names one."""
    arrays, name = _wrong(*trial.arrays(n_q, n_k, leading=(4,), dtype=dtype))[input]
    trial.refused(input, lambda: trial.raw(*arrays, pattern), name)


_BAD_OPTIONS: dict[str, tuple[str, Any]] = {
    "scale of NaN": ("scale", float("nan")),
    "scale that is text": ("scale", "large"),
    "no thread": ("num_threads", 0),
    "half a thread": ("num_threads", 1.5),
    "out that is a list": ("out", []),
    "out of another shape": ("out", np.zeros((1, 1))),
}


def _options(claims: Claims) -> Iterator[Case]:
    for case, (what, (name, _)) in itertools.product(list(few(claims))[:2], _BAD_OPTIONS.items()):
        if name in claims.options:
            yield case | {"option": what}


@check("errors", _options)
def bad_options(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype, option: str) -> None:
    """Options out of range are refused by a TypeError or ValueError that names them."""
    arrays, (name, value) = trial.arrays(n_q, n_k, dtype=dtype), _BAD_OPTIONS[option]
    trial.refused(option, lambda: trial.raw(*arrays, pattern, **{name: value}), name)


@check("errors", _refusals, "out")
def out_untouched(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype, input: str) -> None:
    """`out` is untouched when a call raises."""
    arrays, _ = _wrong(*trial.arrays(n_q, n_k, leading=(4,), dtype=dtype))[input]
    out = trial.normal((4, n_q, 16), dtype)
    before = out.copy()
    trial.refused(input, lambda: trial.raw(*arrays, pattern, out=out), "")
    trial.same("out", out, before)


@check("arrays", plain)
def results_are_the_callers(trial: Trial, pattern: Pattern, n_q: int, n_k: int, dtype: Dtype) -> None:
    """Writing into a result changes no later one."""
    arrays = trial.arrays(n_q, n_k, dtype=dtype)
    first = trial.out(*arrays, pattern)
    expected = first.copy()
    first[...] = 0
    trial.same("the output of the next call", trial.out(*arrays, pattern), expected)
