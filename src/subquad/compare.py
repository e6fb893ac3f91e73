"""Dense against sparse attention on the same text: time, memory, accuracy. Printing is `compare_report`'s."""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

import subquad
from subquad import dense
from subquad.accuracy import measure_accuracy, sample_rows
from subquad.child import call_in_child
from subquad.complexity.memory import MemoryUse, dense_memory, sparse_memory
from subquad.patterns import Pattern
from subquad.text import FEATURES, FloatArray, embed, read_text

Inputs = tuple[FloatArray, FloatArray, FloatArray]
#: Told before each row is measured: rows done, rows in all, what comes next.
Progress = Callable[[int, int, str], None]

DENSE = "dense NumPy"
DTYPE = np.dtype(np.float32)
#: Scores of one head that the oracle computes for a row of the table: all up to n = 2,048, a sample of rows beyond.
ORACLE_SCORES = 1 << 22
#: Such a sample has at least so many rows.
ORACLE_ROWS = 64
#: A budget that does not even allow dense attention over so many tokens leaves nothing to predict from.
SMALLEST_DENSE = 128
#: Up to here dense attention is also tried on one thread.
ONE_THREAD_N = 4096
#: How the BLAS libraries that NumPy may be built with learn their number of threads.
BLAS_THREADS = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def scores_bytes(n: int) -> int:
    """What the n x n scores of one head take."""
    return n * n * DTYPE.itemsize


def physical_memory() -> int:
    """Bytes of memory in this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def default_threads() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_memory_budget() -> int:
    """Two gigabytes, or half of the machine's memory where that is less."""
    return min(2 * 10**9, physical_memory() // 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is the same for every row."""

    heads: int = 1
    d: int = 64
    #: For sparse and dense alike; dense takes one, up to `ONE_THREAD_N` tokens, where that is faster.
    num_threads: int = field(default_factory=default_threads)
    #: Of the embedding, its projections and the sample of rows.
    seed: int = 0
    #: Dense attention whose scores take more bytes is predicted, never run.
    memory_budget: int = field(default_factory=default_memory_budget)
    #: About how long each call is repeated; the median of at least three repeats counts.
    repeat_seconds: float = 0.3

    def __post_init__(self) -> None:
        least = {"heads": 1, "d": 1, "num_threads": 1, "seed": 0, "memory_budget": scores_bytes(SMALLEST_DENSE)}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name}: must be at least {smallest:,}, got {getattr(self, name):,}")


