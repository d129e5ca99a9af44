"""The page's engine in Chromium against the package, and the file that ``python -m vaeproj page`` writes."""

import base64
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vaeproj.cli.commands import main
from vaeproj.cli.page import PAGE, assemble, packed, page_data
from vaeproj.config import DESCENTS, Config
from vaeproj.model import VAE, frozen
from vaeproj.projection import State, composite, trajectory
from vaeproj.workspace import Workspace

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PICTURES = ("x", "f", "weight", "gradient")
LARGEST = 4_000_000  # bytes

in_browser = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not on the PATH")]

# In the tab: arrays come and go as base64 of their bytes.
HELPERS = """
const encoded = (floats) => btoa(Array.from(new Uint8Array(floats.slice().buffer), (c) => String.fromCharCode(c)).join(""));
const stateOf = (engine) => ({
    ...Object.fromEntries(["x", "f", "weight", "gradient"].map((name) => [name, encoded(engine[name])])),
    terms: [...engine.terms], alpha: engine.alpha,
});
const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
"""


def coded(tile: Tensor) -> str:
    return base64.b64encode(tile.contiguous().numpy().tobytes()).decode()


def decoded(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32)


def gap(a: Tensor, b: Tensor) -> float:
    return (a.flatten() - b.flatten()).abs().max().item()


@pytest.fixture(scope="module")
def tab() -> Iterator[Any]:
    """An empty page in Chromium that knows the engine."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = chromium.new_page()
        page.add_script_tag(content=(PAGE / "engine.js").read_text() + HELPERS)
        yield page
        chromium.close()


def opened(tab: Any, ws: Workspace, *, int8: bool) -> tuple[Any, VAE]:
    """The tab with an engine for the workspace's network, and the network that it has."""
    model, vae = packed(ws.vae, int8=int8)
    wasm = base64.b64encode((PAGE / "kernel.wasm").read_bytes()).decode()
    opening = "async ([wasm, model, expected]) => { window.engine = await createEngine(bytesOf(wasm), model, expected); }"
    tab.evaluate(opening, [wasm, model, ws.expected.tolist()])
    return tab, vae


@pytest.fixture(scope="module")
def engine(tab, page_ws) -> Any:
    return opened(tab, page_ws, int8=False)[0]


@pytest.fixture(scope="module")
def crops(page_ws) -> Tensor:
    return page_ws.crops_at(["bent/000", "thread/001"])[0]


def settings_of(config: Config, **changes: Any) -> dict[str, Any]:
    names = ("descent", "gradient", "alpha", "lam", "tolerance", "hardness", "coarse_weight")
    return {name: getattr(config, name) for name in names} | changes


def descend(engine: Any, x_0: Tensor, settings: dict[str, Any], moments: tuple[int, ...]) -> list[dict[str, Any]]:
    """The engine's states at these iterations."""
    run = """([x0, settings, moments]) => {
        engine.start(floatsOf(x0), settings);
        const states = moments.includes(0) ? [stateOf(engine)] : [];
        for (let t = 1; t <= Math.max(...moments); t++) {
            engine.step();
            if (moments.includes(t)) states.push(stateOf(engine));
        }
        return states;
    }"""
    states = engine.evaluate(run, [coded(x_0), settings, list(moments)])
    return [state | {name: decoded(state[name]) for name in PICTURES} for state in states]


