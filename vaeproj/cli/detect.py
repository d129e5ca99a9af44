"""Defects in one's own photos: a network trained on good ones, limits from good ones held out, results at each photo's size."""

import csv
import hashlib
import json
from base64 import b64encode
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from timeit import timeit
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor
from tqdm import tqdm

from ..animation import FONT, levels
from ..config import RESULTS_DIR, Config, UserError
from ..crops import tile, to_unit, untile
from ..data import Split, bit_depth, decode, open_image, read_file
from ..device import set_up_device
from ..figures import MAGMA
from ..files import written_whole
from ..localization import difference, smooth
from ..panel.sheet import jpeg
from ..projection import project
from ..studies.cache import cached
from ..studies.comparison import LABEL_FREE_QUANTILE
from ..training import batch_indices, checkpoint_path, fit
from ..workspace import Request, Workspace

HELD_OUT = 5  # one good photo in so many is not trained on: it says what is normal
ASPECTS = 1.05  # by no larger factor may the aspect of a photo differ from that of every good one
SHEET, SUMMARY = Path(__file__).with_name("contact.html"), "detect.json"  # the latter marks a folder of results
SIDE, HEAD, GAP = 256, 34, 8  # of the contact sheet: longer side of a picture, its title, the space between two, pixels
COLUMNS = ("picture", "name", "verdict", "score", "defective_share", "reason")  # of results.csv


