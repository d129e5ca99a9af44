"""Claim: time grows in proportion to tiles, iterations and test images; memory stays bounded.

Pictures are noise and the VAE is untrained, since neither changes the work. On a GPU the peak is what PyTorch allocated
there; on a CPU each point runs in a process of its own and the peak is all of that process, PyTorch itself included.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import torch
from _common import Bench
from matplotlib import pyplot as plt
from torch import Tensor

from vaeproj.config import Config
from vaeproj.figures import STYLE
from vaeproj.localization import anomaly_maps, projection_score
from vaeproj.model import VAE
from vaeproj.projection import project
from vaeproj.training import fit

PANELS = {
    "training images": "ms per training step",
    "tiles": "s",
    "iterations": "s",
    "test images": "s",
}
POINTS: dict[str, dict[str, list[int]]] = {
    "small": {name: [2, 4] for name in PANELS},
    "cpu": {
        "training images": [66, 264, 1056],
        "tiles": [64, 128, 256, 512],
        "iterations": [5, 15, 30, 60],
        "test images": [2, 8, 16, 32],
    },
    "cuda": {
        "training images": [66, 264, 1056, 4224],
        "tiles": [256, 1024, 4096, 16384],
        "iterations": [10, 30, 100, 300],
        "test images": [2, 8, 32, 64],
    },
}
# What stays fixed: tiles under "iterations", iterations under the others, stride, batch, steps of two fits.
FIXED = {"small": (2, 1, 32, 8, (1, 2)), "cpu": (64, 4, 128, 64, (2, 6)), "cuda": (1024, 20, 32, 256, (50, 150))}
REPEATS = 3


def noise(count: int, size: int, bench: Bench) -> Tensor:
    """uint8 [count, 1, size, size] on the device."""
    generator = torch.Generator(bench.device).manual_seed(bench.options.seed)
    return torch.randint(0, 256, (count, 1, size, size), generator=generator, dtype=torch.uint8, device=bench.device)


def step_seconds(bench: Bench, config: Config, images: Tensor, lengths: tuple[int, int]) -> float:
    """Seconds of a training step: the slope between fits of two lengths, free of warm-up and capture."""
    short, long = (config.replace(steps=steps) for steps in lengths)
    fit(images, short, progress=False)  # warm up
    times = [bench.median(lambda c=c: fit(images, c, progress=False), REPEATS) for c in (short, long)]
    return (times[1] - times[0]) / (long.steps - short.steps)


def measure(bench: Bench, panel: str, value: int) -> dict[str, float]:
    """Time (`PANELS` has its unit) and peak memory in MiB at one point."""
    tiles, iterations, stride, batch, lengths = FIXED[bench.scale]
    config = bench.config("quick", iterations=value if panel == "iterations" else iterations, stride=stride)
    config = config.replace(batch_size=batch)
    cuda = bench.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if panel == "training images":
        spent = 1000 * step_seconds(bench, config, noise(value, config.image_size, bench), lengths)
    else:
        torch.manual_seed(config.seed)
        vae = VAE(config.latent_dim, config.crop_size).to(bench.device, memory_format=torch.channels_last).eval()
        if panel == "test images":
            images = noise(value, config.image_size, bench)
            spent = bench.median(lambda: anomaly_maps(images, projection_score(vae, config), config), REPEATS)
        else:
            x = noise(value if panel == "tiles" else tiles, config.crop_size, bench).float() / 255
            spent = bench.median(lambda: project(vae, x, config), REPEATS)
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else _resident()
    return {"value": value, "time": spent, "peak_MiB": peak}


def _resident() -> float:
    """The most memory this process ever held, MiB; ru_maxrss is in KiB, on macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def apart(bench: Bench, panel: str, value: int) -> dict[str, float]:
    """`measure` in a process of its own, where the peak is this point's."""
    size = ["--small"] if bench.scale == "small" else []
    command = [sys.executable, __file__, "--device", "cpu", "--seed", str(bench.options.seed), *size]
    command += ["--panel", panel, "--value", str(value)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    """Measure every point of every panel, draw and print them."""
    bench = Bench.start(__file__, __doc__ or "", "panel", "value")
    if bench.options.panel:
        print(json.dumps(measure(bench, bench.options.panel, int(bench.options.value))))
        return
    # --small stays in one process, for speed: its peaks are then those of all points before as well.
    at = apart if bench.scale == "cpu" else measure
    results = {panel: [at(bench, panel, value) for value in values] for panel, values in POINTS[bench.scale].items()}
    plt.style.use(STYLE)
    figure, columns = plt.subplots(2, len(PANELS), figsize=(11, 4.5), sharex="col")
    for (upper, lower), (panel, points) in zip(columns.T, results.items(), strict=True):
        values = [point["value"] for point in points]
        for axes, key, label in ((upper, "time", PANELS[panel]), (lower, "peak_MiB", "peak memory, MiB")):
            axes.plot(values, [point[key] for point in points], "o-", markersize=3)
            axes.set(ylabel=label, ylim=(0, 1.1 * max(point[key] for point in points)))
        lower.set_xlabel(panel)
    figure.savefig(bench.options.out / "scaling.png", dpi=150)
    bench.finish(
        ["what grows", "to", "time", "peak memory, MiB"],
        [[panel, f"{point['value']}", f"{point['time']:.3f} {PANELS[panel]}", f"{point['peak_MiB']:.0f}"]
         for panel, points in results.items() for point in points],
        fixed=dict(zip(("tiles", "iterations", "stride", "batch_size", "steps"), FIXED[bench.scale], strict=True)),
        panels=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
