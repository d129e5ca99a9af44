"""Claim: a whole test set is localized and judged, bootstrap included, in the time others take for the metrics alone.

78 images, as MVTec AD's grid has, at stride 32, 16 iterations of the anchored descent: maps, then every metric. The reference
for the metrics is scikit-learn (AUROC, average precision) and pyaupro (AUPRO) on the same maps.
"""

from functools import partial

import torch
from _common import Bench, run
from pyaupro import PerRegionOverlap, auc_compute
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from vaeproj.crops import CropSampler
from vaeproj.device import projection_dtype
from vaeproj.localization import anomaly_maps, projection_score, smooth
from vaeproj.metrics import FPR_LIMIT, evaluate
from vaeproj.model import frozen
from vaeproj.training import fit
from vaeproj.weight import fit_expected
from vaeproj.workspace import NORMAL_CROPS

SIZES = {  # images: of the test set
    "small": {"steps": 2, "images": 7, "stride": 32, "iterations": 2, "bootstrap": 5},
    "cpu": {"steps": 100, "images": 16, "stride": 128, "iterations": 16, "bootstrap": 200},
    "cuda": {"steps": 300, "images": 78, "stride": 32, "iterations": 16, "bootstrap": 200},
}


def pyaupro_score(maps: Tensor, gt_masks: Tensor) -> float:
    """AUPRO up to `FPR_LIMIT` of maps [N, H, W]."""
    metric = PerRegionOverlap(thresholds=None)
    metric.update(maps, gt_masks)
    return auc_compute(*metric.compute(), limit=FPR_LIMIT).item()


def main(bench: Bench) -> None:
    """Time maps, metrics and the reference, compare their values, print table and JSON."""
    config = bench.config("quick")
    train = bench.train_images(config)
    trained, _ = fit(train, config, progress=False)
    crops = CropSampler(train, config).sample(NORMAL_CROPS, torch.Generator().manual_seed(config.seed))
    expected = fit_expected(frozen(trained), crops)
    change = projection_score(frozen(trained, projection_dtype(bench.device)), config, expected)
    images, gt_masks, defects = bench.test_images(config, bench.sizes["images"])

    def localize() -> Tensor:
        return smooth(anomaly_maps(images, change, config), config.sigma, config.sigma_wide)

    maps, first = bench.timed(localize)
    map_seconds = bench.median(localize)
    judge = partial(evaluate, maps, gt_masks, defects, bootstrap=bench.sizes["bootstrap"])
    metrics, ours = judge(), bench.median(judge)
    score, truth = maps.cpu().numpy().ravel(), gt_masks.ravel()
    reference = {
        "pixel_AUROC": bench.timed(lambda: float(roc_auc_score(truth, score))),
        "pixel_AP": bench.timed(lambda: float(average_precision_score(truth, score))),
        "pixel_AUPRO": bench.timed(lambda: pyaupro_score(maps.cpu(), torch.from_numpy(gt_masks).int())),
    }
    total = sum(seconds for _, seconds in reference.values())
    gaps = {name: abs(value - metrics[name]) for name, (value, _) in reference.items()}
    bench.finish(
        [f"{len(images)} test images", "seconds", "ratio", "largest difference"],
        [
            ["anomaly maps", f"{map_seconds:.2f}", "", ""],
            ["metrics, each defect too, bootstrap", f"{ours:.2f}", f"{total / ours:.1f}", f"{max(gaps.values()):.1e}"],
            ["pooled metrics by scikit-learn and pyaupro", f"{total:.2f}", "1", ""],
        ],
        maps_seconds=map_seconds, maps_first_call=first, metrics_seconds=ours, ratio=total / ours,
        reference_seconds={name: seconds for name, (_, seconds) in reference.items()},
        metrics={name: metrics[name] for name in gaps}, metric_differences=gaps,
    )  # fmt: skip


if __name__ == "__main__":
    run(main, __doc__, SIZES)
