"""Machine code kept on disk, where nobody but this user can have written it.

What is read here is run, so every step is checked on an open handle, not on a name that may mean something else a
moment later: the directory must be this user's own, no link, and writable by no one else; so must be a file, which may
have no second name either. A file begins with a digest of its name and content: one that is damaged, or was put in
another's place, is none. Whatever is not as it should be is left alone, and the kernel is compiled anew.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

_DIGEST_BYTES = 32
_MOST_BYTES = 64 << 20  # of one kernel: the largest takes some 100 KB
_OWN = re.compile(r"subquad_[a-z_]+_[a-z]+\d+-(?P<key>[0-9a-f]{24})\.(o|json)(\.[0-9a-f]{16}\.tmp)?")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_POSIX = hasattr(os, "getuid") and os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")


class Refused(OSError):
    """Why nothing is kept; a directory or a file is not this user's alone."""


class Entry(NamedTuple):
    """A file of the library's own in the cache directory."""

    name: str
    n_bytes: int
    key: str  # digest of all that shaped the code


def directory() -> str:
    """Where machine code is kept: `SUBQUAD_CACHE_DIR`, else the user's cache.

    Raises
    ------
    Refused
        Where it is switched off, or a place that others share.
    """
    if os.environ.get("SUBQUAD_CACHE") == "0":
        raise Refused("the environment variable SUBQUAD_CACHE is 0")
    chosen = os.environ.get("SUBQUAD_CACHE_DIR")
    if chosen:
        if not os.path.isabs(chosen):  # it would be another one in every working directory
            raise Refused(f"SUBQUAD_CACHE_DIR must be an absolute path; got {chosen!r}")
        return _reached_safely(chosen, shared=True)
    base = os.environ.get("XDG_CACHE_HOME") or ""
    if not os.path.isabs(base):  # as the XDG specification has it
        home = os.path.expanduser("~")
        if not os.path.isabs(home):
            raise Refused("this user has no home directory; set SUBQUAD_CACHE_DIR")
        base = os.path.join(home, ".cache")
    return _reached_safely(os.path.join(base, "subquad"), shared=False)


def _reached_safely(path: str, shared: bool) -> str:
    """`path`, unless anybody may rename a directory on the way to it; a `shared` one, as /tmp, must be asked for."""
    if not _POSIX:
        return path
    path = os.path.normpath(path)
    for start in (path, os.path.realpath(path)):
        above = os.path.dirname(start)
        while True:
            with contextlib.suppress(FileNotFoundError):
                mode = os.stat(above).st_mode
                if mode & stat.S_IWOTH and not (shared and mode & stat.S_ISVTX):
                    raise Refused(f"{path} lies in {above}, which anybody may write to")
            if above == os.path.dirname(above):
                break
            above = os.path.dirname(above)
    return path


class Folder:
    """The cache directory, held open."""

    def __init__(self, path: str, handle: int | None) -> None:
        self.path, self._handle = path, handle

    def open(self, name: str, flags: int) -> int:
        if self._handle is None:
            return os.open(os.path.join(self.path, name), flags | getattr(os, "O_BINARY", 0), 0o600)
        # a FIFO in the place of a file must not hold the caller up
        extra = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(name, flags | extra, 0o600, dir_fd=self._handle)

    def rename(self, old: str, new: str) -> None:
        if self._handle is None:
            os.replace(os.path.join(self.path, old), os.path.join(self.path, new))
        else:
            os.replace(old, new, src_dir_fd=self._handle, dst_dir_fd=self._handle)

    def remove(self, name: str) -> None:
        if self._handle is None:
            os.unlink(os.path.join(self.path, name))
        else:
            os.unlink(name, dir_fd=self._handle)

    def entries(self) -> list[Entry]:
        """The files that bear the library's names, sorted; everything else there is none of its business."""
        found = []
        for name in sorted(os.listdir(self.path if self._handle is None else self._handle)):
            match = _OWN.fullmatch(name)
            if match:
                where = os.path.join(self.path, name) if self._handle is None else name
                with contextlib.suppress(OSError):
                    seen = os.stat(where, dir_fd=self._handle, follow_symlinks=False)
                    if stat.S_ISREG(seen.st_mode):
                        found.append(Entry(name, seen.st_size, match["key"]))
        return found


@contextlib.contextmanager
def opened(create: bool = True) -> Iterator[Folder]:
    """The cache directory, once it is sure that it is this user's own.

    Raises
    ------
    OSError
        Where there is none, or none that can be trusted; the message says why.
    """
    path = directory()
    if create:
        os.makedirs(path, mode=0o700, exist_ok=True)
    if not _POSIX:  # a profile's folders are closed to other users by the system
        yield Folder(path, None)
        return
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        raise Refused(f"{path} is no directory, or a link") from None
    except OSError as error:
        raise Refused(f"{path} is a link") if os.path.islink(path) else error from None
    try:
        _check_own(os.fstat(handle), path)
        yield Folder(path, handle)
    finally:
        os.close(handle)


def _check_own(seen: os.stat_result, what: str) -> None:
    if seen.st_uid != os.getuid():
        raise Refused(f"{what} belongs to another user")
    if seen.st_mode & _OTHERS_WRITE:
        raise Refused(f"{what} may be written to by others (mode {stat.S_IMODE(seen.st_mode):o}); chmod go-w it")


def read(name: str) -> bytes | None:
    """The machine code kept under this name, unless it is missing, damaged or perhaps somebody else's."""
    try:
        with opened(create=False) as folder, os.fdopen(folder.open(name, os.O_RDONLY), "rb") as file:
            seen = os.fstat(file.fileno())
            if _POSIX:
                _check_own(seen, name)
            if not stat.S_ISREG(seen.st_mode) or seen.st_nlink != 1 or seen.st_size > _MOST_BYTES:
                return None
            content = file.read(_MOST_BYTES)
    except OSError:
        return None
    digest, machine_code = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    return machine_code if _digest(name, machine_code) == digest else None


def write(name: str, machine_code: bytes) -> None:
    """Keep it whole or not at all: other processes may be reading, or writing the same file."""
    temporary = f"{name}.{os.urandom(8).hex()}.tmp"
    with contextlib.suppress(OSError), opened() as folder:
        handle = folder.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_digest(name, machine_code) + machine_code)
            folder.rename(temporary, name)
        except BaseException:
            with contextlib.suppress(OSError):
                folder.remove(temporary)
            raise


def clear() -> list[Entry]:
    """Delete the library's own files, and only those; returns what was deleted."""
    with opened(create=False) as folder:
        entries = folder.entries()
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                folder.remove(entry.name)
    return entries


def _digest(name: str, machine_code: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(name.encode() + b"\0" + machine_code).digest()
