"""Projection: gradient descent on the image itself, along an energy that the normal texture minimises.

    E(x) = L_r(x, f(x)) + lam * |x - x_0|_1                                 (paper, section 3.1)
    x   <- clip(x - alpha * grad E(x) * (x - f(x))^2, 0, 1)                 (paper, section 3.2)

The squared residual is a soft mask: only what the VAE cannot explain moves. Energies of tiles in a batch do not touch
one another in eval mode, so the gradient of their sum is each tile's own.

Ours: with ``coarse_weight``, L_r takes the residual at two scales, as it is and smoothed. A VAE draws normal texture without
its finest detail, which smoothing hides: the coarse term pulls at what is wrong beyond that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .blur import gaussian_blur
from .config import Config
from .model import VAE, frozen, has_native_bf16

CPU_CHUNK = 64  # tiles worked on at once
CUDA_CHUNK = 2048
CUDA_BYTES_PER_PIXEL = 1536  # of a tile: activations kept for the gradient, with room to spare
REFILL_EVERY = 5  # iterations between two looks at which tiles have stopped


@dataclass(frozen=True)
class Projection:
    """Where the descent ended.

    Attributes:
        image: x_T, [B, C, H, W] in [0, 1].
        steps: int64 [B], iterations each tile took before it stopped or reached the limit.
    """

    image: Tensor
    steps: Tensor


@dataclass(frozen=True)
class Trajectory:
    """Every step of the descent, for looking at.

    Attributes:
        frames: x_0 ... x_T, [T + 1, B, C, H, W] in [0, 1].
        reconstructions: f(x_0) ... f(x_T), alike.
        reconstruction_energy: L_r of each frame, [T + 1, B]; nats for ``bce``, squared grey levels for ``squared``.
        distance: |x_t - x_0|_1 of each frame, [T + 1, B], grey levels (0 to 1) summed over pixels.
    """

    frames: Tensor
    reconstructions: Tensor
    reconstruction_energy: Tensor
    distance: Tensor

    def energy(self, lam: float) -> Tensor:
        """E = L_r + lam |x_t - x_0|_1, [T + 1, B]."""
        return self.reconstruction_energy + lam * self.distance


def reconstruction_energy(logits: Tensor, x: Tensor, config: Config) -> Tensor:
    """L_r of each tile, summed over its pixels, [B].

    ``squared``: |x - f(x)|^2 + ``coarse_weight`` |G (x - f(x))|^2, with G a Gaussian of ``coarse_sigma`` pixels;
    ``bce``: -log p(x | z) under Bernoulli pixels, the article's choice.

    Args:
        logits: of f(x), [B, C, H, W].
        x: [B, C, H, W] in [0, 1].
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

    Args:
        vae: from `model.frozen`.
        x, x_0: [B, C, H, W] in [0, 1].

    Returns:
        Gradient and f(x), [B, C, H, W] each; L_r, [B].
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
    vae = frozen(vae, _precision(tiles.device))
    return torch.cat([reconstruction_energy(vae.logits(t), t, config) for t in tiles.split(256)])


def stopping_energy(vae: VAE, training_tiles: Tensor, config: Config) -> float:
    """The energy under which a tile counts as normal: ``stop_factor`` times a quantile of the training tiles' L_r.

    0 without ``stop_quantile``: no tile ever stops. The paper stops at the training minimum (quantile 0).
    """
    if config.stop_quantile is None:
        return 0.0
    return config.stop_factor * energies(vae, training_tiles, config).quantile(config.stop_quantile).item()


def trajectory(vae: VAE, tiles: Tensor, config: Config, stop_at: float = 0.0) -> Trajectory:
    """Project a few tiles and keep every frame.

    Args:
        vae: any `VAE` in eval mode.
        tiles: x_0, [B, C, H, W] in [0, 1].
        stop_at: a tile with L_r below this moves no more (`stopping_energy`).
    """
    vae = frozen(vae, _precision(tiles.device))
    x, frames, pictures, terms = tiles, [], [], []
    for _ in range(config.iterations + 1):
        moved, reconstruction, l_r = step(vae, x, tiles, config)
        frames.append(x)
        pictures.append(reconstruction)
        terms.append(l_r)
        x = torch.where((l_r < stop_at)[:, None, None, None], x, moved)
    stack = torch.stack(frames)
    return Trajectory(stack, torch.stack(pictures), torch.stack(terms), (stack - tiles).abs().sum((2, 3, 4)))


