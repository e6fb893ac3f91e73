"""How Sphinx builds these pages: `sphinx-build -W --keep-going -n docs docs/_build/html`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import pictures  # noqa: E402 - beside this file

import subquad  # noqa: E402

project = "subquad"
author = "the subquad authors"
copyright = "the subquad authors, MIT licence"
release = version = subquad.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_generated", "_templates", "examples"]
suppress_warnings = [
    "config.cache",  # functions in sphinx_gallery_conf
]

# `name` in a docstring is a link where there is such a page
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", r"(?!subquad\.).*"),  # `name`, where it is a parameter or another library's
    ("py:class", r"(?!subquad\.).*"),  # types of others: no inventory is fetched, the build needs no network
    ("py:(class|obj)", r"subquad\.(inputs|kernels|patterns|plan|raster|threads|child|text)\b.*"),  # inside
]
python_use_unqualified_type_names = True

autosummary_generate = True
# names that differ in case alone need files that differ in more
autosummary_filename_map = {
    f"subquad.complexity.{name}": f"subquad.complexity.{name}-class" for name in ("Fit", "Cost")
}
autodoc_typehints = "none"  # docstrings say types with their shapes
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
numpydoc_show_class_members = False
numpydoc_xref_param_type = False
#: What every documented name must have; see numpydoc's own list of checks.
# keywords of **options are described one by one
numpydoc_validation_overrides = {"PR02": [r"sinks : (array|Tensor), shape"]}
numpydoc_validation_checks = {"GL01", "GL03", "GL05", "GL06", "GL07", "GL08", "PR02", "SS01", "SS04"}
numpydoc_validation_exclude = {r"\.Measurement\.bytes$"}  # attributes stand in the docstring of their class

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",  # executed; the other scripts take minutes and are shown
    "ignore_pattern": r"__init__\.py",
    "capture_repr": (),  # what is printed is shown, not what a last line happens to be
    "download_all_examples": False,
    "show_signature": False,
    "min_reported_time": 5,
    "reset_modules": ("matplotlib",),
    "abort_on_example_error": False,  # all errors are shown, and -W makes each one fail the build
    "only_warn_on_example_error": False,
}

html_theme = "furo"
html_title = f"subquad {release}"
html_static_path = ["_static"]
html_css_files = ["subquad.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5394", "color-brand-content": "#0b5394"},
    "dark_css_variables": {"color-brand-primary": "#7ab8f5", "color-brand-content": "#7ab8f5"},
}
pygments_style = "friendly"
pygments_dark_style = "native"


def setup(app: Any) -> None:
    """Draw what the pages show before they are read."""
    os.environ.setdefault("MPLBACKEND", "agg")
    pictures.build(HERE / "_generated")
