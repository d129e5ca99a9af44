"""A setting of the panel, and the sheet that belongs to it."""

import shlex
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from ..config import Config
from ..crops import to_unit
from ..projection import energies, trajectory
from ..workspace import Workspace
from .int8 import in_bytes
from .sheet import Sheet

KEPT = 8  # sheets, the latest ones


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
        request, usual = ws.request, asdict(Config.from_preset(ws.request.preset))
        options = ["--preset", request.preset]
        options += ["--data-root", str(ws.folder.parent)] if request.data_root else []
        options += ["--category", request.category] if request.category != "grid" else []
        for name, value in asdict(self.config).items():
            options += ["--set", f"{name}={str(value).lower()}"] if value != usual[name] else []
        return f"python -m vaeproj run 04 {shlex.join(options)}"


class Explorer:
    """Projects single crops of a workspace; the latest sheets are kept."""

    def __init__(self, ws: Workspace) -> None:
        self.ws = ws
        self.vae = in_bytes(ws.vae) if ws.device.type == "cpu" else ws.fast_vae
        self.sheet = lru_cache(KEPT)(self._sheet)
        self.training_energies = lru_cache(KEPT)(lambda config: energies(ws.fast_vae, ws.stopping_crops, config))

    def start(self, name: str | None = None) -> Setting:
        """The workspace's own hyper-parameters at the defect of an image; None: of the first image with a defect."""
        name = name or next(iter(self.ws.defect_names()), self.ws.test.names[0])
        return Setting(name, *self.ws.crops_at([name])[2][0], self.ws.config)

    def stop_at(self, config: Config) -> float:
        """As `projection.stopping_energy`, the training crops measured once for each kind of energy."""
        if config.stop_quantile is None:
            return 0.0
        kind = {name: getattr(config, name) for name in ("energy", "coarse_weight", "coarse_sigma")}
        return self.training_energies(self.ws.config.replace(**kind)).quantile(config.stop_quantile).item()

    def _sheet(self, setting: Setting) -> Sheet:
        test, config, side = self.ws.test, setting.config, setting.config.crop_size
        i, stop_at = test.index(setting.name), self.stop_at(config)
        within = np.s_[..., setting.top : setting.top + side, setting.left : setting.left + side]
        path = trajectory(self.vae, to_unit(test.images[i][within])[None], config, stop_at)
        return Sheet(path, config.lam, test.gt_masks[i][within] > 0, stop_at, setting.caption)
