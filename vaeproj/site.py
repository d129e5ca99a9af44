"""The notebooks as a static book: one page a notebook and a page of contents, which load nothing from anywhere.

Pictures and the stylesheet are inside the pages, and mathematics is MathML, which browsers draw by themselves.
"""

from __future__ import annotations

import html
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import nbformat
from math_core import LatexError, LatexToMathML
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from .config import PROJECT_ROOT, RESULTS_DIR, UserError
from .files import swap_in

NOTEBOOK_DIR = PROJECT_ROOT / "notebooks"
ANIMATION = RESULTS_DIR / "reference" / "projection.gif"
STYLE = Path(__file__).with_name("site.css")
GENERATOR = '<meta name="generator" content="vaeproj site">'  # tells a site that may be replaced from a user's folder
PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp")
INSTALL = 'find_spec("vaeproj")'  # of the cell that installs the package on Colab, which a reader need not see
# A browser may break a line between a formula and what follows it.
FORMULA_END = re.compile(r"\(?<math>(?:(?!</math>).)*</math>(?:[,.;:?!)]|-\w+)+", re.DOTALL)
PAPER = '<a href="https://openreview.net/forum?id=HJx81ySKwr">Dehaene, Frigo, Combrexelle and Eline, ICLR 2020</a>'

TITLE = "Find defects by repairing them"
LEAD = (
    "A variational autoencoder learns what a normal texture looks like. Then gradient descent moves <em>the image itself</em> "
    "until the autoencoder can explain it: the defect disappears, the texture stays sharp, and what changed is the anomaly map."
)
CAPTION = "A test image, what the autoencoder makes of it, and the image as its pixels follow the gradient."


@dataclass(frozen=True)
class Chapter:
    """One notebook, rendered; title, lead, body and the sections' titles are HTML."""

    file: str  # 01_data_exploration.html
    number: str
    title: str
    lead: str  # the first paragraph
    body: str
    sections: tuple[tuple[str, str], ...]  # anchor and title of each
    thumbnail: str | None  # the first picture, as an address that holds it


def build(notebooks: Path = NOTEBOOK_DIR, out: Path = RESULTS_DIR / "site", animation: Path = ANIMATION) -> Path:
    """Render the notebooks of a folder into a site that is written whole or not at all.

    Args:
        notebooks: folder of ``NN_name.ipynb``, with or without outputs; a run folder will do.
        out: becomes the site's folder; an earlier site there is replaced.
        animation: shown on the page of contents, if there is such a file.

    Returns:
        The site's first page.

    Raises:
        UserError: no notebooks, one that cannot be rendered, or ``out`` is something else than a site.
    """
    paths = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise UserError(f"{notebooks} holds no notebooks such as 01_data_exploration.ipynb: pass the folder that does.")
    out = out.expanduser().resolve()
    _check_replaceable(out)
    names = {path.name for path in paths}
    chapters = [_chapter(path, names) for path in paths]
    files = {c.file: _page(c, chapters).encode() for c in chapters}
    if animation.is_file():
        files[animation.name] = animation.read_bytes()
    files["index.html"] = _contents(chapters, animation.name if animation.is_file() else None).encode()
    try:
        _write(files, out)
    except OSError as error:
        raise UserError(f"The site cannot be written to {out} ({error.strerror}): pass --out another folder.") from error
    return out / "index.html"


def _check_replaceable(out: Path) -> None:
    index = out / "index.html"
    if index.is_file() and GENERATOR in index.read_text(errors="replace"):
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not a site of ours: pass --out another folder.")


