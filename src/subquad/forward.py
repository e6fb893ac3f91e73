"""Running a plan: every phase over every head, a few milliseconds of work at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subquad.inputs import Array, Inputs
from subquad.kernels import layout, load
from subquad.kernels.build import widens
from subquad.patterns.base import Shape
from subquad.plan import GatheredPhase, Plan, TiledPhase
from subquad.plan.cost import COLD_PAIR
from subquad.plan.tables import address
from subquad.threads import share_out

Table = npt.NDArray[np.int64]
_CONVERTED = 1 << 24  # elements at a time, some milliseconds: an interrupt is seen between them


class Part(NamedTuple):
    """Heads that one plan is for."""

    plan: Plan
    batches: Sequence[int]
    heads: Sequence[int]


def kernel_for(name: str, inputs: Inputs) -> Callable[..., None]:
    """The kernel of this name for how the inputs are stored."""
    found: Callable[..., None] = load(name, _name(inputs.arrays[0].dtype))
    return found


@functools.cache
def _name(dtype: np.dtype[Any]) -> str:
    return dtype.name  # NumPy takes microseconds to spell it


def converted(x: Array, dtype: np.dtype[Any]) -> Array:
    """The array in another dtype; side by side, and by a kernel, where one of them is half precision."""
    if x.dtype == dtype:
        return x
    half = min(x.dtype, dtype, key=lambda one: one.itemsize)
    if half.itemsize != 2 or x.size == 0 or not widens(half.name):
        return x.astype(dtype)
    given, made = np.ascontiguousarray(x), np.empty(x.shape, dtype)
    narrow = dtype == half
    halves, wholes = (made, given) if narrow else (given, made)
    kernel, starts = load("convert", half.name), (address(halves), address(wholes))
    for begin in range(0, x.size, _CONVERTED):
        at = (start + begin * array.itemsize for start, array in zip(starts, (halves, wholes), strict=True))
        kernel(*at, min(_CONVERTED, x.size - begin), int(narrow))
    return made


class Heads(NamedTuple):
    """Where each head begins in some arrays of shape (batch, heads, ...)."""

    places: list[tuple[int, int, int, int]]  # address, strides of batch and head, query heads that share one

    @classmethod
    def of(cls, n_heads: int, *arrays: Array | None) -> Heads:
        """Arrays with `n_heads` heads or with fewer, that several share; None is nowhere."""
        found = []
        for x in arrays:
            if x is None:
                found.append((0, 0, 0, 1))
            else:
                found.append((address(x), *x.strides[:2], n_heads // max(1, x.shape[1])))
        return cls(found)

    def begin(self, batch: int, head: int) -> list[int]:
        """Addresses of a query head, or of what it shares with others."""
        return [start + batch * b + head // group * stride for start, b, stride, group in self.places]


def scratch(sizes: tuple[int, int], dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """One worker's scratch of so many floats and integers, floats on a cache line."""
    floats, ints = sizes
    lanes = layout.lanes_of(dtype.itemsize)
    memory = np.empty(floats + lanes, dtype)
    offset = -(address(memory) // dtype.itemsize) % lanes
    return memory[offset : offset + floats], np.empty(ints, np.int64)


def geometry(
    shape: Shape, widths: tuple[int, int], places: list[tuple[Array, int]], lse: Array | None, flags: dict[int, int]
) -> Table:
    """Sizes and strides of one head, in elements, as the kernels read them; `places` says where an array's stand."""
    table = [0] * layout.GEOMETRY_COLUMNS  # numbers of Python's own first: a small call waits for each of NumPy's
    table[layout.D], table[layout.D_V] = widths
    table[layout.SHIFT], table[layout.N_K] = shape.shift, shape.n_k
    for x, column in places:
        *_, row, one = x.strides
        table[column], table[column + 1] = row // x.itemsize, one // x.itemsize
    if lse is not None:
        table[layout.KEEP_LSE], table[layout.LSE_STEP] = 1, lse.strides[-1] // lse.itemsize
    for column, flag in flags.items():
        table[column] = flag
    return np.array(table, np.int64)


def run(part: Part, inputs: Inputs, head: Table, out: Array, lse: Array | None, scale: float, threads: int) -> None:
    """Write the attention of some query heads into `out`, and its log-sum-exp into `lse`."""
    for number in range(len(part.plan.phases)):
        _run_phase(number, part, inputs, head, out, lse, scale, threads)


def _run_phase(
    number: int,
    part: Part,
    inputs: Inputs,
    head: Table,
    out: Array,
    lse: Array | None,
    scale: float,
    threads: int,
) -> None:
    q, k, v = inputs.arrays
    plan, batches, heads = part
    phase = plan.phases[number]
    gathered = isinstance(phase, GatheredPhase)
    pack = isinstance(phase, TiledPhase) and needs_panels(inputs, phase)
    wide = "_wide" if out.dtype != q.dtype else ""
    kernel = kernel_for(("gathered" if gathered else "tiled") + wide, inputs)
    widths, dtype = (q.shape[-1], v.shape[-1]), inputs.compute_dtype
    pair_flops = 2.0 * sum(widths)
    ranges = plan.tasks(number, pair_flops * (COLD_PAIR if gathered else plan.lanes))
    tables = plan.addresses(number)
    strides = [(q, layout.Q_ROW), (k, layout.K_ROW), (v, layout.V_ROW), (out, layout.OUT_ROW)]
    table = geometry(plan.shape, widths, strides, lse, {layout.FOLD: int(number > 0), layout.PACK: int(pack)})
    places = Heads.of(q.shape[1], q, k, v, out, lse, head)

    def worker() -> Callable[[int], None]:
        sizes = layout.scratch_sizes(*widths, dtype.itemsize, pack)
        if isinstance(phase, GatheredPhase):
            selects = bool(head[..., layout.SELECTS].any())
            sizes = layout.list_scratch_sizes(*widths, dtype.itemsize, phase.longest, selects=selects)
        own = scratch(sizes, dtype)
        before, after = (scale, address(table)), (*tables, *map(address, own))

        # `_kept`: what the addresses point to must live as long as they do, whatever becomes of the caller
        def do(task: int, _kept: Any = (own, inputs, out, lse, plan, head)) -> None:
            batch_head, of_phase = divmod(task, len(ranges))
            batch, one = divmod(batch_head, len(heads))
            member = batches[batch], heads[one]
            *arrays, of_head = places.begin(*member)
            kernel(*arrays, *before, of_head, *after, *ranges[of_phase])

        return do

    share_out(len(batches) * len(heads) * len(ranges), worker, threads)


def needs_panels(inputs: Inputs, phase: TiledPhase) -> bool:
    """Whether keys are copied side by side: they lie so far apart that it pays, columns are not, or they widen."""
    step = int(phase.runs[0, layout.KEY_STEP]) if len(phase.runs) else 1  # all runs of a phase have one step
    for x in inputs.arrays[1:]:
        *_, row, one = x.strides
        if inputs.narrow or abs(row) * step >= layout.PACK_BYTES or one != x.itemsize:
            return True
    return False
