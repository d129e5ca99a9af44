"""The animation lasts as long as it should, and its player needs nothing but itself."""

import json
import re

import numpy as np
from PIL import Image

from vaeproj.animation import FRAME_MS, HOLD_MS, save_animation


def test_animation_lasts_as_long_as_it_should_and_plays_offline(tmp_path):
    frames = np.linspace(0, 1, 30)[:, None, None, None] * np.ones((30, 1, 16, 16))
    gif, webp, html = save_animation(frames, frames[0], frames[-1], tmp_path / "projection")
    text = html.read_text()
    shown = len(json.loads(re.search(r"const data = (\{.*?\});", text).group(1))["t"])
    for path in (gif, webp):
        # Identical neighbours may be merged, so the total counts and not the number of frames.
        with Image.open(path) as picture:
            durations = []
            for i in range(picture.n_frames):
                picture.seek(i)
                picture.load()  # WebP tells a frame's duration only once it is decoded
                durations.append(picture.info["duration"])
            assert picture.info["loop"] == 0
        assert abs(sum(durations) - (FRAME_MS * (shown - 1) + HOLD_MS)) <= 10 * len(durations), path
    assert "http" not in text
    assert text.count("data:image/webp;base64,") == shown
