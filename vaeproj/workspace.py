"""What every notebook starts from: configuration, data, device, trained VAE, and a folder for what it makes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from IPython.display import Image
from torch import Tensor

from . import figures
from .config import DATA_DIR, RESULTS_DIR, Config, UserError
from .crops import CropSampler, centred_crop, to_device, to_unit
from .files import written_whole
from .model import VAE
from .mvtec import Split, category_dir, load_split
from .projection import stopping_energy
from .synthgrid import COUNTS, write_synthgrid
from .training import Trained, choose_device, load_or_train

STOPPING_CROPS = 512  # training crops whose energies set the stopping threshold


@dataclass(frozen=True)
class Workspace:
    """Lazily loaded: data are read, the VAE is trained or found, when first asked for.

    Attributes:
        preset: name of the preset ``config`` came from.
        folder: the category's folder.
        out: where figures and metrics go.
        device: where tensors live.
    """

    config: Config
    preset: str
    folder: Path
    out: Path
    device: torch.device

    @classmethod
    def open(
        cls,
        preset: str = "quick",
        settings: str = "",
        data_root: str = "",
        category: str = "grid",
        device: str = "auto",
        out: str = "",
    ) -> Workspace:
        """Check everything the user chose, before anything runs.

        Args:
            preset, settings: see `Config.from_preset`.
            data_root: folder of category folders; empty: SynthGrid, rendered on first use.
            category: a folder of ``data_root``.
            device: ``auto``, ``cpu`` or ``cuda``.
            out: folder for figures and metrics; empty: ``results/draft``.

        Raises:
            UserError: a preset, setting, device or folder that does not exist or does not fit.
        """
        config = Config.from_preset(preset, settings)
        chosen = choose_device(device)
        root = Path(data_root).expanduser().resolve() if data_root else synthgrid_root(config)
        folder = root / category if not data_root and category == "grid" else category_dir(root, category)
        return cls(config, preset, folder, Path(out).expanduser().resolve() if out else RESULTS_DIR / "draft", chosen)

    @cached_property
    def train(self) -> Split:
        self._make_synthgrid()
        return load_split(self.folder, "train", self.config.image_size)

    @cached_property
    def test(self) -> Split:
        self._make_synthgrid()
        test = load_split(self.folder, "test", self.config.image_size)
        trained_on, tested_on = self.train.images.shape[1], test.images.shape[1]
        if trained_on != tested_on:
            raise UserError(
                f"{self.folder} has training images of {trained_on} and test images of {tested_on} channels: use one kind."
            )
        return test

    @property
    def is_synthetic(self) -> bool:
        """Whether the data set knows its scenes without their defects."""
        return (self.folder / "clean").is_dir()

    @cached_property
    def train_images(self) -> Tensor:
        """uint8 [N, C, S, S] on the device."""
        return to_device(self.train.images, self.device)

    @cached_property
    def test_images(self) -> Tensor:
        """uint8 [N, C, S, S] on the device."""
        return to_device(self.test.images, self.device)

    @cached_property
    def trained(self) -> Trained:
        """The VAE of this configuration and data: found by fingerprint, or trained now."""
        return load_or_train(self.train_images, self.config, self.train.digest)

    @property
    def vae(self) -> VAE:
        return self.trained.vae

    @cached_property
    def stopping_crops(self) -> Tensor:
        """Random training crops, [512, C, crop, crop] in [0, 1], whose energies say when a tile may stop."""
        return self.sampler.sample(STOPPING_CROPS, torch.Generator().manual_seed(self.config.seed))

    @cached_property
    def stop_at(self) -> float:
        """Energy under which a tile stops (`projection.stopping_energy`)."""
        return stopping_energy(self.vae, self.stopping_crops, self.config)

    @cached_property
    def sampler(self) -> CropSampler:
        return CropSampler(self.train_images, self.config)

    @property
    def fingerprint(self) -> str:
        return self.config.fingerprint(data=self.train.digest)

    def reconfigured(self, **changes: object) -> Workspace:
        """The same data, not read again, under a configuration with some hyper-parameters changed.

        Raises:
            UserError: a change of ``image_size``, which is another data set: `open` that one.
        """
        other = replace(self, config=self.config.replace(**changes))
        if other.config.image_size != self.config.image_size:
            raise UserError("image_size belongs to the data, which stay as they are here: open another workspace with it.")
        # Cached properties live in the instance's dictionary.
        data = ("train", "test", "train_images", "test_images")
        other.__dict__.update({name: self.__dict__[name] for name in data if name in self.__dict__})
        return other

    def defect_names(self, each: int = 1) -> list[str]:
        """The first ``each`` test images of every defect, such as ``["bent/000", "broken/000", ...]``."""
        defects = sorted({d for d in self.test.defects if d != "good"})
        return [name for d in defects for name in [n for n in self.test.names if n.split("/")[0] == d][:each]]

    def crops_at(self, names: list[str]) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """Crops of test images centred on their defects (the article cropped at random and often missed them).

        Returns:
            Crops [n, C, crop, crop] in [0, 1], masks bool [n, crop, crop], and each crop's top and left.

        Raises:
            UserError: no names, as of a test set without defects.
        """
        if not names:
            raise UserError(f"{self.folder / 'test'} holds no image with a defect: this notebook needs some to show.")
        side, crops, masks, corners = self.config.crop_size, [], [], []
        for i in map(self.test.index, names):
            mask = torch.from_numpy(self.test.gt_masks[i].copy())
            top, left = centred_crop(self.test_images[i], mask, side)
            crops.append(self.test_images[i][..., top : top + side, left : left + side])
            masks.append(mask[top : top + side, left : left + side] > 0)
            corners.append((top, left))
        return to_unit(torch.stack(crops)), torch.stack(masks), corners

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

    def _make_synthgrid(self) -> None:
        if self.folder.parent == synthgrid_root(self.config):
            config = self.config
            counts = {key: max(2, round(config.synthgrid_fraction * count)) for key, count in COUNTS.items()}
            write_synthgrid(self.folder.parent, size=config.synthgrid_size, counts=counts)


def synthgrid_root(config: Config) -> Path:
    """Where the embedded data set of this size and share is kept."""
    whole = config.synthgrid_size == 1024 and config.synthgrid_fraction == 1
    return DATA_DIR / ("synthgrid" if whole else f"synthgrid-{config.synthgrid_size}-{config.synthgrid_fraction:g}")
