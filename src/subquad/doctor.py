"""Whether this installation computes rightly on this machine, and what it chose: behind ``subquad doctor``."""

from __future__ import annotations

import itertools
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import numpy as np

from subquad.accuracy import tolerance

#: What bridges and extras use; shown where they are installed.
PACKAGES = ("numpy", "numba", "llvmlite", "scipy", "ml_dtypes", "torch", "transformers", "dask", "zarr", "matplotlib")
_ROWS, _HEADS, _D = 150, 2, 24  # rows that fill no tile, columns that fill no vector
_DTYPES = "float32", "float64"
_KERNELS = "tiled", "gathered", "tiled_backward", "gathered_backward"
_GRADIENT = 16  # roundings of a gradient, in those of an output: it sums over rows as well, of products of three


@dataclass
class Report:
    """What was found. Nothing is wrong where `problems` is empty; each says what, and the way out."""

    versions: dict[str, str]
    processor: dict[str, Any]
    threads: dict[str, Any]
    cache: dict[str, Any]
    checks: list[dict[str, Any]] = field(default_factory=list)
    loading_seconds: float = 0.0  # of kernels: compiled where the cache has none, which happens once
    testing_seconds: float = 0.0
    seconds: float = 0.0
    problems: list[dict[str, str]] = field(default_factory=list)

    def wrong(self, what: str, way_out: str) -> None:
        self.problems.append({"what": what, "way_out": way_out})


def examine(progress: Callable[[str], None] = lambda what: None) -> Report:
    """Look at versions, processor, threads and cache, and compare kernels with the float64 reference.

    The test takes a second. The first time, kernels have yet to be compiled, which takes half a minute more; `progress`
    is told which one is.
    """
    began = time.perf_counter()
    report = Report(_versions(), _processor(), {}, {})
    _look_at_versions(report)
    _look_at_processor(report)
    _look_at_threads(report)
    _look_at_cache(report)
    if not any("Numba" in problem["what"] for problem in report.problems):
        _test_kernels(report, progress)
    report.seconds = round(time.perf_counter() - began, 2)
    return report


