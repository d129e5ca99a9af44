"""The panel of notebook 04: choose a defect, drag the crop, move a hyper-parameter, play the iterations, wipe.

`Panel` connects sliders and two pictures with something to drag (`Stage`) to what `Explorer` computes of a `Setting`.
"""

import asyncio
import html
import shlex
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets
from IPython import get_ipython
from IPython.display import Image

from ..config import DESCENTS, Config, UserError
from ..crops import to_unit
from ..projection import trajectory
from ..workspace import Workspace
from .sheet import CORNERS, HEIGHT, THUMBNAIL, TILE, WIDTH, Sheet, jpeg, thumbnail

KNOBS = ("descent", "gradient", "alpha", "iterations", "lam", "tolerance", "hardness", "coarse_weight")
# Stations of the sliders within Config's own bounds; iterations end where an answer takes half a minute.
LADDERS: dict[str, tuple[float, ...]] = {
    "alpha": (0, *(float(f"{m}e{k}") for k in (-2, -1, 0, 1) for m in (1, 1.5, 2, 3, 5, 7)), 100),
    "lam": (0, *(float(f"{m}e{k}") for k in (-3, -2, -1, 0) for m in (1, 1.5, 2, 3, 5, 7)), 10),
    "iterations": (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000),
    "coarse_weight": (0, 1, 2, 4, 8, 16, 32),
    "tolerance": (1, 1.2, 1.4, 1.5, 1.6, 1.7, 1.8, 2, 2.5, 3, 4, 6),
    "hardness": (0.5, 1, 1.5, 2, 3, 4, 6, 8),
}
STATIC = 60  # JPEG quality of the picture without controls, which notebook files keep
PAUSE = 0.08  # seconds without a further change before an answer is computed: a held key asks once
LABELLED: dict[str, Any] = {"style": {"description_width": "96px"}, "layout": {"width": "auto"}}
TICK: dict[str, Any] = {"indent": False, "layout": {"width": "auto"}}
CODE = '<code style="display: block; user-select: all; white-space: pre-wrap; font-size: 11px; line-height: 1.4">{}</code>'
SHARE = f"<small>Share this setting: it gives every figure of notebook 4</small>{CODE}"


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


class Stage(anywidget.AnyWidget):
    """A picture, and in an area of it a box to move by mouse, touch or arrow keys. Lengths are in a unit of its own."""

    _esm, _css = (Path(__file__).with_name(f"panel.{kind}") for kind in ("js", "css"))

    jpeg = traitlets.Bytes().tag(sync=True)
    size = traitlets.Tuple().tag(sync=True)  # width and height of the picture
    area = traitlets.Tuple().tag(sync=True)  # where the box may go: left, top, width, height
    box = traitlets.Tuple().tag(sync=True)  # its width and height
    at = traitlets.Tuple((0, 0)).tag(sync=True)  # its left and top, counted from the area's
    cover = traitlets.Tuple().tag(sync=True)  # left and top of the part of the picture that is seen left of the box; (): none
    label = traitlets.Unicode().tag(sync=True)  # for who cannot see it


def control(name: str, value: Any) -> widgets.ValueWidget:
    """The widget of a hyper-parameter, ``value`` among its stations, with help, range and source as tooltip."""
    meta = Config.__dataclass_fields__[name].metadata
    bounds = "" if meta["low"] is None else f"; {meta['low']:g} to {meta['high']:g}"
    about = LABELLED | {"description": name.replace("_", " "), "tooltip": f"{meta['help']}{bounds} ({meta['source']})"}
    if meta["choices"]:
        return widgets.Dropdown(value=value, options=meta["choices"], **about)
    brought = {own[name] for own in DESCENTS.values() if name in own}
    stations = [(f"{v:g}", v) for v in sorted({*LADDERS[name], *brought, value})]
    return widgets.SelectionSlider(value=value, options=stations, continuous_update=False, **about)


