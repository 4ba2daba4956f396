"""The documentation site: `make docs` builds it with warnings as errors."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import reference_pages

import detops

project = "detops"
author = "detops contributors"
copyright = author
release = version = detops.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

default_role = "code"
smartquotes = False  # it would make one dash of the two before an option
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of tuples are described by their class alone
napoleon_custom_sections = ["Reference"]

html_theme = "furo"
html_title = f"detops {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}


def plain(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep stars and bars of shapes and formulas, such as (B, *, N), from being read as markup."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = line.split("`")
            parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
            lines[number] = "`".join(parts)


def setup(app: Sphinx) -> None:
    """Write the pages of the reference before Sphinx looks for pages."""
    app.connect("autodoc-process-docstring", plain, priority=100)  # before napoleon
    reference_pages.write(Path(__file__).parent / "reference")
