"""What a user's surroundings may be: several processes on a cold cache, `tracemalloc`, Numba's own settings."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest
from support import assert_matches_oracle, assert_same_bits, case, inputs

import subquad
from subquad import Banded, attention
from subquad.threads import share_out

KERNELS = Path(subquad.__file__).parent / "kernels"
COMPUTE = """
import numpy as np
from subquad import Banded, Random, attention, attention_backward, reference
rng = np.random.default_rng(0)
q, k, v, g = (rng.standard_normal((2, 50, 9)).astype(np.float32) for _ in range(4))
for pattern in (Banded(5), Random(4)):
    out, lse = attention(q, k, v, pattern, return_lse=True)
    assert np.abs(out - reference.attention(q, k, v, pattern)).max() < 1e-5
    grads = attention_backward(g, q, k, v, out, lse, pattern)
    right = reference.attention_backward(g, q, k, v, out, lse, pattern)
    assert max(np.abs(a - b).max() for a, b in zip(grads, right)) < 1e-4
print("right")
"""


def test_sixteen_processes_meet_on_a_cold_cache(tmp_path):
    """All of them compile, write and read one file at the same time; each gets a whole kernel."""
    env = {**os.environ, "SUBQUAD_CACHE_DIR": str(tmp_path / "kernels")}
    code = "from subquad.kernels import load; load('convert', 'float16')\nprint('loaded')"
    command = [sys.executable, "-W", "error", "-c", code]
    started = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(16)]
    for process in started:
        printed, wrong = process.communicate(timeout=240)
        assert (process.returncode, printed) == (0, b"loaded\n"), wrong.decode()
    (kept,) = os.listdir(tmp_path / "kernels")  # no half-written file is left
    assert kept.startswith("subquad_convert_float16-")


@pytest.mark.parametrize(
    "settings",
    [
        {"NUMBA_BOUNDSCHECK": "1"},
        {"NUMBA_DISABLE_JIT": "1"},
        {"SUBQUAD_NUM_THREADS": "1"},
        {"PYTHONTRACEMALLOC": "5"},
        {"PYTHONMALLOC": "debug", "PYTHONDEVMODE": "1"},
    ],
    ids=str,
)
def test_settings_of_numba_and_python(settings):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMPUTE],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr


def test_a_call_under_tracemalloc_leaves_nothing_behind(rng):
    arrays = inputs(rng, 97, 97, 16, leading=(2,))
    expected = attention(*arrays, case("longformer", 97, 97))
    for _ in range(3):
        attention(*arrays, case("longformer", 97, 97), num_threads=2)
    tracemalloc.start()
    try:
        held = []
        for _ in range(5):
            for _ in range(50):
                assert_same_bits(attention(*arrays, case("longformer", 97, 97), num_threads=2), expected)
            held.append(tracemalloc.get_traced_memory()[0])
        # what a call leaves behind it leaves every time; threads of other tests may take memory meanwhile
        assert min(after - before for before, after in itertools.pairwise(held)) < 10_000, held
    finally:
        tracemalloc.stop()


def test_kernels_have_no_fast_math_and_one_place_for_options():
    """The allowed set is empty: every fused multiply-add is spelled out, and no sum may be put in another order."""
    from subquad.kernels.jit import OPTIONS

    assert OPTIONS["fastmath"] is False
    assert OPTIONS["error_model"] == "numpy"
    for path in KERNELS.glob("*.py"):
        text = path.read_text()
        if path.name != "jit.py":
            assert "fastmath" not in text, path.name
        assert "parallel=True" not in text, path.name
        assert "cache=True" not in text, path.name


@pytest.mark.parametrize("name", ["peak", "gathered"])
def test_no_instruction_of_a_kernel_bears_a_fast_math_flag(name):
    import re

    from subquad.kernels import build

    text = str(build._module(name, "float32", "entry"))
    operations = re.findall(r"= (?:tail )?(?:f(?:add|sub|mul|div|neg|cmp)|call) (.*)", text)
    assert len(operations) > 5
    flags = {"fast", "nnan", "ninf", "nsz", "arcp", "contract", "afn", "reassoc"}
    assert [line for line in operations if flags & set(line.split()[:8])] == []


def test_under_dask_threads(rng):
    dask = pytest.importorskip("dask")
    arrays = inputs(rng, 97, 97, 16, leading=(2,))
    tasks = [dask.delayed(attention)(*arrays, Banded(window)) for window in range(8)]
    for window, out in enumerate(dask.compute(*tasks, scheduler="threads", num_workers=8)):
        assert_matches_oracle(out, None, *arrays, Banded(window))


def test_what_goes_wrong_in_a_helper_is_told_and_none_outlives_the_call():
    first, at_work = threading.Event(), []

    def worker():
        mine = threading.current_thread() is threading.main_thread()

        def do(task):
            at_work.append(task)
            if not mine:
                first.set()
                raise MemoryError("no scratch")
            assert first.wait(60)
            at_work.remove(task)

        return do

    with pytest.raises(MemoryError, match="no scratch"):
        share_out(10, worker, 2)
    assert len(at_work) == 1  # that of the helper that failed; the caller's were done, and no more were begun
    done = []
    share_out(10, lambda: done.append, 4)
    assert sorted(done) == list(range(10))
