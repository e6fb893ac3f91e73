"""What may be written to: checks of an output, and where the file that tells its progress goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from subquad.inputs import checked_out
from subquad.streamed.arrays import Stored


def check_target(target: Stored, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: list[Stored]) -> None:
    """Raise where a result of this shape and dtype cannot be written, or would be written over what is still read."""
    array, name = target.array, target.name
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} must have the result's shape {shape}; got {tuple(array.shape)}")
    if target.dtype != dtype:
        raise TypeError(f"{name} must have the result's dtype {dtype}; got {target.dtype}")
    if not hasattr(array, "__setitem__") or _is_read_only(array):
        raise ValueError(f"{name} must be writeable; got a read-only {type(array).__name__}")
    if isinstance(array, np.ndarray) and array.size:
        try:
            checked_out(array, shape, dtype, {x.name: x.array for x in inputs})
        except ValueError as error:
            raise ValueError(str(error).replace("out must", f"{name} must", 1)) from None
        if isinstance(array, np.memmap) and array.mode == "c":
            raise ValueError(f"{name} must be written to its file; got a memmap of mode 'c', whose changes reach none")
    for x in inputs:
        if _is_same(target, x):
            raise ValueError(f"{name} must not overlap {x.name}: the result would be written over what is still read")


def progress_path(out: Stored) -> Path | None:
    """Beside the file or store that an output is in; None where it is in memory, or elsewhere."""
    if out.file is not None:
        return _ending(out.file.path)
    array = out.array
    root = getattr(getattr(array, "store", None), "root", None)  # Zarr, in a folder
    if root is not None:
        return _ending(Path(root), getattr(array, "path", ""))
    file = getattr(getattr(array, "file", None), "filename", None)  # HDF5
    return _ending(Path(file), array.name) if file is not None else None


def _ending(path: Path, inner: str = "") -> Path:
    parts = [path.name, *(part for part in inner.split("/") if part), "progress"]
    return path.with_name(".".join(parts))


def _is_read_only(array: Any) -> bool:
    if isinstance(array, np.ndarray):
        return not array.flags.writeable
    file = getattr(array, "file", None)
    return bool(getattr(array, "read_only", False)) or getattr(file, "mode", "r+") == "r"


def _is_same(a: Stored, b: Stored) -> bool:
    """Whether two arrays have bytes of a file, or a store, in common."""
    if a.file is not None and b.file is not None:
        return a.file.overlaps(b.file)
    if isinstance(a.array, np.ndarray) or isinstance(b.array, np.ndarray):
        return False
    places = [(getattr(x.array, "store", None), getattr(x.array, "path", None)) for x in (a, b)]
    return a.array is b.array or (places[0] == places[1] and places[0][0] is not None) or _same_data(a.array, b.array)


def _same_data(a: Any, b: Any) -> bool:
    names = [(getattr(getattr(x, "file", None), "filename", None), getattr(x, "name", None)) for x in (a, b)]
    return names[0][0] is not None and names[0] == names[1]
