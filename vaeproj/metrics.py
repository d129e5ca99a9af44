"""Metrics of anomaly maps: one sort of all pixels serves every curve, weighted sums along it the bootstrap.
On a GPU the running sums add in any order: the last digits may differ from run to run. On a CPU they do not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

FPR_LIMIT = 0.3  # AUPRO integrates the PRO curve up to this false-positive rate (Bergmann et al., 2021)
BINS = 4096  # of the per-image histograms behind the bootstrap
METRICS = ("pixel_AUROC", "pixel_AUPRO", "pixel_AP", "image_AUROC")


@dataclass(frozen=True)
class Curves:
    """Points at falling thresholds; ``fpr``, ``recall`` and ``pro`` begin with the point (0, 0) of no pixel flagged."""

    threshold: Tensor  # [K]
    fpr: Tensor  # [K + 1] in [0, 1], as the next two
    recall: Tensor
    pro: Tensor
    precision: Tensor  # [K] in [0, 1]

    @property
    def auroc(self) -> float:
        return torch.trapezoid(self.recall, self.fpr).item()

    @property
    def average_precision(self) -> float:
        return (self.recall.diff() * self.precision).sum().item()

    @property
    def aupro(self) -> float:
        """Area under PRO up to FPR .3, over .3; linear between points."""
        fpr, pro = self.fpr.cpu().numpy(), self.pro.cpu().numpy()
        inside, edge = fpr <= FPR_LIMIT, np.interp(FPR_LIMIT, fpr, pro)
        area = np.trapezoid(np.append(pro[inside], edge), np.append(fpr[inside], FPR_LIMIT))
        return float(area / FPR_LIMIT)

    def best_f1(self) -> tuple[float, float]:
        """The largest F1 and its threshold: an oracle, since it looks at the masks; nan if no pixel is defective."""
        f1 = 2 * self.precision * self.recall[1:] / (self.precision + self.recall[1:]).clamp(min=1e-12)
        if f1.isnan().any():
            return float("nan"), float("nan")
        best = f1.argmax()
        return f1[best].item(), self.threshold[best].item()


@dataclass(frozen=True)
class Ranking:
    """All pixels in order of falling score, once; every metric is a sum along it."""

    image: Tensor  # int32 [P], the image each pixel belongs to
    region_weight: Tensor  # float64 [P], 1 / (pixels of the pixel's defect region), 0 for normal pixels
    score: Tensor  # float32 [P]

    def of(self, images: Tensor) -> Self:
        """The ranking of some images' pixels only; ``images`` bool [N]."""
        keep = images.to(self.image.device)[self.image.long()]
        return type(self)(self.image[keep], self.region_weight[keep], self.score[keep])

    @cached_property
    def ends(self) -> Tensor:
        """Where runs of equal scores end, [K], the only places to put a threshold."""
        return F.pad(self.score[:-1] != self.score[1:], (0, 1), value=True).nonzero()[:, 0]

    def curves(self) -> Curves:
        """ROC, precision-recall and PRO at every threshold that a score can be."""
        true_positives = (self.region_weight > 0).cumsum(0)[self.ends].double()
        overlap = self.region_weight.cumsum(0)[self.ends]
        return _curves(self.score[self.ends], true_positives, self.ends + 1 - true_positives, overlap)


