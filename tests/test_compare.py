"""The comparison: what it measures is right, what it prints says what was measured."""

from __future__ import annotations

import dataclasses
import io
import json
import math

import numpy as np
import pytest
from support import inputs, mask_of, oracle, oracle_scores, oracle_softmax

import subquad
from subquad import Banded, BlockSparse, Causal, Dense, Random, Strided, compare, compare_report, dense
from subquad.accuracy import measure_accuracy, sample_rows, tolerance
from subquad.compare import DENSE, Setting
from subquad.complexity.memory import MemoryUse

PATTERNS = {"Banded(9)": Banded(9), "Strided(7)": Strided(7), "Causal() - Banded(1)": Causal() - Banded(1)}


@pytest.fixture
def in_process(monkeypatch):
    """No child processes: they have their own tests, and take seconds."""
    monkeypatch.setattr(compare, "call_in_child", lambda function, *args, env: function(*args))
    monkeypatch.setattr(compare, "dense_memory", lambda n, d, heads, dtype: MemoryUse(4 * n * n + 1000, exact=True))
    monkeypatch.setattr(compare, "sparse_memory", lambda pattern, n, *_: MemoryUse(100 * n, exact=True))


def setting(**changes):
    return Setting(**{"d": 16, "num_threads": 1, "repeat_seconds": 0.0} | changes)


@pytest.fixture
def comparison(in_process):
    return compare.compare(PATTERNS, [200, 100, 100], setting(heads=2))


# --- accuracy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [*PATTERNS.values(), Dense(), Random(5, 3), Causal() - Causal()], ids=repr)
@pytest.mark.parametrize("chunk", [40, 10**6])
def test_difference_and_mass_are_those_of_the_oracle(rng, monkeypatch, pattern, chunk):
    monkeypatch.setattr("subquad.accuracy.CHUNK_SCORES", chunk)
    n = 41
    query, key, value = inputs(rng, n, n, 16, leading=(2,))
    expected, _ = oracle(query, key, value, pattern)
    shift = rng.standard_normal(expected.shape) * 1e-3
    rows = np.array([0, 3, 17, 40])
    found = measure_accuracy(query, key, value, expected + shift, pattern, rows)
    assert found.max_difference == pytest.approx(np.abs(shift[:, rows]).max(), abs=1e-12)
    weights, _ = oracle_softmax(oracle_scores(query, key, Dense()))
    assert found.mass == pytest.approx((weights * mask_of(pattern, n, n))[:, rows].sum(axis=2).mean())
    assert not found.correct


def test_rounding_is_correct_and_a_lost_key_or_a_nan_is_not(rng):
    n = 300
    query, key, value = inputs(rng, n, n, 64, leading=(1,))
    rows, pattern = np.arange(n), Causal()
    out = oracle(query, key, value, pattern)[0].astype(np.float32)
    assert measure_accuracy(query, key, value, out, pattern, rows).correct
    without_one = oracle(query, key, value, pattern - Strided(n) | Banded(0))[0]
    lost = oracle(query, key, value, Causal() - Banded(0))[0].astype(np.float32)
    assert measure_accuracy(query, key, value, without_one.astype(np.float32), pattern, rows).correct
    assert not measure_accuracy(query, key, value, lost, pattern, rows).correct
    out[0, 7, 3] = np.nan
    broken = measure_accuracy(query, key, value, out, pattern, rows)
    assert math.isnan(broken.max_difference)
    assert not broken.correct


def test_the_tolerance_grows_with_what_rounding_grows_with():
    base = tolerance("float32", 1000, 64, 5.0, 1.0)
    assert tolerance("float64", 1000, 64, 5.0, 1.0) < base * 1e-8
    assert all(
        tolerance("float32", *args) > base
        for args in [(4000, 64, 5.0, 1.0), (1000, 256, 5.0, 1.0), (1000, 64, 9.0, 1.0), (1000, 64, 5.0, 2.0)]
    )


