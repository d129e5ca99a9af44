"""Run the notebooks headlessly with papermill into a run folder that is written whole or not at all."""

import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from ..config import PROJECT_ROOT, UserError
from ..device import describe
from ..files import written_whole
from ..workspace import Request, Workspace

NOTEBOOK_DIR = PROJECT_ROOT / "notebooks"
TUTORIAL = ("01", "02", "03", "04", "05")  # what a run without names executes
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "matplotlib", "pillow", "imageio", "papermill", "jupyterlab")
MANIFEST = "manifest.json"


def run(names: tuple[str, ...], request: Request, *, notebook_dir: Path = NOTEBOOK_DIR, progress: bool = True) -> Path:
    """Execute notebooks, given by number or name, into a run folder, which this returns.

    Everything is checked and the data are read before the first notebook starts. A run of other notebooks with the same
    configuration and data adds to what is there.

    Raises:
        UserError: bad parameters or data, a folder that is no run folder, a notebook that failed.
    """
    paths = [find_notebook(name, notebook_dir) for name in names]
    for path in paths:  # papermill only warns of a parameter that the notebook does not have
        if missing := set(request.parameters(Path())) - set(_own_parameters(path)):
            raise UserError(f"{path.name} has no parameter {', '.join(sorted(missing))} in its parameters cell: add it there.")
    folder = request.folder(request.preset)
    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not the folder of a run: pass --out another folder.")
    manifest = _manifest(Workspace.open(request))
    with written_whole(folder) as staging:
        notebooks = _begin(folder, staging, manifest)
        for path in paths:
            start = time.perf_counter()
            _execute(path, staging, request, folder, progress)
            made = {key: manifest[key] for key in ("commit", "device", "parameters")}
            notebooks[path.stem] = made | {"seconds": round(time.perf_counter() - start, 1)}
        (staging / MANIFEST).write_text(json.dumps(manifest | {"notebooks": notebooks}, indent=1, sort_keys=True) + "\n")
    return folder


def publish(folder: Path, notebook_dir: Path = NOTEBOOK_DIR) -> list[Path]:
    """Take the outputs of a finished run into the project's own notebooks, so that they show what the run saw.

    Raises:
        UserError: a folder without executed notebooks, a run of notebooks that have changed since, of an older version, or
            with other parameters than a notebook's own cell names.
    """
    published = {}
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        executed, own = nbformat.read(path, as_version=4), nbformat.read(find_notebook(path.stem, notebook_dir), as_version=4)
        try:
            made = json.loads((folder / MANIFEST).read_text())["notebooks"][path.stem]["parameters"]
        except (FileNotFoundError, ValueError, KeyError) as error:
            raise UserError(f"{folder / MANIFEST} does not say how {path.name} was run: run it again, then publish.") from error
        for name, usual in _own_parameters(notebook_dir / path.name).items():
            if made.get(name, usual) != usual:
                raise UserError(f"{path} is a run with {name} = {made[name]!r}, not {usual!r} as {path.name} says: run it so.")
        executed.cells = [cell for cell in executed.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
        if [cell.source for cell in executed.cells] != [cell.source for cell in own.cells]:
            raise UserError(f"{path} is not a run of today's {path.name}: run the notebook again, then publish.")
        for cell, done in zip(own.cells, executed.cells, strict=True):
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = done.outputs, done.execution_count
        published[notebook_dir / path.name] = own
    if not published:
        raise UserError(f"{folder} holds no executed notebooks: pass the folder of a run, such as results/quick.")
    for path, own in published.items():
        nbformat.write(own, path)
    return list(published)


def find_notebook(name: str, notebook_dir: Path = NOTEBOOK_DIR) -> Path:
    """A notebook by its number or its name, or a `UserError` that lists those there are."""
    known = sorted(notebook_dir.glob("[0-9][0-9]_*.ipynb"))
    matches = [path for path in known if name in (path.stem, path.name, path.stem[:2])]
    if not matches:
        raise UserError(f"There is no notebook '{name}'; there are {', '.join(path.stem for path in known)}.")
    return matches[0]


def _own_parameters(path: Path) -> dict[str, str]:
    """The names and values in a notebook's parameters cell. Papermill's reader skips a line with a second =, as in settings."""
    cells = nbformat.read(path, as_version=4).cells
    source = "\n".join(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    return dict(re.findall(r"^(\w+)[^=\n]*= *[\"'](.*?)[\"']", source, re.MULTILINE))


def _manifest(ws: Workspace) -> dict[str, Any]:
    """What a run was made from."""
    request = ws.request
    return {
        "preset": request.preset,
        "parameters": {name: getattr(request, name) for name in ("preset", "settings", "data_root", "category")},
        "config": asdict(ws.config),
        "fingerprint": ws.fingerprint,
        "seed": ws.config.seed,
        "category": request.category,
        "data": {"train": ws.train.digest, "test": ws.test.digest, "synthetic": ws.is_synthetic},
        "images": {"train": len(ws.train.names), "test": len(ws.test.names)},
        "device": describe(ws.device),
        "packages": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The checkout's commit, with a + where files differ from it; None outside a checkout."""
    try:
        git = ["git", "-C", str(PROJECT_ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _begin(folder: Path, staging: Path, manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Start from what the same configuration and data have made already; returns how each of its notebooks was made."""
    if (folder / MANIFEST).is_file():
        try:
            known = json.loads((folder / MANIFEST).read_text())
        except ValueError as error:
            raise UserError(f"{folder / MANIFEST} cannot be read ({error}): remove {folder} or pass --out another.") from error
        if all(known.get(key) == manifest[key] for key in ("fingerprint", "data", "category")):
            shutil.copytree(folder, staging)
            return known.get("notebooks", {})
    staging.mkdir(parents=True)
    return {}


def _execute(path: Path, staging: Path, request: Request, folder: Path, progress: bool) -> None:
    """Run one notebook; its own progress bars are shown, every ten seconds where nobody watches."""
    target = staging / path.name
    logging.getLogger("papermill").setLevel(logging.ERROR)
    os.environ.setdefault("TQDM_MININTERVAL", "0.2" if sys.stderr.isatty() else "10")
    if progress:
        print(path.stem, file=sys.stderr)
    try:
        papermill.execute_notebook(
            str(path), str(target), request.parameters(staging), kernel_name="python3", cwd=str(path.parent),
            progress_bar=False,
            extra_arguments=["--log-level=40"],  # a kernel has nothing to say on the terminal but errors
            stderr_file=sys.stderr if progress else None,
        )  # fmt: skip
    except PapermillExecutionError as error:
        if error.ename == "UserError":
            raise UserError(error.evalue) from error
        kept = folder.with_name(f"{folder.name}-failed-{path.name}")
        shutil.move(target, kept)
        raise UserError(f"{path.stem} failed with {error.ename}: {error.evalue} (as far as it ran: {kept}).") from error
    except RuntimeError as error:  # nbclient's DeadKernelError
        hint = "a kernel dies mostly for want of memory; take a smaller preset or batch_size"
        raise UserError(f"{path.stem} broke off ({error}): {hint}.") from error
    # Progress bars and timestamps are left out, and the folder is named that the notebook ends up in.
    notebook = nbformat.reads(target.read_text().replace(str(staging), str(folder)), as_version=4)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
    nbformat.write(notebook, target)
