"""The fourteen orders: their notation, their growth against definitions worked out otherwise, how they compare."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys

import numpy as np
import pytest

from subquad import patterns
from subquad.complexity import ORDERS, Order, chart, parse_order, power
from subquad.complexity.orders import inverse_ackermann, log_star

NOTATIONS = [
    "O(1)", "O(α(n))", "O(log log n)", "O(log n)", "O((log n)ᶜ)", "O(nᶜ), c < 1", "O(n)", "O(n log* n)", "O(n log n)",
    "O(n²)", "O(nᶜ)", "Lₙ[α, c]", "O(cⁿ)", "O(n!)",
]  # fmt: skip


def test_the_table_is_that_of_the_textbooks():
    assert [str(order) for order in ORDERS] == NOTATIONS
    assert list(ORDERS) == sorted(ORDERS)
    assert len({order.name for order in ORDERS}) == 14


def test_each_says_what_it_means_where_a_language_model_has_it_and_who_says_so():
    for order in ORDERS:
        assert order.meaning
        assert order.example.endswith(".")
        assert any(str(year) in order.source for year in range(1960, 2027)), order


@pytest.mark.parametrize(
    ("notation", "n", "growth"),
    [
        ("O(1)", 10**9, 1),
        ("O(α(n))", 10**9, 4),
        ("O(log log n)", 65536, 4),
        ("O(log n)", 1024, 10),
        ("O((log n)ᶜ)", 1024, 100),
        ("O(nᶜ), c < 1", 10**4, 100),
        ("O(n)", 12345, 12345),
        ("O(n log* n)", 65536, 4 * 65536),
        ("O(n log n)", 1024, 10240),
        ("O(n²)", 1000, 10**6),
        ("O(nᶜ)", 100, 10**6),
        ("Lₙ[α, c]", math.exp(16), math.exp(math.sqrt(16 * math.log(16)))),
        ("O(cⁿ)", 20, 2**20),
        ("O(n!)", 10, math.factorial(10)),
    ],
)
def test_growth(notation, n, growth):
    order = parse_order(notation)
    assert float(order(n)) == pytest.approx(growth, rel=1e-12)
    assert float(order.log_growth(n)) == pytest.approx(math.log(growth), rel=1e-9, abs=1e-12)


def test_growth_too_large_for_a_float_is_infinite_and_its_logarithm_is_not():
    assert parse_order("O(n!)")(1000) == math.inf
    assert float(parse_order("O(n!)").log_growth(1000)) == pytest.approx(math.log(math.factorial(1000)))
    assert parse_order("O(2^n)")(np.array([10.0, 5000.0])).tolist() == [1024, math.inf]


def test_inverse_ackermann_by_the_function_itself():
    def ackermann(m, n):
        return n + 1 if m == 0 else ackermann(m - 1, 1 if n == 0 else ackermann(m, n - 1))

    values = [ackermann(k, k) for k in range(4)]
    assert values == [1, 3, 7, 61]
    for n in range(1, 100):
        assert inverse_ackermann(n) == next((k for k, value in enumerate(values) if value >= n), 4)


def test_log_star_by_taking_logarithms():
    for n in [1, 2, 3, 4, 5, 16, 17, 1000, 65536, 65537, 10**300]:
        x, times = float(n), 0
        while x > 1:
            x, times = math.log2(x), times + 1
        assert log_star(n) == times, n


@pytest.mark.parametrize(
    ("text", "notation"),
    [
        ("O(n^2)", "O(n²)"), ("n**2", "O(n²)"), ("O(n^1.5)", "O(n^1.5)"),
        ("n sqrt(n)", "O(n^1.5)"), ("O(√n)", "O(n^0.5)"),
        ("O(N log N)", "O(n log n)"), ("n*log(n)", "O(n log n)"), ("n log* n", "O(n log* n)"), ("O(n³)", "O(n³)"),
        ("O(2^n)", "O(cⁿ)"), ("n!", "O(n!)"), ("O(1)", "O(1)"), ("O(log^2 n)", "O((log n)ᶜ)"), ("O(n^1)", "O(n)"),
    ],
)  # fmt: skip
def test_orders_are_read_from_text(text, notation):
    assert str(parse_order(text)) == notation


@pytest.mark.parametrize("text", ["O(m)", "", "O()", "fast", "O(n^x)", "n^-1", "O(n^1e5)"])
def test_what_is_no_order_is_refused(text):
    with pytest.raises(ValueError, match=r"order: .* is none; write one such as O\(n\^1\.5\)"):
        parse_order(text)


def test_what_is_no_text_is_refused():
    with pytest.raises(TypeError, match="got 3"):
        parse_order(3)
    with pytest.raises(ValueError, match="exponent"):
        power(-1)
    with pytest.raises(ValueError, match="n must be above 0"):
        ORDERS[6](0)


def test_orders_compare_hash_and_travel():
    half = power(1.5)
    assert parse_order("O(n)") < parse_order("O(n log n)") < half < parse_order("O(n²)") < power(3) < ORDERS[-1]
    assert half == "O(n^1.5)"
    assert half == Order("O(n^1.5)", (1.5, 0))
    assert {half: 1}["O(n^1.5)"] == 1
    assert pickle.loads(pickle.dumps(half)) == half
    assert half.name == "polynomial"
    assert power(0.5).name == "fractional power"


def test_every_pattern_declares_an_order_that_can_be_drawn():
    made = {"Banded": (3,), "Strided": (3,), "Global": ([0],), "Random": (2,), "BlockSparse": ([[True]], 4)}
    for name in patterns.__all__:
        kind = getattr(patterns, name)
        if isinstance(kind, type) and name in {*made, "Dense", "Causal", "LogSparse"}:
            order = kind(*made.get(name, ())).order
            assert np.isfinite(order(64)), name


def test_the_chart_draws_all_of_them():
    axes = chart()
    assert len(axes.get_lines()) == 14
    names = {text.get_text() for text in axes.texts}
    assert {"1", "log n", "n", "n log n", "n²", "2ⁿ", "n!"} <= names
    assert len(names) == 14
    assert chart(axes) is axes


def test_importing_subquad_leaves_the_heavy_parts_alone():
    code = "import sys, subquad; assert len(subquad.complexity.ORDERS) == 14; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "subquad.complexity.orders" in loaded
    assert not loaded & {"numba", "scipy", "matplotlib", "subquad.complexity.fitting", "subquad.plots", "typer"}
