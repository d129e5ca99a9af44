"""Claim: `projection.project`, many tiles at once, is far faster than a loop over tiles, and gives the same anomaly maps.

The descent is the paper's. The reference takes one tile at a time through a plain VAE in eval mode, BatchNorm and all, as
public implementations do. It is kinder than those: it asks autograd for the pixels' gradient only. Its maps are made in fp32
throughout, and in batches.
"""

import statistics
from functools import partial

import torch
from _common import Bench, run
from _reference import PlainVAE, precision
from torch import Tensor

from vaeproj.config import DESCENTS
from vaeproj.crops import tile, to_unit
from vaeproj.device import projection_dtype
from vaeproj.localization import anomaly_maps, change_score, projection_score, smooth
from vaeproj.metrics import evaluate
from vaeproj.model import frozen
from vaeproj.projection import project
from vaeproj.training import fit
from vaeproj.weight import FEATURES

SIZES = {  # images: of the test set; loop_tiles: how many of their tiles the reference for speed takes
    "small": {"steps": 2, "images": 7, "stride": 32, "iterations": 2, "loop_tiles": 1},
    "cpu": {"steps": 100, "images": 8, "stride": 128, "iterations": 20, "loop_tiles": 4},
    "cuda": {"steps": 300, "images": 24, "stride": 32, "iterations": 100, "loop_tiles": 20},
}


def main(bench: Bench) -> None:
    """Time both, compare their maps, print table and JSON."""
    config = bench.config("quick", descent="paper", alpha=DESCENTS["paper"]["alpha"], lam=DESCENTS["paper"]["lam"])
    trained, _ = fit(bench.train_images(config), config, progress=False)
    plain, vae = PlainVAE.of(trained).requires_grad_(False), frozen(trained, projection_dtype(bench.device))

    def reference(tiles: Tensor) -> Tensor:
        """x_T by the update as the paper writes it, gradient through the VAE."""
        x = tiles
        for _ in range(config.iterations):
            x = x.detach().requires_grad_()
            picture = plain(x)[0]
            energy = (x - picture).square().sum() + config.lam * (x - tiles).abs().sum()
            (gradient,) = torch.autograd.grad(energy, x)
            x = (x - config.alpha * gradient * (x - picture).square()).clamp(0, 1)
        return x.detach()

    unread = torch.full((FEATURES + 1,), torch.nan, device=bench.device)  # for the anchored descent alone
    images, gt_masks, defects = bench.test_images(config, bench.sizes["images"])
    tiles = tile(to_unit(images), config.crop_size, config.stride).flatten(0, 1)
    with precision(tf32_convolutions=True):
        reference(tiles[:1])  # warm up
        singles = tiles[:: len(tiles) // bench.sizes["loop_tiles"]].split(1)
        loop = statistics.median(bench.timed(partial(reference, one))[1] for one in singles)
    _, first = bench.timed(lambda: project(vae, tiles, config, unread))
    again = bench.median(lambda: project(vae, tiles, config, unread))
    loop_speed, speed = config.iterations / loop, len(tiles) * config.iterations / again

    with precision(tf32_convolutions=False):
        accurate = anomaly_maps(images, change_score(reference, config.score), config, at_once=256)
    maps = anomaly_maps(images, projection_score(vae, config, unread), config)
    gap = (maps - accurate).abs()
    level, mean, most = accurate.mean().item(), gap.mean().item(), gap.max().item()
    smoothed = (smooth(some, config.sigma, config.sigma_wide) for some in (accurate, maps))
    exact, ours = (evaluate(some, gt_masks, defects, bootstrap=0)["pixel_AUROC"] for some in smoothed)
    bench.finish(
        ["projection", "tile-iterations / s", "maps before smoothing, grey levels 0 to 1", "pixel AUROC"],
        [
            ["one tile at a time (maps: fp32, batched)", f"{loop_speed:.1f}", f"mean {level:.2e}", f"{exact:.5f}"],
            ["vaeproj", f"{speed:.1f}", f"differ by {mean:.2e} on average, {most:.2e} at most", f"{ours:.5f}"],
            ["ratio; difference", f"{speed / loop_speed:.1f}", "", f"{ours - exact:+.5f}"],
        ],
        tiles=len(tiles), loop_speed=loop_speed, ours_speed=speed, ratio=speed / loop_speed, ours_first_call=first,
        map_difference_max=most, map_difference_mean=mean, map_mean=level, pixel_AUROC={"fp32": exact, "ours": ours},
    )  # fmt: skip


if __name__ == "__main__":
    run(main, __doc__, SIZES)
