"""The site that `make html` makes: whole, closed in itself, and with words for every picture."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

from vaeproj.config import PROJECT_ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PLAYER = PROJECT_ROOT / "results" / "reference" / "projection.html"
NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


class Page(HTMLParser):
    """A page's pictures and anchors, and the addresses that it links to or loads."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text()
        self.pictures, self.anchors, self.links, self.loads = [], set(), [], []
        self.article = self.text.partition("<article")[2].partition("</article")[0]
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
    pages = {path: Page(path) for path in folder.rglob("*.html") if "_static" not in path.parts}
    (folder / "page.html").touch()  # the live page, which `make html` writes beside them
    return folder, pages


def test_first_page_shows_the_animation_and_lists_every_notebook(site):
    folder, pages = site
    index = pages[folder / "index.html"]
    (animation,) = index.pictures
    assert (folder / animation["src"]).read_bytes() == (PROJECT_ROOT / "results/reference/projection.gif").read_bytes()
    links = re.findall(r'href="notebooks/(\w+).html"', index.article)
    assert links == [path.stem for path in NOTEBOOKS]
    assert 'href="page.html"' in index.article


def test_player_stands_where_the_animation_is(site):
    folder, pages = site
    for name in ("index", "notebooks/05_figures"):
        page = pages[folder / f"{name}.html"]
        (address,) = [load for load in page.loads if load.endswith(f"_static/{PLAYER.name}")]
        assert ((folder / name).parent / address).read_bytes() == PLAYER.read_bytes()


def test_both_languages_lead_to_each_other(site):
    folder, pages = site
    english, japanese = pages[folder / "index.html"], pages[folder / "ja.html"]
    assert 'lang="en"' in english.text and re.search('href="ja.html">.*日本語', english.article)
    links = {"index.html", *(f"notebooks/{path.stem}.html" for path in NOTEBOOKS)}
    assert 'lang="ja"' in japanese.text and links <= set(re.findall(r'href="([^"]+)"', japanese.article))


@pytest.mark.parametrize(("origin", "home"), [
    ("git@github.com:someone/vaeproj.git", "https://github.com/someone/vaeproj"),
    ("https://github.com/someone/vaeproj\n", "https://github.com/someone/vaeproj"),
    ("https://token@git.example.org/a/b/vaeproj.git", "https://git.example.org/a/b/vaeproj"),
    ("/srv/git/vaeproj.git", ""), ("../vaeproj", ""), ("", ""),
])  # fmt: skip
def test_site_links_to_where_it_was_cloned_from(origin, home):
    names = {"__file__": str(PROJECT_ROOT / "docs/conf.py")}
    exec(compile((PROJECT_ROOT / "docs/conf.py").read_text(), "conf.py", "exec"), names)
    assert names["repository"](origin) == home


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
    assert (site[0] / "_sources" / "notebooks" / path.name).read_bytes() == path.read_bytes()
    assert f"../_sources/notebooks/{path.name}" in page.links


@pytest.fixture
def browser():
    """Chromium, 1280 pixels wide; what it asks for, and what fails."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=CHROMIUM, args=quiet).new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        asked, failed = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("requestfailed", lambda request: failed.append(request.url))
        page.on("pageerror", lambda error: failed.append(error.message))
        yield page, asked, failed


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not on the PATH")
def test_site_in_a_browser_without_a_server(site, browser):
    """No page is wider than its window, a figure grows on a click, the search finds, nothing is missing or from elsewhere."""
    folder, pages = site
    page, asked, failed = browser
    page.goto((folder / "notebooks" / "04_iterative_projection.html").as_uri())
    for width in (1010, 1080, 1160, 1320, 1400, 1280):  # around those at which the theme shows a second and a third column
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    figure, enlarged = page.locator("article img").nth(1), page.locator("dialog img")  # the first fills the window as it is
    figure.click()
    assert enlarged.bounding_box()["width"] > 1.2 * figure.bounding_box()["width"]
    page.keyboard.press("Escape")
    enlarged.wait_for(state="hidden")
    page.locator(".theme-toggle-content .theme-toggle").click()
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator(".theme-toggle-content .theme-toggle").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light

    page.get_by_placeholder("Search").fill("ghost")
    page.keyboard.press("Enter")
    page.locator("#search-results a", has_text="4 · Iterative projection").wait_for()

    page.set_viewport_size({"width": 420, "height": 900})
    for path in pages:
        page.goto(path.as_uri())
        page.evaluate("window.MathJax?.startup?.promise")
        for part in ("html", ".content"):
            assert page.locator(part).evaluate("part => part.scrollWidth <= part.clientWidth"), f"{path.name}: {part}"
        assert page.locator("iframe").count() == (path.stem in ("index", "ja", "05_figures"))
        if (player := page.locator("iframe")).count():
            player.scroll_into_view_if_needed()
            page.wait_for_function("document.querySelector('iframe').height > 420")  # as it says itself
    assert not failed
    assert all(urlsplit(address).scheme in {"file", "data", "blob"} for address in asked)
