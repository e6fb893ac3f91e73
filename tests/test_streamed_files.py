"""Arrays in files: what is read and written, what a kill leaves behind, how much memory it takes, what goes wrong."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import FLOAT16, assert_same_bits, inputs

from subquad import Banded, Dense, Explicit, Global, attention, longformer, streamed
from subquad.streamed import arrays as stored_arrays
from subquad.streamed import budget, call, journal, pipeline
from subquad.streamed.arrays import Stored

MB = 1 << 20
NAMES = ("query", "key", "value")


def saved(folder, *arrays, mode="r"):
    """The arrays as memory-mapped files."""
    for name, x in zip(NAMES, arrays, strict=True):
        np.save(folder / f"{name}.npy", x)
    return [np.load(folder / f"{name}.npy", mmap_mode=mode) for name in NAMES]


def new(path, shape, dtype=np.float32):
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def progress_of(out):
    return Path(f"{out.filename}.progress")


@pytest.fixture
def small_ranges(monkeypatch):
    """Ranges of 64 rows, each made last on the disk before the next."""
    monkeypatch.setattr(call.budget, "cut", lambda share, *_: budget.Cut(min(len(share), 64), 256, 1 << 40))
    monkeypatch.setattr(pipeline, "SYNC_BYTES", 1)


@pytest.fixture
def files(tmp_path, rng):
    return saved(tmp_path, *inputs(rng, 500, 500, leading=(2,)))


# --- kinds of arrays --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [np.float32, FLOAT16, ">f4"])
def test_memory_mapped_files(tmp_path, rng, small_ranges, leading, dtype):
    given = [x.astype(dtype) for x in inputs(rng, 200, 200, leading=leading)]
    files = saved(tmp_path, *given)
    native = np.dtype(dtype).newbyteorder("=")
    out = new(tmp_path / "out.npy", (*leading, 200, 16), native)
    lse = new(tmp_path / "lse.npy", (*leading, 200))
    found = streamed.attention(*files, Banded(20), out=out, lse=lse)
    assert found[0] is out
    assert found[1] is lse
    expected = attention(*given, Banded(20), return_lse=True)
    assert_same_bits(np.load(tmp_path / "out.npy"), expected[0])
    assert_same_bits(np.load(tmp_path / "lse.npy"), expected[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "key.npy",
        "lse.npy",
        "out.npy",
        "query.npy",
        "value.npy",
    ]


def test_files_are_read_without_touching_their_pages(files, tmp_path, monkeypatch):
    monkeypatch.setattr(np.memmap, "__getitem__", None)
    assert all(Stored(x, "x").file is not None for x in files)


def test_views_of_files_are_found_in_them(tmp_path, rng):
    x = inputs(rng, 100, 100)[0]
    np.save(tmp_path / "x.npy", np.stack([x, 2 * x, 3 * x]))
    whole = np.load(tmp_path / "x.npy", mmap_mode="r")
    for view in (whole[1], whole[::2][:, 10:20], np.asarray(whole)[2, 5:]):
        stored, heads = Stored(view, "x"), len(view) if view.ndim == 3 else 1
        assert stored.file is not None
        into = np.empty((heads, view.shape[-2], 16), np.float32)
        stored.read(0, slice(0, heads), (0, view.shape[-2]), into)
        assert np.array_equal(into.reshape(view.shape), view)
        stored.close()
    for view in (whole[:, :, ::2], whole[0, ::-1], whole[0].T, x):
        assert Stored(view, "x").file is None


def test_a_file_that_was_replaced_is_read_as_it_was_mapped(tmp_path, rng):
    q, k, v = inputs(rng, 100, 100)
    files = saved(tmp_path, q, k, v)
    np.save(tmp_path / "new.npy", np.zeros_like(q))
    os.replace(tmp_path / "new.npy", tmp_path / "query.npy")
    found = streamed.attention(*files, Dense(), out=np.empty_like(q))
    assert_same_bits(found, attention(q, k, v))


def test_changes_in_memory_count_where_a_mapping_is_a_copy(tmp_path, rng):
    q, k, v = inputs(rng, 100, 100)
    files = saved(tmp_path, q, k, v, mode="c")
    files[0][:] *= 2
    assert_same_bits(streamed.attention(*files, Dense(), out=np.empty_like(q)), attention(2 * q, k, v))


@pytest.mark.parametrize(
    ("chunks", "shards"),
    [((1, 1, 32, 16), None), ((1, 4, 50, 8), None), ((2, 2, 300, 16), None), ((1, 1, 32, 16), (1, 4, 64, 16))],
)
def test_zarr_arrays(tmp_path, rng, chunks, shards):
    zarr = pytest.importorskip("zarr", reason='needs pip install "subquad[zarr]"')
    given = inputs(rng, 300, 300, leading=(2, 4))
    store = zarr.open_group(tmp_path / "data.zarr", mode="w")
    made = {}
    for name, x in zip((*NAMES, "out"), (*given, given[0]), strict=True):
        made[name] = store.create_array(name, shape=x.shape, chunks=chunks, shards=shards, dtype="float32")
        made[name][...] = x
    lse = store.create_array("lse", shape=(2, 4, 300), chunks=(1, 4, 70), dtype="float32")
    pattern = longformer(20, 2)
    seen = []
    out, sums = streamed.attention(
        *(made[name] for name in NAMES), pattern, out=made["out"], lse=lse,
        progress=lambda *_: seen.append((tmp_path / "data.zarr.out.progress").exists()),
    )  # fmt: skip
    assert out is made["out"]
    expected = attention(*given, pattern, return_lse=True)
    np.testing.assert_allclose(out[...], expected[0], atol=1e-6)
    np.testing.assert_allclose(sums[...], expected[1], atol=1e-6)
    assert seen
    assert all(seen)
    assert not (tmp_path / "data.zarr.out.progress").exists()


def test_each_chunk_is_written_once(tmp_path, rng, monkeypatch):
    zarr = pytest.importorskip("zarr", reason='needs pip install "subquad[zarr]"')
    given = inputs(rng, 4000, 4000, leading=(4,), d=8)
    out = zarr.create_array(tmp_path / "out.zarr", shape=(4, 4000, 8), chunks=(2, 256, 8), dtype="float32")
    parts = []
    write = Stored.write
    monkeypatch.setattr(
        Stored, "write", lambda self, b, heads, rows, x: parts.append((heads, rows)) or write(self, b, heads, rows, x)
    )
    streamed.attention(*given, Banded(9), out=out, max_bytes=6 * MB)
    assert len({rows for _, rows in parts}) > 1
    for heads, rows in parts:
        assert heads.stop - heads.start == 2
        assert rows[0] % 256 == 0
        assert rows[1] % 256 == 0 or rows[1] == 4000
    np.testing.assert_array_equal(out[...], attention(*given, Banded(9)))


# --- memory -----------------------------------------------------------------------------------------------------------

_LIMITED = """
import resource, sys
import numpy as np
from subquad import *
from subquad import streamed

