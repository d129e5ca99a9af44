"""The command line and the run folder: whole or not at all, and one sentence for every mistake."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import nbformat
import numpy as np
import pytest
import torch
from conftest import contents, write_image

from vaeproj.cli.commands import main
from vaeproj.device import describe
from vaeproj.figures import save
from vaeproj.runner import publish, run
from vaeproj.workspace import Request

ONE_CELL = """
import torch
from vaeproj.workspace import Request, Workspace
ws = Workspace.open(Request(preset, settings, data_root, category, device, out))
crops = ws.sampler.sample(64, torch.Generator().manual_seed(0))
print(ws.out)
ws.record({name}=ws.config.alpha, crops=crops.mean().item())
"""
SOURCES = {
    "01_a": ONE_CELL.format(name="alpha"),
    "02_b": ONE_CELL.format(name="second"),
    "03_fails": "1 / 0",
    "04_dies": "import os\nos._exit(9)",
    "05_refuses": "from vaeproj.config import UserError\nraise UserError('No luck today.')",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """``data``: two good training images, one good and one bent test image; ``notebooks``: of two cells each."""
    home, rng = tmp_path_factory.mktemp("home"), np.random.default_rng(0)
    for name in ("train/good/000", "train/good/001", "test/good/000", "test/bent/000", "ground_truth/bent/000_mask"):
        write_image(home / "data/grid" / f"{name}.png", rng.integers(0, 256, (64, 64), dtype=np.uint8))
    (home / "notebooks").mkdir()
    for name in SOURCES:
        write_notebook(home / "notebooks", name, asked(home, ""))
    return home


def write_notebook(folder, name, request):
    """A parameters cell with the request's values, and the source of that name."""
    parameters = [f'{p}: str = "{value}"  # {p}' for p, value in asdict(request).items()]
    own = nbformat.v4.new_code_cell("\n".join(parameters), id="0", metadata={"tags": ["parameters"]})
    cells = [own, nbformat.v4.new_code_cell(SOURCES[name], id="1")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / f"{name}.ipynb")


def asked(home, out, **changes):
    own = Request(preset="ci", settings="alpha=0.25", data_root=str(home / "data"), device="cpu", out=str(out))
    return replace(own, **changes)


def execute(home, names, out, **changes):
    return run(names, asked(home, out, **changes), notebook_dir=home / "notebooks", progress=False)


@pytest.fixture(scope="module")
def finished(home):
    return execute(home, ("01",), home / "run")


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of the finished run of notebook 01."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def notebooks(home, tmp_path):
    return shutil.copytree(home / "notebooks", tmp_path / "notebooks")


def read(path):
    return json.loads(path.read_text())


def test_a_run_folder_says_what_it_was_made_from(home, finished):
    manifest = read(finished / "manifest.json")
    (own,), device = manifest["notebooks"].values(), describe(torch.device("cpu"))
    parameters = {"preset": "ci", "settings": "alpha=0.25", "data_root": str(home / "data"), "category": "grid"}
    assert manifest["parameters"] == own["parameters"] == parameters
    assert (manifest["config"]["alpha"], manifest["images"]) == (0.25, {"train": 2, "test": 2})
    assert torch.__version__.startswith(manifest["packages"]["torch"])
    assert [len(manifest["data"][split]) for split in ("train", "test")] == [64, 64]
    assert (own["commit"], own["device"], manifest["device"]) == (manifest["commit"], device, device)
    assert own["seconds"] > 0
    (output,) = nbformat.read(finished / "01_a.ipynb", as_version=4).cells[-1].outputs
    assert output.text.strip() == str(finished)  # not the folder beside it that the notebook wrote to
    assert sorted(p.name for p in home.iterdir()) == ["data", "notebooks", "run"]


def test_the_same_configuration_adds_and_another_replaces(home, folder):
    before = read(folder / "manifest.json")["notebooks"]
    execute(home, ("02",), folder)
    after = read(folder / "manifest.json")["notebooks"]
    assert set(read(folder / "metrics.json")) == {"alpha", "second", "crops"}
    assert (set(after), after["01_a"]) == ({"01_a", "02_b"}, before["01_a"])
    execute(home, ("02",), folder, settings="alpha=0.5")
    assert read(folder / "metrics.json")["second"] == 0.5
    assert set(contents(folder)) == {"02_b.ipynb", "metrics.json", "manifest.json"}


FAILURES = {"03": "03_fails failed with ZeroDivisionError", "04": "04_dies broke off", "05": "No luck today."}


@pytest.mark.parametrize(("name", "sentence"), FAILURES.items(), ids=FAILURES)
def test_a_failing_notebook_leaves_the_old_run_whole(home, folder, refuses, name, sentence):
    before = contents(folder)
    with refuses(sentence):
        execute(home, (name,), folder)
    assert contents(folder) == before
    assert {p.name for p in folder.parent.iterdir()} == {"run", *(["run-failed-03_fails.ipynb"] if name == "03" else [])}


def test_a_notebook_without_a_parameter_is_refused(home, notebooks, tmp_path, refuses):
    path = notebooks / "02_b.ipynb"
    path.write_text(path.read_text().replace("category: str", "kategorie: str"))
    with refuses("02_b.ipynb", "no parameter category"):
        run(("02",), asked(home, tmp_path / "run"), notebook_dir=notebooks)
    assert not (tmp_path / "run").exists()


