"""Every example in a docstring runs, and every public name has a docstring."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import subquad
from subquad import attention

MODULES = [
    info.name
    for info in pkgutil.walk_packages(subquad.__path__, "subquad.")
    if (not info.name.startswith("subquad.kernels.") or info.name.endswith((".peak", ".build", ".layout")))
    # in test_torch*.py: PyTorch may not be there
    and not info.name.startswith(("subquad.torch", "subquad.natten", "subquad.transformers."))
]


@pytest.mark.parametrize("name", ["subquad", *MODULES])
def test_examples_run(name):
    if name == "subquad.__main__":
        return
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


@pytest.mark.parametrize("name", [name for name in subquad.__all__ if name != "reference"])
def test_public_names_are_documented(name):
    documented = getattr(subquad, name)
    assert documented.__doc__
    assert ">>>" in documented.__doc__ or name in ("Dense", "Causal", "SparseScores")


def test_the_example_in_the_readme_runs(capsys):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    names = {}
    exec(compile(example.replace("8192", "512"), "README.md", "exec"), names)
    np.testing.assert_allclose(
        names["everything"], attention(*(names[n] for n in ("query", "key", "value"))), atol=1e-5
    )
    assert "O(n)" in capsys.readouterr().out