def mapped():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmData"))

folder, n, max_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
files = [np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in ("query", "key", "value")]
x = np.zeros((64, 64), np.float32)
streamed.attention(x, x, x, Banded(3) | Random(2), out=np.empty_like(x))  # kernels, and what they start once
out = np.lib.format.open_memmap(f"{folder}/out.npy", "w+", np.float32, (n, 64))
slack = 48 << 20  # stacks of four threads, 8 MB each, and arenas of their allocators
resource.setrlimit(resource.RLIMIT_DATA, (mapped() + max_bytes + slack,) * 2)
streamed.attention(*files, PATTERN, out=out, max_bytes=max_bytes, num_threads=2)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits private memory alone")
@pytest.mark.parametrize(
    "pattern",
    [
        "Banded(128)",
        "longformer(64, [5, 30_000, 59_000])",
        "bigbird(64)",
        "Random(16)",
        "LogSparse()",
        "Global(range(3)) & Causal() | Strided(3000) & Causal()",
        "Columns(4000, 2) | Banded(0, block=50)",
    ],
)
def test_memory_stays_within_the_limit(tmp_path, pattern):
    """RLIMIT_DATA is hard, and counts private writable memory alone: not the files that are mapped to be read.

    The arrays take 15 MB each, so one that was read as a whole beside the others would not fit; `max_bytes` is less
    than the four of them.
    """
    n = 60_000
    rng = np.random.default_rng(0)
    saved(tmp_path, *(rng.standard_normal((n, 64), dtype=np.float32) for _ in range(3)))
    code = _LIMITED.replace("PATTERN", pattern)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(n), str(24 * MB)], capture_output=True, text=True,
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    rows = slice(n - 1000, n)
    out = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert np.isfinite(out[rows]).all()
    assert (out[rows] != 0).any(axis=1).all()


