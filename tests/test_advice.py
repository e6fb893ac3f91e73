"""`advise`: what is counted exactly, what is predicted in its order of magnitude, and what is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse

from subquad import (
    Banded,
    BlockSparse,
    Causal,
    Dense,
    Explicit,
    Global,
    LogSparse,
    Neighborhood,
    Packed,
    Random,
    Strided,
    advise,
    attention,
    bigbird,
)
from subquad.advice import calibration as machine
from subquad.advice.work import NEXT, work_of
from subquad.cli import main
from subquad.complexity.measuring import measure
from subquad.kernels import cache

MADE_UP = machine.Calibration(
    1e-4, 1e-7, 1e-7, 1e-7, 1e-8, (1e-6, 1e-6, 1e-6), (0.0, 1e-8, 2e-8, 4e-8), (4e-5, 4e-4, 6e-3, 3e-2)
)


@pytest.fixture
def made_up(monkeypatch):
    monkeypatch.setattr("subquad.advice.prediction.calibration", lambda *args, **kwargs: MADE_UP)


def test_work_of_tiles():
    work = work_of(Dense().plan(64, 50))
    assert work == (4 * 50, 4, 4, 0, 0, 0)
    assert work_of(Banded(20).plan(32, 32)) == (32 + 32, 2, 2, 0, 0, 0)


def test_work_of_lists():
    every_third = np.zeros((64, 300), bool)
    every_third[:, 9::90] = True  # all rows share their keys, which are no neighbours
    alone = np.zeros((64, 300), bool)
    alone[np.arange(64), (np.arange(64) * 37) % 300] = True
    found = work_of(Explicit(scipy.sparse.csr_array(alone)).plan(64, 300))
    assert found[:3] == (0, 0, 0)
    assert found[3:5] == (64, 64)
    assert 64 * NEXT < found.fetches <= 64


def test_nonnegative_finds_what_made_the_times():
    counts = np.array([[1.0, 5, 2], [10, 1, 3], [2, 2, 2], [7, 0, 1]])
    np.testing.assert_allclose(machine.nonnegative(counts, counts @ [3.0, 0, 2]), [3, 0, 2], atol=1e-12)
    assert min(machine.nonnegative(counts, counts @ [3.0, -0.1, 2])) >= 0


def test_between_and_beyond_measured_lengths():
    assert MADE_UP.dense_seconds(1024) == pytest.approx(6e-3)
    assert MADE_UP.dense_seconds(512) == pytest.approx(np.sqrt(4e-4 * 6e-3))
    assert MADE_UP.dense_seconds(8192) == pytest.approx(16 * 3e-2)


def test_a_prediction_is_the_sum_of_its_parts(made_up):
    found = advise(Banded(20), 64, heads=3, num_threads=1)
    keys = 36 + 52 + 52 + 36
    assert found.seconds == pytest.approx(1e-4 + 3 * (keys * 1e-7 + 4 * 1e-7 + 4 * 1e-6))
    assert found.pairs == Banded(20).nnz(64, 64)
    assert found.scores_bytes == 64 * 64 * 4
    assert found.dense_seconds == pytest.approx(3 * 4e-5)


def test_where_sparse_begins_to_win(made_up):
    found = advise(Banded(64), 4096, num_threads=1)
    length = found.crossover
    assert advise(Banded(64), length, num_threads=1).speedup >= 1
    assert advise(Banded(64), round(length / np.sqrt(2)), num_threads=1).speedup < 1
    assert advise(Packed([10, 20]), 30).crossover is None
    assert advise(Neighborhood((5, 6), 3), 30).crossover is None


def test_more_threads_than_tasks_do_not_help(made_up):
    assert advise(Banded(2), 32, num_threads=8).seconds == advise(Banded(2), 32, num_threads=1).seconds
    assert advise(Dense(), 8192, num_threads=2).seconds < 0.6 * advise(Dense(), 8192, num_threads=1).seconds


def test_it_reads_as_a_sentence(made_up):
    text = str(advise(Banded(64), 4096, heads=2, num_threads=1))
    assert text.startswith("Banded(64) at n = 4,096, 2 heads of d = 64, float32, 1 thread: about ")
    assert "x faster" in text
    assert "slower" in str(advise(Dense(), 16, num_threads=1))


def test_it_is_kept_and_a_damaged_file_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBQUAD_CACHE_DIR", str(tmp_path / "cache"))
    calls = []
    monkeypatch.setattr(machine, "calibrate", lambda d, dtype: calls.append(d) or MADE_UP)
    machine._kept.cache_clear()
    try:
        assert machine.calibration(8, "float32") == MADE_UP
        machine._kept.cache_clear()
        assert machine.calibration(8, "float32") == MADE_UP
        assert calls == [8]
        with cache.opened() as folder:
            (entry,) = folder.entries()
        for content in (b"", b"[]", b"{}", b'["a"]', json.dumps([*MADE_UP[:6], [1.0], [2.0]]).encode(), b"[1e999]"):
            cache.write(entry.name, content)
            machine._kept.cache_clear()
            machine.calibration(8, "float32")
        assert len(calls) == 7
        machine.calibration(8, "float32", anew=True)
        assert len(calls) == 8
    finally:
        machine._kept.cache_clear()


@pytest.mark.parametrize("pattern", [Banded(64), Strided(32), bigbird(32), Random(16), LogSparse(), Causal()], ids=repr)
def test_predictions_are_of_the_right_order(pattern):
    # the machine may be busy now, or have been when it was measured: `docs/examples/advice.py` has the figures
    n = 4096
    query, key, value = np.random.default_rng(0).standard_normal((3, 1, n, 64), dtype=np.float32)
    found = measure(lambda _: attention(query, key, value, pattern, num_threads=1), [n], repeats=5).seconds[0]
    assert 1 / 4 < advise(pattern, n, num_threads=1).seconds / found < 4


@pytest.mark.parametrize(
    ("arguments", "options", "error", "said"),
    [
        ((Banded(2), 0), {}, ValueError, "n must be"),
        ((Banded(2), 8, 0), {}, ValueError, "d must be"),
        ((Banded(2), 8, 8, 0), {}, ValueError, "heads must be"),
        ((3, 8), {}, TypeError, "pattern must be"),
        ((Banded(2), 8), {"dtype": "float16"}, ValueError, "dtype must be float32 or float64; got 'float16'"),
        ((Banded(2), 8), {"dtype": object()}, ValueError, "dtype must be"),
        ((Banded(2), 8), {"recalibrate": 2}, TypeError, "recalibrate must be True or False; got 2"),
        ((Packed([3]), 8), {}, ValueError, "lengths"),
        ((BlockSparse(np.ones((2, 2)), 4), 80), {}, ValueError, "layout"),
    ],
)
def test_bad_input(arguments, options, error, said):
    with pytest.raises(error, match=said):
        advise(*arguments, **options)


def test_the_command(made_up, capsys):
    arguments = ["advise", "Banded(64) | Global([0])", "--n", "4096", "--heads", "2", "--threads", "1"]
    assert main(arguments) == 0
    assert "2 heads of d = 64, float32, 1 thread" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pairs"] == (Banded(64) | Global([0])).nnz(4096, 4096)
    assert found["speedup"] == pytest.approx(found["dense_seconds"] / found["seconds"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Banded(64", "--n", "8"], "Banded"),
        (["Banded(6)", "--n", "x"], "--n"),
        (["Packed([3])", "--n", "8"], "lengths"),
    ],
)
def test_bad_commands(arguments, said, capsys):
    assert main(["advise", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
