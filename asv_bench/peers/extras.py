"""What needs more than one thread, or a process of its own: scaling, memory, start-up. Each returns its figures."""

import time

from benchmarks.startup import first_call_seconds, import_ratio, imports_numba

import subquad
from subquad.complexity.memory import extra_memory

from .cases import TRAINING, Case
from .masks import Refused
from .measure import Effort, interleaved, median_of
from .pinning import on_cores

# A kernel family each: what a new process waits for depends on which of them its first call needs.
FIRST_CALLS = {"tiled": "Banded(128)", "gathered": "Random(64, seed=0)"}


def thread_scaling(case: Case, cores: list[int], effort: Effort) -> dict[str, float]:
    """Two threads against one on the same cores, in turn."""
    if len(cores) < 2:
        raise Refused("one core is available")
    arrays = case.inputs()[:3]
    calls = {
        str(threads): lambda threads=threads: subquad.attention(*arrays, case.pattern, num_threads=threads)
        for threads in (1, 2)
    }
    with on_cores(cores[-2:]):
        for call in calls.values():
            call()
        rounds = interleaved(calls, effort)
        wall, processor = time.perf_counter(), time.process_time()
        calls["2"]()
        cores_had = (time.process_time() - processor) / (time.perf_counter() - wall)
    return {
        "one thread, s": median_of(rounds, lambda one: one["1"]),
        "two threads, s": median_of(rounds, lambda one: one["2"]),
        "speed-up": median_of(rounds, lambda one: one["1"] / one["2"]),
        # Near 1 where something else was running on the second core: then the speed-up says nothing.
        "cores that two had": cores_had,
    }


def memory(case: Case, threads: int) -> dict[str, float]:
    """Plan and workspace, in a child process."""
    training = case.work == TRAINING
    used = extra_memory(case.pattern, case.n, d=case.d, heads=case.heads, num_threads=threads, backward=training)
    scores = 4 * case.heads * case.n**2
    return {"MB beyond arrays": used / 1e6, "MB of n x n scores": scores / 1e6}


def startup(processes: int) -> dict[str, float]:
    """Import, and the first call with an empty and a filled kernel cache; the slower kernel family counts."""
    calls = [first_call_seconds(pattern) for pattern in FIRST_CALLS.values()]
    return {
        "import over numpy": import_ratio(processes),
        "imports Numba": float(imports_numba()),
        "first call cold, s": max(cold for cold, _ in calls),
        "first call warm, s": max(warm for _, warm in calls),
    }
