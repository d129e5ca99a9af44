"""One crop's trajectory as one picture, drawn with numpy and PIL; matplotlib draws the energy's curve, once a trajectory."""

import io
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from ..figures import CHANGE, STYLE
from ..projection import State

TILE, HEAD, GAP = 256, 20, 8  # side of a picture, its title, and the space between two, pixels
WIDTH, HEIGHT = 2 * TILE + GAP, 2 * (TILE + HEAD) + GAP + HEAD  # of a sheet
CORNERS = [(x, y) for y in (HEAD, TILE + 2 * HEAD + GAP) for x in (0, TILE + GAP)]  # of its four pictures
AXES = (0.16, 0.13, 0.78, 0.82)  # of the curve: left, bottom, width and height as parts of its picture, title included
THUMBNAIL = 240  # side of the whole image, pixels
OUTLINE = (230, 159, 0)  # of masks, as in the figures
MAGMA = matplotlib.colormaps[CHANGE](np.arange(256), bytes=True)[:, :3]
FONT = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 12)


class Sheet:
    """A crop's trajectory as one picture. What does not move is drawn once: a step of the play bar costs a few milliseconds.

    Args:
        path: of this crop alone, from `projection.trajectory`.
        mask: of the defect, bool [c, c].
        caption: one line for under the picture.
    """

    def __init__(self, path: State, mask: np.ndarray, caption: str) -> None:
        self.frames, self.terms = (part[:, 0].cpu().numpy() for part in (path.x.half(), path.terms))
        self.white, self.edge = max(float(np.quantile(self._change(-1), 0.999)), 1 / 255), _edge(mask, TILE)
        self.base = Image.new("RGB", (WIDTH, HEIGHT), "white")
        curve = _energy_curve(*self.terms.T)
        self.base.paste(curve, (CORNERS[3][0], CORNERS[3][1] - HEAD))
        _title(self.base, 0, "image x₀")
        _title(self.base, 2, f"change |xₜ − x₀|, white: {self.white:.2f}")
        ImageDraw.Draw(self.base).text((2, HEIGHT - 16), caption, "#666666", FONT)

    def draw(self, t: int, *, outline: bool = True) -> Image.Image:
        """Image, projection, change, and the energy with a marker at iteration t; with or without the defect's border."""
        sheet = self.base.copy()
        heat = MAGMA[(self._change(t) * (255 / self.white)).clip(0, 255).astype(np.uint8)].transpose(2, 0, 1)
        for i, pixels in enumerate((self.frames[0], self.frames[t], heat)):
            sheet.paste(_picture(pixels, TILE), CORNERS[i])
            if outline and i != 1:
                sheet.paste(OUTLINE, CORNERS[i], self.edge)
        _title(sheet, 1, f"projection xₜ, t = {t}")
        left, bottom, width, height = AXES
        x = CORNERS[3][0] + round(TILE * (left + width * t / max(len(self.frames) - 1, 1)))
        low, high = (CORNERS[3][1] + TILE - part * (TILE + HEAD) for part in (bottom, bottom + height))
        ImageDraw.Draw(sheet).line([(x, high), (x, low)], "#D55E00", 2)
        return sheet

    def _change(self, t: int) -> np.ndarray:
        """|x_t - x_0|, the mean over channels, [c, c]."""
        return np.abs(self.frames[t].astype(np.float32) - self.frames[0].astype(np.float32)).mean(0)


def thumbnail(image: np.ndarray, mask: np.ndarray, top: int, left: int, side: int) -> Image.Image:
    """A whole image [C, S, S], uint8, small, with its defect's border and the crop's frame."""
    small = _picture(image, THUMBNAIL, Image.Resampling.BILINEAR)
    small.paste(OUTLINE, (0, 0), _edge(mask > 0, THUMBNAIL))
    x_0, y_0, x_1, y_1 = (round(v * THUMBNAIL / image.shape[-1]) for v in (left, top, left + side, top + side))
    ImageDraw.Draw(small).rectangle([x_0, y_0, x_1 - 1, y_1 - 1], outline="#56B4E9", width=2)
    return small


def jpeg(picture: Image.Image, quality: int = 80) -> bytes:
    """A picture as a JPEG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _picture(image: np.ndarray, side: int, resampling: Image.Resampling = Image.Resampling.NEAREST) -> Image.Image:
    """[C, H, W], grey or RGB, uint8 or in [0, 1], as a picture of ``side`` pixels."""
    if image.dtype != np.uint8:
        image = (image.astype(np.float32) * 255).round().clip(0, 255).astype(np.uint8)
    rgb = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(rgb)).resize((side, side), resampling)


def _edge(mask: np.ndarray, side: int) -> Image.Image:
    """Pixels with a neighbour outside the mask, once it is of ``side`` pixels."""
    large = np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))
    return Image.fromarray(large & ~binary_erosion(large, border_value=1))


def _title(sheet: Image.Image, corner: int, text: str) -> None:
    ImageDraw.Draw(sheet).text((CORNERS[corner][0] + 2, CORNERS[corner][1] - 17), text, "black", FONT)


def _energy_curve(reconstruction: np.ndarray, distance: np.ndarray) -> Image.Image:
    """The energy and its terms over the iterations."""
    last = len(distance) - 1
    terms = {"$E$": reconstruction + distance, "reconstruction": reconstruction, "distance": distance}
    with matplotlib.style.context([STYLE, {"figure.constrained_layout.use": False}]):
        canvas = FigureCanvasAgg(Figure(figsize=(TILE / 100, (TILE + HEAD) / 100), dpi=100))
        axes = canvas.figure.add_axes(AXES)
        for (label, values), color in zip(terms.items(), ("black", "C0", "C2"), strict=True):
            axes.plot(values, color=color, label=label, marker=None if last else "o")
        axes.set(xlabel="iteration t", xlim=(0, max(last, 1)), ylim=(0, None))
        axes.legend(loc="best")
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
