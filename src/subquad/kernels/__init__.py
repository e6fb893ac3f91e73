"""Kernels: `load(name, dtype)` gives a native function; everything that needs Numba is imported only to compile one."""

from typing import TYPE_CHECKING

from subquad import lazy

if TYPE_CHECKING:
    from subquad.kernels.build import load

__all__ = ["load"]

__getattr__, __dir__ = lazy.names(__name__, {"load": "build"})
