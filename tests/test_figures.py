"""Figures: every one is drawn from arrays, redrawn to the same bytes, and names its run."""

import matplotlib.style
import numpy as np
import pytest
from conftest import contents
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from vaeproj.figures import FIGURES, STYLE, Rows, grid, redraw, save

CROPS = np.random.default_rng(0).random((4, 1, 16, 16)).astype(np.float32)
MASKS = np.zeros((4, 16, 16), bool)
MASKS[:3, 4:9, 5:10] = True


def test_saved_and_redrawn_figures_have_the_same_bytes_and_name_the_run(tmp_path):
    pictures = dict.fromkeys(("images", "pictures", "projections"), CROPS)
    save("comparison", tmp_path, "abc123", **pictures, masks=MASKS, titles=np.array(list("abcd")), truth=CROPS[:0])
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


def test_rows_of_a_scale_compare_and_grey_rows_are_absolute():
    low, high = CROPS[:, 0] * 0.1, CROPS[:, 0] * 0.3
    drawn = grid([CROPS], ["a", "b", "c"], (), Rows([low, high], "unit"))
    limits = [axis.images[0].get_clim() for axis in drawn.axes if axis.images]
    assert limits[:4] == [(0, 1)] * 4
    assert limits[4:] == [(0, pytest.approx(high.max()))] * 8
    (bar,) = (axis for axis in drawn.axes if not axis.images)
    assert bar.get_ylabel() == "unit"
    assert bar.get_ylim() == pytest.approx((0, high.max()))


def test_the_outline_lies_beside_the_mask_and_not_over_it():
    mask = np.zeros((80, 80), bool)
    mask[20:40, 30:50] = True
    drawn = grid([np.zeros((1, 80, 80))], ["a"], outlines=[mask])
    (line,) = (c for c in drawn.axes[0].collections)
    x, y = np.concatenate([path.vertices for path in line.get_paths()]).T
    assert x.min() <= 28 and x.max() >= 51 and y.min() <= 18 and y.max() >= 41
    assert not mask[y.round().astype(int), x.round().astype(int)].any()


