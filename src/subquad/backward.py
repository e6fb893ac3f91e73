"""Running a plan backwards: what every phase gives to the gradients of every head, in one fixed order."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from subquad.forward import KERNEL_NAME, Heads, geometry, lie_far_apart, scratch
from subquad.inputs import Array, Inputs
from subquad.kernels import layout, load
from subquad.plan import GatheredPhase, Plan, TiledPhase
from subquad.plan.schedule import waves
from subquad.plan.tables import address
from subquad.threads import share_out


class Gradients(NamedTuple):
    """What comes in, (batch, heads, rows[, columns]) each, and the gradients that are added to."""

    grad_out: Array
    lse: Array
    delta: Array  # (batch, heads, n_q): what all weights of a row have in common
    query: Array
    key: Array
    value: Array


def run(plan: Plan, inputs: Inputs, gradients: Gradients, scale: float, threads: int) -> None:
    """Add the gradients of every head to `gradients`."""
    table = geometry(inputs, plan.shape)
    g, lse = gradients.grad_out, gradients.lse
    table[layout.D_V] = g.shape[-1]
    v = inputs.arrays[2]
    for x, column in ((v, layout.V_ROW), (g, layout.G_ROW)):
        table[column : column + 2] = [stride // x.itemsize for stride in x.strides[-2:]]
    table[layout.LSE_STEP] = lse.strides[-1] // lse.itemsize
    for number, phase in enumerate(plan.phases):
        if isinstance(phase, TiledPhase):
            _tiled(number, phase, plan, inputs, gradients, scale, table.copy(), threads)


def _tiled(number, phase, plan, inputs, gradients, scale, table, threads):
    q, k, v = inputs.arrays
    group = inputs.group
    table[layout.PACK] = int(lie_far_apart(inputs, phase))
    kernel = load("tiled_backward", KERNEL_NAME[inputs.compute_dtype.itemsize])
    heads = Heads.of(
        q.shape[1],
        [(q, 1), (k, group), (v, group), (gradients.grad_out, 1), (gradients.lse, 1), (gradients.delta, 1)]
        + [(gradients.query, 1), (gradients.key, group), (gradients.value, group)],
    )
    tables = plan.addresses(number)
    for wave in waves(plan, number, plan.lanes * 2.0 * (3 * q.shape[-1] + 2 * v.shape[-1])):

        def worker() -> Callable[[int], None]:
            own = scratch(q.shape[-1], v.shape[-1], q.dtype, bool(table[layout.PACK]), backward=True)
            fixed = [scale, address(table), *tables, *map(address, own)]

            # `_kept`: the scratch must live as long as the addresses in `fixed`
            def do(task: int, _kept: tuple[Array, ...] = own) -> None:
                shared, part = divmod(task, len(wave))
                for head in range(shared * group, (shared + 1) * group):  # they share gradients: one after another
                    kernel(*heads.begin(head), *fixed, *wave[part])

            return do

        share_out(k.shape[0] * k.shape[1] * len(wave), worker, threads)
