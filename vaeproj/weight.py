"""Where the VAE fails: a weight for each pixel, near 1 where the residual exceeds what is normal there, else near 0.

    q = G (x_0 - f)^2                               the residual around a pixel, G a Gaussian
    e = max(c . features(f), floor)                 what q is on normal crops where the picture looks like that
    w = v / (1 + v),  v = (q / (k^2 e))^p           Hill's curve: 1/2 at k times the expected residual

A VAE always blurs outlines and never flat places, so one threshold for both takes every strand for a defect or misses a faint
thread in an opening. The six coefficients c come from least squares on training crops alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .blur import gaussian_blur
from .config import Config
from .model import VAE

EXPECTED_VERSION = 1  # raise when the same network and crops would give other coefficients
CONTEXT = 1 / 32  # standard deviation of G, in sides of the crop: 4 pixels of 128
FEATURES = 6
RIDGE = 1e-9
FLOOR = 0.02  # quantile of the expected residual, and share of its mean, below which nothing is expected


def features(picture: Tensor) -> Tensor:
    """What tells how large a residual is normal around each pixel of f(x) [B, C, H, W], as [B, 1, H, W, 6]: a constant, the
    smoothed squared gradient and its root, smoothed grey and its square, smoothed power of the finest detail.
    """
    sigma, grey = CONTEXT * picture.shape[-1], picture.mean(1, keepdim=True)
    down, right = torch.gradient(grey, dim=(2, 3))
    edges = gaussian_blur(down.square() + right.square(), sigma)
    level = gaussian_blur(grey, sigma)
    detail = gaussian_blur((grey - gaussian_blur(grey, sigma / 2)).square(), sigma)
    return torch.stack([torch.ones_like(edges), edges, edges.clamp(min=0).sqrt(), level, level.square(), detail], dim=-1)


def smoothed_residual(x: Tensor, picture: Tensor) -> Tensor:
    """Smoothed residual q, the mean over channels and the surroundings of (x - f)^2, [B, 1, H, W], squared grey levels."""
    return gaussian_blur((x - picture).square().mean(1, keepdim=True), CONTEXT * x.shape[-1])


@torch.no_grad()
def fit_expected(vae: VAE, crops: Tensor, terms: int = FEATURES) -> Tensor:
    """Coefficients of the expected residual and its floor, [7], from normal crops [N, C, H, W] in [0, 1].
    ``terms``: how many of the features to use; 1 leaves a constant, the mean squared residual of the crops.
    """
    rows, targets = [], []
    for part in crops.split(64):
        picture = vae.reconstruct(part)
        rows.append(features(picture)[..., ::2, ::2, :terms].flatten(0, 3))  # neighbours say nearly the same
        targets.append(smoothed_residual(part, picture)[..., ::2, ::2].flatten())
    known, seen = torch.cat(rows).double(), torch.cat(targets).double()
    # A touch of ridge: features that say the same, or nothing, would get large numbers that cancel one another.
    gram = known.mT @ known + RIDGE * len(known) * torch.eye(terms, dtype=known.dtype, device=known.device)
    coefficients = torch.linalg.solve(gram, known.mT @ seen)
    fitted = (known @ coefficients).sort().values
    floor = torch.maximum(fitted[int(FLOOR * len(fitted))], FLOOR * seen.mean()).clamp(min=1e-12)
    return torch.cat([F.pad(coefficients, (0, FEATURES - terms)), floor[None]]).float()


def expected_residual(picture: Tensor, expected: Tensor) -> Tensor:
    """Expected residual e of f(x) [B, C, H, W], [B, 1, H, W], squared grey levels, from the coefficients of `fit_expected`."""
    return (features(picture) @ expected[:-1]).clamp(min=expected[-1])


def anomaly_weight(x_0: Tensor, picture: Tensor, expected: Tensor, config: Config) -> Tensor:
    """Weight w of each pixel of the image x_0 [B, C, H, W] beside what the VAE paints, in [0, 1], [B, 1, H, W]."""
    excess = smoothed_residual(x_0, picture) / (config.tolerance**2 * expected_residual(picture, expected))
    return torch.sigmoid(config.hardness * excess.clamp(min=1e-12).log())  # v / (1 + v), without overflow
