"""The pages of docs/: their code runs, every pattern has its picture, and every public name its place."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

import subquad

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = {page.stem: page for page in sorted(DOCS.glob("*.md"))}
#: What a page may import for the tests that run without further libraries.
PLAIN = {"subquad", "numpy", "scipy", "matplotlib", "time"}


#: On the line before a block that needs names of the reader's own, and is not run.
FRAGMENT = "<!-- fragment -->\n"


def code_of(page):
    """The Python of a page, each block at its own line numbers, for tracebacks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.finditer(rf"(?<!{FRAGMENT})^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [""] * (text.count("\n") + 1)
    for block in blocks:
        first = text[: block.start(1)].count("\n")
        for number, line in enumerate(block[1].splitlines()):
            lines[first + number] = line
    return "\n".join(lines)


def imported(code):
    """The libraries that code imports, with `subquad.torch` and the like as the library they need."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    ours = {"subquad.torch": "torch", "subquad.transformers": "transformers", "subquad.natten": "torch"}
    ours["subquad.dask"] = "dask"
    return {ours.get(name, name.partition(".")[0]) for name in names}


def run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(code_of(page), str(page), "exec"), {"__name__": "__main__"})


PLAIN_PAGES = [name for name, page in PAGES.items() if code_of(page).strip() and imported(code_of(page)) <= PLAIN]


@pytest.mark.parametrize("name", PLAIN_PAGES)
def test_the_code_of_a_page_runs(name, monkeypatch, tmp_path, capsys):
    run(PAGES[name], monkeypatch, tmp_path)


def test_pages_have_code():
    assert {"index", "concepts"} <= set(PLAIN_PAGES)


@pytest.fixture(scope="module")
def pictures():
    pytest.importorskip("matplotlib", reason='pictures are drawn by Matplotlib: pip install "subquad[plot]"')
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("pictures")
    finally:
        sys.path.remove(str(DOCS))


def test_every_pattern_has_a_picture(pictures):
    shown = {entry.name for entries in pictures.CATALOGUE.values() for entry in entries}
    patterns = importlib.import_module("subquad.patterns")
    assert shown == {name for name in patterns.__all__ if name in subquad.__all__} - {"Pattern"}


def test_pictures_and_facts_of_the_page(pictures, tmp_path):
    pictures.build(tmp_path)
    page = (tmp_path / "catalogue.md").read_text(encoding="utf-8")
    for entries in pictures.CATALOGUE.values():
        for entry in entries:
            assert (tmp_path / entry.file).read_bytes().startswith(b"\x89PNG")
            assert entry.at(64).nnz(64, 64) == entry.at(64).to_csr(64, 64).nnz > 0
            assert f"### {entry.name}\n" in page
    assert "53,206 pairs, 0.317%" in page  # Banded(6): 4096 x 13 - 6 x 7
    assert page.count("```{image}") == page.count("\n### ")


@pytest.mark.parametrize(
    "module", ["subquad", "subquad.complexity", "subquad.reference", "subquad.testing", "subquad.plots"]
)
def test_the_reference_lists_every_public_name(module):
    listed = set(re.findall(r"^   ([\w.]+)$", (DOCS / "api.rst").read_text(encoding="utf-8"), re.MULTILINE))
    found = importlib.import_module(module)
    names = getattr(found, "__all__", None) or [
        name for name in vars(found) if name.startswith(("plot_", "attention")) and callable(getattr(found, name))
    ]
    prefix = module.removeprefix("subquad").lstrip(".")
    missing = {f"{prefix}.{name}".lstrip(".") for name in names} - listed - {"reference", "streamed", "testing"}
    assert not missing


def test_the_walk_computes_what_it_draws(monkeypatch, capsys):
    np, plt = pytest.importorskip("numpy"), pytest.importorskip("matplotlib.pyplot", reason="needs Matplotlib")
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: None)
    script = DOCS / "examples" / "plot_walkthrough.py"
    code = re.sub(r"^SIZES = .*", "SIZES = [128, 181, 256, 362, 512]", script.read_text(encoding="utf-8"), flags=re.M)
    found = {"__name__": "__main__"}
    exec(compile(code, str(script), "exec"), found)
    x = found["x"]
    assert x.shape == (5, 8)
    scores = x @ x.T / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found["scores"].to_scipy().toarray(), scores, atol=1e-12)
    np.testing.assert_allclose(found["weights"].to_scipy().toarray(), weights, atol=1e-12)
    np.testing.assert_allclose(found["out"], weights @ x, atol=1e-12)
    attend = found["attend"]
    assert found["concatenated"].shape == (5, 8)
    np.testing.assert_allclose(found["concatenated"] @ attend.out_weight, attend(x), atol=1e-12)
    band = found["band"]
    assert (np.abs(np.subtract(*np.nonzero(band))) <= 2).all()
    assert np.count_nonzero(band) == 5 * 12 - 6
    np.testing.assert_allclose(band.sum(axis=1), 1)
    assert set(found["fits"]) == {"dense", "local", "longformer", "random"}
    assert len(plt.get_fignums()) == 5
    plt.close("all")
    assert "projected:" in capsys.readouterr().out
