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
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nbformat
import papermill

from .config import PROJECT_ROOT, UserError
from .device import describe
from .files import written_whole
from .workspace import Request, Workspace

NOTEBOOK_DIR = PROJECT_ROOT / "notebooks"
TUTORIAL = ("01", "02", "03", "04", "05")  # what a run without names executes
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "matplotlib", "pillow", "imageio", "papermill", "jupyterlab")
MANIFEST = "manifest.json"


def run(names: tuple[str, ...], request: Request, *, notebook_dir: Path = NOTEBOOK_DIR, progress: bool = True) -> Path:
    """Execute notebooks, given by number or name, into the folder returned, beside others of equal configuration and data.
    A `UserError` for bad parameters, data or folder, all checked before the first one starts, or a notebook that failed.
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
        try:
            known = json.loads((folder / MANIFEST).read_text()) if (folder / MANIFEST).is_file() else {}
        except ValueError as error:
            raise UserError(f"{folder / MANIFEST} cannot be read ({error}): remove {folder} or pass --out another.") from error
        same = all(known.get(key) == manifest[key] for key in ("fingerprint", "data", "category"))
        shutil.copytree(folder, staging) if same else staging.mkdir()
        notebooks = known.get("notebooks", {}) if same else {}
        for path in paths:
            start = time.perf_counter()
            _execute(path, staging, request, folder, progress)
            made = {key: manifest[key] for key in ("commit", "device", "parameters")}
            notebooks[path.stem] = made | {"seconds": round(time.perf_counter() - start, 1)}
        (staging / MANIFEST).write_text(json.dumps(manifest | {"notebooks": notebooks}, indent=1, sort_keys=True) + "\n")
    return folder


def publish(folder: Path, notebook_dir: Path = NOTEBOOK_DIR) -> list[Path]:
    """Take the outputs of a finished run into the project's own notebooks. A `UserError`, and nothing written, where none was
    executed, or one has changed since, or ran with other parameters than its own cell names or with none noted.
    """
    published = {}
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        target = find_notebook(path.stem, notebook_dir)
        executed, own = (nbformat.read(each, as_version=4) for each in (path, target))
        try:
            made = json.loads((folder / MANIFEST).read_text())["notebooks"][path.stem]["parameters"]
        except (FileNotFoundError, ValueError, KeyError) as error:
            raise UserError(f"{folder / MANIFEST} does not say how {path.name} was run: run it again, then publish.") from error
        for name, usual in _own_parameters(target).items():
            if made.get(name, usual) != usual:
                raise UserError(f"{path} is a run with {name} = {made[name]!r}, not {usual!r} as {path.name} says: run it so.")
        ran = [cell for cell in executed.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
        if [cell.source for cell in ran] != [cell.source for cell in own.cells]:
            raise UserError(f"{path} is not a run of today's {path.name}: run the notebook again, then publish.")
        for cell, done in zip(own.cells, ran, strict=True):
            cell.update({key: done[key] for key in ("outputs", "execution_count") if key in done})
        published[target] = own
    if not published:
        raise UserError(f"{folder} holds no executed notebooks: pass the folder of a run, such as results/quick.")
    for path, own in published.items():
        nbformat.write(own, path)
    return list(published)


def find_notebook(name: str, notebook_dir: Path = NOTEBOOK_DIR) -> Path:
    """A notebook by its number or its name, or a `UserError` that lists those there are."""
    known = sorted(notebook_dir.glob("[0-9][0-9]_*.ipynb"))
    for path in known:
        if name in (path.stem, path.name, path.stem[:2]):
            return path
    raise UserError(f"There is no notebook '{name}'; there are {', '.join(path.stem for path in known)}.")


def _own_parameters(path: Path) -> dict[str, str]:
    """The names and values in a notebook's parameters cell. Papermill's reader skips a line with a second =, as in settings."""
    source = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", []))
    return dict(re.findall(r"^(\w+)[^=\n]*= *[\"'](.*?)[\"']", source, re.MULTILINE))


def _manifest(ws: Workspace) -> dict[str, Any]:
    """What a run was made from. The commit has a + where files differ from it, and is None outside a checkout."""
    request, commit = ws.request, None
    with suppress(OSError):
        git = ["git", "-C", str(PROJECT_ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() or None
    return {
        "preset": request.preset, "category": request.category, "seed": ws.config.seed, "config": asdict(ws.config),
        "parameters": {name: getattr(request, name) for name in ("preset", "settings", "data_root", "category")},
        "data": {"train": ws.train.digest, "test": ws.test.digest, "synthetic": ws.is_synthetic},
        "images": {"train": len(ws.train.names), "test": len(ws.test.names)},
        "packages": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "fingerprint": ws.fingerprint, "device": describe(ws.device), "commit": commit,
    }  # fmt: skip


def _execute(path: Path, staging: Path, request: Request, folder: Path, progress: bool) -> None:
    """Run one notebook; its own progress bars are shown, every ten seconds where nobody watches."""
    target = staging / path.name
    logging.getLogger("papermill").setLevel(logging.ERROR)
    os.environ.setdefault("TQDM_MININTERVAL", "0.2" if sys.stderr.isatty() else "10")
    if progress:
        print(path.stem, file=sys.stderr)
    try:
        papermill.execute_notebook(
            path, target, request.parameters(staging), kernel_name="python3", cwd=path.parent, progress_bar=False,
            stderr_file=sys.stderr if progress else None, extra_arguments=["--log-level=40"],  # a kernel's errors alone
        )  # fmt: skip
    except papermill.exceptions.PapermillExecutionError as error:
        if error.ename == "UserError":
            raise UserError(error.evalue) from error
        kept = folder.with_name(f"{folder.name}-failed-{path.name}")
        shutil.move(target, kept)
        raise UserError(f"{path.stem} failed with {error.ename}: {error.evalue} (as far as it ran: {kept}).") from error
    except RuntimeError as error:  # nbclient's DeadKernelError
        raise UserError(f"{path.stem} broke off ({error}): mostly for want of memory; reduce preset or batch_size.") from error
    # Progress bars and timestamps are left out, and the folder is named that the notebook ends up in.
    notebook = nbformat.reads(target.read_text().replace(str(staging), str(folder)), as_version=4)
    for part in (notebook, *notebook.cells):
        part.metadata = {key: value for key, value in part.metadata.items() if key not in ("papermill", "execution")}
        if "outputs" in part:
            part.outputs = [o for o in part.outputs if o.get("name") != "stderr"]
    nbformat.write(notebook, target)
