"""Crops hold the pixels they should, wherever and however they lie; tiles come apart and together again."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from vaeproj.config import Config
from vaeproj.crops import CropSampler, centred_crop, tile, tile_starts, untile

CROP = 16


def config(**changes) -> Config:
    return Config(**{"image_size": 64, "crop_size": CROP, "stride": 8, "flip": False, "rotation": False, **changes})


def noise_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def crops_of(images: torch.Tensor, settings: Config, index: torch.Tensor, seed: int = 0) -> torch.Tensor:
    sampler = CropSampler(images, settings)
    return sampler.gather(sampler.draw(index, generator(seed)))


def placements(crop: np.ndarray, image: np.ndarray) -> list[tuple[int, int, bool, bool]]:
    """Every (top, left, flipped up-down, flipped left-right) at which ``crop`` is exactly a slice of ``image``, by trial."""
    side = crop.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side), axis=(1, 2))
    found = []
    for down, right in itertools.product((False, True), repeat=2):
        flipped = np.flip(crop, [axis for axis, flip in ((1, down), (2, right)) if flip])
        same = (windows == flipped[:, None, None]).all((0, 3, 4))
        found += [(int(top), int(left), down, right) for top, left in zip(*same.nonzero(), strict=True)]
    return found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_unrotated_crops_are_slices_to_the_bit(channels, flip):
    images = noise_images(4, channels, 20, 23)
    index = torch.arange(200) % 4
    crops = crops_of(images, config(flip=flip), index)
    assert (crops.shape, crops.dtype) == ((200, channels, CROP, CROP), torch.float32)
    values = images.float().numpy() / 255
    where = [placements(crop.numpy(), values[i]) for crop, i in zip(crops, index, strict=True)]
    assert all(len(places) == 1 for places in where)
    corners = {place[:2] for (place,) in where}
    assert {top for top, _ in corners} == set(range(20 - CROP + 1))
    assert {left for _, left in corners} == set(range(23 - CROP + 1))
    flips = np.array([[sum(place[2:] == kind for (place,) in where)] for kind in itertools.product((False, True), repeat=2)])
    if flip:  # each of the four kinds 50 times of 200; six standard deviations
        assert np.abs(flips - 50).max() < 6 * np.sqrt(200 * 0.25 * 0.75)
    else:
        assert flips.ravel().tolist() == [200, 0, 0, 0]


def coordinates(settings: Config, height: int, width: int, count: int, seed: int = 0) -> np.ndarray:
    """y and x that each crop pixel was taken from, [count, 2, crop, crop]: read off pictures of the coordinates themselves.

    A bilinear filter is exact on a ramp, so this needs no knowledge of how the sampler describes its crops.
    """
    y, x = np.mgrid[:height, :width]
    ramps = torch.from_numpy(np.stack([y, x])[None].astype(np.uint8))
    return crops_of(ramps, settings, torch.zeros(count, dtype=torch.long), seed).double().numpy() * 255


@pytest.mark.parametrize("flip", [False, True])
def test_rotated_crops_lie_rigidly_at_every_angle_inside_the_image(flip):
    height, width, count = 40, 56, 400
    at = coordinates(config(rotation=True, flip=flip), height, width, count)
    down, right = np.diff(at, axis=2), np.diff(at, axis=3)
    for steps in (down, right):  # every step from pixel to pixel is the same unit vector
        np.testing.assert_allclose(steps, np.broadcast_to(steps[:, :, :1, :1], steps.shape), atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(steps[:, :, 0, 0], axis=1), 1, atol=1e-4)
    down, right = down[:, :, 0, 0], right[:, :, 0, 0]
    np.testing.assert_allclose((down * right).sum(1), 0, atol=1e-4)
    handed = down[:, 0] * right[:, 1] - down[:, 1] * right[:, 0]
    mirrored = int((handed < 0).sum())
    assert (abs(mirrored - count / 2) < 6 * np.sqrt(count / 4)) if flip else mirrored == 0
    octants = np.bincount((np.arctan2(right[:, 0], right[:, 1]) // (np.pi / 4)).astype(int) + 4, minlength=8)[:8]
    assert np.abs(octants - count / 8).max() < 6 * np.sqrt(count / 8 * 7 / 8)
    for axis, side in ((0, height), (1, width)):
        low, high = at[:, axis].min(), at[:, axis].max()
        assert -1e-4 < low < 1 < side - 2 < high < side - 1 + 1e-4  # and they use the whole of it


@pytest.mark.parametrize("flip", [False, True])
def test_rotated_crops_are_bilinear_between_pixels(flip):
    settings, count = config(rotation=True, flip=flip), 60
    images = noise_images(5, 2, 40, 56)
    index = torch.arange(count) % 5
    crops, at = crops_of(images, settings, index, seed=3), coordinates(settings, 40, 56, count, seed=3)
    for crop, i, where in zip(crops, index, at, strict=True):
        for channel, image in zip(crop, images[i], strict=True):
            expected = map_coordinates(image.double().numpy() / 255, where, order=1, mode="nearest")
            np.testing.assert_allclose(channel, expected, atol=1e-4)


@given(st.booleans(), st.booleans(), st.integers(0, 1000), st.integers(CROP, 40), st.integers(CROP, 40))
def test_values_stay_in_the_unit_interval(flip, rotation, seed, height, width):
    images = (noise_images(2, 1, height, width, seed=seed) > 127).byte() * 255  # only the two extremes
    crops = crops_of(images, config(flip=flip, rotation=rotation), torch.tensor([0, 1, 1]), seed)
    assert 0 <= crops.min() <= crops.max() <= 1 + 1e-6


def test_crops_follow_their_generator_and_nothing_else():
    settings, images, index = config(rotation=True, flip=True), noise_images(3, 1, 32, 32), torch.tensor([0, 1, 2])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = crops_of(images, settings, index, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(crops_of(images, settings, index, seed=5), one)
    assert not torch.equal(crops_of(images, settings, index, seed=6), one)
    sampler, stream = CropSampler(images, settings), generator(5)
    assert not torch.equal(sampler.draw(index, stream), sampler.draw(index, stream))


def test_sample_takes_every_image():
    images = torch.arange(0, 250, 50, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 32, 32).contiguous()
    crops = CropSampler(images, config(rotation=True)).sample(500, generator())
    levels = (crops * 255).round().amax((1, 2, 3)).int()
    assert torch.equal(levels, (crops * 255).round().amin((1, 2, 3)).int())
    counts = torch.bincount(levels // 50, minlength=5)
    assert (counts - 100).abs().max() < 6 * (500 * 0.2 * 0.8) ** 0.5


sizes = st.integers(1, 12).flatmap(
    lambda crop: st.tuples(st.just(crop), st.integers(1, crop), st.integers(crop, 30), st.integers(crop, 30))
)


@given(sizes)
def test_tiles_start_every_stride_and_reach_the_far_border(size):
    crop, stride, height, _ = size
    starts = tile_starts(height, crop, stride)
    assert (starts[0], starts[-1]) == (0, height - crop)
    assert all(step == stride for step in np.diff(starts)[:-1])
    assert all(0 < step <= stride for step in np.diff(starts)[-1:])


@given(sizes)
def test_tiles_are_slices_row_by_row_and_come_together_exactly(size):
    crop, stride, height, width = size
    images = noise_images(2, 3, height, width)
    tiles = tile(images, crop, stride)
    rows, columns = tile_starts(height, crop, stride), tile_starts(width, crop, stride)
    assert tiles.shape == (2, len(rows) * len(columns), 3, crop, crop)
    for t, (top, left) in enumerate(itertools.product(rows, columns)):
        assert torch.equal(tiles[:, t], images[:, :, top : top + crop, left : left + crop])
    torch.testing.assert_close(untile(tiles.double(), height, width, stride), images.double(), rtol=1e-12, atol=0)


@given(sizes)
def test_untile_is_the_hann_weighted_mean_of_the_tiles_that_hold_a_pixel(size):
    crop, stride, height, width = size
    corners = list(itertools.product(tile_starts(height, crop, stride), tile_starts(width, crop, stride)))
    tiles = torch.rand(1, len(corners), 1, crop, crop, dtype=torch.float64, generator=generator())
    weight = [np.sin(np.pi * (i + 0.5) / crop) ** 2 for i in range(crop)]
    expected = np.empty((height, width))
    for y, x in np.ndindex(height, width):
        holding = [
            (tiles[0, t, 0, y - top, x - left].item(), weight[y - top] * weight[x - left])
            for t, (top, left) in enumerate(corners)
            if 0 <= y - top < crop and 0 <= x - left < crop
        ]
        expected[y, x] = np.average([value for value, _ in holding], weights=[share for _, share in holding])
    np.testing.assert_allclose(untile(tiles, height, width, stride)[0, 0], expected, rtol=1e-12)


@given(st.data(), st.integers(8, 30), st.integers(8, 30), st.integers(1, 8))
def test_the_centred_crop_is_the_nearest_to_the_defect_inside_the_image(data, height, width, crop):
    mask = torch.zeros(height, width, dtype=torch.uint8)
    for _ in range(data.draw(st.integers(1, 3))):
        mask[data.draw(st.integers(0, height - 1)) :, data.draw(st.integers(0, width - 1)) :].fill_diagonal_(1)
    corner = centred_crop(torch.zeros(1, height, width), mask, crop)
    regions = regions_of({tuple(at) for at in np.argwhere(mask.numpy()).tolist()})
    largest = [np.array(sorted(r)) for r in regions if len(r) == max(map(len, regions))]
    # Of equally large regions any may be chosen: the one whose centre the crop comes nearest to is looked at.
    middle = [start + (crop - 1) / 2 for start in corner]
    region = min(largest, key=lambda r: np.abs(r.mean(0) - middle).sum())
    for start, side, centre in zip(corner, (height, width), region.mean(0), strict=True):
        distances = [abs(s + (crop - 1) / 2 - centre) for s in range(side - crop + 1)]
        assert isinstance(start, int) and 0 <= start <= side - crop
        assert distances[start] <= min(distances) + 1e-4
        assert start - 0.5 <= centre <= start + crop - 0.5  # the centre lies in the crop


def regions_of(pixels: set[tuple[int, int]]) -> list[set[tuple[int, int]]]:
    """The 8-connected regions of a set of pixels, joined one by one."""
    regions = []
    for y, x in pixels:
        near = [region for region in regions if any(abs(y - b) <= 1 and abs(x - a) <= 1 for b, a in region)]
        regions = [region for region in regions if region not in near] + [{(y, x)}.union(*near)]
    return regions


def test_an_empty_mask_gives_the_middle():
    assert centred_crop(torch.zeros(3, 20, 30), torch.zeros(20, 30), 10) == (5, 10)


def test_crops_of_white_images_are_no_whiter_than_white():
    white = torch.full((1, 1, 96, 96), 255, dtype=torch.uint8)
    sampler = CropSampler(white, Config(image_size=96, crop_size=32, stride=32))
    rows = sampler.draw(torch.zeros(200, dtype=torch.long), torch.Generator().manual_seed(0))
    assert sampler.gather(rows).max() > 1  # by a rounding, once turned
    assert sampler.sample(200, torch.Generator().manual_seed(0)).max() <= 1
