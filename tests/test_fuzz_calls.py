"""Random calls: results or documented errors, no warnings. `python tests/fuzz_calls.py 100000` makes many more."""

from __future__ import annotations

import numpy as np
from fuzz_calls import fuzz

from subquad import Banded, attention_weights


def test_random_calls_give_results_or_the_documented_errors():
    counts = fuzz(1500, seed=7)
    assert sum(counts.values()) == 1500
    assert counts["result"] > 250
    assert counts["ValueError"] > 100


def test_weights_of_what_is_not_finite_stay_in_their_rows():
    """Found by random calls: it warned."""
    x = np.ones((5, 2), np.float32)
    x[0, 0] = np.inf
    weights = attention_weights(x, x, Banded(1))
    assert np.isnan(weights.row(0)[1]).any()
    assert weights.row(3)[1].tolist() == [np.float32(1 / 3)] * 3
