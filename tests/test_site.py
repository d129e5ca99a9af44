"""The site shows what the notebooks say, needs nothing but its own folder, and appears whole or not at all."""

import base64
import re
from html.parser import HTMLParser

import nbformat
import pytest
from nbformat import v4

from vaeproj import site
from vaeproj.__main__ import main
from vaeproj.config import UserError

PIXEL = base64.b64encode(b"no real picture").decode()
VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Elements, addresses, anchors and the words that are neither code nor mathematics."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.names, self.addresses, self.anchors, self.prose, self.code = [], [], [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.names.append(tag)
        self.addresses += [(tag, attrs[key]) for key in ("src", "href", "srcset", "data") if key in attrs]
        self.anchors.add(attrs.get("id"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open and "math" not in self.open:
            (self.code if {"code", "pre"} & set(self.open) else self.prose).append(data)


def picture(kind, **others):
    return v4.new_output("display_data", {kind: PIXEL, "text/plain": "<Image object>", **others})


def write(folder, name, *cells):
    folder.mkdir(exist_ok=True)
    nbformat.write(v4.new_notebook(cells=list(cells), metadata={"language_info": {"name": "python"}}), folder / name)


@pytest.fixture
def notebooks(tmp_path):
    """Two notebooks with all that a site has to deal with."""
    folder = tmp_path / "notebooks"
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "0"}}
    write(
        folder,
        "01_first.ipynb",
        v4.new_markdown_cell("# 1 · First\n\nWhat is $x_0$, and\nwhy?\n\nNot in the contents."),
        v4.new_code_cell("alpha = 1  # costs $5 or $6", metadata={"tags": ["parameters"]}),
        v4.new_code_cell('importlib.util.find_spec("vaeproj")'),
        v4.new_markdown_cell("## Energy of $\\alpha$\n\n$$ E = \\sum_i r_i^2 $$\n\n`$HOME`, $a$, and\n\n```\necho $PATH\n```"),
        v4.new_code_cell(
            "# NBVAL_CHECK_OUTPUT\nprint(1 < 2)",
            outputs=[
                v4.new_output("stream", name="stdout", text="a < b & c"),
                v4.new_output("stream", name="stderr", text="a warning"),
                v4.new_output("display_data", {**widget, "text/plain": "training: 0%"}),
                picture("image/jpeg", **widget),
                picture("image/gif"),
                v4.new_output("display_data", {"text/markdown": "| m | $\\lambda$ |\n|---|---|\n| a | b |"}),
            ],
        ),
        v4.new_markdown_cell("See [the second](02_second.ipynb#end), [code](../vaeproj/site.py), [paper](https://arxiv.org)."),
        v4.new_markdown_cell("Next: [2 · Second](02_second.ipynb)"),
    )
    write(folder, "02_second.ipynb", v4.new_markdown_cell("# 2 · Second\n\nA lead.\n\n## End\n\n## End"))
    return folder


@pytest.fixture
def built(notebooks, tmp_path):
    (tmp_path / "moving.gif").write_bytes(b"gif")
    folder = site.build(notebooks, tmp_path / "site", tmp_path / "moving.gif").parent
    return {path.stem: path.read_text() for path in folder.glob("*.html")}


def check_closed(folder):
    """Every address in the site leads to something in it, but for links a reader may follow to the web."""
    pages = {path.name: Page(path.read_text()) for path in folder.glob("*.html")}
    for name, page in pages.items():
        assert not {"script", "link", "iframe", "object"} & set(page.names)
        for tag, address in page.addresses:
            if address.startswith("data:") or (tag == "a" and address.startswith("https:")):
                continue
            assert ":" not in address, address
            target, _, anchor = address.partition("#")
            assert (folder / (target or name)).is_file(), address
            assert not anchor or anchor in pages[target or name].anchors, address
    assert not re.search(r"@import|url\(", site.STYLE.read_text())
    return pages


def test_the_real_notebooks_need_nothing_from_elsewhere_and_every_formula_is_drawn(tmp_path):
    pages = check_closed(site.build(out=tmp_path / "site").parent)
    paths = sorted(site.NOTEBOOK_DIR.glob("[0-9][0-9]_*.ipynb"))
    assert set(pages) == {"index.html", *(f"{path.stem}.html" for path in paths)}
    for path in paths:
        page = pages[f"{path.stem}.html"]
        cells = nbformat.read(path, 4).cells
        text = "\n\n".join(re.sub(r"```.*?```|`[^`]*`", "", c.source, flags=re.S) for c in cells if c.cell_type == "markdown")
        assert page.names.count("math") >= len(re.findall(r"\$\$.+?\$\$|\$.+?\$", text, re.S))
        assert "merror" not in page.names
        assert "$" not in "".join(page.prose)
        assert "find_spec" not in "".join(page.code)
        assert "preset: str" in "".join(page.code)


def test_pages_are_closed_in_themselves(built, tmp_path):
    check_closed(tmp_path / "site")
    assert (tmp_path / "site" / "moving.gif").read_bytes() == b"gif"


