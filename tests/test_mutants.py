"""A test of the tests: faults put into a copy of the library are found, and the copy alone has none."""

from __future__ import annotations

import pytest
from mutants import CONTROL, MUTANTS, Mutant, failed_checks, is_killed


def test_an_unchanged_copy_passes():
    assert failed_checks(None, CONTROL) == []


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_killed(name):
    assert is_killed(name)


def test_an_edit_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match="exactly once; it does 0 times"):
        failed_checks(Mutant("forward.py", "no such line", "", "lse", "Dense()"), [])
