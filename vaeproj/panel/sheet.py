"""One crop's trajectory as one picture, drawn with numpy and PIL; matplotlib draws the energy's curve, once a trajectory."""

import io

import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from ..figures import MAGMA, SANS, STYLE
from ..projection import State

TILE, HEAD, GAP, CURVE = 256, 22, 8, 150  # side of a picture, its title, the space between two, height of the curve, pixels
WIDTH, FLOOR = 2 * TILE + GAP, 2 * (HEAD + TILE) + GAP  # of a sheet; where the curve begins
HEIGHT = FLOOR + CURVE + HEAD
CORNERS = [(x, y) for y in (HEAD, TILE + 2 * HEAD + GAP) for x in (0, TILE + GAP)]  # of its four pictures
AXES = (0.08, 0.34, 0.89, 0.63)  # of the curve: left, bottom, width and height as parts of its picture
BAR = (158, 50, 10)  # of the change's colours: left, width and height
THUMBNAIL = 246  # side of the whole image, pixels
OUTLINE = (230, 159, 0)  # of masks, as in the figures
FONT = ImageFont.truetype(str(SANS), 14)


class Sheet:
    """A crop's trajectory as one picture. What does not move is drawn once: a step of the play bar costs a few milliseconds.

    Args:
        path: of this crop alone, from `projection.trajectory`.
        mask: of the defect, bool [c, c].
        caption: one line for under the picture.
    """

    def __init__(self, path: State, mask: np.ndarray, caption: str) -> None:
        self.frames, self.pictures, self.terms = (
            part[:, 0].cpu().numpy() for part in (path.x.half(), path.reconstruction.half(), path.terms)
        )
        self.white, self.edge = max(float(np.quantile(self._change(-1), 0.999)), 1 / 255), _edge(mask, TILE)
        self.base = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self.base.paste(_energy_curve(*self.terms.T), (0, FLOOR))
        bar = Image.fromarray(MAGMA[None]).resize(BAR[1:])
        self.base.paste(bar, (CORNERS[3][0] + BAR[0], CORNERS[3][1] - 15))
        for corner, title in enumerate(("image x₀", "reconstruction f(xₜ)", "", "change |xₜ − x₀|")):
            _title(self.base, corner, title)
        _title(self.base, 3, "0", BAR[0] - 13)
        ImageDraw.Draw(self.base).text((2, HEIGHT - 19), caption, "#666666", FONT)

    def draw(self, t: int, *, outline: bool = True, white: float | None = None) -> Image.Image:
        """Image, reconstruction, projection and change, the energy with a marker at iteration t; with or without the defect's
        border. ``white``: the change that is drawn brightest; None: nearly the largest at the end.
        """
        sheet, white = self.base.copy(), white or self.white
        heat = MAGMA[(self._change(t) * (255 / white)).clip(0, 255).astype(np.uint8)].transpose(2, 0, 1)
        for i, pixels in enumerate((self.frames[0], self.pictures[t], self.frames[t], heat)):
            sheet.paste(_picture(pixels, TILE), CORNERS[i])
            if outline and i in (0, 3):
                sheet.paste(OUTLINE, CORNERS[i], self.edge)
        _title(sheet, 2, f"projection xₜ, t = {t}")
        _title(sheet, 3, f"{white:.2g}", BAR[0] + BAR[1] + 4)
        left, bottom, width, height = AXES
        x = round(WIDTH * (left + width * t / max(len(self.frames) - 1, 1)))
        low, high = (FLOOR + CURVE * (1 - part) for part in (bottom, bottom + height))
        ImageDraw.Draw(sheet).line([(x, high), (x, low)], "#D55E00", 2)
        return sheet

    def _change(self, t: int) -> np.ndarray:
        """|x_t - x_0|, the mean over channels, [c, c]."""
        return np.abs(self.frames[t].astype(np.float32) - self.frames[0].astype(np.float32)).mean(0)


def thumbnail(image: np.ndarray, mask: np.ndarray) -> Image.Image:
    """A whole image [C, S, S], uint8, small, with its defect's border."""
    small = _picture(image, THUMBNAIL, Image.Resampling.BILINEAR)
    small.paste(OUTLINE, (0, 0), _edge(mask > 0, THUMBNAIL))
    return small


def jpeg(picture: Image.Image, quality: int = 80) -> bytes:
    """A picture as a JPEG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
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


def _title(sheet: Image.Image, corner: int, text: str, x: int = 2) -> None:
    ImageDraw.Draw(sheet).text((CORNERS[corner][0] + x, CORNERS[corner][1] - 19), text, "black", FONT)


def _energy_curve(reconstruction: np.ndarray, distance: np.ndarray) -> Image.Image:
    """The energy and its terms over the iterations."""
    last = len(distance) - 1
    terms = {"$E$": reconstruction + distance, "reconstruction": reconstruction, "distance": distance}
    with matplotlib.style.context([STYLE, {"figure.constrained_layout.use": False}]):
        canvas = FigureCanvasAgg(Figure(figsize=(WIDTH / 125, CURVE / 125), dpi=125))
        axes = canvas.figure.add_axes(AXES)
        for (label, values), color in zip(terms.items(), ("black", "C0", "C2"), strict=True):
            axes.plot(values, color=color, label=label, marker=None if last else "o")
        axes.set(
            xlabel="iteration t", xlim=(0, max(last, 1)), ylim=(0, 1.4 * max(terms["$E$"].max(), 1e-6))
        )  # room for the legend
        axes.locator_params("x", integer=True)
        axes.legend(loc="upper right", ncols=3)
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