@pytest.mark.parametrize(("n", "limit"), [(1, 64), (64, 64), (65, 64), (10_000, 64)])
def test_a_sample_of_rows_has_both_ends(n, limit):
    rows = sample_rows(n, limit, seed=0)
    assert rows.size == min(n, limit)
    assert (np.diff(rows) > 0).all()
    assert rows[0] == 0
    assert rows[-1] == n - 1


def test_dense_numpy_is_attention(rng):
    query, key, value = inputs(rng, 33, 33, 16, leading=(3,))
    expected, _ = oracle(query, key, value, Dense())
    out = np.full_like(value, np.nan)
    assert dense.attention(query, key, value, out=out) is out
    np.testing.assert_allclose(out, expected, atol=1e-5)
    np.testing.assert_array_equal(dense.attention(query, key, value), out)


# --- measuring --------------------------------------------------------------------------------------------------------


def test_rows_hold_what_they_say(comparison):
    assert comparison.patterns == [DENSE, *PATTERNS]
    for name in comparison.patterns:
        assert [row.n for row in comparison.of(name)] == [100, 200]
    for row in comparison.rows:
        pattern = PATTERNS.get(row.pattern, Dense())
        dense_row = next(other for other in comparison.of(DENSE) if other.n == row.n)
        assert row.pairs == mask_of(pattern, row.n, row.n).sum()
        assert row.share == row.pairs / row.n**2
        assert row.scores_bytes == 4 * row.n**2
        assert row.speedup == dense_row.seconds / row.seconds
        assert row.seconds > 0
        assert row.order == str(pattern.order)
        assert not row.predicted
        if pattern != Dense():
            assert row.correct
            assert 0 < row.max_difference < row.tolerance < 1e-4
            assert row.rows_checked == row.n
            assert 0 < row.mass < 1
    assert not comparison.notes
    assert not comparison.wrong


def test_the_mass_of_everything_is_one(in_process):
    row = compare.compare({"all": Dense()}, [50], setting()).of("all")[0]
    assert row.mass == pytest.approx(1)


def test_dense_takes_one_thread_where_that_is_faster(in_process, monkeypatch):
    times = {"1": 0.5, "3": 0.75}
    monkeypatch.setattr(compare, "call_in_child", lambda function, *args, env: times[env["OPENBLAS_NUM_THREADS"]])
    monkeypatch.setattr(compare, "ONE_THREAD_N", 100)
    result = compare.compare({"Banded(3)": Banded(3)}, [100, 101], setting(num_threads=3))
    assert [row.seconds for row in result.of(DENSE)] == [0.5, 0.75]


def test_dense_over_the_budget_is_predicted_and_never_run(in_process, monkeypatch):
    run = []
    measure = compare._measure_dense
    monkeypatch.setattr(
        compare, "_measure_dense", lambda inputs, s: run.append(inputs[0].shape[1]) or measure(inputs, s)
    )
    budget = 4 * 200**2
    result = compare.compare({"Banded(3)": Banded(3)}, [100, 200, 201, 400], setting(memory_budget=budget))
    assert run == [100, 200]
    base, *predicted = result.of(DENSE)[1:]
    assert [row.predicted for row in result.of(DENSE)] == [False, False, True, True]
    assert [row.predicted for row in result.of("Banded(3)")] == [False, False, True, True]
    for row in predicted:
        assert row.seconds == pytest.approx(base.seconds * (row.n / 200) ** 2)
        assert row.extra_bytes == pytest.approx(base.extra_bytes * (row.n / 200) ** 2, abs=1)
    assert "~ predicted by n² from dense at n = 200" in result.notes[0]


def test_dense_is_measured_at_a_smaller_n_where_the_budget_allows_none_of_those_asked_for(in_process):
    result = compare.compare({"Banded(3)": Banded(3)}, [400], setting(memory_budget=4 * 150**2))
    assert [(row.n, row.predicted) for row in result.of(DENSE)] == [(150, False), (400, True)]
    assert [row.n for row in result.of("Banded(3)")] == [400]


