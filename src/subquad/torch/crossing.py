"""Patterns as text, the form in which they cross the border of a custom operator.

An operator of PyTorch takes tensors, numbers and strings. A pattern is told *completely* by its text, so there is
no table of live patterns to keep: nothing to leak where a program makes a new pattern each step, nothing that the
garbage collector, another thread, a fork or a process that loads an exported graph could miss. What is remembered here
saves time alone. Text that equals means a pattern that equals, so a compiled graph, which holds the text as a constant,
cannot be replayed for another pattern.

Nearly every pattern is told by its own repr, which `subquad.expression` reads back (and a graph shows
``'Banded(256) | Global(range(0, 16))'``). One that holds arrays, such as a layout, is pickled instead: 16 bytes of text
or so for each entry of its arrays, before compression.
"""

from __future__ import annotations

import base64
import functools
import importlib
import io
import pickle
import sys
import zlib
from collections.abc import Callable
from typing import Any

from subquad.expression import parse_pattern
from subquad.inputs import checked_pattern
from subquad.patterns import Pattern

_PICKLED = "pickle:"
_REMEMBERED = 64  # patterns, as many as plans: a text is worth remembering no longer than what is built from it
# What a pickled pattern may name beside pattern classes: NumPy's own way to build an array.
_NUMPY = frozenset({"_reconstruct", "_frombuffer", "ndarray", "dtype", "scalar"})


@functools.lru_cache(maxsize=_REMEMBERED)
def text_of(pattern: Pattern) -> str:
    """The text that `pattern_of` turns back into an equal pattern.

    Raises
    ------
    TypeError
        If this is no pattern, or one of a class that cannot be imported by its name.
    """
    text = repr(checked_pattern(pattern))
    try:
        if parse_pattern(text) == pattern:
            return text
    except ValueError:
        pass
    try:
        packed = _PICKLED + base64.b64encode(zlib.compress(pickle.dumps(pattern), level=1)).decode("ascii")
        if pattern_of(packed) == pattern:
            return packed
    except (pickle.PicklingError, AttributeError, TypeError, ValueError):
        pass
    raise TypeError(
        f"pattern must be one that pickle can take apart and rebuild as an equal one, to pass through PyTorch; "
        f"got {text} of type {type(pattern).__name__}; define its class at the top of a module"
    )


@functools.lru_cache(maxsize=_REMEMBERED)
def pattern_of(text: str) -> Pattern:
    """The pattern that a text of `text_of` tells."""
    if not text.startswith(_PICKLED):
        return parse_pattern(text)
    packed = zlib.decompress(base64.b64decode(text[len(_PICKLED) :]))
    return checked_pattern(_Unpickler(io.BytesIO(packed)).load())


# Functions of the user's own, by the text they cross as. They are held, like the graphs that may name them.
_functions: dict[str, Callable[..., Any]] = {}


def name_of(function: Callable[..., Any] | None) -> str | None:
    """The text that `function_of` turns back into this very function, in this process."""
    if function is None:
        return None
    name = f"{getattr(function, '__qualname__', type(function).__name__)} at {id(function):#x}"
    _functions[name] = function
    return name


def function_of(name: str | None) -> Callable[..., Any] | None:
    """The function that `name_of` gave this name."""
    if name is None:
        return None
    if name not in _functions:
        raise RuntimeError(f"a graph that calls {name} cannot run in another process: functions are not exported")
    return _functions[name]


class _Unpickler(pickle.Unpickler):
    """Builds patterns and arrays, calls nothing else: a graph may come from a file of someone else's making."""

    def find_class(self, module: str, name: str) -> Any:
        ours = module.startswith("subquad.patterns.")
        found = getattr(importlib.import_module(module) if ours else sys.modules.get(module), name, None)
        pattern_class = isinstance(found, type) and issubclass(found, Pattern)
        # how patterns say that they are rebuilt, where a call of the class will not do
        rebuilder = ours and getattr(found, "__module__", None) == module
        array = module.partition(".")[0] == "numpy" and name in _NUMPY
        if pattern_class or rebuilder or array or found is range:
            return found
        raise ValueError(f"a pickled pattern must hold patterns and arrays alone; this one names {module}.{name}")
