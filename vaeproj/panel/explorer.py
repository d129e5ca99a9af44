"""A setting of the panel, and the sheet that belongs to it."""

import copy
import shlex
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Config
from ..crops import to_unit
from ..model import VAE
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


class _Dense(torch.autograd.Function):
    """A dense layer and the gradient of its input, from the weights and from their transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, transpose: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(transpose)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return F.linear(gradient, ctx.saved_tensors[0]), None, None, None


class _DenseBothWays(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.tensors = layer.weight, layer.weight.mT.contiguous(), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return _Dense.apply(x, *self.tensors)


def for_one_crop(vae: VAE) -> VAE:
    """A frozen VAE that computes the same, faster at a single crop: there the dense layers' weights, read once for each pass,
    take most of the time, and a plain layer's backward pass reads them at half the speed.
    """
    vae = copy.copy(vae)
    vae._modules = dict(vae._modules)
    for name in ("encoder", "decoder"):
        layers = [_DenseBothWays(layer) if isinstance(layer, nn.Linear) else layer for layer in getattr(vae, name)]
        setattr(vae, name, nn.Sequential(*layers))
    return vae


class Explorer:
    """Projects single crops of a workspace; the latest sheets are kept."""

    def __init__(self, ws: Workspace) -> None:
        self.ws, self.vae = ws, for_one_crop(ws.fast_vae)
        self.sheet = lru_cache(KEPT)(self._sheet)

    def start(self, name: str | None = None) -> Setting:
        """The workspace's own hyper-parameters at the defect of an image; None: of the first image with a defect."""
        name = name or next(iter(self.ws.defect_names()), self.ws.test.names[0])
        return Setting(name, *self.ws.crops_at([name])[2][0], self.ws.config)

    def _sheet(self, setting: Setting) -> Sheet:
        test, config, side = self.ws.test, setting.config, setting.config.crop_size
        i, within = test.index(setting.name), np.s_[..., setting.top : setting.top + side, setting.left : setting.left + side]
        path = trajectory(self.vae, to_unit(test.images[i][within])[None], config, self.ws.expected)
        return Sheet(path, test.gt_masks[i][within] > 0, setting.caption)
