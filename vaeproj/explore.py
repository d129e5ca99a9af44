"""The panel of notebooks 04 and 05: choose a defect, drag the crop, move a hyper-parameter, play the iterations.

Three layers, of which only the last knows widgets: `Explorer` turns a `Setting` into a `Run` and keeps it, `sheet.Sheet`
draws a run at an iteration, `Panel` connects both to sliders. Where nobody can move a slider (papermill, nbval,
GitHub) `explore` shows the sheet itself. ``python -m vaeproj.explore --help`` draws one without a notebook.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import dataclasses
import html
import shlex
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython import get_ipython
from IPython.display import Image
from torch import Tensor

from .config import Config, UserError
from .crops import to_unit
from .model import frozen_for_one
from .projection import energies, trajectory
from .sheet import HEIGHT, THUMBNAIL, WIDTH, Run, Sheet, thumbnail
from .workspace import Workspace, synthgrid_root

KNOBS = (
    "alpha", "lam", "iterations", "gradient", "soft_mask", "energy", "coarse_weight", "coarse_sigma",
    "stop_quantile", "stop_factor",
)  # fmt: skip
# Stations of the sliders between the bounds that Config itself sets; iterations end where an answer takes half a minute.
LADDERS: dict[str, tuple[float, ...]] = {
    "alpha": (0, *(float(f"{m}e{k}") for k in (-2, -1, 0, 1) for m in (1, 1.5, 2, 3, 5, 7)), 100),
    "lam": (0, *(float(f"{m}e{k}") for k in (-3, -2, -1, 0) for m in (1, 1.5, 2, 3, 5, 7)), 10),
    "iterations": (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000),
    "coarse_weight": (0, 1, 2, 4, 8, 16, 32),
    "coarse_sigma": (0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 15),
    "stop_quantile": (0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1),
    "stop_factor": (0.5, 0.7, 1, 1.5, 2, 3, 5, 10),
}
NEVER = "never"  # None on a slider: ipywidgets takes None for no choice at all
CACHE_BYTES = 256 << 20  # of trajectories
PAUSE = 0.08  # seconds without a further change before an answer is computed: a held key asks once
CODE = '<code style="display: block; user-select: all; white-space: pre-wrap; font-size: 11px; line-height: 1.4">{}</code>'
SHARE = f"<small>Share this setting: every figure of notebook 4, and this picture alone</small>{CODE}{CODE}"


# --- a setting and its trajectory


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
        stop = "" if c.stop_quantile is None else f", stop {c.stop_factor:g} x q {c.stop_quantile:g}"
        mask = "" if c.soft_mask else ", no mask"
        energy = c.energy + (f" + {c.coarse_weight:g} x blurred {c.coarse_sigma:g}" if c.coarse_weight else "")
        return f"{self.name} ({self.left}, {self.top}): α {c.alpha:g}, λ {c.lam:g}, {c.gradient}, {energy}{mask}{stop}"

    def notebook_command(self, ws: Workspace) -> str:
        """Runs notebook 04 with these hyper-parameters."""
        return f"python -m vaeproj run 04 {_flags(ws, self.config)}"

    def picture_command(self, ws: Workspace, t: int) -> str:
        """Draws what the panel shows, without a notebook."""
        where = f"{shlex.quote(self.name)} --crop {self.left} {self.top} --iteration {t}"
        return f"python -m vaeproj.explore {where} {_flags(ws, self.config)}"


class Explorer:
    """Trajectories of single crops, the latest ones kept.

    Args:
        ws: its data and VAE.
        limit: bytes of trajectories to keep; the latest is always kept.
    """

    def __init__(self, ws: Workspace, limit: int = CACHE_BYTES) -> None:
        self.ws, self.limit = ws, limit
        self.vae = frozen_for_one(ws.vae) if ws.device.type == "cpu" else ws.vae
        self.runs: OrderedDict[tuple[object, ...], Run] = OrderedDict()
        self._energies: dict[tuple[str, float, float], Tensor] = {}

    def start(self, name: str | None = None) -> Setting:
        """The workspace's own hyper-parameters at the defect of an image; None: of the first image with a defect."""
        name = name or next(iter(self.ws.defect_names()), self.ws.test.names[0])
        return Setting(name, *self.ws.crops_at([name])[2][0], self.ws.config)

    def run(self, setting: Setting) -> Run:
        """The trajectory of a setting: kept, the beginning of a kept one, or computed now."""
        config, count = setting.config, setting.config.iterations + 1
        stop_at = self.stop_at(config)
        descent = (*_terms(config), config.gradient, config.soft_mask, config.alpha, config.lam)
        key = (setting.name, setting.top, setting.left, stop_at, *descent)
        run = self.runs.pop(key, None)
        if run is None or len(run) < count:
            run = self._compute(setting, stop_at)
        self.runs[key] = run
        while len(self.runs) > 1 and sum(r.frames.nbytes for r in self.runs.values()) > self.limit:
            self.runs.popitem(last=False)
        return run if len(run) == count else run.first(count)

    def stop_at(self, config: Config) -> float:
        """As `projection.stopping_energy`, the training crops measured once for all quantiles."""
        if config.stop_quantile is None:
            return 0.0
        kind = _terms(config)
        if kind not in self._energies:
            self._energies[kind] = energies(self.ws.vae, self.ws.stopping_crops, config)
        return config.stop_factor * self._energies[kind].quantile(config.stop_quantile).item()

    def _compute(self, setting: Setting, stop_at: float) -> Run:
        i, side = self.ws.test.index(setting.name), setting.config.crop_size
        reach = setting.config.image_size - side
        if not (0 <= setting.top <= reach and 0 <= setting.left <= reach):
            raise UserError(
                f"A crop of {side} pixels at ({setting.left}, {setting.top}) reaches out of the image: "
                f"left and top go from 0 to {reach}."
            )
        within = np.s_[..., setting.top : setting.top + side, setting.left : setting.left + side]
        path = trajectory(self.vae, to_unit(self.ws.test_images[i][within])[None], setting.config, stop_at)
        frames, l_r, distance = (
            part[:, 0].cpu().numpy() for part in (path.frames.half(), path.reconstruction_energy, path.distance)
        )
        return Run(frames, l_r, distance, setting.config.lam, self.ws.test.gt_masks[i][within] > 0, stop_at)


