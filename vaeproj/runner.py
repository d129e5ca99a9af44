"""Run the notebooks headlessly with papermill into a run folder that is written whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TextIO

import nbformat
import papermill
import torch
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from .config import PROJECT_ROOT, RESULTS_DIR, UserError
from .files import swap_in
from .workspace import Workspace

NOTEBOOK_DIR = PROJECT_ROOT / "notebooks"
TUTORIAL = ("01", "02", "03", "04", "05")  # what a run without names executes
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "matplotlib", "pillow", "imageio", "papermill", "nbval", "jupyterlab")
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Request:
    """What the user asked to run; all but ``notebooks`` are the arguments of `Workspace.open`."""

    notebooks: tuple[str, ...] = TUTORIAL
    preset: str = "quick"
    settings: str = ""
    data_root: str = ""
    category: str = "grid"
    device: str = "auto"
    out: str = ""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.out).expanduser().resolve() if self.out else RESULTS_DIR / self.preset

    def parameters(self, out: Path) -> dict[str, str]:
        """The values of the notebooks' parameters cell."""
        root = str(Path(self.data_root).expanduser().resolve()) if self.data_root else ""
        names = ("preset", "settings", "category", "device")
        return {name: getattr(self, name) for name in names} | {"data_root": root, "out": str(out)}


