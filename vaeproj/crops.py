"""Images held on the device: random crops gathered there for training, tiles and their re-assembly for whole images."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from .config import Config


def to_unit(images: Tensor) -> Tensor:
    """uint8 in 0..255 -> float32 in [0, 1]."""
    return images.float() / 255


class CropSampler:
    """Random crops of images that stay on the device as uint8 (article: random crop, flips; ours: any-angle rotation).
    A crop is a row of seven numbers: image index, centre u and v in [0, 1), sine and cosine of its angle, two signs for
    the flips. `draw` makes rows from a generator on the CPU, `gather` turns rows into pixels, in a captured CUDA graph too.
    """

    def __init__(self, images: Tensor, config: Config) -> None:
        self.images, self.config = images, config

    def draw(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Rows for the images ``index`` [B] (CPU), as float32 [B, 7]."""
        uniform = torch.rand(len(index), 5, generator=generator)
        angle = 2 * math.pi * uniform[:, 2] if self.config.rotation else torch.zeros(len(index))
        signs = 1 - 2 * (uniform[:, 3:] < 0.5).float() if self.config.flip else torch.ones(len(index), 2)
        return torch.cat([index[:, None].float(), uniform[:, :2], angle.sin()[:, None], angle.cos()[:, None], signs], dim=1)

    def gather(self, rows: Tensor) -> Tensor:
        """The crops of ``rows`` [B, 7] on the images' device, float32 [B, C, crop, crop] in [0, 1].
        An unrotated crop takes the pixels as they are; a rotated one is bilinear between those of an upright square.
        """
        crop, (height, width) = self.config.crop_size, self.images.shape[-2:]
        index, u, v, sin, cos, sign_x, sign_y = (column[:, None] for column in rows.unbind(1))
        offsets = torch.arange(crop, device=rows.device) - (crop - 1) / 2
        dy, dx = sign_y * offsets, sign_x * offsets
        if not self.config.rotation:
            y, x = (v * (height - crop + 1)).floor() + (crop - 1) / 2, (u * (width - crop + 1)).floor() + (crop - 1) / 2
            return self._pixels(index, y + dy, x + dx) / 255
        # How far the turned crop reaches from its centre: the centre keeps that distance from the border.
        reach = (crop - 1) / 2 * (sin.abs() + cos.abs())
        y, x = reach + v * (height - 1 - 2 * reach), reach + u * (width - 1 - 2 * reach)
        side = math.ceil((crop - 1) * math.sqrt(2)) + 3
        top, left = (y - (side - 1) / 2).floor(), (x - (side - 1) / 2).floor()
        across = torch.arange(side, device=rows.device)
        square = self._pixels(index, top + across, left + across)
        in_x = (x - left)[..., None] + (cos * dx)[:, None] - (sin * dy)[..., None]
        in_y = (y - top)[..., None] + (sin * dx)[:, None] + (cos * dy)[..., None]
        grid = torch.stack([in_x, in_y], dim=-1) * (2 / (side - 1)) - 1
        return F.grid_sample(square, grid, align_corners=True) / 255

    def _pixels(self, index: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Rows y [B, h] and columns x [B, w] of the images index [B, 1], float32 [B, C, h, w] in 0..255."""
        channels, height, width = self.images.shape[1:]
        plane = index.long()[..., None, None] * channels + torch.arange(channels, device=y.device)[:, None, None]
        y, x = y.long().clamp(0, height - 1)[:, None, :, None], x.long().clamp(0, width - 1)[:, None, None, :]
        return self.images.take((plane * height + y) * width + x).float()  # a CPU is faster with one index than with four

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` crops of images chosen at random, float32 [count, C, crop, crop] in [0, 1]."""
        index = torch.randint(len(self.images), (count,), generator=generator)
        # Interpolation may leave [0, 1] by a rounding, where an entropy is not defined.
        return self.gather(self.draw(index, generator).to(self.images.device)).clamp(0, 1)


def tile_starts(length: int, crop_size: int, stride: int) -> list[int]:
    """Where tiles start along one side: every ``stride`` pixels, and one flush with the far border."""
    starts = list(range(0, length - crop_size + 1, stride))
    return starts if starts[-1] == length - crop_size else [*starts, length - crop_size]


def tile(images: Tensor, crop_size: int, stride: int) -> Tensor:
    """Overlapping tiles of whole images [N, C, H, W]: [N, T, C, crop, crop], T tiles row by row."""
    rows, columns = (tile_starts(side, crop_size, stride) for side in images.shape[-2:])
    return torch.stack([images[..., y : y + crop_size, x : x + crop_size] for y in rows for x in columns], dim=1)


def untile(tiles: Tensor, height: int, width: int, stride: int) -> Tensor:
    """The inverse of `tile`, [N, C, height, width]: each pixel is the mean of its tiles, weighted by a Hann window.
    A VAE paints the middle of a tile better than its border, where it sees one side of the context only.
    """
    number, _, channels, crop_size, _ = tiles.shape
    hann = (math.pi * (torch.arange(crop_size, device=tiles.device, dtype=tiles.dtype) + 0.5) / crop_size).sin().square()
    window = hann[:, None] * hann
    total = tiles.new_zeros(number, channels, height, width)
    weight = tiles.new_zeros(height, width)
    starts = [(y, x) for y in tile_starts(height, crop_size, stride) for x in tile_starts(width, crop_size, stride)]
    for t, (y, x) in enumerate(starts):
        total[..., y : y + crop_size, x : x + crop_size] += tiles[:, t] * window
        weight[y : y + crop_size, x : x + crop_size] += window
    return total / weight


def centred_crop(image: Tensor, mask: Tensor, crop_size: int) -> tuple[int, int]:
    """Top and left of the crop whose centre is nearest to that of the mask's largest region, inside the image.
    A defective image may hold several far apart; the centre of them all would show none. An empty mask [H, W] gives the
    middle of the image [..., H, W].
    """
    height, width = image.shape[-2:]
    labels, _ = ndimage.label(mask.cpu().numpy(), structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())[1:]
    where = np.argwhere(labels == sizes.argmax() + 1) if len(sizes) else np.array([[(height - 1) / 2, (width - 1) / 2]])
    top, left = (round(c + 0.5 - crop_size / 2) for c in where.mean(0).tolist())  # pixel 0 spans 0 to 1
    return min(max(top, 0), height - crop_size), min(max(left, 0), width - crop_size)