def _terms(config: Config) -> tuple[str, float, float]:
    """What L_r depends on."""
    return config.energy, config.coarse_weight, config.coarse_sigma


def _flags(ws: Workspace, config: Config) -> str:
    """The options that make `Workspace.open` give this configuration and these data."""
    usual, words = Config.from_preset(ws.preset), ["--preset", ws.preset]
    if ws.folder.parent != synthgrid_root(config):
        words += ["--data-root", str(ws.folder.parent)]
    if ws.folder.name != "grid":
        words += ["--category", ws.folder.name]
    for name, value in config.to_dict().items():
        if value != getattr(usual, name):
            words += ["--set", f"{name}={str(value).lower()}"]
    return shlex.join(words)


# --- widgets


def explore(ws: Workspace, name: str | None = None, *, knobs: Iterable[str] = KNOBS) -> Panel | Image:
    """The panel where somebody can use it, else its picture.

    Args:
        ws: what the notebook opened.
        name: test image shown first, such as ``bent/000``; None: the first one with a defect.
        knobs: hyper-parameters that get a control, of `KNOBS`.

    Raises:
        UserError: no such image.
    """
    explorer = Explorer(ws)
    setting = explorer.start(name)
    if _somebody_there():
        return Panel(explorer, setting, knobs)
    return Image(Sheet(explorer.run(setting), setting.caption).jpeg(setting.config.iterations), format="jpeg")


def _somebody_there() -> bool:
    """Whether a person sits at the front end: papermill, nbval and nbconvert announce that nobody can answer a prompt."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin"))


def ladder(field: dataclasses.Field[Any], value: float | str) -> list[tuple[str, Any]]:
    """Labelled stations of a hyper-parameter's slider, inside its own bounds, ``value`` among them."""
    low, high = field.metadata["low"], field.metadata["high"]
    numbers = {v for v in (*LADDERS[field.name], value) if v != NEVER and low <= v <= high}
    stations: list[tuple[str, Any]] = [(f"{v:g}", v) for v in sorted(numbers)]
    return [("never", NEVER), *stations] if "None" in str(field.type) else stations


def control(field: dataclasses.Field[Any], value: object) -> widgets.ValueWidget:
    """The widget of a hyper-parameter, with its help, range and source as tooltip."""
    meta = field.metadata
    bounds = "" if meta["low"] is None else f"; {meta['low']:g} to {meta['high']:g}"
    about = {"description": field.name.replace("_", " "), "tooltip": f"{meta['help']}{bounds} ({meta['source']})"}
    about |= {"style": {"description_width": "92px"}, "layout": _layout(width="300px")}
    if meta["choices"]:
        return widgets.Dropdown(options=meta["choices"], value=value, **about)
    if isinstance(value, bool):
        return widgets.Checkbox(value=value, indent=True, **about)
    value = NEVER if value is None else value
    return widgets.SelectionSlider(options=ladder(field, value), value=value, continuous_update=False, **about)


