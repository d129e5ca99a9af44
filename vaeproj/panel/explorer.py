"""A setting of the panel, and the sheet that belongs to it."""

import shlex
from dataclasses import asdict, dataclass
from functools import lru_cache

from ..config import Config
from ..crops import to_unit
from ..projection import trajectory
from ..workspace import Workspace
from .sheet import Sheet


@dataclass(frozen=True)
class Setting:
    """What the controls say: an image by name, its crop's left and top in pixels, and the hyper-parameters."""

    name: str
    at: tuple[int, int]
    config: Config

    @property
    def caption(self) -> str:
        """A setting in one short line, for under a sheet."""
        c = self.config
        own = f"k {c.tolerance:g}, p {c.hardness:g}" if c.descent == "anchored" else f"λ {c.lam:g}"
        coarse = f" + {c.coarse_weight:g} coarse" if c.coarse_weight else ""
        return f"{self.name} {self.at}: {c.descent}{coarse}, {c.gradient}, α {c.alpha:g}, {own}"

    def command(self, ws: Workspace) -> str:
        """Runs notebook 04 with these hyper-parameters."""
        request = ws.request
        # What a descent brings along goes without saying.
        usual = asdict(Config.from_preset(request.preset, f"descent={self.config.descent}"))
        usual["descent"] = Config.from_preset(request.preset).descent
        options = ["--preset", request.preset]
        options += ["--data-root", str(ws.folder.parent)] if request.data_root else []
        options += ["--category", request.category] if request.category != "grid" else []
        for name, value in asdict(self.config).items():
            options += ["--set", f"{name}={str(value).lower()}"] if value != usual[name] else []
        return f"python -m vaeproj run 04 {shlex.join(options)}"


def idle(config: Config) -> set[str]:
    """The hyper-parameters that change nothing as the others are."""
    unread = {"anchored": {"lam"}, "article": {"tolerance", "hardness", "coarse_weight"}}
    names = unread.get(config.descent, {"tolerance", "hardness"})
    if not (config.alpha and config.iterations):  # nothing moves
        names |= {"gradient", "lam"}
    return names if config.iterations else names | {"alpha"}


class Explorer:
    """Projects single crops of a workspace; the latest eight sheets are kept."""

    def __init__(self, ws: Workspace) -> None:
        self.ws = ws
        self.sheet = lru_cache(8)(self._sheet)

    def start(self, name: str | None = None) -> Setting:
        """The workspace's own hyper-parameters at the defect of an image; None: of the first image with a defect."""
        name = name or next(iter(self.ws.defect_names()), self.ws.test.names[0])
        *_, [(top, left)] = self.ws.crops_at([name])
        return Setting(name, (left, top), self.ws.config)

    def _sheet(self, setting: Setting) -> Sheet:
        test, config, (left, top) = self.ws.test, setting.config, setting.at
        i, within = test.index(setting.name), (..., slice(top, top + config.crop_size), slice(left, left + config.crop_size))
        path = trajectory(self.ws.fast_vae, to_unit(test.images[i][within])[None], config, self.ws.expected)
        return Sheet(path, test.gt_masks[i][within] > 0, setting.caption)
