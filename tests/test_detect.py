"""Photos as a phone makes them: each is judged, upright and at its own size, by good ones, or named with the reason why not."""

import csv
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import contents
from PIL import Image

from vaeproj import training
from vaeproj.cli import detect
from vaeproj.cli.commands import main
from vaeproj.config import UserError
from vaeproj.studies.comparison import own_maps, relative
from vaeproj.workspace import Request, Workspace

SETTINGS = (
    "image_size=64 crop_size=32 stride=16 widths=8-16 hidden=64 latent_dim=8 steps=100 learning_rate=0.01 iterations=4 "
    "sigma=1.5"
)
BLOB = (0.3, 0.7)  # where the defect is, in shares of the upright photo's width and height
TURNS = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}  # from upright to how the file holds it


def photo(seed, width=300, height=400, blob=False):
    """A striped cloth in colour, upright: the stripes have one width in every photo of an aspect, their place is chance."""
    rng, scale = np.random.default_rng(seed), min(width, height) / 300
    y, x = np.mgrid[:height, :width] / scale
    grey = 120 + 50 * np.sin(x / 6 + rng.uniform(0, 6)) + 30 * np.sin(y / 9 + rng.uniform(0, 6))
    if blob:
        grey[np.hypot(x - BLOB[0] * width / scale, y - BLOB[1] * height / scale) < 22] = 10
    pixels = grey[..., None] * [1, 0.9, 0.8] + rng.normal(0, 3, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def save(image, path, turned=1):
    """As a camera does that was held otherwise than upright."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = turned
    (image.transpose(TURNS[turned]) if TURNS[turned] is not None else image).save(path, exif=exif, quality=92)
    return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """``good``: eight photos, one of them grey; ``asked``: all kinds of files."""
    home = tmp_path_factory.mktemp("shop")
    for i in range(8):
        save(photo(i), home / f"good/{i}.jpg", (1, 3, 6)[i % 3])
    save(photo(8).convert("L"), home / "good/grey.png")
    save(photo(20), home / "asked/fine.jpg", 6)
    for name, turned in (("upright", 1), ("head_down", 3), ("on_its_side", 6)):
        save(photo(21, blob=True), home / f"asked/{name}.png", turned)
    save(photo(22, 400, 300, blob=True), home / "asked/more/landscape.jpg")
    save(photo(23, blob=True), home / "asked/more/upright.jpg")
    shutil.copy(home / "asked/fine.jpg", home / "asked/corrupt.jpg")
    (home / "asked/corrupt.jpg").write_bytes((home / "asked/fine.jpg").read_bytes()[:9000])
    save(photo(24, 48, 64), home / "asked/small.jpg")
    save(photo(25, 450, 300), home / "asked/wide.jpg")
    save(photo(26).convert("L"), home / "asked/grey.jpg")
    (home / "asked/<b>.txt").write_text("no picture")
    (home / "asked/.hidden.jpg").write_text("not asked for")
    return home


def judge(shop, out, *pictures, good="good", settings="", **options):
    request = Request("ci", f"{SETTINGS} {settings}", device="cpu", out=str(out))
    asked = [str(shop / name) for name in pictures or ("asked",)]

    def whole():
        flagged = yield from detect.detect(asked, str(shop / good), request, kept=shop / "kept", **options)
        yield flagged

    *said, flagged = whole()
    with (out / "results.csv").open(newline="") as file:
        rows = {row["picture"]: row for row in csv.DictReader(file)}
    summary = json.loads((out / "detect.json").read_text())
    return SimpleNamespace(said=said, flagged=flagged, rows=rows, summary=summary, out=out)


@pytest.fixture(scope="module")
def judged(shop):
    return judge(shop, shop / "out")


def mask_of(result, path):
    return np.asarray(Image.open(result.out / f"{result.rows[str(path)]['name']}_mask.png"))


def centre(mask):
    """Of its pixels, in shares of width and height."""
    y, x = np.nonzero(mask)
    return (x.mean() + 0.5) / mask.shape[1], (y.mean() + 0.5) / mask.shape[0]


def test_every_file_is_judged_or_named_with_its_reason(shop, judged):
    reasons = {
        "corrupt.jpg": "truncated", "<b>.txt": "cannot be read as an image", "small.jpg": "48x64 pixels",
        "wide.jpg": "aspect of 1.50", "grey.jpg": "in grey",
    }  # fmt: skip
    verdicts = dict.fromkeys(
        ("upright.png", "head_down.png", "on_its_side.png", "more/landscape.jpg", "more/upright.jpg"), "flagged"
    )
    verdicts |= {"fine.jpg": "good"} | dict.fromkeys(reasons, "skipped")
    asked = shop / "asked"
    assert {path: row["verdict"] for path, row in judged.rows.items()} == {str(asked / name): v for name, v in verdicts.items()}
    for name, reason in reasons.items():
        row = judged.rows[str(asked / name)]
        assert row["reason"].startswith(str(asked / name)) and reason in row["reason"]
        assert re.fullmatch(r"[^\n]*\.", row["reason"]) and f"Skipped: {row['reason']}" in judged.said
    assert any("grey.png is in grey" in line for line in judged.said)  # a good one that cannot be used is named as well
    assert "5 of 6 flagged" in judged.said[-1] and "6 files skipped" in judged.said[-1] and judged.flagged == 5
    for row in judged.rows.values():
        if row["verdict"] != "skipped":
            assert (float(row["score"]) > 1) == (row["verdict"] == "flagged")


def test_results_have_the_photos_own_size_upright_and_lie_on_the_defect(shop, judged):
    for name, size in (("upright.png", (300, 400)), ("on_its_side.png", (300, 400)), ("more/landscape.jpg", (400, 300))):
        stem = judged.out / judged.rows[str(shop / "asked" / name)]["name"]
        for ending in ("heat.jpg", "mask.png"):
            assert Image.open(f"{stem}_{ending}").size == size
        repaired = Image.open(f"{stem}_repaired.png")
        assert min(repaired.size) == 64 and repaired.width * size[1] == pytest.approx(repaired.height * size[0], rel=0.01)
        mask = mask_of(judged, shop / "asked" / name)
        assert centre(mask) == pytest.approx(BLOB, abs=0.03)
        assert 0.3 < mask.sum() / (np.pi * 22**2) < 5


def test_the_way_a_photo_lies_in_its_file_changes_nothing(shop, judged):
    upright, *others = (judged.rows[str(shop / f"asked/{name}.png")] for name in ("upright", "head_down", "on_its_side"))
    for other in others:
        assert {**other, "picture": "", "name": ""} == {**upright, "picture": "", "name": ""}
        for ending in ("heat.jpg", "mask.png", "repaired.png"):
            one, same = (judged.out / f"{row['name']}_{ending}" for row in (upright, other))
            assert one.read_bytes() == same.read_bytes()


def test_a_repair_takes_the_defect_away_and_leaves_the_rest(shop, judged):
    with Image.open(shop / "asked/upright.png") as image:
        before = np.asarray(image.resize((64, 85), Image.Resampling.BILINEAR)).astype(float)
    after = np.asarray(Image.open(judged.out / f"{judged.rows[str(shop / 'asked/upright.png')]['name']}_repaired.png")).astype(
        float
    )
    y, x = np.mgrid[:85, :64]
    away = np.hypot(x - BLOB[0] * 64, y - BLOB[1] * 85)
    change = np.abs(after - before).mean(2)
    assert change[away < 3].mean() > 4 * change[away > 12].mean()
    assert (after - before)[away < 3].mean() > 10  # what was dark has become lighter


def test_contact_sheets_hold_every_photo_and_need_nothing_else(shop, judged):
    page = (judged.out / "contact_sheet.html").read_text()
    data = json.loads(re.search(r"const data = (.*);\n", page).group(1))
    assert not re.search(r"https?:|src=\"[^d]|<b>", page)
    scores = [entry["score"] for entry in data["entries"]]
    assert len(scores) == 6 and scores == sorted(scores, reverse=True)
    assert len(data["skipped"]) == 6 and any("<b>.txt" in reason for reason in data["skipped"])
    assert Image.open(judged.out / "contact_sheet.png").height % 6 == 0


def test_a_second_start_trains_nothing_and_says_the_same(shop, judged, tmp_path, monkeypatch):
    assert any(line.startswith("Training takes about") for line in judged.said)
    monkeypatch.setattr(training, "fit", None)
    monkeypatch.setattr(detect, "fit", None)
    again = judge(shop, tmp_path / "out")
    assert again.rows == judged.rows and again.said[:-1] == [s for s in judged.said[:-1] if not s.startswith("Training")]
    assert contents(again.out) == contents(judged.out)


def test_limits_come_from_good_photos_held_out_alone(shop, judged, tmp_path):
    """One of eight is held out; neither the other pictures nor their order move a limit, and the pixels are the quantile's."""
    other = judge(shop, tmp_path / "out", "asked/more", "asked/fine.jpg")
    assert other.summary == judged.summary
    (held,) = judged.summary["held_out"]
    config = training.Config.from_preset("ci", SETTINGS)
    known = [np.asarray(detect._pixels(shop / f"good/{i}.jpg", 64, 8)) for i in range(8)]
    assert held == str(shop / "good/0.jpg")
    ws = detect._workspace(known[1:], config, Request("ci", device="cpu"), shop, shop / "kept")
    assert ws.weights == judged.summary["weights"]  # trained on the other seven
    heat, _, _ = detect._judge(ws, known[0], Image.new("1", (1, 1), 1))
    limit = np.quantile(heat, 0.999)
    assert judged.summary["limits"] == pytest.approx({"pixel": limit, "share": np.mean(heat > limit)})
    row = judged.rows[str(shop / "asked/upright.png")]
    assert float(row["score"]) == pytest.approx(float(row["defective_share"]) / np.mean(heat > limit))
    assert float(row["defective_share"]) == pytest.approx(mask_of(judged, shop / "asked/upright.png").mean(), rel=0.1)


def test_a_map_is_that_of_the_benchmark_in_units_of_its_median(shop):
    config = training.Config.from_preset("ci", SETTINGS + " score=ssim sigma=2 sigma_wide=5")
    rng = np.random.default_rng(0)
    squares = [rng.integers(0, 256, (3, 64, 64), dtype=np.uint8) for _ in range(2)]
    ws = detect._workspace(squares, config.replace(steps=2), Request("ci", device="cpu"), shop, shop / "kept")
    heat, counted, repaired = detect._judge(ws, squares[0], Image.new("1", (1, 1), 1))
    np.testing.assert_allclose(
        heat, relative(own_maps(ws, torch.from_numpy(squares[0])[None]))[0].numpy(), rtol=1e-3
    )  # the median of an even number
    assert counted.all() and repaired.shape == (3, 64, 64)


def test_long_photos_are_cut_into_few_squares_that_cover_them(shop):
    config = training.Config.from_preset("ci", SETTINGS)
    strip = np.arange(3 * 64 * 150).reshape(3, 64, 150).astype(np.uint8)
    images = detect._workspace([strip, strip.transpose(0, 2, 1)], config, Request(), shop, shop / "kept").train.images.numpy()
    assert len(images) == 6
    for image, start in zip(images, (0, 64, 86) * 2, strict=True):
        across = strip[:, :, start : start + 64]
        assert np.array_equal(image, across) or np.array_equal(image, across.transpose(0, 2, 1))


def test_what_a_mask_hides_counts_neither_for_score_nor_for_mask(shop, judged, tmp_path):
    hidden = np.zeros((40, 30), np.uint8)
    hidden[19:37, 3:16] = 255
    Image.fromarray(hidden).save(tmp_path / "hidden.png")
    result = judge(shop, tmp_path / "out", "asked/upright.png", "asked/fine.jpg", ignore=str(tmp_path / "hidden.png"))
    assert {row["verdict"] for row in result.rows.values()} == {"good"}
    mask = mask_of(result, shop / "asked/upright.png")
    assert mask.shape == (400, 300) and not mask[190:370, 30:160].any()
    known = [detect._pixels(shop / f"good/{i}.jpg", 64, 8) for i in range(8)]
    ws = detect._workspace(known[1:], training.Config.from_preset("ci", SETTINGS), Request(device="cpu"), shop, shop / "kept")
    heat, _, _ = detect._judge(ws, known[0], Image.new("1", (1, 1), 1))
    seen = np.ones(heat.shape, bool)
    seen[40:79, 6:34] = False  # of 85 rows and 64 columns, as 19 to 37 of 40 and 3 to 16 of 30
    inside = heat[seen] / np.median(heat[seen])  # good photos are judged by the same pixels
    assert result.summary["limits"]["pixel"] == pytest.approx(np.quantile(inside, 0.999), rel=1e-3)
    assert result.summary["limits"]["pixel"] != pytest.approx(judged.summary["limits"]["pixel"], rel=1e-3)


def test_a_photo_of_a_phones_size_is_judged_at_that_size(shop, judged, tmp_path):
    save(photo(30, blob=True).resize((3000, 4000)), tmp_path / "asked/phone.jpg", 6)
    assert Image.open(tmp_path / "asked/phone.jpg").size == (4000, 3000)
    result = judge(shop, tmp_path / "out", str(tmp_path / "asked"))
    (row,) = result.rows.values()
    mask = mask_of(result, tmp_path / "asked/phone.jpg")
    assert row["verdict"] == "flagged" and mask.shape == (4000, 3000)
    assert centre(mask) == pytest.approx(BLOB, abs=0.03)
    assert result.summary["limits"] == judged.summary["limits"]


def test_photos_of_one_name_do_not_overwrite_one_another(shop, judged, tmp_path):
    for name in ("a/000.jpg", "b/000.jpg", "000.jpg", "000.png"):
        save(photo(20), tmp_path / name)
    result = judge(shop, tmp_path / "out", str(tmp_path / "a/000.jpg"), str(tmp_path), str(shop / "good/1.jpg"))
    names = [row["name"] for row in result.rows.values() if row["name"]]
    assert len(names) == len(set(names)) == 4
    assert all((result.out / f"{name}_mask.png").is_file() for name in names)
    assert "one of the good photos" in result.rows[str(shop / "good/1.jpg")]["reason"]
    assert result.summary == judged.summary


def test_levels_above_those_of_good_photos_are_white(shop, tmp_path):
    """Of 12 bits, say; without a limit they would come round to black."""
    levels = np.asarray(photo(20).convert("L")).astype(np.uint16)
    for i in range(3):
        (tmp_path / "good").mkdir(exist_ok=True)
        Image.fromarray((levels + i) * 16).save(tmp_path / f"good/{i}.png")
    bright = levels * 16
    bright[100:200, 100:200] = 20000
    Image.fromarray(bright).save(tmp_path / "bright.png")
    result = judge(shop, tmp_path / "out", str(tmp_path / "bright.png"), good=str(tmp_path / "good"), settings="steps=2")
    shown = np.asarray(Image.open(result.out / "bright_heat.jpg").convert("L")).astype(float)
    assert shown[:80, :80].mean() == pytest.approx(levels[:80, :80].mean(), abs=15)
    assert detect._pixels(tmp_path / "bright.png", 64, 12)[0, 30, 30] == 255


def test_the_network_of_a_finished_run_judges_too(shop, category, tmp_path):
    """Its settings are taken, those asked for laid over them, and every good photo is held out."""
    size = "image_size=32 crop_size=16 stride=8 latent_dim=8 steps=2 widths=8-16 hidden=16 iterations=3"
    asked = {"preset": "ci", "settings": size, "data_root": str(category.parent), "category": "mesh"}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/manifest.json").write_text(json.dumps({"parameters": asked}))
    for i in range(4):
        save(photo(i).convert("L"), tmp_path / f"good/{i}.png")
    request = Request("quick", "alpha=0.5", device="cpu", out=str(tmp_path / "out"))
    save(photo(9).convert("L"), tmp_path / "new.png")
    list(
        detect.detect(
            [str(tmp_path / "new.png")], str(tmp_path / "good"), request, run=str(tmp_path / "run"), kept=shop / "kept"
        )
    )
    made = json.loads((tmp_path / "out/detect.json").read_text())
    ws = Workspace.open(Request(**asked, device="cpu"), kept=shop / "kept")
    assert (made["weights"], made["config"]["alpha"], made["config"]["iterations"]) == (ws.weights, 0.5, 3)
    assert len(made["held_out"]) == 4


def test_a_run_of_other_colours_names_every_photo(shop, category, tmp_path):
    """The run is grey, and so is one good photo alone."""
    size = "image_size=32 crop_size=16 stride=8 latent_dim=8 steps=2 widths=8-16 hidden=16"
    (tmp_path / "manifest.json").write_text(json.dumps({"parameters": {
        "preset": "ci", "settings": size, "data_root": str(category.parent), "category": "mesh"}}))  # fmt: skip
    request = Request("ci", device="cpu", out=str(tmp_path / "out"))
    results = detect.detect([str(shop / "asked/fine.jpg")], str(shop / "good"), request, run=str(tmp_path), kept=shop / "kept")
    said = [next(results) for _ in range(9)]
    with pytest.raises(UserError, match="1 good photos and 0 to judge"):
        next(results)
    assert all("is in colour where grey is wanted" in line for line in said)


@pytest.fixture
def command(shop, monkeypatch):
    """The command line with the tests' own caches: its exit code."""
    monkeypatch.setattr(detect.detect, "__kwdefaults__", detect.detect.__kwdefaults__ | {"kept": shop / "kept"})
    own = f"detect --good {shop}/good --device cpu " + " ".join(f"--set={setting}" for setting in SETTINGS.split())

    def run(text):
        try:
            return main(f"{own} {text}".replace("SHOP", str(shop)).split())
        except SystemExit as left:
            return left.code

    return run


@pytest.mark.parametrize(("name", "code"), [("upright.png", 1), ("fine.jpg", 0)])
def test_scripts_learn_of_a_defect_by_the_exit_code(command, judged, tmp_path, capsys, name, code):
    assert command(f"SHOP/asked/{name} --preset ci --out {tmp_path}/out --fail-on-defect") == code
    assert command(f"SHOP/asked/{name} --preset ci --out {tmp_path}/out") == 0
    assert f"{code} of 1 flagged" in capsys.readouterr().out


MISTAKES = {
    "asked holds something else than results": "SHOP/asked/fine.jpg --out SHOP/asked",
    "white.png holds something else": "SHOP/asked/fine.jpg --out OUT/white.png",
    "results holds something else": "OUT/results/1.jpg --out OUT/results",
    "8 good photos and 0 to judge are too few": "SHOP/asked/corrupt.jpg --out OUT/new",
    "0 good photos and 0 to judge": "SHOP/asked/fine.jpg --out OUT/new --good OUT/new",
    "1 good photos and 1 to judge": "SHOP/asked/fine.jpg --out OUT/new --good OUT/results",
    "white.png leaves nothing of": "SHOP/asked/fine.jpg --out OUT/new --ignore OUT/white.png",
    "nowhere.png cannot be read": "SHOP/asked/fine.jpg --out OUT/new --ignore OUT/nowhere.png",
    "no manifest.json of a finished run": "SHOP/asked/fine.jpg --out OUT/new --run OUT",
    "no preset 'nope'": "SHOP/asked/fine.jpg --out OUT/new --preset nope",
}


@pytest.mark.parametrize(("sentence", "text"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_ends_in_one_sentence_and_writes_nothing(command, shop, tmp_path, capsys, sentence, text):
    Image.new("L", (30, 40), "white").save(tmp_path / "white.png")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/detect.json").write_text("{}")
    shutil.copy(shop / "good/1.jpg", tmp_path / "results/1.jpg")
    before = contents(tmp_path), contents(shop)
    assert command(text.replace("OUT", str(tmp_path))) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("vaeproj: ") and said.endswith(".") and sentence in said
    assert (contents(tmp_path), contents(shop)) == before


def test_a_run_that_breaks_off_leaves_the_old_results_whole(shop, judged, tmp_path, monkeypatch):
    shutil.copytree(judged.out, tmp_path / "out")
    monkeypatch.setattr(detect, "_write_sheets", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        judge(shop, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(judged.out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not on the PATH")
def test_contact_sheet_in_a_browser_without_a_server(judged):
    """Every photo is shown with its verdict, fits on a phone, and leads to its files; nothing is asked of anybody."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    asked, failed = [], []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(error.message))
        page.goto((judged.out / "contact_sheet.html").as_uri())
        assert page.locator("article").count() == 6 and page.locator("article:visible").count() == 6
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0 && i.alt)")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.locator("article").first.locator("h2").inner_text().startswith("flagged")
        assert "<b>.txt" in page.locator("#skipped").inner_text()
        files = page.evaluate("[...document.links].map(a => decodeURIComponent(a.getAttribute('href')))")
        assert len(files) == 18 and all((judged.out / name).is_file() for name in files)
        page.locator("label").click()
        assert page.locator("article:visible").count() == 5
    assert not failed and {url.split(":")[0] for url in asked} <= {"file", "data"}
