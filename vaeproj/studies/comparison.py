"""Methods side by side on the same trained VAEs: localization on whole images, restoration of crops."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch import Tensor
from tqdm import tqdm

from ..config import DESCENTS, Config, UserError
from ..crops import to_unit
from ..data import load_clean
from ..localization import Score, anomaly_maps, change_score, projection_score, residual_score, smooth, ssim_map
from ..metrics import METRICS, error_power, evaluate, psnr
from ..model import VAE
from ..projection import composite, descend, project
from ..weight import fit_expected
from ..workspace import Workspace
from .article import BUGS, article_loop
from .cache import cached
from .proxy import proxy_workspace

LABEL_FREE_QUANTILE = 0.999  # of normal images' anomaly maps
ARTICLE_CHUNK = {"cpu": 32, "cuda": 256}  # tiles per call: its stale gradient keeps the graph of every iteration in memory
OPPONENTS = ("VAE residual", "composite", "projection, paper")  # how the names of methods begin that a gain is stated above
NORMAL = 64  # crops without a defect, on which a repair should do nothing
COMPONENTS, PCA_CROPS = 64, 2048  # principal components, and the training crops that they are of
TAKEN_AGAIN = 5  # network passes of the composite whose f(x) is taken again
REPAIRS = ("composite, one threshold", "composite", "composite, taken again", "projection, paper")  # of `moves`

Move = Callable[[Tensor], Tensor]  # tiles [B, C, crop, crop] in [0, 1] -> the same, repaired


def moves(ws: Workspace) -> dict[str, Move]:
    """The methods that repair an image, by name. The last is the preset's own, the headline."""
    config, vae, expected, chunk = ws.config, ws.vae, ws.expected, ARTICLE_CHUNK[ws.device.type]
    even = fit_expected(vae, ws.normal_crops, terms=1)
    article, paper = (config.replace(**DESCENTS[name], gradient="full") for name in ("article", "paper"))

    def published(*bugs: str) -> Move:
        return lambda x: torch.cat([article_loop(vae, part, article, bugs)[-1] for part in x.split(chunk)])

    @functools.cache  # the preset's own may be one of the rows above it: the same function then, to be judged once
    def descent(config: Config) -> Move:
        return lambda x: project(ws.fast_vae, x, config, expected)

    return {
        "composite, one threshold": lambda x: composite(vae, x, config, even),
        "composite": lambda x: composite(vae, x, config, expected),
        "composite, taken again": lambda x: taken_again(vae, x, config, expected)[-1],
        "article, as published": published(*BUGS),
        **{f"article + {bug.replace('_', ' ').replace('bce', 'BCE')}": published(bug) for bug in BUGS},
        "article, corrected": descent(article),
        "projection, paper, detached": descent(paper.replace(gradient="detached")),
        "projection, paper": descent(paper),
        "preset's own": descent(config),
    }


def taken_again(vae: VAE, tiles: Tensor, config: Config, expected: Tensor, passes: int = TAKEN_AGAIN) -> list[Tensor]:
    """The tiles, their `composite`, the composite with f of that one, and so on."""
    frames = [tiles]
    for _ in range(passes):
        frames.append(composite(vae, tiles, config, expected, frames[-1]))
    return frames


def pca_score(crops: Tensor, kind: str, components: int = COMPONENTS) -> Score:
    """An opponent from outside (does one need a VAE?): `localization.difference` between tiles and their projection onto
    principal components of training ``crops``, [N, C, crop, crop] in [0, 1], at most as many as there are crops.
    """

    @functools.cache
    def fitted() -> PCA:
        return PCA(min(components, len(crops)), svd_solver="randomized", random_state=0).fit(crops.flatten(1).cpu().numpy())

    def rebuilt(tiles: Tensor) -> Tensor:
        flat = fitted().inverse_transform(fitted().transform(tiles.flatten(1).cpu().numpy()))
        return torch.from_numpy(flat).to(tiles).view_as(tiles)

    return change_score(rebuilt, kind)


