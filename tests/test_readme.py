"""The README's table of hyper-parameters is the one that vaeproj/config.py declares, and its links lead somewhere."""

import dataclasses
import re

from vaeproj.config import PROJECT_ROOT, Config


def table():
    """Markdown of every field: default, range or choices, meaning, source."""
    lines = ["| name | default | range | meaning | source |", "|---|---|---|---|---|"]
    for field in dataclasses.fields(Config):
        meta = field.metadata
        if meta["choices"]:
            span = ", ".join(meta["choices"])
        elif meta["low"] is not None:
            span = f"{meta['low']:g} to {meta['high']:g}"
        else:
            span = "true, false"
        default = str(field.default).lower() if field.default is None or isinstance(field.default, bool) else field.default
        lines.append(
            f"| `{field.name}` | {default} | {span} | {meta['help']} | {meta['source']} |".replace(
                "|x - x_0|_1", "L1 distance to x_0"
            )
        )
    return "\n".join(lines)


def test_hyper_parameters_are_in_step():
    readme = (PROJECT_ROOT / "README.md").read_text()
    assert table() in readme, f"replace the table between the markers by:\n{table()}"


def test_links():
    links = re.findall(r"\]\(([^)#\s]+)", (PROJECT_ROOT / "README.md").read_text())
    assert [link for link in links if "://" not in link and not (PROJECT_ROOT / link).exists()] == []
