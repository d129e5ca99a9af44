"""What the scripts of this folder share: options, images, timing, tables."""

from __future__ import annotations

import argparse
import atexit
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor
from vaeproj.mvtec import Split, category_dir, load_split

from vaeproj.config import DATA_DIR, Config, UserError
from vaeproj.crops import to_device
from vaeproj.model import VAE
from vaeproj.synthgrid import COUNTS, write_synthgrid
from vaeproj.training import choose_device, fit


@dataclass(frozen=True)
class Bench:
    """One run of a script: where, on what, at which of the sizes ``small``, ``cpu`` and ``cuda``."""

    name: str
    device: torch.device
    scale: str
    options: argparse.Namespace

    @classmethod
    def start(cls, file: str, doc: str, *extra: str) -> Bench:
        """Read the command line and say what runs where; ``extra`` names further options, each with a text as value."""
        parser = argparse.ArgumentParser(description=doc.split("\n")[0])
        parser.add_argument("--data-root", help="folder of category folders; default: SynthGrid, rendered if missing")
        parser.add_argument("--category", default="grid", help="a folder of the data root")
        parser.add_argument("--images", type=int, help="training images, the files taken again and again up to this number")
        parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
        parser.add_argument("--seed", type=int, default=42)
        parser.add_argument("--out", type=Path, default=Path(file).parent, help="folder for plots")
        parser.add_argument("--small", action="store_true", help="seconds: every line runs, the numbers mean nothing")
        for name in extra:
            parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
        options = parser.parse_args()
        try:
            device = choose_device(options.device)
        except UserError as error:
            sys.exit(str(error))
        bench = cls(Path(file).stem, device, "small" if options.small else device.type, options)
        print(f"{bench.name}: {', '.join(f'{key} {value}' for key, value in bench.environment.items())}", flush=True)
        return bench

    @cached_property
    def environment(self) -> dict[str, str]:
        """Device and versions."""
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        else:
            device = f"{platform.machine()} CPU, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
        versions = {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}
        return {"device": device, **versions}

    @cached_property
    def folder(self) -> Path:
        """The category's folder; with ``--images`` one of links to its files, so that files are still opened and read."""
        options, scratch = self.options, tempfile.TemporaryDirectory()
        atexit.register(scratch.cleanup)
        try:
            if options.data_root:
                folder = category_dir(Path(options.data_root), options.category)
            elif self.scale == "small":
                counts = {name: 8 if name == "train/good" else 1 for name in COUNTS}
                folder = write_synthgrid(Path(scratch.name), size=128, counts=counts, progress=False)
            else:
                folder = write_synthgrid(DATA_DIR / "synthgrid")
        except UserError as error:
            sys.exit(str(error))
        if not options.images:
            return folder.resolve()
        files = sorted((folder / "train/good").resolve().glob("*.png"))
        links = Path(scratch.name) / "linked/train/good"
        links.mkdir(parents=True)
        for i in range(options.images):
            (links / f"{i:04d}.png").symlink_to(files[i % len(files)])
        for name in ("test", "ground_truth"):
            (links.parents[1] / name).symlink_to((folder / name).resolve())
        return links.parents[1]

    def config(self, preset: str, **changes: object) -> Config:
        """A preset with changes, shrunk by ``--small``."""
        config = Config.from_preset(preset).replace(seed=self.options.seed, **changes)
        if self.scale == "small":
            config = config.replace(image_size=64, crop_size=32, latent_dim=8, batch_size=8, stride=32)
        return config

    def train_images(self, config: Config) -> Tensor:
        """uint8 [N, C, S, S] on the device, decoded now."""
        return to_device(load_split(self.folder, "train", config.image_size, cache=None).images, self.device)

    def test_split(self, config: Config, count: int) -> Split:
        """``count`` test images: spread evenly over all kinds, or all of them again and again."""
        split = load_split(self.folder, "test", config.image_size, cache=None)
        number = len(split.images)
        chosen = np.arange(count) % number if count > number else np.linspace(0, number - 1, count).round().astype(int)
        names = ([values[i] for i in chosen] for values in (split.defects, split.names))
        return Split(split.images[chosen], split.gt_masks[chosen], *names, split.digest)

    def short_vae(self, config: Config, images: Tensor) -> VAE:
        """A VAE after ``config.steps`` steps, said so: enough for timing and for a fair look at two ways to project."""
        print(f"VAE: {config.steps} steps of {config.batch_size} on {len(images)} images", flush=True)
        return fit(images, config, progress=False)[0]

    def seconds(self, call: Callable[[], object]) -> float:
        """Wall time of one call, the device's queue empty before and after."""
        self._wait()
        start = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - start

    def median(self, call: Callable[[], object], repeats: int) -> float:
        """Median wall time of several calls."""
        return statistics.median(self.seconds(call) for _ in range(repeats))

    def finish(self, header: Sequence[str], rows: Sequence[Sequence[str]], **results: object) -> None:
        """Print the table and, last, everything as one line of JSON."""
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for row in (header, ["-" * width for width in widths], *rows):
            print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        sizes = {"scale": self.scale, "seed": self.options.seed}
        print(json.dumps({"benchmark": self.name, **sizes, "environment": self.environment, **results}), flush=True)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
