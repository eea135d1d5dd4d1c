"""How the site is made: `make docs`."""

from pathlib import Path

import click

import c2m3_fl
from c2m3_fl.cli.main import commands

project = "c2m3-fl"
author = "The c2m3-fl authors"
copyright = author  # Sphinx's name
release = version = c2m3_fl.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "results.html", "reference/_commands.md"]
html_theme = "furo"
html_title = f"c2m3-fl {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False

default_role = "py:obj"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = False
napoleon_use_rtype = False
suppress_warnings = ["myst.header"]


def _command_line() -> None:
    """Write the help of every command as one page."""
    page = Path(__file__).parent / "reference" / "_commands.md"
    parts = []
    for name, command in sorted(commands.commands.items()):
        context = click.Context(command, info_name=f"c2m3 {name}", max_content_width=100, terminal_width=100)
        parts.append(f"## c2m3 {name}\n\n```text\n{command.get_help(context)}\n```\n")
    page.write_text("\n".join(parts), encoding="utf-8")


_command_line()
