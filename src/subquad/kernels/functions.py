"""Functions of the user's own, compiled to change scores or masks: `modifiers` says what they are given.

Numba compiles each once for an element type, in this process: it may close over numbers and arrays of the caller. It is
inlined into a loop over the lanes of a tile, which LLVM turns into vectors where it can.
"""

from __future__ import annotations

import inspect
import re
import threading
import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np

from subquad.kernels import layout

_lock = threading.RLock()
_compiled: dict[tuple[int, str], Any] = {}
_LN2, _LOG2E = float(np.log(2.0)), float(1 / np.log(2.0))
_BATCH, _HEAD, _BY_TILE, _BY_COLUMN = layout.BATCH, layout.HEAD, layout.BY_TILE, layout.BY_COLUMN


def score_address(function: Callable[..., Any], dtype: str) -> int:
    """Where the compiled `score_mod` lies, for scores of this dtype."""
    return _address(function, f"score_{dtype}", "score_mod", "(score, b, h, i, j)")


def slope_address(function: Callable[..., Any], dtype: str) -> int:
    """The same of one that also gives its derivative."""
    return _address(function, f"slope_{dtype}", "score_mod", "(score, b, h, i, j)")


def mask_address(function: Callable[..., Any]) -> int:
    """Where the compiled `mask_mod` lies."""
    return _address(function, "mask", "mask_mod", "(b, h, i, j)")


def _address(function: Callable[..., Any], kind: str, name: str, arguments: str) -> int:
    key = id(function), kind
    with _lock:
        if key not in _compiled:
            compiled = _compile(function, kind, name, arguments)
            _compiled[key] = compiled
            _forget_with(function, key)
        return int(_compiled[key].address)


def _forget_with(function: Callable[..., Any], key: tuple[int, str]) -> None:
    """A function that is gone may leave its id to another one."""
    try:
        weakref.finalize(function, _compiled.pop, key, None).atexit = False
    except TypeError:  # something that cannot be watched is kept
        _compiled[*key, "kept"] = function


def _compile(function: Callable[..., Any], kind: str, name: str, arguments: str) -> Any:
    from numba import cfunc, njit, types
    from numba.core.errors import NumbaError

    from subquad.kernels.dual import DUALS, DualType
    from subquad.kernels.jit import OPTIONS

    plain = getattr(function, "py_func", function)
    if not isinstance(plain, FunctionType):
        raise TypeError(
            f"{name} must be a Python function of {arguments}, plain or jitted by Numba; got {function!r} of type "
            f"{type(function).__name__}"
        )
    if plain.__code__.co_argcount != arguments.count(",") + 1 or plain.__code__.co_flags & inspect.CO_VARARGS:
        raise TypeError(
            f"{name} must take {arguments}; {plain.__name__} takes {inspect.signature(plain)}"
        )  # fmt: skip
    # a copy: what is compiled must not keep the user's function alive, with which it is forgotten
    copy = FunctionType(plain.__code__, plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__)
    inner = njit(error_model="numpy", no_cpython_wrapper=True)(copy)
    computed = types.float64 if kind.endswith("64") else types.float32
    integers = types.CPointer(types.int64)
    of_pairs = integers if kind == "mask" else types.CPointer(computed)
    signature = types.void(of_pairs, of_pairs, integers, integers, types.int64, types.int64, types.int64, integers)
    score = () if kind == "mask" else (DUALS[computed],) if kind.startswith("slope") else (computed,)
    loops = {"mask": _mask_loops, "scor": _score_loops, "slop": _slope_loops}[kind[:4]]
    try:
        inner.compile((*score, *(types.int64,) * 4))  # alone first: what goes wrong is at a line of the user's own
        found = inner.overloads[inner.signatures[0]].signature.return_type
        if not isinstance(found, types.Number | types.Boolean | DualType):
            raise TypeError(f"{name} must return a number; {plain.__name__} returns {found}")
        return cfunc(signature, **{**OPTIONS, "_nrt": True})(loops(inner))
    except NumbaError as error:
        raise _explained(error, plain, name, kind) from None


