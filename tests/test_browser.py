"""The panel in JupyterLab in Chromium: a person opens notebook 04, runs it, drags the crop and the wipe, moves sliders."""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from PIL import Image

from vaeproj.config import PROJECT_ROOT
from vaeproj.panel.sheet import BAR, CORNERS, HEAD, HEIGHT, TILE, WIDTH

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SHOTS = PROJECT_ROOT / "build" / "browser"
TOKEN = "vaeproj"
RUN_LIMIT = 400  # seconds until the panel is there, on a busy machine
LIMIT = 60  # seconds for anything else

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not on the PATH"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """Notebook 04 with preset ci, in a folder of its own, as far as its panel."""
    path = tmp_path / "notebooks" / "04_iterative_projection.ipynb"
    path.parent.mkdir()
    parameters = {"preset": "ci", "device": "cpu", "out": str(tmp_path / "out")}
    papermill.execute_notebook(
        str(PROJECT_ROOT / "notebooks" / path.name), str(path), parameters, prepare_only=True, progress_bar=False
    )
    contents = nbformat.read(path, as_version=4)
    for cell in contents.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    panel = next(i for i, cell in enumerate(contents.cells) if cell.cell_type == "code" and "explore(ws" in cell.source)
    del contents.cells[panel + 1 :]
    nbformat.write(contents, path)
    return path


@pytest.fixture
def lab(notebook: Path, tmp_path: Path) -> Iterator[str]:
    """The address of the notebook in a JupyterLab of its own, which ends with the test."""
    settings, runtime, log = tmp_path / "settings", tmp_path / "runtime", tmp_path / "lab.log"
    for plugin, values in {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight stay in the page
    }.items():
        file = settings / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "PYTHONPATH": str(PROJECT_ROOT),
        "OMP_NUM_THREADS": "1",  # small tiles: threads would wait for one another
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root"),
        *(f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={notebook.parent}"),
    ]
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, cwd=notebook.parent, stdout=output, stderr=output)
    try:
        yield f"{_address(server, runtime, log)}lab/tree/{notebook.name}?token={TOKEN}"
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):  # the first lets it end its kernels
            server.send_signal(sign)
            try:
                server.wait(20)
                break
            except subprocess.TimeoutExpired:
                continue


def _address(server: subprocess.Popen[bytes], runtime: Path, log: Path) -> str:
    """Waits until the server says where it listens."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end and server.poll() is None:
        for file in runtime.glob("jpserver-*.json"):
            if text := file.read_text():
                return json.loads(text)["url"]
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start: {log.read_text()[-2000:]}")


@contextmanager
def page_at(address: str) -> Iterator["playwright.Page"]:
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=[*quiet, "--disable-component-update", "--no-first-run"]
        )
        try:
            page = browser.new_page(viewport={"width": 1440, "height": 1000}, has_touch=True)
            page.set_default_timeout(LIMIT * 1000)
            page.goto(address)
            yield page
        finally:
            browser.close()


def until(change: Callable[[], bool], what: str, limit: float = LIMIT) -> None:
    end = time.monotonic() + limit
    while not change():
        assert time.monotonic() < end, f"{what} did not happen within {limit} s"
        time.sleep(0.1)


def shoot(page: "playwright.Page", name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png")
    if page.locator(".vaeproj-panel").count():
        page.locator(".vaeproj-panel").first.screenshot(path=SHOTS / f"{name}-panel.png")


def pixels(picture: "playwright.Locator", corner: tuple[int, int], width: int = TILE, height: int = TILE) -> np.ndarray:
    """A part of the sheet as it is on the screen, grey, in the sheet's own pixels."""
    shot = Image.open(io.BytesIO(picture.screenshot())).convert("L").resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR)
    return np.asarray(shot, dtype=float)[corner[1] : corner[1] + height, corner[0] : corner[0] + width]


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal but for the screen's scaling and JPEG."""
    return bool(np.abs(a - b).mean() < 3)


