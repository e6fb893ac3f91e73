"""What the calls return: Dask arrays whose `compute` needs no second copy of the whole result."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import dask.array as da
import numpy as np
from dask import local, threaded
from dask._task_spec import Task, TaskRef
from dask.array.core import slices_from_chunks
from dask.base import compute_as_if_collection, get_scheduler
from dask.highlevelgraph import HighLevelGraph

from subquad.dask import work
from subquad.inputs import Array, empty

_IN_THIS_PROCESS = (threaded.get, local.get_sync)


class Result(da.Array):
    """A Dask array; what is made of it is one of Dask's own.

    Dask computes an array by keeping all chunks and joining them at the end, on one thread. Where tasks run in this
    process, `compute` has each one write its chunk where it belongs instead, so that no page is had twice.
    """

    __slots__ = ()

    def compute(self, **kwargs: Any) -> Any:
        """The result as a NumPy array; keywords as `dask.array.Array.compute` has them."""
        scheduler = get_scheduler(scheduler=kwargs.get("scheduler"), cls=da.Array)  # type: ignore[no-untyped-call]
        if scheduler not in _IN_THIS_PROCESS or "optimize_graph" in kwargs:
            return super().compute(**kwargs)  # type: ignore[no-untyped-call]
        kwargs.pop("traverse", None)
        found = empty(self.shape, self.dtype, "result")

        def put(chunk: Array, place: Array) -> None:
            if not np.may_share_memory(chunk, place):
                place[...] = chunk

        name = f"put-{self.name}"
        tasks: dict[Any, Any] = {}
        places: dict[Any, Array] = {}
        numbers = itertools.product(*map(range, self.numblocks))
        for at, slices in zip(numbers, slices_from_chunks(self.chunks), strict=True):  # type: ignore[no-untyped-call]
            places[self.name, *at] = found[slices]
            tasks[name, *at] = Task((name, *at), put, TaskRef((self.name, *at)), found[slices])
        layers = {**_in_place(self.dask.layers, places), name: tasks}
        graph = HighLevelGraph(layers, {**self.dask.dependencies, name: {self.name}})
        compute_as_if_collection(da.Array, graph, list(tasks), **kwargs)  # type: ignore[no-untyped-call]
        return found


def _in_place(layers: Mapping[str, Any], places: Mapping[Any, Array]) -> dict[str, Any]:
    """The layers, with each task that makes a whole chunk of the result writing it where it belongs."""
    changed = {name: dict(layer) for name, layer in layers.items()}
    owner = {key: name for name, layer in changed.items() for key in layer}
    for key, place in places.items():
        picked = changed[owner[key]][key]
        if picked.func is not work.pick or picked.args[1] != 0:
            continue
        made_by = picked.args[0].key
        task = changed[owner[made_by]][made_by]
        if task.func is work.attend and place.dtype.itemsize >= 4:  # halves are computed in float32
            changed[owner[made_by]][made_by] = Task(made_by, work.attend_into, place, *task.args)
    return changed
