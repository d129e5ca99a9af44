"""The projection under way, as a GIF for slides, a WebP for the web, and a player for one's own hand."""

import base64
import json
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw

from .figures import displayable

PLAYER = Path(__file__).with_name("player.html")
FRAME_MS = 60
MOST_FRAMES = 36
PANEL = 256  # side of one of the three pictures, about, pixels
HOLD_MS = 1200  # the last frame, before it starts again


def save_animation(frames: np.ndarray, image: np.ndarray, picture: np.ndarray, stem: Path) -> list[Path]:
    """The projection under way as GIF, WebP and an HTML player with a play bar, beside the image and its reconstruction.

    Args:
        frames: x_0 ... x_T, [T + 1, C, c, c] in [0, 1], T > 0.
        image, picture: x_0 and f(x_0), [C, c, c].
        stem: path without ending of the three files, which are returned.
    """
    # Every iteration of a short descent; of a long one the early ones, where most of it happens, more densely.
    spaced = np.unique(np.geomspace(1, len(frames), MOST_FRAMES).round().astype(int) - 1)
    shown = (spaced if len(frames) > MOST_FRAMES else np.arange(len(frames))).tolist()
    moving = np.stack([_panel(image, picture, frames[t], f"projection, t = {t}") for t in shown])
    durations = [FRAME_MS] * (len(shown) - 1) + [HOLD_MS]
    gif, webp, html = (stem.with_suffix(suffix) for suffix in (".gif", ".webp", ".html"))
    # A GIF packs even areas well and noise badly: 64 levels look the same and take well under half the bytes.
    iio.imwrite(gif, (moving[..., 0] if len(image) == 1 else moving) & 0xFC, duration=durations, loop=0)
    iio.imwrite(webp, moving, duration=durations, loop=0, quality=80)
    # The player holds its frames, so that it plays offline.
    encoded = [base64.b64encode(iio.imwrite("<bytes>", pixels, extension=".webp", quality=85)).decode() for pixels in moving]
    data = json.dumps({"frames": [f"data:image/webp;base64,{text}" for text in encoded], "t": shown})
    player = PLAYER.read_text().replace("__LAST__", str(len(shown) - 1)).replace("__MS__", str(FRAME_MS))
    html.write_text(player.replace("__DATA__", data))
    return [gif, webp, html]


def _panel(image: np.ndarray, picture: np.ndarray, frame: np.ndarray, caption: str) -> np.ndarray:
    """uint8 [h, w, 3]: three pictures side by side, a caption over each."""
    levels = [(displayable(a).clip(0, 1) * 255).round().astype(np.uint8) for a in (image, picture, frame)]
    side, gap, head = len(levels[0]) * max(1, PANEL // len(levels[0])), 4, 18
    sheet = Image.new("RGB", (3 * side + 2 * gap, side + head), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (pixels, text) in enumerate(zip(levels, ("test image", "VAE reconstruction", caption), strict=True)):
        left = i * (side + gap)
        sheet.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (left, head))
        draw.text((left + 2, 3), text, fill="black")
    return np.asarray(sheet)
