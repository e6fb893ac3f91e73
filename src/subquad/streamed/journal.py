"""The progress file: which ranges of an output are done, so that a killed run goes on where it was.

Lines of text, each a JSON value and the CRC-32 of its text. The first says whose the output is; each further one names
a range and the checksum of what was written there. The order on the disk is what makes it safe:

1. the first line is there, whole, before anything is written to the output;
2. a range is written to the output and synced before its line is written and synced;
3. the file is removed when everything is written and synced.

So an output beside a progress file is not complete, and one without is what it was before or complete. A line that was
cut off is left out, a range whose output is not what its line says is done again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

_FORMAT = "subquad.streamed progress 1"


class Unit(NamedTuple):
    """A range of one share, for some heads of a batch: what is done, or not, as a whole."""

    pattern: int
    share: int
    batch: int
    head: int  # the first of the key heads
    first: int
    stop: int


class Journal:
    """The progress file of one output, or (path None) nothing that lasts."""

    def __init__(self, path: Path | None, owner: dict[str, Any], resume: bool) -> None:
        self.path, self.owner = path, owner
        self.done: dict[Unit, int] = {}
        self._lines: list[str] = []
        self._fd = -1
        if path is None:
            return
        if path.exists():
            self._fd = _opened(path, os.O_RDONLY)
            if resume:
                self.done = _read(path, owner)

    def start(self) -> None:
        """Write the file anew with what is known to be done."""
        if self.path is None:
            return
        text = _line({"format": _FORMAT, **self.owner}) + "".join(_line([*u, crc]) for u, crc in self.done.items())
        beside = self.path.with_name(f"{self.path.name}.new")
        fd = _opened(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        try:
            _write(fd, text)
            os.replace(beside, self.path)
        except OSError as error:
            os.close(fd)
            raise _named(error, self.path) from None
        _sync_folder(self.path)
        self.close()
        self._fd = fd

    def add(self, unit: Unit, checksum: int) -> None:
        """A range that has been written."""
        self.done[unit] = checksum
        self._lines.append(_line([*unit, checksum]))

    def take(self) -> list[str]:
        """The lines of what was added since the last time, for `commit` when the output has been synced."""
        lines, self._lines = self._lines, []
        return lines

    def commit(self, lines: list[str]) -> None:
        """Make them last."""
        if self._fd >= 0 and lines:
            _write(self._fd, "".join(lines))

    def complete(self) -> None:
        """Everything is written and synced."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            _sync_folder(self.path)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _opened(path: Path, flags: int) -> int:
    """The file, held against other processes: two would write over each other's ranges."""
    try:
        fd = os.open(path, flags, 0o666)
    except OSError as error:
        raise _named(error, path) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise OSError(errno.EBUSY, "out is being written by another process, which holds", str(path)) from None
    except OSError:  # no locks on this file system
        pass
    return fd


def _named(error: OSError, path: Path) -> OSError:
    return OSError(error.errno, f"the progress file cannot be written: {error.strerror}", str(path))


def _line(value: Any) -> str:
    text = json.dumps(value, separators=(",", ":"))
    return f"{zlib.crc32(text.encode()):08x} {text}\n"


def _parsed(line: str) -> Any:
    """The value of a line, or None where it is damaged."""
    checksum, _, text = line.partition(" ")
    return json.loads(text) if checksum == f"{zlib.crc32(text.encode()):08x}" else None


def _read(path: Path, owner: dict[str, Any]) -> dict[Unit, int]:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    found = _parsed(lines[0])
    way_out = "pass resume=False to start anew, or another progress_file"
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise ValueError(f"progress_file must be one that this function wrote; {path} is not, or is damaged: {way_out}")
    owner = json.loads(json.dumps(owner))
    for name, value in owner.items():
        if found.get(name) != value:
            raise ValueError(
                f"progress_file {path} belongs to other inputs: {name} was {_short(found.get(name))} "
                f"and is {_short(value)} now; {way_out}"
            )
    values = [_parsed(line) for line in lines[1:]]
    return {Unit(*value[:-1]): value[-1] for value in values if isinstance(value, list) and len(value) == 7}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else f"{text[:200]}..."


def _write(fd: int, text: str) -> None:
    data = text.encode()
    while data:
        data = data[os.write(fd, data) :]
    os.fsync(fd)


def _sync_folder(path: Path) -> None:
    """A name that was made, changed or removed is on the disk when its folder is."""
    with contextlib.suppress(OSError):  # not every file system can
        fd = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
