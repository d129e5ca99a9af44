"""Projection: gradient descent on the image itself, along an energy that the normal texture minimises.

    E(x) = L_r(x, f(x)) + lam * |x - x_0|_1                                 (paper, section 3.1)
    x   <- clip(x - alpha * grad E(x) * (x - f(x))^2, 0, 1)                 (paper, section 3.2)

The squared residual is a soft mask: only what the VAE cannot explain moves. Energies of tiles in a batch do not touch
one another in eval mode, so the gradient of their sum is each tile's own. Networks come from `model.frozen`, in any precision.

Ours: with ``coarse_weight``, L_r takes the residual at two scales, as it is and smoothed. A VAE draws normal texture without
its finest detail, which smoothing hides: the coarse term pulls at what is wrong beyond that.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .blur import gaussian_blur
from .config import Config
from .device import captured
from .model import VAE

CPU_CHUNK = 64  # tiles worked on at once
CUDA_CHUNK = 2048
CUDA_BYTES_PER_PIXEL = 1536  # of a tile: activations kept for the gradient, with room to spare
LOOK_EVERY = 5  # iterations between two looks at whether any tile still moves


@dataclass(frozen=True)
class Trajectory:
    """Every step of the descent, for looking at."""

    frames: Tensor  # x_0 ... x_T, [T + 1, B, C, H, W] in [0, 1]
    reconstructions: Tensor  # f(x_0) ... f(x_T), alike
    reconstruction_energy: Tensor  # L_r of each frame, [T + 1, B]; nats for "bce", squared grey levels for "squared"
    distance: Tensor  # |x_t - x_0|_1 of each frame, [T + 1, B], grey levels (0 to 1) summed over pixels

    def energy(self, lam: float) -> Tensor:
        """E = L_r + lam |x_t - x_0|_1, [T + 1, B]."""
        return self.reconstruction_energy + lam * self.distance


def reconstruction_energy(logits: Tensor, x: Tensor, config: Config) -> Tensor:
    """L_r of each tile, summed over its pixels, [B].

    ``squared``: |x - f(x)|^2 + ``coarse_weight`` |G (x - f(x))|^2, with G a Gaussian of ``coarse_sigma`` pixels;
    ``bce``: -log p(x | z) under Bernoulli pixels, the article's choice. ``logits`` are those of f(x), alike x [B, C, H, W].
    """
    if config.energy == "squared":
        residual = x - logits.sigmoid()
        l_r = residual.square()
        if config.coarse_weight:
            l_r = l_r + config.coarse_weight * gaussian_blur(residual, config.coarse_sigma).square()
        return l_r.sum((1, 2, 3))
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))


def energy_gradient(vae: VAE, x: Tensor, x_0: Tensor, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """Grad E(x) with respect to the pixels, with f(x) and L_r, which it needs on the way.

    ``gradient="full"`` differentiates through the VAE (paper); ``"detached"`` holds f(x) fixed, as the article and
    every public implementation we know do.

    With x, x_0 [B, C, H, W] in [0, 1], returns gradient and f(x), [B, C, H, W] each, and L_r, [B].
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = vae.logits(x)
        l_r = reconstruction_energy(logits if config.gradient == "full" else logits.detach(), x, config)
        (gradient,) = torch.autograd.grad(l_r.sum(), x)
    # The L1 term's subgradient at x = x_0 is taken as 0, so an explained pixel has no reason to move.
    return gradient + config.lam * (x - x_0).sign().detach(), logits.detach().sigmoid(), l_r.detach()


def step(vae: VAE, x: Tensor, x_0: Tensor, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """One iteration: x_{t+1}, f(x_t) and L_r(x_t); shapes as in `energy_gradient`."""
    gradient, reconstruction, l_r = energy_gradient(vae, x, x_0, config)
    if config.soft_mask:
        gradient = gradient * (x - reconstruction).square()
    return (x - config.alpha * gradient).clamp(0, 1), reconstruction, l_r


@torch.no_grad()
def energies(vae: VAE, tiles: Tensor, config: Config) -> Tensor:
    """L_r of tiles [B, C, H, W] as they are, [B], in chunks of bounded memory."""
    return torch.cat([reconstruction_energy(vae.logits(t), t, config) for t in tiles.split(256)])


def stopping_energy(vae: VAE, training_tiles: Tensor, config: Config) -> float:
    """The energy under which a tile counts as normal: the ``stop_quantile`` of the training tiles' L_r.

    0 without ``stop_quantile``: no tile ever stops. The paper stops at the training minimum (quantile 0).
    """
    if config.stop_quantile is None:
        return 0.0
    return energies(vae, training_tiles, config).quantile(config.stop_quantile).item()


def trajectory(vae: VAE, tiles: Tensor, config: Config, stop_at: float = 0.0) -> Trajectory:
    """Project a few tiles x_0, [B, C, H, W] in [0, 1], and keep every frame; a tile with L_r below ``stop_at`` stays."""
    x, frames, pictures, terms = tiles, [], [], []
    for _ in range(config.iterations + 1):
        moved, reconstruction, l_r = step(vae, x, tiles, config)
        frames.append(x)
        pictures.append(reconstruction)
        terms.append(l_r)
        x = torch.where((l_r < stop_at)[:, None, None, None], x, moved)
    stack = torch.stack(frames)
    return Trajectory(stack, torch.stack(pictures), torch.stack(terms), (stack - tiles).abs().sum((2, 3, 4)))


def project(vae: VAE, tiles: Tensor, config: Config, stop_at: float = 0.0, *, chunk: int | None = None) -> Tensor:
    """Project many tiles: x_T, the last frame of `trajectory`, in bounded memory; ``chunk`` tiles at once, None: as suits the
    device.
    """
    done: list[Tensor] = []
    for part in tiles.split(chunk or _chunk(tiles)):
        if not done or len(done[-1]) != len(part):  # a captured iteration works on the same tensors for all chunks of a size
            x_0, x, running = torch.zeros_like(part), torch.zeros_like(part), part.new_zeros(len(part), dtype=torch.bool)
            iterate = captured(functools.partial(_iterate, vae, config, stop_at, x_0, x, running), tiles.device)
        x_0.copy_(part)
        x.copy_(part)
        running.fill_(True)
        for t in range(config.iterations):
            iterate()
            if stop_at and t % LOOK_EVERY == 0 and not running.any():
                break
        done.append(x.clone())
    return torch.cat(done)


def _iterate(vae: VAE, config: Config, stop_at: float, x_0: Tensor, x: Tensor, running: Tensor) -> None:
    """One iteration of a chunk, in place: tiles that have stopped stay."""
    moved, _, l_r = step(vae, x, x_0, config)
    running.logical_and_(l_r >= stop_at)
    x.copy_(torch.where(running[:, None, None, None], moved, x))


def _chunk(tiles: Tensor) -> int:
    """How many tiles to work on at once. It does not depend on what ran before: sums, and so bits, may depend on it."""
    if tiles.device.type != "cuda":
        return CPU_CHUNK
    memory = torch.cuda.get_device_properties(tiles.device).total_memory
    return max(1, min(CUDA_CHUNK, 3 * memory // 4 // (CUDA_BYTES_PER_PIXEL * tiles[0, 0].numel())))
