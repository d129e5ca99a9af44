"""The command line and the run folder: whole or not at all, and one sentence for every mistake."""

import json
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from PIL import Image
from vaeproj.runner import Request, publish, run

from vaeproj import runner
from vaeproj.__main__ import main
from vaeproj.config import UserError
from vaeproj.figures import save

ONE_CELL = """
from vaeproj.workspace import Workspace
ws = Workspace.open(preset, settings, data_root, category, device, out)
ws.record(alpha=ws.config.alpha)
"""


@pytest.fixture
def data_root(tmp_path):
    """A tiny data set in MVTec AD's layout: two good training images, one good and one bent test image."""
    root, rng = tmp_path / "data", np.random.default_rng(0)
    for name in ("train/good/000", "train/good/001", "test/good/000", "test/bent/000", "ground_truth/bent/000_mask"):
        path = root / "grid" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A folder of one-cell notebooks in place of the tutorial; returns a function that writes one."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(runner, "NOTEBOOK_DIR", folder)
    names = Request().parameters(folder)

    def write(name, source=ONE_CELL, parameters=tuple(names)):
        cell = nbformat.v4.new_code_cell(
            "\n".join(f'{p}: str = ""  # {p}' for p in parameters), metadata={"tags": ["parameters"]}
        )
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        notebook = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell(source)], metadata=kernel)
        nbformat.write(notebook, folder / f"{name}.ipynb")

    return write


def request(tmp_path, data_root, **changes):
    return Request(
        **({"notebooks": ("01",), "preset": "ci", "data_root": str(data_root), "out": str(tmp_path / "run")} | changes)
    )


