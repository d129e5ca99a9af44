"""The live page in Chromium, opened as a file: painted on, slid, wiped, played, reopened. Its network is random."""

import base64
import copy
import gzip
import io
import re
import shutil
from contextlib import contextmanager

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageOps

from vaeproj.cli.page import assemble, page_data
from vaeproj.workspace import Workspace

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LIMIT = 60  # seconds, on a busy machine
SIDE = 128
CANVASES = ("after", "before", "image", "change", "f")
BRIGHT = round(0.92 * 255)

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not on the PATH")]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture(scope="module")
def data(page_ws):
    return page_data(page_ws)


@pytest.fixture(scope="module")
def address(data, tmp_path_factory):
    return written(data, tmp_path_factory.mktemp("page"))


def written(data, folder):
    path = folder / "page.html"
    path.write_text(assemble(data), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def chromium():
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Opens an address in a tab of its own. Whatever it logs as an error, and whatever it asks of a network, fails the test."""
    contexts, wrong = [], []

    def go(address, *, script=None, settled=True, **options):
        options = {"viewport": {"width": 1200, "height": 900}, "has_touch": True} | options
        contexts.append(context := chromium.new_context(**options))
        page = context.new_page()
        page.set_default_timeout(LIMIT * 1000)
        page.on("pageerror", lambda error: wrong.append(error.message))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("request", lambda asked: None if re.match("file:|blob:|data:", asked.url) else wrong.append(asked.url))
        if script:
            page.add_init_script(script)
        page.goto(address)
        if settled:
            settle(page)
        return page

    yield go
    for context in contexts:
        context.close()
    assert wrong == []


def settle(page):
    """Until the worker has answered what was asked last, and the address says it."""
    page.wait_for_function("document.getElementById('stage').ariaBusy === 'false'")
    page.wait_for_timeout(300)


def pixels(page, name):
    """A canvas, [128, 128, 3] or, of a grey one, [128, 128]."""
    url = page.evaluate("name => document.getElementById(name).toDataURL()", name)
    picture = opened(url).convert("RGB")
    return np.asarray(picture if name in ("change", "bar") else picture.convert("L")).astype(int)


def opened(url):
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def grey(url):
    return np.asarray(opened(url).convert("L")).astype(int)


def everything(page):
    return {name: pixels(page, name) for name in CANVASES}


def at(page, column, row, stage="#stage"):
    """The middle of a pixel of the picture, on the screen."""
    box = page.locator(stage).bounding_box()
    return box["x"] + (column + 0.5) / SIDE * box["width"], box["y"] + (row + 0.5) / SIDE * box["height"]


@contextmanager
def pressed(page, start, end, stage="#stage"):
    """The mouse drags a line of pixels, and is still down within."""
    page.mouse.move(*at(page, *start, stage))
    page.mouse.down()
    page.mouse.move(*at(page, *end, stage), steps=12)
    yield
    page.mouse.up()


def paint(page, start, end, stage="#stage"):
    with pressed(page, start, end, stage):
        pass
    settle(page)


def line(start, end, within):
    """Pixels whose middle is within so many pixels of a line."""
    row, column = np.mgrid[:SIDE, :SIDE]
    way = np.linspace(start, end, 500)
    return np.hypot(column[..., None] - way[:, 0], row[..., None] - way[:, 1]).min(-1) <= within


def slide(page, name, value):
    """A hyper-parameter's slider to one of its stations, by keyboard."""
    slider = page.locator(f'#sliders [data-name="{name}"] input')
    slider.press("Home")
    for _ in range(40):
        if page.locator(f'#sliders [data-name="{name}"] output').inner_text() == value:
            break
        slider.press("ArrowRight")
    else:
        pytest.fail(f"{name} has no station {value}")
    settle(page)


# ---- Opening ----


def test_ten_crops_are_there_before_anything_is_computed(visit, address, data):
    page = visit(address, script="window.Worker = class { postMessage() {} }", settled=False)
    magma = (matplotlib.colormaps["magma"](np.arange(256))[:, :3] * 255).round()
    choices = page.locator("#crops input")
    assert choices.count() == len(data["crops"]) == 10
    opened_with = page.locator("#crops input:checked").get_attribute("value")
    assert [crop["mask"] is not None for crop in data["crops"] if crop["name"] == opened_with] == [True]
    for crop in data["crops"]:
        page.locator(f'#crops input[value="{crop["name"]}"]').check(force=True)
        page.wait_for_timeout(100)
        image, result = grey(crop["image"]), grey(crop["results"]["anchored"])
        assert np.array_equal(pixels(page, "after"), result)
        assert np.array_equal(pixels(page, "image"), image)
        assert np.array_equal(pixels(page, "f"), grey(crop["f"]))
        assert np.array_equal(pixels(page, "truth"), grey(crop["truth"] or crop["image"]))
        heat = magma[(abs(result - image) / data["white"] + 0.5).clip(0, 255).astype(int)]
        assert abs(pixels(page, "change") - heat).max() <= 4
        assert bool(page.locator("#imageBox .outline").get_attribute("d")) == (crop["mask"] is not None)
    assert abs(pixels(page, "bar")[0] - magma).max() <= 3
    assert str(data["white"]) in page.locator("#white").inner_text()


@pytest.mark.parametrize("descent", ["anchored", "paper", "composite"])
def test_browser_repairs_as_pytorch_does(visit, address, data, descent):
    page = visit(f"{address}#descent={descent}")
    name = page.locator("#crops input:checked").get_attribute("value")
    (crop,) = [crop for crop in data["crops"] if crop["name"] == name]
    assert abs(pixels(page, "after") - grey(crop["results"][descent])).max() <= 1
    assert len(set(page.locator("#energy polyline").first.get_attribute("points").split())) > 1
    assert page.locator("#proof").get_attribute("data-state") == "good"


def tampered(data, what):
    """The page's data with a weight or the gradient altered by a few per cent."""
    other = copy.deepcopy(data)
    if what == "gradient":
        other["worker"] += """
            createEngine = ((make) => async (...given) => {
              const engine = await make(...given);
              return Object.create(engine, { gradient: { get: () => engine.gradient.map((value) => 1.05 * value) } });
            })(createEngine);"""
        return other
    _, _, shape, offset = next(entry for entry in data["model"]["head"] if entry[0].endswith(".scale"))
    raw = bytearray(gzip.decompress(base64.b64decode(data["model"]["data"])))
    scales = np.frombuffer(raw, np.float32, int(np.prod(shape)), offset)
    scales *= 1.05
    other["model"]["data"] = base64.b64encode(gzip.compress(bytes(raw))).decode()
    return other


@pytest.mark.parametrize("what", ["weight", "gradient"])
def test_page_finds_out_that_it_computes_something_else(visit, data, what, tmp_path):
    proof = visit(written(tampered(data, what), tmp_path)).locator("#proof")
    assert proof.get_attribute("data-state") == "bad"
    numbers = [float(number) for number in re.findall(r"\d\.\de[+-]\d+", proof.inner_text().replace("\u2011", "-"))]
    assert len(numbers) == 3 and max(numbers) > 1e-3


# ---- Painting ----


def check_painted(page, before, start, end):
    """Bright within the brush, as it was beyond, and healed to something else."""
    image, near, far = pixels(page, "image"), line(start, end, 1.5), ~line(start, end, 4.5)
    assert (abs(image - BRIGHT)[near] <= 1).all()
    assert np.array_equal(image[far], before["image"][far])
    assert abs(pixels(page, "after") - image)[near].mean() > 10


def test_mouse_paints_and_the_picture_heals_under_it(visit, address):
    page = visit(address)
    before, start, end = everything(page), (30, 40), (90, 70)
    with pressed(page, start, end):
        page.wait_for_function("document.getElementById('wipe').value === '0'")  # the painted side is the one that heals
        near = line(start, end, 1)
        page.wait_for_timeout(100)
        for _ in range(200):
            if abs(pixels(page, "after") - BRIGHT)[near].mean() > 10:
                break
            page.wait_for_timeout(50)
        else:
            pytest.fail("nothing heals while the mouse is down")
    settle(page)
    check_painted(page, before, start, end)
    page.locator("#undo").click()
    settle(page)
    assert np.array_equal(pixels(page, "image"), before["image"])
    assert np.array_equal(pixels(page, "after"), before["after"])


def test_second_stroke_leaves_the_first_healed(visit, address):
    """It begins while the whole run after the first is at its beginning, where nothing has healed yet."""
    page = visit(f"{address}#wipe=0&anchored.alpha=0.01&anchored.iterations=300")
    first = line((20, 30), (110, 30), 1)
    with pressed(page, (20, 30), (110, 30)):
        page.wait_for_timeout(500)
    page.wait_for_function("!run.warm && run.frames.length < 30")
    healed = abs(pixels(page, "after") - BRIGHT)[first].mean()
    with pressed(page, (20, 90), (30, 90)):
        page.wait_for_function("run.warm && run.frames.length > 1")
        page.wait_for_timeout(50)
        assert abs(pixels(page, "after") - BRIGHT)[first].mean() > 0.9 * healed > 5


def test_finger_paints(visit, address):
    page = visit(address, viewport={"width": 360, "height": 740}, is_mobile=True)
    before, start, end = everything(page), (20, 90), (100, 60)
    screen = page.context.new_cdp_session(page)
    for kind, point in (("touchStart", start), ("touchMove", (60, 75)), ("touchMove", end), ("touchEnd", None)):
        places = [dict(zip("xy", at(page, *point), strict=True))] if point else []
        screen.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
    settle(page)
    assert page.evaluate("scrollY") == 0
    check_painted(page, before, start, end)


def test_keyboard_paints(visit, address):
    page = visit(address)
    before, stage = everything(page), page.locator("#stage")
    stage.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.down(" ")
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    page.keyboard.up(" ")
    settle(page)
    check_painted(page, before, (63.5, 60.5), (93.5, 60.5))  # the corner between four pixels is (64, 64)
    assert page.locator("#ring").evaluate("ring => getComputedStyle(ring).visibility") == "visible"
    page.keyboard.press("Control+z")
    settle(page)
    assert np.array_equal(pixels(page, "image"), before["image"])


def test_eraser_brings_back_what_was_under_the_paint(visit, address):
    page = visit(address)
    before = pixels(page, "image")
    page.get_by_text("dark", exact=True).click()
    paint(page, (40, 40), (80, 40), "#imageBox")
    assert (pixels(page, "image")[line((40, 40), (80, 40), 1.5)] == round(0.06 * 255)).all()
    page.get_by_text("erase", exact=True).click()
    page.locator("#radius").press("End")
    paint(page, (30, 40), (90, 40), "#imageBox")
    assert np.array_equal(pixels(page, "image"), before)


# ---- Controls ----


def test_sliders_say_what_they_do_and_do_it(visit, address):
    page = visit(address)
    command, cell = page.locator("#command"), page.locator("#cell")
    assert page.locator('#sliders [data-name="lam"]').count() == 0
    last = pixels(page, "after")
    slide(page, "tolerance", "3")
    assert not np.array_equal(pixels(page, "after"), last)
    assert command.inner_text().endswith("--set tolerance=3")
    slide(page, "iterations", "0")
    assert np.array_equal(pixels(page, "after"), pixels(page, "image"))
    assert page.locator('#sliders [data-name="alpha"] input').is_disabled()
    page.locator('#descents input[value="paper"]').check(force=True)
    settle(page)
    slide(page, "alpha", "2")
    assert command.inner_text() == "python -m vaeproj run 04 --preset compact --set descent=paper --set alpha=2"
    assert 'settings="descent=paper alpha=2"' in cell.inner_text()
    assert page.locator('#sliders [data-name="tolerance"]').count() == 0
    page.locator("#reset").click()
    settle(page)
    assert command.inner_text().endswith("--set descent=paper")


def test_wipe_shows_the_image_left_and_the_repair_right(visit, address):
    page = visit(f"{address}#wipe=100")

    def stage():
        shot = Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("L")
        return np.asarray(shot.resize((SIDE, SIDE), Image.Resampling.BOX)).astype(int)[20:100]  # without what is written on it

    image, after, slider = pixels(page, "image")[20:100], pixels(page, "after")[20:100], page.locator("#wipe")
    assert abs(stage()[:, :120] - image[:, :120]).mean() < 1.5 < abs(image - after)[:, 70:120].mean()
    slider.press("Home")
    page.wait_for_timeout(100)
    assert abs(stage()[:, 8:] - after[:, 8:]).mean() < 1.5
    handle = page.locator("#divider").bounding_box()
    page.mouse.move(handle["x"] + 1, handle["y"] + handle["height"] - 30)
    page.mouse.down()
    page.mouse.move(at(page, 63, 100)[0], at(page, 63, 100)[1], steps=5)
    page.mouse.up()
    assert int(slider.input_value()) == pytest.approx(50, abs=2)
    assert abs(stage()[:, :60] - image[:, :60]).mean() < 1.5 and abs(stage()[:, 68:] - after[:, 68:]).mean() < 1.5
    assert np.array_equal(pixels(page, "image")[20:100], image)  # nothing was painted


def test_play_bar(visit, address):
    page = visit(address)
    bar, end = page.locator("#t"), pixels(page, "after")
    bar.press("Home")
    page.wait_for_timeout(100)
    assert np.array_equal(pixels(page, "after"), pixels(page, "image"))
    assert pixels(page, "change").max() <= 3
    page.locator("#play").click()
    page.wait_for_function("document.getElementById('t').value === document.getElementById('t').max")
    settle(page)
    assert np.array_equal(pixels(page, "after"), end)


def test_playing_rests_while_the_picture_is_out_of_sight(visit, address):
    page = visit(f"{address}#descent=paper", viewport={"width": 360, "height": 500})
    page.locator("#play").click()
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    page.wait_for_timeout(300)
    rested = int(page.locator("#t").input_value())
    page.wait_for_timeout(500)
    assert int(page.locator("#t").input_value()) == rested < 100
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_function("document.getElementById('t').value === '100'")


def test_nothing_is_computed_while_the_page_is_hidden(visit, address):
    page = visit(address)
    hide = """hidden => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.onvisibilitychange();
    }"""
    page.evaluate(hide, True)
    before = pixels(page, "after")
    page.locator('#sliders [data-name="tolerance"] input').press("End")
    page.wait_for_timeout(600)
    assert np.array_equal(pixels(page, "after"), before)
    page.evaluate(hide, False)
    settle(page)
    assert not np.array_equal(pixels(page, "after"), before)


def photo(folder):
    """A picture in colour, wider than high, and the middle square of it as the page should see it."""
    row, column = np.mgrid[:300, :500] / 300
    rgb = np.stack([row, column % 1, 0.5 + 0.5 * np.sin(9 * row + 5 * column)], -1)
    picture = Image.fromarray((rgb * 255).astype(np.uint8))
    picture.save(folder / "photo.png")
    return folder / "photo.png", np.asarray(ImageOps.fit(picture.convert("L"), (SIDE, SIDE), Image.Resampling.BOX)).astype(int)


def test_own_picture_by_file_and_by_drop(visit, address, tmp_path):
    file, expected = photo(tmp_path)
    page = visit(address)
    page.locator("#own").set_input_files(file)
    settle(page)
    chosen = pixels(page, "image")
    assert abs(chosen - expected).mean() < 2  # another filter, and JPEG in the address
    assert page.locator("#truthFigure").is_hidden() and page.locator("#crops input:checked").count() == 0
    again = visit(page.url)
    for name, canvas in everything(page).items():
        assert np.array_equal(pixels(again, name), canvas)
    dropped = visit(address)
    drop = """base64 => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([Uint8Array.from(atob(base64), c => c.charCodeAt(0))], "photo.png", { type: "image/png" }));
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }"""
    dropped.evaluate(drop, base64.b64encode(file.read_bytes()).decode())
    dropped.wait_for_function("document.querySelector('#crops input:checked') === null")
    settle(dropped)
    assert np.array_equal(pixels(dropped, "image"), chosen)


# ---- The address ----


def test_address_gives_the_same_picture_back(visit, address, data):
    page = visit(address, locale="ja-JP")
    page.locator(f'#crops input[value="{data["crops"][4]["name"]}"]').check(force=True)
    settle(page)
    page.locator('#descents input[value="paper"]').check(force=True)
    slide(page, "alpha", "1")
    slide(page, "iterations", "20")
    page.locator("#radius").press("Home")
    paint(page, (20, 20), (100, 110))
    page.locator("#inks input[value=dark]").check(force=True)
    paint(page, (100, 20), (20, 100))
    page.locator("#wipe").fill("37")
    page.locator("#t").fill("13")
    page.wait_for_timeout(400)
    shown, texts = everything(page), [page.locator(f"#{name}").inner_text() for name in ("command", "cell", "terms", "psnr")]
    assert page.url == page.locator("#address").inner_text()
    other = visit(page.url, locale="en-US")
    for name in CANVASES:
        assert np.array_equal(pixels(other, name), shown[name]), name
    assert [other.locator(f"#{name}").inner_text() for name in ("command", "cell", "terms", "psnr")] == texts
    values = [other.locator(f"#{name}").input_value() for name in ("wipe", "t", "radius")]
    assert values == ["37", "13", "1"]
    assert other.locator("html").get_attribute("lang") == "ja"
    assert other.locator("#inks input:checked").get_attribute("value") == "dark"


def test_mistyped_address_opens_the_usual_page(visit, address):
    odd = visit(f"{address}#crop=none&t=x&wipe=300&paint=!!&anchored.alpha=nan&descent=up&own=AAAA&lang=xx")
    usual = visit(address)
    for name in CANVASES:
        assert np.array_equal(pixels(odd, name), pixels(usual, name))


@pytest.mark.parametrize("descent", ["anchored", "composite"])
def test_notebook_cell_gives_the_same_projection(visit, address, page_ws, descent, monkeypatch):
    page = visit(f"{address}#descent={descent}")
    paint(page, (30, 40), (90, 70))
    page.locator("#inks input[value=erase]").check(force=True)
    paint(page, (60, 40), (60, 70))
    requests = []
    monkeypatch.setattr(Workspace, "open", lambda request: requests.append(request) or page_ws)
    names = {}
    exec(page.locator("#cell").inner_text(), names)
    assert (requests[0].preset, requests[0].settings) == ("compact", "")
    assert abs(names["x_0"][0, 0].numpy() * 255 - pixels(page, "image")).max() < 0.51
    assert abs(names["x"][0, 0].numpy() * 255 - pixels(page, "after")).max() < 2  # the page's weights are rounded


# ---- For everybody ----


def test_both_languages_and_schemes(visit, address):
    page = visit(address, color_scheme="light", locale="ja-JP")
    html, background = page.locator("html"), "getComputedStyle(document.documentElement).backgroundColor"
    assert html.get_attribute("lang") == "ja" and re.search("[ぁ-ん]", page.locator("h1").inner_text())
    page.locator("#lang").click()
    assert html.get_attribute("lang") == "en" and not re.search("[ぁ-ん]", page.locator("main").inner_text())
    light = page.evaluate(background)
    page.locator("#scheme").click()
    dark = page.evaluate(background)
    assert dark != light
    page.wait_for_timeout(400)
    assert visit(page.url, color_scheme="light").evaluate(background) == dark
    assert visit(address, color_scheme="dark").evaluate(background) == dark


def test_languages_have_the_same_words(visit, address):
    page = visit(address)
    keys = """language => (function keys(words) {
        return Object.entries(words).map(([key, word]) => typeof word === "object" ? [key, keys(word)] : [key, typeof word]);
    })(WORDS[language])"""
    assert page.evaluate(keys, "en") == page.evaluate(keys, "ja")


@pytest.mark.parametrize("width", [360, 768, 1440])
@pytest.mark.parametrize("locale", ["en-US", "ja-JP"])
def test_no_width_overflows(visit, address, width, locale):
    page = visit(address, viewport={"width": width, "height": 800}, locale=locale)
    paint(page, (20, 20), (100, 110))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    clipped = "all => all.filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"
    assert page.locator("button, .choice label, #sliders span, output, th, td, h2, h3, figcaption").evaluate_all(clipped) == []


def test_everything_to_operate_has_a_name(visit, address):
    page = visit(address)
    nameless = """all => all.filter(element => {
        const labels = [element, ...(element.labels ?? [])].map(label => label.textContent.trim());
        return !element.ariaLabel && !labels.some(Boolean);
    }).map(element => element.outerHTML)"""
    assert page.locator("button, input, select, [tabindex='0']:not(pre), canvas[role=img]").evaluate_all(nameless) == []
    assert page.locator("#status").get_attribute("aria-live") == "polite" and page.locator("#status").inner_text()


def test_reduced_motion_is_respected(visit, address):
    moving, still = (visit(address, reduced_motion=motion, settled=False) for motion in ("no-preference", "reduce"))
    gliding = "stage => { stage.classList.add('gliding'); return getComputedStyle(stage).transitionDuration; }"
    assert [page.locator("#stage").evaluate(gliding) for page in (moving, still)] == ["0.25s", "0s"]