def _write(files: dict[str, bytes], out: Path) -> None:
    """A folder of ``files``, whole or not at all."""
    staging = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        staging.mkdir(parents=True)
        for name, data in files.items():
            (staging / name).write_bytes(data)
        swap_in(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


# --- a notebook


class _Renderer(IPythonRenderer):
    """Markdown of one notebook: mathematics as MathML, links to notebooks as links to pages, sections noted down."""

    def __init__(self, path: Path, names: set[str]) -> None:
        super().__init__(escape=False, embed_images=True, path=str(path.parent))
        self.notebook, self.names = path.name, names
        self.sections: list[tuple[str, str]] = []
        self.mathml = LatexToMathML(fancy_error=False)

    def html(self, source: str) -> str:
        """Render a cell."""
        rendered = MarkdownWithMath(renderer=self).render(source)
        return FORMULA_END.sub(r'<span class="unbroken">\g<0></span>', rendered)

    def inline_math(self, body: str) -> str:
        return self._math(body, display=False)

    def block_math(self, body: str) -> str:
        return f'<span class="formula">{self._math(body, display=True)}</span>'

    def _math(self, tex: str, *, display: bool) -> str:
        try:
            return self.mathml.convert_with_local_state(tex, displaystyle=display)
        except LatexError as error:
            reason, formula = str(error).rstrip("."), " ".join(tex.split())
            raise UserError(
                f"{self.notebook}: the formula ${formula}$ cannot be shown ({reason}), so correct it there."
            ) from error

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if ":" in url or url.startswith("#"):
            return super().link(text, url, title)
        target, hash_, anchor = url.removeprefix("./").partition("#")
        if target in self.names:
            return super().link(text, f"{Path(target).stem}.html{hash_}{anchor}", title)
        if target.endswith(".ipynb") and "/" not in target:
            raise UserError(f"{self.notebook} has a link to {target}, which is not beside it: correct the link.")
        return text  # a file of the repository, which is not part of the site

    def heading(self, text: str, level: int, **attrs: object) -> str:
        anchor = re.sub(r"\W+", "-", html.unescape(re.sub(r"<[^>]*>", "", text))).strip("-").lower()
        while any(anchor == known for known, _ in self.sections):
            anchor += "-"
        if level == 2:
            self.sections.append((anchor, text))
        mark = f'<a class="anchor" href="#{anchor}" aria-label="Link to this section">¶</a>'
        return f'<h{level} id="{anchor}">{text}{mark if level > 1 else ""}</h{level}>\n'


def _chapter(path: Path, names: set[str]) -> Chapter:
    """Render one notebook."""
    try:
        notebook = nbformat.read(path, as_version=4)
    except (ValueError, AttributeError, nbformat.ValidationError) as error:
        raise UserError(f"{path} is not a notebook that can be read: restore it or run it again.") from error
    first = notebook.cells[0].source if notebook.cells else ""
    heading, *paragraphs = re.split(r"\n\s*\n", first.strip())
    named = re.fullmatch(r"# +(?:(\d+) · )?(.+)", heading)
    if not named:
        raise UserError(f"{path} begins without a title: make '# 1 · Title' the first line of its first cell.")
    thumbnail = _tidy(notebook)
    renderer = _Renderer(path, names)
    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True,
        filters={"markdown2html": renderer.html},
    )  # fmt: skip
    body, _ = exporter.from_notebook_node(notebook)
    to_html = _Renderer(path, names).html
    return Chapter(
        file=f"{path.stem}.html",
        number=named[1] or str(int(path.stem[:2])),
        title=re.sub("</?p>", "", to_html(named[2])).strip(),
        lead=to_html(paragraphs[0]) if paragraphs else "",
        body=body,
        sections=tuple(renderer.sections),
        thumbnail=thumbnail,
    )


