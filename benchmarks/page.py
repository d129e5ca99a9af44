"""Claim: the page computes an iteration in a browser faster than PyTorch does on the same core, and answers while one paints.

Both do the anchored descent of one tile by the compact VAE, gradient through it, taking turns on one core, to which this
process and its Chromium are bound; PyTorch as the panel does it, in fp32 like the page and in the precision that `projection`
takes on this machine. What counts is processor time, that of all of Chromium for the page: other work on the machine lengthens
the clock's. The page is opened from its file, as by double click, and painted on by a mouse that never rests.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from _common import Bench, run

from vaeproj.cli.page import assemble, packed, page_data
from vaeproj.config import RESULTS_DIR, UserError
from vaeproj.model import VAE
from vaeproj.projection import energy_gradient, project, step
from vaeproj.workspace import Request, Workspace

SIZES: dict[str, dict[str, Any]] = {  # iterations: of one turn; seconds: of painting
    "small": {"settings": "image_size=256 steps=1 batch_size=2", "iterations": 2, "turns": 1, "seconds": 1},
    "cpu": {"settings": "", "iterations": 100, "turns": 7, "seconds": 5},
}
SIZES["cuda"] = SIZES["cpu"]
# When the large canvas first holds a picture, and when kernel and PyTorch have been compared, ms since the page was asked for.
WATCH = """
window.moments = {};
const look = () => {
    const canvas = document.querySelector("#after");
    const drawn = canvas?.width === 128 && canvas.getContext("2d").getImageData(64, 64, 1, 1).data[3];
    if (drawn) moments.picture ??= performance.now();
    if (document.querySelector("#proof[data-state]:not([data-state=waiting])")) moments.proof ??= performance.now();
    if (!moments.proof || !moments.picture) requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""
# Lets the page's own engine take a turn.
COMPUTE = """async ([data, iterations]) => {
    const worker = new Worker(URL.createObjectURL(new Blob([data.worker])));
    const heard = (kind) => new Promise((resolve) => {
        worker.onmessage = ({data: message}) => message.kind === kind && resolve(message);
    });
    const [wasm, x0] = [data.wasm, data.check.x].map((text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)));
    worker.postMessage({kind: "open", ...data, wasm: wasm.buffer});
    await heard("ready");
    window.turn = async () => {
        const image = Float32Array.from(x0, (grey) => grey / 255);
        worker.postMessage({kind: "run", ticket: 1, x0: image, settings: data.check.settings, iterations, warm: false});
        await heard("done");
    };
    await turn();
}"""


def main(bench: Bench) -> None:
    """Time both, open and paint on the page, say what rounding the weights does, print table and JSON."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise UserError("Chromium is not on the PATH: install it, this benchmark measures a page in it.")
    from playwright.sync_api import sync_playwright

    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    scratch, small = tempfile.TemporaryDirectory(), bench.options.small
    request = Request("compact", bench.sizes["settings"], str(bench.folder.parent), bench.folder.name, "cpu")
    ws = Workspace.open(request, kept=Path(scratch.name) if small else RESULTS_DIR)
    data, path = page_data(ws), Path(scratch.name) / "page.html"
    path.write_text(assemble(data), encoding="utf-8")

    iterations, config = bench.sizes["iterations"], ws.config
    names = [crop["name"] for crop in data["crops"]]
    crops, _, _ = ws.crops_at(names)

    def turn(vae: VAE) -> None:
        state = energy_gradient(vae, crops[:1], crops[:1], config, ws.expected, crops.new_full((1,), config.alpha))
        for _ in range(iterations):
            state = step(vae, state, crops[:1], config, ws.expected)

    theirs = {str(vae.posterior.weight.dtype).removeprefix("torch."): vae for vae in (ws.vae, ws.fast_vae)}
    speeds: dict[str, list[float]] = {name: [] for name in ("page", *theirs)}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        tab = browser.new_page()
        tab.evaluate(COMPUTE, [data, iterations])
        for vae in theirs.values():
            turn(vae)  # warm up
        for _ in range(bench.sizes["turns"]):
            begun = _spent()
            tab.evaluate("turn()")
            took = {"page": _spent() - begun}
            for name, vae in theirs.items():
                begun = time.process_time()
                turn(vae)
                took[name] = time.process_time() - begun
            for name, seconds in took.items():
                speeds[name].append(1000 * seconds / (iterations + 1))
        tab.close()
        opened = [_open(browser, path.as_uri()) for _ in range(bench.sizes["turns"])]
        frames, each = _paint(browser, path.as_uri(), bench.sizes["seconds"])
        browser.close()

    _, rounded = packed(ws.vae)
    exact, coarse = (project(vae, crops, config, ws.expected) for vae in (ws.vae, rounded))
    change, error = (exact - crops).abs(), (coarse - exact).abs()
    page, *others = (median(values) for values in speeds.values())
    moments = {key: median(found[key] for found in opened) for key in opened[0]}
    size = path.stat().st_size
    bench.finish(
        ["page", "measured", "PyTorch, one thread", "ratio"],
        [
            *(
                ["an iteration, ms of processor time", f"{page:.2f}", f"{name} {other:.2f}", f"{other / page:.2f}"]
                for name, other in zip(theirs, others, strict=True)
            ),
            *(
                [what, f"{moments[key]:.0f}; of processor time {moments[f'{key}_processor']:.0f}", "", ""]
                for key, what in (("picture", "first picture, ms"), ("proof", "compared with PyTorch, ms"))
            ),
            ["pictures a second while painting", f"{frames:.1f}; of processor time {each:.1f} ms each", "", ""],
            ["the file, MB", f"{size / 1e6:.2f}", "", ""],
            ["int8 and fp32 weights: |x_T - x_T'|, grey levels 0 to 1", f"mean {error.mean():.1e}, most {error.max():.1e}",
             f"of a change of mean {change.mean():.1e}, most {change.max():.1e}", ""],
        ],
        core=core, load=os.getloadavg()[0], milliseconds=speeds, opened=opened, bytes=size,
        pictures_per_second=frames, picture_milliseconds=each,
        parts={name: len(str(value)) for name, value in data.items()},
        int8={"mean": error.mean().item(), "max": error.max().item()}, crops=names,
    )  # fmt: skip


def _spent() -> float:
    """Seconds of processor time that the processes started by this one have spent."""
    return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))


def _open(browser: Any, address: str) -> dict[str, float]:
    """Milliseconds from opening to each moment, and the processor time that all of Chromium spends until then."""
    tab = browser.new_page()
    tab.add_init_script(WATCH)
    begun, spent = _spent(), {}
    tab.goto(address, wait_until="commit")
    for moment in ("picture", "proof"):
        tab.wait_for_function(f"moments.{moment}")
        spent[f"{moment}_processor"] = 1000 * (_spent() - begun)
    moments = tab.evaluate("moments") | spent
    tab.close()
    return moments


def _paint(browser: Any, address: str, seconds: float) -> tuple[float, float]:
    """Pictures a second that the worker sends while a mouse draws to and fro, and what all of Chromium spends on one, ms."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(address)
    tab.wait_for_function("document.querySelector('#proof').dataset.state !== 'waiting'")
    tab.wait_for_timeout(1000)
    box = tab.locator("#stage").bounding_box()
    tab.evaluate("window.seen = []; worker.addEventListener('message', ({data}) => data.x && seen.push(performance.now()))")
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    begun, spent, i = tab.evaluate("performance.now()"), _spent(), 0
    while (now := tab.evaluate("performance.now()")) < begun + 1000 * seconds:
        i += 1
        x, y = (0.5 + 0.3 * ((i * pace) % 41 - 20) / 20 for pace in (1, 3))
        tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    spent, count = 1000 * (_spent() - spent), sum(begun <= moment <= now for moment in tab.evaluate("seen"))
    tab.mouse.up()
    tab.close()
    return 1000 * count / (now - begun), spent / max(count, 1)


if __name__ == "__main__":
    run(main, __doc__, SIZES)
