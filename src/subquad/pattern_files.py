"""Patterns in files: JSON for the expression, `.npy` for index arrays, in one uncompressed zip that NumPy can open.

A file may be of anybody's making. Nothing in it is a pickle or is evaluated; what is read is bounded by the size of
the file, since a member that is compressed, or says it is larger than the file, is refused before anything is
allocated; and every pattern is built by its own constructor, which checks every number and every index.

    pattern.json    {"format": "subquad pattern", "version": 1, "pattern": <node>}
    0.npy, 1.npy    one axis of little-endian int64 each, in the order in which nodes name them

A node is {"type": "Union", "left": <node>, "right": <node>}, or a pattern with its arguments by name, such as
{"type": "Banded", "window": [8, null], "block": 1}. An array stands as {"array": 0}, a range as {"range": [0, 16]}.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from subquad import patterns
from subquad.inputs import checked_pattern
from subquad.patterns.base import Difference, Intersection, Pattern, Union, _Joined
from subquad.patterns.last_block import LastBlock
from subquad.patterns.spans import Ints
from subquad.patterns.stored import StoredLists, rebuilt
from subquad.patterns.transposed import Transposed

FORMAT, VERSION = "subquad pattern", 1
#: Levels of an expression; a union of many patterns made one by one has as many levels as patterns.
DEEPEST = 200
_MOST_TEXT = 16 << 20  # bytes of JSON
_JSON = "pattern.json"
_JOINED: dict[str, type[_Joined]] = {"Union": Union, "Intersection": Intersection, "Difference": Difference}
# What may be in a file, and the arguments of each, which are its fields as well.
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "Dense": (),
    "Causal": (),
    "Banded": ("window", "block"),
    "Strided": ("stride",),
    "Columns": ("stride", "width"),
    "Global": ("tokens", "rows", "columns"),
    "Random": ("keys", "seed", "block"),
    "LogSparse": (),
    "Packed": ("lengths",),
    "Neighborhood": ("shape", "window", "dilation", "causal", "stride"),
    "LastBlock": ("block",),
}
_LISTS = ("Explicit", "BlockSparse")
_LIST_FIELDS = ("indptr", "indices", "layout_shape", "block")
_HEADER = re.compile(
    rb"\x93NUMPY\x01\0..\{'descr': '<i8', 'fortran_order': False, 'shape': \((\d{1,18}),\), \} *\n", re.S
)
# What zipfile and json raise, beside ValueError, for bytes that are no such thing.
_DAMAGED = (
    zipfile.BadZipFile, struct.error, zlib.error, EOFError, NotImplementedError, RuntimeError, KeyError, IndexError,
    OverflowError,
)  # fmt: skip


def save(file: str | os.PathLike[str] | IO[bytes], pattern: Pattern) -> None:
    """Write a pattern to a file, from which `load` makes an equal one.

    Parameters
    ----------
    file : path or binary file
        A path is written whole or not at all. Any name will do; ``.npz`` is what it is: a zip of arrays, with
        ``pattern.json`` beside them, which ``numpy.load`` opens.
    pattern : Pattern
        Any expression of the library's own patterns, up to 200 levels deep.

    Raises
    ------
    TypeError
        If it is no pattern, or holds one of another class.
    ValueError
        If it is too deep.
    OSError
        If the file cannot be written.

    Notes
    -----
    A few hundred bytes, and 8 for each entry of index arrays. No pickle. See `load`.

    Examples
    --------
    >>> import io
    >>> from subquad import Banded, Global, load, save
    >>> file = io.BytesIO()
    >>> save(file, Banded(256) | Global(range(16)))
    >>> _ = file.seek(0)
    >>> load(file)
    Banded(256) | Global(range(0, 16))
    """
    content = to_bytes(pattern)
    if isinstance(file, str | os.PathLike):
        from pathlib import Path

        from subquad.files import write_whole

        write_whole(Path(file), content)
    else:
        file.write(content)


def load(file: str | os.PathLike[str] | IO[bytes]) -> Pattern:
    """Read a pattern from a file that `save` wrote.

    The file need not be trusted: it is data alone, what is allocated is bounded by its size, and every number and index
    is checked as if you had passed it to the pattern yourself.

    Parameters
    ----------
    file : path or binary file
        That can be read and sought.

    Raises
    ------
    ValueError
        If the file is damaged, holds something else, or arguments that its pattern refuses.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> from subquad import load
    >>> load(__import__("io").BytesIO(b"not a pattern"))
    Traceback (most recent call last):
    ValueError: this is no pattern file: File is not a zip file
    """
    if isinstance(file, str | os.PathLike):
        with open(file, "rb") as opened:
            return _read(opened, os.fspath(file))
    return _read(file, "this")


def to_bytes(pattern: Pattern) -> bytes:
    """What `save` writes."""
    arrays: list[Ints] = []
    described = {"format": FORMAT, "version": VERSION, "pattern": _node(checked_pattern(pattern), arrays, DEEPEST)}
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        # a date of its own, so that equal patterns give equal files
        archive.writestr(zipfile.ZipInfo(_JSON), json.dumps(described, allow_nan=False))
        for number, array in enumerate(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, array.astype("<i8"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{number}.npy"), member.getvalue())
    return made.getvalue()


# --- writing ------------------------------------------------------------------------------------------------------


def _node(pattern: Pattern, arrays: list[Ints], levels: int) -> dict[str, Any]:
    name = type(pattern).__name__
    if levels == 0:
        raise ValueError(f"pattern must have at most {DEEPEST} levels to be saved; join its parts in pairs")
    if type(pattern) is _JOINED.get(name):
        left, right = (_node(side, arrays, levels - 1) for side in (pattern.left, pattern.right))
        return {"type": name, "left": left, "right": right}
    if isinstance(pattern, Transposed):
        return {"type": "Transposed", "base": _node(pattern.base, arrays, levels - 1)}
    if type(pattern) is not _class(name):
        raise TypeError(f"pattern must be made of the library's own patterns to be saved; got a {type(pattern)}")
    fields = _LIST_FIELDS if name in _LISTS else _ARGUMENTS[name]
    return {"type": name} | {field: _written(getattr(pattern, field), arrays) for field in fields}


def _written(value: Any, arrays: list[Ints]) -> Any:
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {"array": len(arrays) - 1}
    if isinstance(value, range):
        return {"range": [value.start, value.stop]}
    return list(value) if isinstance(value, tuple) else value


def _class(name: str) -> Any:
    if name == "LastBlock":
        return LastBlock
    return getattr(patterns, name) if name in _ARGUMENTS or name in _LISTS else None


# --- reading ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except (*_DAMAGED, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{what} is no pattern file: {reason}") from None


def _read(file: IO[bytes], what: str) -> Pattern:
    with _told(what):
        size = file.seek(0, os.SEEK_END)
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise ValueError("two members have one name")
            if sum(info.file_size for info in members.values()) > size:  # in Python integers, before any is read
                raise ValueError("its members say they are larger than the file")
            reader = _Reader(archive, members)
            return reader.pattern(reader.described(), DEEPEST)


class _Reader:
    """Builds a pattern from the members of one file; each array is used once."""

    def __init__(self, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> None:
        self._archive, self._members, self._used = archive, members, 0

    def _content(self, name: str, most: int) -> bytes:
        info = self._members.get(name)
        if info is None:
            raise ValueError(f"it has no member {name!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.file_size > most:
            raise ValueError(f"its member {name!r} is compressed or too large ({info.file_size:,} bytes)")
        with self._archive.open(info) as member:
            content = member.read(info.file_size + 1)
        if len(content) != info.file_size:
            raise ValueError(f"its member {name!r} has {len(content):,} bytes and says {info.file_size:,}")
        return content

    def described(self) -> Any:
        whole = json.loads(self._content(_JSON, _MOST_TEXT).decode("utf-8"))
        if not isinstance(whole, dict) or whole.get("format") != FORMAT:
            raise ValueError(f"its {_JSON} must have format {FORMAT!r}")
        version = whole.get("version")
        if version != VERSION or isinstance(version, bool):
            raise ValueError(f"its version is {version!r}; this release reads {VERSION}: a newer one may read it")
        return whole.get("pattern")

    def pattern(self, node: Any, levels: int) -> Pattern:
        if not isinstance(node, dict) or not isinstance(node.get("type"), str):
            raise ValueError(f"a pattern must be an object with a type; got {str(node)[:80]}")
        name = node["type"]
        if levels == 0:
            raise ValueError(f"it has more than {DEEPEST} levels")
        if name in _JOINED:
            self._expect(node, ("left", "right"))
            return _JOINED[name](*(self.pattern(node[side], levels - 1) for side in ("left", "right")))
        if name == "Transposed":
            self._expect(node, ("base",))
            return self.pattern(node["base"], levels - 1).transpose()
        if name in _LISTS:
            self._expect(node, _LIST_FIELDS)
            found = rebuilt(_class(name), *(self._argument(node[field]) for field in _LIST_FIELDS))
            return self._of_block_one(found) if name == "Explicit" else found
        if name not in _ARGUMENTS:
            raise ValueError(f"unknown pattern {name[:80]!r}")
        self._expect(node, _ARGUMENTS[name])
        made: Pattern = _class(name)(**{field: self._argument(node[field]) for field in _ARGUMENTS[name]})
        return made

    @staticmethod
    def _expect(node: dict[str, Any], fields: tuple[str, ...]) -> None:
        if node.keys() - {"type"} != set(fields):
            raise ValueError(f"a {node['type']} has {', '.join(fields) or 'no arguments'}; got {sorted(node)!r:.200}")

    @staticmethod
    def _of_block_one(found: StoredLists) -> StoredLists:
        if found.block != 1:
            raise ValueError(f"an Explicit has block 1; got {found.block}")
        return found

    def _argument(self, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(value)
        if not isinstance(value, dict):
            return value
        match value:
            case {"array": int(number), **rest} if not rest and type(number) is int:
                return self._array(number)
            case {"range": [int(start), int(stop)], **rest} if not rest and bool not in (type(start), type(stop)):
                return range(start, stop)
        raise ValueError(f"an argument must be a number, a list, an array or a range; got {str(value)[:80]}")

    def _array(self, number: int) -> Ints:
        if number != self._used:
            raise ValueError(f"arrays must be named in order, once each; got {number} for array {self._used}")
        self._used += 1
        content = self._content(f"{number}.npy", 1 << 62)
        # NumPy's own reader would evaluate the header as a literal of Python; what NumPy writes here has one form
        found = _HEADER.match(content)
        if found is None or len(found[0]) != 10 + int.from_bytes(content[8:10], "little"):
            raise ValueError(f"array {number} must be one axis of little-endian int64, in version 1.0 of .npy")
        if 8 * int(found[1]) != len(content) - found.end():
            raise ValueError(f"array {number} says it has {int(found[1])} entries, in {len(content):,} bytes")
        return np.frombuffer(content, "<i8", offset=found.end())