class Panel(widgets.HBox):
    """The controls left, the sheet with its play bar right.

    In a notebook file its output is also a picture: a front end without widgets, such as GitHub, shows that.
    """

    def __init__(self, explorer: Explorer, setting: Setting, knobs: Iterable[str] = KNOBS) -> None:
        self.explorer, self.ws = explorer, explorer.ws
        self._timer: asyncio.TimerHandle | None = None
        self._held = False  # while the panel itself moves several controls, to be answered once
        super().__init__([self._left(setting, knobs), self._right()], layout=_layout(flex_flow="row wrap", overflow="visible"))
        self.add_class("vaeproj-panel")
        self._place(setting)
        self._answer()
        self.defect.observe(self._list_images, "value")
        self.image.observe(self._centre, "value")
        self.centre.on_click(self._centre)
        for widget in (self.x, self.y, *self.knobs.values()):
            widget.observe(self._ask, "value")
        for widget in (self.t, self.outline):
            widget.observe(self._show, "value")

    def _left(self, setting: Setting, knobs: Iterable[str]) -> widgets.VBox:
        defects, reach = self.ws.test.defects, setting.config.image_size - setting.config.crop_size
        defect = defects[self.ws.test.index(setting.name)]
        label = {"style": {"description_width": "92px"}, "layout": _layout(width="300px")}
        kinds = sorted(set(defects), key=lambda kind: (kind == "good", kind))
        self.defect = widgets.Dropdown(description="defect", options=kinds, value=defect, **label)
        self.image = widgets.Dropdown(description="image", options=self._images(defect), value=setting.name, **label)
        self.whole = widgets.Image(format="jpeg", width=THUMBNAIL, height=THUMBNAIL, layout=_layout(margin="2px"))
        rail = {"min": 0, "max": reach, "readout": False, "disabled": reach == 0, "tooltip": "drag the crop over the image"}
        self.x = widgets.IntSlider(layout=_layout(width=f"{THUMBNAIL}px", margin="0 2px"), **rail)
        self.y = widgets.IntSlider(orientation="vertical", layout=_layout(height=f"{THUMBNAIL}px", width="24px"), **rail)
        self.centre = widgets.Button(
            description="centre", tooltip="centre the crop on the defect", layout=_layout(width="80px")
        )
        self.outline = widgets.Checkbox(True, description="outline defect", indent=False, layout=_layout(width="118px"))
        self.where = widgets.HTML()
        crop = _row(_column(self.whole, self.x), self.y)
        defect_row = _row(self.centre, self.outline, self.where)
        fields = {field.name: field for field in dataclasses.fields(Config)}
        self.knobs = {name: control(fields[name], getattr(setting.config, name)) for name in knobs}
        return _column(self.defect, self.image, crop, defect_row, *self.knobs.values(), width="310px")

    def _right(self) -> widgets.VBox:
        self.picture = widgets.Image(format="jpeg", width=WIDTH, height=HEIGHT)
        self.play = widgets.Play(min=0, max=0, interval=100, show_repeat=False)
        self.t = widgets.IntSlider(description="iteration", min=0, max=0, layout=_layout(width="400px"))
        widgets.jslink((self.play, "value"), (self.t, "value"))
        self.status, self.share = widgets.HTML(), widgets.HTML()
        for part, name in ((self.picture, "picture"), (self.t, "iteration"), (self.status, "status"), (self.share, "share")):
            part.add_class(f"vaeproj-{name}")
        return _column(self.picture, _row(self.play, self.t), self.status, self.share, width=f"{WIDTH + 4}px")

    @property
    def setting(self) -> Setting:
        """What the controls say now."""
        values = {name: None if knob.value == NEVER else knob.value for name, knob in self.knobs.items()}
        return Setting(self.image.value, self.y.max - self.y.value, self.x.value, self.ws.config.replace(**values))

    def _images(self, defect: str) -> list[tuple[str, str]]:
        return [(name.split("/")[-1], name) for name in self.ws.test.names if name.split("/")[0] == defect]

    def _list_images(self, _: object = None) -> None:
        self.image.options = self._images(self.defect.value)  # chooses the first, which centres the crop

    def _centre(self, _: object = None) -> None:
        self._place(self.explorer.start(self.image.value))
        self._ask()

    def _place(self, setting: Setting) -> None:
        """Put the crop where the setting has it."""
        self._held = True
        self.x.value, self.y.value = setting.left, self.y.max - setting.top
        self._held = False
        self._frame()

    def _frame(self) -> None:
        top, left, i = self.y.max - self.y.value, self.x.value, self.ws.test.index(self.image.value)
        self.whole.value = thumbnail(self.ws.test.images[i], self.ws.test.gt_masks[i], top, left, self.ws.config.crop_size)
        self.where.value = f"<small>x {left}, y {top}</small>"

    def _ask(self, _: object = None) -> None:
        """Move the crop's frame; answer when the controls rest, or at once where no event loop runs."""
        if self._held:
            return
        self._frame()
        if self._timer is not None:
            self._timer.cancel()
        try:
            self._timer = asyncio.get_running_loop().call_later(PAUSE, self._answer)
        except RuntimeError:
            self._answer()
        else:
            self._say("computing ...")

    def _answer(self) -> None:
        """Compute and show the setting's trajectory; what goes wrong is told in the panel."""
        start = time.perf_counter()
        try:
            setting = self.setting
            run = self.explorer.run(setting)
            self.sheet = Sheet(run, setting.caption)
        except Exception as error:  # in a callback, nobody else would see it
            self._say(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}", "#b00020")
            return
        self.shown, self.took = setting, time.perf_counter() - start
        at_end = self.t.value == self.t.max
        self._held = True
        self.t.max = self.play.max = len(run) - 1
        self.t.value = self.t.max if at_end else self.t.value
        self._held = False
        self._show()

    def _show(self, _: object = None) -> None:
        """The sheet at the play bar's iteration."""
        if self._held:
            return
        t, run, lam = self.t.value, self.sheet.run, self.shown.config.lam
        self.picture.value = self.sheet.jpeg(t, outline=self.outline.value)
        l_r, distance = run.reconstruction_energy[t], run.distance[t]
        self._say(f"E = L_r {l_r:.2f} + {lam:g} × {distance:.1f} = {l_r + lam * distance:.2f}; answered in {self.took:.1f} s")
        commands = (self.shown.notebook_command(self.ws), self.shown.picture_command(self.ws, t))
        self.share.value = SHARE.format(*map(html.escape, commands))

    def _say(self, text: str, color: str = "inherit") -> None:
        self.status.value = f'<span style="color: {color}">{html.escape(text)}</span>'

    def _repr_mimebundle_(self, **kwargs: object) -> dict[str, object]:
        bundle = super()._repr_mimebundle_(**kwargs)
        picture = base64.b64encode(self.picture.value).decode()
        return bundle | {"image/jpeg": picture, "text/plain": f"Panel({self.shown.caption})"}


