"""The code of pages that need further libraries: PyTorch, Transformers, Dask."""

import importlib.util

import pytest

pytest.importorskip("torch", reason='PyTorch is not installed: pip install "subquad[torch]"')

from test_docs import PAGES, PLAIN_PAGES, code_of, imported, run

NEEDING = [name for name, page in PAGES.items() if name not in PLAIN_PAGES and code_of(page).strip()]


@pytest.mark.filterwarnings("default")  # compilers of other libraries warn of themselves
@pytest.mark.parametrize("name", NEEDING)
def test_the_code_of_a_page_runs(name, monkeypatch, tmp_path, capsys):
    missing = {library for library in imported(code_of(PAGES[name])) if importlib.util.find_spec(library) is None}
    if missing:
        pytest.skip(f"{name}.md needs {', '.join(sorted(missing))}")
    run(PAGES[name], monkeypatch, tmp_path)


def test_pages_have_code():
    assert {"coming_from", "training"} <= set(NEEDING)
