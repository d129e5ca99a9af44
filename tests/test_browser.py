"""The panel in JupyterLab in Chromium: a person opens notebook 04, runs it, moves a slider and the play bar."""

import json
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
import papermill
import pytest

from vaeproj.config import PROJECT_ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SHOTS = PROJECT_ROOT / "build" / "browser"
TOKEN = "vaeproj"
RUN_LIMIT = 400  # seconds for the whole notebook on a busy machine
LIMIT = 60  # seconds for anything else

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not on the PATH"),
]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """Notebook 04 with preset ci, in a folder of its own."""
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
    if not any("explore(" in cell.source for cell in contents.cells):
        contents.cells.append(nbformat.v4.new_code_cell("from vaeproj.panel.widgets import explore\n\nexplore(ws)"))
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
            page = browser.new_page(viewport={"width": 1440, "height": 1000})
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


def bytes_of(picture: "playwright.Locator") -> list[int]:
    """The picture that is on the page now."""
    return picture.evaluate("async image => Array.from(new Uint8Array(await (await fetch(image.src)).arrayBuffer()))")


def test_slider_and_play_bar_change_the_picture(lab: str) -> None:
    with page_at(lab) as page:
        try:
            use(page)
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


def use(page: "playwright.Page") -> None:
    idle = page.locator("#jp-main-statusbar").get_by_text("| Idle")
    picture, share = page.locator("img.vaeproj-picture"), page.locator(".vaeproj-share")
    iteration = page.locator(".vaeproj-iteration")
    readout = iteration.locator(".widget-readout")
    error = page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    run_all(page)
    until(lambda: bool(picture.count() or error.count()), "the panel", RUN_LIMIT)
    if error.count():
        pytest.fail(f"a cell failed: {error.first.inner_text()[-2000:]}")
    idle.wait_for()
    picture.scroll_into_view_if_needed()
    shoot(page, "opened")
    first, setting = bytes_of(picture), share.inner_text()
    assert bytes(first[:2]) == b"\xff\xd8", "not a JPEG"
    assert picture.evaluate("image => image.naturalWidth") > 400
    assert "run 04 --preset ci" in setting
    assert "alpha" not in setting
    last = readout.inner_text()
    assert int(last) > 0

    alpha = page.locator('.widget-hslider:has(.widget-label:text-is("alpha")) .noUi-handle')
    alpha.focus()
    alpha.press("ArrowRight")
    until(lambda: bytes_of(picture) != first, "another picture after alpha was moved")
    until(lambda: "--set alpha=0.3" in share.inner_text(), "another command after alpha was moved")
    moved = bytes_of(picture)
    shoot(page, "alpha")

    handle = iteration.locator(".noUi-handle")
    handle.focus()
    handle.press("Home")
    until(lambda: readout.inner_text() == "0", "iteration 0 on the play bar")
    until(lambda: bytes_of(picture) != moved, "another picture after the play bar was moved")
    start = bytes_of(picture)
    page.locator(".jupyter-widgets.widget-play button").first.click()
    until(lambda: bytes_of(picture) != start, "another picture while playing")
    until(lambda: readout.inner_text() == last, "playing to the last iteration")
    until(lambda: bytes_of(picture) == moved, "the picture of the last iteration")
    shoot(page, "played")