def test_rows_are_sampled_where_the_oracle_would_take_too_long(in_process, monkeypatch):
    monkeypatch.setattr(compare, "ORACLE_SCORES", 1 << 14)
    result = compare.compare({"Banded(3)": Banded(3)}, [128, 200, 1000], setting())
    assert [row.rows_checked for row in result.of("Banded(3)")] == [128, 81, 64]
    assert result.notes == [
        "Difference and mass are of every row up to n = 128, of a random sample of at least 64 rows beyond."
    ]


def test_a_short_text_is_repeated_and_a_note_says_so(in_process):
    result = compare.compare({"Banded(3)": Banded(3)}, [100], setting(), text=b"to be or not to be")
    assert result.notes == ["The text has 18 bytes and is repeated to reach n = 100."]


def test_progress_is_told_before_each_row(in_process):
    told = []
    result = compare.compare(PATTERNS, [64, 128], setting(), progress=lambda *args: told.append(args))
    assert [done for done, _, _ in told] == list(range(8))
    assert {total for _, total, _ in told} == {len(result.rows)} == {8}
    assert told[0][2] == f"{DENSE}, n = 64"
    assert told[-1][2] == "Causal() - Banded(1), n = 128"


@pytest.mark.parametrize(
    ("changes", "ns", "patterns", "error", "message"),
    [
        ({}, [], PATTERNS, ValueError, "n: must be at least 1"),
        ({}, [0, 5], PATTERNS, ValueError, "n: must be at least 1, got 0"),
        ({}, [100], {}, ValueError, "patterns: give at least one"),
        ({}, [100], {"b": BlockSparse([[True]], 64)}, ValueError, "layout"),
        ({}, [10**13], PATTERNS, MemoryError, "n: 10,000,000,000,000 tokens .* give a smaller n"),
        ({"heads": 0}, [100], PATTERNS, ValueError, "heads: must be at least 1, got 0"),
        ({"num_threads": 0}, [100], PATTERNS, ValueError, "num_threads: must be at least 1, got 0"),
        ({"memory_budget": 1000}, [100], PATTERNS, ValueError, "memory_budget: must be at least 65,536, got 1,000"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(monkeypatch, changes, ns, patterns, error, message):
    monkeypatch.setattr(compare, "_measure_dense", lambda *args: pytest.fail("measured"))
    with pytest.raises(error, match=message):
        compare.compare(patterns, ns, setting(**changes))


# --- reporting --------------------------------------------------------------------------------------------------------


def table(comparison):
    file = io.StringIO()
    compare_report.print_table(comparison, file)
    return file.getvalue()


def test_the_table_is_whole_and_plain(comparison):
    long = "Banded(256) | Global(range(16)) - Strided(1000) & Causal()"
    rows = [*comparison.rows, dataclasses.replace(comparison.rows[-1], pattern=long, pairs=123_456_789_012)]
    text = table(dataclasses.replace(comparison, rows=rows, notes=["A note. " * 40]))
    assert long in text
    assert "123,456,789,012" in text
    assert "…" not in text
    assert "\x1b" not in text
    *_, note, last = text.splitlines()
    assert note == "A note. " * 40
    assert last == compare_report.headline(comparison)


def test_predicted_cells_are_marked(in_process):
    text = table(compare.compare({"Banded(3)": Banded(3)}, [100, 300], setting(memory_budget=4 * 150**2)))
    dense_row, sparse_row = (line.split() for line in text.splitlines() if "  300  " in line)
    assert sum(cell.startswith("~") for cell in dense_row) == 2
    assert sum(cell.startswith("~") for cell in sparse_row) == 1
    assert not any("~" in line for line in text.splitlines() if "  100  " in line)


def test_the_headline_says_what_was_found(comparison):
    rows = [
        dataclasses.replace(comparison.of(DENSE)[0], n=16384, seconds=0.945, extra_bytes=1_070_000_000),
        dataclasses.replace(
            comparison.of("Banded(9)")[0],
            n=16384,
            share=0.0311,
            seconds=0.045,
            speedup=21.0,
            extra_bytes=400_000,
            mass=0.83,
        ),
        dataclasses.replace(comparison.of("Strided(7)")[0], n=16384, seconds=0.045, mass=0.4),
    ]
    found = compare_report.headline(dataclasses.replace(comparison, rows=rows))
    assert found == (
        "At n = 16,384 Banded(9) attends 3.1 % of the pairs in 45 ms: 21 x faster than dense, "
        "<0.5 MB instead of 1.07 GB, and keeps 83 % of the softmax mass."
    )
    rows[1] = dataclasses.replace(rows[1], speedup=0.5, predicted=True)
    found = compare_report.headline(dataclasses.replace(comparison, rows=rows))
    assert "about 2 x slower than dense would be" in found


def test_a_wrong_result_is_the_headline(in_process, monkeypatch):
    attention = subquad.attention

    def broken(query, key, value, pattern, *, out, num_threads):
        attention(query, key, value, pattern, out=out, num_threads=num_threads)
        out[0, 5] += 1e-3

    monkeypatch.setattr(subquad, "attention", broken)
    result = compare.compare(PATTERNS, [100], setting())
    assert [row.pattern for row in result.wrong] == list(PATTERNS)
    assert compare_report.headline(result).startswith("WRONG: Banded(9) at n = 100 differs")
    assert table(result).count("WRONG") == len(PATTERNS) + 1


def test_json_round_trips_and_holds_no_nan(comparison):
    rows = [*comparison.rows, dataclasses.replace(comparison.rows[-1], max_difference=math.nan, correct=False)]
    broken = dataclasses.replace(comparison, rows=rows)
    content = json.loads(compare_report.as_json(broken), parse_constant=lambda name: pytest.fail(name))
    assert [row["pattern"] for row in content["rows"]] == [row.pattern for row in rows]
    assert content["rows"][1]["seconds"] == rows[1].seconds
    assert content["rows"][-1]["max_difference"] is None
    assert content["rows"][-1]["correct"] is False
    assert content["setting"]["heads"] == 2
    assert content["summary"].startswith("WRONG")


@pytest.mark.parametrize(("format", "magic"), [("png", b"\x89PNG\r\n"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_a_picture_of_measured_and_predicted_lines(in_process, format, magic):
    pytest.importorskip("matplotlib")
    result = compare.compare(PATTERNS, [100, 200, 400], setting(memory_budget=4 * 200**2))
    content = compare_report.draw(result, format)
    assert content.startswith(magic)
    assert len(content) > 5000


def test_the_lines_of_the_picture(in_process):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    result = compare.compare({"Banded(3)": Banded(3)}, [100, 200, 400], setting(memory_budget=4 * 200**2))
    taken = {100: 0, 200: 20_000, 400: 4_000_000}
    rows = [row if row.pattern == DENSE else dataclasses.replace(row, extra_bytes=taken[row.n]) for row in result.rows]
    axes = Figure().subplots()
    compare_report._draw_lines(axes, dataclasses.replace(result, rows=rows), "extra_bytes", 1.0, "memory")
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines) == [DENSE, f"{DENSE}, predicted", "Banded(3)"]
    assert list(lines[DENSE].get_xdata()) == [100, 200]
    assert list(lines[f"{DENSE}, predicted"].get_xdata()) == [200, 400]
    assert list(lines[f"{DENSE}, predicted"].get_ydata()) == [500_000, result.of(DENSE)[2].extra_bytes]
    assert lines[f"{DENSE}, predicted"].get_linestyle() == "--"
    assert list(lines["Banded(3)"].get_ydata()) == [500_000, 500_000, 4_000_000]
    assert axes.get_xscale() == axes.get_yscale() == "log"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_900, "1 MB"), (1.07e9, "1.07 GB"), (2e15, "2,000 TB")],
)
def test_bytes_for_people(size, text):
    assert compare_report.format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.2e-7, "0.42 µs"), (0.0004, "400 µs"), (0.9999, "1 s"), (0.0451, "45.1 ms"), (1234.0, "1,234 s")],
)
def test_seconds_for_people(seconds, text):
    assert compare_report.format_seconds(seconds) == text
