"""How the documentation is built: `make docs`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "plugins")]

import calm_lightning  # noqa: E402

project = "calm-lightning"
author = "the authors of calm-lightning"
release = version = calm_lightning.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = "calm-lightning"
html_show_copyright = False
default_role = "code"  # single backticks in docstrings
exclude_patterns = ["_build"]
suppress_warnings = [
    "myst.xref_missing",  # links to files of the repository, which are no pages here
    "myst.header",  # tables of results begin at the second level
]
myst_heading_anchors = 3

autodoc_inherit_docstrings = False  # those of Lightning and transformers are at home there
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