def test_the_limit_of_that_test_is_one():
    code = "import numpy as np, resource; resource.setrlimit(resource.RLIMIT_DATA, (1 << 27,) * 2); np.ones(1 << 25)"
    assert "MemoryError" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr


def test_too_small_a_limit_says_the_least(rng):
    x = inputs(rng, 500, 500)
    with pytest.raises(
        MemoryError, match=r"max_bytes must be at least ([\d,]+) .*; got 1,000\. The most of it: "
    ) as caught:
        streamed.attention(*x, Dense(), out=np.empty_like(x[0]), max_bytes=1000)
    least = int(str(caught.value).split("at least ")[1].split(" ")[0].replace(",", ""))
    streamed.attention(*x, Dense(), out=np.empty_like(x[0]), max_bytes=least)
    with pytest.raises(MemoryError, match=f"{least:,}"):
        streamed.attention(*x, Dense(), out=np.empty_like(x[0]), max_bytes=least - 1)


def test_a_plan_that_is_too_large_is_named(rng):
    scipy = pytest.importorskip("scipy.sparse", reason='needs pip install "subquad[scipy]"')
    q, k, v = inputs(rng, 16, 500_000, d=1)
    keys = np.stack([np.sort(rng.choice(500_000, 8_000, replace=False)) for _ in range(16)])
    pattern = Explicit(scipy.csr_array((np.ones(keys.size), keys.ravel(), np.arange(17) * 8_000), (16, 500_000)))
    with pytest.raises(
        MemoryError, match=r"the plan of Explicit\(<16 x 500000 CSR array, 128000 entries>\), 10\.\d MB"
    ):
        streamed.attention(q, k, v, pattern, out=np.empty_like(q), max_bytes=8 * MB)


# --- progress and resuming --------------------------------------------------------------------------------------------

_KILLED = """
import json, os, signal, sys
import numpy as np
from subquad import *
from subquad import forward, streamed
from subquad.streamed import budget, call, pipeline

folder, kill_at = sys.argv[1], int(sys.argv[2])
call.budget.cut = lambda share, *_: budget.Cut(min(len(share), 64), 256, 1 << 40)
pipeline.SYNC_BYTES = 1
files = [np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in ("query", "key", "value")]
out, lse = (np.load(f"{folder}/{name}.npy", mmap_mode="r+") for name in ("out", "lse"))
runs, run = 0, forward.run

def counted(part, inputs, *rest):
    global runs
    runs += part.plan.shape.n_q * inputs.arrays[0].shape[1]
    run(part, inputs, *rest)

def progress(done, total, what):
    if done >= kill_at:
        os.kill(os.getpid(), signal.SIGKILL)

forward.run = counted
streamed.attention(*files, longformer(9, [3]), out=out, lse=lse, progress=progress)
print(runs)
"""


def killed(folder, at):
    return subprocess.run(
        [sys.executable, "-c", _KILLED, str(folder), str(at)], capture_output=True, text=True, check=False
    )


