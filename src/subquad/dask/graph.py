"""The graph: a task for each group, results merged two by two, gradients added up in one order, whoever runs them.

All tasks between the inputs and the results are one layer of a HighLevelGraph, which output and lse share. Its keys
begin with a token of the inputs, the pattern and the scale, so that equal calls have equal names.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
from dask._task_spec import List, Task, TaskRef
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from subquad.dask import work
from subquad.dask.arrays import Chunks, Given
from subquad.dask.pieces import Chosen, Group, Needs, Partition
from subquad.dask.result import Result

Key = tuple[Any, ...]
_FAN_IN = 8  # gradients added up by one task


class Place(NamedTuple):
    """A chunk of query rows: numbers of its block of batch and heads, and of the chunk."""

    lead: tuple[int, ...]
    chunk: int
    needs: Needs


class Graph:
    """Tasks of one call under one name."""

    def __init__(self, verb: str, given: Given, *more: Any) -> None:
        self.given = given
        self.inputs = [given.query, given.key, given.value, *(x for x in more if isinstance(x, da.Array))]
        self.name = f"subquad-{verb}-{tokenize(given, *more)}"
        self.tasks: dict[Any, Task] = {}

    def add(self, what: str, at: Sequence[Any], function: Callable[..., Any], *args: Any) -> TaskRef:
        """A task that others refer to."""
        key = (f"{self.name}-{what}", *at)
        self.tasks[key] = Task(key, function, *args)
        return TaskRef(key)

    def places(self) -> Iterator[Place]:
        """Every chunk of query rows, with what it needs."""
        query, key = self.given.query, self.given.key
        leads = query.numblocks[:-2]
        heads = np.cumsum((0, *(query.chunks[-3] if query.ndim > 2 else (1,))))
        partitions: dict[Any, list[Needs]] = {}
        for lead in itertools.product(*map(range, leads)):
            block = lead[-1] if lead else 0
            patterns = self.given.patterns_of(slice(heads[block], heads[block + 1]))
            if patterns not in partitions:
                cut = Partition(patterns, self.given.shape, query.chunks[-2], key.chunks[-2])
                partitions[patterns] = [cut.needs(chunk) for chunk in range(query.numblocks[-2])]
            for chunk, needs in enumerate(partitions[patterns]):
                yield Place(lead, chunk, needs)

    def parts(self, place: Place, group: Group, what: str) -> Iterator[TaskRef]:
        """Key and value of each piece, cut where they lie if they are sent.

        All under one name: Dask takes tasks of a name that depend on fewer than five others for the roots of a graph,
        and spreads them over the workers wherever their chunks lie.
        """
        for piece in group.pieces:
            for which, x in enumerate((self.given.key, self.given.value)):
                whole = chunk_of(x, (*place.lead, piece.chunk))
                at = (*place.lead, place.chunk, piece.chunk, which)
                yield self.add(f"{what}-parts", at, work.take, whole, piece.chosen) if piece.sent else whole

    def result(self, what: str, tasks: dict[Key, tuple[Any, ...]], chunks: Sequence[Chunks], dtype: Any) -> da.Array:
        """A Dask array of what some functions make of the tasks' results: tasks[at] is (function, arguments)."""
        name = f"{self.name}-{what}"
        layer: dict[Any, Any] = {(name, *at): Task((name, *at), *task) for at, task in tasks.items()}
        below = HighLevelGraph.from_collections(self.name, self.tasks, dependencies=self.inputs)
        graph = HighLevelGraph({**below.layers, name: layer}, {**below.dependencies, name: {self.name}})
        meta = np.empty((0,) * len(chunks), dtype)
        return Result(graph, name, tuple(chunks), meta=meta)  # type: ignore[no-untyped-call]


def chunk_of(x: Any, at: Sequence[int]) -> TaskRef:
    """A chunk of an array whose columns are in one chunk."""
    return TaskRef((x.name, *at, 0))


