"""What a new process pays: `import subquad`, and the first call with an empty and with a filled kernel cache.

The functions above the benchmarks start the processes; `peers` uses them too.
"""

import os
import statistics
import subprocess
import sys
import tempfile

IMPORT = """
import time
start = time.perf_counter()
import {module}
print(time.perf_counter() - start)
"""

BOTH = "numpy", "subquad"

FIRST_CALL = """
import time
import numpy, subquad
query, key, value = (numpy.ones((1, 1024, 64), "float32") for _ in range(3))
start = time.perf_counter()
subquad.attention(query, key, value, subquad.{pattern}, num_threads=1)
print(time.perf_counter() - start)
"""

NUMBA_IMPORTED = "import sys, subquad; print(int('numba' in sys.modules))"


def in_new_process(code: str, **environment: str) -> float:
    """The number that `code` prints when a fresh interpreter runs it."""
    command = [sys.executable, "-c", code]
    # PYTHONPATH unset: what is timed is the installed package. An installed package has its
    # bytecode beside it.
    unset = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    child = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"child process failed: {child.stderr.strip().splitlines()[-1]}")
    return float(child.stdout)


def import_ratio(pairs: int) -> float:
    """Time of `import subquad` over that of `import numpy`: the median of interleaved pairs of processes."""
    with tempfile.TemporaryDirectory() as bytecode:
        ratios = []
        for _ in range(1 + pairs):  # the first pair compiles both from source
            numpy, subquad = (in_new_process(IMPORT.format(module=name), PYTHONPYCACHEPREFIX=bytecode) for name in BOTH)
            ratios.append(subquad / numpy)
    return statistics.median(ratios[1:])


def imports_numba() -> bool:
    return bool(in_new_process(NUMBA_IMPORTED))


def first_call_seconds(pattern: str) -> tuple[float, float]:
    """The first call after import in a new process: (with an empty kernel cache, with the cache that call left)."""
    with tempfile.TemporaryDirectory() as directory:
        code = FIRST_CALL.format(pattern=pattern)
        cold = in_new_process(code, SUBQUAD_CACHE_DIR=directory)
        warm = in_new_process(code, SUBQUAD_CACHE_DIR=directory)
    return cold, warm


class Import:
    version = "2"
    timeout = 120
    unit = "x import numpy"
    pairs = 5

    def track_import(self):
        return import_ratio(self.pairs)


class FirstCall:
    """One pattern for each kernel family."""

    version = "1"
    timeout = 120
    unit = "seconds"
    param_names = ("pattern", "cache")
    params = (["Banded(128)", "Random(64, seed=0)"], ["cold", "warm"])

    def track_first_call(self, pattern, cache):
        cold, warm = first_call_seconds(pattern)
        return cold if cache == "cold" else warm
