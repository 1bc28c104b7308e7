"""Sphinx settings. Build: .venv/bin/sphinx-build -W -b html docs docs/_build/html"""

import re
from typing import Any

project = "budwood"
author = "the budwood authors"
copyright = "the budwood authors, Apache-2.0"  # noqa: A001 - Sphinx's own name

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "budwood"
html_show_sphinx = False
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_mock_imports = ["gymnasium", "mlflow", "stable_baselines3", "torch"]


def keep_columns(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Docstrings that list fields in columns keep one field a line."""
    lines[:] = ["| " + line if re.match(r"``\w+``\s{2,}", line) else line for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", keep_columns)
