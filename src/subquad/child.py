"""Call a function in a fresh Python process: for what a process can be asked only once.

Peak memory, and the number of BLAS threads, belong to a process. `multiprocessing` would import the caller's main
module again in the child; this starts an interpreter that holds `subquad` and nothing else.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def call_in_child(function: Callable[..., T], *args: Any, env: Mapping[str, str] | None = None) -> T:
    """Return ``function(*args)`` computed in a new interpreter.

    Parameters
    ----------
    function
        An importable function; it, its arguments and its result travel by pickle.
    env
        Environment variables to set in the child, on top of the caller's.

    Raises
    ------
    RuntimeError
        The child failed; the message carries the last line that it wrote.
    """
    child = subprocess.run(
        # -P: a stray numpy.py in the working directory must not be imported.
        [sys.executable, "-P", "-c", "from subquad.child import serve; serve()"],
        input=pickle.dumps((function, args)),
        capture_output=True,
        env={**os.environ, **(env or {})},
        check=False,
    )
    if child.returncode != 0:
        lines = child.stderr.decode(errors="replace").strip().splitlines() or ["it wrote nothing"]
        raise RuntimeError(
            f"the process that was to run {function.__name__} ended with status {child.returncode}: {lines[-1]}"
        )
    result: T = pickle.loads(child.stdout)
    return result


def serve() -> None:
    """Run the request on standard input, write the result to standard output. The child's side."""
    result_file = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a print by the function must not mix with the result
    function, args = pickle.load(sys.stdin.buffer)
    with result_file:
        pickle.dump(function(*args), result_file)
