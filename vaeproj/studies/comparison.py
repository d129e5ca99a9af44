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
ARTICLE_CHUNK = {"cpu": 32, "cuda": 256}  # tiles a call: its stale gradient keeps the graph of every iteration in memory


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
    methods["article, as published"] = _article_score(ws, article, BUGS)
    methods |= {f"article + {bug.replace('_', ' ').replace('bce', 'BCE')}": _article_score(ws, article, (bug,)) for bug in BUGS}
    methods["article, corrected"] = projection_score(fast, article)
    # The preset's own is mostly one of the rows above it: the same function then, to be judged once.
    by_config = {c: projection_score(fast, c, stopping_energy(fast, ws.stopping_crops, c)) for c in projections.values()}
    return methods | {name: by_config[c] for name, c in projections.items()}


def _article_score(ws: Workspace, config: Config, bugs: tuple[str, ...]) -> Score:
    chunk = ARTICLE_CHUNK[ws.device.type]
    return change_score(lambda x: torch.cat([article_loop(ws.vae, p, config, bugs) for p in x.split(chunk)]), config.score)


def judge(ws: Workspace, score: Score, *, keep_maps: bool = True) -> tuple[dict[str, Any], np.ndarray]:
    """Metrics of all test images' maps, smoothed and ``raw``; smoothed maps, float32 [N, H, W], none without ``keep_maps``."""
    raw = anomaly_maps(ws.test.images, score, ws.config)
    maps = smooth(raw, ws.config.sigma, ws.config.sigma_wide)
    metrics = evaluate(maps, ws.test.gt_masks, ws.test.defects)
    metrics["raw"] = evaluate(raw, ws.test.gt_masks, ws.test.defects, bootstrap=0)
    return metrics, (maps if keep_maps else maps[:0]).cpu().numpy()


def compare(ws: Workspace, seeds: Sequence[int]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Every method on the VAE of every seed; each is computed once, then found by what made it, also after a killed run.
    Returns for each method the mean over seeds of each metric, ``raw`` metrics alike, ``seeds`` (a row each), ``gain`` (how
    far the mean lies above the best VAE residual's, with the standard error of that difference), and of the first seed
    ``standard_error``, ``per_defect``, ``oracle_F1`` with its threshold; and the first seed's smoothed maps, [N, H, W].
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    maps: dict[str, Tensor] = {}
    for seed in seeds:
        chosen, judged, keep = ws.reconfigured(seed=seed), {}, seed == seeds[0]
        for name, score in tqdm(scores(chosen).items(), desc=f"seed {seed}", unit="method"):
            if score not in judged:
                compute = functools.partial(judge, chosen, score, keep_maps=keep)
                judged[score] = cached(chosen, f"method: {name}, {ARTICLE}, maps {keep}", compute)
            rows.setdefault(name, []).append(judged[score][0])
            maps.setdefault(name, torch.from_numpy(judged[score][1]))
    residuals = [results for name, results in rows.items() if name.startswith("VAE")]
    methods: dict[str, Any] = {}
    for name, results in rows.items():
        first = {key: value for key, value in results[0].items() if key != "replicates"}
        raw = {key: _mean([row["raw"] for row in results], key) for key in METRICS}
        each = {str(seed): {key: row[key] for key in METRICS} for seed, row in zip(seeds, results, strict=True)}
        own = {key: _mean(results, key) for key in METRICS} | {"raw": raw, "seeds": each, "gain": _gain(results, residuals)}
        methods[name] = first | own
    return methods, maps


def _mean(results: list[dict[str, Any]], key: str) -> Any:
    return np.mean([result[key] for result in results], axis=0).tolist()


def _gain(own: list[dict[str, Any]], others: list[list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """How far one mean over seeds lies above the best of others, and its paired error: replicates all draw the same images."""
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
    """Where to cut `own_maps` made `relative`: the 99.9 % quantile on normal images its VAE never saw (`proxy_workspace`)."""
    held_out = proxy_workspace(ws)
    good = [i for i, defect in enumerate(held_out.test.defects) if defect == "good"]
    maps = relative(own_maps(held_out, held_out.test.images[good]))
    return np.quantile(maps.cpu().numpy(), LABEL_FREE_QUANTILE).item()


def own_maps(ws: Workspace, images: Tensor) -> Tensor:
    """Smoothed anomaly maps of a workspace's own method, [N, H, W], for images uint8 [N, C, H, W]."""
    score = projection_score(ws.fast_vae, ws.config, ws.stop_at)
    return smooth(anomaly_maps(images, score, ws.config), ws.config.sigma, ws.config.sigma_wide)


def restoration(ws: Workspace) -> dict[str, dict[str, Tensor]]:
    """How near each picture of a crop centred on a test image's defect comes to the scene without it (SynthGrid knows it).
    For the test image, the VAE's reconstruction and the projection: ``psnr_inside``, ``psnr_outside`` (dB; infinite where
    picture and truth agree), ``ssim_inside``, ``ssim_outside``, each [images], over the pixels in and outside the mask.
    """
    names = [name for name in ws.test.names if not name.startswith("good/")]
    crops, masks, corners = ws.crops_at(names)
    side, masks = ws.config.crop_size, masks.to(ws.device)
    scenes = to_unit(load_clean(ws.folder, names, ws.config.image_size).to(ws.device))
    clean = torch.stack([scene[..., y : y + side, x : x + side] for scene, (y, x) in zip(scenes, corners, strict=True)])
    projected = project(ws.fast_vae, crops, ws.config, ws.stop_at)
    pictures = {"test image": crops, "VAE": ws.vae.reconstruct(crops), "projection": projected}
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
        seeds = {key: [seed[key] for seed in row["seeds"].values()] for key in METRICS}
        cells = [f"{row[key]:.4f}" + (f" ± {np.std(v, ddof=1):.4f}" if len(v) > 1 else "") for key, v in seeds.items()]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['raw']['pixel_AUROC']:.4f} |")
    return "\n".join(lines)


def save_maps(maps: Tensor, names: Sequence[str], folder: Path) -> None:
    """Anomaly maps [N, H, W] as float16 npz with their image names, and as PNGs over a common grey scale."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "anomaly_maps.npz", maps=maps.cpu().numpy().astype(np.float16), names=np.array(names))
    grey = (maps / maps.max() * 255).round().byte().cpu().numpy()
    for name, pixels in zip(names, grey, strict=True):
        Image.fromarray(pixels).save(folder / f"{name.replace('/', '_')}.png")
