"""Hold the process to a number of cores, before any library reads how many threads it may start."""

import contextlib
import os
from collections.abc import Iterator

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
CAN_PIN = hasattr(os, "sched_setaffinity")  # not on macOS


def available_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if CAN_PIN else list(range(os.cpu_count() or 1))


def pin(threads: int) -> None:
    """Use `threads` cores: the highest numbered, since interrupts favour core 0."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    if CAN_PIN:
        os.sched_setaffinity(0, available_cores()[-threads:])


@contextlib.contextmanager
def on_cores(cores: list[int]) -> Iterator[None]:
    """Lift the pinning for a while: threads that start meanwhile inherit `cores`."""
    if not CAN_PIN:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
