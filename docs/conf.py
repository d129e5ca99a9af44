"""The site that `make html` makes. notebooks, results/reference and ja.md are links to what the repository has elsewhere."""

import re
import subprocess
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

ROOT = Path(__file__).resolve().parent.parent
PLAYER = ROOT / "results" / "reference" / "projection.html"
ORIGIN = subprocess.run(["git", "-C", str(ROOT), "config", "remote.origin.url"], capture_output=True, text=True).stdout


def repository(origin: str) -> str:
    """The page of the repository that this copy was cloned from, such as git@HOST:OWNER/NAME.git; none for a folder."""
    address = re.fullmatch(r"(?:https://|ssh://git@|git@)(?:[^@/]+@)?([\w.-]+)[:/]([\w./-]+?)(?:\.git)?/?", origin.strip())
    return f"https://{address[1]}/{address[2]}" if address else ""


project = html_title = "Find defects by repairing them"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 3
myst_heading_anchors_html_ids = True
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_merge_streams = True
html_theme = "furo"
html_theme_options = {"top_of_page_buttons": ["view"]}  # the source of the page, which is in the site too
if home := repository(ORIGIN):
    html_theme_options["footer_icons"] = [{"name": "Repository", "url": home, "html": "Repository", "class": ""}]
html_sourcelink_suffix = ""
html_static_path = ["_static", str(PLAYER)]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_copyright = html_use_index = False


def setup(app: Sphinx) -> None:
    """Change pages before and after they are parsed."""
    app.connect("env-before-read-docs", find_pages)
    app.connect("source-read", raise_links)
    app.connect("doctree-read", describe)
    app.connect("doctree-read", play)
    app.connect("html-page-context", speak)


def find_pages(app: Sphinx, env: BuildEnvironment, pages: list[str]) -> None:
    """Lead links to pages: Sphinx follows symbolic links to where no page is, and takes any other .md file for a page."""
    files = dict.fromkeys([*ROOT.glob("*.md"), *ROOT.glob("*/README.md")])
    behind = {env.doc2path(page).resolve(): page for page in env.found_docs}
    env.project._path_to_docname |= files | behind | {ROOT / "README.md": "index"}


def raise_links(app: Sphinx, page: str, source: list[str]) -> None:
    """README.ja.md links from the folder above."""
    if page == "ja":
        source[0] = re.sub(r"\]\((?!#|\w+:)", "](../", source[0])


def describe(app: Sphinx, page: nodes.document) -> None:
    """Name the section of a picture that has no words of its own."""
    for picture in page.findall(nodes.image):
        section = picture.parent
        while not isinstance(section, nodes.section):
            section = section.parent
        picture.setdefault("alt", "Figure: " + section[0].astext().replace("\\", ""))


def play(app: Sphinx, page: nodes.document) -> None:
    """Put the player in the place of the animation, which stays for readers without JavaScript."""
    up = "../" * app.env.docname.count("/")
    moving = [picture for picture in page.findall(nodes.image) if picture["uri"].endswith(".gif")]
    for picture in [picture for picture in moving if not picture["uri"].endswith("/page.gif")]:  # the live page's own
        frame = f'<iframe src="{up}_static/{PLAYER.name}" title="{escape(picture["alt"])}" loading="lazy"></iframe>'
        before, after = (nodes.raw("", html, format="html") for html in (frame + "<noscript>", "</noscript>"))
        picture.replace_self([before, picture.deepcopy(), after])


def speak(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Say which page is in Japanese."""
    if page == "ja":
        context["language"] = "ja"
