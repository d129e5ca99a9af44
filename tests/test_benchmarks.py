"""Every benchmark runs to its JSON line; at these sizes its numbers mean nothing."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from vaeproj.config import PROJECT_ROOT
from vaeproj.device import has_native_bf16

FOLDER = PROJECT_ROOT / "benchmarks"
PLOTS = {"train": ["learning_curves.png"], "scaling": ["scaling.png"]}


@pytest.mark.parametrize("script", sorted(path.stem for path in FOLDER.glob("[!_]*.py")))
def test_runs_to_its_result(script, tmp_path):
    if script == "page" and not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("Chromium is not on the PATH")
    out = tmp_path / "plots"  # not there yet
    command = [sys.executable, FOLDER / f"{script}.py", "--small", "--device", "cpu", "--out", out, "--images", "13"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["benchmark"], result["scale"]) == (script, "small")
    assert {"device", "python", "torch", "torchvision"} <= set(result["environment"])
    assert [path.name for path in out.iterdir()] == PLOTS.get(script, [])
    if script == "train":
        assert result["images"] == 13  # of 8 files
    if script == "project":
        # Where the network runs in bf16, the difference is one of rounding: far below the change itself.
        bound = 0.02 * result["map_mean"] if has_native_bf16(torch.device("cpu")) else 1e-5
        assert result["map_difference_max"] < bound
    if script == "evaluate":
        assert max(result["metric_differences"].values()) < 1e-4
    if script == "scaling":
        assert {(point["panel"], point["value"]) for point in result["points"]} >= {("tiles", 2), ("tiles", 4)}
        assert min(point["peak_MiB"] for point in result["points"]) > 100  # PyTorch alone takes more
    if script == "page":
        assert all(0 < milliseconds < 10_000 for turns in result["milliseconds"].values() for milliseconds in turns)
        assert all(moments["picture"] > 0 and moments["proof"] > 0 for moments in result["opened"])
        assert result["pictures_per_second"] > 0
