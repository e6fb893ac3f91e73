"""Running a plan: every phase over every head, a few milliseconds of work at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from subquad.inputs import Array, Inputs
from subquad.kernels import layout, load
from subquad.patterns.base import Shape
from subquad.plan import GatheredPhase, Plan, TiledPhase
from subquad.plan.cost import COLD_PAIR
from subquad.plan.tables import address
from subquad.threads import share_out

KERNEL_NAME = {4: "float32", 8: "float64"}  # by the size of an element


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
    shape: Shape, widths: tuple[int, int], places: list[tuple[Array, int]], lse: Array | None = None
) -> npt.NDArray[np.int64]:
    """Sizes and strides of one head, in elements, as the kernels read them; `places` says where an array's stand."""
    table = np.zeros(layout.GEOMETRY_COLUMNS, np.int64)
    table[layout.D], table[layout.D_V] = widths
    table[layout.SHIFT], table[layout.N_K] = shape.shift, shape.n_k
    for x, column in places:
        table[column : column + 2] = [stride // x.itemsize for stride in x.strides[-2:]]
    if lse is not None:
        table[layout.KEEP_LSE], table[layout.LSE_STEP] = 1, lse.strides[-1] // lse.itemsize
    return table


def run(
    plan: Plan, inputs: Inputs, heads: Sequence[int], out: Array, lse: Array | None, scale: float, threads: int
) -> None:
    """Write the attention of some query heads into `out`, and its log-sum-exp into `lse`."""
    q, k, v = inputs.arrays
    places = [(q, layout.Q_ROW), (k, layout.K_ROW), (v, layout.V_ROW), (out, layout.OUT_ROW)]
    table = geometry(plan.shape, (q.shape[-1], v.shape[-1]), places, lse)
    for number in range(len(plan.phases)):
        table = table.copy()
        table[layout.FOLD] = int(number > 0)
        _run_phase(number, plan, inputs, heads, out, lse, scale, table, threads)


def _run_phase(
    number: int,
    plan: Plan,
    inputs: Inputs,
    heads: Sequence[int],
    out: Array,
    lse: Array | None,
    scale: float,
    table: npt.NDArray[np.int64],
    threads: int,
) -> None:
    q, _, v = inputs.arrays
    phase = plan.phases[number]
    gathered = isinstance(phase, GatheredPhase)
    if isinstance(phase, TiledPhase):
        table[layout.PACK] = int(lie_far_apart(inputs, phase))
    kernel = load("gathered" if gathered else "tiled", KERNEL_NAME[inputs.compute_dtype.itemsize])
    widths = q.shape[-1], v.shape[-1]
    pair_flops = 2.0 * sum(widths)
    ranges = plan.tasks(number, pair_flops * (COLD_PAIR if gathered else plan.lanes))
    tables = plan.addresses(number)
    places = Heads.of(q.shape[1], q, inputs.arrays[1], v, out, lse)

    def worker() -> Callable[[int], None]:
        sizes = layout.scratch_sizes(*widths, q.itemsize, bool(table[layout.PACK]))
        if isinstance(phase, GatheredPhase):
            sizes = layout.list_scratch_sizes(*widths, q.itemsize, phase.longest)
        own = scratch(sizes, q.dtype)
        fixed = [scale, address(table), *tables, *map(address, own[:1] if gathered else own)]

        # `_kept`: the scratch must live as long as the addresses in `fixed`
        def do(task: int, _kept: tuple[Array, ...] = own) -> None:
            batch_head, part = divmod(task, len(ranges))
            batch, head = divmod(batch_head, len(heads))
            kernel(*places.begin(batch, heads[head]), *fixed, *ranges[part])

        return do

    share_out(q.shape[0] * len(heads) * len(ranges), worker, threads)


def lie_far_apart(inputs: Inputs, phase: TiledPhase) -> bool:
    """Whether neighbouring keys of a run lie so far apart that copies pay, or columns are no neighbours at all."""
    step = int(phase.runs[0, layout.KEY_STEP]) if len(phase.runs) else 1  # all runs of a phase have one step
    keys = inputs.arrays[1:]
    return any(abs(x.strides[-2]) * step >= layout.PACK_BYTES or x.strides[-1] != x.itemsize for x in keys)
