"""One small pool of Python threads, shared by all calls.

Kernels let go of the GIL, so plain threads run them side by side. Numba's own layers were measured and left: workqueue
aborts the process on concurrent callers, OpenMP dies after a fork, and both multiply the time to compile.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from subquad import checks

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

_MOST_THREADS = 256
_pool: ThreadPoolExecutor | None = None
_lock = threading.Lock()


def _forget_pool() -> None:
    """A child of fork has none of its parent's threads, and perhaps a lock that nobody will release."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def _shared_pool() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            from concurrent.futures import ThreadPoolExecutor  # only for who uses threads: it takes 10 ms to import

            _pool = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="subquad")  # starts threads as they are needed
        return _pool


def thread_count(num_threads: Any) -> int:
    """The threads to use: `num_threads`, else `SUBQUAD_NUM_THREADS`, else the processors this process may run on."""
    if num_threads is not None:
        return min(checks.integer(num_threads, "num_threads", 1), _MOST_THREADS)
    wanted = os.environ.get("SUBQUAD_NUM_THREADS", "")
    if wanted:
        if not wanted.isdecimal() or int(wanted) < 1:
            raise ValueError(f"the environment variable SUBQUAD_NUM_THREADS must be an integer >= 1; got {wanted!r}")
        return min(int(wanted), _MOST_THREADS)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_out(n_tasks: int, worker: Callable[[], Callable[[int], None]], threads: int) -> None:
    """Do tasks 0 to n_tasks - 1. Each thread calls `worker` once, for its own scratch, then what it returns for a task.

    Tasks are short and handed out one by one, so an interrupt is seen, and uneven ones even out.
    """
    helpers = min(threads, n_tasks) - 1
    if helpers < 1:
        do = worker()
        for task in range(n_tasks):
            do(task)
        return
    counter, stopped = itertools.count(), threading.Event()

    def work() -> None:
        do = worker()
        while (task := next(counter)) < n_tasks and not stopped.is_set():
            do(task)

    crew = _Crew(work, stopped)
    try:
        for _ in range(helpers):
            try:
                _shared_pool().submit(crew.help)
            except RuntimeError:  # no more threads to be had, as while the interpreter shuts down
                break
        work()
    except BaseException:
        stopped.set()
        raise
    finally:
        crew.dismiss()
    if crew.failure is not None:
        raise crew.failure


class _Crew:
    """The helpers of one call. They write to its arrays: none may be at work once the call is left, however it is."""

    def __init__(self, work: Callable[[], None], stopped: threading.Event) -> None:
        self._work, self._stopped = work, stopped
        self._busy, self._over, self._changed = 0, False, threading.Condition()
        self.failure: BaseException | None = None

    def help(self) -> None:
        with self._changed:
            if self._over:
                return
            self._busy += 1
        try:
            self._work()
        except BaseException as error:
            self._stopped.set()
            self.failure = error
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def dismiss(self) -> None:
        """Wait for those at work; the others will find that it is over. A second Ctrl-C waits as well."""
        interrupt: BaseException | None = None
        while True:
            try:
                with self._changed:
                    self._over = True
                    while self._busy:
                        self._changed.wait()
                break
            except BaseException as error:
                self._stopped.set()
                interrupt = error
        if interrupt is not None:
            raise interrupt
