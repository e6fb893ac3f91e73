"""Files larger than memory
========================

Attention over a sequence in files that are larger than the memory it may use.

::

    python docs/examples/out_of_core.py --tokens 16_777_216 --limit-gb 2 --folder /var/tmp

Makes query, key and value of one head in files, limits its own private memory (RLIMIT_DATA), and runs a window over
them with `subquad.streamed.attention`. Then it says what came of it beside two bounds that the same run
measures: the kernel on arrays in memory, and the disk. Rows here and there are compared with `subquad.attention` on
the keys around them. The files are removed at the end.

It is fast enough if it reaches 60% of the kernel or 80% of the disk, whichever is less; the last line says whether it
does.

The page cache would make a disk look like memory. So files are pushed out of it (posix_fadvise) before each part that
reads them, writes count only once they are on the disk (fdatasync), and the disk is measured with the same sizes: all
of the inputs read once, in pieces of 16 MB, while as many bytes as the output has are written over it. A disk that
others share is not always equally fast: the three take turns for some rounds, the best of each counts, and the share
of the disk is the median over the rounds, each against what the disk did just before.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from subquad import Banded, attention, streamed

NAMES = ("query", "key", "value")
PIECE = 1 << 16  # tokens made at a time
DISK_PIECE = 16 << 20


def make(folder: Path, n: int, d: int) -> None:
    """The files, a piece at a time: pieces of normal numbers, each one as if drawn anew."""
    rng = np.random.default_rng(0)
    for name in (*NAMES, "out"):
        file = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (n, d))
        for at in range(0, n, PIECE):
            file[at : at + PIECE] = rng.standard_normal((min(PIECE, n - at), d), dtype=np.float32)
        file.flush()
    drop(folder)


def drop(folder: Path) -> None:
    """Push the files out of the page cache."""
    for path in folder.glob("*.npy"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def private_bytes() -> int:
    """Private memory of this process by size, touched or not, as RLIMIT_DATA counts it; 0 where nobody says."""
    if not sys.platform.startswith("linux"):
        return 0
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))


@contextlib.contextmanager
def limited(n_bytes: int) -> Iterator[None]:
    """Allow this process so many bytes of private memory beside what it has: files that are mapped do not count."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (private_bytes() + n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def disk_seconds(folder: Path, n_bytes: int) -> float:
    """Seconds in which the disk reads the inputs while it writes over an output."""
    drop(folder)

    def write() -> None:
        header = np.load(folder / "out.npy", mmap_mode="r").offset
        fd, piece = os.open(folder / "out.npy", os.O_WRONLY), bytes(DISK_PIECE)
        for at in range(0, n_bytes, DISK_PIECE):
            os.pwrite(fd, piece[: n_bytes - at], header + at)
        os.fdatasync(fd)
        os.close(fd)

    def read() -> None:
        buffer = bytearray(DISK_PIECE)
        for name in NAMES:
            fd = os.open(folder / f"{name}.npy", os.O_RDONLY)
            for at in range(0, n_bytes, DISK_PIECE):
                os.preadv(fd, [buffer], at)
            os.close(fd)

    start = time.perf_counter()
    writer = threading.Thread(target=write)
    writer.start()
    read()
    writer.join()
    return time.perf_counter() - start


