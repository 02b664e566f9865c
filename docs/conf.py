"""Sphinx: ``make docs`` writes ``docs/_build/html``."""

import re
import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "spinverse"
author = "the spinverse authors"
copyright = f"the {author[4:]}, MIT licence"  # noqa: A001 - Sphinx's name for it
version = release = installed("spinverse")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "mathml",  # docs/_ext
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"spinverse {release}"
html_math_renderer = "mathml"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["mathml.css"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
# one `word` in a docstring is a name in code
default_role = "code"


def plain_text(app, what, name, obj, options, lines) -> None:
    """Docstrings are plain text in which |S| and 2*n mean what they say: no markup but `code`."""
    # names of arguments that go on in the next line are one entry for napoleon
    for number in reversed(range(len(lines) - 1)):
        if re.fullmatch(r"\s+(\w+, )*\w+,", lines[number]):
            lines[number] += " " + lines.pop(number + 1).strip()
    for number, line in enumerate(lines):
        bullet, rest = re.fullmatch(r"(\s*(?:\* )?)(.*)", line).groups()
        parts = re.split(r"(`+[^`]*`+)", rest)
        parts[::2] = [re.sub(r"([|*])", r"\\\1", part) for part in parts[::2]]
        lines[number] = bullet + "".join(parts)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", plain_text, priority=400)  # before napoleon
