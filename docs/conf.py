"""The site: `make site` builds docs/ into build/site, with warnings as errors."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
# What the notebooks' kernels inherit: this checkout, its `gqa`, a screen of 80 columns.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ |= {"COLUMNS": "80", "NO_COLOR": "1", "JAX_PLATFORMS": "cpu"}

project = "gqa"
author = "The gqa authors"
copyright = author  # a name that Sphinx prescribes
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_design", "sphinx_copybutton"]

html_theme = "furo"
html_title = "gqa"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "cache"  # a notebook runs again when its text changes, or after `make clean`
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_merge_streams = True
nb_execution_cache_path = str(ROOT / "build" / "notebooks")
copybutton_prompt_text = ">>> |\\$ "
copybutton_prompt_is_regexp = True

default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False

# Links to files that are beside docs/ in the repository, and the page of the site that shows each.
PAGES = {"SPEC.md": "spec.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def link_pages(app: Any, docname: str, content: list[str]) -> None:
    """Pages link to ../SPEC.md, as the repository needs it; the site has these files as pages of its own."""
    up = "../" * (docname.count("/") + 1)
    for name, page in PAGES.items():
        content[0] = content[0].replace(f"]({up}{name}", f"]({'../' * docname.count('/')}{page}")


def link_included(app: Any, path: Path, parent: str, content: list[str]) -> None:
    """The same for a file that such a page includes."""
    content[0] = re.sub(r"\]\(docs/", "](", content[0])
    for name, page in PAGES.items():
        content[0] = content[0].replace(f"]({name}", f"]({page}")


def as_rst(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are Markdown: fences become literal blocks, and no * or | of a formula is taken for markup."""
    fenced, converted = False, []
    for line in lines:
        if line.strip().startswith("```"):
            fenced = not fenced
            converted += ["::", ""] if fenced else [""]
        elif fenced:
            converted.append(f"    {line}")
        else:
            converted.append(escaped(line))
    lines[:] = converted


def escaped(line: str) -> str:
    """Outside of backticks; the stars of an argument such as **settings are napoleon's."""
    star, rest = re.match(r"(\s*\*{0,2})(.*)", line).groups()
    parts = rest.split("`")
    parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
    return star + "`".join(parts)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", as_rst, priority=400)  # before napoleon
    app.connect("source-read", link_pages)
    app.connect("include-read", link_included)
