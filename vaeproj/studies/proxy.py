"""Settings chosen without labels: a test set of defects pasted on held-out training images stands in for the real one."""

import hashlib
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from ..config import UserError
from ..data import Split
from ..workspace import Workspace

KINDS = ("warp", "erase", "tint", "chip", "thread", "swap")


def proxy_split(images: np.ndarray, held_out: int = 5, copies: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Normal ``images``, uint8 [N, C, H, W], as a trial: ``held_out`` of them, evenly spaced, are tested on, as they are and in
    ``copies`` with two kinds of defect. Returns uint8 [N - held_out, C, H, W] to train on; uint8 [M, C, H, W] to test on;
    their masks, uint8 [M, H, W] in {0, 1}; what `evaluate` takes as ``defects``, the first kind's name or ``good``.
    """
    rng = np.random.default_rng(0)
    chosen = np.linspace(0, len(images) - 1, held_out).round().astype(int)
    test, names = np.tile(images[chosen], (1 + copies, 1, 1, 1)), ["good"] * held_out
    masks = np.zeros((len(test), *test.shape[-2:]), np.uint8)
    for number, (image, mask) in enumerate(zip(test[held_out:], masks[held_out:], strict=True)):
        first = number % len(KINDS)
        second = (first + 1 + number // len(KINDS) % (len(KINDS) - 1)) % len(KINDS)
        pasted = image.astype(float)
        for kind in (KINDS[first], KINDS[second]):
            pasted, where = paste(pasted, kind, rng)
            mask |= where
        image[:] = pasted.round().clip(0, 255)
        names.append(KINDS[first])
    return np.delete(images, chosen, axis=0), test, masks, names


def proxy_workspace(ws: Workspace) -> Workspace:
    """Training images as a workspace: a fifth (1 to 5) is tested on, with defects pasted; a `UserError` if it is one."""
    if len(ws.train.names) < 2:
        raise UserError(f"{ws.folder / 'train/good'} holds one image: add more, since one is to be held out.")
    train, test, masks, defects = proxy_split(ws.train.images.cpu().numpy(), held_out=max(1, min(5, len(ws.train.names) // 5)))
    digest = hashlib.sha256(train.tobytes() + test.tobytes() + masks.tobytes()).hexdigest()
    clean = np.zeros((len(train), *masks.shape[1:]), np.uint8)
    splits = []
    for images, gt_masks, folders in ((train, clean, ["good"] * len(train)), (test, masks, defects)):
        names = [f"{folder}/{i:03d}" for i, folder in enumerate(folders)]
        splits.append(Split(torch.from_numpy(images).to(ws.device), gt_masks, folders, names, digest))
    return replace(ws, train=splits[0], test=splits[1])


def paste(image: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One defect on a copy of an image [C, H, W] of grey levels 0..255, and where it is, bool [H, W]."""
    height, width = image.shape[1:]
    low, high = (0.012, 0.035) if kind == "chip" else (0.03, 0.08)
    where = _curve(height, width, rng) if kind == "thread" else _blob(height, width, rng.uniform(low, high), rng)
    weight = ndimage.gaussian_filter(where.astype(float), 1.0)  # a soft edge two pixels wide, as optics would give it
    return image + weight * (_paint(image, kind, rng) - image), ndimage.binary_dilation(where, iterations=2)


def _blob(height: int, width: int, radius: float, rng: np.random.Generator) -> np.ndarray:
    """An irregular ellipse; ``radius`` in shares of the image's side."""
    y, x = np.mgrid[:height, :width] / min(height, width)
    cy, cx = rng.uniform(radius, height / min(height, width) - radius), rng.uniform(radius, width / min(height, width) - radius)
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(0.6, 1.0)
    u, v = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle), (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    return np.hypot(u, v / stretch) < radius * (1 + 0.25 * _noise(height, width, radius * min(height, width) / 2, rng))


def _curve(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """A smooth line that bends as it goes, at most a hundredth of a side thick."""
    side = min(height, width)
    steps = int(rng.uniform(0.15, 0.45) * side)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.6 / np.sqrt(side)) + rng.normal(0, 0.04, steps))
    y, x = (rng.uniform(0.2, 0.8) * n + np.cumsum(f(heading)) for n, f in ((height, np.sin), (width, np.cos)))
    line = np.zeros((height, width), bool)
    line[y.astype(int).clip(0, height - 1), x.astype(int).clip(0, width - 1)] = True
    return ndimage.distance_transform_edt(~line) <= max(1.0, rng.uniform(0.002, 0.005) * side)


def _noise(height: int, width: int, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of standard deviation 1, ``scale`` pixels wide."""
    noise = ndimage.gaussian_filter(rng.normal(size=(height, width)), scale, mode="wrap")
    return noise / noise.std()


def _paint(image: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """What a defect of this kind shows, wherever it is: [C, H, W], as the image."""
    height, width = image.shape[-2:]
    if kind == "warp":
        side = min(height, width)
        at = np.mgrid[:height, :width] + [_noise(height, width, 0.04 * side, rng) * 0.02 * side for _ in range(2)]
        return np.stack([ndimage.map_coordinates(channel, at, order=1, mode="reflect") for channel in image])
    if kind == "erase":  # what lies between the strands, with the sensor's grain
        return np.quantile(image, rng.choice([0.15, 0.85]), axis=(1, 2), keepdims=True) + rng.normal(0, 3, image.shape)
    if kind == "swap":
        turned = np.rot90(image, int(rng.integers(1, 4)), axes=(1, 2)) if height == width else image
        shift = [int(rng.integers(margin, n - margin)) for n in (height, width) for margin in [min(32, n // 4)]]
        return np.roll(turned, shift, axis=(1, 2))
    low, high = {"tint": (20, 50), "chip": (60, 120), "thread": (25, 80)}[kind]
    return image + rng.choice([-1, 1]) * rng.uniform(low, high)