class TestKernel:
    pytestmark = in_browser

    # Where x is back at x_0, rounding decides the sign of |x - x_0|, and x jumps by 2 alpha lam: plain and article take a lower
    # lam than their own here, so that such a jump stays below the bound.
    @pytest.mark.parametrize(
        ("descent", "gradient", "changes"),
        [
            ("anchored", "full", {}),
            ("anchored", "full", {"coarse_weight": 2.0}),
            ("anchored", "full", {"alpha": 3.0, "tolerance": 1.0, "hardness": 2.0}),
            ("anchored", "detached", {"coarse_weight": 2.0}),
            ("paper", "full", {}),
            ("paper", "detached", {"coarse_weight": 2.0}),
            ("plain", "full", {"lam": 0.01, "coarse_weight": 1.0}),
            ("plain", "detached", {"lam": 0.01}),
            ("article", "full", {"lam": 0.01}),
            ("article", "detached", {"lam": 0.01}),
        ],
    )
    def test_fifty_steps_are_the_packages(self, engine, page_ws, crops, descent, gradient, changes):
        config = Config.from_preset("compact", f"descent={descent} gradient={gradient} iterations=50").replace(**changes)
        wanted, moments = trajectory(page_ws.vae, crops[:1], config, page_ws.expected), (0, 2, 50)
        begun, early, late = descend(engine, crops[0], settings_of(config), moments)
        states = [State(*(tensor[t] for tensor in wanted.tensors())) for t in moments]
        assert gap(states[-1].x, crops[0]) > 0.05  # it went somewhere
        assert gap(late["x"], states[-1].x) < 1e-3
        assert gap(late["f"], states[-1].reconstruction) < 1e-3
        assert gap(early["x"], states[1].x) < 1e-4
        assert early["alpha"] == pytest.approx(states[1].alpha.item(), rel=1e-5)
        assert gap(begun["f"], states[0].reconstruction) < 1e-5
        assert gap(begun["gradient"], states[0].gradient) < 1e-4
        if descent == "anchored":
            assert gap(begun["weight"], states[0].weight) < 1e-4
            assert states[0].weight.std() > 0.02
        for found, state in zip((begun, early, late), states, strict=True):
            torch.testing.assert_close(torch.tensor(found["terms"]), state.terms[0], rtol=1e-3, atol=1e-2)

    def test_a_step_that_raises_the_energy_is_taken_back(self, engine, page_ws, crops):
        config = Config.from_preset("compact", "alpha=30 iterations=3")
        begun, after = descend(engine, crops[0], settings_of(config), (0, 1))
        assert after["alpha"] == pytest.approx(0.4 * 30)
        assert all(torch.equal(after[name], begun[name]) for name in PICTURES)

    def test_composite_taken_again_and_again(self, engine, page_ws, crops):
        config = Config.from_preset("compact")
        settings = settings_of(config, descent="composite")
        seen = crops[:1]
        for found in descend(engine, crops[0], settings, (1, 2, 3, 4, 5)):
            seen = composite(page_ws.vae, crops[:1], config, page_ws.expected, seen)
            assert gap(found["x"], seen) < 1e-4
        assert gap(seen, crops[0]) > 0.1

    # Hardness 0 makes the weight 1/2 wherever it looks, and so the energy a function that differences can follow.
    @pytest.mark.parametrize(
        "changes",
        [
            {"descent": "anchored", "hardness": 0}, {"descent": "anchored", "hardness": 0, "coarse_weight": 2.0},
            {"descent": "paper"}, {"descent": "plain", "coarse_weight": 2.0, "lam": 1.0}, {"descent": "article", "lam": 1.0},
        ],
    )  # fmt: skip
    def test_gradient_is_that_of_central_differences_of_the_energy(self, engine, crops, changes):
        generator = torch.Generator().manual_seed(3)
        x_0 = 0.2 + 0.6 * crops[0]
        x = x_0 + 0.1 * (2 * torch.randint(2, x_0.shape, generator=generator) - 1)  # nowhere at the kink of |x - x_0|
        ways = [2 * torch.randint(2, x_0.shape, generator=generator).float() - 1 for _ in range(6)]
        ways += [torch.nn.functional.interpolate(torch.randn(1, 1, 8, 8, generator=generator), 128)[0] for _ in range(6)]
        run = """([x0, x, ways, settings]) => {
            const [image, picture, h] = [floatsOf(x0), floatsOf(x), 1e-3];
            const energy = (at) => (engine.start(image, settings, at), engine.terms[0] + engine.terms[1]);
            return ways.map(floatsOf).map((way) => {
                const [up, down] = [h, -h].map((by) => energy(picture.map((grey, i) => grey + by * way[i])));
                energy(picture);
                return [(up - down) / (2 * h), dot(engine.gradient, way)];
            });
        }"""
        pairs = engine.evaluate(run, [coded(x_0), coded(x), [coded(way) for way in ways], settings_of(Config(), **changes)])
        differences, products = np.array(pairs).T
        assert np.abs(differences).max() > 50
        np.testing.assert_allclose(products, differences, rtol=0, atol=5e-3 * np.abs(differences).max())

    def test_the_rounded_network_is_the_one_that_packed_returns(self, tab, page_ws, crops):
        settings = settings_of(Config.from_preset("compact"))
        tab, vae = opened(tab, page_ws, int8=True)
        (found,) = descend(tab, crops[0], settings, (0,))
        assert gap(found["f"], vae.reconstruct(crops[:1])) < 1e-5
        assert gap(found["f"], page_ws.vae.reconstruct(crops[:1])) > 1e-4
        opened(tab, page_ws, int8=False)


@pytest.fixture(scope="module")
def data(page_ws) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DESCENTS["paper"], "iterations", 2)
        return page_data(page_ws.reconfigured(iterations=3))