def test_a_run_folder_says_what_it_was_made_from(tmp_path, data_root, notebooks):
    notebooks("01_a")
    folder = run(request(tmp_path, data_root, settings="alpha=0.25"), progress=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert json.loads((folder / "metrics.json").read_text()) == {"alpha": 0.25}
    assert manifest["config"]["alpha"] == 0.25
    assert manifest["images"] == {"train": 2, "test": 2}
    assert manifest["packages"]["torch"]
    assert len(manifest["data"]["train"]) == 64
    assert set(manifest["notebooks"]) == {"01_a"}
    assert manifest["notebooks"]["01_a"]["seconds"] > 0
    assert manifest["notebooks"]["01_a"]["commit"] == manifest["commit"]
    assert "partial" not in (folder / "01_a.ipynb").read_text()
    assert sorted(p.name for p in tmp_path.iterdir() if "run" in p.name) == ["run"]


def test_same_configuration_adds_and_another_replaces(tmp_path, data_root, notebooks):
    notebooks("01_a")
    notebooks("02_b", ONE_CELL.replace("alpha=", "second="))
    run(request(tmp_path, data_root), progress=False)
    folder = run(request(tmp_path, data_root, notebooks=("02",)), progress=False)
    assert set(json.loads((folder / "metrics.json").read_text())) == {"alpha", "second"}
    run(request(tmp_path, data_root, notebooks=("02",), settings="lam=1"), progress=False)
    assert set(json.loads((folder / "metrics.json").read_text())) == {"second"}
    assert not (folder / "01_a.ipynb").exists()


def test_a_failing_notebook_leaves_the_old_run_whole(tmp_path, data_root, notebooks):
    notebooks("01_a")
    notebooks("02_b", "1 / 0")
    folder = run(request(tmp_path, data_root), progress=False)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(UserError, match="02_b failed with ZeroDivisionError"):
        run(request(tmp_path, data_root, notebooks=("01", "02")), progress=False)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert not list(tmp_path.glob(".run.partial*"))


def test_mistakes_end_in_one_sentence_and_write_nothing(tmp_path, data_root, notebooks, capsys):
    notebooks("01_a")
    notebooks("02_b", parameters=("preset", "out"))
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    (data_root / "grid" / "readme.txt").write_text("stray")
    shutil.copytree(data_root, tmp_path / "broken")
    (tmp_path / "broken/grid/test/bent/000.png").write_bytes(b"no image")
    shutil.copytree(data_root, tmp_path / "maskless")
    shutil.rmtree(tmp_path / "maskless/grid/ground_truth")
    before = sorted(p for p in tmp_path.rglob("*"))
    base = ["run", "01", "--preset", "ci", "--data-root", str(data_root), "--out", str(tmp_path / "run")]
    cases = {
        "no notebook '99'": ["run", "99"],
        "no preset 'nope'": [*base, "--preset", "nope"],
        "no hyper-parameter 'alhpa'": [*base, "--set", "alhpa=1"],
        "alpha = 'big'": [*base, "--set", "alpha=big"],
        "not of the form NAME=VALUE": [*base, "--set", "alpha"],
        "no CUDA GPU": [*base, "--device", "cuda"],
        "no device 'tpu'": [*base, "--device", "tpu"],
        "is not a folder": [*base, "--data-root", str(tmp_path / "nowhere")],
        "categories found: grid": [*base, "--category", "tile"],
        "cannot be read as an image": [*base, "--data-root", str(tmp_path / "broken")],
        "has no mask": [*base, "--data-root", str(tmp_path / "maskless")],
        "not the folder of a run": [*base, "--out", str(foreign)],
        "has no parameter": [*base[:1], "02", *base[2:]],
        "check the path": ["data", "synth", "--data-root", str(foreign / "thesis.txt")],
        "unknown url type": ["data", "download", "--url", "nowhere", "--data-root", str(foreign)],
        "not the folder of a finished run": ["figures", "comparison", "--run", str(tmp_path / "nowhere")],
    }
    for sentence, arguments in cases.items():
        if "cuda" in arguments and _has_cuda():
            continue
        assert main(arguments) == 2, arguments
        said = capsys.readouterr().err.strip()
        assert sentence in said, said
        assert len(said.splitlines()) == 1, said
        assert "Traceback" not in said
    assert sorted(p for p in tmp_path.rglob("*")) == before


def _has_cuda():
    import torch

    return torch.cuda.is_available()


def test_what_is_no_run_cannot_be_published(tmp_path, data_root, notebooks, refuses):
    with refuses("no executed notebooks"):
        publish(tmp_path / "nowhere")
    notebooks("01_a")
    notebooks("02_b")
    folder = run(request(tmp_path, data_root, notebooks=("01", "02")), progress=False)
    notebooks("02_b", "pass")
    before = (tmp_path / "notebooks/01_a.ipynb").read_bytes()
    with refuses("not a run of today's 02_b.ipynb"):
        publish(folder)
    assert (tmp_path / "notebooks/01_a.ipynb").read_bytes() == before


def test_a_kernel_that_dies_is_one_sentence(tmp_path, data_root, notebooks, refuses):
    notebooks("01_a", "import os\nos._exit(9)")
    with refuses("01_a broke off", "memory"):
        run(request(tmp_path, data_root), progress=False)
    assert not (tmp_path / "run").exists()


def test_the_module_is_a_command():
    done = subprocess.run([sys.executable, "-m", "vaeproj", "run", "--preset", "nope"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("vaeproj: There is no preset 'nope'")


def test_figures_lists_and_redraws_one(tmp_path, capsys):
    assert main(["figures"]) == 0
    assert "comparison" in capsys.readouterr().out
    crops = np.zeros((2, 1, 8, 8), np.float32)
    for name in ("reconstruction", "crops"):
        save(
            name,
            tmp_path / "figures",
            "f",
            **dict(zip(("originals", "pictures") if name[0] == "r" else ("plain", "augmented"), (crops, crops), strict=True)),
        )
    stamp = (tmp_path / "figures/crops.png").stat().st_mtime_ns
    picture = (tmp_path / "figures/reconstruction.png").read_bytes()
    assert main(["figures", "reconstruction", "--run", str(tmp_path)]) == 0
    assert (tmp_path / "figures/reconstruction.png").read_bytes() == picture
    assert (tmp_path / "figures/crops.png").stat().st_mtime_ns == stamp


def test_data_check_counts_by_folder(data_root, capsys):
    assert main(["data", "check", "--data-root", str(data_root)]) == 0
    out = capsys.readouterr().out
    assert "2  train/good" in out
    assert "1  ground_truth/bent" in out


def test_what_a_killed_run_left_is_cleared_away(tmp_path, data_root, notebooks):
    notebooks("01_a")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left_over = tmp_path / f".run.partial-{dead.pid}"
    left_over.mkdir()
    (left_over / "01_a.ipynb").write_text("half")
    run(request(tmp_path, data_root), progress=False)
    assert not left_over.exists()
