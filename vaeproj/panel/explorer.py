"""A setting of the panel, and the trajectory that belongs to it."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from ..config import Config, UserError
from ..crops import to_unit
from ..projection import energies, trajectory
from ..workspace import Workspace
from .int8 import in_bytes
from .sheet import Run

KEPT = 16  # trajectories, the latest ones


@dataclass(frozen=True)
class Setting:
    """What the controls say: an image by name, its crop's top and left in pixels, and the hyper-parameters."""

    name: str
    top: int
    left: int
    config: Config

    @property
    def caption(self) -> str:
        """A setting in one short line, for under a sheet."""
        c = self.config
        stop = "" if c.stop_quantile is None else f", stop q {c.stop_quantile:g}"
        mask = "" if c.soft_mask else ", no mask"
        energy = c.energy + (f" + {c.coarse_weight:g} x blurred {c.coarse_sigma:g}" if c.coarse_weight else "")
        return f"{self.name} ({self.left}, {self.top}): α {c.alpha:g}, λ {c.lam:g}, {c.gradient}, {energy}{mask}{stop}"

    def command(self, ws: Workspace) -> str:
        """Runs notebook 04 with these hyper-parameters."""
        request, usual = ws.request, Config.from_preset(ws.request.preset)
        words = ["--preset", request.preset]
        if request.data_root:
            words += ["--data-root", str(ws.folder.parent)]
        if request.category != "grid":
            words += ["--category", request.category]
        for name, value in asdict(self.config).items():
            if value != getattr(usual, name):
                words += ["--set", f"{name}={str(value).lower()}"]
        return f"python -m vaeproj run 04 {shlex.join(words)}"


class Explorer:
    """Trajectories of single crops of a workspace, the latest ones kept."""

    def __init__(self, ws: Workspace) -> None:
        self.ws = ws
        self.vae = in_bytes(ws.vae) if ws.device.type == "cpu" else ws.fast_vae
        self.run = lru_cache(KEPT)(self._run)
        self.energies = lru_cache(KEPT)(self._energies)

    def start(self, name: str | None = None) -> Setting:
        """The workspace's own hyper-parameters at the defect of an image; None: of the first image with a defect."""
        name = name or next(iter(self.ws.defect_names()), self.ws.test.names[0])
        top, left = self.ws.crops_at([name])[2][0]
        return Setting(name, top, left, self.ws.config)

    def stop_at(self, config: Config) -> float:
        """As `projection.stopping_energy`, the training crops measured once for all quantiles."""
        if config.stop_quantile is None:
            return 0.0
        return self.energies(config.replace(stop_quantile=None)).quantile(config.stop_quantile).item()

    def _energies(self, config: Config) -> Tensor:
        return energies(self.ws.fast_vae, self.ws.stopping_crops, config)

    def _run(self, setting: Setting) -> Run:
        """The trajectory of a setting.

        Raises:
            UserError: a crop that reaches out of the image.
        """
        i, side = self.ws.test.index(setting.name), setting.config.crop_size
        reach = setting.config.image_size - side
        if not (0 <= setting.top <= reach and 0 <= setting.left <= reach):
            raise UserError(
                f"A crop of {side} pixels at ({setting.left}, {setting.top}) reaches out of the image: "
                f"left and top go from 0 to {reach}."
            )
        within = np.s_[..., setting.top : setting.top + side, setting.left : setting.left + side]
        stop_at = self.stop_at(setting.config)
        path = trajectory(self.vae, to_unit(self.ws.test.images[i][within])[None], setting.config, stop_at)
        frames, l_r, distance = (
            part[:, 0].cpu().numpy() for part in (path.frames.half(), path.reconstruction_energy, path.distance)
        )
        return Run(frames, l_r, distance, setting.config.lam, self.ws.test.gt_masks[i][within] > 0, stop_at)