class Panel(widgets.HBox):
    """The controls left, the sheet with its play bar right; in a notebook file also a picture, as GitHub shows no widgets."""

    def __init__(self, explorer: Explorer, name: str) -> None:
        self.explorer, self.ws = explorer, explorer.ws
        self._timer: asyncio.TimerHandle | None = None
        self.share = widgets.HTML(layout={"flex": "1 0 100%"}).add_class("vaeproj-share")
        parts = [self._left(name), self._right(), self.share]
        super().__init__(parts, layout={"flex_flow": "row wrap", "grid_gap": "8px"})
        self.add_class("vaeproj-panel")
        self._answer()
        self.centre.on_click(lambda _: self.crop.set_trait("at", explorer.start(self.image.value).at))
        self.crop.observe(self._ask, "at")
        for widget in (self.image, *self.knobs.values()):
            widget.observe(self._ask, "value")
        self.knobs["descent"].observe(self._bring_along, "value")
        for widget in (self.t, self.outline, self.lock):
            widget.observe(self._show, "value")

    def _left(self, name: str) -> widgets.VBox:
        kinds = sorted(set(self.ws.test.defects), key=lambda kind: (kind == "good", kind))
        self.defect = widgets.Dropdown(description="defect", options=kinds, value=name.split("/")[0], **LABELLED)
        self.image = widgets.Dropdown(description="image", **LABELLED)
        named = [(name.split("/")[1], name) for name in self.ws.test.names]
        widgets.dlink((self.defect, "value"), (self.image, "options"), lambda d: [n for n in named if n[1].startswith(f"{d}/")])
        self.image.value = name
        whole, side = self.ws.config.image_size, self.ws.config.crop_size
        self.crop = Stage(
            size=(whole, whole), area=(0, 0, whole, whole), box=(side, side), label="the crop: drag it over the image",
            layout={"width": f"{THUMBNAIL}px", "margin": "2px"},
        ).add_class("vaeproj-crop")  # fmt: skip
        widgets.dlink((self.image, "value"), (self.crop, "jpeg"), self._thumbnail)
        widgets.dlink((self.image, "value"), (self.crop, "at"), lambda chosen: self.explorer.start(chosen).at)
        self.centre = widgets.Button(description="centre", tooltip="centre the crop on the defect", layout={"width": "64px"})
        self.outline = widgets.Checkbox(True, description="outline", tooltip="the defect's border", **TICK)
        kept = "keep the change's colours as they are, to compare two descents"
        self.lock = widgets.Checkbox(False, description="lock scale", tooltip=kept, **TICK)
        self.knobs = {knob: control(knob, getattr(self.ws.config, knob)) for knob in KNOBS}
        buttons = widgets.HBox([self.centre, self.outline, self.lock])
        parts = [self.defect, self.image, self.crop, buttons, *self.knobs.values()]
        return widgets.VBox(parts, layout={"width": f"{THUMBNAIL + 4}px"})

    def _right(self) -> widgets.VBox:
        self.picture = Stage(
            size=(WIDTH, HEIGHT), area=(*CORNERS[2], TILE, TILE), box=(0, TILE), cover=CORNERS[0],
            label="drag to lay the image over its projection",
        ).add_class("vaeproj-picture")  # fmt: skip
        self.play = widgets.Play(max=0, interval=100, show_repeat=False, layout={"width": "88px"})
        self.t = widgets.IntSlider(
            description="iteration", max=0, style={"description_width": "60px"}, layout={"flex": "1 1 0", "width": "auto"}
        ).add_class("vaeproj-iteration")
        widgets.jslink((self.play, "value"), (self.t, "value"))
        self.status = widgets.HTML().add_class("vaeproj-status")
        parts = [self.picture, widgets.HBox([self.play, self.t]), self.status]
        return widgets.VBox(parts, layout={"flex": "1 1 300px", "max_width": f"{WIDTH}px"})

    @property
    def setting(self) -> Setting:
        """What the controls say now."""
        values = {name: knob.value for name, knob in self.knobs.items()}
        return Setting(self.image.value, self.crop.at, self.ws.config.replace(**values))

    def _thumbnail(self, name: str) -> bytes:
        i, test = self.ws.test.index(name), self.ws.test
        return jpeg(thumbnail(test.images[i].cpu().numpy(), test.gt_masks[i]), 90)

    def _bring_along(self, _: object) -> None:
        """Another descent takes steps of another size: its own settings come with it."""
        for name, value in DESCENTS[self.knobs["descent"].value].items():
            self.knobs[name].value = value

    def _ask(self, _: object = None) -> None:
        """Answer when the controls rest, or at once where no event loop runs."""
        if self._timer is not None:
            self._timer.cancel()
        self._say("computing ...")
        try:
            self._timer = asyncio.get_running_loop().call_later(PAUSE, self._answer)
        except RuntimeError:
            self._answer()

    def _answer(self) -> None:
        """Compute and show the setting's trajectory; what goes wrong is told in the panel."""
        start = time.perf_counter()
        try:
            setting = self.setting
            sheet = self.explorer.sheet(setting)
        except Exception as error:  # in a callback, nobody else would see it
            self._say(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}", "#b00020")
            return
        if setting != self.setting:  # JupyterLab's messages come in several threads: a later answer is under way
            return
        self.sheet, self.shown, self.took = sheet, setting, time.perf_counter() - start
        at_end = self.t.value == self.t.max
        self.t.max = self.play.max = setting.config.iterations
        self.t.value = self.t.max if at_end else self.t.value
        for name, knob in self.knobs.items():  # what would change nothing now
            knob.disabled = name in idle(setting.config)
        self.play.disabled = self.t.disabled = not setting.config.iterations
        self.outline.disabled = not sheet.edge.getbbox()
        self.centre.disabled = setting.at == self.explorer.start(setting.name).at
        self._show()

    def _show(self, _: object = None) -> None:
        """The sheet at the play bar's iteration."""
        t = self.t.value
        if not self.lock.value:
            self.white = self.sheet.white
        self.picture.jpeg = jpeg(self.sheet.draw(t, outline=self.outline.value, white=self.white))
        reconstruction, distance = self.sheet.terms[t]
        energy = f"E = reconstruction {reconstruction:.2f} + distance {distance:.2f} = {reconstruction + distance:.2f}"
        self._say(f"{energy}; answered in {self.took:.1f} s")
        self.share.value = SHARE.format(html.escape(self.shown.command(self.ws)))

    def _say(self, text: str, color: str = "inherit") -> None:
        self.status.value = f'<span style="color: {color}">{html.escape(text)}</span>'

    def _repr_mimebundle_(self, **kwargs: object) -> dict[str, object]:
        picture, _ = Image(self.picture.jpeg, format="jpeg")._repr_mimebundle_()
        return super()._repr_mimebundle_(**kwargs) | picture | {"text/plain": f"Panel({self.shown.caption})"}


def explore(ws: Workspace, name: str | None = None) -> Panel | Image:
    """The panel where somebody can use it, else (papermill, nbval, GitHub) its picture, at a test image such as ``bent/000``;
    None: the first one with a defect. A `UserError` where there is no such image.
    """
    explorer = Explorer(ws)
    setting = explorer.start(name)
    if somebody_there(get_ipython()):
        return Panel(explorer, setting.name)
    return Image(jpeg(explorer.sheet(setting).draw(setting.config.iterations), STATIC), format="jpeg")


def somebody_there(shell: object) -> bool:
    """Whether a person sits at IPython's front end: papermill, nbval and nbconvert say that nobody can answer a prompt."""
    kernel = getattr(shell, "kernel", None)
    return kernel is not None and bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin"))
