"""The site that `make html` makes: whole, closed in itself, and with words for every picture."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from vaeproj.config import PROJECT_ROOT

NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


class Page(HTMLParser):
    """A page's pictures and anchors, and the addresses that it links to or loads."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text()
        self.pictures, self.anchors, self.links, self.loads = [], set(), [], []
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors.add(attrs.get("id"))
        self.pictures += [attrs] if tag == "img" else []
        found = [attrs[key] for key in ("src", "href", "srcset", "data") if key in attrs]
        (self.links if tag == "a" else self.loads).extend(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Pages by their place in the site, made as `make html` does; a warning is an error."""
    folder = tmp_path_factory.mktemp("docs").resolve() / "site"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(PROJECT_ROOT / "docs"), str(folder)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder, {path: Page(path) for path in folder.rglob("*.html") if "_static" not in path.parts}


def test_first_page_shows_the_animation_and_lists_every_notebook(site):
    folder, pages = site
    index = pages[folder / "index.html"]
    (animation,) = index.pictures
    assert (folder / animation["src"]).read_bytes() == (PROJECT_ROOT / "results/reference/projection.gif").read_bytes()
    links = re.findall(r'href="notebooks/(\w+).html"', index.text.partition("<article")[2].partition("</article")[0])
    assert links == [path.stem for path in NOTEBOOKS]


def test_nothing_comes_from_elsewhere_and_every_address_leads_somewhere(site):
    folder, pages = site
    for path, page in pages.items():
        for address in page.loads + [link for link in page.links if not link.startswith("https:")]:
            parts = urlsplit(address)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert not parts.netloc and folder in target.parents and target.is_file(), f"{path.name}: {address}"
            assert not parts.fragment or unquote(parts.fragment) in pages[target].anchors, f"{path.name}: {address}"
    assert not [style for style in folder.rglob("*.css") if re.search(r"@import|url\(['\"]?(https?:)?//", style.read_text())]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_its_page(site, path):
    page = site[1][site[0] / "notebooks" / f"{path.stem}.html"]
    assert page.pictures and all(re.search(r"Figure: .*\w", picture.get("alt", "")) for picture in page.pictures)
    assert "preset" in page.text and "find_spec" not in page.text and "NBVAL" not in page.text
    formulas = any("$" in cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    assert formulas == ("math notranslate" in page.text) == any("/mathjax/" in address for address in page.loads)