NAMES = np.array(["bent/000", "broken/000", "glue/000", "metal_contamination/000", "thread/000"])
FIVE = np.resize(CROPS, (5, 1, 16, 16))
FLAT, AREAS = FIVE[:, 0], np.resize(MASKS, (5, 16, 16))
LINE, RULES = np.linspace(0.1, 1, 20), np.array(["paper", "anchored"])
METHODS = np.array(["test image", "VAE", "composite, one threshold", "projection, anchored"])
EXAMPLES = {
    "dataset": {"images": FIVE, "masks": AREAS, "titles": NAMES},
    "crops": {"plain": FIVE, "augmented": FIVE},
    "statistics": {
        "grey_levels": np.arange(20), "normal": LINE / 50, "defective": LINE / 60, "defect_area": LINE[:5],
        "defects": np.array([name.split("/")[0] for name in NAMES]),
    },
    "learning_curve": {"history": 10000 + 900 * np.stack([LINE, LINE], 1), "flat": np.array(11300), "floor": np.array(9800)},
    "snapshots": {"probe": FIVE, "pictures": np.stack([FIVE] * 3), "steps": np.array([53, 850, 1700])},
    "samples": {"pictures": np.concatenate([FIVE, FIVE])},
    "reconstruction": {"originals": FIVE, "pictures": FIVE},
    "residual": {"images": FIVE, "pictures": 1 - FIVE, "masks": AREAS, "titles": NAMES},
    "sharpness": {"frequency": LINE, "image": LINE, "picture": LINE},
    "spectra": {"image": FLAT[0], "picture": FLAT[1]},
    "pasted": {"images": FIVE, "pictures": FIVE, "pasted": FIVE, "titles": NAMES},
    "energy_curves": {"terms": np.random.default_rng(1).random((20, 5, 2)), "names": NAMES},
    "iteration_strip": {"frames": FIVE, "pictures": FIVE, "iterations": np.array([0, 2, 10, 32, 100])},
    "soft_mask": {"image": FIVE[0], "picture": FIVE[1], "gradient": FIVE[2] - FIVE[3]},
    "lam_alpha": {"pictures": np.stack([FIVE[:3]] * 3), "alphas": LINE[:3], "lams": LINE[:3]},
    "weights": {"images": FIVE, "pictures": FIVE, "seen": FLAT, "expected": FLAT, "weight": FLAT, "titles": NAMES},
    "descents": {
        "images": FIVE, "pictures": np.stack([FIVE] * 2), "changes": np.stack([FLAT] * 2), "names": RULES, "titles": NAMES,
    },
    "article_bugs": {
        "images": FIVE, "changes": np.stack([FLAT] * 2), "names": np.array(["corrected", "swapped\nbce"]), "titles": NAMES,
    },
    "one_pixel": {
        "levels": LINE, "gradients": np.stack([LINE] * 3), "paths": np.random.default_rng(2).random((3, 9, 2)),
        "names": np.array(["squared", "cross-entropy", "swapped"]), "f": np.array(0.3),
    },
    "rules": {"images": FIVE, "pictures": np.stack([FIVE] * 2), "names": RULES, "titles": NAMES},
    "comparison": {
        "images": FIVE, "pictures": FIVE, "projections": 1 - FIVE, "masks": AREAS, "titles": NAMES, "truth": FIVE,
    },
    "restoration": {
        "names": METHODS, "inside": 20 + np.random.default_rng(3).random((4, 9)),
        "outside": np.concatenate([np.full((1, 9), 82.0), 30 + np.random.default_rng(3).random((3, 9))]),
    },
    "repair_and_damage": {
        "names": RULES, **{f"{i}_{key}": LINE * 9 for i in (0, 1) for key in ("passes", "psnr", "error")},
    },
    "roc_pro": {"fpr": np.stack([LINE] * 2), "recall": np.stack([LINE] * 2), "pro": np.stack([LINE] * 2), "names": RULES},
    "gallery": {"images": FIVE, "masks": AREAS, "residuals": FLAT, "maps": FLAT, "titles": NAMES},
    "cases": {"images": FIVE, "masks": AREAS, "maps": FLAT, "titles": NAMES},
    "ablation": {"labels": METHODS, "change": LINE[:4], "spread": np.array([-0.1, 0.1])},
    "network_sizes": {"millions": LINE[:3], "ap": LINE[:3], "names": METHODS[:3]},
    "over_seeds": {
        "values": np.array([250, 1000, 3000]), "quality": np.random.default_rng(4).random((2, 3, 3)),
        "names": np.array(["tolerance = 1.5", "tolerance = 2.5"]), "axes": np.array(["steps", "pixel AP"]),
    },
    "quality_and_time": {
        "seconds": 9 * LINE.reshape(2, 10), "quality": LINE.reshape(2, 10), "names": np.array(["250 steps", "1000 steps"]),
        "metric": np.array("pixel AP"),
    },
}  # fmt: skip
# Colour bars: as many as there are scales that no label on the picture tells.
BARS = {"residual": 1, "spectra": 1, "iteration_strip": 1, "soft_mask": 3, "weights": 2, "descents": 1, "article_bugs": 1}
BARS |= {"comparison": 1, "gallery": 2, "cases": 1}


def test_every_function_of_arrays_is_a_figure_and_nothing_else():
    assert set(FIGURES) == set(EXAMPLES)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_fits_a_narrow_page_and_can_be_read_there(name):
    """At 420 pixels of page width two thirds of a figure's size remain: no label under 7 points, none cut off."""
    with matplotlib.style.context(STYLE):
        drawn = FIGURES[name](**EXAMPLES[name])
        canvas = FigureCanvasAgg(drawn)
        canvas.draw()
    width, height = drawn.get_size_inches()
    assert width <= 6.2
    used = drawn.get_tightbbox(canvas.get_renderer())
    assert used.x0 >= -0.02 and used.x1 <= width + 0.02 and used.y0 >= -0.02 and used.y1 <= height + 0.02, "a label is cut off"
    texts = drawn.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible() and bool(artist.get_text()))
    assert all(text.get_fontsize() >= 7 for text in texts)
    bars = {image.colorbar for axis in drawn.axes for image in axis.images if image.colorbar}
    assert len(bars) == BARS.get(name, 0)
    assert all(bar.ax.get_ylabel() or bar.ax.get_xlabel() for bar in bars)
