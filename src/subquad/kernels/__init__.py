"""Kernels: `load(name, dtype)` gives a native function; everything that needs Numba is imported only to compile one."""

from subquad.kernels.build import load

__all__ = ["load"]
