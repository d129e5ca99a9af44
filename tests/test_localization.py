"""Maps are means over tiles; smoothing and SSIM are those of scipy and torchmetrics."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchmetrics.functional.image import structural_similarity_index_measure

from vaeproj.config import Config
from vaeproj.crops import tile_starts
from vaeproj.localization import anomaly_maps, difference, projection_score, residual_score, smooth, ssim_map
from vaeproj.projection import project
from vaeproj.weight import fit_expected

CONFIG = Config(image_size=40, crop_size=16, stride=6, latent_dim=8, iterations=3)


def noise_images(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("at_once", [1, 40, 4096])  # tiles of one image and a half, at 40
@pytest.mark.parametrize("channels", [1, 3])
def test_a_map_is_the_mean_over_channels_and_tiles(at_once, channels):
    images = noise_images(5, channels, 40, 37)
    weight = torch.rand(channels, 16, 16, generator=torch.Generator().manual_seed(0))  # a score that differs across a tile
    given_at_once = []

    def score(tiles: torch.Tensor) -> torch.Tensor:
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
    assert sum(given_at_once) == 5 * len(corners) and max(given_at_once) <= max(at_once, len(corners))


@pytest.mark.parametrize("descent", ["anchored", "paper"])
@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_scores_are_what_the_vae_and_the_projection_leave(seasoned_vae, kind, descent):
    vae, tiles = seasoned_vae(), noise_images(600, 1, 16, 16) / 255
    config, expected = CONFIG.replace(score=kind, descent=descent), fit_expected(vae, tiles)
    power, few = {"l1": 1, "l2": 2}[kind], tiles[:5]
    residual = (tiles - vae.reconstruct(tiles)).detach().abs() ** power
    torch.testing.assert_close(residual_score(vae, kind)(tiles), residual, rtol=0, atol=1e-5)
    change = (few - project(vae, few, config, expected)).abs() ** power
    torch.testing.assert_close(projection_score(vae, config, expected)(few), change, rtol=0, atol=1e-5)
    assert change.mean() > 1e-3
    assert not projection_score(vae, config.replace(iterations=0), expected)(few).any()


def test_the_ssim_score_is_one_minus_ssim(seasoned_vae):
    vae, tiles = seasoned_vae(), noise_images(3, 1, 16, 16) / 255
    unlike = 1 - ssim_map(tiles, vae.reconstruct(tiles).detach())
    torch.testing.assert_close(residual_score(vae, "ssim")(tiles), unlike, rtol=0, atol=1e-4)
    config, expected = CONFIG.replace(score="ssim"), fit_expected(vae, tiles)
    unlike = 1 - ssim_map(tiles, project(vae, tiles, config, expected))
    torch.testing.assert_close(projection_score(vae, config, expected)(tiles), unlike, rtol=0, atol=1e-4)
    torch.testing.assert_close(difference(tiles, tiles, "ssim"), torch.zeros_like(tiles), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("sigma", "sigma_wide"), [(0.0, 0.0), (0.5, 0.0), (4.0, 0.0), (1.0, 3.0), (0.0, 3.0)])
def test_smoothing_is_scipys_gaussian_and_two_give_their_geometric_mean(sigma, sigma_wide):
    maps = torch.rand(2, 48, 56, generator=torch.Generator().manual_seed(0))
    narrow, wide = (ndimage.gaussian_filter(maps.double(), s, mode="mirror", axes=(1, 2)) for s in (sigma, sigma_wide))
    expected = np.sqrt(narrow * wide) if sigma_wide else narrow
    np.testing.assert_allclose(smooth(maps, sigma, sigma_wide), expected, rtol=1e-4)
    if sigma_wide:  # a score that rounding took below 0 counts as 0
        assert not smooth(maps - 2, sigma, sigma_wide).any()


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
