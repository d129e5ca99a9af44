"""The projection under way: a GIF for slides, a WebP for the web, and a player to scrub and wipe by hand."""

import base64
import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .figures import MAGMA, SANS, displayable

PLAYER = Path(__file__).with_name("player.html")
FRAME_MS, START_MS, HOLD_MS = 90, 600, 1800  # an iteration, x_0, and x_T: the still that the loop begins with
MOST_FRAMES = 20
PANEL, HEAD, GAP, BAR = 256, 34, 12, 28  # side of a picture, its title, the space between two, width of the colour bar, pixels
CORNERS = [(GAP + x * (PANEL + GAP), HEAD + y * (PANEL + HEAD + GAP)) for y in range(2) for x in range(3)]
FONT = ImageFont.truetype(str(SANS), 22)  # read at half its size, too


def save_animation(frames: np.ndarray, picture: np.ndarray, stem: Path, truth: np.ndarray | None = None) -> list[Path]:
    """The projection under way as GIF, WebP and an HTML player, ``stem`` with three endings, which are returned.

    ``frames`` x_0 ... x_T, [T + 1, C, c, c] in [0, 1], T > 0; ``picture`` f(x_0) and ``truth``, the scene without its defect if
    somebody knows it, [C, c, c]. The loop begins with its end, x_T: a viewer that does not play it shows the result.
    """
    # Every iteration of a short descent; of a long one the early ones, where most of it happens, more densely.
    spaced = np.unique(np.geomspace(1, len(frames), MOST_FRAMES).round().astype(int) - 1)
    shown = (spaced if len(frames) > MOST_FRAMES else np.arange(len(frames))).tolist()
    x, f = np.stack([levels(frames[t]) for t in shown]), levels(picture)
    clean = None if truth is None else levels(truth)
    # What has moved by less than a step of the palette waits: unseen, it would make each frame larger.
    steady = np.stack(list(accumulate(x, lambda seen, x_t: np.where(np.abs(x_t.astype(int) - seen) > 2, x_t, seen))))
    change = np.abs(steady.astype(np.float32) - x[0]).reshape(*x.shape[:3], -1).mean(-1)  # grey levels of 255
    white = max(float(np.quantile(change, 0.999)), 1.0)  # a few hot pixels must not darken the rest
    heat = MAGMA[(change * (255 / white)).clip(0, 255).astype(np.uint8)]
    sheets = [_sheet([x[0], x_t, clean, f, hot], t, white) for x_t, hot, t in zip(steady, heat, shown, strict=True)]
    # One palette for all, 64 colours of the pictures and 32 of the bar: then a frame stores only what moved.
    palette = Image.new("P", (1, 1))
    pictures = sheets[-1].crop((0, 0, sheets[-1].width, HEAD + PANEL)).quantize(64)
    palette.putpalette([*(pictures.getpalette() or ()), *MAGMA[::8].ravel().tolist()])
    *path, end = (sheet.quantize(palette=palette, dither=Image.Dither.NONE) for sheet in sheets)
    durations = [HOLD_MS, START_MS] + [FRAME_MS] * (len(shown) - 2)
    gif, webp, html = (stem.with_suffix(suffix) for suffix in (".gif", ".webp", ".html"))
    end.save(gif, save_all=True, append_images=path, duration=durations, loop=0)
    # Lossy WebP leaves out small moves until they add up to a visible error; without loss these frames are smaller anyway.
    end.save(webp, save_all=True, append_images=path, duration=durations, loop=0, lossless=True, minimize_size=True)
    # The player adds up differences modulo 256: without loss, yet small, since little moves from one to the next.
    moves = np.diff(x, axis=0, prepend=np.zeros_like(x[:1]))
    data = {"t": shown, "ms": FRAME_MS, "white": white, "side": x.shape[1], "moves": data_url(np.concatenate(moves))}
    data |= {"f": data_url(f), "truth": "" if clean is None else data_url(clean), "magma": data_url(MAGMA[None])}
    html.write_text(PLAYER.read_text(encoding="utf-8").replace("__DATA__", json.dumps(data)), encoding="utf-8")
    return [gif, webp, html]


def levels(image: np.ndarray) -> np.ndarray:
    """A picture [C, H, W] in [0, 1] as PIL takes it: uint8 [H, W], or [H, W, 3]."""
    return (displayable(image).clip(0, 1) * 255).round().astype(np.uint8)


def _sheet(pictures: Sequence[np.ndarray | None], t: int, white: float) -> Image.Image:
    """The pictures of `CORNERS` at iteration t under their titles, and the scale of the change."""
    titles = ("test image x₀", f"projection xₜ, t = {t}", "clean truth", "reconstruction f(x₀)", "change |xₜ − x₀|")
    width = CORNERS[2][0] + (BAR + 132 if pictures[2] is None else PANEL) + GAP
    sheet = Image.new("RGB", (width, CORNERS[-1][1] + PANEL + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for (x, y), pixels, title in zip(CORNERS[:-1], pictures, titles, strict=True):
        if pixels is not None:  # box filtering leaves enlarged pixels as they are
            sheet.paste(Image.fromarray(pixels).resize((PANEL, PANEL), Image.Resampling.BOX), (x, y))
            draw.text((x, y - 9), title, "black", FONT, "ls")
    x, y = CORNERS[-1]
    sheet.paste(Image.fromarray(MAGMA[::-1, None]).resize((BAR, PANEL)), (x, y))
    marks = ((f"≥ {white / 255:.2f}", 0, "la"), ("grey level\n(0 to 1)", PANEL / 2, "lm"), ("0", PANEL, "ls"))
    for text, height, anchor in marks:
        draw.text((x + BAR + 8, y + height), text, "black", FONT, anchor)
    return sheet


def data_url(pixels: np.ndarray) -> str:
    """A picture, uint8 [H, W] or [H, W, 3], as a PNG that a page holds in itself."""
    png = iio.imwrite("<bytes>", pixels, extension=".png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
