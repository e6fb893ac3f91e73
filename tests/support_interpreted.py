"""The kernels' own source as plain Python, every memory access checked.

The modules of `subquad.kernels` are loaded a second time from their files. There `device` leaves functions alone and
`intrinsic` takes what `support_pointers` has under that name, so each line that Numba compiles is a line that Python
runs. `Interpreter.running` puts the result where the library takes its kernels and its addresses from.
"""

from __future__ import annotations

import builtins
import contextlib
import inspect
import itertools
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from types import SimpleNamespace
from unittest.mock import patch

import numba
import numba.extending
import numpy as np
import support_pointers
from support_pointers import KERNELS, Memory, Pointer

from subquad import backward, forward, options
from subquad.decode import steps
from subquad.kernels import build, functions, layout
from subquad.plan import Plan, tables

SCRATCH = {"floats", "ints", "slots"}
RESULTS = {"out", "lse", "data"}  # of a forward: nothing is there before
GRADIENTS = {"d_q", "d_k", "d_v", "d_x", "d_w"}
_WHOLE = {"decode", "convert"}  # kernels that get whole arrays; the others get one head of each


class Place(int):
    """An address that remembers its array, also after something was added to it."""

    def __new__(cls, value, array):
        place = super().__new__(cls, value)
        place.array = array
        return place

    @classmethod
    def of(cls, array):
        return cls(array.__array_interface__["data"][0], array)

    def __add__(self, offset):
        return Place(int(self) + offset, self.array)

    __radd__ = __add__

    def head(self):
        """The array of the head that begins here."""
        array, offset = self.array, int(self) - Place.of(self.array)
        if array.ndim < 3:
            return array
        for at in np.ndindex(*array.shape[:2]):
            if np.dot(at, array.strides[:2]) == offset:
                return array[at]
        raise IndexError(f"no head of an array of shape {array.shape}, strides {array.strides} begins at byte {offset}")


class _Loader(SourceFileLoader):
    """A module of kernels with another `import`, and perhaps another text in one place: a planted fault."""

    def __init__(self, name, importer, edit=None):
        super().__init__(f"interpreted.{name}", str(KERNELS / f"{name}.py"))
        self.importer, self.edit = importer, edit

    def get_code(self, fullname):
        source = self.get_source(fullname)
        if self.edit is not None:
            before, after = self.edit
            if source.count(before) != 1:
                raise ValueError(f"{before!r} stands {source.count(before)} times in {self.path}")
            source = source.replace(before, after)
        return compile(source, self.path, "exec")

    def exec_module(self, module):
        vars(module)["__builtins__"] = vars(builtins) | {"__import__": self.importer}
        super().exec_module(module)


def _unchanged(*_args, **_options):
    return lambda function: function


