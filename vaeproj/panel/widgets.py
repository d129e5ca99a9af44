"""The panel of notebooks 04 and 05: choose a defect, drag the crop, move a hyper-parameter, play the iterations.

`Explorer` turns a `Setting` into a `Run`, `Sheet` draws a run at an iteration, `Panel` connects both to sliders. Where nobody
can move a slider (papermill, nbval, GitHub) `explore` shows the sheet itself.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import html
import time
from collections.abc import Iterable
from types import NoneType
from typing import Any

import ipywidgets as widgets
from IPython import get_ipython
from IPython.display import Image

from ..config import Config, UserError, field_types
from ..workspace import Workspace
from .explorer import Explorer, Setting
from .sheet import HEIGHT, THUMBNAIL, WIDTH, Sheet, thumbnail

KNOBS = ("alpha", "lam", "iterations", "gradient", "soft_mask", "energy", "coarse_weight", "coarse_sigma", "stop_quantile")
# Stations of the sliders between the bounds that Config itself sets; iterations end where an answer takes half a minute.
LADDERS: dict[str, tuple[float, ...]] = {
    "alpha": (0, *(float(f"{m}e{k}") for k in (-2, -1, 0, 1) for m in (1, 1.5, 2, 3, 5, 7)), 100),
    "lam": (0, *(float(f"{m}e{k}") for k in (-3, -2, -1, 0) for m in (1, 1.5, 2, 3, 5, 7)), 10),
    "iterations": (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 700, 1000),
    "coarse_weight": (0, 1, 2, 4, 8, 16, 32),
    "coarse_sigma": (0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 7, 10, 15),
    "stop_quantile": (0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1),
}
NEVER = "never"  # None on a slider: ipywidgets takes None for no choice at all
PAUSE = 0.08  # seconds without a further change before an answer is computed: a held key asks once
CODE = '<code style="display: block; user-select: all; white-space: pre-wrap; font-size: 11px; line-height: 1.4">{}</code>'
SHARE = f"<small>Share this setting: it gives every figure of notebook 4</small>{CODE}"


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
    return [("never", NEVER), *stations] if NoneType in field_types(field.name) else stations


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
        self.whole.value = thumbnail(
            self.ws.test.images[i].cpu().numpy(), self.ws.test.gt_masks[i], top, left, self.ws.config.crop_size
        )
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
        self.share.value = SHARE.format(html.escape(self.shown.command(self.ws)))

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
