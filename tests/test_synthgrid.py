"""SynthGrid: reproducible bytes, MVTec AD's layout, honest masks, safe writing, and the look of the real images."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import contents, write_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vaeproj.cli.commands import main
from vaeproj.synthgrid import dataset
from vaeproj.synthgrid.dataset import CATEGORIES, COUNTS, render, write_synthgrid

DEFECTS = ("bent", "broken", "glue", "metal_contamination", "thread")
SMALL = {"train/good": 3, "test/good": 1, **{f"test/{defect}": 1 for defect in DEFECTS}}
RING_KINDS = ("good", "chip", "contamination", "crack")


def write(root: Path, **options) -> Path:
    return write_synthgrid(root, **{"size": 64, "counts": SMALL, **options})


def test_same_seed_same_bytes_for_any_number_of_cores(tmp_path, monkeypatch):
    made = []
    for seed, cores in ((5, 1), (5, 2), (6, 2)):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        made.append(contents(write(tmp_path / f"{seed} {cores}", seed=seed)))
    assert made[0] == made[1] != made[2]


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


def test_the_ring_in_colour_beside_the_grid(tmp_path, monkeypatch):
    """Same layout, same bytes for the same seed and any number of cores, and the grid beside it stays as it is."""
    counts = {"train/good": 2, "test/good": 1, "test/chip": 1, "test/contamination": 1, "test/crack": 2}
    grid = contents(write(tmp_path))
    folder = write(tmp_path, category="ring", counts=counts)
    assert folder == tmp_path / "ring" and contents(tmp_path / "grid") == grid
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert contents(folder) == contents(write(tmp_path / "again", category="ring", counts=counts))
    found = {name: len(list((folder / name).glob("*.png"))) for name in counts}
    assert found == counts == json.loads((folder / "synthgrid.json").read_text())["counts"]
    for kind in ("chip", "contamination", "crack"):
        for i in range(counts[f"test/{kind}"]):
            named = (f"test/{kind}/{i:03d}.png", f"ground_truth/{kind}/{i:03d}_mask.png", f"clean/{kind}/{i:03d}.png")
            opened = [Image.open(folder / name) for name in named]
            assert [picture.mode for picture in opened] == ["RGB", "L", "RGB"]
            scene = render(kind, i, category="ring", size=64)
            for picture, pixels in zip(opened, (scene.image, scene.mask, scene.clean), strict=True):
                np.testing.assert_array_equal(np.asarray(picture), pixels)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_render_that_ends_early_leaves_nothing_that_a_later_one_keeps(tmp_path, sent, status):
    command = [sys.executable, "-m", "vaeproj", "data", "synth", "--data-root", str(tmp_path)]
    # A shell starts what runs in the background with SIGINT ignored, and a child inherits that.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    rendering = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=heard)
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
        made = list(pool.map(lambda _: write(tmp_path).stat().st_ino, range(3)))
    assert len(set(made)) == 1  # the first one's, which the others did not replace
    assert contents(tmp_path / "grid") == contents(write(tmp_path / "alone"))


@pytest.mark.parametrize(("options", "category"), [([], "grid"), (["--category", "ring"], "ring")])
def test_the_command_renders_the_category_asked_for(tmp_path, monkeypatch, capsys, options, category):
    monkeypatch.setattr(dataset, "write_synthgrid", lambda root, asked: write(root, category=asked, counts={"train/good": 1}))
    assert main(["data", "synth", "--data-root", str(tmp_path), *options]) == 0
    assert capsys.readouterr().out == f"SynthGrid: {tmp_path / category}\n"
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")] == [f"{category}/train/good/000.png"]


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


@pytest.mark.parametrize("kind, split", [("scratch", "test"), ("bent", "train"), ("good", "validation"), ("chip", "test")])
def test_unknown_kind(kind, split):
    with pytest.raises(ValueError, match="no such images"):
        render(kind, 0, size=64, split=split)


def test_an_unknown_category_is_named_with_those_there_are(tmp_path, refuses):
    with refuses("'bottle'", "grid, ring"):
        write(tmp_path, category="bottle")
    assert not list(tmp_path.iterdir())


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


@settings(max_examples=20)
@given(st.sampled_from(RING_KINDS), st.integers(0, 10**6), st.integers(0, 2**63), st.integers(64, 160))
def test_a_defect_of_the_ring_is_inside_its_mask_only(kind, index, seed, size):
    scene = render(kind, index, category="ring", seed=seed, size=size)
    assert scene.image.shape == scene.clean.shape == (size, size, 3) and scene.mask.shape == (size, size)
    assert {a.dtype for a in (scene.image, scene.mask, scene.clean)} == {np.dtype(np.uint8)}
    inside = scene.mask == 255
    assert ((scene.mask == 0) == ~inside).all() and inside.any() == (kind != "good")
    np.testing.assert_array_equal(scene.image[~inside], scene.clean[~inside])
    if inside.any():
        change = np.abs(scene.image.astype(int) - scene.clean).max(-1)[inside]
        assert inside.mean() < 0.1 and change.max() >= 20 and change.mean() > 3


def test_rings_stand_nearly_at_one_place_and_in_one_light():
    """Extent and place of what is darker than the table, and colours, as the real bottles have them: within 2 % of the side."""
    images = np.stack([render("good", i, category="ring", size=128, split="train").image for i in range(12)])
    assert len({image.tobytes() for image in images}) == 12
    for axis in (1, 2):
        dark = (images.mean(-1) < 150).any(axis)
        first, last = dark.argmax(1), 127 - dark[:, ::-1].argmax(1)
        np.testing.assert_allclose((first + last) / 2, 63.5, atol=0.02 * 128)
        np.testing.assert_allclose(last - first + 1, 0.885 * 128, atol=0.03 * 128)
    corner, hollow, amber = images[:, :8, :8], images[:, 54:74, 54:74], images[:, 18:21, 54:74]
    assert corner.min() >= 250
    assert (np.abs(hollow.mean((1, 2)) - (40, 39, 50)) < 8).all()
    assert (amber.mean((1, 2))[:, 0] > amber.mean((1, 2))[:, 2] + 5).all()  # redder than blue
    spread = images.std(0).mean()
    assert 1 < spread < 15  # grey levels, over images: they differ, a little


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


def test_the_default_counts_are_those_of_the_real_categories():
    tested = {name: count for name, count in COUNTS.items() if name.startswith("test/")}
    assert (COUNTS["train/good"], tested.pop("test/good"), sum(tested.values())) == (264, 21, 57)
    bottle = {"train/good": 209, "test/good": 20}
    assert CATEGORIES["ring"] == bottle | dict(zip(map("test/{}".format, RING_KINDS[1:]), (22, 21, 20), strict=True))
