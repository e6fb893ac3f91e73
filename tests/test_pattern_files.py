"""Patterns in files: an equal pattern comes back, and a file of anybody's making can do no harm."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from fuzz_pattern_files import SEEDS, fuzz
from hypothesis import given
from scipy.sparse import csr_array
from support import sized_expressions

import subquad
from subquad import Banded, Causal, Explicit, Global, Packed, Random, load, save
from subquad.pattern_files import DEEPEST, to_bytes

GRAPH = Explicit(csr_array([[1, 0, 1], [0, 1, 0], [1, 1, 1]]))


def loaded(content):
    return load(io.BytesIO(content))


def members(pattern):
    with zipfile.ZipFile(io.BytesIO(to_bytes(pattern))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(contents, **options):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", **options) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return made.getvalue()


def described(node, version=1, **arrays):
    text = json.dumps({"format": "subquad pattern", "version": version, "pattern": node})
    return zipped({"pattern.json": text, **arrays})


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", SEEDS, ids=lambda pattern: repr(pattern)[:60])
def test_an_equal_pattern_comes_back(tmp_path, pattern):
    save(tmp_path / "pattern.npz", pattern)
    found = load(str(tmp_path / "pattern.npz"))
    assert found == pattern
    assert type(found) is type(pattern)
    assert hash(found) == hash(pattern)
    assert os.listdir(tmp_path) == ["pattern.npz"]


@given(sized_expressions())
def test_any_expression_comes_back(case):
    pattern = case[0]
    assert loaded(to_bytes(pattern)) == pattern


def test_what_is_in_a_file():
    found = members(Banded((8, None)) - Packed([3, 2]))
    assert sorted(found) == ["0.npy", "pattern.json"]
    assert json.loads(found["pattern.json"]) == {
        "format": "subquad pattern",
        "version": 1,
        "pattern": {
            "type": "Difference",
            "left": {"type": "Banded", "window": [8, None], "block": 1},
            "right": {"type": "Packed", "lengths": {"array": 0}},
        },
    }
    assert np.load(io.BytesIO(found["0.npy"]), allow_pickle=False).tolist() == [3, 2]


def test_numpy_opens_it(tmp_path):
    save(tmp_path / "graph.npz", GRAPH)
    with np.load(tmp_path / "graph.npz", allow_pickle=False) as archive:
        assert archive["0"].tolist() == [0, 2, 3, 6]
        assert archive["1"].tolist() == [0, 2, 1, 0, 1, 2]


def test_a_file_of_version_1_stays_readable():
    """Written out by hand: releases to come must read it, too."""
    node = {"type": "Union", "left": {"type": "Global", "tokens": {"range": [0, 4]}, "rows": True, "columns": False},
            "right": {"type": "Random", "keys": 5, "seed": -3, "block": 16}}  # fmt: skip
    assert loaded(described(node)) == Global(range(4), columns=False) | Random(5, -3, 16)


def test_equal_patterns_give_equal_files():
    assert to_bytes(GRAPH) == to_bytes(Explicit(csr_array([[1, 0, 1], [0, 1, 0], [1, 1, 1]])))


# --- what cannot be saved ---------------------------------------------------------------------------------------------


def test_what_cannot_be_saved(tmp_path):
    class Mine(Banded):
        pass

    for wrong in ("Banded(3)", Causal, Mine(3) | Causal()):
        with pytest.raises(TypeError, match="pattern must be"):
            save(tmp_path / "file", wrong)
    deep = Causal()
    for window in range(DEEPEST):
        deep = deep | Banded(window)
    with pytest.raises(ValueError, match="at most 200 levels"):
        save(tmp_path / "file", deep)
    assert os.listdir(tmp_path) == []
    assert loaded(to_bytes(deep.left)) == deep.left
    with pytest.raises(OSError, match="missing"):
        save(tmp_path / "missing" / "file", Causal())
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")


# --- files that are wrong ---------------------------------------------------------------------------------------------

CAUSAL = {"type": "Causal"}


def nested(levels):
    node = CAUSAL
    for _ in range(levels):
        node = {"type": "Transposed", "base": node}
    return node


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a zip file"),
        (b"PK\5\6" + b"\0" * 18, "no member 'pattern.json'"),
        (zipped({"pattern.json": "["}), "Expecting value"),
        (zipped({"pattern.json": "[" * 100_000}), "recursion"),
        (zipped({"pattern.json": b"\xff\xfe"}), "utf-8"),
        (zipped({"pattern.json": "[1]"}), "must have format"),
        (described(CAUSAL, version=2), "version is 2; this release reads 1"),
        (described(CAUSAL, version=True), "version is True"),
        (described([]), "object with a type"),
        (described({"type": "Pattern"}), "unknown pattern 'Pattern'"),
        (described({"type": "bigbird", "block": 4}), "unknown pattern"),
        (described({"type": "__class__"}), "unknown pattern"),
        (described({"type": "Causal", "window": 3}), "no arguments"),
        (described({"type": "Banded", "window": 3}), "window, block"),
        (described({"type": "Banded", "window": -1, "block": 1}), "window must be"),
        (described({"type": "Banded", "window": 2.0, "block": 1}), "window must be"),
        (described({"type": "Banded", "window": True, "block": 1}), "window must be"),
        (described({"type": "Strided", "stride": 0}), "stride must be"),
        (described({"type": "Strided", "stride": 10**30}), "at most"),
        (described({"type": "Global", "tokens": {"range": [-5, 3]}, "rows": True, "columns": True}), "tokens"),
        (described({"type": "Global", "tokens": {"range": [0, 3, 1]}, "rows": True, "columns": True}), "argument"),
        (described({"type": "Packed", "lengths": {"array": 0}}), "no member '0.npy'"),
        (described({"type": "Packed", "lengths": {"array": 1}}), "in order"),
        (described({"type": "Packed", "lengths": {"array": True}}), "argument must be"),
        (described({"type": "Packed", "lengths": {"array": 0}}, **{"0.npy": b"\x93NUMPY"}), "little-endian int64"),
        (described(nested(300)), "more than 200 levels"),
        (zipped({"pattern.json": json.dumps(CAUSAL) * 2}, compression=zipfile.ZIP_DEFLATED), "compressed"),
    ],
)
def test_wrong_files_are_told_from_right_ones(content, reason):
    with pytest.raises(ValueError, match=r"^this is no pattern file: ") as caught:
        loaded(content)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("indptr", "indices", "reason"),
    [
        ([0, 1], [5], "integers in \\[0, 2\\]; got 5"),
        ([0, 1], [-1], "got -1"),
        ([0, 2], [1, 1], "each there once"),
        ([0, 2], [2, 1], "sorted"),
        ([0, 3], [1], "indptr must rise"),
        ([1, 1], [1], "indptr must rise"),
        ([0, 1, 1], [1], "must have 2 entries"),
    ],
)
def test_every_index_is_checked(indptr, indices, reason):
    node = {"type": "Explicit", "indptr": {"array": 0}, "indices": {"array": 1}, "layout_shape": [1, 3], "block": 1}
    arrays = {}
    for number, values in enumerate((indptr, indices)):
        made = io.BytesIO()
        np.save(made, np.array(values, np.int64))
        arrays[f"{number}.npy"] = made.getvalue()
    with pytest.raises(ValueError, match=reason):
        loaded(described(node, **arrays))


def test_an_array_of_objects_is_not_unpickled():
    made = io.BytesIO()
    np.save(made, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="little-endian int64"):
        loaded(described({"type": "Packed", "lengths": {"array": 0}}, **{"0.npy": made.getvalue()}))


def refused_within(content, n_bytes, reason):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=reason):
            loaded(content)
        assert tracemalloc.get_traced_memory()[1] < n_bytes
    finally:
        tracemalloc.stop()


def test_a_bomb_of_zeros_is_refused_before_it_is_unpacked():
    bomb = zipped({"pattern.json": b" " * (8 << 20)}, compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 20_000
    refused_within(bomb, 1 << 20, "larger than the file")


def test_a_header_that_declares_a_terabyte_allocates_nothing():
    whole = members(Packed([3, 2]))
    whole["0.npy"] = whole["0.npy"].replace(b"(2,), }           ", b"(137438953472,), }")
    refused_within(zipped(whole), 1 << 20, "says it has 137438953472 entries")


def test_members_that_share_their_bytes_are_refused():
    """A directory that lists one array many times over, so that a small file would fill memory."""
    content = to_bytes(Packed(np.ones(2000, int)))
    at, end = content.index(b"PK\1\2"), content.rindex(b"PK\5\6")
    entry = content[content.index(b"PK\1\2", at + 4) : end]
    copies = [entry.replace(b"0.npy", f"{number}.npy".encode()) for number in range(1, 9)]
    directory = content[at:end] + b"".join(copies)
    tail = bytearray(content[end:])
    tail[8:12] = (10).to_bytes(2, "little") * 2
    tail[12:16] = len(directory).to_bytes(4, "little")
    refused_within(content[:at] + directory + bytes(tail), 1 << 20, "larger than the file")


def test_random_damage_gives_the_documented_errors_alone():
    """`tests/fuzz_pattern_files.py` does so a million times."""
    counts = fuzz(4000, seed=1)
    assert sum(counts.values()) == 4000
    assert counts["loaded"] > 100
    assert counts["ValueError"] > 2000


def test_names_are_there():
    assert subquad.save is save
    assert subquad.load is load
