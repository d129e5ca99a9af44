"""Anomaly maps of whole images: pixel scores of their tiles, joined and smoothed."""

from collections.abc import Callable

import torch
from torch import Tensor

from .blur import gaussian_blur
from .config import Config
from .crops import tile, to_unit, untile
from .model import VAE
from .projection import project

TILES_AT_ONCE = 4096  # whole images are taken in groups of about so many tiles: memory does not grow with their number
SCORE_CHUNK = 512  # tiles whose scores are computed at once

Score = Callable[[Tensor], Tensor]  # tiles [B, C, crop, crop] in [0, 1] -> anomaly score of each pixel, alike


def anomaly_maps(images: Tensor, score: Score, config: Config, *, at_once: int = TILES_AT_ONCE) -> Tensor:
    """Unsmoothed anomaly maps, float32 [N, H, W], of images, uint8 [N, C, H, W]: the mean over channels and, weighted, over
    the tiles that hold a pixel (`crops.untile`). About ``at_once`` tiles are held at a time.
    """
    height, width = images.shape[-2:]
    tiles_each = tile(images[:1], config.crop_size, config.stride).shape[1]
    maps = []
    for group in images.split(max(1, at_once // tiles_each)):
        tiles = tile(to_unit(group), config.crop_size, config.stride)
        scores = score(tiles.flatten(0, 1)).view_as(tiles)
        maps.append(untile(scores, height, width, config.stride).mean(1))
    return torch.cat(maps)


def smooth(maps: Tensor, sigma: float, sigma_wide: float = 0.0) -> Tensor:
    """Gaussian filter of maps [N, H, W], sigma in pixels; 0 leaves them as they are. With ``sigma_wide``, the geometric mean of
    both filters' maps: the wide one favours changes among others, the narrow one keeps their outline.
    """
    if sigma_wide:
        maps = maps.clamp(min=0)  # rounding may leave 1 - SSIM below 0
        return (smooth(maps, sigma) * smooth(maps, sigma_wide)).sqrt()
    return gaussian_blur(maps, sigma) if sigma else maps


def residual_score(vae: VAE, kind: str) -> Score:
    """|x - f(x)| (``l1``), its square (``l2``), or 1 - SSIM(x, f(x)) (``ssim``): the VAE without projection."""

    @torch.no_grad()
    def painted(tiles: Tensor) -> Tensor:
        return torch.cat([vae.reconstruct(part) for part in tiles.split(SCORE_CHUNK)])

    return change_score(painted, kind)


def projection_score(vae: VAE, config: Config, expected: Tensor) -> Score:
    """What the projection changed (paper, section 3.3), measured as ``config.score`` says."""
    return change_score(lambda tiles: project(vae, tiles, config, expected), config.score)


def change_score(move: Callable[[Tensor], Tensor], kind: str) -> Score:
    """What ``move``, from tiles to tiles, changes, as `difference` measures it."""

    def score(tiles: Tensor) -> Tensor:
        pairs = zip(tiles.split(SCORE_CHUNK), move(tiles).split(SCORE_CHUNK), strict=True)
        return torch.cat([difference(a, b, kind) for a, b in pairs])

    return score


def difference(a: Tensor, b: Tensor, kind: str) -> Tensor:
    """Pixelwise difference of images [B, C, H, W].
    ``l1``, ``l2``, ``ssim`` (1 - SSIM) or ``l1_ssim``, the geometric mean of the first and the third: a change of grey
    counts for more where it also changes the structure around it. SSIM asks for the change in units of the contrast there.
    """
    if kind == "l1_ssim":
        return (difference(a, b, "l1") * difference(a, b, "ssim").clamp(min=0)).sqrt()
    if kind == "ssim":
        return 1 - ssim_map(a, b)
    return (a - b).abs() if kind == "l1" else (a - b).square()


def ssim_map(a: Tensor, b: Tensor, sigma: float = 1.5) -> Tensor:
    """Structural similarity of each pixel's 11 x 11 Gaussian neighbourhood, [B, C, H, W], at most 1 (Wang et al., 2004)."""

    def mean(x: Tensor) -> Tensor:
        return gaussian_blur(x, sigma, reach=5)

    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    cov = mean(a * b) - mean_a * mean_b
    return (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
