"""Names that are imported on first use: all there, none before, and no others."""

import importlib
import subprocess
import sys

import pytest

PACKAGES = ["subquad", "subquad.patterns", "subquad.complexity", "subquad.testing"]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there_and_listed(package):
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("package", PACKAGES)
def test_other_names_are_refused(package):
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_families_wait_until_they_are_asked_for():
    code = """
import sys, subquad
def loaded(): return sorted(name for name in sys.modules if name.startswith("subquad.patterns."))
before = loaded()
subquad.Strided(3)
print(*sorted(set(loaded()) - set(before)))
print(*before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, before = done.stdout.splitlines()
    assert "subquad.patterns.strided" in first.split()
    assert not {"subquad.patterns.neighborhood", "subquad.patterns.presets"} & set((first + before).split())
