"""Claim: a whole test set is localized and judged, bootstrap included, in the time others take for the metrics alone.

78 images, as MVTec AD's grid has, at stride 32, 100 iterations with stopping: anomaly maps, then every metric. The reference
for the metrics is scikit-learn (AUROC, average precision) and pyaupro (AUPRO) on the same maps; without pyaupro installed it
is scikit-learn alone, and the ratio is then in its favour.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from _common import Bench
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from vaeproj.crops import CropSampler, to_device
from vaeproj.localization import FPR_LIMIT, anomaly_maps, evaluate, projection_score, smooth
from vaeproj.projection import stopping_energy

try:
    from pyaupro import PerRegionOverlap, auc_compute
except ImportError:
    PerRegionOverlap = None


STOPPING_CROPS = 512  # training crops whose energies set the stopping threshold


class Sizes(NamedTuple):
    """Training steps, test images, stride, iterations, repeats of each timing, bootstrap resamplings."""

    steps: int
    images: int
    stride: int
    iterations: int
    repeats: int
    bootstrap: int


SIZES = {
    "small": Sizes(2, 7, 32, 2, 1, 5),
    "cpu": Sizes(100, 16, 128, 30, 3, 200),
    "cuda": Sizes(300, 78, 32, 100, 3, 200),
}


def references(maps: Tensor, gt_masks: np.ndarray) -> dict[str, Callable[[], float]]:
    """Each metric by the package one would take, a call each."""
    score, truth = maps.cpu().numpy().ravel(), gt_masks.ravel()

    def aupro() -> float:
        metric = PerRegionOverlap(thresholds=None)
        metric.update(maps.cpu(), torch.from_numpy(gt_masks).int())
        return auc_compute(*metric.compute(), limit=FPR_LIMIT).item()

    calls: dict[str, Callable[[], float]] = {
        "pixel_AUROC": lambda: float(roc_auc_score(truth, score)),
        "pixel_AP": lambda: float(average_precision_score(truth, score)),
    }
    return calls if PerRegionOverlap is None else calls | {"pixel_AUPRO": aupro}


def main() -> None:
    """Time maps, metrics and the reference, compare their values, print table and JSON."""
    bench = Bench.start(__file__, __doc__ or "")
    sizes = SIZES[bench.scale]
    # The paper's rule, stop at the training minimum: after so short a training most tiles run to the end, the slower case.
    config = bench.config("quick", steps=sizes.steps, stride=sizes.stride, iterations=sizes.iterations, stop_quantile=0.0)
    images = bench.train_images(config)
    vae = bench.short_vae(config, images)
    crops = CropSampler(images, config).sample(STOPPING_CROPS, torch.Generator().manual_seed(config.seed))
    stop_at = stopping_energy(vae, crops, config)
    test = bench.test_split(config, sizes.images)
    gt_masks = np.array(test.gt_masks)
    pictures = to_device(test.images, bench.device)

    def localize() -> Tensor:
        maps = anomaly_maps(pictures, projection_score(vae, config, stop_at), config)
        return smooth(maps, config.sigma, config.sigma_wide)

    made: list[Tensor] = []
    first = bench.seconds(lambda: made.append(localize()))
    maps = made[0]
    map_seconds = bench.median(localize, sizes.repeats)

    def judge(bootstrap: int) -> dict[str, object]:
        return evaluate(maps, gt_masks, test.defects, bootstrap=bootstrap)

    metrics = judge(0)
    plain_seconds = bench.median(lambda: judge(0), sizes.repeats)
    metric_seconds = bench.median(lambda: judge(sizes.bootstrap), sizes.repeats)
    values: dict[str, float] = {}
    reference = {
        name: bench.seconds(lambda name=name, call=call: values.update({name: call()}))
        for name, call in references(maps, gt_masks).items()
    }
    gaps = {name: abs(value - metrics[name]) for name, value in values.items()}
    total = sum(reference.values())
    packages = "scikit-learn" + ("" if PerRegionOverlap is None else " and pyaupro")

    full = SIZES["cuda"]
    if sizes != full:
        print(
            f"Less than the claim: {sizes.images} of {full.images} images, stride {config.stride} instead of {full.stride},",
            end=" ",
        )
        print(f"{sizes.iterations} of {full.iterations} iterations.")
    if PerRegionOverlap is None:
        print("pyaupro is not installed: the reference leaves AUPRO out.")
    print(f"{len(maps)} images of {config.image_size} x {config.image_size}; the first call for maps took {first:.2f} s.")
    print(f"Largest difference of a metric from the reference: {max(gaps.values()):.1e}.")
    print(
        f"Ours: medians of {sizes.repeats}; the reference ran once:", ", ".join(f"{k} {v:.2f} s" for k, v in reference.items())
    )
    bench.finish(
        ["test set", "seconds", "ratio"],
        [
            ["anomaly maps", f"{map_seconds:.2f}", ""],
            [f"metrics, each defect, bootstrap of {sizes.bootstrap}", f"{metric_seconds:.2f}", f"{total / metric_seconds:.1f}"],
            ["metrics, each defect", f"{plain_seconds:.2f}", f"{total / plain_seconds:.1f}"],
            [f"pooled metrics by {packages}", f"{total:.2f}", "1"],
        ],
        sizes=sizes._asdict(), maps_seconds=map_seconds, maps_first_call=first, metrics_seconds=plain_seconds,
        metrics_bootstrap_seconds=metric_seconds, reference_seconds=reference, ratio=total / plain_seconds,
        metric_differences=gaps, metrics={name: metrics[name] for name in ("pixel_AUROC", "pixel_AUPRO", "pixel_AP")},
    )  # fmt: skip


if __name__ == "__main__":
    main()
