"""How kernels are compiled, kept and loaded, and what their machine code looks like."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import subquad
from subquad.kernels import build

PACKAGE = Path(subquad.__file__).parent

ATTEND = """
import sys
import numpy as np
import subquad
x = np.random.default_rng(0).standard_normal((40, 8), dtype=np.float32)
pattern = subquad.Banded(30)
difference = subquad.attention(x, x, x, pattern) - subquad.reference.attention(x, x, x, pattern)
print(float(np.abs(difference).max()) < 1e-5, "numba" in sys.modules)
"""


def run(code, cache, **environment):
    """Standard output of a fresh process whose kernels are kept in `cache`."""
    env = {**os.environ, "SUBQUAD_CACHE_DIR": str(cache), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture(scope="module")
def warm_cache(tmp_path_factory):
    """A cache directory that one process has filled, compiling."""
    cache = tmp_path_factory.mktemp("cache") / "kernels"
    assert run(ATTEND, cache) == ["True", "False"]
    return cache


def test_importing_the_package_imports_nothing_heavy():
    code = """
import sys, subquad
print(*[name for name in ("numba", "llvmlite", "scipy", "matplotlib", "typer", "torch") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_neither_compiling_nor_a_kept_kernel_brings_numba_in(warm_cache):
    kept = sorted(warm_cache.iterdir())
    assert len(kept) == 1
    assert run(ATTEND, warm_cache) == ["True", "False"]
    assert sorted(warm_cache.iterdir()) == kept


def test_numba_compiles_here_where_no_process_can_be_started(monkeypatch):
    def refuse(*args, **options):
        raise OSError("no more processes")

    monkeypatch.setattr(subprocess, "run", refuse)
    symbol, text = build._llvm_text("peak", "float32")
    assert symbol in text
    assert build._link(build._compile("peak", "float32", "entry"), "entry")


def test_the_cache_is_private(warm_cache):
    assert warm_cache.stat().st_mode & 0o777 == 0o700


def test_an_edited_kernel_never_meets_old_code(warm_cache, tmp_path):
    """The edit is in a function that the entry only reaches through others: what Numba's own cache would miss."""
    shutil.copytree(PACKAGE, tmp_path / "subquad", ignore=shutil.ignore_patterns("__pycache__"))
    cache = shutil.copytree(warm_cache, tmp_path / "kernels")
    assert run(ATTEND, cache, PYTHONPATH=str(tmp_path)) == ["True", "False"]
    source = tmp_path / "subquad" / "kernels" / "softmax.py"
    text = source.read_text()
    edited = text.replace(
        "total = exp2_rows(s_t, n_keys, base)", "total = exp2_rows(s_t, n_keys, base) + splat(k, 1.0)"
    )
    assert edited != text
    source.write_text(edited)
    assert run(ATTEND, cache, PYTHONPATH=str(tmp_path)) == ["False", "False"]
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("module", sorted(path.name for path in (PACKAGE / "kernels").glob("*.py")))
def test_every_kernel_source_is_in_the_digest(monkeypatch, tmp_path, module):
    copy = shutil.copytree(PACKAGE / "kernels", tmp_path / "kernels")
    monkeypatch.setattr(build, "__file__", str(copy / "build.py"))
    before = build.source_digest.__wrapped__()
    (copy / module).write_text((copy / module).read_text() + "\n# edited\n")
    assert build.source_digest.__wrapped__() != before


def inner_loops(assembly):
    """Bodies of the loops that hold no other loop, as lists of instructions."""
    lines = assembly.splitlines()
    labels = {match[1]: at for at, line in enumerate(lines) if (match := re.match(r"(\.LBB\w+):", line))}
    loops = []
    for at, line in enumerate(lines):
        jump = re.search(r"\sj\w+\s+(\.LBB\w+)", line)
        if jump and labels.get(jump[1], at) < at:
            body = lines[labels[jump[1]] : at + 1]
            if not any(re.match(r"\.LBB", other) for other in body[1:]):
                loops.append([text.strip() for text in body if text.startswith("\t") and not text.startswith("\t.")])
    return loops


def is_product(loop):
    """Whether the vector instructions of a loop only load, broadcast, and multiply-add a scalar with two registers."""
    vector = [text.split()[0] for text in loop if "mm" in text]
    fused, broadcasts = (sum(text.startswith(name) for text in vector) for name in ("vfmadd", "vbroadcast"))
    plain = all(text.startswith(("vfmadd", "vbroadcast", "vmov")) for text in vector)
    return plain and fused > 0 and fused == 2 * broadcasts


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_register_tiles_stay_in_registers(dtype):
    """Score and value tiles of six rows: all accumulators in registers, about two instructions a multiply-add."""
    assembly = build._target().emit_assembly(build._module("tiled", dtype, "entry"))
    products = [loop for loop in inner_loops(assembly) if is_product(loop)]
    six_rows = [loop for loop in products if sum("vfmadd" in text for text in loop) % 12 == 0]
    assert len(six_rows) >= 2  # scores and values
    for loop in six_rows:
        assert [text for text in loop if "ymm" in text and "(%rsp)" in text] == []
        assert len(loop) <= 2.2 * sum("vfmadd" in text for text in loop)