def detect(
    pictures: Sequence[str], good: str, request: Request, *, run: str = "", ignore: str = "", kept: Path = RESULTS_DIR
) -> Generator[str, None, int]:
    """Judge photos, files or folders of them, by a folder of ``good`` ones, and write what is found into
    ``request.folder("detect")``. Yields what to print, with a reason for each photo left out; returns how many were flagged.
    A `UserError` for an option that does not fit, nothing to judge or to judge by: all found before a training.

    ``run``, the folder of a finished run, has its network and hyper-parameters taken instead of training on good photos;
    ``ignore`` is a picture that is white where a photo does not count, resized to each.
    """
    out, names, good_names = request.folder("detect"), _names(pictures), _names([good])
    if (out.exists() and not (out / SUMMARY).is_file()) or any(out in path.resolve().parents for path in names | good_names):
        raise UserError(f"{out} holds something else than results of this command: pass --out another folder.")
    blind = open_image(Path(ignore), read_file(Path(ignore))).convert("L") if ignore else Image.new("L", (1, 1))
    counts = blind.point(lambda level: 255 * (level < 128), "1")  # of mode 1, which is resized by nearest neighbour
    ws = finished(run, request, kept) if run else None
    config = ws.config if ws else Config.from_preset(request.preset, request.settings)

    skipped: dict[Path, str] = {}
    bits = max(_each(lambda path: bit_depth(path, read_file(path)), good_names, {}).values(), default=8)
    read = _each(lambda path: _pixels(path, config.image_size, bits), good_names | names, skipped)
    kinds = [len(pixels) for path, pixels in read.items() if path in good_names]
    kind = ws.train.images.shape[1] if ws else max((1, 3), key=kinds.count)
    known = {path: pixels for path, pixels in read.items() if path in good_names and len(pixels) == kind}
    skipped |= {path: f"{path} is one of the good photos: judge others." for path in names if path in known}
    others = [path for path in read if path not in known and kinds]
    asked = _each(lambda path: _fitting(path, read[path], kind, list(known.values())), others, skipped)
    yield from (f"Skipped: {reason}" for reason in skipped.values())
    if len(known) < 2 or not asked:
        raise UserError(f"{len(known)} good photos and {len(asked)} to judge are too few: name two and one at least.")
    if hidden := [path for path in [*known, *asked] if not counts.resize(read[path][0].shape[::-1]).getbbox()]:
        raise UserError(f"{ignore} leaves nothing of {hidden[0]} that counts: paint black what does.")

    spread = np.linspace(0, len(known) - 1, max(1, len(known) // HELD_OUT)).round().astype(int)
    held = list(known) if ws else [list(known)[i] for i in spread]
    ws = ws or _workspace([known[path] for path in known if path not in held], config, request, Path(good), kept)
    if not checkpoint_path(config, ws.train.digest, kept / "checkpoints").exists():
        yield f"Training takes about {_duration(ws.train.images, config)}, once; good photos held out: {len(held)}."
    limits = _limits(ws, [known[path] for path in held], counts)
    rows: list[dict[str, Any]] = []
    with written_whole(out) as scratch:
        scratch.mkdir()
        for path, pixels in asked.items():
            heat, counted, repaired = _judge(ws, pixels, counts)
            share = float((heat[counted] > limits["pixel"]).mean())
            score, verdict = share / limits["share"], "flagged" if share > limits["share"] else "good"
            row = {"picture": str(path), "name": names[path], "verdict": verdict, "score": score, "defective_share": share}
            shown = _write(scratch / names[path], path, bits, heat / limits["pixel"], repaired, counts)
            rows.append(row | {"pictures": shown})
            yield f"{verdict:8}{score:6.2f}  {path}"
        flagged = sum(row["verdict"] == "flagged" for row in rows)
        chance = f"so is, by chance, about 1 in {len(held) + 1} good ones"
        summary = f"{flagged} of {len(asked)} flagged ({chance}), {len(skipped)} files skipped"
        _write_sheets(scratch, rows, summary, list(skipped.values()))
        rows += [{"picture": str(path), "verdict": "skipped", "reason": skipped[path]} for path in names if path in skipped]
        with (scratch / "results.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *([row.get(column) for column in COLUMNS] for row in rows)])
        made = {"config": asdict(config), "weights": ws.weights, "run": run, "ignore": ignore, "limits": limits}
        (scratch / SUMMARY).write_text(json.dumps(made | {"held_out": [str(path) for path in held]}, indent=1) + "\n")
    yield f"{summary}: {out / 'contact_sheet.html'}"
    return flagged


def _names(given: Iterable[str]) -> dict[Path, str]:
    """Every file named, or in a folder named, once; and a name that no other has, for what is written about it."""
    names: dict[Path, str] = {}
    for top in (Path(text).expanduser().absolute() for text in given):
        for path in [p for p in sorted(top.rglob("[!.]*")) if p.is_file()] if top.is_dir() else [top]:
            name = path.stem if path.parent in (top, top.parent) else f"{path.parent.name}_{path.stem}"
            while path not in names and name in names.values():
                name += "+"
            names.setdefault(path, name)
    return names


def _each(work: Callable[[Path], Any], paths: Collection[Path], skipped: dict[Path, str]) -> dict[Path, Any]:
    """What ``work`` makes of each path; one that it refuses is left out, and joins ``skipped`` with the reason."""

    def attempt(path: Path) -> Any:
        try:
            return work(path)
        except UserError as error:
            return error

    with ThreadPoolExecutor() as pool:
        made = dict(zip(paths, pool.map(attempt, paths), strict=True))
    skipped |= {path: str(error) for path, error in made.items() if isinstance(error, UserError)}
    return {path: value for path, value in made.items() if path not in skipped}


def _pixels(path: Path, side: int, bits: int) -> np.ndarray:
    """A photo at the network's scale, its shorter side ``side`` pixels: uint8 [C, H, W]."""
    image = open_image(path, read_file(path))
    width, height = image.size
    short = min(image.size)
    if short < side:
        raise UserError(f"{path} is {width}x{height} pixels, which is less than image_size = {side}: take it larger.")
    return decode(image, (round(width * side / short), round(height * side / short)), bits)


def _fitting(path: Path, pixels: np.ndarray, kind: int, known: list[np.ndarray]) -> np.ndarray:
    """The pixels; a `UserError` where a network for ``kind`` channels and good photos cannot say what is normal in them."""
    if len(pixels) != kind:
        own, other = ("grey", "colour") if kind == 3 else ("colour", "grey")
        raise UserError(f"{path} is in {own} where {other} is wanted: take all photos alike.")
    aspect, *aspects = (max(x[0].shape) / min(x[0].shape) for x in (pixels, *known))
    if all(max(aspect / other, other / aspect) > ASPECTS for other in aspects):
        raise UserError(f"{path} has an aspect of {aspect:.2f}, no good photo has: cut it, or add good ones like it.")
    return pixels


def finished(run: str, request: Request, kept: Path = RESULTS_DIR) -> Workspace:
    """The workspace of a finished run, given its folder, with ``request.settings`` over its own; a `UserError` elsewhere."""
    try:
        parameters = json.loads((Path(run) / "manifest.json").read_text())["parameters"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{run} has no manifest.json of a finished run: pass its folder, such as results/quick.") from error
    settings = f"{parameters['settings']} {request.settings}"
    return Workspace.open(replace(request, **parameters | {"settings": settings}), kept=kept)


def _workspace(photos: list[np.ndarray], config: Config, request: Request, folder: Path, kept: Path) -> Workspace:
    """Photos to train on, cut along their longer side into as few squares as cover it."""
    side, device = config.image_size, set_up_device(request.device)
    images = torch.cat([tile(torch.tensor(pixels)[None], side, side)[0] for pixels in photos])
    masks, names = np.zeros((len(images), side, side), np.uint8), [f"good/{i:03d}" for i in range(len(images))]
    train = Split(images.to(device), masks, ["good"] * len(images), names, hashlib.sha256(images.numpy().tobytes()).hexdigest())
    return Workspace(config, request, folder, request.folder("detect"), device, kept, train, train)


def _duration(images: Tensor, config: Config) -> str:
    """How long the training will take, by a few of its steps."""
    fits = [partial(fit, images, config.replace(steps=steps, epochs=0), progress=False) for steps in (1, 1, 6)]
    _, one, six = (timeit(each, number=1) for each in fits)  # the first sets up what is set up once
    seconds = (six - one) / 5 * len(batch_indices(len(images), config))
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _judge(ws: Workspace, pixels: np.ndarray, counts: Image.Image) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Anomaly map in units of its median [h, w], where it counts, bool, and the repaired photo, [C, h, w] in [0, 1]."""
    config, (height, width) = ws.config, pixels.shape[1:]
    tiles = tile(to_unit(torch.tensor(pixels)[None].to(ws.device)), config.crop_size, config.stride)[0]
    moved = project(ws.fast_vae, tiles, config, ws.expected)
    change, repaired = (untile(t[None], height, width, config.stride) for t in (difference(tiles, moved, config.score), moved))
    heat = smooth(change.mean(1), config.sigma, config.sigma_wide)[0].cpu().numpy()
    counted = np.asarray(counts.resize((width, height)))
    return heat / max(np.median(heat[counted]), 1e-12), counted, repaired[0].cpu().numpy()


def _limits(ws: Workspace, held: list[np.ndarray], counts: Image.Image) -> dict[str, float]:
    """What good photos reach that the network never saw: ``pixel``, a quantile of all their pixels; ``share``, how large a part
    of the worst of them lies above that. On defects pasted on good photos this share told more than the highest pixel.
    """

    def compute() -> tuple[dict[str, float], np.ndarray]:
        judged = (_judge(ws, pixels, counts) for pixels in tqdm(held, "good photos held out", unit="photo"))
        normal = [heat[counted] for heat, counted, _ in judged]
        limit = float(np.quantile(np.concatenate(normal), LABEL_FREE_QUANTILE))
        return {"pixel": limit, "share": max(1e-6, *(float((part > limit).mean()) for part in normal))}, np.empty(0)

    digest = hashlib.sha256(b"".join(pixels.tobytes() for pixels in held) + counts.tobytes()).hexdigest()
    return cached(ws, f"detect: {digest}", compute)[0]


def _write(stem: Path, path: Path, bits: int, heat: np.ndarray, repaired: np.ndarray, counts: Image.Image) -> list[Image.Image]:
    """Write heat map, mask and repaired photo, ``heat`` in units of its limit; returns thumbnails of the photo and these."""
    image = open_image(path, read_file(path))
    whole = Image.fromarray(np.broadcast_to(decode(image, image.size, bits).transpose(1, 2, 0), (*image.size[::-1], 3)))
    large = np.asarray(Image.fromarray(heat).resize(whole.size, Image.Resampling.BILINEAR))
    mask = (large > 1) & np.asarray(counts.resize(whole.size))
    counted = np.asarray(counts.resize(heat.shape[::-1]))
    strength = np.where(counted, (heat - 0.5) / 1.5, 0).clip(0, 1)  # nothing at half the limit, all at twice
    colours, opacity = MAGMA[(strength * 255).astype(np.uint8)], (strength * 150).astype(np.uint8)
    layer, cover = (Image.fromarray(part).resize(whole.size) for part in (colours, opacity))
    made = {"heat.jpg": Image.composite(layer, whole, cover), "mask.png": Image.fromarray(mask)}
    made["repaired.png"] = Image.fromarray(levels(repaired)).convert("RGB")
    for ending, picture in made.items():
        picture.save(f"{stem}_{ending}")
    return [ImageOps.contain(p.convert("RGB"), (SIDE, SIDE)) for p in (whole, *made.values())]


def _write_sheets(folder: Path, rows: list[dict[str, Any]], summary: str, skipped: list[str]) -> None:
    """The contact sheet, highest score first, as a picture and as a page that needs no other file."""
    rows = sorted(rows, key=lambda row: -row["score"])
    sheet = Image.new("RGB", (4 * (SIDE + GAP), len(rows) * (HEAD + SIDE)), "white")
    for top, row in zip(range(0, sheet.height, HEAD + SIDE), rows, strict=True):
        ImageDraw.Draw(sheet).text((0, top + HEAD - 6), "{verdict} {score:.2f}  {name}".format(**row), "black", FONT, "ls")
        for k, picture in enumerate(row["pictures"]):
            sheet.paste(picture, (k * (SIDE + GAP), top + HEAD))
    sheet.save(folder / "contact_sheet.png")
    data = {"entries": rows, "summary": summary, "skipped": skipped}
    text = json.dumps(data, default=lambda picture: b64encode(jpeg(picture)).decode()).replace("<", "\\u003c")
    (folder / "contact_sheet.html").write_text(SHEET.read_text(encoding="utf-8").replace("__DATA__", text), encoding="utf-8")