def test_a_killed_run_goes_on_where_it_was(tmp_path, rng):
    n = 1000
    given = inputs(rng, n, n, leading=(2,))
    saved(tmp_path, *given)
    for name, shape in (("out", (2, n, 16)), ("lse", (2, n))):
        new(tmp_path / f"{name}.npy", shape).flush()
    journal_path = tmp_path / "out.npy.progress"

    first = killed(tmp_path, n)
    assert first.returncode == -signal.SIGKILL, first.stderr
    lines = journal_path.read_text().splitlines()
    done = [json.loads(line.split(" ", 1)[1]) for line in lines[1:]]
    rows = sum(stop - first for *_, first, stop, _ in done)
    assert 64 <= rows <= n + 64 + 2  # of the last ones some were not on the disk; a range has slots for others' rows
    half = np.load(tmp_path / "out.npy")

    again = killed(tmp_path, 10 * n)
    assert again.returncode == 0, again.stderr
    blocks = -(-n // 256)  # the row of token 3 sees all keys, 256 at a time
    assert int(again.stdout) == 2 * (n + blocks) - rows
    assert not journal_path.exists()
    found = [np.load(tmp_path / f"{name}.npy") for name in ("out", "lse")]

    (tmp_path / "fresh").mkdir()
    saved(tmp_path / "fresh", *given)
    for name, shape in (("out", (2, n, 16)), ("lse", (2, n))):
        new(tmp_path / "fresh" / f"{name}.npy", shape).flush()
    assert killed(tmp_path / "fresh", 10 * n).returncode == 0
    for x, name in zip(found, ("out", "lse"), strict=True):
        assert_same_bits(x, np.load(tmp_path / "fresh" / f"{name}.npy"))
    expected = attention(*given, longformer(9, [3]))
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    assert not np.allclose(half, expected, atol=1e-5)


class Stop(Exception):
    pass


def stopped(after, seen=None):
    """A `progress` that gives up after so many ranges."""
    told = [] if seen is None else seen

    def progress(done, total, what):
        told.append((done, total, what))
        if len(told) == after:
            raise Stop

    return progress


WINDOW = Banded(20)


def interrupted(files, out, after=4, pattern=WINDOW, **options):
    with pytest.raises(Stop):
        streamed.attention(*files, pattern, out=out, progress=stopped(after), **options)


def counted(files, out, pattern=WINDOW, **options):
    """The ranges that are done in a run that ends."""
    seen = []
    streamed.attention(*files, pattern, out=out, progress=lambda *told: seen.append(told), **options)
    return seen


@pytest.fixture
def out(tmp_path):
    return new(tmp_path / "out.npy", (2, 500, 16))


@pytest.fixture
def expected(files):
    return attention(*files, Banded(20))


def test_progress_is_told(files, out, small_ranges):
    seen = counted(files, out)
    assert seen[0] == (64, 1000, "rows 0 to 64")
    assert seen[7] == (500, 1000, "rows 448 to 500")
    assert seen[-1] == (1000, 1000, "rows 448 to 500")
    assert len(seen) == 16


def test_ranges_that_are_done_are_not_done_again(files, out, small_ranges, expected):
    interrupted(files, out)
    assert progress_of(out).exists()
    seen = counted(files, out)
    assert len(seen) <= 12
    assert seen[-1][:2] == (1000, 1000)
    assert_same_bits(out, expected)


def test_after_the_end_everything_is_done_anew(files, out, small_ranges):
    assert len(counted(files, out)) == len(counted(files, out)) == 16


@pytest.mark.parametrize("damage", ["altered", "torn line", "damaged line", "start anew"])
def test_what_is_not_sure_is_done_again(files, out, small_ranges, expected, damage):
    interrupted(files, out, after=6)
    path = progress_of(out)
    content = path.read_bytes()
    done = content.count(b"\n") - 1
    assert done >= 5
    options = {}
    if damage == "altered":
        out[0, 70] += 1
        out.flush()
    elif damage == "torn line":
        path.write_bytes(content[:-9])
    elif damage == "damaged line":
        path.write_bytes(content.replace(b",64,128,", b",64,129,"))
    else:
        options, done = {"resume": False}, 1
    assert len(counted(files, out, **options)) == 16 - done + 1
    assert_same_bits(out, expected)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("pattern", "pattern"),
        ("scale", "scale"),
        ("max_bytes", "max_bytes"),
        ("touched", "value"),
        ("content", "key"),
    ],
)
def test_the_progress_of_other_inputs_is_refused(files, out, small_ranges, change, what, tmp_path):
    interrupted(files, out)
    before = np.array(out)
    options = {"scale": {"scale": 0.5}, "max_bytes": {"max_bytes": 1 << 28}}.get(change, {})
    if change == "touched":
        os.utime(tmp_path / "value.npy", ns=(1, 1))
    if change == "content":
        times = os.stat(tmp_path / "key.npy")
        np.save(tmp_path / "key.npy", -np.asarray(files[1]))
        os.utime(tmp_path / "key.npy", ns=(times.st_atime_ns, times.st_mtime_ns))
        files[1] = np.load(tmp_path / "key.npy", mmap_mode="r")
    pattern = Banded(21) if change == "pattern" else Banded(20)
    with pytest.raises(
        ValueError, match=rf"progress_file .*out\.npy\.progress belongs to other inputs: {what} was .*resume=False"
    ):
        streamed.attention(*files, pattern, out=out, **options)
    assert_same_bits(out, before)
    assert progress_of(out).exists()


