"""Output files that are either whole or not there."""

import errno
import os
from pathlib import Path


def check_writable(path: Path) -> None:
    """Raise `OSError` now if `write_whole` would later: nobody likes to learn it after the long work."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    try:
        _beside(path).touch(exist_ok=False)
        _beside(path).unlink()
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from None


def write_whole(path: Path, content: bytes) -> None:
    """Write to a file beside `path`, then rename: a reader finds the old content or the new, never half of it."""
    partial = _beside(path)
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")
