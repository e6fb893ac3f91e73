"""Long reads past the page cache, of what is not in it.

A file that is read once and outgrows memory gains nothing from the page cache, and filling it takes about 1 s of the
processor for each GB, four times what a read past it and a copy take. With the kernels on every core that is time lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

PIECE = 2 << 20  # bytes: half as many took a fifth more processor time, and four times as many half the throughput
_BLOCK = 4096  # what places and sizes must be multiples of, on every disk there is
_FLAG = getattr(os, "O_DIRECT", 0)  # on Linux alone

_own = threading.local()


class DirectFile:
    """A file opened a second time, so that reads go to the disk."""

    def __init__(self, path: Path) -> None:
        self.fd = -1
        if _FLAG:
            with contextlib.suppress(OSError):  # not every file system knows it
                self.fd = os.open(path, os.O_RDONLY | _FLAG)

    def fill(self, target: memoryview, place: int, address: int) -> int:
        """Read into `target` from byte `place` on; how many bytes came.

        It ends early where the rest lies in the page cache, the file ends or the file system refuses. `address` is
        where a mapping of the file has byte `place`.
        """
        done = 0
        while self.fd >= 0 and done < len(target):
            skip = (place + done) % _BLOCK
            size = min(PIECE, -(-(len(target) - done + skip) // _BLOCK) * _BLOCK)
            if _cached(address + done, min(size - skip, len(target) - done)):
                break
            buffer = _buffer()
            try:
                count = os.preadv(self.fd, [buffer[:size]], place + done - skip)
            except OSError:  # the ordinary way says what is wrong, if anything is
                self.close()
                break
            if count <= skip:
                break
            count = min(count - skip, len(target) - done)
            target[done : done + count] = buffer[skip : skip + count]
            done += count
        return done

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _buffer() -> memoryview:
    """Memory of this thread that begins where a page does."""
    found: memoryview | None = getattr(_own, "buffer", None)
    if found is None:
        found = _own.buffer = memoryview(mmap.mmap(-1, PIECE))
    return found


def _cached(address: int, n_bytes: int) -> bool:
    """Whether most pages of a mapping are in memory; yes where nobody knows."""
    first = address // mmap.PAGESIZE * mmap.PAGESIZE
    size = address + n_bytes - first
    pages = np.empty(-(-size // mmap.PAGESIZE), np.uint8)
    try:
        failed = _mincore()(first, size, pages.ctypes.data)
    except (AttributeError, OSError):
        return True
    return failed != 0 or 2 * int((pages & 1).sum()) > len(pages)


@functools.cache
def _mincore() -> Any:
    """The C library's call, which says what pages are in memory."""
    found = ctypes.CDLL(None).mincore
    found.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
    return found