def test_matrices_of_the_users_own_are_told_apart(files, out, small_ranges):
    scipy = pytest.importorskip("scipy.sparse", reason='needs pip install "subquad[scipy]"')
    a, b = (Explicit(scipy.eye_array(500, k=k, format="csr")) for k in (0, 0))
    interrupted(files, out, pattern=a)
    interrupted(files, out, after=1, pattern=b)
    c = Explicit(scipy.csr_array(scipy.eye_array(500, format="csr")[::-1]))
    with pytest.raises(ValueError, match="other inputs: pattern"):
        counted(files, out, pattern=c)


def test_a_file_that_is_no_progress_file_is_refused(files, out, small_ranges, tmp_path):
    (tmp_path / "mine").write_text("precious\n")
    with pytest.raises(ValueError, match=r"progress_file must be one that this function wrote; .*mine is not"):
        streamed.attention(*files, Banded(3), out=out, progress_file=tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious\n"


def test_two_runs_do_not_write_one_output(files, out, small_ranges):
    path = progress_of(out)

    def progress(*_):
        with pytest.raises(OSError, match="out is being written by another process") as caught:
            journal.Journal(path, {}, True)
        assert caught.value.errno == errno.EBUSY
        raise Stop

    with pytest.raises(Stop):
        streamed.attention(*files, Banded(20), out=out, progress=progress)


def test_the_progress_file_is_there_before_the_output_and_follows_it(files, out, small_ranges, monkeypatch):
    path, order = progress_of(out), []
    write, sync, commit = Stored.write, Stored.sync, journal.Journal.commit
    monkeypatch.setattr(Stored, "write", lambda self, *a: order.append(("write", path.exists())) or write(self, *a))
    monkeypatch.setattr(Stored, "sync", lambda self: sync(self) or order.append(("sync", path.exists())))
    monkeypatch.setattr(journal.Journal, "commit", lambda self, x: order.append(("commit", True)) or commit(self, x))
    streamed.attention(*files, Banded(20), out=out)
    assert all(there for _, there in order)
    names = [name for name, _ in order]
    assert names[0] == "write"
    assert names.count("commit") > 1
    others = [name for name in names if name != "write"]
    assert all(others[at - 1] == "sync" for at, name in enumerate(others) if name == "commit")
    assert "sync" in names[len(names) - 1 - names[::-1].index("write") :]


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_what_is_done(files, out, small_ranges, expected, monkeypatch):
    write, written = os.pwrite, []

    def full(fd, data, place):
        written.append(place)
        if len(written) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, place)

    monkeypatch.setattr(stored_arrays.os, "pwrite", full)
    with pytest.raises(OSError, match=r"out cannot be written at rows 256 to 320: No space left.*call again") as caught:
        streamed.attention(*files, Banded(20), out=out)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    monkeypatch.setattr(call.budget, "cut", lambda share, *_: budget.Cut(min(len(share), 64), 256, 1 << 40))
    assert len(counted(files, out)) in (11, 12)  # the next range may have been on its way
    assert_same_bits(out, expected)