def test_mathematics_is_mathml_and_code_keeps_its_dollars(built):
    page = Page(built["01_first"])
    assert built["01_first"].count('<math display="block">') == 1
    assert page.names.count("math") == 6  # x_0, the heading here and in the menu, E, a, lambda
    assert "∑" in built["01_first"]
    code = "".join(page.code)
    assert "# costs $5 or $6" in code
    assert "$HOME" in code
    assert "echo $PATH" in code


def test_what_only_a_running_notebook_needs_is_left_out(built):
    for words in ("find_spec", "NBVAL_CHECK_OUTPUT", "a warning", "training: 0%", "Image object", "widget"):
        assert words not in built["01_first"]
    assert "a &lt; b &amp; c" in built["01_first"]
    assert "celltag_parameters" in built["01_first"]
    assert built["01_first"].count("<table") == 1
    for kind in ("jpeg", "gif"):
        assert f'alt="Figure: Energy of alpha" src="data:image/{kind};base64,{PIXEL}"' in built["01_first"]


def test_links_lead_to_pages(built):
    first, second = (Page(built[name]).addresses for name in ("01_first", "02_second"))
    assert ("a", "02_second.html#end") in first
    assert ("a", "https://arxiv.org") in first
    assert not any("site.py" in address or "ipynb" in address for _, address in first)
    assert ("a", "#energy-of-α") in first
    assert 'href="02_second.html" rel="next"' in built["01_first"]
    assert 'href="01_first.html" rel="prev"' in built["02_second"]
    assert 'rel="prev"' not in built["01_first"]
    assert 'rel="next"' not in built["02_second"]
    assert ("a", "#end") in second
    assert ("a", "#end-") in second


def test_contents_have_title_question_and_picture_of_each_chapter(built, notebooks, tmp_path):
    page = Page(built["index"])
    text = " ".join("".join(page.prose).split())
    assert "1 · First What is , and why?" in text
    assert "2 · Second A lead." in text
    assert "Not in the contents" not in text
    assert ("img", "moving.gif") in page.addresses
    assert [a for t, a in page.addresses if t == "img" and a.startswith("data:")] == [f"data:image/jpeg;base64,{PIXEL}"]
    site.build(notebooks, tmp_path / "site", tmp_path / "none.gif")
    assert "none.gif" not in (tmp_path / "site" / "index.html").read_text()


def test_a_new_site_replaces_the_old_one_whole(built, notebooks, tmp_path):
    (notebooks / "02_second.ipynb").unlink()
    write(notebooks, "01_first.ipynb", v4.new_markdown_cell("# 1 · Other"))
    site.build(notebooks, tmp_path / "site", tmp_path / "none.gif")
    assert {path.name for path in (tmp_path / "site").iterdir()} == {"index.html", "01_first.html"}
    assert {path.name for path in tmp_path.iterdir()} == {"notebooks", "site", "moving.gif"}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("# 1 · Title\n\nA $\\nonsense$ formula", ["01_first.ipynb", "\\nonsense"]),
        ("# 1 · Title\n\n[gone](09_gone.ipynb)", ["01_first.ipynb", "09_gone.ipynb"]),
        ("No title", ["01_first.ipynb", "# 1 · Title"]),
    ],
)
def test_a_mistake_in_a_notebook_leaves_the_last_site(built, notebooks, tmp_path, refuses, source, words):
    write(notebooks, "01_first.ipynb", v4.new_markdown_cell(source))
    with refuses(*words):
        site.build(notebooks, tmp_path / "site")
    assert {path.stem: path.read_text() for path in (tmp_path / "site").glob("*.html")} == built
    assert {path.name for path in tmp_path.iterdir()} == {"notebooks", "site", "moving.gif"}


def test_mistakes_are_told_in_one_sentence(notebooks, tmp_path, refuses):
    with refuses("no notebooks"):
        site.build(tmp_path, tmp_path / "site")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "index.html").write_text("my own page")
    with refuses(mine, "--out"):
        site.build(notebooks, mine)
    assert (mine / "index.html").read_text() == "my own page"
    with refuses("cannot be written", "--out"):
        site.build(notebooks, mine / "index.html" / "site")
    (notebooks / "01_first.ipynb").write_text("{")
    with refuses("01_first.ipynb", "is not a notebook"):
        site.build(notebooks, tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_a_failed_swap_brings_the_last_site_back(built, notebooks, tmp_path, monkeypatch):
    rename = type(tmp_path).rename

    def fail(self, target):
        if ".partial" in self.name:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", fail)
    with pytest.raises(UserError, match="No space left"):
        site.build(notebooks, tmp_path / "site")
    assert {path.stem: path.read_text() for path in (tmp_path / "site").glob("*.html")} == built


def test_command_line(notebooks, tmp_path, capsys):
    assert main(["site", "--notebooks", str(notebooks), "--out", str(tmp_path / "site")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'site' / 'index.html'}\n"
    assert main(["site", "--notebooks", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("vaeproj: ")