def scores(ws: Workspace) -> dict[str, Score]:
    """The methods compared, by name: residuals, and `moves`, each scored as the preset scores its own."""
    methods = {f"VAE residual, {k.upper()}": residual_score(ws.vae, k) for k in ("l1", "l2", "ssim", "l1_ssim")}
    crops = ws.sampler.sample(PCA_CROPS, torch.Generator().manual_seed(ws.config.seed))
    named = moves(ws)
    by_move = {move: change_score(move, ws.config.score) for move in named.values()}
    return methods | {"PCA residual, L2": pca_score(crops, "l2")} | {name: by_move[move] for name, move in named.items()}


def judge(ws: Workspace, score: Score, *, keep_maps: bool = True) -> tuple[dict[str, Any], np.ndarray]:
    """Metrics of all test images' maps, smoothed and ``raw``; smoothed maps, float32 [N, H, W], none without ``keep_maps``."""
    raw = anomaly_maps(ws.test.images, score, ws.config)
    maps = smooth(raw, ws.config.sigma, ws.config.sigma_wide)
    metrics = evaluate(maps, ws.test.gt_masks, ws.test.defects)
    metrics["raw"] = evaluate(raw, ws.test.gt_masks, ws.test.defects, bootstrap=0)
    return metrics, (maps if keep_maps else maps[:0]).cpu().numpy()


