"""The projection live in the reader's browser: one HTML file that holds network, kernel and ten crops (page/README.md)."""

import gzip
import json
from base64 import b64encode
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

import torch

from .. import __version__
from ..animation import data_url, levels
from ..config import COMPACT, DESCENTS, PROJECT_ROOT, Config, UserError
from ..model import VAE, frozen
from ..panel.widgets import KNOBS, LADDERS, idle
from ..projection import energy_gradient, project
from ..studies.comparison import TAKEN_AGAIN, defects_and_truth, taken_again
from ..workspace import Workspace

PAGE = PROJECT_ROOT / "page"
SCRIPTS = ("words.js", "address.js", "pictures.js", "controls.js", "app.js")
SHAPE = {"channels": 1, "crop_size": 128} | {name: COMPACT[name] for name in ("widths", "hidden", "latent_dim")}  # of kernel.c
CROPS = 10
LONGEST = 300  # iterations: a phone keeps every frame


def assemble(data: dict[str, Any]) -> str:
    """The page as one text: style, scripts and what `page_data` returns, in the places that index.html marks."""
    page, style, *scripts = ((PAGE / name).read_text(encoding="utf-8") for name in ("index.html", "style.css", *SCRIPTS))
    literal = json.dumps(data).replace("</", "<\\/")  # no text inside may end the script
    page = page.replace("<!--STYLE-->", f"<style>\n{style}</style>")
    page = page.replace("<!--SCRIPTS-->", "\n".join(f"<script>\n{script}</script>" for script in scripts))
    return page.replace("<!--DATA-->", f"<script>const DATA = {literal}</script>")


def page_data(ws: Workspace) -> dict[str, Any]:
    """What the page's scripts know as DATA; its pictures are PyTorch's, by the rounded network that the page computes with.
    A `UserError` for a network that the page's kernel cannot compute; it is not trained.
    """
    given = {"channels": ws.train.images.shape[1]} | asdict(ws.config)
    if other := [name for name in SHAPE if given[name] != SHAPE[name]]:
        has, wants = (", ".join(f"{name} = {values[name]}" for name in other) for values in (given, SHAPE))
        raise UserError(f"The page's kernel computes {wants}, not {has}: take preset compact and grey images.")
    model, vae = packed(ws.vae)
    anchored, paper = (ws.config.replace(**DESCENTS[name], gradient="full") for name in ("anchored", "paper"))
    anchored = ws.config if ws.config.descent == "anchored" else anchored
    own = {c.descent: {name: getattr(c, name) for name in KNOBS[1:] if name not in idle(c)} for c in (anchored, paper)}
    own["composite"] = {"passes": TAKEN_AGAIN, "tolerance": anchored.tolerance, "hardness": anchored.hardness}
    sliders: dict[str, Any] = {"passes": {"low": 1, "high": 8, "stations": [1, 2, 3, 4, 5, 6, 8]}}
    for name, ladder in LADDERS.items():
        meta, values = Config.__dataclass_fields__[name].metadata, {*ladder, *(c[name] for c in own.values() if name in c)}
        stations = sorted(value for value in values if name != "iterations" or value <= LONGEST)
        sliders[name] = {"low": meta["low"], "high": meta["high"], "stations": stations}

    # The first image of each kind, good ones last, then the second of each: by name, not by looks.
    kinds = sorted({*ws.test.defects}, key=lambda kind: (kind == "good", kind))
    rows = zip_longest(*([name for name in ws.test.names if name.split("/")[0] == kind] for kind in kinds))
    names = [name for row in rows for name in row if name][:CROPS]
    x_0, masks, _ = ws.crops_at(names)
    defective = [name for name in names if not name.startswith("good/")]
    truth = dict(zip(defective, defects_and_truth(ws, defective)[1], strict=True)) if ws.is_synthetic else {}
    results = {c.descent: project(vae, x_0, c, ws.expected) for c in (anchored, paper)}
    results["composite"] = taken_again(vae, x_0, anchored, ws.expected)[-1]
    crops = []
    for i, (name, mask, picture) in enumerate(zip(names, masks, vae.reconstruct(x_0), strict=True)):
        shown = {"image": x_0[i], "f": picture, "truth": truth.get(name), "mask": mask[None].float() if mask.any() else None}
        pictures = {key: value if value is None else data_url(levels(value.cpu().numpy())) for key, value in shown.items()}
        crops.append({"name": name, "defect": name.split("/")[0]} | pictures)
        crops[-1]["results"] = {descent: data_url(levels(x_t[i].cpu().numpy())) for descent, x_t in results.items()}
    state = energy_gradient(vae, x_0[:1], x_0[:1], anchored, ws.expected, x_0.new_full((1,), anchored.alpha))
    run = {name: getattr(ws.request, name) for name in ("preset", "settings", "category")}
    check = {"x": (255 * x_0[0]).round().byte(), "f": state.reconstruction, "gradient": state.gradient}
    return {
        "version": __version__, "side": ws.config.crop_size, "model": model, "expected": ws.expected.tolist(),
        "run": run | {"fingerprint": ws.fingerprint}, "wasm": b64encode((PAGE / "kernel.wasm").read_bytes()).decode(),
        "worker": "".join((PAGE / name).read_text(encoding="utf-8") for name in ("engine.js", "worker.js")),
        "descents": own, "sliders": sliders, "crops": crops,
        "white": round((results["anchored"] - x_0).abs().flatten().quantile(0.99).item(), 3),
        "check": {name: b64encode(array.cpu().numpy().tobytes()).decode() for name, array in check.items()}
        | {"terms": state.terms[0].tolist(), "settings": {name: getattr(anchored, name) for name in KNOBS}},
    }  # fmt: skip


def packed(vae: VAE, *, int8: bool = True) -> tuple[dict[str, Any], VAE]:
    """Weights and biases, layer by layer, as {head: [[name, dtype, shape, offset], ...], data: base64 of gzip}, and the frozen
    VAE that has them. ``int8``: matrices and filters in steps of a 127th of a row's largest weight, ``NAME.scale`` [rows].
    """
    rounded, head, data = frozen(vae), [], b""
    for name, value in rounded.state_dict().items():
        used = value[: vae.latent_dim] if name.startswith("posterior") else value  # a picture needs no log-variance
        parts = {name: used}
        if int8 and value.ndim > 1:
            scale = used.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
            steps = scale.view(-1, *[1] * (used.ndim - 1))
            parts = {name: (used / steps).round().to(torch.int8), f"{name}.scale": scale}
            used.copy_(parts[name] * steps)
        for key, part in parts.items():
            head.append([key, str(part.dtype).removeprefix("torch."), list(part.shape), len(data)])
            content = part.cpu().numpy().tobytes()
            data += content + bytes(-len(content) % 4)  # floats begin at multiples of four
    return {"head": head, "data": b64encode(gzip.compress(data, mtime=0)).decode()}, frozen(rounded)