def _layout(**style: str) -> widgets.Layout:
    return widgets.Layout(**style)


def _column(*children: widgets.Widget, **style: str) -> widgets.VBox:
    return widgets.VBox(children, layout=_layout(overflow="visible", **style))


def _row(*children: widgets.Widget) -> widgets.HBox:
    return widgets.HBox(children, layout=_layout(overflow="visible"))


# --- without a notebook


def main(argv: list[str] | None = None) -> int:
    """Draw one sheet into a file, as the panel's last line says."""
    parser = argparse.ArgumentParser(prog="python -m vaeproj.explore", description="Draw what the panel shows into a file.")
    parser.add_argument("image", help="a test image, such as bent/000")
    parser.add_argument("--crop", nargs=2, type=int, metavar=("LEFT", "TOP"), help="pixels (default: centred on the defect)")
    parser.add_argument("--iteration", type=int, metavar="T", help="default: the last")
    parser.add_argument("--no-outline", action="store_true", help="leave out the defect's border")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings")
    parser.add_argument("--data-root", default="", metavar="DIR")
    parser.add_argument("--category", default="grid", metavar="NAME")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    parser.add_argument("--out", default="explore.png", metavar="FILE", type=Path, help="default: explore.png")
    a = parser.parse_args(argv)
    try:
        ws = Workspace.open(a.preset, " ".join(a.settings), a.data_root, a.category, a.device)
        explorer = Explorer(ws)
        setting = explorer.start(a.image)
        if a.out.suffix.lower() not in (".png", ".jpg", ".webp") or not a.out.absolute().parent.is_dir():
            raise UserError(f"--out {a.out}: name a picture, such as explore.png, in a folder that exists.")
        if a.crop:
            setting = dataclasses.replace(setting, left=a.crop[0], top=a.crop[1])
        t = ws.config.iterations if a.iteration is None else a.iteration
        if not 0 <= t <= ws.config.iterations:
            raise UserError(f"--iteration {t}: choose one from 0 to {ws.config.iterations}, or pass --set iterations={t}.")
        Sheet(explorer.run(setting), setting.caption).draw(t, outline=not a.no_outline).save(a.out)
    except UserError as error:
        print(f"vaeproj: {error}", file=sys.stderr)
        return 2
    print(a.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
