"""What the scripts of this folder share: options, images, timing, tables."""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torchvision
from torch import Tensor

from vaeproj.config import DATA_DIR, Config, UserError
from vaeproj.data import category_dir, load_split
from vaeproj.device import describe, set_up_device
from vaeproj.synthgrid.dataset import COUNTS, write_synthgrid

T = TypeVar("T")
SMALL = {"image_size": 64, "crop_size": 32, "latent_dim": 8, "batch_size": 8, "stride": 32}


class Bench:
    """One run of a script: its options, its device, and the sizes for it out of those for ``small``, ``cpu`` and ``cuda``."""

    def __init__(self, doc: str, sizes: Mapping[str, dict[str, Any]]) -> None:
        parser = argparse.ArgumentParser(description=doc.split("\n")[0])
        parser.add_argument("--data-root", type=Path, help="folder of category folders; default: SynthGrid, made if missing")
        parser.add_argument("--category", default="grid", help="a folder of the data root")
        parser.add_argument("--images", type=int, help="training images, the files taken again and again up to this number")
        parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
        parser.add_argument("--seed", type=int, default=42)
        parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder for plots, made if missing")
        parser.add_argument("--small", action="store_true", help="seconds: every line runs, the numbers mean nothing")
        self.options = parser.parse_args()
        self.options.out.mkdir(parents=True, exist_ok=True)  # before minutes of work, not after
        self.device = set_up_device(self.options.device)
        self.scale = "small" if self.options.small else self.device.type
        self.sizes = sizes[self.scale]
        self.name = Path(sys.argv[0]).stem
        versions = {"python": sys.version.split()[0], "torchvision": torchvision.__version__}
        machine = describe(self.device)
        self.environment = {"device": machine.pop("name"), **machine, **versions}
        print(f"{self.name} on {self.environment['device']}, torch {torch.__version__}: {self.sizes}", flush=True)

    @cached_property
    def folder(self) -> Path:
        """The category's folder; with ``--images`` one of links to its files, so that files are still opened and read."""
        self.scratch = tempfile.TemporaryDirectory()  # removed with the process
        if self.options.data_root:
            folder = category_dir(self.options.data_root.resolve(), self.options.category)
        elif self.options.small:
            counts = {name: 8 if name == "train/good" else 1 for name in COUNTS}
            folder = write_synthgrid(Path(self.scratch.name), size=128, counts=counts)
        else:
            folder = write_synthgrid(DATA_DIR / "synthgrid")
        if not self.options.images:
            return folder
        files, linked = sorted((folder / "train/good").glob("*.png")), Path(self.scratch.name) / "linked"
        (linked / "train/good").mkdir(parents=True)
        for i in range(self.options.images):
            (linked / f"train/good/{i:04d}.png").symlink_to(files[i % len(files)])
        for name in ("test", "ground_truth"):
            (linked / name).symlink_to(folder / name)
        return linked

    def config(self, preset: str, **changes: object) -> Config:
        """A preset with those of the script's sizes that are hyper-parameters, and with ``changes``."""
        config, small = Config.from_preset(preset), SMALL if self.options.small else {}
        sized = {name: size for name, size in self.sizes.items() if hasattr(config, name)}
        return config.replace(**{"seed": self.options.seed, **small, **sized, **changes})

    def train_images(self, config: Config) -> Tensor:
        """uint8 [N, C, S, S] on the device, decoded now."""
        return load_split(self.folder, "train", config.image_size, device=self.device).images

    def test_images(self, config: Config, count: int) -> tuple[Tensor, np.ndarray, list[str]]:
        """``count`` images, spread evenly over all kinds and repeated if there are fewer, with their masks and defects."""
        split = load_split(self.folder, "test", config.image_size, device=self.device)
        chosen = np.linspace(0, len(split.images) - 1, count).round().astype(int)
        return split.images[chosen], split.gt_masks[chosen], [split.defects[i] for i in chosen]

    def timed(self, call: Callable[[], T]) -> tuple[T, float]:
        """What a call returns, and its wall time in seconds, the device's queue empty before and after."""
        wait = torch.get_device_module(self.device).synchronize
        wait()
        start = time.perf_counter()
        result = call()
        wait()
        return result, time.perf_counter() - start

    def median(self, call: Callable[[], object]) -> float:
        """Median wall time of three calls, of one with ``--small``."""
        return float(np.median([self.timed(call)[1] for _ in range(1 if self.options.small else 3)]))

    def slope(self, call: Callable[[int], object], short: int, long: int) -> float:
        """Seconds that one unit of length costs, from calls of two lengths: free of warm-up, capture and compilation."""
        return (self.median(lambda: call(long)) - self.median(lambda: call(short))) / (long - short)

    def finish(self, header: Sequence[str], rows: Sequence[Sequence[str]], **results: object) -> None:
        """Print the table and, last, everything as one line of JSON."""
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        for row in (header, ["-" * width for width in widths], *rows):
            print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
        run = {"benchmark": self.name, "scale": self.scale, "seed": self.options.seed, "sizes": self.sizes}
        print(json.dumps(run | {"environment": self.environment} | results), flush=True)


def run(main: Callable[[Bench], None], doc: str, sizes: Mapping[str, dict[str, Any]]) -> None:
    """Run a script; a mistake of the user's ends it with one sentence."""
    try:
        main(Bench(doc, sizes))
    except UserError as error:
        sys.exit(str(error))
