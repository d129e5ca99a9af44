"""Every notebook runs with preset `ci`, and its marked cells print what the committed notebook shows."""

import os
import re
import subprocess
import sys

import nbformat
import papermill
import pytest
from vaeproj.runner import NOTEBOOK_DIR, Request

from vaeproj.config import PROJECT_ROOT

NOTEBOOKS = sorted(NOTEBOOK_DIR.glob("[0-9][0-9]_*.ipynb"))
MARK = "# NBVAL_CHECK_OUTPUT"


def read(path):
    return nbformat.read(path, as_version=4)


def nbval(path):
    """Run a notebook and compare its marked cells, in a pytest of its own."""
    options = [
        "--nbval-lax",
        "--nbval-current-env",
        "--nbval-cell-timeout=300",
        "-q",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
    ]
    # One thread: beside another test process, two threads that wait for each other are many times slower than one.
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", str(path.parent), "-c", "/dev/null", str(path)],
        capture_output=True,
        text=True,
        cwd=PROJECT_ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_with_preset_ci_and_marked_cells_agree(path, tmp_path):
    prepared = tmp_path / path.name
    parameters = Request(preset="ci", device="cpu").parameters(tmp_path / "out")
    papermill.execute_notebook(str(path), str(prepared), parameters, prepare_only=True, progress_bar=False)
    done = nbval(prepared)
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_in_good_order(path):
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [c.metadata.get("tags") for c in code].count(["parameters"]) == 1
    for cell in code:
        assert len(cell.source.splitlines()) <= 25, cell.source
        assert cell.execution_count is not None, f"not executed: {cell.source}"
        assert not any(o.output_type == "error" or o.get("name") == "stderr" for o in cell.outputs), cell.source
    assert any("image/jpeg" in o.get("data", {}) for c in code for o in c.outputs), "no figure"
    assert path.stat().st_size < 500_000
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "**You will learn**" in text
    assert "## Summary" in text
    assert len(re.findall(r"^\d\. .*?\*Hint:\*", text.split("## Exercises")[1], re.M | re.S)) >= 1
    assert len(re.findall(r"^[123]\. ", text.split("## Exercises")[1], re.M)) == 3
    assert text.count("*Hint:*") >= 3


def test_parameters_are_typed_and_commented():
    for path in NOTEBOOKS:
        inspected = papermill.inspect_notebook(str(path))
        assert set(inspected) == set(Request().parameters(NOTEBOOK_DIR))
        for name, entry in inspected.items():
            assert entry["inferred_type_name"] == "str", (path, name)
            assert entry["help"], (path, name)


def test_no_function_is_defined_in_two_places():
    names = [name for path in NOTEBOOKS for cell in read(path).cells for name in re.findall(r"^def (\w+)", cell.source, re.M)]
    package = [name for p in (PROJECT_ROOT / "vaeproj").glob("*.py") for name in re.findall(r"^def (\w+)", p.read_text(), re.M)]
    assert len(names) == len(set(names))
    assert not set(names) & set(package)


def test_a_changed_marked_output_is_noticed(tmp_path):
    """The comparison itself can fail: the same notebook with one marked output altered does."""
    notebook = read(NOTEBOOKS[0])
    marked = next(cell for cell in notebook.cells if cell.source.startswith(MARK))
    marked.outputs[0].text = marked.outputs[0].text.replace("49", "50")
    notebook.cells = [cell for cell in notebook.cells if cell is marked or "vaeproj.crops" in cell.source]
    notebook.cells[0].source = "import torch\nfrom vaeproj.crops import tile, untile"
    notebook.cells[0].outputs = []
    path = tmp_path / "altered.ipynb"
    nbformat.write(notebook, path)
    done = nbval(path)
    assert done.returncode == 1
    assert "50" in done.stdout