def rank_pixels(maps: Tensor, gt_masks: np.ndarray) -> Ranking:
    """Sort the pixels of maps [N, H, W] pooled over all images; gt_masks uint8 [N, H, W] in {0, 1}."""
    score, order = maps.flatten().sort(descending=True, stable=True)
    weight = torch.from_numpy(region_weights(gt_masks)).to(maps.device).flatten()[order]
    return Ranking((order // maps[0].numel()).int(), weight, score)


def region_weights(gt_masks: np.ndarray) -> np.ndarray:
    """float64 [N, H, W]: in each 8-connected defect region, 1 over its pixels; 0 elsewhere.
    Summed over flagged pixels and divided by the number of regions this is the mean per-region overlap.
    """
    weights = np.zeros(gt_masks.shape)
    for weight, mask in zip(weights, gt_masks, strict=True):
        labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
        sizes = np.bincount(labels.ravel())
        weight[mask > 0] = 1 / sizes[labels[mask > 0]]
    return weights


def evaluate(
    maps: Tensor, gt_masks: np.ndarray, defects: Sequence[str], *, bootstrap: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Pooled localization metrics of smoothed maps, float32 [N, H, W], against gt_masks, uint8 [N, H, W], 0 or 1, of images
    with ``defects`` or ``good``. Standard errors come from ``bootstrap`` resamplings of the images; 0: none.

    Returns ``pixel_AUROC``, ``pixel_AUPRO`` (to FPR .3), ``pixel_AP``, ``image_AUROC``, each also under ``standard_error``
    and, for each defect against the good images, under ``per_defect``; ``oracle_F1``, ``oracle_threshold``; ``replicates``,
    [bootstrap, 4], the metrics of each resampling: the same seed draws the same images for any maps, so the difference of two
    methods' replicates is a paired one. What is not known is nan, and left out of ``standard_error`` and ``per_defect``: pixel
    metrics without a mask, ``image_AUROC`` without a good image.
    """
    ranking, scores = rank_pixels(maps, gt_masks), maps.flatten(1).amax(1).cpu().numpy()  # the latter: pred_score of an image
    names, curves = np.array(defects), ranking.curves()
    bad = names != "good"
    result: dict[str, Any] = dict(_metrics(curves, scores, bad))
    known = [key for key in METRICS if not np.isnan(result[key])]
    result["oracle_F1"], result["oracle_threshold"] = curves.best_f1()
    result["per_defect"] = {}
    for defect in sorted(set(defects) - {"good"}):
        chosen = (names == defect) | ~bad
        metrics = _metrics(ranking.of(torch.from_numpy(chosen)).curves(), scores[chosen], bad[chosen])
        result["per_defect"][defect] = {key: metrics[key] for key in known}
    if bootstrap:
        replicates = result["replicates"] = _replicates(ranking, scores, bad, bootstrap, seed)
        errors = dict(zip(METRICS, replicates.std(axis=0, ddof=1).tolist(), strict=True))
        result["standard_error"] = {key: errors[key] for key in known}
    return result


def psnr(image: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, dB, [B], of images [B, C, H, W] in [0, 1] over ``where``, bool [B, H, W]; nan if empty."""
    weight = where[:, None].expand_as(image).double()
    error = ((image.double() - truth.double()).square() * weight).sum((1, 2, 3)) / weight.sum((1, 2, 3))
    return -10 * error.log10()


def power(images: Tensor) -> Tensor:
    """Mean power of images [B, C, S, S] at every spatial frequency, [S, S], in the order of `torch.fft.fftfreq`."""
    window = torch.hann_window(images.shape[-1], device=images.device)  # else the border, where ends meet, would be an edge
    centred = (images - images.mean((2, 3), keepdim=True)) * window * window[:, None]
    return torch.fft.fft2(centred).abs().square().mean((0, 1))


def power_spectrum(images: Tensor) -> tuple[Tensor, Tensor]:
    """Spatial frequencies, cycles per pixel, [K], and the mean power of images [B, C, S, S] from each to the next."""
    side, at_every = images.shape[-1], power(images).flatten()
    k = (torch.fft.fftfreq(side, device=images.device) * side).round()
    ring = k.hypot(k[:, None]).long().clamp(max=side // 2).flatten()
    total = at_every.new_zeros(side // 2 + 1).index_add_(0, ring, at_every)
    return torch.arange(side // 2 + 1, device=images.device) / side, total / ring.bincount()


def error_power(moved: Tensor, images: Tensor, above: float = 0.1) -> Tensor:
    """Energy of ``moved - images`` above so many cycles per pixel, over that of the images themselves: what a repair costs
    the texture. Images [B, C, S, S] without a defect; a scalar, 0 where nothing moved, about 1 where all texture is gone.
    """
    k = torch.fft.fftfreq(images.shape[-1], device=images.device)
    high = k.hypot(k[:, None]) > above
    lost, own = (torch.fft.fft2(part)[..., high].abs().square().sum() for part in (moved - images, images))
    return lost / own


def image_auroc(scores: np.ndarray, gt_labels: np.ndarray) -> float:
    """Chance that a defective image scores above a good one, ties counted half (Mann-Whitney); nan without both kinds."""
    bad, good = scores[gt_labels], scores[~gt_labels]
    if not len(bad) or not len(good):
        return float("nan")
    return float(((bad[:, None] > good).mean() + (bad[:, None] >= good).mean()) / 2)


def f1_at(maps: Tensor, gt_masks: np.ndarray, threshold: float) -> float:
    """F1 of ``maps >= threshold`` against the masks: what a threshold chosen without labels achieves; nan without masks."""
    flagged, mask = maps >= threshold, torch.from_numpy(np.array(gt_masks)).to(maps.device) > 0
    return (2 * (flagged & mask).sum() / (flagged.sum() + mask.sum())).item() if mask.any() else float("nan")


def _metrics(curves: Curves, scores: np.ndarray, gt_labels: np.ndarray) -> dict[str, float]:
    values = curves.auroc, curves.aupro, curves.average_precision, image_auroc(scores, gt_labels)
    return dict(zip(METRICS, values, strict=True))


def _replicates(ranking: Ranking, scores: np.ndarray, gt_labels: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Each metric over images drawn with replacement, good and defective ones each among themselves: [number, 4].
    Pixels are first counted per image in bins of equal numbers, so that nothing is sorted again; within a bin scores are tied.
    """
    images, pixels, device = len(scores), len(ranking.score), ranking.score.device
    bins = min(BINS, pixels)
    # A bin ends only where a run of equal scores does.
    wanted = torch.linspace(pixels / bins, pixels, bins, dtype=torch.float64, device=device).round().long() - 1
    edges = ranking.ends[torch.searchsorted(ranking.ends, wanted)].unique()
    slot = torch.searchsorted(edges, torch.arange(pixels, device=device)) + ranking.image.long() * len(edges)
    anomalous = ranking.region_weight > 0
    weights = torch.stack([anomalous, ~anomalous, ranking.region_weight])
    tables = weights.new_zeros(3, images * len(edges)).index_add_(1, slot, weights).view(3, images, -1)

    rng, samples = np.random.default_rng(seed), []
    groups = [group for group in (np.flatnonzero(gt_labels), np.flatnonzero(~gt_labels)) if len(group)]
    for _ in range(number):
        drawn = np.concatenate([rng.choice(group, len(group)) for group in groups])
        times = torch.from_numpy(np.bincount(drawn, minlength=images)).to(tables)
        curves = _curves(ranking.score[edges], *(tables * times[:, None]).sum(1).cumsum(-1))
        samples.append(list(_metrics(curves, scores[drawn], gt_labels[drawn]).values()))
    return np.array(samples)


def _curves(threshold: Tensor, true_positives: Tensor, false_positives: Tensor, overlap: Tensor) -> Curves:
    """Curves from counts of flagged pixels and from flagged shares of regions, summed down to each threshold, [K] each."""
    fpr, recall, pro = (F.pad(total / total[-1], (1, 0)) for total in (false_positives, true_positives, overlap))
    return Curves(threshold, fpr, recall, pro, true_positives / (true_positives + false_positives).clamp(min=1))
