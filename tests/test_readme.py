"""README.md is short, links lead somewhere, settings are those of the code, and tables hold what was measured."""

import dataclasses
import json
import re

import numpy as np
import pytest

from vaeproj.config import DESCENTS, PRESETS, PROJECT_ROOT, Config
from vaeproj.studies.comparison import table

README, *DOCS = (PROJECT_ROOT / name for name in ("README.md", "docs/settings.md", "docs/measurements.md", "docs/commands.md"))


def test_readme_fits_on_a_few_screens():
    assert len(README.read_text().splitlines()) <= 130


def test_settings_are_in_step():
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
    expected, settings = "\n".join(lines), DOCS[0].read_text()
    assert expected in settings, f"replace the table between the markers of docs/settings.md by:\n{expected}"
    assert all(f"| `{preset}` |" in settings for preset in PRESETS)
    brought = (" ".join(f"{name}={value:g}" for name, value in own.items() if name != "descent") for own in DESCENTS.values())
    assert all(f"| `{values}` |" in settings for values in brought)


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: page.name)
def test_links(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def repair(row):
    psnr = (f"{row[key]:.1f} dB" for key in ("psnr_inside", "psnr_outside"))
    rest = (f"{row[key]:.3f}" for key in ("ssim_inside", "ssim_outside", "error_power"))
    return f"| {' | '.join([*psnr, *rest])} |".replace(" 0.", " .")


def localization(row):
    gain = row["gain"]["composite"]["pixel_AP"]
    error = f"{gain['difference']:+.4f} ± {gain['standard_error']:.4f}" if gain["standard_error"] else ""
    pixel = (f"{row[key]:.3f}" for key in ("pixel_AUROC", "pixel_AUPRO", "pixel_AP"))
    return f"| {' | '.join([*pixel, error])} | {row['image_AUROC']:.3f} |".replace("0.", ".").replace("|  |", "| |")


def test_tables_hold_what_was_measured():
    reference = PROJECT_ROOT / "results/reference"
    quick, half = (json.loads((reference / f"{name}.json").read_text())["metrics"] for name in ("quick", "half"))
    seeds = half["restoration"].values()
    half_repair = [{k: np.mean([s[method][k] for s in seeds]) for k in row} for method, row in next(iter(seeds)).items()]
    methods = dict(sorted(half["methods"].items(), key=lambda method: method[1]["pixel_AP"]))
    measurements = DOCS[1].read_text()
    assert table(methods) in measurements
    object_ = json.loads((reference / "object.json").read_text())["metrics"]["methods"]
    assert table(dict(sorted(object_.items(), key=lambda method: method[1]["pixel_AP"]))) in measurements
    assert all(repair(row) in measurements for row in [*quick["restoration"].values(), *half_repair])
    measured = [*map(repair, quick["restoration"].values()), *map(localization, methods.values())]
    shown = re.findall(r"^\|.*\.\d.*$", README.read_text().replace("*", ""), re.MULTILINE)
    assert len(shown) == 12 and [row for row in shown if not row.endswith(tuple(measured))] == []
