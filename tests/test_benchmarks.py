"""The asv suite: every benchmark runs, says what it measures, and `asv check` accepts the whole."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ASV_BENCH = Path(__file__).resolve().parents[1] / "asv_bench"
KINDS = ("time_", "track_")


def collect():
    """(class, method name) of each benchmark."""
    sys.path.insert(0, str(ASV_BENCH))
    try:
        package = importlib.import_module("benchmarks")
        modules = [
            importlib.import_module(f"benchmarks.{found.name}") for found in pkgutil.iter_modules(package.__path__)
        ]
    finally:
        sys.path.remove(str(ASV_BENCH))
    return [
        (cls, name)
        for module in modules
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if cls.__module__ == module.__name__
        for name in vars(cls)
        if name.startswith(KINDS)
    ]


def parameter_lists(cls):
    """asv's rule: a single parameter may come as a plain list of values."""
    params = getattr(cls, "params", ())
    return params if not params or isinstance(params[0], list | tuple) else [params]


BENCHMARKS = collect()


@pytest.mark.parametrize(("cls", "name"), BENCHMARKS, ids=lambda value: getattr(value, "__qualname__", value))
def test_runs_at_its_smallest_parameters(cls, name, monkeypatch):
    monkeypatch.setattr("benchmarks.startup.Import.pairs", 1)
    monkeypatch.setattr("benchmarks.scaling.SECONDS", 0)
    monkeypatch.setattr("benchmarks.scaling.ROUNDS", 1)
    benchmark = cls()
    parameters = [values[0] for values in parameter_lists(cls)]
    assert len(parameters) == len(getattr(cls, "param_names", ()))
    if hasattr(benchmark, "setup"):
        benchmark.setup(*parameters)
    value = getattr(benchmark, name)(*parameters)
    assert (math.isfinite(value) and value >= 0) if name.startswith("track_") else value is None


@pytest.mark.parametrize(("cls", "name"), BENCHMARKS, ids=lambda value: getattr(value, "__qualname__", value))
def test_says_its_version_and_unit(cls, name):
    """asv would otherwise drop all results when a comment changes, and label the graph "unit"."""
    assert cls.version
    if name.startswith("track_"):
        assert getattr(cls, "unit", None) or getattr(cls, name).unit


def test_suite_is_small_enough_to_run_on_many_commits():
    assert sum(math.prod(len(values) for values in parameter_lists(cls)) for cls, _ in BENCHMARKS) <= 150


def test_asv_check():
    pytest.importorskip("asv", reason='asv is not installed: pip install "subquad[bench]"')
    command = [sys.executable, "-m", "asv", "check", "-E", f"existing:{sys.executable}"]
    check = subprocess.run(command, cwd=ASV_BENCH, capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout + check.stderr