def run(request: Request, *, progress: bool = True) -> Path:
    """Execute notebooks and gather what they make.

    Everything is checked and the data are read before the first notebook starts. The notebooks write into a folder
    beside the run folder, which takes its place at the end; a run of other notebooks with the same configuration and
    data adds to what is there.

    Returns:
        The run folder: executed notebooks, ``figures/``, ``metrics.json``, ``manifest.json``.

    Raises:
        UserError: bad parameters or data, a folder that is no run folder, a notebook that failed.
    """
    paths = [find_notebook(name) for name in request.notebooks]
    for path in paths:
        _check_parameters(path, request)
    folder = request.folder
    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not the folder of a run: pass --out another folder.")
    workspace = Workspace.open(
        request.preset, request.settings, request.data_root, request.category, request.device, str(folder)
    )
    manifest = _manifest(request, workspace)
    staging = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        notebooks = _begin(folder, staging, manifest)
        for path in paths:
            seconds = _execute(path, staging, request, progress)
            notebooks[path.stem] = {"seconds": seconds, "commit": manifest["commit"], "device": manifest["device"]}
        (staging / MANIFEST).write_text(json.dumps(manifest | {"notebooks": notebooks}, indent=1, sort_keys=True) + "\n")
        swap_in(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def publish(folder: Path) -> list[Path]:
    """Take the outputs of a finished run into the project's own notebooks, so that they show what the run saw.

    Raises:
        UserError: a folder without executed notebooks, or a run of notebooks that have changed since.
    """
    published = {}
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        executed, own = nbformat.read(path, as_version=4), nbformat.read(find_notebook(path.stem), as_version=4)
        executed.cells = [cell for cell in executed.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
        if [cell.source for cell in executed.cells] != [cell.source for cell in own.cells]:
            raise UserError(f"{path} is not a run of today's {path.name}: run the notebook again, then publish.")
        for cell, done in zip(own.cells, executed.cells, strict=True):
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = done.outputs, done.execution_count
        published[NOTEBOOK_DIR / path.name] = own
    if not published:
        raise UserError(f"{folder} holds no executed notebooks: pass the folder of a run, such as results/quick.")
    for path, own in published.items():
        nbformat.write(own, path)
    return list(published)


def find_notebook(name: str) -> Path:
    """A notebook by its number or its name.

    Raises:
        UserError: there is none, with the list of those there are.
    """
    known = sorted(NOTEBOOK_DIR.glob("[0-9][0-9]_*.ipynb"))
    matches = [path for path in known if name in (path.stem, path.name, path.stem[:2])]
    if not matches:
        raise UserError(f"There is no notebook '{name}'; there are {', '.join(path.stem for path in known)}.")
    return matches[0]


def _check_parameters(path: Path, request: Request) -> None:
    """Papermill only warns of a parameter that the notebook does not have."""
    missing = set(request.parameters(Path())) - set(papermill.inspect_notebook(str(path)))
    if missing:
        raise UserError(f"{path.name} has no parameter {', '.join(sorted(missing))} in its parameters cell: add it there.")


def _manifest(request: Request, workspace: Workspace) -> dict[str, object]:
    """What the run was made from. Reads (or renders) the data, so that bad images are found here."""
    device = (
        torch.cuda.get_device_name() if workspace.device.type == "cuda" else f"{platform.processor() or platform.machine()} CPU"
    )
    return {
        "preset": workspace.preset,
        "config": workspace.config.to_dict(),
        "fingerprint": workspace.fingerprint,
        "seed": workspace.config.seed,
        "category": request.category,
        "data": {"train": workspace.train.digest, "test": workspace.test.digest, "synthetic": workspace.is_synthetic},
        "images": {"train": len(workspace.train.names), "test": len(workspace.test.names)},
        "device": {"type": workspace.device.type, "name": device, "threads": torch.get_num_threads()},
        "packages": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with a + where files differ from it; None outside a checkout."""
    try:
        git = ["git", "-C", str(PROJECT_ROOT)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed.strip() else "")


def _begin(folder: Path, staging: Path, manifest: dict[str, object]) -> dict[str, dict[str, object]]:
    """Start from what the same configuration and data have made already; returns which notebooks, and how each was made."""
    for left_over in folder.parent.glob(f".{folder.name}.partial-*"):
        if not _alive(int(left_over.name.rsplit("-", 1)[1])):  # of a run that was killed
            shutil.rmtree(left_over, ignore_errors=True)
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


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _execute(path: Path, staging: Path, request: Request, progress: bool) -> float:
    """Run one notebook; its progress bars are shown below its own."""
    start = time.perf_counter()
    target = staging / path.name
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        papermill.execute_notebook(
            str(path), str(target), request.parameters(staging), kernel_name="python3", cwd=str(NOTEBOOK_DIR),
            progress_bar={"desc": path.stem, "disable": not progress},
            extra_arguments=["--log-level=40"],  # a kernel has nothing to say on the terminal but errors
 stderr_file=_Echo(sys.stderr, progress),
        )  # fmt: skip
    except PapermillExecutionError as error:
        if error.ename == "UserError":
            raise UserError(error.evalue) from error
        kept = request.folder.with_name(f"{request.folder.name}-failed-{path.name}")
        shutil.move(target, kept)
        raise UserError(
            f"{path.stem} failed with {error.ename}: {error.evalue} (the notebook as far as it ran: {kept})."
        ) from error
    except RuntimeError as error:  # nbclient's DeadKernelError
        raise UserError(
            f"{path.stem} broke off ({error}): a kernel dies mostly for want of memory; take a smaller preset or batch_size."
        ) from error
    _tidy(target, staging, request.folder)
    return round(time.perf_counter() - start, 1)


def _tidy(path: Path, staging: Path, folder: Path) -> None:
    """Leave progress bars and timestamps out of an executed notebook, and name the folder it ends up in."""
    notebook = nbformat.reads(path.read_text().replace(str(staging), str(folder)), as_version=4)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
    nbformat.write(notebook, path)


class _Echo:
    """Shows a notebook's own progress bars on the terminal: one line that is written over, or now and then a line."""

    def __init__(self, stream: TextIO, progress: bool) -> None:
        self.bar = tqdm(bar_format="    {desc}", file=stream, position=1, leave=False, disable=not progress)
        self.every = 0.2 if stream.isatty() else 10.0
        self.last = 0.0

    def write(self, text: str) -> int:
        lines = [part.strip() for part in text.replace("\n", "\r").split("\r") if part.strip()]
        if lines and time.monotonic() - self.last > self.every:
            self.last = time.monotonic()
            self.bar.set_description_str(lines[-1][:110])
        return len(text)

    def flush(self) -> None:
        self.bar.refresh() if self.every < 1 else None
