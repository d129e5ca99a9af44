"""Figures: every one is drawn from arrays, redrawn to the same bytes, and names its run."""


import numpy as np
import pytest
from conftest import contents
from PIL import Image

from vaeproj.figures import FIGURES, grid, redraw, save

CROPS = np.random.default_rng(0).random((4, 1, 16, 16)).astype(np.float32)
MASKS = np.zeros((4, 16, 16), bool)
MASKS[:3, 4:9, 5:10] = True


def test_saved_and_redrawn_figures_have_the_same_bytes_and_name_the_run(tmp_path):
    pictures = dict.fromkeys(("images", "pictures", "projections"), CROPS)
    save("comparison", tmp_path, "abc123", **pictures, masks=MASKS, titles=np.array(list("abcd")))
    png, pdf = tmp_path / "comparison.png", tmp_path / "comparison.pdf"
    (tmp_path / "untouched.png").write_bytes(b"x")
    before = contents(tmp_path)
    png.unlink()
    redraw("comparison", tmp_path)
    assert contents(tmp_path) == before
    assert Image.open(png).text["Description"] == "vaeproj comparison abc123"
    assert b"abc123" in pdf.read_bytes()


def test_stored_pictures_are_finer_than_grey_levels(tmp_path):
    save("reconstruction", tmp_path, "f", originals=CROPS, pictures=CROPS)
    with np.load(tmp_path / "reconstruction.npz") as stored:
        assert np.abs(stored["originals"] - CROPS).max() < 0.5 / 255


@pytest.mark.parametrize(("name", "words"), [("nope", ["'nope'", *FIGURES]), ("comparison", ["run the notebook", "first"])])
def test_an_unknown_or_missing_figure_is_one_sentence(tmp_path, refuses, name, words):
    with refuses(*words):
        redraw(name, tmp_path)


@pytest.mark.parametrize("arrays", [{"wrong": np.zeros(1)}, None])
def test_arrays_of_another_version_or_cut_short_are_one_sentence(tmp_path, refuses, arrays):
    save("crops", tmp_path, "f", plain=CROPS, augmented=CROPS)
    path = tmp_path / "crops.npz"
    if arrays is None:
        path.write_bytes(path.read_bytes()[:-40])
    else:
        np.savez(path, fingerprint=np.asarray("f"), **arrays)
    with refuses(path, "run the notebook again"):
        redraw("crops", tmp_path)


def test_a_row_is_drawn_over_its_own_range():
    """Grey rows over [0, 1]; a change row from 0 to its largest value, so that two crops of one row compare."""
    drawn = grid([[CROPS[0], CROPS[1]], [CROPS[0][0] * 0.1, CROPS[1][0] * 0.3]], ["a", "b"], maps=["gray", "magma"])
    limits = [axis.images[0].get_clim() for axis in drawn.axes]
    assert limits[:2] == [(0, 1), (0, 1)]
    top = max(CROPS[0].max() * 0.1, CROPS[1].max() * 0.3)
    assert limits[2] == limits[3] == (0, pytest.approx(top))
