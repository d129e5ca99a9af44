"""One crop's trajectory as one picture, drawn with numpy and PIL; matplotlib draws the energy's curve, once a trajectory."""

import io

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from ..animation import levels
from ..figures import MAGMA, OUTLINE, SANS, STYLE
from ..projection import State

TILE, HEAD, GAP, CURVE = 256, 22, 8, 150  # side of a picture, its title, the space between two, height of the curve, pixels
WIDTH, FLOOR = 2 * TILE + GAP, 2 * (HEAD + TILE) + GAP  # of a sheet; where the curve begins
HEIGHT = FLOOR + CURVE + HEAD
CORNERS = [(x, y) for y in (HEAD, TILE + 2 * HEAD + GAP) for x in (0, TILE + GAP)]  # of its four pictures
AXES = (0.08, 0.34, 0.89, 0.63)  # of the curve: left, bottom, width and height as parts of its picture
BAR = (158, 50, 10)  # of the change's colours: left, width and height
THUMBNAIL = 246  # side of the whole image, pixels
FONT = ImageFont.truetype(str(SANS), 14)


class Sheet:
    """A crop's trajectory as one picture. The curve is drawn once: a step of the play bar costs a few milliseconds.

    ``path`` is that of the crop alone, from `projection.trajectory`, ``mask`` the defect's, bool [c, c], ``caption`` one line.
    """

    def __init__(self, path: State, mask: np.ndarray, caption: str) -> None:
        self.frames, self.pictures = (part[:, 0].half().cpu().numpy() for part in (path.x, path.reconstruction))
        self.terms = path.terms[:, 0].cpu().numpy()
        self.white, self.edge = max(float(np.quantile(self._change(-1), 0.999)), 1 / 255), _edge(mask, TILE)
        self.base = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self.base.paste(_energy_curve(self.terms), (0, FLOOR))
        ImageDraw.Draw(self.base).text((2, HEIGHT - 19), caption, "#666666", FONT)

    def draw(self, t: int, *, outline: bool = True, white: float | None = None) -> Image.Image:
        """Image, reconstruction, projection and change, the energy with a marker at iteration t; with or without the defect's
        border. ``white``: the change that is drawn brightest; None: nearly the largest at the end.
        """
        sheet, white = self.base.copy(), white or self.white
        draw = ImageDraw.Draw(sheet)
        heat = MAGMA[(self._change(t) * (255 / white)).clip(0, 255).astype(np.uint8)]
        pictures = (levels(self.frames[0]), levels(self.pictures[t]), levels(self.frames[t]), heat)
        titles = ("image x₀", "reconstruction f(xₜ)", f"projection xₜ, t = {t}", "change |xₜ − x₀|")
        for (x, y), pixels, title in zip(CORNERS, pictures, titles, strict=True):
            draw.text((x + 2, y - 19), title, "black", FONT)
            sheet.paste(Image.fromarray(pixels).resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
        for corner in (CORNERS[0], CORNERS[3]) if outline else ():
            sheet.paste(OUTLINE, corner, self.edge)
        x, y = CORNERS[3][0] + BAR[0], CORNERS[3][1] - 19
        sheet.paste(Image.fromarray(MAGMA[None]).resize(BAR[1:]), (x, y + 4))
        draw.text((x - 13, y), "0", "black", FONT)
        draw.text((x + BAR[1] + 4, y), f"{white:.2g}", "black", FONT)
        left, bottom, width, height = AXES
        x = round(WIDTH * (left + width * t / max(len(self.frames) - 1, 1)))
        low, high = (FLOOR + CURVE * (1 - part) for part in (bottom, bottom + height))
        draw.line([(x, high), (x, low)], "#D55E00", 2)
        return sheet

    def _change(self, t: int) -> np.ndarray:
        """|x_t - x_0|, the mean over channels, [c, c]."""
        return np.abs(np.subtract(self.frames[t], self.frames[0], dtype=np.float32)).mean(0)


def thumbnail(image: np.ndarray, mask: np.ndarray) -> Image.Image:
    """A whole image [C, S, S], uint8, small, with its defect's border."""
    whole = Image.fromarray(levels(image / 255)).convert("RGB")
    small = whole.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    small.paste(OUTLINE, (0, 0), _edge(mask > 0, THUMBNAIL))
    return small


def jpeg(picture: Image.Image, quality: int = 80) -> bytes:
    """A picture as a JPEG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _edge(mask: np.ndarray, side: int) -> Image.Image:
    """Pixels with a neighbour outside the mask, once it is of ``side`` pixels."""
    large = np.asarray(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))
    return Image.fromarray(large & ~binary_erosion(large, border_value=1))


def _energy_curve(terms: np.ndarray) -> Image.Image:
    """The energy and its two terms [T + 1, 2] over the iterations."""
    last, curves = len(terms) - 1, np.column_stack([terms.sum(1), terms])
    looks = {"$E$": "black", "reconstruction": "C0", "distance": "C2"}
    with matplotlib.style.context([STYLE, {"figure.constrained_layout.use": False}]):
        canvas = FigureCanvasAgg(Figure(figsize=(WIDTH / 125, CURVE / 125), dpi=125))
        axes = canvas.figure.add_axes(AXES)
        for curve, (label, color) in zip(curves.T, looks.items(), strict=True):
            axes.plot(curve, color=color, label=label, marker=None if last else "o")
        top = 1.4 * max(curves.max(), 1e-6)  # room for the legend
        axes.set(xlabel="iteration t", xlim=(0, max(last, 1)), ylim=(0, top))
        axes.locator_params("x", integer=True)
        axes.legend(loc="upper right", ncols=3)
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