def _score_loops(function: Any) -> Callable[..., None]:
    from subquad.kernels.simd import width_of

    def loops(x, y, rows, keys, n, way, derive, head):
        b, h = head[_BATCH], head[_HEAD]
        if way == _BY_TILE:
            lanes = width_of(x)
            for t in range(n):
                j = keys[t]
                for r in range(lanes):
                    x[t * lanes + r] = function(x[t * lanes + r] * _as(x, _LN2), b, h, rows[r], j) * _as(x, _LOG2E)
        else:
            for e in range(n):
                i, j = (rows[e], keys[0]) if way == _BY_COLUMN else (rows[0], keys[e])
                x[e] = function(x[e] * _as(x, _LN2), b, h, i, j) * _as(x, _LOG2E)

    from subquad.kernels.simd import as_scalar as _as

    return loops


def _slope_loops(function: Any) -> Callable[..., None]:
    from subquad.kernels.dual import dual, slope_of, value_of
    from subquad.kernels.simd import as_scalar as _as
    from subquad.kernels.simd import width_of

    def loops(x, y, rows, keys, n, way, derive, head):
        b, h, lanes = head[_BATCH], head[_HEAD], width_of(x)
        for e in range(n * lanes if way == _BY_TILE else n):
            if way == _BY_TILE:
                i, j = rows[e % lanes], keys[e // lanes]
            elif way == _BY_COLUMN:
                i, j = rows[e], keys[0]
            else:
                i, j = rows[0], keys[e]
            # a function that leaves its score out has no slope
            bent = function(dual(x[e] * _as(x, _LN2), 1.0, x[e]), b, h, i, j) + dual(0.0, 0.0, x[e])
            x[e] = value_of(bent) * _as(x, _LOG2E)
            y[e] *= slope_of(bent)

    return loops


def _mask_loops(function: Any) -> Callable[..., None]:
    def loops(x, y, rows, keys, n, way, lanes, head):
        b, h = head[_BATCH], head[_HEAD]
        for e in range(n):
            if way == _BY_TILE:
                j, bits = keys[e], np.int64(0)
                for r in range(lanes):
                    bits |= np.int64(bool(function(b, h, rows[r], j))) << r
                x[e] &= bits
            elif x[e] != 0:
                i, j = (rows[e], keys[0]) if way == _BY_COLUMN else (rows[0], keys[e])
                x[e] = bool(function(b, h, i, j))

    return loops


def _explained(error: Exception, function: Any, name: str, kind: str) -> Exception:
    """What the user can do something about: the line of their own, and the first thing said of it."""
    code, reason = function.__code__, _reason(error)
    try:
        source, first = inspect.getsourcelines(function)
    except (OSError, TypeError):
        source, first = [function.__name__], code.co_firstlineno
    where = getattr(error, "loc", None)
    line = where.line if where is not None and first <= (where.line or 0) < first + len(source) else None
    if line is None:  # a name that is none has no place in Numba's message
        quoted = re.findall(r"'([^']+)'", reason)
        places = (first + at for at, text in enumerate(source) if quoted and quoted[0] in text)
        line = next(places, first)
    what = "has no derivative that is known" if kind.startswith("slope") else "cannot be compiled"
    text = source[line - first].strip()
    return TypeError(f"{name} {what}: line {line} of {code.co_filename}, {text!r}: {reason}")


def _reason(error: Exception) -> str:
    """The first sentence of Numba's message that says something."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()]
    skipped = ("Failed in", "During:", "File ", "Traceback", "There are", "- Of which", "Overload")
    kept = [line for line in lines if line and not line.startswith(skipped)]
    sentence = (kept[0] if kept else type(error).__name__)[:200]
    unknown = re.match(
        r"No implementation of function Function\(<.*?(?:function|ufunc)? ?'?(\w+)'?(?: at 0x\w+)?>\)", sentence
    )
    return f"nothing is known of {unknown[1]} for these arguments" if unknown else sentence
