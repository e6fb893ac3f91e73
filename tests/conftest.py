"""Hypothesis profiles, and the fixtures that every test module may use."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import settings
from support import GuardedMemory

# The first example of a run may compile a kernel: a deadline would blame whichever test came first.
settings.register_profile("local", deadline=None, max_examples=60)
settings.register_profile("ci", deadline=None, max_examples=60, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)


@pytest.fixture
def guarded():
    """Allocator of arrays that touch a page nobody may read: `guarded(array, before=False)`."""
    with GuardedMemory() as memory:
        yield memory.place
