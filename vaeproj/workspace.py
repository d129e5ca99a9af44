"""What every notebook starts from: configuration, data, device, trained VAE, and a folder for what it makes."""

import inspect
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from IPython.display import Image, Markdown
from torch import Tensor

from . import figures
from .checkpoint import read
from .config import DATA_DIR, RESULTS_DIR, Config, UserError
from .crops import CropSampler, centred_crop, to_unit
from .data import Split, category_dir, load_split
from .device import projection_dtype, set_up_device
from .files import kept_arrays, written_whole
from .model import VAE, frozen
from .synthgrid.dataset import CATEGORIES, write_synthgrid
from .training import TRAINING_VERSION, Trained, find_or_train, load
from .weight import EXPECTED_VERSION, fit_expected

NORMAL_CROPS = 512  # training crops that say which residual is normal
OBJECTS = ("bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor", "zipper", "ring")
TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
MVTEC_AD = sorted({*OBJECTS, *TEXTURES} - {"ring"})  # that object is SynthGrid's


@dataclass(frozen=True)
class Request:
    """What the user asked for: the parameters cell of every notebook, the options of every command."""

    preset: str = "quick"  # with `settings`: see `Config.from_preset`
    settings: str = ""
    data_root: str = ""  # folder of category folders; empty: SynthGrid, rendered on first use
    category: str = "grid"  # a folder of `data_root`
    device: str = "auto"  # or cpu, cuda
    out: str = ""  # folder for figures and metrics; empty: results/draft, for a run results/<preset>

    def folder(self, default: str) -> Path:
        """Where results go: ``out``, or a folder of that name in ``results/``."""
        return Path(self.out).expanduser().resolve() if self.out else RESULTS_DIR / default

    def parameters(self, out: Path) -> dict[str, str]:
        """The values of a notebook's parameters cell, free of the working directory."""
        root = str(Path(self.data_root).expanduser().resolve()) if self.data_root else ""
        return asdict(self) | {"data_root": root, "out": str(out)}