def grey(url: str) -> np.ndarray:
    assert url.startswith("data:image/png;base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    assert (picture.mode, picture.size) == ("L", (128, 128))
    return np.asarray(picture)


class TestWorker:
    pytestmark = in_browser

    @pytest.fixture
    def page(self, tab, data) -> Any:
        """The tab with a worker that has said whether it agrees with PyTorch."""
        opening = """async (data) => {
            const worker = new Worker(URL.createObjectURL(new Blob([data.worker])));
            window.heard = [];
            worker.onmessage = ({data: message}) => heard.push(message);
            window.worker = worker;
            window.until = async (met) => {
                while (!met()) {
                    const wrong = heard.find(({kind}) => kind === "error");
                    if (wrong) throw new Error(wrong.message);
                    await new Promise((resolve) => setTimeout(resolve, 10));
                }
            };
            window.ask = (message) => worker.postMessage({kind: "run", ...message, x0: floatsOf(message.x0)});
            const {model, expected, check} = data;
            worker.postMessage({kind: "open", wasm: bytesOf(data.wasm).buffer, model, expected, check});
            await until(() => heard.length);
            return heard[0];
        }"""
        ready = tab.evaluate(opening, data)
        assert ready["kind"] == "ready"
        assert max(ready["difference"].values()) < 1e-4
        return tab

    def test_runs_to_pytorchs_picture(self, page, data):
        crop = data["crops"][1]
        x_0 = torch.from_numpy(grey(crop["image"]) / np.float32(255))
        settings = data["check"]["settings"] | data["descents"]["anchored"]
        run = """async ([x0, settings, iterations]) => {
            heard.length = 0;
            ask({ticket: 7, x0, settings, iterations, warm: false});
            await until(() => heard.some(({kind}) => kind === "done"));
            return heard.map((m) => ({...m, ...(m.x && {x: encoded(m.x), f: encoded(m.f), weight: encoded(m.weight)})}));
        }"""
        *frames, done = page.evaluate(run, [coded(x_0), settings, 3])
        assert [frame["kind"] for frame in frames] == ["frame"] * 4
        assert [frame["t"] for frame in frames] == [0, 1, 2, 3]
        assert {message["ticket"] for message in (*frames, done)} == {7}
        assert done["kind"] == "done" and done["milliseconds"] > 0
        assert torch.equal(decoded(frames[0]["x"]), x_0.flatten())
        assert gap(255 * decoded(frames[3]["x"]), torch.from_numpy(grey(crop["results"]["anchored"]).astype(float))) < 0.51
        assert gap(255 * decoded(frames[0]["f"]), torch.from_numpy(grey(crop["f"]).astype(float))) < 0.51

    def test_a_newer_run_takes_the_place_of_an_older_one(self, page, data, crops):
        run = """async ([x0, settings]) => {
            heard.length = 0;
            ask({ticket: 1, x0, settings, iterations: 10_000, warm: false});
            await until(() => heard.length > 2);
            ask({ticket: 2, x0, settings, iterations: 2, warm: false});
            await until(() => heard.some(({kind}) => kind === "done"));
            return heard.map(({ticket, kind}) => [ticket, kind]);
        }"""
        heard = page.evaluate(run, [coded(crops[0]), data["check"]["settings"]])
        assert heard[-4:] == [[2, "frame"], [2, "frame"], [2, "frame"], [2, "done"]]
        assert all(ticket == 1 for ticket, _ in heard[:-4]) and len(heard) < 1000

    def test_a_warm_run_goes_on_where_the_image_is_unchanged(self, page, data, crops):
        painted = crops[0].clone()
        painted[:, :20, :30] = 0.9
        run = """async ([x0, painted, settings]) => {
            heard.length = 0;
            ask({ticket: 1, x0, settings, iterations: 3, warm: false});
            await until(() => heard.some(({kind}) => kind === "done"));
            ask({ticket: 2, x0: painted, settings, iterations: 0, warm: true});
            await until(() => heard.filter(({kind}) => kind === "done").length === 2);
            return [encoded(heard[3].x), encoded(heard[5].x)];
        }"""
        texts = page.evaluate(run, [coded(crops[0]), coded(painted), data["check"]["settings"]])
        before, after = (decoded(text).view(1, 128, 128) for text in texts)
        assert torch.equal(after[:, :20, :30], painted[:, :20, :30])
        elsewhere = painted == crops[0]
        assert torch.equal(after[elsewhere], before[elsewhere])

    def test_the_file_loads_nothing_else(self, tab, data, tmp_path):
        (tmp_path / "page.html").write_text(assemble(data), encoding="utf-8")
        page, asked, wrong = tab.context.browser.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_function("document.querySelector('#proof')?.dataset.state !== 'waiting'")
        page.close()
        assert not wrong
        assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [(tmp_path / "page.html").as_uri()]


def test_the_binary_is_made_from_the_source():
    made_from = hashlib.sha256((PAGE / "kernel.c").read_bytes()).hexdigest()
    assert made_from.encode() in (PAGE / "kernel.wasm").read_bytes(), "kernel.c has changed: run `make kernel`"


def test_weights_are_rounded_to_a_127th_of_their_rows_largest(page_ws):
    model, rounded = packed(page_ws.vae)
    exact = frozen(page_ws.vae).state_dict()
    for name, value in rounded.state_dict().items():
        used = slice(64) if name.startswith("posterior") else slice(None)
        old, new = exact[name][used], value[used]
        if old.ndim == 1:
            assert torch.equal(old, new)
            continue
        largest = old.flatten(1).abs().amax(1).view(-1, *[1] * (old.ndim - 1))
        assert ((old - new).abs() <= largest / 254 * 1.001).all()
        assert (new.flatten(1).unique(dim=1).shape[1] > 16) or new.shape[1] == 1
    kinds = {name: kind for name, kind, *_ in model["head"]}
    assert {kind for name, kind in kinds.items() if name.endswith("weight")} == {"int8"}
    assert all(offset % 4 == 0 for *_, offset in model["head"])


def test_data_hold_ten_crops_by_name_and_what_is_known_of_them(data, page_ws):
    names = [crop["name"] for crop in data["crops"]]
    defects = ["bent", "broken", "glue", "metal_contamination", "thread"]
    assert names == [f"{kind}/000" for kind in [*defects, "good"]] + [f"{kind}/001" for kind in defects[:4]]
    x_0, masks, corners = page_ws.crops_at(names)
    for crop, tile, mask, (top, left) in zip(data["crops"], x_0, masks, corners, strict=True):
        assert (grey(crop["image"]) == (255 * tile[0]).round().byte().numpy()).all()
        assert crop["results"].keys() == data["descents"].keys() == {"anchored", "paper", "composite"}
        assert all((grey(picture) != grey(crop["image"])).any() for picture in crop["results"].values())
        if crop["defect"] == "good":
            assert crop["truth"] is None and crop["mask"] is None
            continue
        assert (grey(crop["mask"]) == 255 * mask.numpy()).all()
        clean = np.asarray(Image.open(page_ws.folder / "clean" / f"{crop['name']}.png"))
        assert (grey(crop["truth"]) == clean[top : top + 128, left : left + 128]).all()
        outside = ~mask.numpy()
        assert (grey(crop["truth"])[outside] == grey(crop["image"])[outside]).all()
    json.dumps(data, allow_nan=False)


def test_sliders_hold_the_values_that_descents_start_from(data):
    for settings in data["descents"].values():
        for name in settings.keys() - {"gradient"}:
            slider = data["sliders"][name]
            assert settings[name] in slider["stations"]
            assert slider["low"] <= min(slider["stations"]) and max(slider["stations"]) <= slider["high"]


def test_one_file_of_at_most_four_megabytes_that_names_no_other(data, page_ws, tmp_path, monkeypatch, capsys):
    out = tmp_path / "folder" / "page.html"
    monkeypatch.setattr(Workspace, "open", lambda request: page_ws)
    monkeypatch.setattr("vaeproj.cli.page.page_data", lambda ws: data)
    assert main(["page", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    html = out.read_text(encoding="utf-8")
    # An untrained network paints noise; a trained one's pictures take the room of an image.
    noise = sum(len(p) - len(c["image"]) for c in data["crops"] for p in (c["f"], *c["results"].values()))
    assert len(out.read_bytes()) - noise <= LARGEST
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]
    assert not re.search(r"<!--(STYLE|DATA|SCRIPTS)-->", html)
    assert json.loads(re.search(r"const DATA = (\{.*\})</script>", html)[1].replace("<\\/", "</")) == data
    tags = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=", tags)
    assert not re.search(r"<link\b[^>]*href=(?![\"']?data:)", tags)
    assert not re.search(r"\bfetch\(|importScripts|XMLHttpRequest|WebSocket|@import|\burl\((?![\"']?data:)", html)


def test_refuses_what_the_kernel_cannot_compute(page_ws, refuses):
    with refuses("hidden = 128", "latent_dim = 32", "compact"):
        page_data(other := page_ws.reconfigured(hidden=128, latent_dim=32))
    assert "vae" not in vars(other)
    with refuses("widths = 32-64-128", "16-32-64-64"):
        page_data(page_ws.reconfigured(widths="32-64-128"))
    with refuses("crop_size = 64"):
        page_data(page_ws.reconfigured(crop_size=64, stride=32))
    colours = replace(page_ws.train, images=page_ws.train.images.expand(-1, 3, -1, -1))
    with refuses("channels = 3", "grey"):
        page_data(replace(page_ws, train=colours))


def test_a_folder_without_a_run_leaves_the_last_page_alone(tmp_path, capsys):
    (tmp_path / "page.html").write_text("the last one")
    assert main(["page", "--run", str(tmp_path / "nothing"), "--out", str(tmp_path / "page.html")]) == 2
    message = capsys.readouterr().err
    assert "manifest.json" in message and message.count("\n") == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the last one"]