@dataclass(frozen=True, slots=True)
class Row:
    """One pattern, or dense attention, at one n. Times are of all heads."""

    pattern: str
    n: int
    #: Big-O class of the pairs.
    order: str
    pairs: int
    #: pairs / n²
    share: float
    #: Median of warm calls: kernels compiled, plan built.
    seconds: float
    #: Dense seconds over these.
    speedup: float
    #: Beyond inputs and output, plan included.
    extra_bytes: int
    #: False where the system cannot reset the peak of a process: then a lower bound.
    extra_exact: bool
    scores_bytes: int
    #: Dense was over the budget here: in its own row, seconds and extra_bytes follow by n² from the largest n measured;
    #: in the row of a pattern only the speedup does.
    predicted: bool
    #: Largest absolute difference from the float64 oracle over `rows_checked` rows, and what rounding explains.
    max_difference: float | None = None
    tolerance: float | None = None
    correct: bool | None = None
    rows_checked: int = 0
    #: Mean over heads and checked rows of the dense softmax weights on allowed keys.
    mass: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rows, and what they were measured on."""

    setting: Setting
    text_name: str
    rows: list[Row]
    #: What one must know to read the rows right.
    notes: list[str]

    @property
    def patterns(self) -> list[str]:
        """Names, dense first."""
        return list(dict.fromkeys(row.pattern for row in self.rows))

    def of(self, pattern: str) -> list[Row]:
        """The rows of one pattern, n growing."""
        return [row for row in self.rows if row.pattern == pattern]

    @property
    def wrong(self) -> list[Row]:
        """Rows whose difference from the oracle rounding does not explain."""
        return [row for row in self.rows if row.correct is False]


def compare(
    patterns: Mapping[str, Pattern],
    ns: Sequence[int],
    setting: Setting | None = None,
    *,
    text: bytes | None = None,
    text_name: str = "Python's language reference",
    progress: Progress | None = None,
) -> Comparison:
    """Measure dense NumPy and each pattern at each n, on an embedded text.

    Parameters
    ----------
    patterns
        Name to pattern.
    ns
        Numbers of tokens, which are bytes of the text; taken in growing order.
    setting
        The rest.
    text, text_name
        What to embed and what to call it; default the language reference that ships with CPython. A text shorter than
        an n is repeated, and a note says so.
    progress
        Told before each row.

    Raises
    ------
    ValueError
        An n is below 1, or a pattern does not fit an n. Raised, as is MemoryError, before anything is measured.
    MemoryError
        The inputs alone would not fit this machine.
    RuntimeError
        A measuring process failed.
    """
    setting = setting or Setting()
    ns = sorted(set(ns))
    _check(patterns, ns, setting)
    text = read_text(limit=ns[-1]) if text is None else text
    # Dense needs one n to predict from, be it a smaller one than was asked for.
    affordable = math.isqrt(setting.memory_budget // DTYPE.itemsize)
    dense_ns = ns if ns[0] <= affordable else [affordable, *ns]
    total = len(dense_ns) + len(ns) * len(patterns)

    rows: list[Row] = []
    measured: Row | None = None
    for n in dense_ns:
        if progress:
            progress(len(rows), total, f"{DENSE}, n = {n:,}")
        inputs = embed(text, n, setting.heads, setting.d, setting.seed)
        if n <= affordable or measured is None:
            dense_row = measured = _measure_dense(inputs, setting)
        else:
            dense_row = _predict_dense(measured, n)
        rows.append(dense_row)
        for name, pattern in patterns.items() if n in ns else ():
            if progress:
                progress(len(rows), total, f"{name}, n = {n:,}")
            rows.append(_measure_sparse(name, pattern, inputs, dense_row, setting))
    return Comparison(setting, text_name, rows, _notes(rows, len(text)))


def _check(patterns: Mapping[str, Pattern], ns: Sequence[int], setting: Setting) -> None:
    if not ns or ns[0] < 1:
        raise ValueError(f"n: must be at least 1, got {ns[0] if ns else 'none'}")
    if not patterns:
        raise ValueError("patterns: give at least one")
    # The embedding; inputs and output, their float64 copies for the oracle, and those of the measuring process.
    needed = DTYPE.itemsize * ns[-1] * (3 * FEATURES + 12 * setting.heads * setting.d)
    if needed > physical_memory():
        raise MemoryError(
            f"n: {ns[-1]:,} tokens x {setting.heads} heads x {setting.d} need about {needed / 1e9:,.0f} GB, "
            f"this machine has {physical_memory() / 1e9:,.0f} GB; give a smaller n"
        )
    for pattern in patterns.values():
        for n in ns:
            pattern.nnz(n, n)


def _notes(rows: Sequence[Row], text_bytes: int) -> list[str]:
    notes = []
    largest = max(row.n for row in rows)
    if text_bytes < largest:
        notes.append(f"The text has {text_bytes:,} bytes and is repeated to reach n = {largest:,}.")
    if any(row.predicted for row in rows):
        base = max(row.n for row in rows if row.pattern == DENSE and not row.predicted)
        notes.append(f"~ predicted by n² from dense at n = {base:,}: more is over the memory budget and was not run.")
    if not all(row.extra_exact for row in rows):
        notes.append("Extra memory is a lower bound: this system cannot reset the peak of a process.")
    sampled = [row for row in rows if 0 < row.rows_checked < row.n]
    if sampled:
        fewest = min(row.rows_checked for row in sampled)
        notes.append(
            f"Difference and mass are of every row up to n = {math.isqrt(ORACLE_SCORES):,}, "
            f"of a random sample of at least {fewest:,} rows beyond."
        )
    return notes


def _measure_dense(inputs: Inputs, setting: Setting) -> Row:
    heads, n, d = inputs[0].shape
    # Dense is given its best chance: on few tokens, or beside other work, one BLAS thread beats several.
    thread_counts = {setting.num_threads, 1} if n <= ONE_THREAD_N else {setting.num_threads}
    # A BLAS library reads its number of threads when it is loaded: only a new process can be given another.
    settings = [dict.fromkeys(BLAS_THREADS, str(threads)) for threads in thread_counts]
    seconds = min(call_in_child(_time_dense, inputs, setting.repeat_seconds, env=env) for env in settings)
    return _dense_row(n, seconds, dense_memory(n, d, heads, DTYPE.name), predicted=False)


def _time_dense(inputs: Inputs, repeat_seconds: float) -> float:
    out = np.empty_like(inputs[2])
    return median_seconds(lambda: dense.attention(*inputs, out=out), repeat_seconds)


def _predict_dense(measured: Row, n: int) -> Row:
    growth = (n / measured.n) ** 2
    memory = MemoryUse(round(measured.extra_bytes * growth), measured.extra_exact)
    return _dense_row(n, measured.seconds * growth, memory, predicted=True)


def _dense_row(n: int, seconds: float, memory: MemoryUse, *, predicted: bool) -> Row:
    return Row(
        pattern=DENSE,
        n=n,
        order=str(subquad.Dense().order),
        pairs=n * n,
        share=1.0,
        seconds=seconds,
        speedup=1.0,
        extra_bytes=memory.bytes,
        extra_exact=memory.exact,
        scores_bytes=scores_bytes(n),
        predicted=predicted,
        mass=1.0,
    )


def _measure_sparse(name: str, pattern: Pattern, inputs: Inputs, dense_row: Row, setting: Setting) -> Row:
    query, key, value = inputs
    heads, n, d = query.shape
    out = np.empty_like(value)

    def call() -> None:
        subquad.attention(query, key, value, pattern, out=out, num_threads=setting.num_threads)

    seconds = median_seconds(call, setting.repeat_seconds)
    rows = sample_rows(n, max(ORACLE_ROWS, ORACLE_SCORES // n), setting.seed)
    accuracy = measure_accuracy(query, key, value, out, pattern, rows)
    memory = sparse_memory(pattern, n, d, heads, DTYPE.name, setting.num_threads)
    pairs = pattern.nnz(n, n)
    return Row(
        pattern=name,
        n=n,
        order=str(pattern.order),
        pairs=pairs,
        share=pairs / n**2,
        seconds=seconds,
        speedup=dense_row.seconds / seconds,
        extra_bytes=memory.bytes,
        extra_exact=memory.exact,
        scores_bytes=scores_bytes(n),
        predicted=dense_row.predicted,
        max_difference=accuracy.max_difference,
        tolerance=accuracy.tolerance,
        correct=accuracy.correct,
        rows_checked=rows.size,
        mass=accuracy.mass,
    )


def median_seconds(call: Callable[[], object], repeat_seconds: float) -> float:
    """Median time of a warm call: one call is thrown away, then at least three are timed, until the time is spent."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < repeat_seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