@dataclass(frozen=True)
class Workspace:
    """The data are read at once; the VAE is trained or found when first asked for."""

    config: Config
    request: Request  # what it was opened with
    folder: Path  # of the category
    out: Path  # where figures and metrics go
    device: torch.device
    kept: Path  # folder of what is made once and found again: decoded images, checkpoints, results of studies
    train: Split
    test: Split

    @classmethod
    def open(cls, request: Request, *, kept: Path = RESULTS_DIR) -> Self:
        """Check everything the user chose and read the data, before anything else runs. A `UserError` for a preset,
        setting, device or folder that does not exist or does not fit, and for an image that cannot be read.
        """
        config, device = Config.from_preset(request.preset, request.settings), set_up_device(request.device)
        whole = config.crop_size == config.image_size  # as an object needs it: its parts are told by their place
        if request.category in (TEXTURES if whole else OBJECTS):
            kind, preset = ("a texture", "quick or best") if whole else ("an object", "object")
            taken = f"crop_size = {config.crop_size} at image_size = {config.image_size}"
            warnings.warn(f"{request.category} is {kind}, for which {taken} is wrong: use preset {preset}.", stacklevel=2)
        root = Path(request.data_root).expanduser().resolve() if request.data_root else synthgrid_root(config)
        if not request.data_root and (known := CATEGORIES.get(request.category)):
            counts = {key: max(2, round(config.synthgrid_fraction * count)) for key, count in known.items()}
            write_synthgrid(root, request.category, size=config.synthgrid_size, counts=counts)
        folder = category_dir(root, request.category)
        size, cache = config.image_size, kept / "decoded"
        train, test = (load_split(folder, split, size, device=device, cache=cache) for split in ("train", "test"))
        channels = [split.images.shape[1] for split in (train, test)]
        if channels[0] != channels[1]:
            raise UserError(f"{folder} has {channels[0]} channels in training and {channels[1]} in test images: use one kind.")
        ws = cls(config, request, folder, request.folder("draft"), device, kept, train, test)
        if test.gt_labels.any() and not ws.has_masks:
            left_out = "pixel metrics, outlines and what compares inside with outside are left out"
            print(f"{folder} has no masks, so {left_out}; they need ground_truth/<defect>/<name>_mask.png for each defect.")
        return ws

    @property
    def has_masks(self) -> bool:
        """Whether it is known where the defects of the test images lie."""
        return bool(self.test.gt_masks.any())

    @property
    def is_synthetic(self) -> bool:
        """Whether each defective scene is known without its defect, and where that lies."""
        return self.has_masks and (self.folder / "clean").is_dir()

    @cached_property
    def checkpoint(self) -> Path:
        """The VAE of this configuration and data: found by fingerprint, or trained now."""
        return find_or_train(self.train.images, self.config, self.train.digest, folder=self.kept / "checkpoints")

    @cached_property
    def weights(self) -> str:
        """Sha256 of the trained weights."""
        return read(self.checkpoint, "snapshot_steps")[1]["weights"]

    @cached_property
    def trained(self) -> Trained:
        return load(self.checkpoint, self.config, self.device)

    @cached_property
    def vae(self) -> VAE:
        """The trained VAE, frozen, in fp32: for pictures and residuals."""
        return frozen(self.trained.vae)

    @cached_property
    def fast_vae(self) -> VAE:
        """The same in the precision of the descent, for `projection`."""
        return frozen(self.trained.vae, projection_dtype(self.device))

    @cached_property
    def normal_crops(self) -> Tensor:
        """Random training crops, [512, C, crop, crop] in [0, 1]."""
        return self.sampler.sample(NORMAL_CROPS, torch.Generator().manual_seed(self.config.seed))

    @cached_property
    def expected(self) -> Tensor:
        """The residual that is normal (`weight.fit_expected`), [7], fitted on training crops and kept with the checkpoints."""
        made_from = f"{self.weights} {self.train.digest} {NORMAL_CROPS} {EXPECTED_VERSION}"
        name = self.config.fingerprint("crops", "training", data=made_from)
        path = self.kept / "checkpoints" / f"expected-{name}.npz"
        kept = kept_arrays(path, lambda: {"expected": fit_expected(self.vae, self.normal_crops).cpu().numpy()})
        return torch.from_numpy(kept["expected"]).to(self.device)

    @cached_property
    def sampler(self) -> CropSampler:
        return CropSampler(self.train.images, self.config)

    @property
    def fingerprint(self) -> str:
        """Of configuration, data and the versions of the code that decodes and trains."""
        return self.config.fingerprint(data=f"{self.train.digest} {self.test.digest} {TRAINING_VERSION}")

    def reconfigured(self, **changes: object) -> Self:
        """The same data, not read again, under other hyper-parameters; a `UserError` where they would change the data."""
        config = self.config.replace(**changes)
        if config.fingerprint("data") != self.config.fingerprint("data"):
            raise UserError(f"{', '.join(changes)}: the data stay as they are here, so open another workspace for that.")
        return replace(self, config=config)

    def thinned(self, step: int) -> Self:
        """The same with every ``step``-th test image of each kind only."""
        kinds = [[i for i, d in enumerate(self.test.defects) if d == kind] for kind in sorted(set(self.test.defects))]
        keep, test = [i for kind in kinds for i in kind[::step]], self.test
        defects, names = ([values[i] for i in keep] for values in (test.defects, test.names))
        return replace(self, test=Split(test.images[keep], test.gt_masks[keep], defects, names, test.digest))

    def defect_names(self, each: int = 1) -> list[str]:
        """The first ``each`` test images of every defect, such as ``["bent/000", "broken/000", ...]``."""
        defects = sorted({d for d in self.test.defects if d != "good"})
        return [name for d in defects for name in [n for n in self.test.names if n.split("/")[0] == d][:each]]

    def crops_at(self, names: list[str]) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """Crops of test images centred on their defects (the article cropped at random and often missed them): crops
        [n, C, crop, crop] in [0, 1], masks bool [n, crop, crop], each crop's top and left. A `UserError` without names.
        """
        if not names:
            raise UserError(f"{self.folder / 'test'} holds no image with a defect: this notebook needs some to show.")
        side, chosen = self.config.crop_size, [self.test.index(name) for name in names]
        images, masks = self.test.images[chosen], torch.from_numpy(self.test.gt_masks[chosen] > 0)
        corners = [centred_crop(image, mask, side) for image, mask in zip(images, masks, strict=True)]
        within = [(i, ..., slice(top, top + side), slice(left, left + side)) for i, (top, left) in enumerate(corners)]
        return to_unit(torch.stack([images[at] for at in within])), torch.stack([masks[at] for at in within]), corners

    def figure(self, name: str, **arrays: object) -> Image:
        """Draw a figure by name, keep picture and data under ``out/figures``, and show it (`figures.save`)."""
        arrays = {key: value.cpu().numpy() if isinstance(value, Tensor) else value for key, value in arrays.items()}
        return Image(figures.as_jpeg(figures.save(name, self.out / "figures", self.fingerprint, **arrays)))

    def record(self, **metrics: object) -> None:
        """Lay metrics into ``out/metrics.json``, over those of the same name; nan is written as null."""
        path = self.out / "metrics.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        plain = json.loads(json.dumps(metrics), parse_constant=lambda _: None)  # JSON has no word for nan
        with written_whole(path) as scratch:
            scratch.write_text(json.dumps(known | plain, indent=1, sort_keys=True) + "\n")


def synthgrid_root(config: Config) -> Path:
    """Where the embedded data set of this size and share is kept."""
    whole = config.synthgrid_size == 1024 and config.synthgrid_fraction == 1
    return DATA_DIR / ("synthgrid" if whole else f"synthgrid-{config.synthgrid_size}-{config.synthgrid_fraction:g}")


def source(*objects: type | Callable[..., Any]) -> Markdown:
    """The package's own source of classes and functions: what a page shows is what it runs."""
    return Markdown("```python\n" + "\n\n".join(map(inspect.getsource, objects)) + "```")
