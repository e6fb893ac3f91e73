"""Building a plan: groups of rows, terms, phases."""

from __future__ import annotations

from subquad.kernels import layout
from subquad.patterns.base import Pattern, Shape
from subquad.plan.cost import LISTS, NATURAL, RESIDUES, SHARED
from subquad.plan.lists import listed_phase
from subquad.plan.tables import Phase, Plan
from subquad.plan.terms import disjoint_terms, row_groups
from subquad.plan.tiled_builder import TiledBuilder


def build(pattern: Pattern, shape: Shape, itemsize: int) -> Plan:
    """The plan of a pattern; time and memory follow the rows and what the plan holds, never n_q x n_k."""
    lanes = layout.lanes_of(itemsize)
    groups = row_groups(pattern._resolved(shape), shape, lanes)
    found = [disjoint_terms(g.expression, shape, lanes) if g.expression is not None else ([], []) for g in groups]
    terms = [of_group for of_group, _ in found]
    every_term = [term for of_group in terms for term in of_group]
    strides = sorted({term.stride for term in every_term if term.way == RESIDUES})
    # a single pattern knows its pairs in closed form
    counting = type(pattern)._count is Pattern._count or not shape.is_aligned

    phases: list[Phase] = []
    nnz = 0 if counting else pattern._count(shape)

    def add(phase: Phase, pairs: int) -> None:
        nonlocal nnz
        phases.append(phase)
        nnz += pairs if counting else 0

    listed = [term for term in every_term if term.way == LISTS]
    lists = listed_phase(shape, groups, terms) if listed else None
    if lists is not None and not len(lists.indices) and len(every_term) > len(listed):
        lists = None  # tiles have it all
    # the first phase must write every row: strides do only where all rows have the first of them, lists always do
    covered = bool(strides) and len(groups) == 1
    in_order = any(term.way in (NATURAL, SHARED) for term in every_term)
    if in_order or not (covered or (lists is not None and not strides)):
        builder = TiledBuilder(shape, lanes, counting)
        add(builder.natural(groups, terms), builder.nnz)
    for stride in strides:
        builder = TiledBuilder(shape, lanes, counting)
        add(builder.residues(stride, groups, terms), builder.nnz)
    if lists is not None:
        add(lists, len(lists.indices))
    for table in (table for phase in phases for table in phase):
        table.flags.writeable = False
    choices = dict.fromkeys(choice for _, of_group in found for choice in of_group)
    return Plan(shape, lanes, tuple(phases), nnz, tuple(choices))
