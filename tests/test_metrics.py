"""Metrics are those of scikit-learn, pyaupro and plain loops over thresholds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyaupro import PerRegionOverlap, auc_compute
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from vaeproj import metrics
from vaeproj.metrics import error_power, evaluate, f1_at, image_auroc, power_spectrum, psnr, rank_pixels, region_weights


def scene(seed: int, levels: int = 0, shape: tuple[int, int] = (14, 17)) -> tuple[torch.Tensor, np.ndarray, list[str]]:
    """Maps that see the defects dimly, masks with regions of many sizes, defects; ``levels`` > 0 makes scores tie."""
    rng = np.random.default_rng(seed)
    defects = ["bent", "good", "bent", "thread", "good", "thread", "glue"]
    masks = np.zeros((len(defects), *shape), np.uint8)
    for mask, defect in zip(masks, defects, strict=True):
        for _ in range(0 if defect == "good" else rng.integers(1, 4)):
            top, left = rng.integers(0, shape[0] - 1), rng.integers(0, shape[1] - 1)
            mask[top : top + rng.integers(1, 6), left : left + rng.integers(1, 6)] = 1
    maps = rng.normal(size=masks.shape) + masks
    ranks = maps.ravel().argsort().argsort().reshape(maps.shape) / maps.size  # no two are equal, also in float32
    maps = np.floor((maps + 4) / 9 * levels) if levels else ranks
    return torch.from_numpy(maps.astype(np.float32)), masks, defects


def regions_of(masks: np.ndarray) -> list[np.ndarray]:
    """Each 8-connected region as a bool array over all images."""
    touching = np.zeros((3, 3, 3))
    touching[1] = 1  # within an image
    labels, number = ndimage.label(masks, touching)
    return [labels == k + 1 for k in range(number)]


def aupro_by_loops(maps: np.ndarray, masks: np.ndarray, limit: float = 0.3) -> float:
    """All thresholds, all regions; the curve is linear between its points and ends where FPR reaches the limit."""
    regions, normal = regions_of(masks), masks == 0
    fpr, pro = [0.0], [0.0]
    for threshold in sorted(set(maps.ravel().tolist()), reverse=True):
        flagged = maps >= threshold
        fpr.append(flagged[normal].mean())
        pro.append(np.mean([flagged[region].mean() for region in regions]))
    fpr, pro = np.array(fpr), np.array(pro)
    keep = fpr <= limit
    edge = np.interp(limit, fpr, pro) if fpr[keep][-1] < limit else pro[keep][-1]
    return float(np.trapezoid([*pro[keep], edge], [*fpr[keep], limit]) / limit)


@given(st.integers(0, 10**6), st.sampled_from([0, 2, 3, 5, 20, 200]))
def test_pixel_auroc_and_ap_are_scikit_learns(seed, levels):
    maps, masks, defects = scene(seed, levels)
    result = evaluate(maps, masks, defects, bootstrap=0)
    assert result["pixel_AUROC"] == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-9)
    assert result["pixel_AP"] == pytest.approx(average_precision_score(masks.ravel(), maps.ravel()), abs=1e-9)
    labels = np.array(defects) != "good"
    assert result["image_AUROC"] == pytest.approx(roc_auc_score(labels, maps.amax((1, 2))), abs=1e-9)
    assert "standard_error" not in result


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([0, 2, 3, 5, 20, 200]))
def test_aupro_is_that_of_a_loop_over_thresholds_and_regions(seed, levels):
    maps, masks, defects = scene(seed, levels, shape=(9, 11))
    result = evaluate(maps, masks, defects, bootstrap=0)
    assert result["pixel_AUPRO"] == pytest.approx(aupro_by_loops(maps.numpy(), masks), abs=1e-9)


@given(st.integers(0, 10**6))
def test_aupro_is_pyaupros_where_no_scores_tie(seed):
    maps, masks, defects = scene(seed)
    metric = PerRegionOverlap(thresholds=None)
    metric.update(maps, torch.from_numpy(masks).int())
    expected = auc_compute(*metric.compute(), limit=0.3).item()
    assert evaluate(maps, masks, defects, bootstrap=0)["pixel_AUPRO"] == pytest.approx(expected, abs=1e-6)


@given(st.integers(0, 10**6), st.sampled_from([2, 5, 20]))
def test_the_pro_curve_is_mvtecs_own_where_scores_tie(seed, levels):
    """pyaupro carries MVTec's evaluation code, which merges equal scores as we do; its default curve does not.

    Its `auc_compute` continues the last point before the limit horizontally, where we and MVTec interpolate: with ties
    the area is taken here from the curve itself.
    """
    maps, masks, _ = scene(seed, levels)
    metric = PerRegionOverlap(thresholds=None, reference_implementation=True)
    metric.update(maps, torch.from_numpy(masks).int())
    fpr, pro = metric.compute()
    curves = rank_pixels(maps, masks).curves()
    np.testing.assert_allclose(curves.fpr, fpr[:-1], atol=1e-6)  # it repeats the last point
    np.testing.assert_allclose(curves.pro, pro[:-1], atol=1e-6)
    x = np.union1d(fpr[fpr < 0.3], 0.3)
    if len(fpr.unique()) == len(fpr) - 1:  # no vertical piece, on which interp could not choose
        assert curves.aupro == pytest.approx(np.trapezoid(np.interp(x, fpr, pro), x) / 0.3, abs=1e-6)


def test_aupro_by_hand():
    # Two regions, of 1 and 4 pixels; 5 normal pixels. Falling scores: region A, normal, 2 of region B, normal, ...
    masks = np.array([[[1, 0, 0, 0, 1], [0, 0, 1, 1, 1]]], np.uint8)
    scores = torch.tensor([[[9.0, 8.0, 5.0, 4.0, 7.0], [3.0, 2.0, 1.0, 0.0, 6.0]]])
    # FPR 0 .2 .2 .2 .4: PRO .5 .5 .625 .75 .75, up to .3: .2 * .5 + .1 * .75
    result = evaluate(scores, masks, ["bent"], bootstrap=0)
    assert result["pixel_AUPRO"] == pytest.approx((0.2 * 0.5 + 0.1 * 0.75) / 0.3)
    assert np.isnan(result["image_AUROC"])  # no good image to compare with
    # One score for all: the only threshold flags every pixel, the curve is the diagonal.
    assert evaluate(torch.ones(1, 2, 5), masks, ["bent"], bootstrap=0)["pixel_AUPRO"] == pytest.approx(0.15)


def test_region_weights_count_each_region_once():
    _, masks, _ = scene(2)
    weights, regions = region_weights(masks), regions_of(masks)
    for region in regions:
        np.testing.assert_allclose(weights[region], 1 / region.sum())
    assert weights.sum() == pytest.approx(len(regions))
    diagonal = np.eye(3, dtype=np.uint8)[None]
    np.testing.assert_allclose(region_weights(diagonal), diagonal / 3)  # corners touch: one region


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([0, 2, 5, 20]))
def test_f1_is_scikit_learns_and_the_best_is_that_of_the_best_threshold(seed, levels):
    maps, masks, defects = scene(seed, levels, shape=(8, 9))
    result = evaluate(maps, masks, defects, bootstrap=0)
    truth, scores = masks > 0, maps.numpy()
    best = max(2 * (truth & (scores >= t)).sum() / (truth.sum() + (scores >= t).sum()) for t in np.unique(scores))
    assert result["oracle_F1"] == pytest.approx(best, abs=1e-9)
    for threshold in (result["oracle_threshold"], np.median(scores), scores.max() + 1):
        expected = f1_score(truth.ravel(), scores.ravel() >= threshold)
        assert f1_at(maps, masks, threshold) == pytest.approx(expected, abs=1e-6)
    assert f1_at(maps, masks, result["oracle_threshold"]) == pytest.approx(best, abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_image_auroc_is_scikit_learns(images):
    scores, labels = np.array([s for s, _ in images], np.float32), np.array([label for _, label in images])
    if labels.all() or not labels.any():
        assert np.isnan(image_auroc(scores, labels))
    else:
        assert image_auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([0, 5, 200]))
def test_a_defects_figures_are_those_of_its_images_and_the_good_ones(seed, levels):
    maps, masks, defects = scene(seed, levels)
    result = evaluate(maps, masks, defects, bootstrap=0)
    assert sorted(result["per_defect"]) == ["bent", "glue", "thread"]
    for defect, figures in result["per_defect"].items():
        chosen = [i for i, d in enumerate(defects) if d in (defect, "good")]
        alone = evaluate(maps[chosen], masks[chosen], [defects[i] for i in chosen], bootstrap=0)
        assert figures == pytest.approx({name: alone[name] for name in figures}, abs=1e-9)
        assert set(figures) == {"pixel_AUROC", "pixel_AUPRO", "pixel_AP", "image_AUROC"}


@pytest.mark.parametrize(("bins", "tolerance"), [(4096, 1e-6), (100, 0.05)])
@pytest.mark.parametrize("levels", [0, 20])
def test_standard_errors_are_those_of_resampled_images(bins, tolerance, levels, monkeypatch):
    monkeypatch.setattr(metrics, "BINS", bins)
    maps, masks, defects = scene(4, levels, shape=(9, 11))
    labels = np.array(defects) != "good"
    result = evaluate(maps, masks, defects, bootstrap=40, seed=7)
    assert result["pixel_AUROC"] == evaluate(maps, masks, defects, bootstrap=0)["pixel_AUROC"]
    rng, samples = np.random.default_rng(7), []
    for _ in range(40):  # defective images among themselves, then good ones
        drawn = np.concatenate([rng.choice(np.flatnonzero(group), group.sum()) for group in (labels, ~labels)])
        scores, truth = maps[drawn].numpy(), masks[drawn]
        samples.append([
            roc_auc_score(truth.ravel(), scores.ravel()),
            aupro_by_loops(scores, truth),
            average_precision_score(truth.ravel(), scores.ravel()),
            roc_auc_score(labels[drawn], scores.max((1, 2))),
        ])  # fmt: skip
    names, errors = ("pixel_AUROC", "pixel_AUPRO", "pixel_AP", "image_AUROC"), np.std(samples, axis=0, ddof=1)
    assert result["standard_error"] == pytest.approx(dict(zip(names, errors, strict=True)), rel=tolerance)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([0, 5]))
def test_without_masks_images_still_rank(seed, levels):
    maps, masks, defects = scene(seed, levels)
    known, result = (evaluate(maps, truth, defects, bootstrap=5) for truth in (masks, np.zeros_like(masks)))
    labels = np.array(defects) != "good"
    assert result["image_AUROC"] == pytest.approx(roc_auc_score(labels, maps.amax((1, 2))), abs=1e-9)
    assert all(np.isnan(result[key]) for key in result if key.startswith(("pixel", "oracle")))
    for part in ("standard_error", "per_defect"):
        assert "image_AUROC" in str(result[part]) and "pixel" not in str(result[part])
    assert result["standard_error"]["image_AUROC"] == known["standard_error"]["image_AUROC"]
    assert result["per_defect"]["glue"]["image_AUROC"] == known["per_defect"]["glue"]["image_AUROC"]
    assert np.isnan(f1_at(maps, np.zeros_like(masks), 0.5))


def test_psnr_by_hand():
    truth = torch.zeros(4, 2, 2, 2)
    image = truth.clone()
    image[0] += 0.1  # 20 dB everywhere
    image[1, :, 0] += 0.01  # 40 dB in the upper row; the lower row is not looked at
    image[1, :, 1] += 0.9
    image[2, 0] += 0.2  # one channel of two: mean square .02
    where = torch.ones(4, 2, 2, dtype=torch.bool)
    where[1, 1] = False
    assert psnr(image, truth, where).tolist() == pytest.approx([20, 40, -10 * np.log10(0.02), np.inf], abs=1e-4)
    where[0] = False
    assert psnr(image, truth, where)[0].isnan()


def waves(*parts: tuple[float, float, int, int], side: int = 40) -> torch.Tensor:
    """A picture of grey .5 and waves: amplitude, phase, and cycles a side down and across."""
    y, x = np.mgrid[:side, :side] / side
    picture = 0.5 + sum(a * np.cos(2 * np.pi * (v * y + u * x) + phase) for a, phase, v, u in parts)
    return torch.from_numpy(picture.astype(np.float32))[None, None]


def test_error_power_by_hand():
    coarse, fine, diagonal = (0.2, 0.3, 0, 3), (0.1, 1.0, 8, 0), (0.05, 0.0, 3, 4)  # .075, .2 and .125 cycles a pixel
    image = waves(coarse, fine, diagonal)  # power above .1 in parts: 4 to 1
    for kept, expected in (
        ([coarse, fine, diagonal], 0.0),
        ([fine, diagonal], 0.0),  # what is coarse may go
        ([coarse, fine], 0.2),
        ([coarse], 1.0),
        ([coarse, (0.05, 1.0, 8, 0), diagonal], 0.2),  # half the amplitude, a quarter of the power
        ([coarse, fine, diagonal, (0.2, 0.0, 0, 20)], 32 / 5),  # at the highest frequency a cosine is all one line
    ):
        assert error_power(waves(*kept), image).item() == pytest.approx(expected, abs=1e-5)
    assert error_power(waves(coarse), image, above=0.15).item() == pytest.approx(1)
    assert error_power(waves(coarse, fine), image, above=0.15).item() == pytest.approx(0, abs=1e-5)


@given(st.integers(0, 10**6), st.sampled_from([(3, 1, 16), (2, 3, 21)]), st.sampled_from([0.0, 0.1, 0.33]))
def test_error_power_is_numpys(seed, shape, above):
    rng = np.random.default_rng(seed)
    images, moved = rng.random((2, *shape, shape[-1]))
    high = np.hypot(np.fft.fftfreq(shape[-1])[:, None], np.fft.fftfreq(shape[-1])) > above
    change, own = (np.abs(np.fft.fft2(a)[..., high]) ** 2 for a in (moved - images, images))
    got = error_power(torch.from_numpy(moved).float(), torch.from_numpy(images).float(), above)
    assert got.item() == pytest.approx(change.sum() / own.sum(), rel=1e-4)
    assert error_power(torch.from_numpy(images), torch.from_numpy(images), above) == 0


@pytest.mark.parametrize("shape", [(3, 1, 16), (2, 3, 20), (1, 1, 21), (1, 2, 32)])
def test_the_power_spectrum_is_that_of_a_loop_over_rings(shape):
    images, side = np.random.default_rng(0).random((*shape, shape[-1])), shape[-1]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(side) / side)
    power = np.zeros((side, side))
    for image in images:
        for channel in image:
            power += np.abs(np.fft.fft2((channel - channel.mean()) * np.outer(window, window))) ** 2
    power /= shape[0] * shape[1]
    rings = [[] for _ in range(side // 2 + 1)]
    for i, j in np.ndindex(side, side):
        u, v = (k - side if k > (side - 1) // 2 else k for k in (i, j))  # cycles a side
        rings[min(int((u * u + v * v) ** 0.5 + 1e-9), side // 2)].append(power[i, j])
    frequency, mean = power_spectrum(torch.from_numpy(images).float())
    np.testing.assert_allclose(frequency, np.arange(side // 2 + 1) / side, rtol=1e-6)
    np.testing.assert_allclose(mean, [np.mean(ring) for ring in rings], rtol=1e-4)
    np.testing.assert_allclose(power_spectrum(torch.from_numpy(images).float() + 0.25)[1], mean, rtol=1e-3)  # grey is no edge


def test_the_score_of_an_image_is_its_largest_pixel():
    maps = torch.tensor([[[0.0, 3.0], [1.0, -4.0]], [[2.0, 2.0], [2.0, 2.0]]])  # by its mean the second would lead
    for defects, auroc in ((["bent", "good"], 1.0), (["good", "bent"], 0.0)):
        assert evaluate(maps, np.zeros((2, 2, 2), np.uint8), defects, bootstrap=0)["image_AUROC"] == auroc
