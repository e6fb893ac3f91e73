"""Fits: the right order on planted curves, no false certainty, and one clear answer to what cannot be told."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import nnls

from subquad.complexity import fit, parse_order
from subquad.complexity.least_squares import aicc, one_term, two_terms

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs" / "examples"))
import planted_orders
from planted_orders import HALF_POWERS, NAMED

N = np.round(np.geomspace(64, 4096, 13))


def noisy(y, seed=0, noise=0.05):
    return y * (1 + noise * np.random.default_rng(seed).standard_normal(len(y)))


# --- planted curves ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted():
    """1,000 trials: each class of HALF_POWERS, and n log n, the same number of times."""
    classes = [*HALF_POWERS, "O(n log n)"]
    return {notation: planted_orders.rates(notation, 125, 13) for notation in classes}


def test_the_right_class_in_95_of_100_trials(planted):
    for notation, rates in planted.items():
        assert rates.right >= 0.95, notation
    assert np.mean([rates.right for rates in planted.values()]) >= 0.98


def test_hardly_ever_confident_and_wrong(planted):
    assert np.mean([rates.confidently_wrong for rates in planted.values()]) <= 0.01


def test_the_interval_covers_the_exponent(planted):
    assert all(planted[notation].covered >= 0.9 for notation in HALF_POWERS)


def test_better_than_big_o_on_the_same_data(planted):
    """Also where only classes count that big_O has a name for."""
    for classes in (HALF_POWERS, NAMED):
        rates = [planted[notation] for notation in classes]
        ours, theirs = np.mean([rate.right for rate in rates]), np.mean([rate.big_o_right for rate in rates])
        assert ours > theirs + 0.05
        assert all(rate.right >= rate.big_o_right - 0.03 for rate in rates)
        # big_O cannot say that it does not know
        assert np.mean([rate.confidently_wrong for rate in rates]) < (1 - theirs) / 5


@pytest.mark.parametrize("notation", HALF_POWERS[1:])
def test_a_constant_beside_the_order_does_not_hide_it(notation):
    rates = planted_orders.rates(notation, 30, 13, overhead=1.0)
    assert rates.right >= 0.9
    assert rates.confidently_wrong == 0


# --- single answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "notation", ["O(1)", "O(log n)", "O(n^0.5)", "O(n)", "O(n log n)", "O(n^1.5)", "O(n²)", "O(n³)"]
)
def test_without_noise(notation):
    order = parse_order(notation)
    found = fit(N, 3e-9 * order(N))
    assert found.order == order
    np.testing.assert_allclose(found.predict(N), 3e-9 * order(N), rtol=1e-6)


def test_exponentials_and_factorials():
    n = np.arange(2, 30)
    for growth, name in ((1.7**n, "exponential"), (np.array([float(parse_order("n!")(x)) for x in n]), "factorial")):
        found = fit(n, noisy(growth))
        assert found.order.name == name
        assert found.distinguishable
        assert found.exponent == np.inf


def test_a_linear_term_beside_a_square_is_a_square():
    found = fit(N, noisy(N + N**2 / 512))
    assert str(found.order) == "O(n²)"
    assert found.distinguishable
    assert 1.5 < found.exponent < 1.9
    np.testing.assert_allclose(found.predict([128, 4096]), [128 + 32, 4096 + 32768], rtol=0.1)


def test_a_power_far_from_all_classes_is_its_own():
    found = fit(N, noisy(N**2.8))
    assert found.order.rank[0] == pytest.approx(2.8, abs=0.05)
    assert found.order.name == "polynomial"


def test_n_and_n_log_n_cannot_be_told_beside_a_constant():
    found = fit(N, noisy(N + 1000, seed=3))
    assert not found.distinguishable
    assert found.reason == "cannot tell n from n log n on this range (64-fold, 13 points)"
    assert "cannot tell" in str(found)
    assert [str(c.order) for c in found.candidates[:2]] in (["O(n)", "O(n log n)"], ["O(n log n)", "O(n)"])


def test_a_short_range_is_said():
    found = fit([100, 120, 140, 160, 180, 200], noisy(np.arange(100, 201, 20.0), noise=0.001))
    assert not found.distinguishable
    assert found.reason.startswith("n grows 2-fold, too little")


def test_noise_is_said():
    found = fit(N, np.random.default_rng(1).lognormal(0, 2, 13))
    assert not found.distinguishable


def test_a_constant_series_is_constant():
    found = fit(N, np.full(13, 7.0))
    assert (str(found.order), found.exponent, found.interval, found.distinguishable) == ("O(1)", 0.0, (0.0, 0.0), True)


def test_order_unit_and_scale_of_the_points_do_not_matter():
    y = noisy(N**1.5)
    shuffled = np.random.default_rng(0).permutation(13)
    first = fit(N, y)
    for n, values in ((N[shuffled], y[shuffled]), (N, 1e-12 * y), (N.astype(int).tolist(), y.tolist())):
        again = fit(n, values)
        assert again.order == first.order
        assert again.exponent == first.exponent
        assert again.interval == pytest.approx(first.interval, abs=0.021)


def test_holds_is_an_upper_bound_and_exactly_is_both():
    found = fit(N, noisy(N**1.5))
    assert [found.holds(order) for order in ("O(n)", "n log n", "n^1.5", "n²", "2^n")] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert [found.holds(order, exactly=True) for order in ("n", "n^1.5", "n²")] == [False, True, False]
    assert found.holds("n", tolerance=0.6)
    assert fit(N, noisy(N * np.log(N))).holds("n log n", exactly=True)


@pytest.mark.parametrize(
    ("n", "y", "message"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], "n must hold at least 5 different sizes"),
        ([1, 1, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6], "got 4"),
        ([], [], "got 0"),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4], "y must have one value for each n; got 4 for 5"),
        ([1, 2, 3, 4, 0], [1, 2, 3, 4, 5], "n must hold finite numbers above 0; got 0.0 at position 4"),
        ([1, 2, 3, 4, 5], [1, 2, -3, 4, 5], "y must hold finite numbers above 0; got -3.0 at position 2"),
        ([1, 2, 3, 4, 5], [1, 2, 3, np.nan, 5], "got nan at position 3"),
        ([1, 2, 3, 4, np.inf], [1, 2, 3, 4, 5], "got inf"),
        ([[1, 2], [3, 4]], [1, 2], "one axis"),
    ],
)
def test_bad_series_are_one_clear_error(n, y, message):
    with pytest.raises(ValueError, match=message):
        fit(n, y)


def test_what_holds_no_numbers_is_refused():
    with pytest.raises(TypeError, match="n must be a sequence of numbers; got 'many'"):
        fit("many", [1])


# --- several variables ------------------------------------------------------------------------------------------------


GRID = {
    name: values.ravel()
    for name, values in zip("nwd", np.meshgrid([256, 1024, 4096], [8, 32, 128], [16, 64, 256]), strict=True)
}


@pytest.mark.parametrize(
    ("cost", "notation"),
    [
        (lambda n, w, d: n * w * d, "O(n w d)"),
        (lambda n, w, d: n * w * d + 1e6, "O(n w d)"),
        (lambda n, w, d: n**2 * d, "O(n² d)"),
        (lambda n, w, d: n**1.5 * d, "O(n^1.5 d)"),
        (lambda n, w, d: n * np.log(n) * d, "O(n d log n)"),
        (lambda n, w, d: 4 * n * d**2 + 2 * n**2 * d, "O(n² d + n d²)"),
        (lambda n, w, d: 5 + 0 * n, "O(1)"),
    ],
)
def test_products_and_sums_of_several_sizes(cost, notation):
    found = fit(GRID, noisy(cost(**GRID).astype(float), seed=1))
    assert str(found.order) == notation
    assert found.distinguishable, found.reason


def test_exponents_of_several_sizes_have_intervals():
    found = fit(GRID, noisy(GRID["n"] * GRID["w"] ** 2.0))
    assert found.exponent == pytest.approx({"n": 1, "w": 2, "d": 0}, abs=0.05)
    for name, true in (("n", 1), ("w", 2), ("d", 0)):
        low, high = found.interval[name]
        assert low - 0.02 <= true <= high + 0.02
    assert str(found).startswith("O(n w²): n^1.0")


def test_sizes_that_grow_together_cannot_be_told():
    together = {"n": N, "w": N / 4}
    found = fit(together, noisy(N**2))
    assert not found.distinguishable
    assert "cannot tell" in found.reason


@pytest.mark.parametrize(
    ("n", "y", "message"),
    [
        ({}, [1], "one to 4 variables"),
        ({"n": [1, 2, 3, 4, 5]}, [1, 2, 3, 4], "n must have one value for each y"),
        ({"n": [1, 2, 1, 2, 1]}, [1, 2, 3, 4, 5], "n must hold at least 3 different sizes; got 2"),
        ({"n": [1, 2, 3, 4]}, [1, 2, 3, 4], "at least 5 points for 1 variables"),
        ({"w": [1, 2, -3, 4, 5]}, [1, 2, 3, 4, 5], "w must hold finite numbers above 0"),
    ],
)
def test_bad_mappings_are_one_clear_error(n, y, message):
    with pytest.raises(ValueError, match=message):
        fit(n, y)


# --- the least squares ------------------------------------------------------------------------------------------------


def test_closed_form_is_what_scipy_iterates_to(rng):
    first, columns = rng.random(8), rng.random((5, 8))
    target = rng.standard_normal((20, 8)) + rng.choice([-1, 0, 1, 2], (20, 1))
    both, alone = two_terms(first, columns, target), one_term(columns, target)
    for m in range(5):
        for s in range(20):
            expected, norm = nnls(np.column_stack([first, columns[m]]), target[s])
            assert (both.first[m, s], both.second[m, s]) == pytest.approx(expected, abs=1e-9)
            assert both.rss[m, s] == pytest.approx(norm**2, abs=1e-9)
            expected, norm = nnls(columns[m][:, None], target[s])
            assert alone.second[m, s] == pytest.approx(expected[0], abs=1e-9)
            assert alone.rss[m, s] == pytest.approx(norm**2, abs=1e-9)


def test_aicc_by_hand():
    # n ln(rss / n) + 2 k + 2 k (k + 1) / (n - k - 1), k = 2 parameters and the variance
    assert aicc(10.0, 10, 2, 0.0) == pytest.approx(0 + 6 + 24 / 6)
    assert aicc(10.0, 4, 2, 0.0) == np.inf
