"""Damaged pattern files: `load` gives a pattern that works, or one of its documented errors; it never crashes or hangs.

    python tests/fuzz_pattern_files.py 1000000

Half of the files are bytes changed anywhere, which the checksums of the zip mostly catch. The other half are changed
in their JSON or in their arrays and zipped anew, so that they reach the checks behind.
"""

from __future__ import annotations

import collections
import io
import random
import sys
import time
import zipfile

import numpy as np
from scipy.sparse import csr_array

from subquad import (
    Banded,
    BlockSparse,
    Causal,
    Columns,
    Dense,
    Explicit,
    Global,
    LogSparse,
    Neighborhood,
    Packed,
    Random,
    Strided,
    bigbird,
    load,
    longformer,
    sparse_transformer_fixed,
)
from subquad.pattern_files import to_bytes
from subquad.patterns.last_block import LastBlock

SEEDS = [
    Dense(),
    Causal(),
    Banded(7) | Global([0, 5, 9]),
    Banded((3, None), block=4),
    Strided(5) & Causal(),
    Columns(8, 2) - Banded(1),
    Random(4, seed=-(2**63), block=2),
    Random(4).transpose(),
    LogSparse(),
    Packed([3, 0, 5]) & Causal(),
    Packed(np.arange(200)),
    Neighborhood((4, 5), (3, 2), (1, 2), (True, False), stride=(2, 1)),
    LastBlock(3),
    Explicit(csr_array([[1, 0, 1], [0, 1, 0], [1, 1, 1]])),
    BlockSparse([[1, 0], [1, 1]], block=8),
    Explicit(csr_array(np.random.default_rng(0).random((40, 40)) < 0.2)),
    bigbird(16),
    longformer(8, [1, 3]),
    sparse_transformer_fixed(16, 2),
]
TOKENS = [
    b"0", b"-1", b"1e9", b"1.5", b"null", b"true", b"[]", b"{}", b'""', b"NaN", b"9223372036854775807",
    b"9223372036854775808", b"4611686018427387904", b"[0,1]", b'{"array": 0}', b'{"range": [0, 9]}', b"9" * 5000,
    b'{"type": "Causal"}', b'"Union"', b'"Explicit"', b'"Packed"', b'"Transposed"',
]  # fmt: skip
NUMBERS = [0, 1, -1, 2, 3, 39, 40, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63)]
ALLOWED = (ValueError, TypeError, MemoryError, OSError)


def changed(content: bytes, rng: random.Random) -> bytes:
    """A few bytes set, cut out, repeated, or a token put in."""
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(made) + 1)
        way = rng.randrange(6)
        if way == 0:
            made[at : at + 1] = bytes([rng.randrange(256)])
        elif way == 1:
            made[at : at + 1] = bytes([(made[at] if at < len(made) else 0) ^ 1 << rng.randrange(8)])
        elif way == 2:
            del made[at : at + rng.choice((1, 2, 8, 64, 1 << 20))]
        elif way == 3:
            made[at:at] = made[rng.randrange(len(made) + 1) :][: rng.choice((1, 8, 64))]
        elif way == 4:
            made[at : at + rng.randrange(4)] = rng.choice(TOKENS)
        else:
            made[at : at + 8] = (rng.choice(NUMBERS) % 2**64).to_bytes(8, "little")
    return bytes(made)


def changed_inside(parts: dict[str, bytes], rng: random.Random) -> bytes:
    """The JSON or an array changed, under right checksums."""
    parts = dict(parts)
    name = rng.choice(list(parts))
    if name.endswith(".npy") and rng.random() < 0.8:
        array = np.frombuffer(parts[name], "<i8", offset=128).copy()
        for _ in range(rng.choice((1, 1, 2, 5))):
            if len(array):
                array[rng.randrange(len(array))] = rng.choice(NUMBERS)
        parts[name] = parts[name][:128] + array.tobytes()
    else:
        parts[name] = changed(parts[name], rng)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for key, content in parts.items():
            archive.writestr(zipfile.ZipInfo(key), content)
    return made.getvalue()


def fuzz(count: int, seed: int) -> collections.Counter[str]:
    """Load so many damaged files; how each ended. Anything but a pattern or a documented error is raised."""
    rng, ends = random.Random(seed), collections.Counter()
    whole = [to_bytes(pattern) for pattern in SEEDS]
    parts = []
    for content in whole:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts.append({name: archive.read(name) for name in archive.namelist()})
    for number in range(count):
        which = rng.randrange(len(whole))
        content = changed(whole[which], rng) if number % 2 else changed_inside(parts[which], rng)
        began = time.perf_counter()
        try:
            pattern = load(io.BytesIO(content))
        except ALLOWED as error:
            ends[type(error).__name__] += 1
        except BaseException:
            print(f"file {number} of seed {seed}: {content!r}", file=sys.stderr)
            raise
        else:
            ends["loaded"] += 1
            if number % 16 == 0:
                used(pattern)
        if time.perf_counter() - began > 10:
            raise AssertionError(f"file {number} of seed {seed} took 10 s: {content!r}")
    return ends


def used(pattern) -> None:
    """What a file gave behaves as a pattern: equal to itself, saved again, counted, or refused by name."""
    assert load(io.BytesIO(to_bytes(pattern))) == pattern
    try:
        pattern.nnz(40, 40)
        pattern.row(3, 40, 40)
        pattern.contains(np.arange(40)[:, None], np.arange(40), 40, 40)
    except ALLOWED:
        return


if __name__ == "__main__":
    start, total = time.perf_counter(), int(sys.argv[1])
    found = fuzz(total, seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(f"{total:,} files in {time.perf_counter() - start:.0f} s: {dict(found)}")
