"""Sweeps: what a spec expands to, tables that are whole after every point, and a cluster that loses a worker and its client."""

import csv
import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import yaml
from conftest import write_image
from distributed import Client, LocalCluster
from filelock import FileLock
from sklearn.metrics import roc_auc_score

from vaeproj.cli.commands import main
from vaeproj.config import parse_settings
from vaeproj.localization import anomaly_maps, residual_score, smooth
from vaeproj.metrics import METRICS
from vaeproj.runner import find_notebook, run
from vaeproj.studies import sweep as module
from vaeproj.studies.comparison import own_maps
from vaeproj.studies.sweep import expand, measure, read_spec, sweep
from vaeproj.workspace import MVTEC_AD, Workspace

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SMALL = "image_size=32 crop_size=16 stride=8 latent_dim=8 steps=2 batch_size=4"


def asked(point):
    """Category and values of a point."""
    return point["categories"][0], tuple(sorted(parse_settings(point["settings"]).items()))


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def until(condition, seconds=180):
    for _ in range(seconds * 20):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError


# --- specs
def test_a_grid_is_every_combination_of_categories_seeds_and_values():
    grid = {"alpha": [0.1, 0.2, 0.4], "score": ["l1", "ssim"], "rotation": False}
    points = expand({"settings": "steps=5", "categories": ["grid", "ring"], "seeds": [1, 2], "grid": grid})
    values = itertools.product([0.1, 0.2, 0.4], ["l1", "ssim"], [1, 2])
    settings = [(("alpha", a), ("rotation", False), ("score", s), ("seed", n), ("steps", 5)) for a, s, n in values]
    assert sorted(map(asked, points)) == sorted(itertools.product(["grid", "ring"], settings))


def test_draws_are_other_entries_of_the_grid_with_every_seed_and_more_begin_with_the_same():
    spec = {"seeds": [1, 2], "grid": {"alpha": [0.1, 0.2, 0.4], "lam": [0.0, 0.1], "iterations": [4, 8, 16, 32]}}
    every = list(map(asked, expand(spec)))
    some, more = (list(map(asked, expand(spec | {"draws": draws}))) for draws in (5, 9))
    assert len(every) == 48 and len(some) == len(set(some)) == 10 and some == more[:10]
    assert set(more) < set(every) and some != every[:10]
    drawn = {tuple(pair for pair in values if pair[0] != "seed") for _, values in some}
    assert len(drawn) == 5


def test_a_span_is_in_equal_ratios():
    values = [dict(values)["alpha"] for _, values in map(asked, expand({"grid": {"alpha": {"log": [0.02, 2, 5]}}}))]
    assert values == pytest.approx([0.02 * 10 ** (k / 2) for k in range(5)])


def test_a_point_is_a_spec_of_itself():
    spec = {"categories": ["grid", "ring"], "seeds": [1, 2], "grid": {"alpha": [0.1, 0.2]}, "notebooks": [1, "04"]}
    points = expand(spec)
    assert len(points) == 8 and points[0]["notebooks"] == ["01_data_exploration", "04_iterative_projection"]
    assert all(expand(json.loads(json.dumps(point))) == [point] for point in points)


