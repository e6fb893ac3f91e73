"""The scaling plan: pairs and bytes counted again by hand, and the script that prints it."""

import importlib.util
import json
from pathlib import Path

import pytest

from subquad import Banded, Causal, Dense, Global, LogSparse, Strided
from subquad.dask import scaling_plan

SPEEDS = {"flops_per_second": 1e9, "bytes_per_second": 1e6}


def test_a_window_moves_its_halos_between_workers_alone():
    found = scaling_plan(Banded(10), 1000, 2, chunk=100, d=16, heads=3, **SPEEDS)
    pairs = 3 * (21 * 1000 - 10 * 11)  # 21 keys a row, less 10 + 9 + ... + 1 at either end
    halo = 2 * 10 * 16 * 3 * 4  # keys and values, 10 rows of 16 columns and 3 heads
    assert (found.tasks, found.pairs, found.flops) == (10, pairs, 64 * pairs)
    assert (found.moved_bytes, found.busiest_moved_bytes) == (2 * halo, halo)
    assert found.busiest_flops == found.flops // 2
    assert found.resident_bytes == 4 * 500 * 16 * 3 * 4
    assert found.seconds_computing == 64 * pairs / 2 / 1e9
    assert found.seconds == found.seconds_computing + halo / 1e6
    assert found.efficiency == pytest.approx(64 * pairs / 1e9 / (2 * found.seconds))
    alone = scaling_plan(Banded(10), 1000, 1, chunk=100, d=16, heads=3, **SPEEDS)
    assert (alone.moved_bytes, alone.efficiency, alone.seconds) == (0, 1.0, found.seconds_alone)


def test_rows_that_see_everything_travel_to_the_keys():
    found = scaling_plan(Global([0], columns=False), 1000, 2, chunk=100, d=16, **SPEEDS)
    assert found.pairs == 1000
    assert found.moved_bytes == 5 * (16 + 17) * 4  # for each chunk of the other worker: a row there, its result back


@pytest.mark.parametrize("pattern", [Dense(), Causal(), Strided(7), LogSparse(), Banded((30, 5)) | Global([3, 500])])
@pytest.mark.parametrize(("workers", "chunk"), [(1, 1000), (3, 90), (4, 250)])
def test_all_pairs_are_counted_once(pattern, workers, chunk):
    found = scaling_plan(pattern, 1000, workers, chunk=chunk, d=8, **SPEEDS)
    assert found.pairs == pattern.nnz(1000, 1000)
    assert found.seconds >= found.seconds_alone / workers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "tokens must be an integer >= 1"),
        ({"workers": 0}, "workers must be"),
        ({"chunk": 0}, "chunk must be"),
        ({"flops_per_second": 0}, "flops_per_second must be a positive number; got 0"),
        ({"bytes_per_second": float("inf")}, "bytes_per_second must be a positive number"),
        ({"dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        scaling_plan(**({"pattern": Banded(1), "tokens": 10, "workers": 2, "chunk": 5} | SPEEDS | change))


@pytest.fixture
def script():
    path = Path(__file__).parents[1] / "docs/examples/scaling_plan.py"
    spec = importlib.util.spec_from_file_location("scaling_plan_example", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_prints_a_plan(script, capsys):
    script.main(["--tokens", "100000000", "--workers", "1", "16", "--rate", "50", "--bandwidth", "1000", "--json"])
    alone, many = json.loads(capsys.readouterr().out)
    assert alone["plan"]["pairs"] == many["plan"]["pairs"] == 257 * 10**8 - 128 * 129
    assert many["plan"]["moved_bytes"] == 15 * 2 * 2 * 128 * 64 * 4
    script.main(["--tokens", "4096", "--workers", "1", "2", "--chunk", "1024", "--rows", "2048"])
    assert len(capsys.readouterr().out.splitlines()) == 4
