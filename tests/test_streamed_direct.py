"""Long reads past the page cache give the bytes of the file, wherever they begin and whatever the cache holds."""

import os

import numpy as np
import pytest
from support import assert_same_bits, inputs

from subquad import Banded, attention, streamed
from subquad.streamed import direct
from subquad.streamed.direct import PIECE, DirectFile

SIZE = 3 * PIECE + 12_345


@pytest.fixture
def file(tmp_path):
    """A file of bytes, mapped, with nothing of it in the page cache; and its bytes."""
    data = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    data.tofile(tmp_path / "x.bin")
    drop(tmp_path / "x.bin")
    return np.memmap(tmp_path / "x.bin", mode="r"), data


def drop(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def filled(opened, mapped, place, size):
    """What `fill` gave of so many bytes."""
    target = np.zeros(size, np.uint8)
    count = opened.fill(memoryview(target), place, mapped.__array_interface__["data"][0] + place)
    return target[:count]


@pytest.mark.parametrize(("place", "size"), [(0, SIZE), (128, 2 * PIECE), (4095, 4098), (PIECE - 1, PIECE + 2), (7, 1)])
def test_bytes_are_those_of_the_file(file, place, size):
    mapped, data = file
    opened = DirectFile(mapped.filename)
    found = filled(opened, mapped, place, size)
    opened.close()
    np.testing.assert_array_equal(found, data[place : place + len(found)])
    assert len(found) in (0, size)  # nothing, where the file system has no such reads


def test_what_is_in_memory_is_left_to_the_cache(file):
    mapped, _ = file
    (2 * mapped[PIECE : 2 * PIECE].astype(np.int64)).sum()  # one piece comes into the cache
    opened = DirectFile(mapped.filename)
    assert len(filled(opened, mapped, PIECE, PIECE)) == 0
    assert len(filled(opened, mapped, 0, 2 * PIECE)) in (0, PIECE)
    opened.close()


def test_a_file_that_ends_early_ends_the_read(file):
    mapped, data = file
    os.truncate(mapped.filename, PIECE + 100)
    drop(mapped.filename)
    opened = DirectFile(mapped.filename)
    found = filled(opened, mapped, 0, 2 * PIECE)
    opened.close()
    assert len(found) in (0, PIECE + 100)
    np.testing.assert_array_equal(found, data[: len(found)])


def test_a_refusal_closes_the_way(file, monkeypatch):
    """A file system may know the flag and yet refuse a read."""
    mapped, _ = file
    opened = DirectFile(mapped.filename)
    if opened.fd < 0:
        pytest.skip("no reads past the page cache here")

    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(direct, "_cached", lambda *_: False)
    monkeypatch.setattr(os, "preadv", refuse)
    assert len(filled(opened, mapped, 0, PIECE)) == 0
    assert opened.fd == -1
    opened.close()


@pytest.mark.parametrize("refused", [False, True])
def test_attention_over_files_that_are_not_cached(tmp_path, rng, monkeypatch, refused):
    if refused:
        monkeypatch.setattr(direct, "_FLAG", 0)
    arrays = inputs(rng, 30_000, 30_000, 32, dtype=np.float32)
    for name, x in zip("qkv", arrays, strict=True):
        np.save(tmp_path / f"{name}.npy", x)
        drop(tmp_path / f"{name}.npy")
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "qkv"]
    out = streamed.attention(*mapped, Banded(9), out=np.empty_like(arrays[0]), max_bytes=24 << 20)
    assert_same_bits(out, attention(*arrays, Banded(9)))