_TOO_LARGE = """
import resource, sys
import numpy as np
from subquad import Banded, streamed
folder = sys.argv[1]
files = [np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in ("query", "key", "value")]
out = np.load(f"{folder}/out.npy", mmap_mode="r+")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
streamed.attention(*files, Banded(20), out=out)
"""


def test_a_limit_of_the_system_is_an_error_and_no_signal(files, out, tmp_path):
    out.flush()
    done = subprocess.run(
        [sys.executable, "-c", _TOO_LARGE, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "OSError: [Errno 27] out cannot be written at rows" in done.stderr
    assert progress_of(out).exists()


def test_a_truncated_file_is_noticed_and_nothing_written(files, out, tmp_path):
    before = np.array(out)
    os.truncate(tmp_path / "key.npy", 40_000)
    try:
        with pytest.raises(ValueError, match=r"key must be a whole file: .*key\.npy has 40,000 bytes of 64,128"):
            streamed.attention(*files, Banded(20), out=out)
    finally:  # whoever looks at the mapping of a file that is too short gets a bus error
        os.truncate(tmp_path / "key.npy", 64_128)
    assert_same_bits(out, before)
    assert not progress_of(out).exists()


def test_a_file_that_shrinks_meanwhile_is_an_error(files, out, tmp_path, small_ranges):
    def shrink(*_):
        os.truncate(tmp_path / "key.npy", 40_000)

    try:
        with pytest.raises(ValueError, match=r"key must be a whole file: .*key\.npy ends at byte 40,000"):
            streamed.attention(*files, Banded(20), out=out, progress=shrink)
    finally:
        os.truncate(tmp_path / "key.npy", 64_128)
    assert progress_of(out).exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(files, out, tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(OSError, match="the progress file cannot be written: Permission denied"):
            streamed.attention(*files, Banded(20), out=out)
    finally:
        tmp_path.chmod(0o755)


def test_a_progress_file_in_no_folder_is_named(files, out, tmp_path):
    with pytest.raises(OSError, match="the progress file cannot be written: No such file or directory"):
        streamed.attention(*files, Banded(20), out=out, progress_file=tmp_path / "no" / "where")


def test_outputs_that_do_not_fit(files, out, tmp_path):
    given = [np.array(x) for x in files]

    def call_with(x, **options):
        return streamed.attention(*files, Banded(20), out=x, **options)

    with pytest.raises(ValueError, match=r"out must have the result's shape \(2, 500, 16\); got \(2, 501, 16\)"):
        call_with(np.empty((2, 501, 16), np.float32))
    with pytest.raises(TypeError, match="out must have the result's dtype float32; got float64"):
        call_with(np.empty((2, 500, 16)))
    with pytest.raises(ValueError, match="out must be writeable; got a read-only memmap"):
        call_with(np.load(out.filename, mmap_mode="r"))
    with pytest.raises(ValueError, match="a memmap of mode 'c', whose changes reach none"):
        call_with(np.load(out.filename, mmap_mode="c"))
    with pytest.raises(ValueError, match="out must not overlap value"):
        streamed.attention(*given, Banded(20), out=given[2])
    with pytest.raises(ValueError, match="out must not overlap key"):
        call_with(np.load(files[1].filename, mmap_mode="r+"))
    with pytest.raises(ValueError, match="lse must not overlap out"):
        call_with(out, lse=out[:, :, 0])
    with pytest.raises(ValueError, match=r"lse must have the result's shape \(2, 500\); got \(500,\)"):
        call_with(out, lse=np.empty(500, np.float32))
    with pytest.raises(TypeError, match="lse must have the result's dtype float32; got float64"):
        call_with(out, lse=np.empty((2, 500)))
    with pytest.raises(TypeError, match=r"out must be an array in memory or in a file .*; got NoneType"):
        call_with(None)


def test_inputs_that_do_not_fit(rng):
    q, k, v = inputs(rng, 50, 50)
    out = np.empty_like(q)
    with pytest.raises(TypeError, match="key must be an array in memory or in a file"):
        streamed.attention(q, k.tolist(), v, out=out)
    with pytest.raises(ValueError, match="value must match key"):
        streamed.attention(q, k, v[:-1], out=out)
    with pytest.raises(TypeError, match="key and value must have one dtype"):
        streamed.attention(q, k.astype(float), v, out=out)
    with pytest.raises(TypeError, match="query must have dtype float32"):
        streamed.attention(q.astype(int), k.astype(int), v.astype(int), out=out)
    with pytest.raises(ValueError, match="query must have shape"):
        streamed.attention(q[0], k, v, out=out)
    with pytest.raises(TypeError, match="must not be a masked array"):
        streamed.attention(np.ma.array(q), k, v, out=out)
    with pytest.raises(TypeError, match="pattern must be a subquad pattern"):
        streamed.attention(q, k, v, 5, out=out)
    with pytest.raises(ValueError, match=r"tokens must be below n_k = 50"):
        streamed.attention(q, k, v, Global([60]), out=out)
    with pytest.raises(TypeError, match="max_bytes must be an integer"):
        streamed.attention(q, k, v, out=out, max_bytes=1e9)
    with pytest.raises(ValueError, match="scale must be finite"):
        streamed.attention(q, k, v, out=out, scale=np.inf)
    with pytest.raises(ValueError, match="num_threads must be an integer >= 1"):
        streamed.attention(q, k, v, out=out, num_threads=0)


def test_a_store_that_cannot_be_read_is_named(tmp_path, rng):
    zarr = pytest.importorskip("zarr", reason='needs pip install "subquad[zarr]"')
    q, k, v = inputs(rng, 100, 100)
    stored = zarr.create_array(tmp_path / "k.zarr", data=k, chunks=(50, 16))
    chunk = next(path for path in (tmp_path / "k.zarr" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:20])
    with pytest.raises(OSError, match="key cannot be read at rows"):
        streamed.attention(q, stored, v, Dense(), out=np.empty_like(q))


def test_a_store_that_is_read_only_is_refused(tmp_path, rng):
    zarr = pytest.importorskip("zarr", reason='needs pip install "subquad[zarr]"')
    x = inputs(rng, 100, 100)
    zarr.create_array(tmp_path / "out.zarr", data=x[0])
    with pytest.raises(ValueError, match="out must be writeable; got a read-only Array"):
        streamed.attention(*x, Dense(), out=zarr.open_array(tmp_path / "out.zarr", mode="r"))
    same = zarr.open_array(tmp_path / "out.zarr", mode="r+")
    with pytest.raises(ValueError, match="out must not overlap query"):
        streamed.attention(same, *x[1:], Dense(), out=zarr.open_array(tmp_path / "out.zarr", mode="r+"))


# --- the example ------------------------------------------------------------------------------------------------------


def test_the_example_runs_small(tmp_path):
    example = Path(__file__).parents[1] / "docs" / "examples" / "out_of_core.py"
    options = [
        "--tokens",
        "70000",
        "--d",
        "16",
        "--window",
        "9",
        "--memory-tokens",
        "4096",
        "--limit-gb",
        "0.2",
        "--rounds",
        "1",
    ]
    done = subprocess.run(
        [sys.executable, str(example), *options, "--folder", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "4 files of 0.00 GB" in done.stdout
    assert "\r" not in done.stdout  # progress is for a terminal
    assert "50 rows agree\n" in done.stdout
    assert "GB at most, of 0.20 GB" in done.stdout
    assert "60% of the kernel or 80% of the disk, whichever is less: " in done.stdout.splitlines()[-1]
    assert not list(tmp_path.iterdir())
