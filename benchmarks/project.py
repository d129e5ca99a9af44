"""Claim: projecting many tiles at once is far faster than a loop over tiles, and gives the same anomaly maps.

The reference for speed takes one tile at a time through a plain VAE in eval mode, BatchNorm and all, as public
implementations do. It is kinder than those: it asks autograd for the pixels' gradient only, not the weights'. The reference
for accuracy is the same loop in fp32 throughout, batched. Ours is `vaeproj.projection.project`.
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

import torch
from _common import Bench
from _reference import PlainVAE, precision
from torch import Tensor

from vaeproj.config import Config
from vaeproj.crops import tile, to_device, to_unit
from vaeproj.localization import anomaly_maps, difference, evaluate, projection_score, smooth
from vaeproj.projection import project


class Sizes(NamedTuple):
    """Training steps, iterations, stride, tiles of the reference and test images of ours for speed, images for accuracy."""

    steps: int
    iterations: int
    stride: int
    loop_tiles: int
    speed_images: int
    repeats: int
    map_images: int


SIZES = {
    "small": Sizes(2, 2, 32, 1, 1, 1, 7),
    "cpu": Sizes(100, 20, 128, 4, 8, 3, 8),
    "cuda": Sizes(300, 100, 32, 20, 24, 3, 16),
}
BATCH = 256  # tiles of the accurate reference at once


def reference(vae: PlainVAE, tiles: Tensor, config: Config) -> Tensor:
    """x_T of tiles [B, C, H, W] in [0, 1] by the update as the paper writes it, gradient through the VAE."""
    x = tiles
    for _ in range(config.iterations):
        x = x.detach().requires_grad_()
        picture = vae(x)[0]
        energy = (x - picture).square().sum() + config.lam * (x - tiles).abs().sum()
        (gradient,) = torch.autograd.grad(energy, x)
        x = (x - config.alpha * gradient * (x - picture).square()).clamp(0, 1)
    return x.detach()


def main() -> None:
    """Time both, compare their maps, print table and JSON."""
    bench = Bench.start(__file__, __doc__ or "")
    sizes = SIZES[bench.scale]
    config = bench.config("quick", steps=sizes.steps, iterations=sizes.iterations, stride=sizes.stride)
    images = bench.train_images(config)
    vae = bench.short_vae(config, images)
    plain = PlainVAE.of(vae).requires_grad_(False)

    pictures = to_unit(to_device(bench.test_split(config, sizes.speed_images).images, bench.device))
    tiles = tile(pictures, config.crop_size, config.stride).flatten(0, 1)
    with precision(tf32_convolutions=True):
        singles = [tiles[i : i + 1] for i in torch.linspace(0, len(tiles) - 1, sizes.loop_tiles).long().tolist()]
        reference(plain, singles[0], config.replace(iterations=2))  # warm up
        loop = [bench.seconds(lambda one=one: reference(plain, one, config)) for one in singles]
    loop_speed = config.iterations / statistics.median(loop)
    first = bench.seconds(lambda: project(vae, tiles, config))
    again = bench.median(lambda: project(vae, tiles, config), sizes.repeats)
    speed = len(tiles) * config.iterations / again

    def accurate(part: Tensor) -> Tensor:
        with precision(tf32_convolutions=False):
            moved = torch.cat([reference(plain, some, config) for some in part.split(BATCH)])
        return difference(part, moved, config.score)

    test = bench.test_split(config, sizes.map_images)
    pictures = to_device(test.images, bench.device)
    maps = {name: anomaly_maps(pictures, score, config) for name, score in (
        ("fp32", accurate), ("ours", projection_score(vae, config)))}  # fmt: skip
    gap = (maps["ours"] - maps["fp32"]).abs()
    auroc = {
        name: evaluate(smooth(m, config.sigma, config.sigma_wide), test.gt_masks, test.defects, bootstrap=0)["pixel_AUROC"]
        for name, m in maps.items()
    }

    print(
        f"{len(tiles)} tiles of {config.crop_size} x {config.crop_size}, {config.iterations} iterations, no stopping.", end=" "
    )
    print(f"The loop: median of {len(loop)} tiles. Ours: median of {sizes.repeats} calls; the first took {first:.2f} s.")
    print(f"Maps of {len(test.images)} test images at stride {config.stride}, before smoothing, grey levels 0 to 1:", end=" ")
    print(f"difference at most {gap.max():.2e}, mean {gap.mean():.2e}; a map's mean is {maps['fp32'].mean():.2e}.")
    bench.finish(
        ["projection", "tile-iterations / s", "pixel AUROC"],
        [
            ["loop, one tile at a time (maps: fp32, batched)", f"{loop_speed:.1f}", f"{auroc['fp32']:.5f}"],
            ["vaeproj", f"{speed:.1f}", f"{auroc['ours']:.5f}"],
            ["ratio; difference", f"{speed / loop_speed:.1f}", f"{auroc['ours'] - auroc['fp32']:+.5f}"],
        ],
        sizes=sizes._asdict(), tiles=len(tiles), loop_speed=loop_speed, ours_speed=speed, ratio=speed / loop_speed,
        ours_seconds=again, ours_first_call=first, map_difference_max=gap.max().item(),
        map_difference_mean=gap.mean().item(), map_mean=maps["fp32"].mean().item(), pixel_AUROC=auroc,
    )  # fmt: skip


if __name__ == "__main__":
    main()