@pytest.fixture
def categories(tmp_path):
    """``bottle``, ``grid`` and one of somebody's own; what is no category beside them."""
    for name in ("bottle", "grid", "my_part", ".hidden"):
        (tmp_path / "data" / name / "train" / "good").mkdir(parents=True)
    (tmp_path / "data" / "papers").mkdir()
    (tmp_path / "data" / "licence.txt").write_text("free")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("kind", "names"),
    [("all", ["bottle", "grid", "my_part"]), ("objects", ["bottle"]), ("textures", ["grid", "my_part"])],
)
def test_a_kind_of_categories_is_the_folders_that_are_there(categories, kind, names):
    points = expand({"categories": kind, "data_root": str(categories)})
    assert [(point["categories"], point["opponents"]) for point in points] == [([name], True) for name in names]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("speed: 3", ["speed = 3", "categories"]),
        ("speed:", ["speed = None"]),
        ("grid: [1, 2]", ["grid = [1, 2]"]),
        ("settings: {alpha: 1}", ["settings = {'alpha': 1}"]),
        ("draws: many", ["draws = 'many'"]),
        ("opponents: 1", ["opponents = 1"]),
        ("preset: nope", ["no preset 'nope'"]),
        ("grid: {alhpa: 1}", ["no hyper-parameter 'alhpa'"]),
        ("grid: {alpha: [0.1, big]}", ["alpha = 'big'"]),
        ("grid: {alpha: {lin: [1, 2, 3]}}", ["log"]),
        ("seeds: [-1]", ["seed = -1"]),
        ("notebooks: [99]", ["no notebook '99'"]),
        ("- preset: ci\n- crops: 1", ["crops = 1"]),
        ("just words", ["str"]),
        ("preset: [ci", ["line 1"]),
        ("", ["NoneType"]),
    ],
)
def test_a_mistake_is_one_sentence_with_the_file_and_the_key(tmp_path, refuses, text, words):
    path = tmp_path / "spec.yml"
    path.write_text(text)
    with refuses(path, *words):
        read_spec(path)


# --- a sweep, its workers in threads of this process
@pytest.fixture(scope="module")
def scheduler():
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


BENCHES = {}


def bench_in(home):
    return BENCHES[home]


class Bench:
    """A spec in a folder of its own, swept with a point function that counts its calls and fails where it is told to."""

    def __reduce__(self):  # the workers are threads of this process: it is passed on as itself
        return bench_in, (self.home,)

    def __init__(self, home, category, scheduler, **spec):
        self.home, self.scheduler, self.calls, self.failing, self.patient = home, scheduler, [], [], False
        self.out, self.seen, BENCHES[home] = home / "swept", [], self
        self.spec = {
            "preset": "ci",
            "settings": SMALL,
            "data_root": str(category.parent),
            "categories": ["mesh"],
            "device": "cpu",
        }
        self.spec |= {"grid": {"alpha": [0.1, 0.2, 0.4]}} | spec

    def work(self, point, folder):
        alpha = parse_settings(point["settings"])["alpha"]
        path = self.out / "results.csv"
        if self.patient:  # what is done is in the table as soon as the client hears of it
            until(lambda: len(table(path)) >= len(self.calls))
        self.seen.append(table(path))
        self.calls.append(alpha)
        if alpha in self.failing:
            raise ValueError(f"alpha = {alpha}, it is too much\nfor me")
        return {"pixel_AP": alpha / 2, "seconds": 1}

    def run(self, path=None, **spec):
        own = self.home / "spec.yml"
        own.write_text(yaml.safe_dump(self.spec | spec))
        return sweep(path or own, self.out, self.scheduler, self.work)

    def rows(self):
        return [(row["category"], float(row["alpha"]), float(row["pixel_AP"])) for row in table(self.out / "results.csv")]


@pytest.fixture
def bench(tmp_path, category, scheduler):
    return Bench(tmp_path, category, scheduler)


def test_the_table_is_whole_after_every_point(bench):
    bench.patient = True
    assert bench.run() == (bench.out, 0)
    assert bench.rows() == [("mesh", alpha, alpha / 2) for alpha in (0.1, 0.2, 0.4)]
    assert [len(rows) for rows in bench.seen] == [0, 1, 2]
    assert all(float(row["pixel_AP"]) == float(row["alpha"]) / 2 for rows in bench.seen for row in rows)
    assert {p.name for p in bench.out.iterdir()} == {"results.csv", "failures.csv", "parallel.html", "points"}
    for row in table(bench.out / "results.csv"):
        kept = json.loads((bench.out / "points" / row["point"] / "point.json").read_text())
        assert str(kept["row"]["alpha"]) == row["alpha"] and len(expand(kept["spec"])) == 1


