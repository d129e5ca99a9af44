"""Projection: gradient descent on the image itself, along an energy that the normal texture minimises.

The paper's (``descent = "paper"``; ``article`` has a cross-entropy for the square, ``plain`` no mask):

    E(x) = sum (x - f(x))^2 + lam |x - x_0|                                 (paper, section 3.1)
    x   <- clip(x - alpha * grad E(x) * (x - f(x))^2, 0, 1)                 (paper, section 3.2)

Ours, ``anchored``, wants one thing of each pixel. Where the VAE explains the image (w near 0, `weight`) stay with the image,
where it does not (w near 1) go to what it can explain:

    E(x) = sum w (x - f(x))^2 + (1 - w) (x - x_0)^2
    x   <- clip(x - alpha * grad E(x), 0, 1)

with w held fixed within a step and taken again from f(x) after it; a step that raises the energy of its tile is taken back and
tried again shorter. The gradient goes through the VAE. With f(x) held fixed the minimum is the `composite`.

Energies of tiles in a batch do not touch one another in eval mode, so the gradient of their sum is each tile's own.
Networks come from `model.frozen`, in any precision; x and E are fp32.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .blur import gaussian_blur
from .config import Config
from .device import captured
from .model import VAE
from .weight import CONTEXT, anomaly_weight

CPU_CHUNK = 64  # tiles worked on at once
CUDA_CHUNK = 2048
CUDA_BYTES_PER_PIXEL = 1536  # of a tile: activations kept for the gradient, with room to spare
GROW, SHRINK = 1.2, 0.4  # factors of a tile's step size after a step that lowered its energy, and after one that did not


@dataclass(frozen=True)
class State:
    """Where the descent of each tile stands, and what its next step needs to know."""

    x: Tensor  # x_t, [B, C, H, W] in [0, 1]
    logits: Tensor  # of f(x_t), alike
    weight: Tensor  # w of each pixel, [B, 1, H, W] in [0, 1]; 1 where the descent is not anchored
    terms: Tensor  # the energy's two, reconstruction and distance, [B, 2]: squared grey levels; nats for the article's first
    gradient: Tensor  # of their sum with respect to x, as x
    alpha: Tensor  # step size of each tile, [B]

    @property
    def reconstruction(self) -> Tensor:
        """The VAE's f(x_t), [B, C, H, W] in [0, 1]."""
        return self.logits.sigmoid()

    def tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


def energy_terms(logits: Tensor, x: Tensor, x_0: Tensor, weight: Tensor, config: Config) -> Tensor:
    """The energy's two terms, reconstruction and distance, summed over the pixels of each tile: [B, 2].
    ``logits`` are those of f(x), alike x and x_0 [B, C, H, W] in [0, 1]; ``weight`` [B, 1, H, W]. With ``coarse_weight`` the
    smoothed residual counts beside the residual: outlines that the VAE blurs cancel in it, what is wrong beyond does not.
    """
    if config.descent == "article":
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="none")
    else:
        residual = x - logits.sigmoid()
        reconstruction = residual.square()
        if config.coarse_weight:
            smoothed = gaussian_blur(residual, CONTEXT * x.shape[-1])
            reconstruction = reconstruction + config.coarse_weight * smoothed.square()
    if config.descent == "anchored":
        reconstruction, distance = weight * reconstruction, (1 - weight) * (x - x_0).square()
    else:
        distance = config.lam * (x - x_0).abs()
    return torch.stack([reconstruction.sum((1, 2, 3)), distance.sum((1, 2, 3))], dim=1)