def kernel_seconds(n: int, d: int, pattern: Banded, threads: int | None) -> tuple[float, float]:
    """Seconds of a call on arrays in memory, the plan being there already; the quickest of five."""
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal((n, d), dtype=np.float32) for _ in range(3)]
    out = np.empty((n, d), np.float32)
    return min(timed(lambda: attention(*arrays, pattern, out=out, num_threads=threads)) for _ in range(6))


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock, and of the processor."""
    start, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - busy


def agreeing_rows(folder: Path, n: int, window: int) -> Iterator[int]:
    """Compare some rows with what the library gives for the keys around them."""
    q, k, v, out = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in (*NAMES, "out"))
    for middle in np.linspace(window, n - 1 - window, 50).astype(int):
        around = slice(middle - window, middle + window + 1)
        expected = attention(q[middle : middle + 1], k[around], v[around])
        np.testing.assert_allclose(out[middle : middle + 1], expected, atol=1e-5)
        yield int(middle)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--limit-gb", type=float, default=0.25, help="private memory, and (less 128 MB) max_bytes")
    parser.add_argument("--memory-tokens", type=int, default=1 << 20, help="tokens of the call on arrays in memory")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args(arguments)
    n, d, pattern = options.tokens, options.d, Banded(options.window)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        return run(folder, n, d, pattern, options)
    finally:
        shutil.rmtree(folder)


def run(folder: Path, n: int, d: int, pattern: Banded, options: argparse.Namespace) -> dict[str, float]:
    n_bytes, memory = 4 * n * d, int(options.limit_gb * 1e9)
    print(f"4 files of {n_bytes / 1e9:.2f} GB in {folder}; {memory / 1e9:.2f} GB of memory", flush=True)
    make(folder, n, d)
    threads = options.threads
    pairs, few = pattern.nnz(n, n), pattern.nnz(options.memory_tokens, options.memory_tokens)

    q, k, v = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in NAMES)
    out = np.load(folder / "out.npy", mmap_mode="r+")
    before = most = 0

    def progress(done: int, total: int, what: str) -> None:
        nonlocal most
        most = max(most, private_bytes())
        if n > PIECE and sys.stdout.isatty():
            print(f"\r{done:,} of {total:,} rows", end="", flush=True)

    def call() -> object:
        budget = memory - (128 << 20)
        return streamed.attention(q, k, v, pattern, out=out, max_bytes=budget, num_threads=threads, progress=progress)

    kernel, disk, calls = [], [], []
    for _ in range(options.rounds):
        kernel.append(kernel_seconds(options.memory_tokens, d, pattern, threads))
        disk.append(disk_seconds(folder, n_bytes))
        drop(folder)
        before = most = private_bytes()
        with limited(memory):
            calls.append(timed(call))
        if sys.stdout.isatty():
            print()
    n_rows = len([*agreeing_rows(folder, n, options.window)])
    in_memory, seconds = min(kernel)[0], min(calls)[0]
    # each against what the disk did just before: a shared disk is a third slower from one round to the next
    of_disk = statistics.median(of_it / clock for of_it, (clock, _) in zip(disk, calls, strict=True))
    busy_in_memory, busy = (min(processor for _, processor in found) for found in (kernel, calls))
    found = {
        "seconds": seconds,
        "of the kernel": (pairs / seconds) / (few / in_memory),
        "of the disk": of_disk,
        "private bytes": most - before,
    }
    print(f"in files: {', '.join(f'{x:.1f}' for x, _ in calls)} s")
    print(f"at best {pairs / seconds / 1e9:.2f} G pairs/s, {4 * n_bytes / seconds / 1e9:.2f} GB/s")
    print(
        f"kernel in memory: {few / in_memory / 1e9:.2f} G pairs/s; that many pairs in {pairs / few * in_memory:.1f} s"
    )
    print(f"disk: {', '.join(f'{x:.1f}' for x in disk)} s, {4 * n_bytes / min(disk) / 1e9:.2f} GB/s at best")
    print(f"{found['of the kernel']:.0%} of the kernel, {found['of the disk']:.0%} of the disk; {n_rows} rows agree")
    print(f"processor: {busy:.1f} s, of which {pairs / few * busy_in_memory:.1f} s are the kernel's")
    print(f"private memory of the call: {(most - before) / 1e9:.2f} GB at most, of {memory / 1e9:.2f} GB")
    enough = found["of the kernel"] >= 0.6 or found["of the disk"] >= 0.8
    print(f"60% of the kernel or 80% of the disk, whichever is less: {'reached' if enough else 'NOT reached'}")
    return found


if __name__ == "__main__":
    main()
