"""Many settings at once, on one machine or a cluster (dask.distributed); docs/sweeps.md has the keys of a spec."""

import csv
import json
import os
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from distributed import Client, Nanny, Scheduler, SpecCluster, as_completed
from filelock import FileLock
from tqdm import tqdm

from ..config import RESULTS_DIR, Config, UserError, parse_settings
from ..files import written_whole
from ..metrics import METRICS
from ..runner import find_notebook, run
from ..training import TRAINING_VERSION, checkpoint_path, find_or_train
from ..workspace import MVTEC_AD, OBJECTS, Request, Workspace
from .cache import code_digest
from .comparison import judge, own_metrics, scores

Record = dict[str, Any]
ASKED: Record = {"preset": "quick", "settings": "", "data_root": "", "device": "auto"}  # as in a notebook's parameters cell
USUAL: Record = ASKED | {"categories": ["grid"], "seeds": [], "grid": {}, "draws": 0, "notebooks": [], "opponents": False}
OPPONENTS = {"residual": "VAE residual, ", "composite": "composite.", "paper": "projection, paper."}  # . ends a name


def read_spec(path: Path) -> dict[str, Record]:
    """The points of a YAML file, one spec or a list, or of a ``failures.csv``; a `UserError` names the file and the key."""
    digests: dict[str, str] = {}
    try:
        given = [json.loads(row["spec"]) for row in _read(path)] if path.suffix == ".csv" else yaml.safe_load(path.read_text())
        return {fingerprint(point, digests): point for spec in _listed(given) for point in expand(spec)}
    except (UserError, yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split()).rstrip('.')}.") from error


def expand(spec: Record) -> list[Record]:
    """Categories x grid, or ``draws`` of it at random, x seeds: points, each a spec too, so that one can be given back."""
    spec = USUAL | {key: _listed(value) if isinstance(USUAL.get(key), list) else value for key, value in spec.items()}
    if wrong := [key for key, value in spec.items() if type(value) is not type(USUAL.get(key, ...))]:
        raise UserError(f"{wrong[0]} = {spec[wrong[0]]!r} does not fit; the keys and their usual values are {USUAL}.")
    root = Path(spec["data_root"]).expanduser().resolve() if spec["data_root"] else None
    there = sorted(path.parents[1].name for path in root.glob("[!.]*/train/good")) if root else []
    kinds = {"all": there, "objects": [n for n in there if n in OBJECTS], "textures": [n for n in there if n not in OBJECTS]}
    kind = kinds.get(str(*spec["categories"][:1]), [])
    grid = {n: np.geomspace(*v["log"]) if isinstance(v, dict) else _listed(v) for n, v in spec["grid"].items()}
    chosen = list(product(*([f"{name}={value}" for value in values] for name, values in grid.items())))
    order = np.random.default_rng(0).permutation(len(chosen))[: spec["draws"]] if spec["draws"] else range(len(chosen))
    seeds = [[f"seed={seed}"] for seed in spec["seeds"]] or [[]]
    settings = [" ".join([spec["settings"], *chosen[i], *seed]).strip() for i, seed in product(order, seeds)]
    spec |= {"data_root": str(root or ""), "opponents": kind != [] or spec["opponents"], "seeds": [], "grid": {}, "draws": 0}
    spec["notebooks"] = [find_notebook(f"{name:0>2}").stem for name in spec["notebooks"]]  # YAML reads 01 as 1
    return [spec | {"categories": [name], "settings": text} for name in kind or spec["categories"] for text in settings]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def fingerprint(point: Record, digests: dict[str, str]) -> str:
    """Of all that a point's numbers depend on. ``digests`` keeps those of data, which are read and checked once."""
    config = Config.from_preset(point["preset"], point["settings"])
    data = f"{point['data_root']} {point['categories']} {config.fingerprint('data')}"
    if data not in digests:
        ws = Workspace.open(Request(**{key: point[key] for key in ASKED} | {"device": "cpu"}, category=point["categories"][0]))
        digests[data] = f"{ws.train.digest} {ws.test.digest} {TRAINING_VERSION}"
    cells = [[cell["source"] for cell in json.loads(find_notebook(n).read_text())["cells"]] for n in point["notebooks"]]
    return config.fingerprint(data=json.dumps([digests[data], code_digest(), cells, point["opponents"], point["device"]]))


