"""Measuring: what is measured and what is left out. Clocks are the test's own, so nothing depends on the machine."""

from __future__ import annotations

import math
import sys
import time

import numpy as np
import pytest

from subquad.complexity import assert_scales, geometric, measure, measuring

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can reset the peak of a process")


class Clock:
    """Time that passes only when something is done."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def takes(self, seconds):
        def function(n):
            self.calls.append(n)
            self.now += seconds(n)

        return function


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(measuring.time, "perf_counter", made)
    return made


def test_geometric_sizes():
    assert geometric(64, 4096, 7) == [64, 128, 256, 512, 1024, 2048, 4096]
    assert geometric(1, 4, 9) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="largest"):
        geometric(8, 8)


def test_the_least_of_several_samples_counts_and_the_warm_up_does_not(clock):
    slow = iter([100.0, 3.0, 1.0, 2.0, 1.5])  # the warm-up, one to see how long it takes, three samples
    found = measure(lambda n: clock.takes(lambda n: next(slow))(n), [8], repeats=3, budget=1000, clock=clock)
    assert found.seconds.tolist() == [1.0]


def test_fast_functions_are_called_many_times_a_sample(clock):
    found = measure(clock.takes(lambda n: 1e-6 * n), [10, 100], repeats=1, clock=clock)
    assert found.seconds == pytest.approx([1e-5, 1e-4])
    assert clock.calls.count(10) == pytest.approx(2 + measuring.SAMPLE_SECONDS / 1e-5, abs=1.1)


def test_sizes_take_turns(clock):
    measure(clock.takes(lambda n: 1.0), [1, 2, 3], repeats=3, budget=1000, clock=clock)
    assert clock.calls == [1, 1, 1, 2, 2, 2, 3, 3, 3, 1, 2, 3, 1, 2, 3]


def test_sizes_beyond_the_budget_are_skipped(clock):
    found = measure(clock.takes(lambda n: n * n), [1, 2, 4, 8, 16, 32], repeats=3, budget=500, clock=clock)
    assert found.n.tolist() == [1, 2, 4, 8]
    assert found.skipped == (16, 32)
    assert clock.now <= 500
    with pytest.raises(ValueError, match=r"at least 5 times are needed .* got 4; 2 larger sizes were skipped"):
        found.fit()


def test_setup_is_not_measured(clock):
    def setup(n):
        clock.now += 1000
        return [n]

    found = measure(lambda made: clock.takes(lambda n: n)(made[0]), [1, 2], setup=setup, budget=1e6, clock=clock)
    assert found.seconds.tolist() == [1, 2]


def test_progress_is_told_before_each_sample(clock):
    told = []
    measure(clock.takes(lambda n: 1.0), [1, 2], repeats=2, progress=lambda *args: told.append(args), clock=clock)
    assert told == [(0, 4, "n = 1"), (1, 4, "n = 2"), (2, 4, "n = 1"), (3, 4, "n = 2")]


@linux
def test_memory_is_that_of_one_call_in_a_process_of_its_own():
    found = measure(np.ones, [10**6, 2 * 10**6, 4 * 10**6, 8 * 10**6, 16 * 10**6], repeats=1, memory=True, budget=300)
    np.testing.assert_allclose(found.bytes, 8 * found.n, rtol=0.15, atol=1e6)
    assert str(found.fit_memory().order) == "O(n)"


def test_memory_too_small_to_be_seen_is_said():
    found = measuring.Measurement(np.arange(1.0, 7), np.ones(6), np.array([0, 0, 0, 1e6, 2e6, 3e6]))
    with pytest.raises(ValueError, match=r"at least 5 amounts of at least 0\.5 MB are needed to fit an order; got 3"):
        found.fit_memory()
    with pytest.raises(ValueError, match="memory=True"):
        measuring.Measurement(np.ones(1), np.ones(1)).fit_memory()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ns": []}, ValueError, "at least one size"),
        ({"ns": [0]}, ValueError, "ns must be integers >= 1; got 0"),
        ({"ns": [1.5]}, TypeError, "got 1.5"),
        ({"repeats": 0}, ValueError, "repeats"),
        ({"budget": 0}, ValueError, "budget must be a number of seconds above 0; got 0"),
        ({"budget": math.inf}, ValueError, "budget"),
        ({"memory": True}, ValueError, "importable functions for memory=True"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        measure(lambda n: None, **({"ns": [1]} | arguments))


# --- enforcing --------------------------------------------------------------------------------------------------------

SIZES = geometric(64, 4096, 7)


def test_what_scales_passes_and_says_what_was_found(clock):
    found = assert_scales(clock.takes(lambda n: n * math.log(n)), "O(n log n)", SIZES, budget=1e9, clock=clock)
    assert str(found.order) == "O(n log n)"
    assert_scales(clock.takes(lambda n: n), "O(n²)", SIZES, budget=1e9, clock=clock)


def test_what_does_not_scale_fails_with_the_figures(clock):
    with pytest.raises(AssertionError, match=r"does not stay within n: O\(n²\): exponent 2.00, .* 4,096: 1.68e\+07 s"):
        assert_scales(clock.takes(lambda n: n * n), "O(n)", SIZES, budget=1e9, clock=clock)
    with pytest.raises(AssertionError, match=r"does not grow like n²: O\(n\)"):
        assert_scales(clock.takes(lambda n: n), "O(n^2)", SIZES, budget=1e9, exactly=True, clock=clock)


def test_an_overhead_is_no_excuse(clock):
    with pytest.raises(AssertionError, match=r"O\(n²\)"):
        assert_scales(clock.takes(lambda n: 1e4 + n * n), "O(n)", SIZES, budget=1e9, clock=clock)


@linux
def test_memory_is_enforced_too():
    assert_scales(np.ones, "O(n)", geometric(10**6, 10**7, 5), memory=True, repeats=1, budget=300)
    with pytest.raises(AssertionError, match=r"does not stay within 1: .* bytes"):
        assert_scales(np.ones, "O(1)", geometric(10**6, 10**7, 5), memory=True, repeats=1, budget=300)


def test_what_cannot_be_told_is_an_error_and_no_pass(clock):
    with pytest.raises(ValueError, match=r"n grows 1\.5-fold"):
        assert_scales(clock.takes(lambda n: n), "O(n)", [10, 11, 12, 13, 15], budget=1e9, clock=clock)
    with pytest.raises(ValueError, match="at least 5 times"):
        assert_scales(clock.takes(lambda n: n), "O(n)", [10, 20], budget=1e9, clock=clock)


def test_a_real_function_in_real_time():
    """Processor time, so that a busy machine is no other machine."""
    real = {"budget": 60, "clock": time.process_time}
    assert_scales(sorted, "O(n log n)", geometric(10_000, 160_000, 5), setup=lambda n: list(range(n)), **real)
    with pytest.raises(AssertionError):
        assert_scales(lambda n: [i < j for i in range(n) for j in range(n)], "O(n)", geometric(64, 1024, 5), **real)
