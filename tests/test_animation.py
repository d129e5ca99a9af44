"""The animation begins with its end and has one colour scale; its player needs nothing but itself, and obeys hand and mouse."""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from vaeproj.animation import BAR, CORNERS, FRAME_MS, HOLD_MS, MAGMA, PANEL, START_MS, save_animation

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LAST, SIDE, DARK, BRIGHT = 51, 16, 51, 204  # the right half goes from dark to bright, the left half stays dark


def animation(folder, channels=1, truth=True):
    frames = np.full((LAST + 1, channels, SIDE, SIDE), DARK / 255)
    frames[..., SIDE // 2 :] += np.linspace(0, (BRIGHT - DARK) / 255, LAST + 1)[:, None, None, None]
    return frames, save_animation(frames, frames[0], folder / "projection", frames[0] if truth else None)


def data_of(html):
    return json.loads(re.search(r"const data = (\{.*?\});", html.read_text()).group(1))


def pixels_of(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


@pytest.mark.parametrize("kind", [0, 1])
def test_loop_begins_with_its_end_and_keeps_one_colour_scale(tmp_path, kind):
    _, files = animation(tmp_path)
    shown = data_of(files[2])["t"]
    assert shown[0] == 0
    assert shown[-1] == LAST
    (x, y), (change_x, change_y), (bar_x, bar_y) = (CORNERS[i] for i in (1, 4, 5))
    durations = []
    with Image.open(files[kind]) as picture:
        assert picture.info["loop"] == 0
        assert picture.n_frames == len(shown)
        for i, t in enumerate([shown[-1], *shown[:-1]]):
            picture.seek(i)
            sheet = np.asarray(picture.convert("RGB")).astype(int)
            durations.append(picture.info["duration"])
            level = DARK + (BRIGHT - DARK) * t / LAST
            assert np.abs(sheet[y + PANEL // 2, x + 3 * PANEL // 4] - level).max() <= 6
            heat = sheet[change_y + PANEL // 2, [change_x + PANEL // 4, change_x + 3 * PANEL // 4]]
            assert np.abs(heat - MAGMA[[0, 255 * t // LAST]]).max() <= 24  # neighbours of the bar's 32 colours
            bar = sheet[bar_y + 4 : bar_y + PANEL - 4, bar_x + BAR // 2]
            assert np.abs(bar - MAGMA[::-1][4:-4]).max() <= 24
    assert durations == [HOLD_MS, START_MS] + [FRAME_MS] * (len(shown) - 2)


def test_slow_moves_add_up(tmp_path):
    frames = np.full((12, 1, SIDE, SIDE), DARK / 255) + np.arange(12)[:, None, None, None] / 255  # a level a frame
    gif, *_ = save_animation(frames, frames[0], tmp_path / "slow")
    (x, y), seen = CORNERS[1], []
    with Image.open(gif) as picture:
        for i in [*range(1, picture.n_frames), 0]:
            picture.seek(i)
            seen.append(int(np.asarray(picture.convert("L"))[y + PANEL // 2, x + PANEL // 2]))
    late = DARK + np.arange(12) - np.array(seen)
    assert np.abs(late).max() <= 2 + 3  # what waits, and what the palette rounds
    assert seen == sorted(seen)
    assert len(set(seen)) <= 4  # every third frame moves, the others store nothing


@pytest.mark.parametrize("channels", [1, 3])
def test_player_holds_every_frame_without_loss(tmp_path, channels):
    frames, (_, _, html) = animation(tmp_path, channels)
    data = data_of(html)
    moves = pixels_of(data["moves"]).reshape(len(data["t"]), SIDE, SIDE, channels)
    expected = (frames[data["t"]] * 255).round().transpose(0, 2, 3, 1)
    assert np.array_equal(np.cumsum(moves, axis=0, dtype=np.uint8), expected)
    assert np.array_equal(pixels_of(data["magma"])[0], MAGMA)
    assert "http" not in html.read_text()


def test_unknown_truth_is_left_out(tmp_path):
    known, unknown = (animation(tmp_path, truth=truth)[1] for truth in (True, False))
    assert data_of(unknown[2])["truth"] == ""
    assert known == unknown  # the same three names
    with Image.open(unknown[0]) as picture:
        assert picture.width < CORNERS[2][0] + PANEL


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not on the PATH")
def test_player_scrubs_wipes_and_plays(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    _, (_, _, html) = animation(tmp_path, channels=3, truth=False)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 420, "height": 900}, reduced_motion="reduce")
        errors = []
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(html.as_uri())
        shown, stage, scrub = page.locator("#t"), page.locator("#stage"), page.locator("#scrub")

        def drag(target, to):
            box = target.bounding_box()
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            page.mouse.down()
            page.mouse.move(box["x"] + to * box["width"], box["y"] + box["height"] / 2)
            page.mouse.up()

        def seen(target):
            """Pixels a quarter and three quarters along the target's middle, as they are on the screen."""
            picture = np.asarray(Image.open(io.BytesIO(target.screenshot())).convert("RGB")).astype(int)
            height, width = picture.shape[:2]
            return picture[height // 2, [width // 4, 3 * width // 4]]

        playwright.expect(shown).to_have_text(f"t = {LAST}")  # it opens with the result, and does not play by itself
        assert page.locator("#truth").is_hidden()
        assert np.abs(seen(stage) - [[DARK] * 3, [BRIGHT] * 3]).max() <= 1
        assert np.abs(seen(page.locator("#change")) - MAGMA[[0, 255]]).max() <= 1
        drag(stage, 0.9)
        assert np.abs(seen(stage) - DARK).max() <= 1  # the wipe shows the test image now
        page.locator("#wipe").press("Home")
        assert np.abs(seen(stage)[1] - BRIGHT).max() <= 1
        drag(scrub, 0)
        playwright.expect(shown).to_have_text("t = 0")
        assert np.abs(seen(stage) - DARK).max() <= 1
        assert np.abs(seen(page.locator("#change")) - MAGMA[0]).max() <= 1
        page.get_by_role("button", name="Play").click()
        playwright.expect(shown).not_to_have_text("t = 0")
        page.get_by_role("button", name="Pause").click()
        assert shown.inner_text() not in ("t = 0", f"t = {LAST}")
        page.emulate_media(reduced_motion="no-preference")
        page.reload()
        playwright.expect(page.get_by_role("button", name="Pause")).to_be_visible()  # it plays by itself
        playwright.expect(shown).to_have_text(f"t = {LAST}", timeout=20_000)
        browser.close()
    assert not errors