def energy_gradient(vae: VAE, x: Tensor, x_0: Tensor, config: Config, expected: Tensor, alpha: Tensor) -> State:
    """The energy of tiles x, [B, C, H, W] in [0, 1], and its gradient with respect to their pixels.

    ``gradient="full"`` differentiates through the VAE (paper); ``"detached"`` holds f(x) fixed, as the article and
    every public implementation we know do.

    Args:
        x_0: the images that x began as, as x.
        expected: the residual that is normal, from `weight.fit_expected`, [7]; only the anchored descent reads it.
        alpha: each tile's step size, [B], which the state carries.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = vae.logits(x)
        fixed = logits.detach()
        if config.descent == "anchored":
            weight = anomaly_weight(x_0, fixed.sigmoid(), expected, config)
        else:
            weight = torch.ones_like(fixed[:, :1])
        terms = energy_terms(logits if config.gradient == "full" else fixed, x, x_0, weight, config)
        (gradient,) = torch.autograd.grad(terms.sum(), x)  # that of |x - x_0| is 0 where nothing has moved
    return State(x.detach(), fixed, weight, terms.detach(), gradient, alpha)


def step(vae: VAE, state: State, x_0: Tensor, config: Config, expected: Tensor) -> State:
    """One iteration, from x_t to x_{t+1}; arguments as in `energy_gradient`."""
    direction = state.gradient
    if config.descent in ("paper", "article"):  # the soft mask: what the VAE explains stands still
        direction = direction * (state.x - state.reconstruction).square()
    moved = (state.x - state.alpha[:, None, None, None] * direction).clamp(0, 1)
    new = energy_gradient(vae, moved, x_0, config, expected, state.alpha)
    if config.descent != "anchored":
        return new
    # Whether a step has lowered the energy is asked with the weights that it was taken with.
    lower = energy_terms(new.logits, moved, x_0, state.weight, config).sum(1) <= state.terms.sum(1)
    pairs = zip(new.tensors(), state.tensors(), strict=True)
    chosen = [torch.where(lower.view(-1, *[1] * (taken.ndim - 1)), taken, kept) for taken, kept in pairs]
    return replace(State(*chosen), alpha=state.alpha * torch.where(lower, GROW, SHRINK))


def descend(vae: VAE, x_0: Tensor, config: Config, expected: Tensor) -> Iterator[State]:
    """The states of the descent of tiles x_0, [B, C, H, W] in [0, 1], one after the other, T + 1 of them."""
    state = energy_gradient(vae, x_0, x_0, config, expected, x_0.new_full((len(x_0),), config.alpha))
    yield state
    for _ in range(config.iterations):
        state = step(vae, state, x_0, config, expected)
        yield state


def trajectory(vae: VAE, tiles: Tensor, config: Config, expected: Tensor) -> State:
    """Project a few tiles and keep every state: each tensor with an axis [T + 1] before the others."""
    states = [state.tensors() for state in descend(vae, tiles, config, expected)]
    return State(*map(torch.stack, zip(*states, strict=True)))


def project(vae: VAE, tiles: Tensor, config: Config, expected: Tensor) -> Tensor:
    """Project many tiles, in bounded memory: x_T, the last frame of `trajectory`."""
    iterate = captured(lambda x_0, *state: step(vae, State(*state), x_0, config, expected).tensors(), tiles.device)
    done = []
    for part in tiles.split(_chunk(tiles)):
        state = next(descend(vae, part, config, expected))
        for _ in range(config.iterations):
            state = State(*iterate(part, *state.tensors()))
        done.append(state.x.clone())  # on a GPU the next chunk overwrites it
    return torch.cat(done)


@torch.no_grad()
def composite(vae: VAE, tiles: Tensor, config: Config, expected: Tensor, seen: Tensor | None = None) -> Tensor:
    """Without a gradient: x_0 - w (x_0 - f), where the anchored energy is least while f(x) is held fixed, [B, C, H, W].
    The opponent that a descent has to beat. f is that of ``seen``, such as an earlier composite; None: of the tiles themselves.
    """
    done = []
    for x_0, x in zip(*(t.split(_chunk(tiles)) for t in (tiles, tiles if seen is None else seen)), strict=True):
        picture = vae.reconstruct(x)
        done.append(x_0 - anomaly_weight(x_0, picture, expected, config) * (x_0 - picture))
    return torch.cat(done)


def _chunk(tiles: Tensor) -> int:
    """How many tiles to work on at once. It does not depend on what ran before: sums, and so bits, may depend on it."""
    if tiles.device.type != "cuda":
        return CPU_CHUNK
    memory = torch.cuda.get_device_properties(tiles.device).total_memory
    return max(1, min(CUDA_CHUNK, 3 * memory // 4 // (CUDA_BYTES_PER_PIXEL * tiles[0, 0].numel())))
