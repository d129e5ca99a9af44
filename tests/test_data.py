"""The data folder is read as it lies there, its mistakes are named, and decoded pixels are kept until a file changes."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_image as save
from PIL import Image

from vaeproj import data
from vaeproj.data import Split, category_dir, check, load_clean, load_split

BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST


def resized(pixels: np.ndarray | Path, size: int, by: Image.Resampling = BILINEAR) -> np.ndarray:
    image = Image.open(pixels) if isinstance(pixels, Path) else Image.fromarray(pixels)
    return np.asarray(image.resize((size, size), by))


def assert_same(a: Split, b: Split) -> None:
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.gt_masks, b.gt_masks)
    assert (a.defects, a.names, a.digest) == (b.defects, b.names, b.digest)


def test_names_and_order_are_those_of_the_files(category, refuses):
    train, test = (load_split(category, split, 16) for split in ("train", "test"))
    assert train.names == ["good/000", "good/002", "good/010"]
    assert test.names == ["bent/003", "bent/004", "good/001", "good/007", "thread/000"]
    assert test.defects == ["bent", "bent", "good", "good", "thread"]
    assert test.gt_labels.tolist() == [True, True, False, False, True]
    assert test.index("good/007") == 3
    with refuses("'bent/000'", "bent/003"):
        test.index("bent/000")


@pytest.mark.parametrize("size", [16, 40, 64])
def test_pixels_are_those_of_pil(category, size):
    test = load_split(category, "test", size)
    assert (test.images.shape, test.images.dtype, test.gt_masks.dtype) == ((5, 1, size, size), torch.uint8, np.uint8)
    for name, image, mask in zip(test.names, test.images, test.gt_masks, strict=True):
        np.testing.assert_array_equal(image[0], resized(category / "test" / f"{name}.png", size))
        truth = category / "ground_truth" / f"{name}_mask.png"
        np.testing.assert_array_equal(mask, resized(truth, size, NEAREST) // 255 if truth.exists() else np.zeros_like(mask))
    assert test.gt_masks.any((1, 2)).tolist() == test.gt_labels.tolist()
    assert load_split(category, "test", size, device=torch.device("meta")).images.device.type == "meta"


@pytest.mark.parametrize("suffix", ["png", "bmp", "TIF"])
def test_colour_comes_channels_first(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    save(tmp_path / f"tiles/train/good/000.{suffix}", pixels)
    split = load_split(tmp_path / "tiles", "train", 16)
    np.testing.assert_array_equal(split.images[0], resized(pixels, 16).transpose(2, 0, 1))


# How a picture that is to be shown upright lies in its file, by the EXIF standard's number (Orientation, tag 274).
STORED = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
    5: lambda a: a.swapaxes(0, 1), 6: np.rot90, 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, -1),
}  # fmt: skip


@pytest.mark.parametrize("turned", STORED)
@pytest.mark.parametrize(("suffix", "dtype"), [("png", np.uint8), ("png", np.uint16), ("tif", np.uint8)])
def test_a_picture_and_its_mask_are_turned_upright_as_their_exif_data_say(category, turned, suffix, dtype):
    before = load_split(category, "test", 24)
    for folder, mask in (("test", ""), ("ground_truth", "_mask")):
        path = category / f"{folder}/bent/003{mask}.png"
        upright = np.asarray(Image.open(path))
        exif = Image.Exif()
        exif[274] = turned
        path.unlink()
        levels = STORED[turned](upright) * dtype(257 if dtype == np.uint16 and not mask else 1)
        levels = levels.astype(np.uint8) if mask else levels
        path = path.with_suffix(f".{suffix if not mask else 'png'}")
        Image.fromarray(np.ascontiguousarray(levels)).save(path, exif=exif)
    after = load_split(category, "test", 24)
    np.testing.assert_array_equal(after.images, before.images)
    np.testing.assert_array_equal(after.gt_masks, before.gt_masks)


def test_a_mask_drawn_over_the_upright_picture_fits_it(category, refuses):
    """Its picture lies in its file as the sensor saw it, with the way to turn it; the mask as it is seen."""
    path, exif = category / "test/bent/003.png", Image.Exif()
    before = load_split(category, "test", 24)
    exif[274] = 6
    Image.fromarray(np.rot90(np.asarray(Image.open(path)))).save(path, exif=exif)
    after = load_split(category, "test", 24)
    np.testing.assert_array_equal(after.images, before.images)
    np.testing.assert_array_equal(after.gt_masks, before.gt_masks)
    Image.fromarray(np.asarray(Image.open(path))).save(path)
    with refuses("003_mask.png is 48x40 but its image is 40x48"):
        load_split(category, "test", 24)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(
    ("brightest", "divisor"),
    [(0, 1), (255, 1), (256, 4), (1023, 4), (1024, 16), (4095, 16), (4096, 64), (16383, 64), (16384, 256), (65535, 256)],
)
def test_files_of_sixteen_bits_are_scaled_by_the_depth_of_the_brightest(tmp_path, suffix, brightest, divisor):
    """Of 8, 10, 12, 14 or 16 bits; a dark picture stays dark among bright ones, one of 8 bits is taken as it is."""
    rng = np.random.default_rng(0)
    bright, dark = (rng.integers(0, top + 1, (16, 16), dtype=np.uint16) for top in (brightest, brightest // 8))
    bright[3, 5] = brightest
    eight = rng.integers(0, 256, (16, 16), dtype=np.uint8)
    for name, pixels in (("000", dark), ("001", bright), ("002", eight)):
        save(tmp_path / f"train/good/{name}.{suffix}", pixels)
    images = load_split(tmp_path, "train", 16).images[:, 0]
    np.testing.assert_array_equal(images, [dark // divisor, bright // divisor, eight])


def test_the_digest_follows_every_byte_and_nothing_else(category):
    before, other_size = ([load_split(category, split, size).digest for split in ("train", "test")] for size in (16, 32))
    path = category / "ground_truth/bent/003_mask.png"
    save(path, 255 - np.asarray(Image.open(path)))
    after = [load_split(category, split, 16).digest for split in ("train", "test")]
    assert before == other_size
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)


def test_clean_scenes_are_read_by_name(category, refuses):
    with refuses("clean"):
        load_clean(category, ["bent/003"], 16)
    pixels = np.random.default_rng(1).integers(0, 256, (40, 48), dtype=np.uint8)
    save(category / "clean/bent/003.png", pixels)
    clean = load_clean(category, ["bent/003"], 16)
    assert clean.dtype == torch.uint8
    np.testing.assert_array_equal(clean, resized(pixels, 16)[None, None])
    with refuses("bent/004.png"):
        load_clean(category, ["bent/004"], 16)


@pytest.mark.parametrize(("folders", "found"), [(["rope/train/good", "mesh/train/good", "papers"], "mesh, rope"), ([], "none")])
def test_a_missing_category_is_answered_with_those_found(tmp_path, refuses, folders, found):
    with refuses(tmp_path / "root", "--data-root"):
        category_dir(tmp_path / "root", "grid")
    for name in (*folders, ".partial-1-rope/train/good"):  # the last of a download that was killed
        (tmp_path / "root" / name).mkdir(parents=True)
    with refuses("'grid'", f"found: {found}."):
        category_dir(tmp_path / "root", "grid")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("stray", [True, False])
def test_a_folder_without_images_is_named(tmp_path, refuses, split, stray):
    if stray:
        (tmp_path / split / "good").mkdir(parents=True)
        (tmp_path / split / "good/Thumbs.db").write_bytes(b"")
    with refuses(tmp_path / split):
        load_split(tmp_path, split, 16)


DAMAGE = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "text": lambda path: path.write_bytes(b"<html>not found</html>"),
    "link to nowhere": lambda path: (path.unlink(), path.symlink_to("gone.png")),
    "other size": lambda path: save(path, np.zeros((48, 40), np.uint8)),
    "missing": Path.unlink,
}
IMAGE, MASK = "test/bent/004.png", "ground_truth/bent/004_mask.png"


@pytest.mark.parametrize(
    ("damage", "name", "words"),
    [(damage, name, []) for damage in list(DAMAGE)[:4] for name in (IMAGE, MASK)]
    + [("other size", MASK, ["40x48", "48x40"]), ("missing", MASK, [IMAGE])],
)
def test_a_damaged_file_is_named(category, refuses, damage, name, words):
    DAMAGE[damage](category / name)
    with refuses(category / name, *words):
        check(category)


def test_without_ground_truth_nobody_knows_where_defects_are(category, tmp_path, refuses):
    before, counts = load_split(category, "test", 16, cache=tmp_path / "cache"), check(category)
    shutil.rmtree(category / "ground_truth")
    after = load_split(category, "test", 16, cache=tmp_path / "cache")
    assert (after.names, after.gt_labels.tolist()) == (before.names, before.gt_labels.tolist())
    np.testing.assert_array_equal(after.images, before.images)
    assert before.gt_masks.any() and not after.gt_masks.any()
    assert after.digest != before.digest
    assert check(category) == {name: count for name, count in counts.items() if not name.startswith("ground_truth")}
    (category / "ground_truth").mkdir()  # begun, so to be finished
    with refuses(category / IMAGE.replace("004", "003"), category / MASK.replace("004", "003")):
        load_split(category, "test", 16, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("suffix", "pixels", "words"),
    [
        ("png", np.zeros((40, 48, 3), np.uint8), "channels"),
        ("tif", np.full((40, 48), 2**16, np.int32), "up to 65536,"),
        ("tif", np.full((40, 48), 0.5, np.float32), "up to 0.5,"),
    ],
    ids=["colour among grey", "32 bits", "float"],
)
def test_a_picture_that_does_not_fit_is_named(category, refuses, suffix, pixels, words):
    save(category / f"train/good/011.{suffix}", pixels)
    with refuses(category / f"train/good/011.{suffix}", words):
        load_split(category, "train", 16)


def test_pixels_are_kept_and_read_instead_of_the_pictures(category, tmp_path):
    for split, size in (("train", 16), ("test", 16), ("train", 24)):
        first = load_split(category, split, size, cache=tmp_path)
        assert_same(first, load_split(category, split, size))
        assert_same(load_split(category, split, size, cache=tmp_path), first)
        np.savez(tmp_path / f"{first.digest[:16]}-{size}.npz", images=255 - first.images.numpy(), masks=1 - first.gt_masks)
        again = load_split(category, split, size, cache=tmp_path)
        np.testing.assert_array_equal(again.images, 255 - first.images)
        np.testing.assert_array_equal(again.gt_masks, 1 - first.gt_masks)


def test_another_way_to_decode_is_another_digest(category, monkeypatch):
    before = load_split(category, "train", 16)
    monkeypatch.setattr(data, "DECODING_VERSION", data.DECODING_VERSION + 1)
    assert load_split(category, "train", 16).digest != before.digest


@pytest.mark.parametrize("name", ["test/bent/003.png", "ground_truth/bent/003_mask.png"])
def test_a_changed_file_gives_new_pixels(category, tmp_path, name):
    before = load_split(category, "test", 16, cache=tmp_path)
    save(category / name, 255 - np.asarray(Image.open(category / name)))
    after = load_split(category, "test", 16, cache=tmp_path)
    assert_same(after, load_split(category, "test", 16))
    changed = (bool((before.images != after.images).any()), (before.gt_masks != after.gt_masks).any())
    assert changed == (name.startswith("test"), name.startswith("ground_truth"))


@pytest.mark.parametrize("length", [0, 5, 60, 1000, -1])
def test_a_cache_file_cut_short_is_decoded_anew(category, tmp_path, length):
    split = load_split(category, "test", 16, cache=tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    assert_same(load_split(category, "test", 16, cache=tmp_path / "cache"), split)
    assert len(path.read_bytes()) == len(whole)


def test_the_real_grid_reads(mvtec_root, tmp_path):
    folder = category_dir(mvtec_root, "grid")
    assert sum(check(folder).values()) == len(list(folder.rglob("*.png")))
    for split in ("train", "test"):
        read = load_split(folder, split, 64, cache=tmp_path)
        np.testing.assert_array_equal(read.images[-1, 0], resized(folder / split / f"{read.names[-1]}.png", 64))
        assert read.images.float().std() > 20  # a picture, not a flat field
        assert (read.gt_masks.any((1, 2)) <= read.gt_labels).all()
