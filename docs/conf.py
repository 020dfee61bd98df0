"""The documentation site: `python -m sphinx -W --keep-going docs docs/_build`, with the extra `docs` installed."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import tinyvit  # noqa: E402

project = "tinyvit"
author = "The tinyvit authors"
copyright = author
version = release = tinyvit.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "extension.pages",
    "extension.gallery",
    "extension.docstrings",
    "extension.links",
]
exclude_patterns = ["_build", "extension", "generated/gallery", "jupyter_execute"]
html_theme = "furo"
html_title = f"tinyvit {release}"
html_extra_path = ["generated/gallery"]
html_show_sourcelink = False

# Markdown: links may name headings, and texts that look like dates or fractions stay as they are.
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

# The notebooks are kept without outputs and are executed here; a cell that fails ends the build.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

# In our docstrings, single backticks mark code.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 100
