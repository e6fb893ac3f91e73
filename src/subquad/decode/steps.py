"""A few query rows over the slots of a cache: one call of a kernel for all heads.

A step of decoding may be over in microseconds, so whatever does not change from step to step is made once.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subquad.decode.options import StepOptions
from subquad.inputs import Array, empty
from subquad.kernels import layout, load
from subquad.kernels.build import widens
from subquad.patterns.spans import Ints
from subquad.plan.tables import address
from subquad.threads import share_out, thread_count

_TASK_FLOPS = 2e8  # some 10 ms of one thread: short enough to be interrupted
_SHARED_FLOPS = 4e6  # from here on threads are worth waking
_TASKS_A_THREAD = 4
_WIDENED_BYTES = 8 << 20  # of half precision, made float32 at a time
_LINE = 64  # bytes
_DTYPES = ("float32", "float64", "float16", "bfloat16")
_LEAST_SCRATCH, _MOST_SCRATCH = 1 << 15, 1 << 20  # bytes that a thread keeps from step to step


def place(x: Array) -> int:
    """Where an array lies: ten times as fast as `address`, for what can be written and is not empty."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(x.data))
    except (TypeError, ValueError, BufferError):
        return address(x)


class RowSlots(NamedTuple):
    """The slots of some query rows, as stretches in the order of their keys.

    Stretches ``row_ptr[i] <= b < row_ptr[i + 1]`` belong to row i; each is `counts[b]` slots from `starts[b]` on, and
    the first of its keys stands `behind[b]` from the row, below 0 for an earlier one. The four lie one after another
    in `table`.
    """

    table: Ints
    rows: int
    longest: int  # keys of the longest row
    total: int  # keys of all rows

    @property
    def starts(self) -> Ints:
        return self.table[self.rows + 1 : self.rows + 1 + self.stretches]

    @property
    def counts(self) -> Ints:
        return self.table[self.rows + 1 + self.stretches : self.rows + 1 + 2 * self.stretches]

    @property
    def stretches(self) -> int:
        return (len(self.table) - self.rows - 1) // 3

    @classmethod
    def of_lists(cls, rows: Iterable[tuple[list[int], list[int], list[int]]]) -> RowSlots:
        """From the starts, counts and distances of each row, a handful of each."""
        row_ptr, starts, counts, behind, longest, total = [0], [], [], [], 0, 0
        for its_starts, its_counts, its_behind in rows:
            starts += its_starts
            counts += its_counts
            behind += its_behind
            row_ptr.append(len(starts))
            n_keys = sum(its_counts)
            longest, total = max(longest, n_keys), total + n_keys
        return cls(np.array(row_ptr + starts + counts + behind, np.int64), len(row_ptr) - 1, longest, total)

    @classmethod
    def of_arrays(cls, rows: Iterable[tuple[Ints, Ints, Ints]]) -> RowSlots:
        """The same from arrays."""
        starts, counts, behind = zip(*rows, strict=True)
        row_ptr = np.concatenate(([0], np.cumsum([len(x) for x in starts])))
        n_keys = [int(x.sum()) for x in counts]
        return cls(np.concatenate((row_ptr, *starts, *counts, *behind)), len(starts), max(n_keys), sum(n_keys))


class Store(NamedTuple):
    """Keys (heads, slots, d) and values (heads, slots, d_v) side by side, and where they lie."""

    key: Array
    value: Array
    places: tuple[int, int]
    dtype_name: str  # 3 µs to ask a dtype for

    @classmethod
    def of(cls, key: Array, value: Array) -> Store:
        return cls(key, value, (place(key), place(value)), key.dtype.name)

    def __reduce__(self) -> Any:
        return Store.of, (self.key, self.value)  # a copy lies elsewhere


def checked_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """What a cache may hold."""
    try:
        if dtype == "bfloat16":
            from ml_dtypes import bfloat16 as dtype
        found = np.dtype(dtype).newbyteorder("=")
    except ImportError:
        raise ImportError('bfloat16 is a dtype of ml_dtypes: pip install "subquad[half]"') from None
    except TypeError:
        raise TypeError(f"dtype must be float32, float64, float16 or bfloat16; got {dtype!r}") from None
    if found.name not in _DTYPES:
        raise TypeError(f"dtype must be float32, float64, float16 or bfloat16; got {found}")
    return found