def measure(point: Record, folder: Path) -> Record:
    """The numbers at the top of what notebooks record, run into ``folder``, or localization on all test images; seconds."""
    ws = Workspace.open(Request(**{key: point[key] for key in ASKED}, category=point["categories"][0], out=str(folder)))
    network = checkpoint_path(ws.config, ws.train.digest, ws.kept / "checkpoints")
    noted, start = network.with_suffix(".seconds"), time.perf_counter()
    with FileLock(network.with_suffix(".lock")):  # of the points that share a network one trains it
        if not network.exists():
            find_or_train(ws.train.images, ws.config, ws.train.digest, folder=network.parent, progress=False)
            noted.write_text(str(time.perf_counter() - start))
    numbers, start = {"training_seconds": float(noted.read_text()) if noted.exists() else None}, time.perf_counter()
    if point["notebooks"]:
        run(tuple(point["notebooks"]), ws.request, progress=False)
        made = json.loads((folder / "metrics.json").read_text())
        numbers |= {name: value for name, value in made.items() if isinstance(value, int | float)} | made.get("headline", {})
    else:
        numbers |= own_metrics(ws)
    numbers["seconds"] = time.perf_counter() - start
    methods = scores(ws) if point["opponents"] else {}
    for column, begins in OPPONENTS.items() if methods else ():
        judged = [judge(ws, score, keep_maps=False)[0] for name, score in methods.items() if f"{name}.".startswith(begins)]
        numbers |= {f"{column}_{key}": max(row[key] for row in judged) for key in METRICS}
    return numbers


def compute(work: Callable[..., Record], point: Record, folder: Path) -> Record:
    """A point's row of the table, kept in its folder once it is done; where another process is at it, it is waited for."""
    done = folder / "point.json"
    with FileLock(folder.with_suffix(".lock")):
        if not done.is_file():
            row = {"point": folder.name, "preset": point["preset"], "category": point["categories"][0]}
            row |= parse_settings(point["settings"]) | work(point, folder)
            with written_whole(done) as scratch:
                scratch.write_text(json.dumps({"spec": point, "row": row}))
    return json.loads(done.read_text())["row"]


def sweep(path: Path, out: Path | None = None, scheduler: str = "", work: Callable[..., Record] = measure) -> tuple[Path, int]:
    """Compute what is not there of a spec's points: the folder of the tables, whole after every point; how many failed."""
    out = (out or (path.parent if path.suffix == ".csv" else RESULTS_DIR / "sweeps" / path.stem)).resolve()
    points, home = read_spec(path), out / "points"
    rows = {row["point"]: row for row in _read(out / "results.csv") if path.suffix == ".csv"}  # the rest of that sweep
    rows |= {n: compute(work, p, home / n) if (home / n / "point.json").is_file() else {} for n, p in points.items()}
    failures = {row["point"]: row for row in _read(out / "failures.csv") if rows.get(row["point"]) == {}}
    _write(out, rows, failures)
    if not (todo := [name for name in points if not rows[name]]):
        return out, len(failures)
    with nullcontext(scheduler) if scheduler else _cluster() as cluster, Client(cluster) as client:
        futures = {client.submit(compute, work, points[n], home / n, key=str(home / n), pure=False): n for n in todo}
        for future in tqdm(as_completed(futures), out.name, len(points), initial=len(points) - len(todo), unit="point"):
            name = futures[future]
            failures.pop(name, None)
            try:
                rows[name] = future.result()
            except Exception as error:  # whatever it was, the others go on
                row = {"point": name, "spec": json.dumps(points[name]), "reason": f"{type(error).__name__}: {error}"}
                failures[name] = row | {"last_lines": "".join(traceback.format_exception(error)[-4:])}
            _write(out, rows, failures)
    return out, len(failures)


def _cluster() -> SpecCluster:
    """One worker a GPU, else one for the CPU, with all threads: dask would leave it one."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), torch.get_num_threads())
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    usual = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    own = usual | {"nthreads": 1, "memory_limit": 0, "silence_logs": 40}  # no logs below errors
    options = [own | {"env": threads | {"CUDA_VISIBLE_DEVICES": gpu}} for gpu in gpus.split(",")]
    workers = {i: {"cls": Nanny, "options": each} for i, each in enumerate(options)}
    return SpecCluster(workers, {"cls": Scheduler, "options": usual}, silence_logs=40)


def _read(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines(keepends=True))) if path.is_file() else []


def _write(out: Path, *tables: dict[str, Record]) -> None:
    results, failures = ([row for row in table.values() if row] for table in tables)
    for name, table in {"results": results, "failures": failures}.items():
        with written_whole(out / f"{name}.csv") as scratch, scratch.open("w", newline="") as file:
            writer = csv.DictWriter(file, dict.fromkeys(["point", *(c for row in table for c in row)]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    data = json.dumps({"rows": results, "all": MVTEC_AD}).replace("<", "\\u003c")
    with written_whole(out / "parallel.html") as scratch:
        scratch.write_text(Path(__file__).with_name("parallel.html").read_text().replace("DATA", data))
