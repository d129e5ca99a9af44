"""Every benchmark runs to its JSON line; at these sizes its numbers mean nothing."""

import json
import os
import subprocess
import sys

import pytest
import torch

from vaeproj.config import PROJECT_ROOT
from vaeproj.model import has_native_bf16

FOLDER = PROJECT_ROOT / "benchmarks"
PLOTS = {"train": ["learning_curves.png"], "scaling": ["scaling.png"]}


def last_line(script, *options):
    """The JSON with which a script ends, run as the user runs it."""
    command = [sys.executable, FOLDER / f"{script}.py", "--small", "--device", "cpu", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("script", sorted(path.stem for path in FOLDER.glob("[!_]*.py")))
def test_runs_to_its_result(script, tmp_path):
    result = last_line(script, "--out", tmp_path, "--images", "13")
    assert (result["benchmark"], result["scale"]) == (script, "small")
    assert {"device", "python", "torch", "torchvision"} <= set(result["environment"])
    assert [path.name for path in tmp_path.iterdir()] == PLOTS.get(script, [])
    if script == "train":
        assert result["images"] == 13  # of 8 files
    if script == "project":
        # Where the network runs in bf16, the difference is one of rounding: far below the change itself.
        bound = 0.02 * result["map_mean"] if has_native_bf16(torch.device("cpu")) else 1e-5
        assert result["map_difference_max"] < bound
    if script == "evaluate":
        assert max(result["metric_differences"].values()) < 1e-4


def test_a_point_in_a_process_of_its_own():
    point = last_line("scaling", "--panel", "tiles", "--value", "3")
    assert point["value"] == 3
    assert point["peak_MiB"] > 0