def compute_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What a dtype is computed in."""
    return dtype if dtype.itemsize >= 4 else np.dtype(np.float32)


def results(shape: tuple[int, ...], d_v: int, dtype: np.dtype[Any], with_lse: bool) -> tuple[Array, Array | None]:
    """Arrays for the output and, if asked for, the log-sum-exp of queries of that shape."""
    out = empty((shape[0], shape[1], d_v), dtype, "output")
    return out, empty(shape[:2], dtype, "lse") if with_lse else None


class Call(NamedTuple):
    """What is asked for beside the rows."""

    scale: float
    num_threads: int | None
    options: StepOptions | None = None
    head: Ints | None = None  # the options as kernels take them, (query heads, HEAD_COLUMNS); None without any

    def without_sinks(self) -> Call:
        """The same for a part of the keys, where another part has the sinks."""
        if self.head is None:
            return self
        head = self.head.copy()
        head.view(np.float64)[:, layout.SINK] = -np.inf
        return self._replace(head=head)


def run(q: Array, store: Store, lists: RowSlots, out: Array, lse: Array | None, call: Call) -> None:
    """Write the attention of the rows of q (query heads, rows, d) into `out` and `lse`, both side by side."""
    q = q if q.flags.c_contiguous and q.flags.aligned else np.array(q, order="C")
    if q.dtype == out.dtype or widens(store.dtype_name):
        _run(q, store, lists, out, lse, call)
    else:
        _run_widened(q.astype(out.dtype), store, lists, out, lse, call)


def _run(q: Array, store: Store, lists: RowSlots, out: Array, lse: Array | None, call: Call) -> None:
    (heads, n_slots, d), d_v = store.key.shape, out.shape[2]
    group, rows, itemsize = q.shape[0] // heads, lists.rows, out.itemsize
    table = place(lists.table)
    starts, step = table + 8 * (rows + 1), 8 * lists.stretches
    sums = 0 if lse is None else place(lse)
    _, geometry, head = _constants(d, d_v, lse is not None)
    longest, head_step, ints = lists.longest, 0, lists.longest
    if call.head is not None:
        head, head_step, ints = place(call.head), layout.HEAD_COLUMNS, 2 * longest + 1
    places = (
        place(q), *store.places, place(out), sums, call.scale, geometry, head,
        table, starts, starts + step, starts + 2 * step,
    )  # fmt: skip
    sizes = n_slots, rows, group, longest, head_step
    kernel = load("decode", store.dtype_name)

    lanes = layout.lanes_of(itemsize)
    floats = lanes + 5 * max(d, d_v) + group * (-(-longest // lanes) * lanes)
    float_bytes = -(-floats * itemsize // _LINE) * _LINE
    n_tasks, threads = _tasks(2.0 * (d + d_v) * q.shape[0] * lists.total, heads * rows, call.num_threads)

    def do(task: int) -> None:
        at, _, _memory = _scratch(float_bytes + 8 * ints)
        first, last = heads * rows * task // n_tasks, heads * rows * (task + 1) // n_tasks
        kernel(*places, at, at + float_bytes, *sizes, first, last)

    if n_tasks == 1:
        do(0)
    else:
        share_out(n_tasks, lambda: do, threads)


_own = threading.local()


def _scratch(n_bytes: int) -> tuple[int, int, Array]:
    """Where this thread has memory for so many bytes, their number, and the array that owns it."""
    held: tuple[int, int, Array] | None = getattr(_own, "scratch", None)
    if held is None or held[1] < n_bytes:
        n_bytes = max(n_bytes, _LEAST_SCRATCH)
        memory = np.empty(n_bytes + _LINE, np.uint8)
        held = -(-place(memory) // _LINE) * _LINE, n_bytes, memory
        if n_bytes <= _MOST_SCRATCH:
            _own.scratch = held
    return held


_made: dict[tuple[int, int, bool], tuple[Ints, int, int]] = {}


def _constants(d: int, d_v: int, with_lse: bool) -> tuple[Ints, int, int]:
    """Sizes and options as the kernel reads them, and where either lie."""
    found = _made.get((d, d_v, with_lse))
    if found is None:
        table = np.zeros(layout.GEOMETRY_COLUMNS + layout.HEAD_COLUMNS, np.int64)
        table[layout.D], table[layout.D_V], table[layout.OUT_COLUMN], table[layout.KEEP_LSE] = d, d_v, 1, with_lse
        table[layout.GEOMETRY_COLUMNS :].view(np.float64)[layout.SINK] = -np.inf
        where = address(table)
        found = _made[d, d_v, with_lse] = table, where, where + 8 * layout.GEOMETRY_COLUMNS
    return found


def _tasks(flops: float, n_rows: int, num_threads: int | None) -> tuple[int, int]:
    """How many parts rows are cut into, and threads to share them: a row's result depends on neither."""
    threads = 1 if flops <= _SHARED_FLOPS else thread_count(num_threads)
    wanted = int(flops / _TASK_FLOPS) + 1
    if threads > 1:
        wanted = max(wanted, _TASKS_A_THREAD * threads)
    return max(1, min(wanted, n_rows)), threads


def _run_widened(q: Array, store: Store, lists: RowSlots, out: Array, lse: Array | None, call: Call) -> None:
    """The same where the processor cannot widen halves: slots that are read become float32, a few heads at a time."""
    (heads, n_slots, d), d_v = store.key.shape, out.shape[2]
    depth = np.zeros(n_slots + 1, np.int64)
    np.add.at(depth, lists.starts, 1)
    np.add.at(depth, lists.starts + lists.counts, -1)
    used = np.nonzero(np.cumsum(depth[:-1]) > 0)[0]
    near = lists._replace(table=lists.table.copy())
    near.starts[:] = np.searchsorted(used, lists.starts)  # slots of a stretch are all used, so they stay neighbours
    group = q.shape[0] // heads
    step = max(1, _WIDENED_BYTES // max(1, len(used) * (d + d_v) * q.itemsize))
    for first in range(0, heads, step):
        some, of_query = slice(first, first + step), slice(first * group, (first + step) * group)
        its = Store.of(*(_widened(x[some], used) for x in store[:2]))
        sums = None if lse is None else lse[of_query]
        head = None if call.head is None else call.head[of_query]
        _run(q[of_query], its, near, out[of_query], sums, call._replace(head=head))


def _widened(x: Array, used: Ints) -> Array:
    """Some slots of half precision in float32. A bfloat16 is the upper half of one."""
    if x.dtype.name == "bfloat16":
        bits = x.view(np.uint16).take(used, axis=1).astype(np.uint32)
        return np.left_shift(bits, 16, out=bits).view(np.float32)
    return x.take(used, axis=1).astype(np.float32)