def _versions() -> dict[str, str]:
    import subquad

    found = {"subquad": subquad.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _look_at_versions(report: Report) -> None:
    try:
        needed = metadata.requires("subquad") or []
    except metadata.PackageNotFoundError:  # run from its sources
        needed = []
    least = {match[1]: match[2] for text in needed if (match := re.match(r"(numpy|numba)>=([\d.]+)$", text))}
    for package, minimum in ({"numpy": "1.26", "numba": "0.62"} | least).items():
        found = report.versions.get(package)
        if found is None or _numbers(found) < _numbers(minimum):
            name = {"numpy": "NumPy", "numba": "Numba"}[package]
            report.wrong(f"{name} {minimum} is needed, found {found}", f'pip install "{package}>={minimum}"')


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _processor() -> dict[str, Any]:
    """What LLVM makes code for. A vector of the kernels' own is 64 bytes; LLVM cuts it into those of the processor."""
    try:
        import llvmlite.binding as llvm
    except ImportError:
        return {"architecture": platform.machine()}
    features = llvm.get_host_cpu_features()
    widths = (("avx512f", 64), ("avx", 32), ("sse2", 16), ("neon", 16))
    width = next((n_bytes for name, n_bytes in widths if features.get(name)), 16)
    known = ("avx512f", "avx512bf16", "avx2", "fma", "f16c", "neon", "sve", "fullfp16")
    return {
        "architecture": platform.machine(),
        "name": llvm.get_host_cpu_name(),
        "features": [name for name in known if features.get(name)],
        "vector_bytes": width,
        "cores": os.cpu_count(),
    }


def _look_at_processor(report: Report) -> None:
    x86 = report.processor["architecture"] in ("x86_64", "AMD64")
    if x86 and "fma" not in report.processor.get("features", ["fma"]):
        report.wrong(
            "this processor has no fused multiply-add (FMA3), which kernels are made of",
            "use a machine from 2013 or later; in a virtual machine, pass the host's processor on",
        )


def _look_at_threads(report: Report) -> None:
    from subquad.threads import thread_count

    wanted = os.environ.get("SUBQUAD_NUM_THREADS") or None
    try:
        report.threads = {"used": thread_count(None), "SUBQUAD_NUM_THREADS": wanted}
    except ValueError as error:
        report.threads = {"used": None, "SUBQUAD_NUM_THREADS": wanted}
        report.wrong(str(error), "unset SUBQUAD_NUM_THREADS, or set it to a number")


def _look_at_cache(report: Report) -> None:
    from subquad.kernels import build, cache

    try:
        with cache.opened() as folder:
            entries, key = folder.entries(), build.source_digest()
            stale = sum(entry.key != key or not entry.name.endswith(".o") for entry in entries)
            report.cache = {"directory": folder.path, "kernels": len(entries) - stale, "stale": stale}
    except OSError as error:
        report.cache = {"directory": None, "problem": str(error)}
        if os.environ.get("SUBQUAD_CACHE") != "0":
            report.wrong(
                f"no kernels are kept between processes: {error}",
                "set SUBQUAD_CACHE_DIR to the absolute path of a directory that you alone may write to (mode 700)",
            )


# --- the self-test ------------------------------------------------------------------------------------------------


def _test_kernels(report: Report, progress: Callable[[str], None]) -> None:
    from subquad import kernels

    began = time.perf_counter()
    for number, (name, dtype) in enumerate(itertools.product(_KERNELS, _DTYPES), 1):
        progress(f"kernel {number} of {len(_KERNELS) * len(_DTYPES)}: {name}, {dtype}")
        try:
            kernels.load(name, dtype)
        except Exception as error:  # whatever keeps a kernel from being had is what this is to find
            report.wrong(
                f"the kernel {name} for {dtype} cannot be had: {type(error).__name__}: {error}",
                "run: subquad cache --clear; if it stays so, install numba and llvmlite anew",
            )
            return
    loaded = time.perf_counter()
    report.loading_seconds = round(loaded - began, 2)
    for dtype in _DTYPES:
        for check in _compared(dtype, report.threads["used"] or 1):
            report.checks.append(check)
            if not check["correct"]:
                report.wrong(
                    f"{check['what']} of {check['pattern']} in {dtype} is off by {check['difference']:.1e}, "
                    f"allowed are {check['tolerance']:.1e}",
                    "run: subquad cache --clear, then subquad doctor again; if it stays so, please report it",
                )
    report.testing_seconds = round(time.perf_counter() - loaded, 2)


def _compared(dtype: str, threads: int) -> Iterator[dict[str, Any]]:
    """Forward and backward of patterns that take every way to memory, against the dense float64 reference."""
    from subquad import attention, attention_backward, reference

    rng = np.random.default_rng(0)
    q, k, v, g = (rng.standard_normal((_HEADS, _ROWS, _D)).astype(dtype) for _ in range(4))
    score = float(np.abs(q.astype(float) @ k.astype(float).swapaxes(-1, -2)).max()) * _D**-0.5
    rounding = tolerance(dtype, _ROWS, _D, score, float(np.abs(v).max()))
    for pattern in _patterns():
        out, lse = attention(q, k, v, pattern, return_lse=True, num_threads=threads)
        wanted, sums = reference.attention(q, k, v, pattern, return_lse=True)
        yield _check("the output", pattern, dtype, [(out, wanted), (lse, sums)], rounding)
        grads = attention_backward(g, q, k, v, out, lse, pattern, num_threads=threads)
        right = reference.attention_backward(g, q, k, v, wanted, sums, pattern)
        largest = max(float(np.abs(grad).max()) for grad in right)
        yield _check("the gradient", pattern, dtype, zip(grads, right, strict=True), _GRADIENT * rounding * largest)


def _patterns() -> list[Any]:
    from subquad import Banded, Causal, Random, Strided, bigbird, longformer

    return [Causal(), Banded(9), longformer(8, 3), Strided(7), Random(5), bigbird(16)]


def _check(what: str, pattern: Any, dtype: str, pairs: Any, allowed: float) -> dict[str, Any]:
    differences = [float(np.abs(np.subtract(found, wanted)).max()) for found, wanted in pairs]
    worst = float(np.max(differences))  # hands a NaN on
    return {
        "what": what,
        "pattern": repr(pattern),
        "dtype": dtype,
        "difference": worst,
        "tolerance": allowed,
        "correct": worst <= allowed,
    }


def platform_text() -> str:
    """System and interpreter, in a line."""
    return f"{platform.system()} {platform.release()}, {sys.implementation.name} {platform.python_version()}"
