"""A setting of the panel, and the sheet that belongs to it."""

import shlex
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

from ..config import Config
from ..crops import to_unit
from ..projection import trajectory
from ..workspace import Workspace
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
        own = f"k {c.tolerance:g}, p {c.hardness:g}" if c.descent == "anchored" else f"λ {c.lam:g}"
        coarse = f" + {c.coarse_weight:g} coarse" if c.coarse_weight else ""
        return f"{self.name} ({self.left}, {self.top}): {c.descent}{coarse}, {c.gradient}, α {c.alpha:g}, {own}"

    def command(self, ws: Workspace) -> str:
        """Runs notebook 04 with these hyper-parameters."""
        request, usual = ws.request, asdict(Config.from_preset(ws.request.preset))
        if self.config.descent != usual["descent"]:  # naming another brings its own settings along
            usual = asdict(Config.from_preset(request.preset, f"descent={self.config.descent}")) | {"descent": usual["descent"]}
        options = ["--preset", request.preset]
        options += ["--data-root", str(ws.folder.parent)] if request.data_root else []
        options += ["--category", request.category] if request.category != "grid" else []
        for name, value in asdict(self.config).items():
            options += ["--set", f"{name}={str(value).lower()}"] if value != usual[name] else []
        return f"python -m vaeproj run 04 {shlex.join(options)}"


def idle(config: Config) -> set[str]:
    """The hyper-parameters that change nothing as the others are."""
    names = {"lam"} if config.descent == "anchored" else {"tolerance", "hardness"}
    if config.descent == "article":
        names |= {"coarse_weight"}
    if not (config.alpha and config.iterations):  # nothing moves
        names |= {"gradient", "lam"}
    return names if config.iterations else names | {"alpha"}


class Explorer:
    """Projects single crops of a workspace; the latest sheets are kept."""

    def __init__(self, ws: Workspace) -> None:
        self.ws = ws
        self.sheet = lru_cache(KEPT)(self._sheet)

    def start(self, name: str | None = None) -> Setting:
        """The workspace's own hyper-parameters at the defect of an image; None: of the first image with a defect."""
        name = name or next(iter(self.ws.defect_names()), self.ws.test.names[0])
        return Setting(name, *self.ws.crops_at([name])[2][0], self.ws.config)

    def _sheet(self, setting: Setting) -> Sheet:
        test, config, side = self.ws.test, setting.config, setting.config.crop_size
        i, within = test.index(setting.name), np.s_[..., setting.top : setting.top + side, setting.left : setting.left + side]
        path = trajectory(self.ws.fast_vae, to_unit(test.images[i][within])[None], config, self.ws.expected)
        return Sheet(path, test.gt_masks[i][within] > 0, setting.caption)
