"""The public call: check everything, cut the rows into ranges, run those that are not done."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from subquad import checks
from subquad.inputs import checked_inputs, checked_patterns, checked_scale
from subquad.kernels import layout
from subquad.patterns.bands import Dense
from subquad.patterns.base import Pattern, Shape
from subquad.patterns.stored import Frozen
from subquad.streamed import budget
from subquad.streamed.arrays import Stored, bytes_of
from subquad.streamed.journal import Journal, Unit
from subquad.streamed.pipeline import Arrays, Pipeline, Work, is_written, sync
from subquad.streamed.shares import shares_of
from subquad.streamed.targets import check_target, progress_path
from subquad.threads import thread_count

_OWN_BYTES = 4 << 20  # of threads, journals and what Python holds
_LIST_FACTOR = 4  # a list of keys that all rows share, and what planning makes of it
_GAP_BYTES = 4096  # keys that lie no farther apart are read with what parts them

#: Told after each range: rows done and rows in all, over all heads, and which range that was.
Progress = Callable[[int, int, str], None]


def attention(
    query: Any,
    key: Any,
    value: Any,
    pattern: Pattern | Sequence[Pattern] = Dense(),  # noqa: B008 - a frozen value
    *,
    out: Any,
    max_bytes: int = 1 << 30,
    scale: float | None = None,
    lse: Any = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
    progress_file: str | Path | None = None,
    resume: bool = True,
) -> Any:
    """`subquad.attention` over arrays in files, a range of queries at a time, within a number of bytes.

    Ranges follow one another, so files are read from front to back. A thread reads the next range while this one is
    computed, another writes the one before. Of each range the keys that its rows may see are read, once where they fit;
    those that the range before had already are kept. Where they do not fit (rows that see everything) they pass by in
    blocks, and the softmax goes on from one to the next.

    Parameters
    ----------
    query : array, shape (..., n_q, d)
    key : array, shape (..., n_k, d)
    value : array, shape (..., n_k, d_v)
        As for `subquad.attention`: ``np.memmap``, Zarr arrays, HDF5 datasets, NumPy arrays, and whatever else has
        `shape`, `dtype` and slices that give arrays.
    pattern : Pattern or sequence of Pattern, optional
        One for all heads, or one for each head of `query`.
    out : array, shape (..., n_q, d_v)
        Where the result is written: any of the kinds above that can be, in the dtype of the inputs, apart from them.
    max_bytes : int, optional
        Bytes to use, beside what the arrays themselves take: buffers, plans, and scratch of threads.
    scale : float, optional
        Factor of the scores; ``d ** -0.5`` by default.
    lse : array, shape (..., n_q), optional
        Where to write the natural log of the sum of exponentials of each row: float64 for float64, else float32.
    num_threads : int, optional
        Threads that compute, as for `subquad.attention`. The result does not depend on it.
    progress : callable, optional
        Told after each range how many rows are done (counted over batch and heads), how many there are, and which
        range it was. It is called by the thread that writes.
    progress_file : path, optional
        Where to keep what is done; by default beside an output that is in a file, named like it and ending in
        ``.progress``. It is there from before the first byte of the output is written until the last one is on the
        disk: an output beside it is not complete.
    resume : bool, optional
        Go on from such a file, where there is one. Ranges whose output is not as it was left are done again.

    Returns
    -------
    out : as it was given
        Or ``(out, lse)`` where `lse` was given.

    Raises
    ------
    TypeError, ValueError
        For what does not fit, a truncated file, or a progress file of other inputs, before anything is written.
    MemoryError
        If `max_bytes` is too small: it names what takes most, and the least that would do.
    OSError
        If something cannot be read or written. What is done stays done: call again to go on.

    Notes
    -----
    Rows whose keys fit in memory at once have the same bits as `subquad.attention` gives; those whose keys pass by in
    blocks are equal up to rounding, and the same for the same `max_bytes`. Reads O(n_q + keys reached) bytes where keys
    fit, and O(n_q / range x n_k) where every range sees every key. Online softmax: Milakov, Gimelshein (2018).

    Examples
    --------
    >>> import numpy as np
    >>> from subquad import attention, longformer, streamed
    >>> x = np.random.default_rng(0).standard_normal((2, 3000, 16), dtype=np.float32)
    >>> pattern = longformer(64, 4)
    >>> out = streamed.attention(x, x, x, pattern, out=np.empty_like(x), max_bytes=32 << 20)
    >>> bool(np.allclose(out, attention(x, x, x, pattern), atol=1e-6))
    True
    """
    given = {"query": query, "key": key, "value": value, "out": out} | ({} if lse is None else {"lse": lse})
    opened: dict[str, Stored] = {}
    try:
        for name, x in given.items():
            opened[name] = _opened(x, name)
        arrays = _checked(opened, scale, num_threads)
        limit = checks.integer(max_bytes, "max_bytes", 1)
        works = _works(pattern, arrays, limit)
        path = Path(progress_file) if progress_file is not None else progress_path(opened["out"])
        journal = Journal(path, _owner(pattern, arrays, limit), resume)
        try:
            _run(arrays, works, journal, progress)
        finally:
            journal.close()
    finally:
        for stored in opened.values():
            stored.close()
    return out if lse is None else (out, lse)


def _opened(x: Any, name: str) -> Stored:
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: a pattern says what is masked; pass {name}.filled(0)")
    if not all(hasattr(x, part) for part in ("shape", "dtype", "__getitem__")):
        raise TypeError(
            f"{name} must be an array in memory or in a file (np.memmap, Zarr, HDF5), with shape, dtype and slices; "
            f"got {type(x).__name__}"
        )
    n_axes = len(x.shape)
    columns = name != "lse"
    if not 2 - (not columns) <= n_axes <= 4 - (not columns):
        shapes = "(n, d), (heads, n, d) or (batch, heads, n, d)" if columns else "that of out without its last axis"
        raise ValueError(f"{name} must have shape {shapes}; got {n_axes} axes, {tuple(x.shape)}")
    return Stored(x, name, columns=columns)


def _checked(opened: dict[str, Stored], scale: float | None, num_threads: int | None) -> Arrays:
    """The arrays, once it is sure that they go together."""
    inputs = [opened[name] for name in ("query", "key", "value")]
    kinds = checked_inputs(*(np.empty((1, 1), x.dtype) for x in inputs))  # the rules for dtypes, then those for shapes
    number = np.zeros((), kinds.compute_dtype)
    stand_in = checked_inputs(*(np.broadcast_to(number, x.shape[x.missing :]) for x in inputs))
    q, k, v = inputs
    shape = (*stand_in.leading, q.shape[2], v.shape[3])
    check_target(opened["out"], shape, kinds.dtype, inputs)
    if "lse" in opened:
        check_target(opened["lse"], shape[:-1], kinds.compute_dtype, [*inputs, opened["out"]])
    for x in opened.values():
        if x.file is not None:
            x.file.check_length(x.name)
    factor, threads = checked_scale(scale, q.shape[3], kinds.compute_dtype), thread_count(num_threads)
    return Arrays(q, k, v, opened["out"], opened.get("lse"), kinds.compute_dtype, factor, threads)


def _works(pattern: Any, arrays: Arrays, max_bytes: int) -> list[Work]:
    q, k, v = arrays.query, arrays.key, arrays.value
    (_, heads, n_q, d), (n_k, d_v) = q.shape, v.shape[2:]
    shape, group = Shape.aligned(n_q, n_k), heads // max(1, k.shape[1])
    itemsize = arrays.compute_dtype.itemsize
    floats, ints = layout.scratch_sizes(d, d_v, itemsize, True)
    scratch = arrays.threads * ((floats + layout.BLOCK_PAIRS) * itemsize + 8 * ints)
    written = [x.spare_bytes for x in (arrays.out, arrays.lse) if x is not None]
    key_chunk = max(k.chunks[2], v.chunks[2])
    gap = max(_GAP_BYTES // (itemsize * (d + d_v)), key_chunk if key_chunk > 1 else 0)
    patterns = checked_patterns(pattern, heads)
    for one, _ in patterns:
        one._validate(shape)
    if 0 in q.shape:
        return []
    shares = [shares_of(one, shape, itemsize) for one, _ in patterns]
    lists = [term.keys.nbytes for of in shares for share in of for term in share.terms if term.keys is not None]
    fixed = _OWN_BYTES + scratch + max(x.spare_bytes for x in (q, k, v)) + max(written) + _LIST_FACTOR * sum(lists)
    works = []
    for number, (_, its_heads) in enumerate(patterns):
        together = _heads_together(arrays, group) if len(its_heads) == heads else 1
        found = []
        for first in range(0, k.shape[1], together):
            mine = slice(first, min(first + together, k.shape[1]))
            of = [head for head in its_heads if mine.start <= head // group < mine.stop]
            if of:
                found.append((mine, of))
        most = max(len(of) for _, of in found), max(mine.stop - mine.start for mine, _ in found)
        margin = 2 * most[1] * layout.STEP * (d + d_v) * itemsize
        sizes = budget.Sizes(*most, d, d_v, itemsize, n_k, arrays.out.chunks[2], gap, fixed + margin)
        for at, share in enumerate(shares[number]):
            works.append(Work(number, at, share, sizes, budget.cut(share, sizes, max_bytes), found))
    return works


def _heads_together(arrays: Arrays, group: int) -> int:
    """Key heads that lie in the same chunks, so that each chunk is read and written once."""
    of_keys = max(arrays.key.chunks[1], arrays.value.chunks[1])
    of_queries = max(arrays.query.chunks[1], arrays.out.chunks[1])
    return min(max(of_keys, -(-of_queries // group)), max(1, arrays.key.shape[1]))


def _owner(pattern: Any, arrays: Arrays, max_bytes: int) -> dict[str, Any]:
    """Whose output it is: all that a result depends on."""
    return {
        "query": arrays.query.fingerprint(),
        "key": arrays.key.fingerprint(),
        "value": arrays.value.fingerprint(),
        "out": [list(arrays.out.shape), arrays.out.dtype.name, getattr(arrays.out.file, "origin", 0)],
        "lse": arrays.lse is not None,
        "pattern": _text_of(pattern),
        "scale": arrays.scale,
        "max_bytes": max_bytes,
    }


def _text_of(pattern: Any) -> str:
    """The pattern as text; what a text leaves out, the index arrays of the user's own, as a checksum."""
    patterns = pattern if isinstance(pattern, list | tuple) else [pattern]
    held = [leaf._held for one in patterns for leaf in one._leaves() if isinstance(leaf, Frozen)]
    checksum = 0
    for part in (part for fields in held for part in fields if isinstance(part, np.ndarray)):
        checksum = zlib.crc32(bytes_of(part), checksum)
    return f"{patterns!r} {checksum:08x}" if held else repr(patterns)


def _run(arrays: Arrays, works: list[Work], journal: Journal, progress: Progress | None) -> None:
    units = [[*work.units(arrays.query.shape[0])] for work in works]
    total = sum(work.row_count(unit) for work, its in zip(works, units, strict=True) for unit in its)
    known, journal.done = journal.done, {}
    for work, its in zip(works, units, strict=True):
        for unit in its:
            if unit in known and is_written(arrays, work, unit, known[unit]):
                journal.done[unit] = known[unit]
    rows_done = sum(
        work.row_count(unit) for work, its in zip(works, units, strict=True) for unit in its if unit in journal.done
    )
    journal.start()
    for work, its in zip(works, units, strict=True):
        left = [unit for unit in its if unit not in journal.done]

        def done(unit: Unit, work: Work = work) -> None:
            nonlocal rows_done
            rows_done += work.row_count(unit)
            if progress is not None:
                progress(rows_done, total, f"rows {unit.first:,} to {unit.stop:,}")

        if left:
            Pipeline(arrays, work, journal, done).run(left)
    sync(arrays)
    journal.complete()
