"""Records the README's animation from the real page in Chromium: a scratch is painted, and heals under the brush.
Run as ``python page/record.py PAGE.html OUT.gif``.
"""

import argparse
import io
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIDE = 420  # of the animation, pixels
GREYS, ORANGE = 63, (230, 159, 0)  # the page's colours but for a few edges
STILL = 4  # a pixel that has changed by no more of 255 levels stays as it was drawn: that makes the file small
FRAME_MS, HOLD_MS = 90, 1800
SCRATCHES = [[(12, 84), (40, 70), (78, 80), (116, 52)], [(30, 22), (60, 40), (104, 28)]]  # column and row of 128
STEPS = 6  # frames from one point to the next
BRUSH = 2.5


def main() -> None:
    """Record, and write a GIF that begins with its end: a viewer that does not play it shows scratch and repair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="what `python -m vaeproj page` has written")
    parser.add_argument("out", type=Path, help="the GIF")
    arguments = parser.parse_args()
    shots = record(arguments.page.resolve().as_uri())
    *way, last = [np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int) for shot in shots]
    frames = [last]
    for frame in way:
        moved = np.abs(frame - frames[-1]).max(-1, keepdims=True) > STILL
        frames.append(np.where(moved, frame, frames[-1]))
    palette = Image.new("P", (1, 1))
    palette.putpalette([*np.linspace(0, 255, GREYS).round().astype(int).repeat(3).tolist(), *ORANGE])
    pictures = (Image.fromarray(frame.astype(np.uint8)) for frame in frames)
    first, *others = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
    durations = [HOLD_MS, HOLD_MS // 3] + [FRAME_MS] * (len(others) - 1)
    first.save(arguments.out, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)
    print(f"{arguments.out}: {len(durations)} frames, {arguments.out.stat().st_size / 1000:.0f} kB")


def record(address: str) -> list[bytes]:
    """Screenshots of the picture painted on, as PNG files."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": SIDE + 32, "height": 1000}, locale="en-US", color_scheme="light")
        page.goto(f"{address}#wipe=0&radius={BRUSH}")
        page.wait_for_function("document.getElementById('stage').ariaBusy === 'false'")
        page.add_style_tag(content="#invite { display: none }")
        shots = list(paint(page))
        browser.close()
    return shots


def paint(page: Page) -> Iterator[bytes]:
    """The repaired picture; scratches, each healing under the brush; the divider, which shows them left of it."""
    stage = page.locator("#stage")
    yield stage.screenshot()
    for points in SCRATCHES:
        page.mouse.move(*_place(page, points[0]))
        page.mouse.down()
        for start, end in pairwise(points):
            for step in range(1, STEPS + 1):
                at = [a + (b - a) * step / STEPS for a, b in zip(start, end, strict=True)]
                page.mouse.move(*_place(page, at))
                yield stage.screenshot()
        for _ in range(4):
            yield stage.screenshot()
        page.mouse.up()
    page.wait_for_function("document.getElementById('stage').ariaBusy === 'false'")
    page.mouse.move(0, 0)
    for wipe in range(4, 53, 4):
        page.locator("#wipe").fill(str(wipe))
        yield stage.screenshot()


def _place(page: Page, at: list[float] | tuple[float, float]) -> tuple[float, float]:
    box = page.locator("#stage").bounding_box()
    assert box, "the page shows no picture"
    return box["x"] + at[0] / 128 * box["width"], box["y"] + at[1] / 128 * box["height"]


if __name__ == "__main__":
    main()