def compare(ws: Workspace, seeds: Sequence[int]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Every method on the VAE of every seed, each computed once. Returns for each method the mean over seeds of each metric,
    ``raw`` metrics alike, ``seeds`` (a row each), ``gain`` (how far the mean lies above the best of each kind of opponent, with
    the standard error of that difference), and of the first seed ``standard_error``, ``per_defect``, ``oracle_F1`` with its
    threshold; and the first seed's smoothed maps, [N, H, W]. A `UserError` without masks, good images or defects to judge by.
    """
    if not ws.has_masks and len(set(ws.test.gt_labels)) < 2:
        raise UserError(f"{ws.folder / 'test'} needs good and defective images, or masks, to compare methods: add some.")
    rows: dict[str, list[dict[str, Any]]] = {}
    maps: dict[str, Tensor] = {}
    for seed in seeds:
        chosen, judged, keep = ws.reconfigured(seed=seed), {}, seed == seeds[0]
        for name, score in tqdm(scores(chosen).items(), desc=f"seed {seed}", unit="method"):
            if score not in judged:
                compute = functools.partial(judge, chosen, score, keep_maps=keep)
                judged[score] = cached(chosen, f"method: {name}, {DESCENTS}, maps {keep}", compute)
            rows.setdefault(name, []).append(judged[score][0])
            maps.setdefault(name, torch.from_numpy(judged[score][1]))
    mean = {name: _mean(results, *METRICS, "replicates") for name, results in rows.items()}
    methods: dict[str, Any] = {}
    for name, results in rows.items():
        raw = _mean([row["raw"] for row in results], *METRICS)
        each = {str(seed): {key: row[key] for key in METRICS} for seed, row in zip(seeds, results, strict=True)}
        gain = {kind: _gain(mean[name], [mean[other] for other in rows if other.startswith(kind)]) for kind in OPPONENTS}
        methods[name] = results[0] | mean[name] | {"raw": raw, "seeds": each, "gain": gain}
        del methods[name]["replicates"]
    return methods, maps


def _mean(results: list[dict[str, Any]], *keys: str) -> dict[str, Any]:
    return {key: np.mean([result[key] for result in results], axis=0).tolist() for key in keys}


def _gain(own: dict[str, Any], others: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How far one mean over seeds lies above the best of others, and its paired error: replicates all draw the same images."""
    gain = {}
    for k, key in enumerate(METRICS):
        if not np.isnan(own[key]):
            best = max(others, key=lambda other: other[key])
            apart = np.subtract(own["replicates"], best["replicates"])[:, k]
            gain[key] = {"difference": own[key] - best[key], "standard_error": np.std(apart, ddof=1).item()}
    return gain


def relative(maps: Tensor) -> Tensor:
    """Maps [N, H, W] in units of each image's own median: an image that is new to the VAE as a whole is not all defect."""
    return maps / maps.flatten(1).median(1).values.clamp(min=1e-12)[:, None, None]


def label_free_threshold(ws: Workspace) -> float:
    """Where to cut `own_maps` made `relative`: the 99.9 % quantile on normal images its VAE never saw (`proxy_workspace`)."""
    held_out = proxy_workspace(ws)
    maps = relative(own_maps(held_out, held_out.test.images[~held_out.test.gt_labels]))
    return np.quantile(maps.cpu().numpy(), LABEL_FREE_QUANTILE).item()


def own_maps(ws: Workspace, images: Tensor) -> Tensor:
    """Smoothed anomaly maps of a workspace's own method, [N, H, W], for images uint8 [N, C, H, W]."""
    score = projection_score(ws.fast_vae, ws.config, ws.expected)
    return smooth(anomaly_maps(images, score, ws.config), ws.config.sigma, ws.config.sigma_wide)


def own_metrics(ws: Workspace) -> dict[str, float]:
    """`METRICS` of a workspace's own method on its test images."""
    metrics = evaluate(own_maps(ws, ws.test.images), ws.test.gt_masks, ws.test.defects, bootstrap=0)
    return {key: metrics[key] for key in METRICS}


def ablate(ws: Workspace, changes: dict[str, Any]) -> dict[str, float]:
    """`own_metrics` under ``changes`` of hyper-parameters; computed once, on a new VAE where training is touched."""
    changed = ws.reconfigured(**changes)
    return cached(changed, "ablation", lambda: (own_metrics(changed), np.zeros(0)))[0]


def best_on(proxy: Workspace, changes: dict[str, Any], name: str, values: Sequence[Any]) -> Any:
    """The value of one hyper-parameter, beside other ``changes``, with the highest pixel AP on a proxy (`proxy_workspace`)."""
    return max(values, key=lambda value: ablate(proxy, changes | {name: value})["pixel_AP"])


def restorers(ws: Workspace) -> dict[str, Move]:
    """Ways to repair crops, by name, each from the workspace's VAE; the last is the preset's own."""
    named = moves(ws)
    own = {f"projection, {ws.config.descent}": named["preset's own"]}
    return {"test image": lambda x: x, "VAE": ws.vae.reconstruct} | {name: named[name] for name in REPAIRS} | own


def defects_and_truth(ws: Workspace, names: list[str] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Crops centred on the defects of test images (None: of all) and the scenes without them (SynthGrid knows those),
    [N, C, crop, crop] in [0, 1] each; and the masks between the two, bool [N, crop, crop].
    """
    names = names or [name for name in ws.test.names if not name.startswith("good/")]
    crops, masks, corners = ws.crops_at(names)
    side = ws.config.crop_size
    scenes = to_unit(load_clean(ws.folder, names, ws.config.image_size).to(ws.device))
    clean = torch.stack([scene[..., y : y + side, x : x + side] for scene, (y, x) in zip(scenes, corners, strict=True)])
    return crops, clean, masks.to(ws.device)


@torch.no_grad()
def restoration(ws: Workspace) -> dict[str, dict[str, Tensor]]:
    """How near each of `restorers` comes to the scene without its defect, and how much it disturbs where there is none.
    ``psnr_inside``, ``psnr_outside`` (dB; infinite where picture and truth agree), ``ssim_inside``, ``ssim_outside``, each
    [images], over the pixels in and outside the mask; ``error_power`` (`metrics.error_power`) on normal crops, [1].
    """
    crops, clean, masks = defects_and_truth(ws)
    normal = ws.sampler.sample(NORMAL, torch.Generator().manual_seed(ws.config.seed + 1))
    result: dict[str, dict[str, Tensor]] = {}
    for method, repair in restorers(ws).items():
        picture = repair(crops)
        similarity, row = ssim_map(picture, clean).mean(1), result.setdefault(method, {})
        for place, where in (("inside", masks), ("outside", ~masks)):
            row[f"psnr_{place}"] = psnr(picture, clean, where).cpu()
            row[f"ssim_{place}"] = ((similarity * where).sum((1, 2)) / where.sum((1, 2))).cpu()
        row["error_power"] = error_power(repair(normal), normal).cpu()[None]
    return result


def through_time(ws: Workspace, every: int = 8) -> dict[str, dict[str, np.ndarray]]:
    """Repair and damage while they go on, of ``every`` so many defects and as many normal crops: for the paper's descent, the
    composite taken again and again, and the preset's own, ``passes`` through the network so far, ``psnr`` inside the masks, dB,
    and ``error`` power on the normal crops, [K] each.
    """
    crops, clean, masks = (tensor[::every] for tensor in defects_and_truth(ws))
    normal = ws.sampler.sample(len(crops), torch.Generator().manual_seed(ws.config.seed + 1))
    both, config = torch.cat([crops, normal]), ws.config
    descents = {"paper": config.replace(**DESCENTS["paper"], gradient="full"), config.descent: config}
    paths = {"composite": taken_again(ws.vae, both, config, ws.expected, TAKEN_AGAIN + 2)}
    paths |= {name: [state.x for state in descend(ws.fast_vae, both, c, ws.expected)] for name, c in descents.items()}
    curves = {}
    for name, frames in paths.items():
        first = 1 if name == "composite" else 2  # a descent looks at its image before it moves
        curves[name] = {
            "passes": np.array([0, *range(first, len(frames) + first - 1)]),
            "psnr": np.array([_finite_mean(psnr(x[: len(crops)], clean, masks)) for x in frames]),
            "error": np.array([error_power(x[len(crops) :], normal).item() for x in frames]),
        }
    return curves


def repair_gain(rows: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, list[float]]]:
    """How far the last of `restoration`'s rows lies above all but the first two: mean over images, dB, and standard error."""
    *others, (_, own) = rows.items()
    gain: dict[str, dict[str, list[float]]] = {}
    for method, row in others[2:]:
        for key in ("psnr_inside", "psnr_outside"):
            apart = own[key] - row[key]
            finite = apart[apart.isfinite()]
            error = (finite.std() / len(finite) ** 0.5).item()
            gain.setdefault(method, {})[key] = [round(_finite_mean(apart), 3), round(error, 3)]
    return gain


def means(rows: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, float]]:
    """Mean over images of what `restoration` returns: finite values count; without any it is infinite, or nan."""
    return {method: {key: round(_finite_mean(values), 3) for key, values in row.items()} for method, row in rows.items()}


def _finite_mean(values: Tensor) -> float:
    finite = values[values.isfinite()]
    return (finite.mean() if len(finite) else values.nanmean()).item()


def table(methods: dict[str, Any]) -> str:
    """Markdown: a row per method, smoothed metrics with the spread over seeds, raw pixel AUROC last, of what is known."""
    known = [key for key in METRICS if not np.isnan([row[key] for row in methods.values()]).any()]
    raw = [key for key in known if key == "pixel_AUROC"]
    heads = ["method", *known, *(f"raw {key}" for key in raw)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in methods.items():
        seeds = {key: [seed[key] for seed in row["seeds"].values()] for key in known}
        cells = [f"{row[key]:.4f}" + (f" ± {np.std(v, ddof=1):.4f}" if len(v) > 1 else "") for key, v in seeds.items()]
        cells += [f"{row['raw'][key]:.4f}" for key in raw]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def save_maps(maps: Tensor, names: Sequence[str], folder: Path) -> None:
    """Anomaly maps [N, H, W] as float16 npz with their image names, and as PNGs over a common grey scale."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "anomaly_maps.npz", maps=maps.cpu().numpy().astype(np.float16), names=np.array(names))
    grey = (maps / maps.max() * 255).round().byte().cpu().numpy()
    for name, pixels in zip(names, grey, strict=True):
        Image.fromarray(pixels).save(folder / f"{name.replace('/', '_')}.png")
