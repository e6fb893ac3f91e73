"""What the calls return: Dask arrays whose `compute` needs no second copy of the whole result."""

from __future__ import annotations

import itertools
from typing import Any

import dask.array as da
from dask import local, threaded
from dask._task_spec import Task, TaskRef
from dask.array.core import slices_from_chunks
from dask.base import compute_as_if_collection, get_scheduler
from dask.highlevelgraph import HighLevelGraph

from subquad.inputs import Array, empty

_IN_THIS_PROCESS = (threaded.get, local.get_sync)


class Result(da.Array):
    """A Dask array; what is made of it is one of Dask's own.

    Dask computes an array by keeping all chunks and joining them at the end, on one thread. Where tasks run in this
    process, `compute` lets each one put its chunk where it belongs instead, so chunks do not pile up.
    """

    __slots__ = ()

    def compute(self, **kwargs: Any) -> Any:
        """The result as a NumPy array; keywords as `dask.array.Array.compute` has them."""
        scheduler = get_scheduler(scheduler=kwargs.get("scheduler"), cls=da.Array)  # type: ignore[no-untyped-call]
        if scheduler not in _IN_THIS_PROCESS or "optimize_graph" in kwargs:
            return super().compute(**kwargs)  # type: ignore[no-untyped-call]
        kwargs.pop("traverse", None)
        found = empty(self.shape, self.dtype, "result")

        def put(chunk: Array, place: tuple[slice, ...]) -> None:
            found[place] = chunk

        name = f"put-{self.name}"
        tasks: dict[Any, Any] = {}
        numbers = itertools.product(*map(range, self.numblocks))
        for at, place in zip(numbers, slices_from_chunks(self.chunks), strict=True):  # type: ignore[no-untyped-call]
            tasks[name, *at] = Task((name, *at), put, TaskRef((self.name, *at)), place)
        graph = HighLevelGraph({**self.dask.layers, name: tasks}, {**self.dask.dependencies, name: {self.name}})
        compute_as_if_collection(da.Array, graph, list(tasks), **kwargs)  # type: ignore[no-untyped-call]
        return found
