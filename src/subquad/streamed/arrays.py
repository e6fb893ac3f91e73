"""Arrays that are read and written some rows at a time: memory-mapped files, Zarr, HDF5, or NumPy's own.

A memory-mapped array in a file is read and written through the file, not through the mapping: a page that cannot be
had is an error that can be caught, where a mapping ends the process with SIGBUS; and no page stays in the process.
"""

from __future__ import annotations

import math
import mmap
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from subquad.inputs import Array
from subquad.streamed.direct import DirectFile

PIECE_BYTES = 4 << 20  # read or written at a time
_LONG_BYTES = 1 << 20  # such a piece is read past the page cache, or the one after it asked for ahead
_SAMPLES, _SAMPLE_ROWS = 16, 8  # of an array's fingerprint

Rows = tuple[int, int]  # first and one past the last


class Stored:
    """An array of shape (batch, heads, n, columns), or (batch, heads, n) with `columns=False`; any may lead it less.

    Nothing is read before `read` is called.
    """

    def __init__(self, array: Any, name: str, *, columns: bool = True) -> None:
        self.array, self.name = array, name
        given = tuple(int(n) for n in array.shape)
        n_axes = 4 if columns else 3
        self.missing: int = n_axes - len(given)  # leading axes that the caller left out
        self.shape: tuple[int, ...] = (1,) * self.missing + given
        self.dtype = np.dtype(array.dtype)
        self.row_bytes: int = math.prod(self.shape[3:]) * self.dtype.itemsize
        self.file = _File.behind(array, self.missing, n_axes) if isinstance(array, np.ndarray) else None
        chunks: Any = getattr(array, "shards", None) or getattr(array, "chunks", None)
        if not isinstance(chunks, tuple) or not all(isinstance(n, int) for n in chunks):  # none, or those of Dask
            chunks = (1,) * len(given)
        self.chunks: tuple[int, ...] = (1,) * self.missing + chunks

    @property
    def piece_rows(self) -> int:
        """Rows of one head that are read or written at a time: whole chunks."""
        rows = self.chunks[2]
        chunks = min(PIECE_BYTES // max(1, self.row_bytes * rows), -(-self.shape[2] // rows))
        return max(1, chunks) * rows

    @property
    def spare_bytes(self) -> int:
        """What reading or writing holds beside the buffer: a piece as the store gives it, and its chunks."""
        if self.file is not None or isinstance(self.array, np.ndarray):
            return 0 if self.dtype.isnative and self.dtype.itemsize > 2 else PIECE_BYTES // 2  # of a conversion
        chunk: int = math.prod(self.chunks) * self.dtype.itemsize
        return 3 * max(chunk, self.chunks[1] * self.piece_rows * self.row_bytes)

    def read(self, batch: int, heads: slice, rows: Rows, into: Array) -> None:
        """Copy rows of some heads into an array of shape (heads, rows, ...), in its dtype."""
        for head, place, part in self._pieces(heads, rows):
            target = into[place, part[0] - rows[0] : part[1] - rows[0]]
            if self.file is not None:
                self.file.read(batch, head, part, target, self)
            else:
                try:
                    target[...] = self.array[self._index(batch, head, part)]
                except (OSError, RuntimeError, ValueError, KeyError) as error:
                    raise OSError(f"{self.name} cannot be read at rows {part[0]} to {part[1]}: {error}") from error

    def write(self, batch: int, heads: slice, rows: Rows, values: Array) -> None:
        """Write an array of shape (heads, rows, ...) and this dtype."""
        for head, place, part in self._pieces(heads, rows):
            source = values[place, part[0] - rows[0] : part[1] - rows[0]]
            if self.file is not None:
                self.file.write(batch, head, part, source)
            else:
                self.array[self._index(batch, head, part)] = source

    def sync(self) -> None:
        """Return when what was written is on the disk, where there is a way to ask for it."""
        if self.file is not None:
            self.file.sync()
        elif hasattr(getattr(self.array, "file", None), "flush"):  # HDF5
            self.array.file.flush()

    def fingerprint(self) -> dict[str, Any]:
        """What tells this array from another: its form, its file's size and time, and a checksum of some rows."""
        found: dict[str, Any] = {"shape": list(self.shape[self.missing :]), "dtype": self.dtype.name}
        if self.file is not None:
            state = os.fstat(self.file.fd)
            found |= {"file": [state.st_size, state.st_mtime_ns], "offset": self.file.origin}
        batch, heads, n = self.shape[:3]
        if batch * heads * n == 0:
            return found
        checksum, sample = 0, np.empty((1, _SAMPLE_ROWS, *self.shape[3:]), self.dtype)
        for place in np.linspace(0, batch * heads * n - 1, _SAMPLES).astype(np.int64).tolist():
            (b, h), first = divmod(place // n, heads), place % n
            stop = min(first + _SAMPLE_ROWS, n)
            self.read(b, slice(h, h + 1), (first, stop), sample)
            checksum = zlib.crc32(sample[:, : stop - first].tobytes(), checksum)
        return found | {"sample": checksum}

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def _pieces(self, heads: slice, rows: Rows) -> Iterator[tuple[int | slice, int | slice, Rows]]:
        """Heads, their place in a buffer and rows, a piece at a time; pieces end where chunks do."""
        step = self.piece_rows
        together = self.chunks[1] > 1
        for head in [heads] if together else range(heads.start, heads.stop):
            place = slice(None) if isinstance(head, slice) else head - heads.start
            begin = rows[0]
            while begin < rows[1]:
                end = min((begin // step + 1) * step, rows[1])
                yield head, place, (begin, end)
                begin = end

    def _index(self, batch: int, head: int | slice, rows: Rows) -> tuple[int | slice, ...]:
        return (*(batch, head)[self.missing :], slice(*rows))


class _File:
    """The file behind a memory-mapped array, and where in it each row lies."""

    def __init__(
        self, path: Path, origin: int, shape: tuple[int, ...], strides: tuple[int, ...], writable: bool, address: int
    ) -> None:
        self.path, self.origin, self.strides, self.row = path, origin, strides, strides[2]
        self.stop = self.place(shape[0] - 1, shape[1] - 1, shape[2])
        self.fd = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        self.address, self.direct = address, DirectFile(path)  # where row 0 is mapped

    @classmethod
    def behind(cls, array: Array, missing: int, n_axes: int) -> _File | None:
        """The file of an array whose rows lie in it side by side; None: it is in memory, or lies otherwise."""
        mapped: Any = array
        while isinstance(mapped, np.ndarray) and not isinstance(mapped.base, mmap.mmap):
            mapped = mapped.base
        if not isinstance(mapped, np.memmap) or mapped.mode == "c" or mapped.filename is None:
            return None
        shape, strides = (1,) * missing + array.shape, (0,) * missing + array.strides
        row = math.prod(shape[3:]) * array.itemsize
        lies_so = strides[2:] == ((row, array.itemsize) if n_axes == 4 else (row,))
        if not lies_so or not array.size or not _is_mapped_at(Path(mapped.filename), _address(mapped)):
            return None
        origin = mapped.offset + _address(array) - _address(mapped)
        return cls(Path(mapped.filename), origin, shape, strides, bool(array.flags.writeable), _address(array))

    def place(self, batch: int, head: int, first: int) -> int:
        return self.origin + batch * self.strides[0] + head * self.strides[1] + first * self.row

    def check_length(self, name: str) -> None:
        size = os.fstat(self.fd).st_size
        if size < self.stop:
            raise ValueError(f"{name} must be a whole file: {self.path} has {size:,} bytes of {self.stop:,}")

    def overlaps(self, other: _File) -> bool:
        """Whether the two take bytes of one file between the same places."""
        same = os.path.sameopenfile(self.fd, other.fd)
        return same and self.origin < other.stop and other.origin < self.stop

    def read(self, batch: int, head: int | slice, rows: Rows, into: Array, of: Stored) -> None:
        assert isinstance(head, int)
        place = self.place(batch, head, rows[0])
        if into.dtype == of.dtype and into.flags.c_contiguous:
            self._fill(bytes_of(into), place, of.name)
            return
        step = max(1, PIECE_BYTES // 2 // max(1, self.row))
        for at in range(0, rows[1] - rows[0], step):
            part = np.empty((min(step, rows[1] - rows[0] - at), *into.shape[1:]), of.dtype)
            self._fill(bytes_of(part), place + at * self.row, of.name)
            into[at : at + step] = part

    def _fill(self, target: memoryview, place: int, name: str) -> None:
        long = len(target) >= _LONG_BYTES
        done = self.direct.fill(target, place, self.address + place - self.origin) if long else 0
        if long and done < len(target):  # the disk goes on with what comes next
            os.posix_fadvise(self.fd, place + len(target), len(target), os.POSIX_FADV_WILLNEED)
        while done < len(target):
            count = os.preadv(self.fd, [target[done:]], place + done)
            if count == 0:
                raise ValueError(f"{name} must be a whole file: {self.path} ends at byte {place + done:,}")
            done += count

    def write(self, batch: int, head: int | slice, rows: Rows, values: Array) -> None:
        assert isinstance(head, int)
        data = bytes_of(np.ascontiguousarray(values))
        place, done = self.place(batch, head, rows[0]), 0
        while done < len(data):
            done += os.pwrite(self.fd, data[done:], place + done)

    def sync(self) -> None:
        os.fdatasync(self.fd)

    def close(self) -> None:
        os.close(self.fd)
        self.direct.close()


def bytes_of(x: Array) -> memoryview:
    """The bytes of an array whose elements lie side by side: no copy."""
    return memoryview(x.reshape(-1).view(np.uint8).data)


def _address(x: Array) -> int:
    return int(x.__array_interface__["data"][0])


def _is_mapped_at(path: Path, address: int) -> bool:
    """Whether the file at `path` is still the one that is mapped: it may have been replaced, or removed."""
    try:
        inode = path.stat().st_ino
    except OSError:
        return False
    try:
        with open("/proc/self/maps") as maps:
            for line in maps:
                bounds, _, _, _, found, *_ = line.split()
                first, stop = (int(bound, 16) for bound in bounds.split("-"))
                if first <= address < stop:
                    return int(found) == inode
    except OSError:  # no such list on this system: the name has to do
        return True
    return False