def test_published_notebooks_show_what_the_run_saw(folder, notebooks):
    before = nbformat.read(notebooks / "01_a.ipynb", as_version=4)
    assert publish(folder, notebooks) == [notebooks / "01_a.ipynb"]
    after = nbformat.read(notebooks / "01_a.ipynb", as_version=4)
    assert [cell.source for cell in after.cells] == [cell.source for cell in before.cells]
    assert after.cells[-1].outputs[0].text.strip().endswith("run")
    assert publish(folder, notebooks)  # outputs are no change of the notebook


@pytest.mark.parametrize(
    ("name", "value"), [("preset", "quick"), ("settings", ""), ("data_root", "/elsewhere"), ("category", "wood")]
)
def test_a_run_of_other_parameters_is_not_published(home, folder, notebooks, refuses, name, value):
    write_notebook(notebooks, "01_a", asked(home, "", **{name: value}))
    before = contents(notebooks)
    with refuses(f"{name} = ", repr(value)):
        publish(folder, notebooks)
    assert contents(notebooks) == before


def test_where_one_notebook_has_changed_none_is_published(home, folder, notebooks, refuses):
    execute(home, ("02",), folder)
    path = notebooks / "02_b.ipynb"
    path.write_text(path.read_text().replace("print(ws.out)", "print(ws)"))
    before = contents(notebooks)
    with refuses("not a run of today's 02_b.ipynb"):
        publish(folder, notebooks)
    assert contents(notebooks) == before


@pytest.mark.parametrize("manifest", [None, "{", '{"notebooks": {"01_a": {"seconds": 1}}}'])
def test_a_run_that_does_not_say_its_parameters_is_not_published(folder, notebooks, refuses, manifest):
    (folder / "manifest.json").unlink()
    if manifest:
        (folder / "manifest.json").write_text(manifest)
    with refuses(folder / "manifest.json", "01_a"):
        publish(folder, notebooks)


@pytest.fixture
def there(home, tmp_path):
    """Folders with something amiss."""
    for name in ("broken", "maskless"):
        shutil.copytree(home / "data", tmp_path / name)
    (tmp_path / "broken/grid/test/bent/000.png").write_bytes(b"no image")
    (tmp_path / "maskless/grid/ground_truth/bent/000_mask.png").unlink()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.txt").write_text("mine")
    return tmp_path


RUN = "run 01 --preset ci --data-root HOME/data --out THERE/run "
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.mark.parametrize(
    ("sentence", "command"),
    [
        ("no notebook '99'", "run 99"),
        ("no preset 'nope'", RUN + "--preset nope"),
        ("no hyper-parameter 'alhpa'", RUN + "--set alhpa=1"),
        ("alpha = 'big'", RUN + "--set alpha=big"),
        ("not of the form NAME=VALUE", RUN + "--set alpha"),
        pytest.param("no CUDA GPU", RUN + "--device cuda", marks=needs_no_gpu),
        ("no device 'tpu'", RUN + "--device tpu"),
        ("is not a folder", RUN + "--data-root THERE/nowhere"),
        ("categories found: grid", RUN + "--category tile"),
        ("cannot be read as an image", RUN + "--data-root THERE/broken"),
        ("has no mask", RUN + "--data-root THERE/maskless"),
        ("not the folder of a run", RUN + "--out THERE/foreign"),
        ("no executed notebooks", "publish THERE/foreign"),
        ("check the path", "data synth --data-root THERE/foreign/thesis.txt"),
        ("unknown url type", "data download --url nowhere --data-root THERE/foreign"),
        ("not the folder of a finished run", "figures comparison --run THERE/nowhere"),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_writes_nothing(home, there, capsys, sentence, command):
    before = sorted(there.rglob("*"))
    assert main(command.replace("HOME", str(home)).replace("THERE", str(there)).split()) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("vaeproj: ") and sentence in said
    assert sorted(there.rglob("*")) == before


def test_the_module_is_a_command():
    done = subprocess.run([sys.executable, "-m", "vaeproj", "run", "--preset", "nope"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("vaeproj: There is no preset 'nope'")


def test_figures_lists_and_redraws_one(tmp_path, capsys):
    assert main(["figures"]) == 0
    assert "comparison" in capsys.readouterr().out
    for name, arrays in (("reconstruction", ("originals", "pictures")), ("crops", ("plain", "augmented"))):
        save(name, tmp_path / "figures", "f", **dict.fromkeys(arrays, np.zeros((2, 1, 8, 8), np.float32)))
    for picture in tmp_path.glob("figures/*.png"):
        picture.unlink()
    assert main(["figures", "reconstruction", "--run", str(tmp_path)]) == 0
    assert [p.name for p in tmp_path.glob("figures/*.png")] == ["reconstruction.png"]


def test_data_check_counts_by_folder(home, capsys):
    assert main(["data", "check", "--data-root", str(home / "data")]) == 0
    assert capsys.readouterr().out.split() == "2 train/good 1 test/bent 1 ground_truth/bent 1 test/good".split()  # noqa: SIM905