def forward(given: Given) -> tuple[da.Array, da.Array]:
    """Output and lse."""
    graph = Graph("attention", given)
    query, d_v, scale = given.query, given.value.shape[-1], given.scale
    outs: dict[Key, Any] = {}
    sums: dict[Key, Any] = {}
    for place in graph.places():
        at, needs = (*place.lead, place.chunk), place.needs
        rows = chunk_of(query, at)

        def attend(what: str, group: Group, number: int, rows: TaskRef, place: Place = place) -> TaskRef:
            parts = graph.parts(place, group, what)
            return graph.add(what, (*place.lead, place.chunk, number), work.attend, group, scale, rows, *parts)

        found = [attend("near", group, number, rows) for number, group in enumerate(needs.groups)]
        whole = _merged(graph, at, "near", found or [graph.add("nothing", at, work.nothing, rows, d_v)])
        if needs.few is not None:
            some = graph.add("rows", at, work.take, rows, needs.few)
            found = [attend("far", group, number, some) for number, group in enumerate(needs.of_few)]
            whole = graph.add("place", at, work.place, whole, _merged(graph, at, "far", found), needs.few)
        outs[*at, 0] = work.pick, whole, 0, np.dtype(query.dtype)
        sums[at] = work.pick, whole, 1
    chunks = query.chunks[:-1]
    out = graph.result("out", outs, (*chunks, (d_v,)), query.dtype)
    return out, graph.result("lse", sums, chunks, given.compute_dtype)


def _merged(graph: Graph, at: Key, what: str, found: list[TaskRef]) -> TaskRef:
    """Neighbours joined two by two until one is left: a tree that only the number of results decides."""
    level = 0
    while len(found) > 1:
        pairs = itertools.zip_longest(found[::2], found[1::2])
        found = [
            a if b is None else graph.add(f"merge-{what}", (*at, level, number), work.union, a, b)
            for number, (a, b) in enumerate(pairs)
        ]
        level += 1
    return found[0]


Shares = list[tuple[Chosen, TaskRef]]  # rows of a chunk, and what is to be added there


def backward(given: Given, grad_out: Any, out: Any, lse: Any, grad_lse: Any) -> tuple[da.Array, da.Array, da.Array]:
    """Gradients of query, key and value."""
    graph = Graph("attention-backward", given, grad_out, out, lse, grad_lse)
    arrays = (given.query, given.key, given.value)
    shares: list[dict[Key, Shares]] = [{}, {}, {}]
    for place in graph.places():
        at, needs = (*place.lead, place.chunk), place.needs
        of_rows = [chunk_of(x, at) for x in (given.query, grad_out, out)]
        of_rows += [TaskRef((x.name, *at)) for x in (lse, grad_lse) if x is not None]
        kinds: list[tuple[str, list[Group], Any, Chosen]] = [("near", needs.groups, List(*of_rows), None)]
        if needs.few is not None:
            few = graph.add("rows", at, work.take_rows, needs.few, *of_rows)
            kinds.append(("far", needs.of_few, few, needs.few))
        for what, groups, rows, chosen in kinds:
            for number, group in enumerate(groups):
                where = (*at, number)
                parts = graph.parts(place, group, what)
                found = graph.add(what, where, work.attend_backward, group, given.scale, rows, *parts)
                one = [
                    graph.add(f"{what}-pick", (*where, k), work.pick, found, k)
                    for k in range(1 + 2 * len(group.pieces))
                ]
                shares[0].setdefault(at, []).append((chosen, one[0]))
                for piece, of_key, of_value in zip(group.pieces, one[1::2], one[2::2], strict=True):
                    there = (*place.lead, piece.chunk)
                    shares[1].setdefault(there, []).append((piece.chosen, of_key))
                    shares[2].setdefault(there, []).append((piece.chosen, of_value))
    names = ("query", "key", "value")
    summed = (_summed(graph, f"grad-{name}", x, some) for name, x, some in zip(names, arrays, shares, strict=True))
    grad_query, grad_key, grad_value = summed
    return grad_query, grad_key, grad_value


def _summed(graph: Graph, what: str, x: Any, shares: dict[Key, Shares]) -> da.Array:
    """The gradient of an array: the shares of each chunk, in the order of the rows that give them."""
    compute, dtype = graph.given.compute_dtype, np.dtype(x.dtype)
    tasks: dict[Key, tuple[Any, ...]] = {}
    for at in itertools.product(*map(range, x.numblocks[:-1])):
        shape = tuple(sizes[number] for sizes, number in zip(x.chunks, (*at, 0), strict=True))
        found, level = shares.get(at, []), 0
        while len(found) > _FAN_IN:
            parts = [found[k : k + _FAN_IN] for k in range(0, len(found), _FAN_IN)]
            found = [
                (None, graph.add(f"{what}-sum", (*at, level, number), work.add_up, shape, compute, *_listed(some)))
                for number, some in enumerate(parts)
            ]
            level += 1
        tasks[*at, 0] = work.add_up, shape, dtype, *_listed(found)
    return graph.result(what, tasks, x.chunks, x.dtype)


def _listed(shares: Shares) -> tuple[Any, ...]:
    return [chosen for chosen, _ in shares], *(share for _, share in shares)
