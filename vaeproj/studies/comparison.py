"""Methods side by side on the same trained VAEs: localization on whole images, restoration of crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..config import PRESETS, Config
from ..crops import to_unit
from ..data import load_clean
from ..localization import Score, anomaly_maps, change_score, projection_score, residual_score, smooth, ssim_map
from ..metrics import METRICS, evaluate, psnr
from ..projection import project, stopping_energy
from ..workspace import Workspace
from .article import BUGS, article_loop
from .cache import cached
from .proxy import proxy_workspace

LABEL_FREE_QUANTILE = 0.999  # of normal images' anomaly maps
ARTICLE = {key: PRESETS["blog"][key] for key in ("energy", "alpha", "lam", "iterations")}
# Tiles a call of the article's loop: its stale gradient keeps the graph of every iteration in memory.
ARTICLE_CHUNK = {"cpu": 32, "cuda": 256}


def scores(ws: Workspace) -> dict[str, Score]:
    """The methods compared, by name. The last is the preset's own, the headline."""
    config, vae, fast = ws.config, ws.vae, ws.fast_vae
    article = config.replace(**ARTICLE, gradient="full", soft_mask=True, stop_quantile=None)
    quantile = 0.9 if config.stop_quantile is None else config.stop_quantile
    projections = {
        "projection, detached": config.replace(gradient="detached", stop_quantile=None),
        "projection, full": config.replace(gradient="full", stop_quantile=None),
        "projection, full, stopped": config.replace(gradient="full", stop_quantile=quantile),
        "preset's own": config,
    }
    methods = {f"VAE residual, {kind.upper()}": residual_score(vae, kind) for kind in ("l1", "l2", "ssim", "l1_ssim")}
    methods |= {
        "article, as published": _article_score(ws, article, BUGS),
        "article + detached gradient": _article_score(ws, article, ("detached_gradient",)),
        "article + swapped BCE": _article_score(ws, article, ("swapped_bce",)),
        "article + stale gradient": _article_score(ws, article, ("stale_gradient",)),
        "article, corrected": projection_score(fast, article),
    }
    # The preset's own is mostly one of the rows above it: the same function then, to be judged once.
    by_config = {c: projection_score(fast, c, stopping_energy(fast, ws.stopping_crops, c)) for c in projections.values()}
    return methods | {name: by_config[c] for name, c in projections.items()}


def _article_score(ws: Workspace, config: Config, bugs: tuple[str, ...]) -> Score:
    def move(tiles: Tensor) -> Tensor:
        return torch.cat([article_loop(ws.vae, part, config, bugs) for part in tiles.split(ARTICLE_CHUNK[tiles.device.type])])

    return change_score(move, config.score)


@dataclass(frozen=True)
class Result:
    """One method on one VAE: smoothed anomaly maps, float32 [N, H, W], and metrics of them and of the raw ones."""

    maps: Tensor
    smoothed: dict[str, Any]
    raw: dict[str, Any]


def judge(ws: Workspace, score: Score) -> Result:
    """Anomaly maps of every test image and their metrics, raw and smoothed."""
    raw = anomaly_maps(ws.test.images, score, ws.config)
    maps = smooth(raw, ws.config.sigma, ws.config.sigma_wide)
    smoothed = evaluate(maps, ws.test.gt_masks, ws.test.defects)
    return Result(maps, smoothed, evaluate(raw, ws.test.gt_masks, ws.test.defects, bootstrap=0))


def _judged(ws: Workspace, name: str, score: Score, *, keep_maps: bool) -> Result:
    """`judge`, or what an earlier run left of it: a comparison that was killed goes on at the method where it stopped.

    Maps are as large as the images: without ``keep_maps`` there are none.
    """

    def compute() -> tuple[Any, np.ndarray]:
        result = judge(ws, score)
        return [result.smoothed, result.raw], (result.maps if keep_maps else result.maps[:0]).cpu().numpy()

    (smoothed, raw), maps = cached(ws, f"method: {name}, {ARTICLE}, maps {keep_maps}", compute)
    return Result(torch.from_numpy(maps), smoothed, raw)


