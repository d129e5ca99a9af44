"""The README's table of hyper-parameters is the one that vaeproj/config.py declares, and its links lead somewhere."""

import dataclasses
import re

from vaeproj.config import PROJECT_ROOT, Config


def test_hyper_parameters_are_in_step():
    lines = ["| name | default | range | meaning | source |", "|---|---|---|---|---|"]
    for field in dataclasses.fields(Config):
        meta = field.metadata
        numbers = "true, false" if isinstance(field.default, bool) else "two numbers or more"
        numbers = numbers if meta["low"] is None else f"{meta['low']:g} to {meta['high']:g}"
        default = str(field.default).lower() if isinstance(field.default, bool) else field.default
        cells = (f"`{field.name}`", default, ", ".join(meta["choices"] or [numbers]), meta["help"], meta["source"])
        lines.append(
            f"| {' | '.join(map(str, cells))} |".replace("|x - x_0|_1", "L1 distance to x_0").replace("|x_T - x_0|", "change")
        )
    table = "\n".join(lines)
    assert table in (PROJECT_ROOT / "README.md").read_text(), f"replace the table between the markers by:\n{table}"


def test_links():
    links = re.findall(r"\]\(([^)#\s]+)", (PROJECT_ROOT / "README.md").read_text())
    assert [link for link in links if "://" not in link and not (PROJECT_ROOT / link).exists()] == []