def test_points_that_are_there_are_not_computed_again(bench, category, monkeypatch):
    bench.run()
    bench.run(grid={"alpha": [0.4, 0.8, 0.1]})
    assert bench.calls == [0.1, 0.2, 0.4, 0.8]
    assert [alpha for _, alpha, _ in bench.rows()] == [0.4, 0.8, 0.1]
    (bench.out / "results.csv").unlink()  # it is made of what lies in the points' folders
    bench.run()
    assert len(bench.rows()) == 3 and len(bench.calls) == 4
    write_image(category / "test/good/001.png", np.zeros((40, 48), np.uint8))
    bench.run()
    assert bench.calls[4:] == [0.1, 0.2, 0.4]
    monkeypatch.setattr(module, "code_digest", lambda: "another version")
    bench.run()
    assert bench.calls[7:] == [0.1, 0.2, 0.4]


def test_a_point_that_fails_stops_no_other_and_is_given_back(bench, monkeypatch):
    bench.failing = [0.2]
    assert bench.run() == (bench.out, 1)
    assert bench.rows() == [("mesh", 0.1, 0.05), ("mesh", 0.4, 0.2)]
    (failure,) = table(bench.out / "failures.csv")
    assert failure["reason"] == "ValueError: alpha = 0.2, it is too much\nfor me"
    assert 'raise ValueError(f"alpha' in failure["last_lines"]
    assert [asked(point) for point in read_spec(bench.out / "failures.csv").values()] == [
        asked(expand(json.loads(failure["spec"]))[0])
    ]

    assert bench.run(bench.out / "failures.csv") == (bench.out, 1)  # it fails again, and is still there to be given back
    bench.failing = []
    assert bench.run(bench.out / "failures.csv") == (bench.out, 0)
    assert bench.calls == [0.1, 0.2, 0.4, 0.2, 0.2]
    assert sorted(bench.rows()) == [("mesh", alpha, alpha / 2) for alpha in (0.1, 0.2, 0.4)]
    assert table(bench.out / "failures.csv") == [] and read_spec(bench.out / "failures.csv") == {}