def compare(ws: Workspace, seeds: Sequence[int]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Every method on the VAE of every seed; each is computed once, then found by fingerprint.

    Returns:
        For each method the mean over seeds of each metric, ``raw`` metrics alike, ``seeds`` (a row each), and of the
        first seed ``standard_error``, ``per_defect`` and ``oracle_F1`` with its threshold; ``gain``: how far the mean lies
        above the best VAE residual's in each metric, with the standard error of that difference, images resampled alike for
        both and in every seed.
        For each method the first seed's smoothed maps, [N, H, W].
    """
    rows: dict[str, list[Result]] = {}
    for seed in seeds:
        chosen = ws.reconfigured(seed=seed)
        judged: dict[Score, Result] = {}
        for name, score in tqdm(scores(chosen).items(), desc=f"seed {seed}", unit="method"):
            if score not in judged:
                judged[score] = _judged(chosen, name, score, keep_maps=seed == seeds[0])
            rows.setdefault(name, []).append(judged[score])
    methods: dict[str, Any] = {}
    for name, results in rows.items():
        first = results[0].smoothed
        methods[name] = {key: float(np.mean([r.smoothed[key] for r in results])) for key in METRICS}
        methods[name]["raw"] = {key: float(np.mean([r.raw[key] for r in results])) for key in METRICS}
        methods[name]["seeds"] = {str(s): {k: r.smoothed[k] for k in METRICS} for s, r in zip(seeds, results, strict=True)}
        methods[name] |= {key: value for key, value in first.items() if key not in (*METRICS, "replicates")}
        methods[name]["gain"] = _gain(results, [r for other, r in rows.items() if other.startswith("VAE")])
    return methods, {name: results[0].maps for name, results in rows.items()}


def _gain(own: list[Result], others: list[list[Result]]) -> dict[str, dict[str, float]]:
    """How far one method's mean over seeds lies above the best of others, and the paired standard error of that difference."""

    def mean(results: list[Result], key: str) -> float:
        return float(np.mean([result.smoothed[key] for result in results]))

    def replicates(results: list[Result]) -> np.ndarray:
        """[bootstrap, metrics]: a resampling draws the same images in every seed, so its value too is a mean over seeds."""
        return np.mean([result.smoothed["replicates"] for result in results], axis=0)

    gain = {}
    for k, key in enumerate(METRICS):
        best = max(others, key=lambda other: mean(other, key))
        spread = replicates(own)[:, k] - replicates(best)[:, k]
        gain[key] = {"difference": mean(own, key) - mean(best, key), "standard_error": float(np.std(spread, ddof=1))}
    return gain


def relative(maps: Tensor) -> Tensor:
    """Maps [N, H, W] in units of each image's own median: an image that is new to the VAE as a whole is not all defect."""
    return maps / maps.flatten(1).median(1).values.clamp(min=1e-12)[:, None, None]


def label_free_threshold(ws: Workspace) -> float:
    """Where to cut the preset's own smoothed maps, made `relative`, from normal images alone: the 99.9 % quantile of theirs.

    A VAE knows its own training images too well, few as they are. So a second one is trained without a fifth of them
    (`proxy_workspace`), and its maps of those it has not seen are what the quantile is taken of.
    """
    held_out = proxy_workspace(ws)
    good = [i for i, defect in enumerate(held_out.test.defects) if defect == "good"]
    maps = relative(own_maps(held_out, held_out.test.images[good]))
    return np.quantile(maps.cpu().numpy(), LABEL_FREE_QUANTILE).item()


def own_maps(ws: Workspace, images: Tensor) -> Tensor:
    """Smoothed anomaly maps of a workspace's own method, [N, H, W], for images uint8 [N, C, H, W]."""
    score = projection_score(ws.fast_vae, ws.config, ws.stop_at)
    return smooth(anomaly_maps(images, score, ws.config), ws.config.sigma, ws.config.sigma_wide)


def restoration(ws: Workspace) -> dict[str, dict[str, Tensor]]:
    """How near each picture of a defective crop comes to the same scene without its defect (SynthGrid knows it).

    One crop of every defective test image, centred on the defect.

    Returns:
        For the test image, the VAE's reconstruction and the projection: ``psnr_inside``, ``psnr_outside`` (dB),
        ``ssim_inside``, ``ssim_outside``, each [images], over the pixels inside and outside the mask. Where image and
        truth agree exactly the PSNR is infinite.
    """
    names = [name for name in ws.test.names if not name.startswith("good/")]
    crops, masks, corners = ws.crops_at(names)
    side = ws.config.crop_size
    scenes = to_unit(load_clean(ws.folder, names, ws.config.image_size).to(ws.device))
    clean = torch.stack([scene[..., y : y + side, x : x + side] for scene, (y, x) in zip(scenes, corners, strict=True)])
    with torch.no_grad():
        painted = ws.vae.reconstruct(crops)
    pictures = {"test image": crops, "VAE": painted, "projection": project(ws.fast_vae, crops, ws.config, ws.stop_at).image}
    inside = masks.to(ws.device)
    result: dict[str, dict[str, Tensor]] = {}
    for method, picture in pictures.items():
        similarity = ssim_map(picture, clean).mean(1)
        row = {"psnr_inside": psnr(picture, clean, inside), "psnr_outside": psnr(picture, clean, ~inside)}
        for key, where in (("ssim_inside", inside), ("ssim_outside", ~inside)):
            row[key] = (similarity * where).sum((1, 2)) / where.sum((1, 2))
        result[method] = {key: value.cpu() for key, value in row.items()}
    return result


def means(rows: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, float]]:
    """Mean over images of what `restoration` returns, infinite and undefined values left out; none left: no entry."""
    kept = {m: {k: v[v.isfinite()] for k, v in row.items()} for m, row in rows.items()}
    return {m: {k: round(v.mean().item(), 3) for k, v in row.items() if len(v)} for m, row in kept.items()}


def table(methods: dict[str, Any]) -> str:
    """Markdown: a row a method, smoothed metrics with the spread over seeds, raw pixel AUROC last."""
    lines = ["| method | " + " | ".join(METRICS) + " | raw pixel_AUROC |", "|---|" + "---|" * (len(METRICS) + 1)]
    for name, row in methods.items():
        cells = []
        for key in METRICS:
            values = [seed[key] for seed in row["seeds"].values()]
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
            cells.append(f"{row[key]:.4f}{spread}")
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {row['raw']['pixel_AUROC']:.4f} |")
    return "\n".join(lines)


def save_maps(maps: Tensor, names: Sequence[str], folder: Path) -> None:
    """Anomaly maps [N, H, W] as float16 npz with their image names, and as PNGs over a common grey scale."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "anomaly_maps.npz", maps=maps.cpu().numpy().astype(np.float16), names=np.array(names))
    grey = (maps / maps.max() * 255).round().byte().cpu().numpy()
    for name, pixels in zip(names, grey, strict=True):
        Image.fromarray(pixels).save(folder / f"{name.replace('/', '_')}.png")
