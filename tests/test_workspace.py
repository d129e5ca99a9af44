"""What every notebook starts from: mistakes in the data are told before they do harm."""

import json

import pytest
from PIL import Image

from vaeproj.workspace import Workspace


@pytest.fixture
def ws(category, tmp_path):
    return Workspace.open(
        "ci", "image_size=32 crop_size=16 stride=8", str(category.parent), "mesh", "cpu", str(tmp_path / "out")
    )


def test_other_hyper_parameters_keep_the_data(ws):
    train = ws.train
    other = ws.reconfigured(alpha=2.0)
    assert other.config.alpha == 2.0
    assert other.train is train


def test_another_image_size_is_other_data(ws, refuses):
    with refuses("image_size"):
        ws.reconfigured(image_size=64)


def test_a_test_set_without_defects_is_named(ws, refuses):
    with refuses("holds no image with a defect"):
        ws.crops_at([])


def test_colour_here_and_grey_there_is_refused(ws, category, refuses):
    for path in (category / "test").glob("*/*.png"):
        Image.open(path).convert("RGB" if ws.train.images.shape[1] == 1 else "L").save(path)
    with refuses("channels", category):
        _ = ws.test


def test_metrics_are_laid_over_older_ones(ws):
    ws.record(a=1, b=float("nan"))
    ws.record(a=2, c={"d": 3})
    assert json.loads((ws.out / "metrics.json").read_text()) == {"a": 2, "b": None, "c": {"d": 3}}
    assert [path.name for path in ws.out.iterdir()] == ["metrics.json"]
