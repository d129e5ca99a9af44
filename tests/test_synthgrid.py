"""SynthGrid: reproducible bytes, MVTec AD's layout, honest masks, safe writing, and the look of the real images."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import contents, write_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vaeproj.synthgrid.dataset import COUNTS, DEFECTS, render, write_synthgrid

SMALL = {"train/good": 3, "test/good": 1, **{f"test/{defect}": 1 for defect in DEFECTS}}


def write(root: Path, **options) -> Path:
    return write_synthgrid(root, **{"size": 64, "counts": SMALL, "progress": False, **options})


def test_same_seed_same_bytes_for_any_number_of_workers(tmp_path):
    one, two, other = (
        contents(write(tmp_path / name, seed=seed, workers=workers))
        for name, seed, workers in (("one", 5, 1), ("two", 5, 2), ("other", 6, 2))
    )
    assert one == two != other


def test_images_do_not_depend_on_order_or_counts(tmp_path):
    few = write(tmp_path, counts={"test/bent": 2})
    image = np.asarray(Image.open(few / "test/bent/001.png"))
    np.testing.assert_array_equal(image, render("bent", 1, size=64).image)
    assert (render("good", 0, size=64).image != render("good", 0, size=64, split="train").image).any()


def test_layout(tmp_path):
    counts = {"train/good": 2, "test/good": 1, "test/glue": 1}
    folder = write(tmp_path, counts=counts)
    pictures = {str(p.relative_to(folder)) for p in folder.rglob("*.png")}
    assert folder == tmp_path / "grid"
    assert pictures == {
        "train/good/000.png", "train/good/001.png", "test/good/000.png", "test/glue/000.png", "ground_truth/glue/000_mask.png",
        "clean/glue/000.png",
    }  # fmt: skip
    assert {(Image.open(folder / name).mode, Image.open(folder / name).size) for name in pictures} == {("L", (64, 64))}
    (description,) = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".png")
    assert json.loads(description.read_text())["counts"] == counts


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_render_that_ends_early_leaves_nothing_that_a_later_one_keeps(tmp_path, sent, status):
    command = [sys.executable, "-m", "vaeproj", "data", "synth", "--data-root", str(tmp_path)]
    rendering = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.rglob("*.png")):
        assert rendering.poll() is None
        time.sleep(0.01)
    rendering.send_signal(sent)
    assert rendering.wait() == status
    assert bool(list(tmp_path.rglob("*.png"))) == (sent == signal.SIGKILL)
    assert not (tmp_path / "grid").exists()
    assert len(list(write(tmp_path).rglob("*.png"))) == 4 + 3 * len(DEFECTS)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["grid"]


def test_a_complete_set_is_not_touched(tmp_path):
    """Nor is anything made beside it: its folder may be one that can only be read."""
    folder = write(tmp_path / "first").rename(tmp_path / "grid")
    before = [(p, p.stat().st_mtime_ns) for p in (tmp_path, *folder.rglob("*"))]
    assert write(tmp_path) == folder
    assert [(p, p.stat().st_mtime_ns) for p in (tmp_path, *folder.rglob("*"))] == before


def test_writers_at_once_make_one_whole_set(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: write(tmp_path, workers=1).stat().st_ino, range(3)))
    assert len(set(made)) == 1  # the first one's, which the others did not replace
    assert contents(tmp_path / "grid") == contents(write(tmp_path / "alone"))


OCCUPANTS = {
    "real data": lambda target: write_image(target / "train/good/000.png", np.zeros((8, 8), np.uint8)),
    "other settings": lambda target: write(target.parent, seed=1, counts={"train/good": 1}),
    "empty folder": Path.mkdir,
    "file": lambda target: target.write_text("precious"),
}


@pytest.mark.parametrize("occupy", OCCUPANTS.values(), ids=OCCUPANTS)
def test_never_overwrites(tmp_path, refuses, occupy):
    occupy(tmp_path / "grid")
    before = contents(tmp_path)
    with refuses(tmp_path / "grid", "already holds"):
        write(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("bad", [{"counts": {"test/scratch": 1}}, {"counts": {"test/good": -1}}, {"seed": -1}, {"size": 32}])
def test_bad_settings(tmp_path, bad):
    with pytest.raises(ValueError, match="need"):
        write(tmp_path, **bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind, split", [("scratch", "test"), ("bent", "train"), ("good", "validation")])
def test_unknown_kind(kind, split):
    with pytest.raises(ValueError, match="no such images"):
        render(kind, 0, size=64, split=split)


@given(st.sampled_from(("good", *DEFECTS)), st.integers(0, 10**6), st.integers(0, 2**63), st.integers(64, 160))
def test_a_defect_is_inside_its_mask_only(kind, index, seed, size):
    scene = render(kind, index, seed=seed, size=size)
    for pixels in (scene.image, scene.mask, scene.clean):
        assert pixels.dtype == np.uint8 and pixels.shape == (size, size)
    inside = scene.mask == 255
    assert ((scene.mask == 0) == ~inside).all()
    np.testing.assert_array_equal(scene.image[~inside], scene.clean[~inside])
    assert inside.any() == (kind != "good")
    if inside.any():
        assert inside.mean() < 0.2
        change = np.abs(scene.image.astype(int) - scene.clean)[inside]
        assert change.max() >= 4 and change.mean() > 1


def spectrum_peak(image: np.ndarray) -> tuple[float, float]:
    """Direction (degrees, 0..180) and wavelength (fraction of the side) of the strongest wave in an image."""
    size = len(image)
    window = np.hanning(size)
    power = np.abs(np.fft.fft2((image - image.mean()) * np.outer(window, window))) ** 2
    fy, fx = np.meshgrid(np.fft.fftfreq(size, 1 / size), np.fft.fftfreq(size, 1 / size), indexing="ij")
    power[np.hypot(fx, fy) < 4] = 0
    y, x = np.unravel_index(power.argmax(), power.shape)
    return np.degrees(np.arctan2(fy[y, x], fx[y, x])) % 180, 1 / np.hypot(fx[y, x], fy[y, x])


def test_meshes_lie_at_every_angle_with_the_real_pitch():
    angles, pitches = zip(*(spectrum_peak(render("good", i, size=128).image) for i in range(60)), strict=True)
    counts, _ = np.histogram(angles, bins=6, range=(0, 180))
    assert counts.min() >= 2 and counts.max() <= 25
    assert 0.075 < np.median(pitches) < 0.095  # 85 of 1024 pixels, measured on the real images


def test_greys_are_in_the_range_of_the_real_images():
    """Ranges of mean and standard deviation of the real images (104-132, 32-56), with some room."""
    images = [render("good", i, size=128, split="train").image for i in range(24)]
    means, stds = np.mean(images, (1, 2)), np.std(images, (1, 2))
    assert min(means) > 95 and max(means) < 140 and 110 < np.mean(means) < 126
    assert min(stds) > 24 and max(stds) < 62 and 34 < np.mean(stds) < 50


def test_grey_quantiles_match_the_real_images(mvtec_root):
    folder = mvtec_root / "grid/train/good"
    real = [np.asarray(Image.open(path).convert("L").resize((256, 256))) for path in sorted(folder.glob("*.png"))[:40]]
    synthetic = [render("good", i, size=256, split="train").image for i in range(40)]
    ours, theirs = (np.quantile(images, (0.05, 0.25, 0.5, 0.75, 0.95), (1, 2)).mean(1) for images in (synthetic, real))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=15)


def test_the_default_counts_are_those_of_the_real_grid():
    tested = {name: count for name, count in COUNTS.items() if name.startswith("test/")}
    assert (COUNTS["train/good"], tested.pop("test/good"), sum(tested.values())) == (264, 21, 57)
