"""The site that `make html` makes of the notebooks. docs/notebooks and docs/results/reference are links to those folders."""

import re

from docutils import nodes
from sphinx.application import Sphinx

project = html_title = "Find defects by repairing them"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
html_theme = "furo"
html_copy_source = html_show_copyright = html_use_index = False


def setup(app: Sphinx) -> None:
    """Change pages before and after they are parsed."""
    app.connect("source-read", edit)
    app.connect("doctree-read", describe)


def edit(app: Sphinx, page: str, source: list[str]) -> None:
    """Leave suffixes out of links to pages, because Sphinx loses a file behind a symbolic link."""
    source[0] = re.sub(r"\]\(([\w./-]+)\.(?:ipynb|md)\)", r"](\1)", source[0])


def describe(app: Sphinx, page: nodes.document) -> None:
    """Name the section of a picture that has no words of its own."""
    for picture in page.findall(nodes.image):
        section = picture.parent
        while not isinstance(section, nodes.section):
            section = section.parent
        picture.setdefault("alt", "Figure: " + section[0].astext().replace("\\", ""))
