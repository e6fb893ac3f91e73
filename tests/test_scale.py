"""`subquad scale`, `orders` and `heatmap`: what they print, draw and refuse; and the bands of exponents."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from support import mask_of

from subquad import Banded, Causal, Global, cli
from subquad.commands import heatmap
from subquad.complexity import ORDERS, scaling
from subquad.complexity.scaling import Setting, scale
from subquad.expression import parse_pattern

ROOT = Path(__file__).resolve().parents[1]
SIZES = [256, 362, 512, 724, 1024]
SMALL = ["--n", ",".join(map(str, SIZES)), "--d", "8", "--budget", "60"]


@pytest.fixture
def grows_like(monkeypatch):
    """Times that are a function of n instead of measured."""

    def set_to(seconds):
        def times(pattern, sizes, setting, progress):
            progress(0, len(sizes), "n = 1")
            return scaling.Measurement(np.array(sizes, float), np.array([seconds(n) for n in sizes]))

        monkeypatch.setattr(scaling, "_times", times)

    return set_to


# --- scale ------------------------------------------------------------------------------------------------------------


def test_measured_and_counted_against_declared():
    told = []
    found = scale(
        {"window": Banded(8), "past": Causal()},
        [256, 512, 1024, 2048, 4096],
        Setting(d=16, budget=60, repeats=3),
        progress=lambda *args: told.append(args),
    )
    window, past = found
    assert window.pairs.y.tolist() == [int(mask_of(Banded(8), n, n).sum()) for n in (256, 512, 1024)] + [
        n * 17 - 72 for n in (2048, 4096)
    ]
    assert window.pairs.exponent == pytest.approx(1, abs=0.05)
    assert past.pairs.exponent == pytest.approx(2, abs=0.05)
    assert not window.broken
    assert not past.broken
    assert past.time.y[-1] > past.time.y[0]
    assert told[0][0] == 0
    assert told[-1][0] < told[-1][1]
    assert "past" in told[-1][2]


def test_orders_that_hold_end_with_0(grows_like, capsys, tmp_path):
    grows_like(lambda n: 1e-6 * n)
    report, plot = tmp_path / "scale.json", tmp_path / "scale.png"
    args = ["scale", *SMALL, "--pattern", "Banded(2); Global([0])", "--json", str(report), "--plot", str(plot)]
    assert cli.main(args) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.splitlines()[-1] == "All 2 declared orders hold."
    rows = json.loads(report.read_text())["rows"]
    assert [(row["pattern"], row["declared"], row["holds"]) for row in rows] == [
        ("Banded(2)", "O(n)", True),
        ("Global([0])", "O(n)", True),
    ]
    assert rows[0]["pairs"]["y"] == [5 * n - 6 for n in SIZES]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_an_order_that_does_not_hold_ends_with_1(grows_like, capsys):
    grows_like(lambda n: 1e-9 * n * n)
    assert cli.main(["scale", *SMALL, "--pattern", "Banded(2)"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("Banded(2) does not hold O(n): time grows like n^2.00 (95% interval 2.00 to 2.00)")


def test_pairs_are_held_to_the_order_too(grows_like, capsys):
    grows_like(lambda n: 1e-6 * n)
    assert cli.main(["scale", *SMALL, "--pattern", "Causal()", "--order", "O(n log n)", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["rows"][0]["broken"] == ["pairs"]


def test_memory_is_held_to_the_order_too(grows_like, monkeypatch, capsys):
    grows_like(lambda n: 1e-6 * n)
    monkeypatch.setattr(scaling, "extra_memory", lambda pattern, n, *args, **kwargs: 100 * n * n)
    assert cli.main(["scale", *SMALL, "--pattern", "Banded(2)", "--memory"]) == 1
    output = capsys.readouterr().out
    assert "memory DO NOT HOLD" in output
    monkeypatch.setattr(scaling, "extra_memory", lambda pattern, n, *args, **kwargs: 7)
    assert cli.main(["scale", *SMALL, "--pattern", "Banded(2)", "--memory"]) == 0


def test_the_defaults_can_be_parsed():
    from subquad.commands.scale import DEFAULT_N, DEFAULT_PATTERNS, QUICK_N

    assert all(parse_pattern(text).nnz(1024, 1024) for text in DEFAULT_PATTERNS)
    assert all(len(sizes[0].split(",")) >= 7 for sizes in (DEFAULT_N, QUICK_N))


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--n", "64,128"], "at least 5 different sizes"),
        (["--n", "100,110,120,130,140"], "the largest 4 times the smallest"),
        (["--n", "0,1,2,3,4,5"], "--n"),
        (["--pattern", "Bandit(3)"], "did you mean Banded?"),
        (["--pattern", "Global([5000])"], "tokens must be below n_k"),
        (["--pattern", "Banded(1) - Banded(2)", *SMALL], "allows no pair"),
        (["--order", "O(m)"], "write one such as O(n^1.5)"),
        (["--tolerance", "-1"], "--tolerance: must be a number above 0; got '-1'"),
        (["--budget", "0"], "--budget: "),
        (["--threads", "0"], "--threads: "),
        (["--plot", "scale.doc"], ".png"),
        (["--json", "no-such-folder/scale.json"], "cannot be written"),
        (["--n", "1,2,3,4,5,99999999999999"], "Give a smaller n."),
    ],
)
def test_bad_input_is_one_line(capsys, monkeypatch, tmp_path, args, word):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scaling, "_times", lambda *args: pytest.fail("the long work began"))
    assert cli.main(["scale", *args]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("subquad: ")
    assert output.err.count("\n") == 1
    assert word in output.err


# --- orders -----------------------------------------------------------------------------------------------------------


def test_the_table_of_orders(capsys, tmp_path):
    plot = tmp_path / "orders.svg"
    assert cli.main(["orders", "--n", "65536", "--plot", str(plot)]) == 0
    output = capsys.readouterr().out
    assert all(str(order) in output for order in ORDERS)
    assert "1,048,576" in output  # n log n
    assert "10^19,728" in output  # 2^65536
    assert plot.read_bytes().startswith(b"<?xml")


def test_orders_as_json(capsys):
    assert cli.main(["orders", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["order"] for row in rows] == [str(order) for order in ORDERS]
    assert all(row["source"] and row["example"] and row["meaning"] for row in rows)
    assert rows[9]["log10_growth"] == pytest.approx(np.log10(1024**2))
    assert cli.main(["orders", "--n", "zero"]) == 2


# --- heatmap ----------------------------------------------------------------------------------------------------------


def test_a_small_pattern_in_the_terminal_is_its_mask(capsys):
    assert cli.main(["heatmap", "Banded(1) | Global([0])", "--n", "5", "--keys", "7"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    mask = mask_of(Banded(1) | Global([0]), 5, 7)
    assert first == f"Banded(1) | Global((0,)): 5 x 7, O(n), {mask.sum()} pairs"
    assert [[line[1 + 2 * j] == "█" for j in range(7)] for line in lines] == mask.tolist()


def test_a_large_pattern_fits_the_terminal(capsys):
    assert cli.main(["heatmap", "Banded(10)", "--n", "1000000"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 36
    assert {len(line) for line in lines} == {74}
    assert all(lines[u][1 + 2 * u] != " " for u in range(36))


def test_a_terminal_of_letters_alone(monkeypatch):
    monkeypatch.setattr(heatmap, "_can_print", lambda text: False)
    assert heatmap._text(Causal(), 2, 2).splitlines()[1:] == ["|##  |", "|####|"]


def test_a_picture_of_a_million_tokens(tmp_path):
    plot = tmp_path / "map.png"
    assert cli.main(["heatmap", "longformer(256, range(16))", "--n", "1000000", "--plot", str(plot)]) == 0
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["Bandit(3)"], "did you mean Banded?"),
        (["Banded(3)", "--n", "0"], "--n: must be a whole number of at least 1"),
        (["Global([9])", "--n", "5"], "tokens must be below n_k = 5"),
        (["Banded(3)", "--plot", "map.txt"], "must end in .png"),
        ([], "EXPRESSION"),
    ],
)
def test_bad_heatmaps_are_one_line(capsys, args, word):
    assert cli.main(["heatmap", *args]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1
    assert word in output.err


# --- bands -----------------------------------------------------------------------------------------------------------


def test_exponents_that_left_their_band_end_with_1(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "asv_bench")
    import check_exponents

    def measured(kind, pattern):
        return {"dense": 2.0, "causal": 1.9}.get(pattern, 1.0)

    assert check_exponents.main([], measured) == 0
    assert capsys.readouterr().out.count("ok") == sum(map(len, check_exponents.BANDS.values()))
    assert check_exponents.main(["--only", "exponent_n"], lambda kind, pattern: 2.0) == 1
    assert "4 left their bands" in capsys.readouterr().out
    for bands in check_exponents.BANDS.values():
        assert all(band.high - band.low <= 1.2 for band in bands.values())
    assert set(check_exponents.TRACKED) == set(check_exponents.BANDS)
    assert "benchmarks.scaling" in sys.modules