def test_a_failure_of_a_sweep_that_broke_off_is_not_forgotten(bench, monkeypatch):
    bench.failing = [0.1, 0.2]
    bench.run()
    with monkeypatch.context() as patched:
        patched.setattr(module, "as_completed", lambda futures: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bench.run()
    assert len(table(bench.out / "failures.csv")) == 2
    bench.failing = []
    assert bench.run() == (bench.out, 0)


def test_data_that_do_not_fit_are_named_before_anything_starts(bench, refuses):
    with refuses("'nowhere'", "categories found: mesh"):
        bench.run(categories=["mesh", "nowhere"])
    assert not bench.out.exists() and not bench.calls


def test_without_a_scheduler_each_gpu_has_a_worker_of_its_own(monkeypatch):
    monkeypatch.setattr(module, "SpecCluster", lambda workers, scheduler, **_: (workers, scheduler))
    for seen, there, gpus in ((None, 3, ["0", "1", "2"]), ("2,5", 2, ["2", "5"]), (None, 0, [""])):
        monkeypatch.setattr(module.torch.cuda, "device_count", lambda there=there: there)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if seen:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
        workers, scheduler = module._cluster()
        options = [worker["options"] for worker in workers.values()]
        assert [own["env"]["CUDA_VISIBLE_DEVICES"] for own in options] == gpus
        assert all((own["nthreads"], own["memory_limit"], own["host"]) == (1, 0, "127.0.0.1") for own in options)
        assert scheduler["options"]["host"] == "127.0.0.1"  # nobody else's machine can hand it work


def test_the_cpu_has_one_worker_with_all_threads(monkeypatch):
    monkeypatch.setattr(module.torch, "get_num_threads", lambda: 2)
    with module._cluster() as cluster, Client(cluster) as client:
        seen = client.submit(
            lambda: (os.environ["OMP_NUM_THREADS"], importlib.import_module("torch").get_num_threads())
        ).result()
        assert len(client.scheduler_info()["workers"]) == 1
    assert seen == ("2", min(2, os.cpu_count()))


# --- what a point measures
@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Data, networks and results of this test are kept in a folder of its own."""
    monkeypatch.setattr(module, "Workspace", SimpleNamespace(open=lambda asked: Workspace.open(asked, kept=tmp_path / "kept")))
    return tmp_path / "kept"


def test_a_point_is_judged_as_its_preset_says_beside_its_opponents(category, kept, tmp_path):
    spec = {"preset": "ci", "settings": SMALL, "data_root": str(category.parent), "device": "cpu", "categories": "all"}
    (point,) = expand(spec)
    numbers = measure(point, tmp_path / "point")
    ws = Workspace.open(module.Request("ci", SMALL, str(category.parent), "mesh", "cpu"), kept=kept)
    labels = ws.test.gt_masks.ravel()
    assert numbers["pixel_AUROC"] == pytest.approx(roc_auc_score(labels, own_maps(ws, ws.test.images).flatten()))
    residuals = [smooth(anomaly_maps(ws.test.images, residual_score(ws.vae, k), ws.config), ws.config.sigma) for k in
                 ("l1", "l2", "ssim", "l1_ssim")]  # fmt: skip
    best = max(roc_auc_score(labels, maps.flatten()) for maps in residuals)
    assert numbers["residual_pixel_AUROC"] == pytest.approx(best, abs=1e-6)
    assert {f"{name}_{key}" for name in ("residual", "composite", "paper") for key in METRICS} < set(numbers)
    assert numbers["seconds"] > 0


def test_points_share_a_network_and_what_its_training_took(category, kept, tmp_path, monkeypatch):
    trained, train = [], module.find_or_train
    monkeypatch.setattr(module, "find_or_train", lambda *a, **k: trained.append(1) or train(*a, **k))
    spec = {"preset": "ci", "settings": SMALL, "data_root": str(category.parent), "device": "cpu", "categories": "mesh"}
    rows = [measure(point, tmp_path / "point") for point in expand(spec | {"grid": {"tolerance": [1.0, 2.0]}})]
    assert len(trained) == 1
    assert rows[0]["training_seconds"] == rows[1]["training_seconds"] > 0
    next(kept.glob("checkpoints/*.seconds")).unlink()  # as of a network that a notebook trained
    assert measure(expand(spec)[0], tmp_path / "point")["training_seconds"] is None


READS_ALPHA = """
from vaeproj.workspace import Request, Workspace
ws = Workspace.open(Request(preset, settings, data_root, category, device, out))
ws.record(alpha_read=ws.config.alpha, words="no number", headline={"pixel_AP": 0.5}, table={"a": {"b": 1}})
"""


def test_notebooks_run_into_the_points_folder(category, kept, tmp_path, monkeypatch, scheduler):
    source = READS_ALPHA
    names = ("preset", "settings", "data_root", "category", "device", "out")
    cells = [
        nbformat.v4.new_code_cell("\n".join(f'{n}: str = ""  # {n}' for n in names), metadata={"tags": ["parameters"]}, id="a")
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(source, id="b")], metadata=kernel)
    nbformat.write(notebook, tmp_path / "01_one.ipynb")
    monkeypatch.setattr(module, "find_notebook", lambda name: find_notebook(name, tmp_path))
    monkeypatch.setattr(module, "run", lambda *a, **k: run(*a, **k, notebook_dir=tmp_path))
    bench = Bench(tmp_path, category, scheduler, grid={"alpha": [0.3]}, notebooks=[1])
    bench.work = measure
    assert bench.run() == (bench.out, 0)
    (row,) = table(bench.out / "results.csv")
    assert (row["alpha_read"], row["pixel_AP"], "words" in row) == ("0.3", "0.5", False)
    made = bench.out / "points" / row["point"]
    assert {p.name for p in made.iterdir()} == {"01_one.ipynb", "metrics.json", "manifest.json", "point.json"}
    notebook.cells[-1].source += "\n# changed"
    nbformat.write(notebook, tmp_path / "01_one.ipynb")
    bench.run()
    assert len(list((bench.out / "points").glob("*/point.json"))) == 2


# --- the page
def test_the_page_holds_the_rows_and_the_fifteen_categories(bench):
    bench.run(categories="mesh")
    (data,) = [
        line for line in (bench.out / "parallel.html").read_text().splitlines() if line.startswith("const {rows, all} = ")
    ]
    data = json.loads(data.removeprefix("const {rows, all} = ").removesuffix(";"))
    assert (
        [row["alpha"] for row in data["rows"]] == [0.1, 0.2, 0.4] and data["all"] == list(MVTEC_AD) and len(data["all"]) == 15
    )


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not on the PATH")
def test_the_page_shows_the_best_lines_and_the_table_of_categories(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    rng, rows = np.random.default_rng(0), {}
    for category, alpha, seed in itertools.product(("bottle", "my_part"), (0.02, 0.5), (42, 43)):
        row = {"point": f"{len(rows):010x}", "category": category, "alpha": alpha, "seed": seed, "training_seconds": 9.0}
        row |= {f"{name}{key}": rng.uniform(0.8, 1) for name in ("", "residual_", "composite_", "paper_") for key in METRICS}
        rows[row["point"]] = row
    rows["0000000000"] = {key: str(value) for key, value in rows["0000000000"].items()}  # as it comes out of a table
    module._write(tmp_path, rows, {})
    best = sorted(rows.values(), key=lambda row: -float(row["pixel_AP"]))
    failed = []
    with playwright.sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        page.on("pageerror", lambda error: failed.append(error.message))
        page.goto((tmp_path / "parallel.html").as_uri())
        links = page.locator("svg a")
        assert [link.get_attribute("href") for link in links.all()] == [f"points/{name}/" for name in rows]
        page.locator("#best").fill("3")
        shown = {link.get_attribute("href").split("/")[1] for link in page.locator("svg a.best").all()}
        assert shown == {row["point"] for row in best[:3]}
        words = page.locator("svg text").all_text_contents()
        assert words.count("log") == 1 and {"category", "alpha", "my_part"} < set(words) and "training" not in words
        grip = page.locator(".grip").nth(1).bounding_box()  # of alpha: its upper half
        page.mouse.move(grip["x"] + 9, grip["y"] + 2)
        page.mouse.down()
        page.mouse.move(grip["x"] + 9, grip["y"] + 100)
        page.mouse.up()
        inside = [row for row in best if float(row["alpha"]) == 0.5]
        assert page.locator("svg a.out").count() == len(rows) - len(inside) == 4
        shown = {link.get_attribute("href").split("/")[1] for link in page.locator("svg a.best").all()}
        assert shown == {row["point"] for row in inside[:3]}
        lines = [line.locator("td").all_inner_texts() for line in page.locator("tr").all()]
    assert not failed
    values = np.array(
        [float(row["pixel_AUROC"]) for row in rows.values() if (row["category"], row["alpha"]) == ("my_part", 0.5)]
    )
    (line,) = (line for line in lines if line[0] == "my_part, 0.5")
    assert line[5] == f"{values.mean():.3f} ± {values.std(ddof=1):.3f}".replace("0.", ".") and line[6] == ""
    assert [line[6] for line in lines if line[0].startswith("bottle")] == [".922", ".922"]
    missing = {line[0]: line[6] for line in lines if line[1] == "missing"}
    assert list(missing) == [name for name in MVTEC_AD if name != "bottle"] and missing["grid"] == ".961"


# --- the command
def test_the_command_says_where_the_table_is_and_that_points_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "sweep", lambda path, out, scheduler: (Path("swept"), int(path.stem)))
    assert main(["sweep", "0.yml"]) == 0
    assert "swept/results.csv" in capsys.readouterr().out
    assert main(["sweep", "3.yml", "--out", str(tmp_path)]) == 2
    assert "3 of the points failed: see swept/failures.csv" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["nowhere", "udp://127.0.0.1:1"])
def test_a_scheduler_that_is_none_is_one_sentence(tmp_path, capsys, address):
    assert main(["sweep", "spec.yml", "--scheduler", address]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert f"--scheduler {address} does not answer" in said


# --- a cluster
LOG = "log.txt"


def logged(point, folder):
    """Work whose beginning and end are in a log; it ends as soon as fewer points are done than `allow` has said."""
    out = folder.parents[1]

    def note(word):
        with (out / LOG).open("a") as file:  # one write of a short line is not torn
            file.write(f"{word} {folder.name} {os.getpid()}\n")

    note("began")
    while True:
        with FileLock(out / "log.lock"):
            if number_done(out) < int((out / "allowed.txt").read_text() or 0):
                note("done")
                return {"pixel_AP": parse_settings(point["settings"])["alpha"]}
        time.sleep(0.02)


def allow(out, number):
    """So many points may be done; whoever is at another one stays in the middle of it."""
    (out / "allowed.txt").write_text(str(number))


def entries(out):
    path = out / LOG
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def number_done(out):
    return sum(word == "done" for word, _, _ in entries(out))


def under_way(out):
    """The processes in the middle of a point."""
    last = {int(pid): word for word, _, pid in entries(out)}
    return {pid for pid, word in last.items() if word == "began"}


def test_every_point_is_computed_once_though_a_worker_and_the_client_are_killed(tmp_path, category):
    spec, out, address = tmp_path / "spec.yml", tmp_path / "swept", tmp_path / "scheduler.json"
    alphas = [round(0.1 * k, 1) for k in range(1, 13)]
    given = {
        "preset": "ci",
        "settings": SMALL,
        "data_root": str(category.parent),
        "categories": "mesh",
        "grid": {"alpha": alphas},
    }
    spec.write_text(yaml.safe_dump(given))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    started = []
    out.mkdir()
    allow(out, 3)

    def start(*arguments):
        log = (tmp_path / f"{len(started)}.log").open("w")
        started.append(subprocess.Popen([sys.executable, *arguments], env=environment, stdout=log, stderr=log, cwd=tmp_path))
        return started[-1]

    def client():
        code = "import sys; from pathlib import Path; from test_sweep import logged, sweep\n"
        code += f"sys.exit(sweep(Path({str(spec)!r}), Path({str(out)!r}), {scheduler!r}, logged)[1])"
        return start("-c", code)

    try:
        start(
            "-m", "dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(address)
        )
        until(address.exists)
        scheduler = json.loads(address.read_text())["address"]
        assert scheduler.startswith("tcp://")
        options = ("--no-nanny", "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path))
        workers = [start("-m", "dask", "worker", scheduler, *options) for _ in range(2)]
        lost, rest = (worker.pid for worker in workers)
        first = client()
        until(lambda: number_done(out) == 3 and under_way(out) == {lost, rest})
        os.kill(lost, signal.SIGKILL)
        allow(out, 5)
        until(lambda: number_done(out) == 5 and rest in under_way(out))  # the other goes on
        until(lambda: len(table(out / "results.csv")) >= 3)
        first.kill()
        first.wait()
        seen = table(out / "results.csv")
        assert len(seen) <= 5 and all(row["pixel_AP"] == row["alpha"] for row in seen), "the table was not whole"
        allow(out, len(alphas))
        assert client().wait(timeout=180) == 0
    finally:
        for process in started:
            process.kill()
            process.wait()
    rows = table(out / "results.csv")
    assert [float(row["alpha"]) for row in rows] == alphas and all(row["pixel_AP"] == row["alpha"] for row in rows)
    assert table(out / "failures.csv") == []
    done, began = (Counter(name for word, name, _ in entries(out) if word == which) for which in ("done", "began"))
    assert done == dict.fromkeys((row["point"] for row in rows), 1), "a point was computed twice"
    assert sum(began.values()) == len(alphas) + 1  # the one that was lost began twice
