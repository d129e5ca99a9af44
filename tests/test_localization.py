"""Maps are means over tiles; smoothing and SSIM are those of scipy and torchmetrics."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchmetrics.functional.image import structural_similarity_index_measure

from vaeproj.config import Config
from vaeproj.crops import tile_starts
from vaeproj.localization import (
    anomaly_maps,
    difference,
    image_scores,
    projection_score,
    residual_score,
    smooth,
    ssim_map,
)
from vaeproj.projection import project

CONFIG = Config(image_size=40, crop_size=16, stride=6, latent_dim=8, iterations=3)


def noise_images(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


# --- maps


def test_a_constant_score_gives_a_constant_map():
    maps = anomaly_maps(noise_images(3, 1, 40, 37), lambda tiles: torch.full_like(tiles, 0.625), CONFIG)
    assert maps.shape == (3, 40, 37)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps, torch.full_like(maps, 0.625), rtol=1e-6, atol=0)


@pytest.mark.parametrize("at_once", [1, 40, 4096])  # tiles of one image and a half, at 40
@pytest.mark.parametrize("channels", [1, 3])
def test_a_map_is_the_mean_over_channels_and_tiles(at_once, channels):
    images = noise_images(5, channels, 40, 37)
    weight = torch.rand(channels, 16, 16, generator=torch.Generator().manual_seed(0))  # a score that differs across a tile
    given_at_once = []

    def score(tiles: torch.Tensor) -> torch.Tensor:
        assert tiles.min() >= 0
        assert tiles.max() <= 1
        given_at_once.append(len(tiles))
        return tiles**2 * weight

    maps = anomaly_maps(images, score, CONFIG, at_once=at_once)
    corners = list(itertools.product(tile_starts(40, 16, 6), tile_starts(37, 16, 6)))
    total, count = np.zeros((5, 40, 37)), np.zeros((40, 37))
    hann = np.sin(np.pi * (np.arange(16) + 0.5) / 16) ** 2
    window = np.outer(hann, hann)
    for top, left in corners:
        here = np.s_[..., top : top + 16, left : left + 16]
        total[here] += ((images[here].double().numpy() / 255) ** 2 * weight.double().numpy()).mean(1) * window
        count[here] += window
    np.testing.assert_allclose(maps, total / count, rtol=1e-5, atol=1e-6)
    assert sum(given_at_once) == 5 * len(corners)
    assert max(given_at_once) <= max(at_once, len(corners))


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_scores_are_what_the_vae_and_the_projection_leave(seasoned_vae, kind):
    vae, tiles = seasoned_vae(), noise_images(600, 1, 16, 16) / 255
    config = CONFIG.replace(score=kind)
    power = {"l1": 1, "l2": 2}[kind]
    residual = residual_score(vae, kind)(tiles)
    torch.testing.assert_close(residual, (tiles - vae.reconstruct(tiles)).detach().abs() ** power, rtol=0, atol=1e-5)
    changed = projection_score(vae, config)(tiles[:5])
    expected = (tiles[:5] - project(vae, tiles[:5], config)).abs() ** power
    torch.testing.assert_close(changed, expected, rtol=0, atol=1e-5)
    still = projection_score(vae, config, stop_at=float("inf"))(tiles[:5])
    assert not still.any()


def test_the_ssim_score_is_one_minus_ssim(seasoned_vae):
    vae, tiles = seasoned_vae(), noise_images(3, 1, 16, 16) / 255
    expected = 1 - ssim_map(tiles, vae.reconstruct(tiles).detach())
    torch.testing.assert_close(residual_score(vae, "ssim")(tiles), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(difference(tiles, tiles, "ssim"), torch.zeros_like(tiles), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 4.0])
def test_smoothing_is_scipys_gaussian_away_from_the_borders(sigma):
    maps = torch.rand(2, 48, 56, generator=torch.Generator().manual_seed(0))
    expected = np.stack([ndimage.gaussian_filter(m.double().numpy(), sigma, truncate=4.0) for m in maps])
    inside = np.s_[:, int(4 * sigma + 0.5) : -int(4 * sigma + 0.5), int(4 * sigma + 0.5) : -int(4 * sigma + 0.5)]
    assert expected[inside].size > 100
    np.testing.assert_allclose(smooth(maps, sigma)[inside], expected[inside], rtol=1e-4)


def test_two_gaussians_give_their_geometric_mean():
    maps = torch.rand(2, 64, 56, generator=torch.Generator().manual_seed(0))
    narrow, wide = (np.stack([ndimage.gaussian_filter(m.double().numpy(), s, truncate=4.0) for m in maps]) for s in (1.0, 3.0))
    np.testing.assert_allclose(smooth(maps, 1.0, 3.0)[:, 12:-12, 12:-12], np.sqrt(narrow * wide)[:, 12:-12, 12:-12], rtol=1e-4)
    # A score that rounding took below 0 counts as 0.
    assert torch.equal(smooth(maps - 2, 1.0, 3.0), torch.zeros_like(maps))


def test_smoothing_keeps_flat_maps_flat_and_none_is_none():
    maps = torch.rand(2, 40, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(smooth(maps, 0.0), maps)
    torch.testing.assert_close(smooth(torch.full((1, 40, 40), 0.3), 3.0), torch.full((1, 40, 40), 0.3))


def test_the_score_of_an_image_is_its_largest_pixel():
    assert image_scores(torch.tensor([[[0.0, 3.0], [1.0, -4.0]], [[-2.0, -1.0], [-3.0, -1.5]]])).tolist() == [3.0, -1.0]


def test_ssim_is_scipys_and_torchmetrics():
    g = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 32, 40, generator=g)
    b = (a + 0.3 * torch.randn(a.shape, generator=g)).clamp(0, 1)
    x, y = a.double().numpy(), b.double().numpy()

    def mean(z: np.ndarray) -> np.ndarray:  # truncate 3.5: 11 x 11
        return ndimage.gaussian_filter(z, 1.5, truncate=3.5, mode="mirror", axes=(2, 3))

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    expected = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    got = ssim_map(a, b)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    _, full = structural_similarity_index_measure(a, b, data_range=1.0, sigma=1.5, return_full_image=True)
    np.testing.assert_allclose(got[..., 5:-5, 5:-5], full[..., 5:-5, 5:-5], atol=1e-4)
    assert (ssim_map(a, a) > 1 - 1e-4).all()
