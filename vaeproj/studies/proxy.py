"""Settings chosen without labels: synthetic defects on held-out training images stand in for the real ones.

No test image and no mask is needed to choose hyper-parameters: some training images are held out, a VAE is trained on the
rest, defects of six kinds are pasted on the held-out ones, and a setting is as good as its localization there.
`proxy_workspace` puts such a test set in place of the real one, for `ablation.ablate` and `sweep` (notebook 07).
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from ..config import UserError
from ..data import Split
from ..workspace import Workspace

KINDS = ("warp", "erase", "tint", "chip", "thread", "swap")


def proxy_split(
    images: np.ndarray, *, held_out: int = 5, copies: int = 4, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Training images for a trial, and a test set with known defects made from the others.

    Args:
        images: uint8 [N, C, H, W], normal images only.
        held_out: how many images, evenly spaced, are kept from training.
        copies: how often each of them is given defects, two of different kinds a time.

    Returns:
        uint8 [N - held_out, C, H, W] to train on; uint8 [M, C, H, W] to test on, ``held_out`` of them clean; their masks,
        uint8 [M, H, W] in {0, 1}; what `evaluate` takes as ``defects``, the first kind's name or ``good``.
    """
    rng = np.random.default_rng(seed)
    chosen = np.linspace(0, len(images) - 1, held_out).round().astype(int)
    clean = images[chosen]
    test, masks, names = [*clean], [np.zeros(clean.shape[-2:], np.uint8) for _ in clean], ["good"] * held_out
    for number in range(held_out * copies):
        first = number % len(KINDS)
        second = (first + 1 + number // len(KINDS) % (len(KINDS) - 1)) % len(KINDS)
        image, mask = clean[number % held_out].astype(float), np.zeros(clean.shape[-2:], bool)
        for kind in (KINDS[first], KINDS[second]):
            image, where = paste(image, kind, rng)
            mask |= where
        test.append(image.round().clip(0, 255).astype(np.uint8))
        masks.append(mask.astype(np.uint8))
        names.append(KINDS[first])
    return np.delete(images, chosen, axis=0), np.stack(test), np.stack(masks), names


def proxy_workspace(ws: Workspace) -> Workspace:
    """The training images of a workspace as a whole data set: a fifth, five at most, is tested on, with defects pasted.

    Raises:
        UserError: a single training image leaves none to train on.
    """
    if len(ws.train.names) < 2:
        raise UserError(f"{ws.folder / 'train/good'} holds one image: add more, since one is to be held out.")
    held_out = max(1, min(5, len(ws.train.names) // 5))
    train, test, masks, defects = proxy_split(ws.train.images.cpu().numpy(), held_out=held_out)
    digest = hashlib.sha256(train.tobytes() + test.tobytes() + masks.tobytes()).hexdigest()

    def split(images: np.ndarray, gt_masks: np.ndarray, folders: list[str]) -> Split:
        names = [f"{folder}/{i:03d}" for i, folder in enumerate(folders)]
        return Split(torch.from_numpy(images).to(ws.device), gt_masks, folders, names, digest)

    clean = np.zeros((len(train), *masks.shape[1:]), np.uint8)
    return replace(ws, train=split(train, clean, ["good"] * len(train)), test=split(test, masks, defects))


def paste(image: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One defect on a copy of an image [C, H, W] of grey levels 0..255, and where it is, bool [H, W]."""
    height, width = image.shape[-2:]
    thin, small = kind == "thread", kind == "chip"
    low, high = (0.012, 0.035) if small else (0.03, 0.08)
    where = _curve(height, width, rng) if thin else _blob(height, width, rng.uniform(low, high), rng)
    # A soft edge two pixels wide, as optics would give it.
    weight = ndimage.gaussian_filter(where.astype(float), 1.0)
    pasted = _PAINT[kind](image, rng)
    return image + weight * (pasted - image), ndimage.binary_dilation(where, iterations=2)


def _blob(height: int, width: int, radius: float, rng: np.random.Generator) -> np.ndarray:
    """An irregular ellipse; ``radius`` in shares of the image's side."""
    y, x = np.mgrid[:height, :width] / min(height, width)
    cy, cx = rng.uniform(radius, height / min(height, width) - radius), rng.uniform(radius, width / min(height, width) - radius)
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(0.6, 1.0)
    u, v = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle), (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    wobble = _noise(height, width, radius * min(height, width) / 2, rng)
    return np.hypot(u, v / stretch) < radius * (1 + 0.25 * wobble)


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


def _warp(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[-2:]
    side = min(height, width)
    shift = [_noise(height, width, 0.04 * side, rng) * 0.02 * side for _ in range(2)]
    at = np.mgrid[:height, :width] + shift
    return np.stack([ndimage.map_coordinates(channel, at, order=1, mode="reflect") for channel in image])


def _erase(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    # What lies between the strands, with the sensor's grain.
    tone = np.quantile(image, rng.choice([0.15, 0.85]), axis=(1, 2), keepdims=True)
    return tone + rng.normal(0, 3, image.shape)


def _offset(low: float, high: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    return lambda image, rng: image + rng.choice([-1, 1]) * rng.uniform(low, high)


def _swap(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    turned = np.rot90(image, int(rng.integers(1, 4)), axes=(1, 2)) if image.shape[1] == image.shape[2] else image
    shift = [int(rng.integers(margin, n - margin)) for n in image.shape[1:] for margin in [min(32, n // 4)]]
    return np.roll(turned, shift, axis=(1, 2))


_PAINT: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "warp": _warp, "erase": _erase, "tint": _offset(20, 50), "chip": _offset(60, 120), "thread": _offset(25, 80), "swap": _swap,
}  # fmt: skip
