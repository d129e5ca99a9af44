"""What README.ja.md names exists: files, functions, headings, commands, presets, and the article's values."""

import ast
import dataclasses
import json
import pkgutil
import re
import shlex

import pytest

from vaeproj.cli.commands import parser
from vaeproj.config import PRESETS, PROJECT_ROOT, Config, parse_settings
from vaeproj.studies.article import BUGS

README = (PROJECT_ROOT / "README.ja.md").read_text(encoding="utf-8")
LINKS = sorted({link for link in re.findall(r"\]\(([^)\s]+)\)", README) if "://" not in link})
NAMES = sorted(set(re.findall(r"`(vaeproj(?:\.\w+)+)`", README)))
HEADINGS = sorted(
    {
        (notebook, heading)
        for notebook, group in re.findall(r"\]\(notebooks/(\w+\.ipynb)\)((?:「[^」]+」)+)", README)
        for heading in re.findall(r"「([^」]+)」", group)
    }
)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line.partition("#")[0].strip() for language, block in BLOCKS if not language for line in block.splitlines()]


def anchor(heading):
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("link", LINKS)
def test_link(link):
    path, _, fragment = link.partition("#")
    assert (PROJECT_ROOT / path).exists()
    if fragment:
        target = README if not path else (PROJECT_ROOT / path).read_text(encoding="utf-8")
        assert fragment in map(anchor, re.findall(r"^#+ (.+)$", target, re.MULTILINE))


@pytest.mark.parametrize("name", NAMES)
def test_name(name):
    assert pkgutil.resolve_name(name) is not None


@pytest.mark.parametrize(("notebook", "heading"), HEADINGS)
def test_heading(notebook, heading):
    cells = json.loads((PROJECT_ROOT / "notebooks" / notebook).read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command):
    words = shlex.split(command)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (PROJECT_ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
        words = ["python", "-m", "vaeproj", "run", *shlex.split("".join(words[2:]).removeprefix("ARGS="))]
    assert words[:3] == ["python", "-m", "vaeproj"]
    arguments = parser().parse_args(words[3:])
    if words[3] == "run":
        Config.from_preset(arguments.preset, " ".join(arguments.settings))


def test_python_imports_what_exists():
    (code,) = (block for language, block in BLOCKS if language == "python")
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    names = [f"{node.module}:{alias.name}" for node in nodes for alias in node.names]
    assert names and all(map(pkgutil.resolve_name, names))


def test_recipe_is_the_preset():
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", README.partition("## 元記事の設定で動かす")[2], re.MULTILINE)
    config = dataclasses.asdict(Config.from_preset("blog"))
    said = parse_settings(" ".join(f"{name}={value}" for name, value in rows))
    assert said == {name: config[name] for name in said}
    assert set(PRESETS["blog"]) - {"steps"} <= set(said)


def test_nothing_is_left_out():
    """Every notebook, preset and kept bug is named, and the patterns above found what they look for."""
    assert {f"notebooks/{p.name}" for p in (PROJECT_ROOT / "notebooks").glob("0*.ipynb")} <= set(LINKS)
    assert all(f"| `{preset}` |" in README for preset in PRESETS)
    assert all(f"| `{bug}` |" in README for bug in BUGS)
    assert NAMES and HEADINGS
