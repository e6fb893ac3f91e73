"""Running a plan backwards: what every phase gives to the gradients of every head, in one fixed order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from subquad.forward import Heads, Part, Table, converted, geometry, kernel_for, needs_panels, scratch
from subquad.inputs import Array, Inputs
from subquad.kernels import layout
from subquad.plan import GatheredPhase, TiledPhase
from subquad.plan.cost import COLD_PAIR
from subquad.plan.schedule import waves
from subquad.plan.tables import address, cut
from subquad.threads import share_out

_ROWS = 4096  # that are copied at a time where columns are no neighbours
Groups = list[tuple[int, list[int]]]  # batch and query heads


class Gradients(NamedTuple):
    """What a backward starts from, and the gradients that it adds to: (batch, heads, rows[, columns]) each."""

    of_out: Array
    lse: Array
    delta: Array  # (batch, heads, n_q): what the gradients of all weights of a row have in common
    query: Array
    key: Array
    value: Array


class Call(NamedTuple):
    """What all phases of a backward share."""

    part: Part
    inputs: Inputs
    head: Table
    gradients: Gradients
    scale: float
    threads: int

    @property
    def widths(self) -> tuple[int, int]:
        """d and d_v."""
        return self.inputs.arrays[0].shape[-1], self.inputs.arrays[2].shape[-1]

    def place(self, *arrays: Array) -> Heads:
        """Where each head begins, last of all in the table of options."""
        return Heads.of(self.inputs.arrays[0].shape[1], *arrays, self.head)

    def groups(self, shared: bool) -> Groups:
        """Batch and heads of what may run side by side: heads that share their keys may not, where keys are written."""
        found: dict[int, list[int]] = {}
        for head in self.part.heads:
            found.setdefault(head // self.inputs.group if shared else head, []).append(head)
        return [(batch, heads) for batch in self.part.batches for heads in found.values()]


def row_products(a: Array, b: Array, dtype: np.dtype[Any]) -> Array:
    """The sum of a x b along columns, (batch, heads, rows), in an order that no layout of the arrays changes."""
    sums = np.empty(a.shape[:3], dtype)
    for *head, begin in np.ndindex(*a.shape[:2], -(-a.shape[2] // _ROWS)):
        rows = (*head, slice(begin * _ROWS, (begin + 1) * _ROWS))
        pair = (np.ascontiguousarray(converted(x[rows], dtype)) for x in (a, b))
        np.einsum("nd,nd->n", *pair, out=sums[rows])
    return sums


def run(part: Part, inputs: Inputs, head: Table, gradients: Gradients, scale: float, threads: int) -> None:
    """Add what some query heads give to `gradients`.

    Every gradient is a sum in one order, which no number of threads changes: tiles that share keys follow one another
    in waves, lists are followed once by query and once by key, and heads that share keys are done one after another.
    """
    call = Call(part, inputs, head, gradients, scale, threads)
    for number, phase in enumerate(part.plan.phases):
        if isinstance(phase, TiledPhase):
            _tiled(call, number, phase)
        else:
            _by_query(call, phase)
            _by_key(call, part.plan.transposed(number))


def _tiled(call: Call, number: int, phase: TiledPhase) -> None:
    """All five products in one pass, a wave at a time."""
    (q, k, v), grads, (d, d_v) = call.inputs.arrays, call.gradients, call.widths
    pack, dtype, plan = needs_panels(call.inputs, phase), call.inputs.compute_dtype, call.part.plan
    strides = [(q, layout.Q_ROW), (k, layout.K_ROW), (v, layout.V_ROW), (grads.of_out, layout.G_ROW)]
    table = _table(call, strides, {layout.PACK: int(pack)})
    sizes = layout.scratch_sizes(d, d_v, dtype.itemsize, pack, backward=True)
    kernel, tables = kernel_for("tiled_backward", call.inputs), plan.addresses(number)
    groups = call.groups(shared=True)
    places = call.place(q, k, v, grads.of_out, grads.lse, grads.delta, grads.query, grads.key, grads.value)
    for wave in waves(plan, number, plan.lanes * 2.0 * (3 * d + 2 * d_v)):

        def worker(wave: list[tuple[int, int, int, int]] = wave) -> Callable[[int], None]:
            own = scratch(sizes, dtype)
            before, after = (call.scale, address(table)), (*tables, *map(address, own))

            # `_kept`: what the addresses point to must live as long as they do, whatever becomes of the caller
            def do(task: int, _kept: Any = (own, call)) -> None:
                group, block = divmod(task, len(wave))
                batch, heads = groups[group]
                for member in heads:
                    *arrays, of_head = places.begin(batch, member)
                    kernel(*arrays, *before, of_head, *after, *wave[block])

            return do

        share_out(len(groups) * len(wave), worker, call.threads)


def _by_query(call: Call, lists: GatheredPhase) -> None:
    """The gradient of each query row from its own list of keys."""
    (q, k, v), grads = call.inputs.arrays, call.gradients
    table = _table(call, [(q, layout.Q_ROW), (k, layout.K_ROW), (grads.of_out, layout.G_ROW), (v, layout.V_ROW)], {})
    places = call.place(q, k, grads.of_out, v, grads.lse, grads.delta, grads.query, grads.query)
    _gathered(call, lists, table, places, call.groups(shared=False))


def _by_key(call: Call, lists: GatheredPhase) -> None:
    """The gradients of each key and value from its own list of query rows."""
    (q, k, v), grads = call.inputs.arrays, call.gradients
    strides = [(k, layout.Q_ROW), (q, layout.K_ROW), (v, layout.G_ROW), (grads.of_out, layout.V_ROW)]
    table = _table(call, strides, {layout.BY_KEY: 1})
    places = call.place(k, q, v, grads.of_out, grads.lse, grads.delta, grads.key, grads.value)
    _gathered(call, lists, table, places, call.groups(shared=True))


def _gathered(call: Call, lists: GatheredPhase, table: Table, places: Heads, groups: Groups) -> None:
    (d, d_v), dtype = call.widths, call.inputs.compute_dtype
    kernel, tables = kernel_for("gathered_backward", call.inputs), [address(x) for x in lists]
    ranges = cut(lists.work, COLD_PAIR * 4.0 * (d + d_v))
    selects = bool(call.head[..., layout.SELECTS].any())
    sizes = layout.list_scratch_sizes(d, d_v, dtype.itemsize, lists.longest, backward=True, selects=selects)

    def worker() -> Callable[[int], None]:
        own = scratch(sizes, dtype)
        before, after = (call.scale, address(table)), (*tables, *map(address, own))

        def do(task: int, _kept: tuple[Array, ...] = own) -> None:
            group, rows = divmod(task, len(ranges))
            batch, heads = groups[group]
            for member in heads:
                *arrays, of_head = places.begin(batch, member)
                kernel(*arrays, *before, of_head, *after, *ranges[rows])

        return do

    share_out(len(groups) * len(ranges), worker, call.threads)


def _table(call: Call, places: list[tuple[Array, int]], flags: dict[int, int]) -> Table:
    return geometry(call.part.plan.shape, call.widths, places, call.gradients.lse, flags)
