"""Every notebook runs with preset `ci`, and its marked cells print what the committed notebook shows."""

import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import papermill
import pytest
from PIL import Image

from vaeproj.config import PROJECT_ROOT
from vaeproj.runner import NOTEBOOK_DIR, run
from vaeproj.workspace import Request

NOTEBOOKS = sorted(NOTEBOOK_DIR.glob("[0-9][0-9]_*.ipynb"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def nbval(path):
    """Run a notebook and compare its marked cells, in a pytest of its own."""
    options = "--nbval-lax --nbval-current-env --nbval-cell-timeout=300 -q -p no:xdist -p no:cacheprovider -c /dev/null"
    command = [sys.executable, "-m", "pytest", *options.split(), "--rootdir", str(path.parent), str(path)]
    # One thread: beside another test process, two threads that wait for each other are many times slower than one.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, env=environment)


@EACH
def test_runs_with_preset_ci_and_marked_cells_agree(path, tmp_path):
    prepared = tmp_path / path.name
    parameters = Request(preset="ci", device="cpu").parameters(tmp_path / "out")
    papermill.execute_notebook(str(path), str(prepared), parameters, prepare_only=True, progress_bar=False)
    done = nbval(prepared)
    assert done.returncode == 0, done.stdout[-4000:]


@EACH
def test_is_committed_as_it_ran_with_its_figures(path):
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        assert len(cell.source.splitlines()) <= 25, cell.source
        assert cell.execution_count is not None, f"not executed: {cell.source}"
        assert not any(o.output_type == "error" or o.get("name") == "stderr" for o in cell.outputs), cell.source
    assert any("image/jpeg" in o.get("data", {}) for c in code for o in c.outputs), "no figure"
    assert path.stat().st_size < 500_000
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert not re.findall(r"^(?:%|\+\+\+).*", prose, re.MULTILINE), "the site takes such a line for a comment"
    exercises = prose.split("## Exercises")[1]
    assert exercises.count("<details>") == exercises.count("</details>") == exercises.count("*Hint:*")
    assert len(re.findall(r"^\d\. ", exercises, re.M)) == exercises.count("*Hint:*") >= 3


def test_no_function_is_defined_in_two_places():
    cells = [cell.source for path in NOTEBOOKS for cell in read(path).cells]
    package = [path.read_text() for path in (PROJECT_ROOT / "vaeproj").rglob("*.py")]
    names, own = (re.findall(r"^def ([a-z]\w+)", "\n".join(sources), re.M) for sources in (cells, package))
    assert len(names) == len(set(names))
    assert not set(names) & set(own)


@EACH
def test_parameters_are_typed_and_commented(path):
    inspected = papermill.inspect_notebook(str(path))
    assert set(inspected) == set(Request().parameters(NOTEBOOK_DIR))
    assert {entry["inferred_type_name"] for entry in inspected.values()} == {"str"}
    assert all(entry["help"] for entry in inspected.values())


@EACH
def test_without_a_clone_the_cell_that_installs_ends_in_one_sentence(path, tmp_path):
    """In a Python without site-packages: the package is not there, nor a pyproject.toml in the folder or above it."""
    (cell,) = (cell for cell in tagged(read(path), "remove-cell") if "find_spec" in cell.source)
    done = subprocess.run([sys.executable, "-I", "-S", "-c", cell.source], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"[^.\n]* clone the repository [^.\n]*\.\n", done.stderr)


def test_a_changed_marked_output_is_noticed(tmp_path):
    """The comparison itself can fail: the same notebook with one marked output altered does."""
    notebook = read(NOTEBOOKS[0])
    marked = tagged(notebook, "nbval-check-output")[0]
    marked.outputs[0].text = marked.outputs[0].text.replace("49", "50")
    notebook.cells = [cell for cell in notebook.cells if cell is marked or "vaeproj.crops" in cell.source]
    notebook.cells[0].source = "import torch\nfrom vaeproj.crops import tile, untile"
    notebook.cells[0].outputs = []
    path = tmp_path / "altered.ipynb"
    nbformat.write(notebook, path)
    done = nbval(path)
    assert done.returncode == 1
    assert "50" in done.stdout


def test_notebooks_01_to_06_run_on_colour_pictures_without_masks(category, tmp_path, monkeypatch):
    """A sentence in each says what is left out, and no figure or number of it is made."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shutil.rmtree(category / "ground_truth")
    (category / "clean").mkdir()  # what SynthGrid knows is of no use without masks
    for path in category.rglob("[0-9]*.png"):
        if path.is_file():
            Image.open(path).convert("RGB").save(path)
    settings = "image_size=48 widths=8-16 hidden=32 latent_dim=8 steps=2 iterations=1"
    asked = Request("ci", settings, str(category.parent), "mesh", "cpu", str(tmp_path / "out"))
    out = run(tuple(path.stem[:2] for path in NOTEBOOKS[:6]), asked, progress=False)
    for path in sorted(out.glob("*.ipynb")):
        told = "\n".join(o.text for cell in read(path).cells for o in cell.get("outputs", []) if "text" in o)
        assert told.count("has no masks, so") == 1
        assert not re.search(r"\bnan\b", told.partition("oracle     F1 nan at nan\nlabel-free F1 nan")[0]), path.stem
        assert not re.search(r"inside the mask|outside the mask|overlap|PSNR", told)
    made = {path.stem for path in (out / "figures").glob("*.npz")}
    assert made >= {"dataset", "residual", "comparison", "roc_pro", "gallery", "cases"}
    assert not made & {"statistics", "restoration", "repair_and_damage"}
    metrics = json.loads((out / "metrics.json").read_text())
    assert 0 <= metrics["headline"].pop("image_AUROC") <= 1
    assert set(metrics["headline"].values()) == {None}


def test_two_equal_runs_give_the_same_bytes(tmp_path):
    runs = [run(("05",), Request(preset="ci", device="cpu", out=str(tmp_path / name)), progress=False) for name in "ab"]
    files = sorted(path.relative_to(runs[0]) for path in runs[0].rglob("*") if path.is_file())
    assert {path.suffix for path in files} >= {".png", ".pdf", ".npz", ".gif", ".webp", ".html", ".json"}
    differ = [path for path in files if (runs[0] / path).read_bytes() != (runs[1] / path).read_bytes()]
    # What was printed names the folder or the time; the manifest alone holds wall times.
    assert {path.name for path in differ} <= {"manifest.json", "05_figures.ipynb"}
