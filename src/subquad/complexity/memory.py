"""How much memory one call takes beyond its inputs and output, measured in a process of its own.

A peak is a property of a whole process: compilers, imports and earlier calls leave theirs behind. So a fresh process
first runs everything once on a small problem, allocates and touches inputs and output, resets the kernel's high-water
mark of resident memory, makes the one call, and reports by how much the mark rose.

Linux counts pages in batches, on each processor by itself: with two processors a result was measured to be too low by
up to 256 kB, with 64 it may be by a few megabytes. An array of more than 4 MB may take up to 2 MB more than its size,
where NumPy asks for huge pages.
"""

import contextlib
import gc
import resource
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from subquad import dense
from subquad.child import call_in_child

if TYPE_CHECKING:
    from subquad.patterns import Pattern

Array = npt.NDArray[Any]

#: Less than this cannot be told from nothing, on a machine of a few processors.
RESOLUTION = 500_000
#: Rows of the warm-up: enough for a full tile and an edge in each kernel, small enough to leave no mark.
WARM_UP_ROWS = 256
# glibc raises its threshold for giving an array pages of its own each time a large one is freed; later arrays may then
# reuse memory freed during the warm-up and stay unseen. Setting the threshold fixes it.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536"}


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What one call took beyond inputs and output."""

    bytes: int
    #: The high-water mark could be reset before the call. Otherwise (not Linux) `bytes` counts only what rose above
    #: the peak that imports and warm-up had left: a lower bound.
    exact: bool


def extra_memory(
    pattern: "Pattern",
    n: int,
    d: int = 64,
    heads: int = 1,
    *,
    dtype: str = "float32",
    num_threads: int = 1,
    backward: bool = False,
) -> int:
    """Bytes beyond inputs and output that one `subquad.attention` call takes, its plan included.

    Parameters
    ----------
    pattern
        What is allowed.
    n, d, heads
        Rows of query and key, width of a head, heads.
    dtype
        Of the inputs.
    num_threads
        Threads of the call; each has a workspace of its own.
    backward
        Measure `attention` and `attention_backward` together, beyond inputs, outputs (lse too) and gradients.

    Returns
    -------
    int
        Exact to about `RESOLUTION` on Linux. Elsewhere a lower bound, and a `RuntimeWarning` says so.

    Raises
    ------
    RuntimeError
        The measuring process failed; the message carries its last line.

    Notes
    -----
    Takes one or two seconds, most of them for starting a process and loading Numba.

    Examples
    --------
    >>> from subquad import Banded
    >>> extra_memory(Banded(128), n=100_000) < 64_000_000
    True
    """
    use = sparse_memory(pattern, n, d, heads, dtype, num_threads, backward)
    if not use.exact:
        warnings.warn(
            "the peak of resident memory cannot be reset on this system: the result is a lower bound",
            RuntimeWarning,
            stacklevel=2,
        )
    return use.bytes


def sparse_memory(
    pattern: "Pattern", n: int, d: int, heads: int, dtype: str, num_threads: int, backward: bool = False
) -> MemoryUse:
    """`extra_memory`, which says how far to trust it in its result instead of in a warning."""
    return call_in_child(_measure_sparse, pattern, n, d, heads, dtype, num_threads, backward, env=_MALLOC)


def dense_memory(n: int, d: int, heads: int, dtype: str) -> MemoryUse:
    """The same of `subquad.dense.attention`, which holds the n x n scores of one head at a time."""
    return call_in_child(_measure_dense, n, d, heads, dtype, env=_MALLOC)


def _measure_sparse(
    pattern: "Pattern", n: int, d: int, heads: int, dtype: str, num_threads: int, backward: bool
) -> MemoryUse:
    import subquad

    def call(pattern: "Pattern", arrays: list[Array]) -> int:
        """Returns the bytes of results other than `out`."""
        query, key, value, out = arrays
        if not backward:
            subquad.attention(query, key, value, pattern, out=out, num_threads=num_threads)
            return 0
        _, lse = subquad.attention(query, key, value, pattern, out=out, return_lse=True, num_threads=num_threads)
        grads = subquad.attention_backward(out, query, key, value, out, lse, pattern, num_threads=num_threads)
        return sum(result.nbytes for result in (lse, *grads))

    small = _touched(WARM_UP_ROWS, d, heads, dtype)
    for warm_up in (subquad.Dense(), subquad.Banded(9), subquad.Strided(7), subquad.Random(9, seed=0)):
        call(warm_up, small)
    # A layout or a token of the pattern may need more rows than the warm-up has; the kernels are warm all the same.
    with contextlib.suppress(ValueError):
        call(pattern, small)
    arrays, results = _touched(n, d, heads, dtype), 0

    def measured() -> None:
        nonlocal results
        results = call(pattern, arrays)

    use = _rise(measured)
    return MemoryUse(use.bytes - results, use.exact)


def _measure_dense(n: int, d: int, heads: int, dtype: str) -> MemoryUse:
    dense.attention(*_touched(WARM_UP_ROWS, d, heads, dtype)[:3])
    query, key, value, out = _touched(n, d, heads, dtype)
    return _rise(lambda: dense.attention(query, key, value, out=out))


def _touched(n: int, d: int, heads: int, dtype: str) -> list[Array]:
    """Query, key, value and output, each page of which is resident."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((heads, n, d), np.float32).astype(dtype) for _ in range(4)]


def _rise(call: Callable[[], object]) -> MemoryUse:
    """By how much `call` raises the peak of this process's resident memory."""
    gc.collect()
    exact = _reset_peak()
    before = _peak()
    call()
    return MemoryUse(_peak() - before, exact)


def _reset_peak() -> bool:
    """Set the peak of resident memory to the present amount; False where the system has no way to."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def _peak() -> int:
    try:
        with open("/proc/self/status") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, the others kilobytes
