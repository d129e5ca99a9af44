"""One crop's trajectory as one picture: image, projection, change and energy, fast enough to play.

Drawn with numpy and PIL; matplotlib draws the energy's curve, once a trajectory.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from ..figures import CHANGE, STYLE

TILE, HEAD, GAP = 256, 20, 8  # side of a picture, its title, and the space between two, pixels
WIDTH, HEIGHT = 2 * TILE + GAP, 2 * (TILE + HEAD) + GAP + HEAD  # of a sheet
THUMBNAIL = 240  # side of the whole image, pixels
OUTLINE = (230, 159, 0)  # of masks, as in the figures
MAGMA = matplotlib.colormaps[CHANGE](np.arange(256), bytes=True)[:, :3]
FONT = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 12)


@dataclass(frozen=True)
class Run:
    """One crop's trajectory, ready to be drawn.

    Attributes:
        frames: x_0 ... x_T, float16 [T + 1, C, c, c] in [0, 1].
        reconstruction_energy, distance: L_r and |x_t - x_0|_1, [T + 1].
        lam: the distance's weight in the energy.
        mask: bool [c, c].
        stop_at: energy under which the crop moves no more; 0: never.
    """

    frames: np.ndarray
    reconstruction_energy: np.ndarray
    distance: np.ndarray
    lam: float
    mask: np.ndarray
    stop_at: float

    def __len__(self) -> int:
        return len(self.frames)


class Sheet:
    """A run as one picture: image, projection, change, and the energy with a marker at the iteration.

    What does not move is drawn once, so that a step of the play bar costs a few milliseconds.
    """

    def __init__(self, run: Run, caption: str) -> None:
        self.run = run
        self.corners = [(x, y) for y in (HEAD, TILE + 2 * HEAD + GAP) for x in (0, TILE + GAP)]
        change = np.abs(run.frames[-1].astype(np.float32) - run.frames[0].astype(np.float32)).mean(0)
        self.white = max(float(np.quantile(change, 0.999)), 1 / 255)
        self.base = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self.edge = _edge(_enlarged(run.mask))
        curve, self.rail, self.span = _energy_curve(run)
        self.base.paste(curve, (self.corners[3][0], self.corners[3][1] - HEAD))
        self._title(self.base, 0, "image x₀")
        self._title(self.base, 2, f"change |xₜ − x₀|, white: {self.white:.2f}")
        ImageDraw.Draw(self.base).text((2, self.base.height - 16), caption, "#666666", FONT)

    def draw(self, t: int, *, outline: bool = True) -> Image.Image:
        """The sheet at iteration t, with or without the defect's border."""
        sheet = self.base.copy()
        x_0, x_t = (_grey_or_rgb(self.run.frames[i]) for i in (0, t))
        change = np.abs(self.run.frames[t].astype(np.float32) - self.run.frames[0].astype(np.float32)).mean(0)
        heat = MAGMA[(change * (255 / self.white)).clip(0, 255).astype(np.uint8)]
        for corner, pixels, outlined in zip(self.corners, (x_0, x_t, heat), (True, False, True), strict=False):
            tile = np.asarray(Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.NEAREST))
            if outline and outlined:
                tile = np.where(self.edge[..., None], np.uint8(OUTLINE), tile)
            sheet.paste(Image.fromarray(tile), corner)
        self._title(sheet, 1, f"projection xₜ, t = {t}")
        left, top = self.corners[3][0], self.corners[3][1] - HEAD
        x = left + round(self.rail[0] + (self.rail[1] - self.rail[0]) * t / max(len(self.run) - 1, 1))
        ImageDraw.Draw(sheet).line([(x, top + self.span[0]), (x, top + self.span[1])], "#D55E00", 2)
        return sheet

    def jpeg(self, t: int, *, outline: bool = True) -> bytes:
        """`draw`, encoded."""
        buffer = io.BytesIO()
        self.draw(t, outline=outline).save(buffer, "JPEG", quality=80)
        return buffer.getvalue()

    def _title(self, sheet: Image.Image, corner: int, text: str) -> None:
        x, y = self.corners[corner]
        ImageDraw.Draw(sheet).text((x + 2, y - 17), text, "black", FONT)


def thumbnail(image: np.ndarray, mask: np.ndarray, top: int, left: int, side: int) -> bytes:
    """A whole image [C, S, S], uint8, with its defect's border and the crop's frame, as a small JPEG."""
    scale, size = THUMBNAIL / image.shape[-1], (THUMBNAIL, THUMBNAIL)
    small = Image.fromarray(_grey_or_rgb(image)).resize(size, Image.Resampling.BILINEAR)
    border = _edge(np.asarray(Image.fromarray(mask > 0).resize(size, Image.Resampling.NEAREST)))
    small = Image.fromarray(np.where(border[..., None], np.uint8(OUTLINE), np.asarray(small)))
    corners = [round(v * scale) for v in (left, top, left + side, top + side)]
    ImageDraw.Draw(small).rectangle([*corners[:2], *(v - 1 for v in corners[2:])], outline="#56B4E9", width=2)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _grey_or_rgb(image: np.ndarray) -> np.ndarray:
    """[C, H, W], uint8 or in [0, 1] -> uint8 [H, W, 3]."""
    if image.dtype != np.uint8:
        image = (image.astype(np.float32) * 255).round().clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0))


def _enlarged(mask: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(mask).resize((TILE, TILE), Image.Resampling.NEAREST))


def _edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask with a neighbour outside it."""
    inner = np.pad(mask, 1, mode="edge")
    return mask & ~(inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:])


def _energy_curve(run: Run) -> tuple[Image.Image, tuple[float, float], tuple[float, float]]:
    """The energy and its terms over the iterations, and in its pixels the x of first and last, the y of top and bottom."""
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(TILE / 100, (TILE + HEAD) / 100), dpi=100, layout="none")
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0.16, 0.13, 0.78, 0.82))
        last, l_r, paid = len(run) - 1, run.reconstruction_energy, run.lam * run.distance
        style = {"marker": "o"} if last == 0 else {}
        axes.plot(l_r + paid, color="black", label="$E$", **style)
        axes.plot(l_r, color="C0", label="$L_r(x_t)$", **style)
        axes.plot(paid, color="C2", label=r"$\lambda\,|x_t - x_0|_1$", **style)
        if run.stop_at:
            axes.axhline(run.stop_at, color="0.5", ls="--", lw=1, label="stops below")
        axes.set(xlabel="iteration t", xlim=(0, max(last, 1)), ylim=(0, None))
        axes.legend(loc="best")
        canvas.draw()
        (x_0, y_0), (x_1, y_1) = axes.transAxes.transform([(0, 0), (1, 1)])
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return Image.fromarray(pixels.copy()), (x_0, x_1), (pixels.shape[0] - y_1, pixels.shape[0] - y_0)
