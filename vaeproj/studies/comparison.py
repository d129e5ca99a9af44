"""Methods side by side on the same trained VAEs: localization on whole images, restoration of crops."""

import functools
from collections.abc import Sequence
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


def judge(ws: Workspace, score: Score, *, keep_maps: bool = True) -> tuple[dict[str, Any], np.ndarray]:
    """Metrics of the anomaly maps of every test image, smoothed and ``raw``, and the smoothed maps, float32 [N, H, W].

    Maps are as large as the images: without ``keep_maps`` there are none.
    """
    raw = anomaly_maps(ws.test.images, score, ws.config)
    maps = smooth(raw, ws.config.sigma, ws.config.sigma_wide)
    metrics = evaluate(maps, ws.test.gt_masks, ws.test.defects)
    metrics["raw"] = evaluate(raw, ws.test.gt_masks, ws.test.defects, bootstrap=0)
    return metrics, (maps if keep_maps else maps[:0]).cpu().numpy()


def compare(ws: Workspace, seeds: Sequence[int]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Every method on the VAE of every seed; each is computed once, then found by what made it, also after a killed run.

    Returns:
        For each method the mean over seeds of each metric, ``raw`` metrics alike, ``seeds`` (a row each), and of the
        first seed ``standard_error``, ``per_defect`` and ``oracle_F1`` with its threshold; ``gain``: how far the mean lies
        above the best VAE residual's in each metric, with the standard error of that difference, images resampled alike for
        both and in every seed.
        For each method the first seed's smoothed maps, [N, H, W].
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    maps: dict[str, Tensor] = {}
    for seed in seeds:
        chosen, judged = ws.reconfigured(seed=seed), {}
        for name, score in tqdm(scores(chosen).items(), desc=f"seed {seed}", unit="method"):
            if score not in judged:
                keep = seed == seeds[0]
                compute = functools.partial(judge, chosen, score, keep_maps=keep)
                judged[score] = cached(chosen, f"method: {name}, {ARTICLE}, maps {keep}", compute)
            rows.setdefault(name, []).append(judged[score][0])
            maps.setdefault(name, torch.from_numpy(judged[score][1]))
    residuals = [results for name, results in rows.items() if name.startswith("VAE")]
    methods: dict[str, Any] = {}
    for name, results in rows.items():
        methods[name] = {key: value for key, value in results[0].items() if key not in ("replicates", "raw")}
        methods[name] |= {key: _mean(results, key) for key in METRICS}
        methods[name]["raw"] = {key: _mean([r["raw"] for r in results], key) for key in METRICS}
        methods[name]["seeds"] = {str(s): {k: r[k] for k in METRICS} for s, r in zip(seeds, results, strict=True)}
        methods[name]["gain"] = _gain(results, residuals)
    return methods, maps


def _mean(results: list[dict[str, Any]], key: str) -> Any:
    return np.mean([result[key] for result in results], axis=0).tolist()


def _gain(own: list[dict[str, Any]], others: list[list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """How far one method's mean over seeds lies above the best of others, and the paired standard error of that difference.

    A resampling draws the same images in every seed, so its value too is a mean over seeds.
    """
    gain = {}
    for k, key in enumerate(METRICS):
        best = max(others, key=lambda other: _mean(other, key))
        one, other = (np.array(_mean(results, "replicates"))[:, k] for results in (own, best))
        gain[key] = {"difference": _mean(own, key) - _mean(best, key), "standard_error": float(np.std(one - other, ddof=1))}
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
    side, masks = ws.config.crop_size, masks.to(ws.device)
    scenes = to_unit(load_clean(ws.folder, names, ws.config.image_size).to(ws.device))
    clean = torch.stack([scene[..., y : y + side, x : x + side] for scene, (y, x) in zip(scenes, corners, strict=True)])
    with torch.no_grad():
        painted = ws.vae.reconstruct(crops)
    pictures = {"test image": crops, "VAE": painted, "projection": project(ws.fast_vae, crops, ws.config, ws.stop_at)}
    result: dict[str, dict[str, Tensor]] = {method: {} for method in pictures}
    for method, picture in pictures.items():
        similarity = ssim_map(picture, clean).mean(1)
        for place, where in (("inside", masks), ("outside", ~masks)):
            result[method][f"psnr_{place}"] = psnr(picture, clean, where).cpu()
            result[method][f"ssim_{place}"] = ((similarity * where).sum((1, 2)) / where.sum((1, 2))).cpu()
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
