"""Claim: time grows in proportion to tiles, iterations and test images; memory stays bounded.

Pictures are noise and the VAE is untrained, since neither changes the work. The peak is what PyTorch allocated on a GPU; on a
CPU each point has a process of its own, and the peak is all of that, PyTorch itself included.
"""

import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from _common import Bench, run
from matplotlib import pyplot as plt

from vaeproj.device import projection_dtype, set_up_device
from vaeproj.figures import STYLE
from vaeproj.localization import anomaly_maps, projection_score
from vaeproj.model import VAE, frozen
from vaeproj.projection import project
from vaeproj.training import fit
from vaeproj.weight import FEATURES

POINTS = {  # what grows, and to what
    "training images": {"small": [2, 4], "cpu": [66, 264, 1056], "cuda": [66, 264, 1056, 4224]},
    "tiles": {"small": [2, 4], "cpu": [64, 128, 256, 512], "cuda": [256, 1024, 4096, 16384]},
    "iterations": {"small": [2, 4], "cpu": [5, 15, 30, 60], "cuda": [10, 30, 100, 300]},
    "test images": {"small": [2, 4], "cpu": [2, 8, 16, 32], "cuda": [2, 8, 32, 64]},
}
SIZES: dict[str, dict[str, Any]] = {  # what stays fixed meanwhile; fits: steps of two, whose slope is the time of one
    "small": {"fixed_tiles": 2, "iterations": 1, "stride": 32, "batch_size": 8, "fits": [1, 2]},
    "cpu": {"fixed_tiles": 64, "iterations": 4, "stride": 128, "batch_size": 64, "fits": [2, 6]},
    "cuda": {"fixed_tiles": 1024, "iterations": 20, "stride": 32, "batch_size": 256, "fits": [50, 150]},
}


def measure(bench: Bench, point: tuple[str, int]) -> dict[str, Any]:
    """Seconds (of training: for a step) and peak memory at one point: what grows, and to what."""
    (panel, value), config, cuda = point, bench.config("quick"), bench.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    count, side = value, config.image_size if "images" in panel else config.crop_size
    if panel == "iterations":
        count, config = bench.sizes["fixed_tiles"], config.replace(iterations=value)
    images = torch.randint(256, (count, 1, side, side), dtype=torch.uint8, device=bench.device)
    if panel == "training images":
        fit(images, config.replace(steps=1), progress=False)  # warm up
        time = bench.slope(lambda n: fit(images, config.replace(steps=n), progress=False), *bench.sizes["fits"])
    else:
        vae = VAE.of(config, 1).to(memory_format=torch.channels_last).to(bench.device)
        vae = frozen(vae, projection_dtype(bench.device))
        expected = torch.full((FEATURES + 1,), 0.01, device=bench.device)
        whole, score = panel == "test images", projection_score(vae, config, expected)
        tiles = partial(project, vae, images / 255, config, expected)
        work = partial(anomaly_maps, images, score, config) if whole else tiles
        time = bench.median(work)
    # The most memory this process ever held is in KiB, on macOS in bytes.
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)
    peak = torch.cuda.max_memory_allocated() if cuda else used
    return {"panel": panel, "value": value, "seconds": time, "peak_MiB": peak / 2**20}


def main(bench: Bench) -> None:
    """Measure every point of every panel, draw and print them."""
    points = [(panel, value) for panel, values in POINTS.items() for value in values[bench.scale]]
    results: list[dict[str, Any]] = []
    for group in [[point] for point in points] if bench.scale == "cpu" else [points]:
        with ProcessPoolExecutor(1, get_context("spawn"), set_up_device, (bench.device.type,)) as process:
            results += process.map(partial(measure, bench), group)

    plt.style.use(STYLE)
    figure, columns = plt.subplots(2, len(POINTS), figsize=(11, 4.5), sharex="col")
    for column, panel in zip(columns.T, POINTS, strict=True):
        shown = [result for result in results if result["panel"] == panel]
        for axes, key, label in zip(column, ("seconds", "peak_MiB"), ("seconds", "peak memory, MiB"), strict=True):
            heights = [result[key] for result in shown]
            axes.plot([result["value"] for result in shown], heights, "o-", markersize=3)
            axes.set(ylabel=label, ylim=(0, 1.1 * max(heights)))
        column[-1].set_xlabel("training images (time: a step)" if panel == "training images" else panel)
    figure.savefig(bench.options.out / "scaling.png", dpi=150)
    bench.finish(
        ["what grows", "to", "seconds (training: a step)", "peak memory, MiB"],
        [[r["panel"], f"{r['value']}", f"{r['seconds']:.4f}", f"{r['peak_MiB']:.0f}"] for r in results],
        points=results,
    )


if __name__ == "__main__":
    run(main, __doc__, SIZES)