def like(crop: "playwright.Locator", frame: "playwright.Locator", image: np.ndarray) -> float:
    """Correlation of what lies in the frame on the thumbnail with a picture of the sheet."""
    whole, place = crop.bounding_box(), frame.bounding_box()
    x, y, side = place["x"] - whole["x"], place["y"] - whole["y"], place["width"]
    inside = Image.open(io.BytesIO(crop.screenshot())).convert("L").crop((x + 3, y + 3, x + side - 3, y + side - 3))
    border = round(3 * TILE / side)
    pair = inside, Image.fromarray(image[border:-border, border:-border].astype(np.uint8))
    return float(np.corrcoef(*(np.ravel(part.resize((16, 16), Image.Resampling.BOX)) for part in pair))[0, 1])


def drag(page: "playwright.Page", box: "playwright.Locator", dx: float, dy: float = 0, *, touch: bool = False) -> None:
    """From the middle of the box, by so many pixels of the screen."""
    place = box.bounding_box()
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    way = [(x, y), (x + dx / 2, y + dy / 2), (x + dx, y + dy)]
    if touch:
        screen = page.context.new_cdp_session(page)
        for kind, points in zip(("touchStart", "touchMove", "touchMove", "touchEnd"), [*([at] for at in way), []], strict=True):
            screen.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": a, "y": b} for a, b in points]})
        return
    page.mouse.move(*way[0])
    page.mouse.down()
    for at in way[1:]:
        page.mouse.move(*at)
    page.mouse.up()


def slider(page: "playwright.Page", name: str) -> "playwright.Locator":
    return page.locator(f'.vaeproj-panel .widget-hslider:has(.widget-label:text-is("{name}"))')


def idle(page: "playwright.Page", name: str) -> bool:
    return bool(slider(page, name).locator("[disabled]").count())


def test_the_panel_is_dragged_wiped_and_read(lab: str) -> None:
    with page_at(lab) as page:
        try:
            open_panel(page)
            for width in (1440, 1024):
                fits(page, width)
            compare(page)
            wipe(page)
            move(page)
            play(page)
        except BaseException:
            shoot(page, "failed")
            raise


def run_all(page: "playwright.Page") -> None:
    """Until a cell has a number or a star: what is asked before the kernel is connected gets lost."""
    page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()
    begun = page.locator(".jp-InputPrompt").filter(has_text=re.compile(r"[0-9*]"))

    def ask() -> bool:
        for button in page.locator(".jp-Dialog .jp-mod-accept").all():  # such as the choice of a kernel
            button.click()
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        with suppress(playwright.TimeoutError):
            begun.first.wait_for(timeout=10_000)
        return bool(begun.count())

    until(ask, "the start of the first cell")


def open_panel(page: "playwright.Page") -> None:
    image, error = page.locator(".vaeproj-picture img"), page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    run_all(page)
    until(lambda: bool(image.count() or error.count()), "the panel", RUN_LIMIT)
    if error.count():
        pytest.fail(f"a cell failed: {error.first.inner_text()[-2000:]}")
    page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()
    until(lambda: image.evaluate("image => image.naturalWidth") == WIDTH, "the sheet")
    assert "run 04 --preset ci" in page.locator(".vaeproj-share").inner_text()


def fits(page: "playwright.Page", width: int) -> None:
    """The controls stand beside the sheet, and no name or number is cut off."""
    page.set_viewport_size({"width": width, "height": 800})
    panel = page.locator(".vaeproj-panel")
    panel.scroll_into_view_if_needed()
    controls, sheet = (panel.locator("> .widget-vbox").nth(i).bounding_box() for i in (0, 1))
    shoot(page, str(width))
    assert controls["x"] + controls["width"] <= sheet["x"]
    assert controls["y"] == sheet["y"]
    assert sheet["x"] + sheet["width"] <= width
    clipped = "all => all.filter(e => e.scrollWidth > e.clientWidth).map(e => e.textContent)"
    for texts in (".widget-readout", ".widget-label", ".widget-button"):
        assert panel.locator(texts).count() and panel.locator(texts).evaluate_all(clipped) == []