def _tidy(notebook: NotebookNode) -> str | None:
    """Leave what only a running notebook needs out, and make pictures HTML; returns the first one's address."""
    notebook.metadata.pop("widgets", None)
    # The page has its own links to the chapters before and after.
    notebook.cells = [c for c in notebook.cells if INSTALL not in c.source and not re.match(r"(Before|Next): \[", c.source)]
    section, first = "", None
    for cell in notebook.cells:
        for title in re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else ():
            section = title.replace("$", "").replace("\\", "")
        if cell.cell_type == "code":
            cell.source = cell.source.removeprefix("# NBVAL_CHECK_OUTPUT\n")
            cell.outputs = [output for output in cell.outputs if _is_shown(output)]
            for output in cell.outputs:
                kind = next((k for k in PICTURES if k in output.get("data", {})), None)
                if kind:
                    address = f"data:{kind};base64," + "".join(output.data[kind].split())
                    first = first or address
                    # HTML, because nbconvert does not know GIF and has no words for those who cannot see.
                    output.data = {"text/html": f'<img src="{address}" alt="Figure: {html.escape(section)}">'}
                    output.metadata = {}
    return first


def _is_shown(output: NotebookNode) -> bool:
    """Not what goes to stderr, nor a widget that left no picture, such as a progress bar."""
    data = output.get("data", {})
    widget = "application/vnd.jupyter.widget-view+json" in data and not any(k in data for k in PICTURES)
    return output.get("name") != "stderr" and not widget


# --- pages


def _document(title: str, body: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{GENERATOR}\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>\n{STYLE.read_text()}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _page(chapter: Chapter, chapters: list[Chapter]) -> str:
    """A chapter between the list of all chapters and the links to its neighbours."""
    items = []
    for c in chapters:
        current, sections = "", ""
        if c is chapter:
            current = ' aria-current="page"'
            sections = "".join(f'<li><a href="#{anchor}">{title}</a></li>' for anchor, title in c.sections)
            sections = f"<ol>{sections}</ol>" if sections else ""
        number = f'<span class="number">{c.number}</span>'
        items.append(f'<li><a href="{c.file}"{current}>{number} <span class="title">{c.title}</span></a>{sections}</li>')
    i = chapters.index(chapter)
    turn = "".join(
        f'<a href="{c.file}" rel="{rel}"><span class="label">{label}</span>{c.number} · {c.title}</a>'
        for c, rel, label in (
            *((c, "prev", "← Previous") for c in chapters[max(i - 1, 0) : i]),
            *((c, "next", "Next →") for c in chapters[i + 1 : i + 2]),
        )
    )
    menu = f'<span class="home"><a href="index.html">{TITLE}</a></span>\n<ol>\n' + "\n".join(items) + "\n</ol>"
    source = f"<footer>Made from the notebook <code>{Path(chapter.file).stem}.ipynb</code>. The method: {PAPER}.</footer>"
    body = (
        f'<div class="page">\n<nav class="chapters" aria-label="Chapters">\n{menu}\n</nav>\n<main>\n{chapter.body}\n'
        f'<nav class="turn" aria-label="Neighbouring chapters">{turn}</nav>\n{source}\n</main>\n</div>'
    )
    return _document(f"{chapter.number} · {_plain(chapter.title)}", body)


def _contents(chapters: list[Chapter], animation: str | None) -> str:
    """The first page: what it is about, and a card a chapter."""
    figure = f'<figure><img src="{animation}" alt="{CAPTION}"><figcaption>{CAPTION}</figcaption></figure>' if animation else ""
    cards = []
    for c in chapters:
        picture = f'<img src="{c.thumbnail}" alt="">' if c.thumbnail else f'<div class="number">{c.number}</div>'
        words = f'<h2><a href="{c.file}">{c.number} · {c.title}</a></h2>\n{c.lead}'
        cards.append(f'<article class="card">\n{picture}\n<div>{words}</div>\n</article>')
    body = f"<h1>{TITLE}</h1>\n<p>{LEAD}</p>\n{figure}\n" + "\n".join(cards) + f"\n<footer>The method: {PAPER}.</footer>"
    return _document(TITLE, f'<main class="contents">\n{body}\n</main>')


def _plain(text: str) -> str:
    return re.sub(r"<[^>]*>", "", text)