class Interpreter:
    """Kernels that Python runs. `edits` changes the text of some modules: {module: (before, after)}."""

    def __init__(self, **edits):
        self.edits, self.memories, self.called = edits, {}, {}
        self.modules = {"build": build, "layout": layout}  # of which the library's own are used
        extending = vars(numba.extending) | {
            "intrinsic": self._intrinsic,
            "register_model": _unchanged,
            "lower_builtin": _unchanged,
        }
        self.replaced = {
            "numba": SimpleNamespace(types=numba.types, cfunc=numba.cfunc, njit=_unchanged),
            "numba.extending": SimpleNamespace(**extending),
            "numba.core.typing.templates": SimpleNamespace(
                **vars(numba.core.typing.templates) | {"infer_global": _unchanged}
            ),
        }
        self.entry = self.module("entry")
        self.modifiers = {1: self.entry.modify, 2: self.entry.thin}  # what stands for their addresses

    # --- loading ---

    def module(self, name):
        if name not in self.modules:
            loader = _Loader(name, self._import, self.edits.get(name))
            module = self.modules[name] = module_from_spec(spec_from_loader(loader.name, loader))
            loader.exec_module(module)
        return self.modules[name]

    def _import(self, name, globals=None, locals=None, fromlist=(), level=0):
        if name in self.replaced:
            return self.replaced[name]
        if name == "subquad.kernels":
            return SimpleNamespace(**{one: self.module(one) for one in fromlist})
        if name.startswith("subquad.kernels."):
            return self.module(name.rpartition(".")[2])
        return builtins.__import__(name, globals, locals, fromlist, level)

    def _intrinsic(self, function):
        if function.__name__ == "call_modifier":
            return lambda address, *args: self.modifiers[address](*args)
        return support_pointers.interpreted(function)

    # --- calling ---

    def load(self, name, dtype):
        """In place of `subquad.kernels.load`: the kernel as a function of places and numbers."""
        function, letters = self.entry.FUNCTIONS[name], build.SIGNATURES[name]
        stored, counted = (np.dtype(str(kind)) for kind in self.entry.ELEMENTS[dtype])
        dtypes = {"x": stored, "c": counted, "i": np.dtype(np.int64), "u": np.dtype(np.uint16)}
        names = list(inspect.signature(function).parameters)

        def kernel(*args):
            self.called[name] = self.called.get(name, 0) + 1
            written = self._written(name, args)
            given = [
                self._pointer(name, x, dtypes[letter], argument, argument in written) if letter in dtypes else x
                for letter, argument, x in zip(letters, names, args, strict=True)
            ]
            with np.errstate(all="ignore"):
                function(*given)

        return kernel

    @staticmethod
    def _written(name, args):
        if name == "convert":
            return {"x" if args[-1] else "y"}
        return SCRATCH | (GRADIENTS if "backward" in name else RESULTS)

    def _pointer(self, kernel, place, dtype, name, writable):
        if place == 0:  # an array that was not asked for
            return Pointer(Memory(np.empty(0, dtype), True), dtype, 0, name, False)
        array = place.array if kernel in _WHOLE else place.head()
        fresh = name in SCRATCH or (writable and name not in GRADIENTS)
        key = Place.of(array), array.shape, array.strides, array.dtype
        if key not in self.memories:
            self.memories[key] = Memory(array, written=not fresh)
        memory = self.memories[key]
        start = memory.start + int(place) - Place.of(array)
        return Pointer(memory, dtype, start // dtype.itemsize, name, writable)

    def _scratch(self, n_bytes):
        """That of `decode`: no byte more than was asked for."""
        memory = np.empty(n_bytes, np.uint8)
        return Place.of(memory), n_bytes, memory

    def _modifier(self, loops):
        def find(function, dtype=None):
            address = len(self.modifiers) + 1
            self.modifiers[address] = getattr(self.module("functions"), loops)(function)
            return address

        return find

    @contextlib.contextmanager
    def running(self, **sizes):
        """Calls of the library are interpreted, if they are told to use one thread.

        `sizes` are constants of `kernels.layout` that are others for the time: compiled kernels know nothing of them.
        """
        self.memories.clear()
        replaced = {
            forward: {"load": self.load},
            steps: {"load": self.load, "place": Place.of, "_scratch": self._scratch, "_made": {}},
            options: {"_address": lambda name, dtype: {"modify": 1, "thin": 2}[name]},
            functions: {
                "score_address": self._modifier("_score_loops"),
                "mask_address": self._modifier("_mask_loops"),
            },
            layout: sizes,
            Plan: {"addresses": lambda plan, number: [Place.of(table) for table in plan.phases[number]]},
        }
        with contextlib.ExitStack() as stack:
            for owner in (tables, forward, backward, steps):
                stack.enter_context(patch.object(owner, "address", Place.of))
            for owner, name in itertools.chain.from_iterable(
                [(owner, name) for name in names] for owner, names in replaced.items()
            ):
                stack.enter_context(patch.object(owner, name, replaced[owner][name]))
            yield self
        self.memories.clear()