def compare(page: "playwright.Page") -> None:
    """Another descent: what it does not read is disabled, and a locked scale stays."""
    panel, picture = page.locator(".vaeproj-panel"), page.locator(".vaeproj-picture")
    outline, lock = (panel.get_by_label(name, exact=True) for name in ("outline", "lock scale"))
    number = (CORNERS[3][0] + sum(BAR[:2]), CORNERS[3][1] - HEAD), TILE - sum(BAR[:2]), HEAD - 4  # the change's white
    outline.uncheck()
    assert idle(page, "lam") and not idle(page, "tolerance")
    change, white = pixels(picture, CORNERS[3]), pixels(picture, *number)
    lock.check()
    panel.get_by_label("descent", exact=True).select_option("paper")
    until(lambda: idle(page, "tolerance") and not idle(page, "lam"), "the paper's controls")
    until(lambda: not same(pixels(picture, CORNERS[3]), change), "another change")
    assert same(pixels(picture, *number), white)
    lock.uncheck()
    until(lambda: not same(pixels(picture, *number), white), "a scale of its own")


def wipe(page: "playwright.Page") -> None:
    """Left of the divider the image, right of it the projection."""
    picture, left, right = page.locator(".vaeproj-picture"), np.s_[:, : TILE // 2 - 16], np.s_[:, TILE // 2 + 16 :]
    image, projection = pixels(picture, CORNERS[0]), pixels(picture, CORNERS[2])
    assert not same(projection[left], image[left]) and not same(projection[right], image[right])
    divider = picture.locator(".stage-box")
    drag(page, divider, picture.bounding_box()["width"] * TILE / 2 / WIDTH)
    assert int(divider.get_attribute("aria-valuenow")) == pytest.approx(TILE / 2, abs=2)
    shoot(page, "wiped")
    wiped = pixels(picture, CORNERS[2])
    assert same(wiped[left], image[left]) and same(wiped[right], projection[right])
    divider.press("Shift+ArrowLeft")
    assert int(divider.get_attribute("aria-valuenow")) == pytest.approx(TILE / 2 - 1, abs=2)


def move(page: "playwright.Page") -> None:
    """The crop by mouse, touch and arrow keys: the sheet's image is what lies in the frame on the thumbnail."""
    picture, share = page.locator(".vaeproj-picture"), page.locator(".vaeproj-share")
    crop = page.locator(".vaeproj-crop")
    frame, whole = crop.locator(".stage-box"), crop.bounding_box()
    start, side = frame.bounding_box(), whole["width"]
    right, down = (math.copysign(side / 8, whole[x] + side / 2 - start[x] - start["width"] / 2) for x in "xy")  # to the middle

    def drags(dx: float, dy: float, *, touch: bool) -> None:
        place = frame.bounding_box()
        drag(page, frame, dx, dy, touch=touch)
        moved = frame.bounding_box()
        assert (moved["x"] - place["x"], moved["y"] - place["y"]) == pytest.approx((dx, dy), abs=2)

    for way in (
        lambda: drags(2 * right, down, touch=False),
        lambda: drags(-right, down, touch=True),
        lambda: frame.press("ArrowUp"),
    ):
        before = pixels(picture, CORNERS[0])
        way()
        until(lambda: not same(pixels(picture, CORNERS[0]), before), "another image")  # noqa: B023
        until(lambda: like(crop, frame, pixels(picture, CORNERS[0])) > 0.95, "the image in the frame")
    assert frame.evaluate("frame => frame === document.activeElement")  # JupyterLab has not taken the key
    shoot(page, "dragged")
    alpha = slider(page, "alpha").locator(".noUi-handle")
    alpha.focus()
    alpha.press("ArrowRight")
    until(lambda: "--set alpha=0.7" in share.inner_text(), "another command after alpha was moved")


def play(page: "playwright.Page") -> None:
    picture, iteration = page.locator(".vaeproj-picture"), page.locator(".vaeproj-iteration")
    readout, handle = iteration.locator(".widget-readout"), iteration.locator(".noUi-handle")
    last, end = readout.inner_text(), pixels(picture, CORNERS[3])
    assert int(last) > 0
    handle.focus()
    handle.press("Home")
    until(lambda: readout.inner_text() == "0", "iteration 0 on the play bar")
    until(lambda: pixels(picture, CORNERS[3]).mean() < 3, "no change at iteration 0")
    page.locator(".vaeproj-panel .widget-play button").first.click()
    until(lambda: pixels(picture, CORNERS[3]).mean() > 3, "a change while playing")
    until(lambda: readout.inner_text() == last, "playing to the last iteration")
    until(lambda: same(pixels(picture, CORNERS[3]), end), "the sheet of the last iteration")
    shoot(page, "played")