def project(vae: VAE, tiles: Tensor, config: Config, stop_at: float = 0.0) -> Projection:
    """Project many tiles; the same numbers as the last frame of `trajectory`, in bounded memory.

    A window of tiles is worked on at once; those that stopped or reached ``config.iterations`` leave it and others
    take their place. On a GPU the iteration is captured as a CUDA graph.

    Args:
        vae: any `VAE` in eval mode.
        tiles: x_0, [B, C, H, W] in [0, 1], on the VAE's device.
        stop_at: a tile with L_r below this moves no more (`stopping_energy`).
    """
    window = _Window(frozen(vae, _precision(tiles.device)), tiles, config, stop_at)
    result, steps = tiles.clone(), torch.zeros(len(tiles), dtype=torch.long, device=tiles.device)
    while window.busy():
        index, image, taken = window.advance()
        result[index], steps[index] = image, taken
    return Projection(result, steps)


class _Window:
    """The tiles being worked on. Slots hold a tile each; ``age`` counts its iterations, -1 marks an empty slot."""

    def __init__(self, vae: VAE, tiles: Tensor, config: Config, stop_at: float) -> None:
        self.vae, self.tiles, self.config, self.stop_at = vae, tiles, config, stop_at
        self.waiting = 0 if config.iterations else len(tiles)  # index of the next tile to enter
        size, device = min(len(tiles), _chunk(tiles)), tiles.device
        self.x = tiles.new_zeros(size, *tiles.shape[1:])
        self.x_0 = torch.zeros_like(self.x)
        self.index = torch.zeros(size, dtype=torch.long, device=device)
        self.age = torch.full((size,), -1, device=device)
        self.running = torch.zeros(size, dtype=torch.bool, device=device)
        self.graph: Callable[[], None] | None = None  # of an iteration over these very slots

    def busy(self) -> bool:
        return self.waiting < len(self.tiles) or bool((self.age >= 0).any())

    def advance(self) -> tuple[Tensor, Tensor, Tensor]:
        """Fill empty slots, iterate a few times, empty the slots that are done: their index, image and steps."""
        self._fill()
        for _ in range(REFILL_EVERY):
            self._iterate()
        done = (self.age >= 0) & ~self.running
        finished = self.index[done], self.x[done], self.age[done]
        self.age[done] = -1
        return finished

    def _fill(self) -> None:
        empty = (self.age < 0).nonzero()[:, 0][: len(self.tiles) - self.waiting]
        chosen = slice(self.waiting, self.waiting + len(empty))
        self.waiting = chosen.stop
        self.x[empty] = self.x_0[empty] = self.tiles[chosen]
        self.index[empty] = torch.arange(chosen.start, chosen.stop, device=self.tiles.device)
        self.age[empty] = 0
        self.running[empty] = True
        full = (self.age >= 0).nonzero()[:, 0]
        # Halving at least keeps the number of captured graphs small.
        if self.waiting == len(self.tiles) and len(full) <= len(self.age) // 2:
            self.x, self.x_0, self.index = self.x[full], self.x_0[full], self.index[full]
            self.age, self.running, self.graph = self.age[full], self.running[full], None

    def _iterate(self) -> None:
        if self.tiles.device.type != "cuda":
            return self._step()
        if self.graph is None:
            self.graph = self._capture()
        return self.graph()

    def _step(self) -> None:
        moved, _, l_r = step(self.vae, self.x, self.x_0, self.config)
        go = self.running & (l_r >= self.stop_at)
        self.x.copy_(torch.where(go[:, None, None, None], moved, self.x))
        self.age += go
        self.running.copy_(go & (self.age < self.config.iterations))

    def _capture(self) -> Callable[[], None]:
        state = self.x, self.age, self.running
        before = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        return graph.replay


def _precision(device: torch.device) -> torch.dtype:
    """Of the network alone; x and E stay in fp32. On a GPU fp16, which has the mantissa of TensorFloat-32 in half the bytes;
    on a CPU bf16 where it is native. `benchmarks/README.md` has what either does to the maps.
    """
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if has_native_bf16(device) else torch.float32


def _chunk(tiles: Tensor) -> int:
    """How many tiles to work on at once. It does not depend on what ran before: sums, and so bits, may depend on it."""
    if tiles.device.type != "cuda":
        return CPU_CHUNK
    memory = torch.cuda.get_device_properties(tiles.device).total_memory
    return max(1, min(CUDA_CHUNK, 3 * memory // 4 // (CUDA_BYTES_PER_PIXEL * tiles[0, 0].numel())))
