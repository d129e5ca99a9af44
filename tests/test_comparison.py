"""Methods side by side: each row is what its own maps say, means are means over seeds, an ablation is computed once."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import write_image
from PIL import Image
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score
from torchmetrics.functional.image import peak_signal_noise_ratio

from vaeproj.config import DESCENTS
from vaeproj.localization import anomaly_maps, difference, smooth
from vaeproj.metrics import METRICS, evaluate
from vaeproj.projection import composite, project
from vaeproj.studies import comparison
from vaeproj.studies.comparison import (
    OPPONENTS,
    ablate,
    best_on,
    compare,
    label_free_threshold,
    means,
    relative,
    repair_gain,
    save_maps,
    table,
)
from vaeproj.studies.proxy import proxy_workspace
from vaeproj.weight import anomaly_weight, fit_expected

SETTINGS = "iterations=3 alpha=2 sigma=1"
KINDS = {  # of opponents that a gain is stated above
    "VAE residual": [f"VAE residual, {kind}" for kind in ("L1", "L2", "SSIM", "L1_SSIM")],
    "composite": ["composite", "composite, one threshold", "composite, taken again"],
    "projection, paper": ["projection, paper", "projection, paper, detached"],
}
SEEDS = [5, 6]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """The rows of paper and article with three iterations too, and few replicates."""
    for name, values in list(DESCENTS.items()):
        monkeypatch.setitem(DESCENTS, name, values | {"iterations": 3})
    monkeypatch.setattr(comparison, "evaluate", lambda *given, bootstrap=20: evaluate(*given, bootstrap=bootstrap))


def smoothed_maps(ws, seed):
    """Maps of the projection, made without `comparison`."""
    chosen = ws.reconfigured(seed=seed)

    def score(tiles):
        return (tiles - project(chosen.fast_vae, tiles, chosen.config, chosen.expected)).abs()

    return smooth(anomaly_maps(ws.test.images, score, ws.config), ws.config.sigma)


def test_a_comparison_is_computed_once(open_ws):
    ws = open_ws(f"{SETTINGS} seed=5")
    methods, maps = compare(ws, SEEDS)
    kept = {path: path.stat().st_mtime_ns for path in (ws.kept / "cache").iterdir()}
    assert len(kept) == len(SEEDS) * len(methods)
    again, maps_again = compare(open_ws(f"{SETTINGS} seed=5"), SEEDS)
    assert again == methods
    assert all(torch.equal(maps[name], maps_again[name]) for name in maps)
    assert {path: path.stat().st_mtime_ns for path in (ws.kept / "cache").iterdir()} == kept


def test_a_killed_comparison_goes_on_where_it_stopped(open_ws):
    expected, _ = compare(open_ws(f"{SETTINGS} seed=5"), SEEDS)
    ws = open_ws(f"{SETTINGS} seed=5")
    paths = sorted((ws.kept / "cache").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for path in paths[9:]:
        path.unlink()
    stamps = [path.stat().st_mtime_ns for path in paths[:9]]
    assert compare(ws, SEEDS)[0] == expected
    assert [path.stat().st_mtime_ns for path in paths[:9]] == stamps
    assert sorted((ws.kept / "cache").iterdir()) == sorted(paths)


def test_what_made_a_result_is_in_its_name(open_ws, category):
    base = f"{SETTINGS} seed=5"
    compare(open_ws(base), SEEDS[:1])
    count = len(list((open_ws(base).kept / "cache").iterdir()))
    compare(open_ws(f"{base} sigma=2.5"), SEEDS[:1])  # another setting
    assert len(list((open_ws(base).kept / "cache").iterdir())) == 2 * count
    for folder in ("test", "ground_truth"):  # results hold the defects' names
        (category / folder / "bent").rename(category / folder / "bowed")
    methods, _ = compare(open_ws(base), SEEDS[:1])
    assert "bowed" in methods["preset's own"]["per_defect"]


def test_a_row_is_what_its_maps_say_and_a_mean_over_seeds(open_ws):
    ws = open_ws(f"{SETTINGS} seed=5")
    methods, maps = compare(ws, SEEDS)
    own, truth = methods["preset's own"], ws.test.gt_masks.ravel() > 0
    for seed in SEEDS:
        expected = smoothed_maps(ws, seed)
        row = own["seeds"][str(seed)]
        assert row["pixel_AUROC"] == pytest.approx(roc_auc_score(truth, expected.ravel()), abs=1e-6)
        assert row["pixel_AP"] == pytest.approx(average_precision_score(truth, expected.ravel()), abs=1e-6)
    torch.testing.assert_close(maps["preset's own"], smoothed_maps(ws, 5))
    for row in methods.values():
        for key in METRICS:
            assert row[key] == pytest.approx(np.mean([row["seeds"][str(seed)][key] for seed in SEEDS]))
    assert own["seeds"]["5"] != own["seeds"]["6"]
    assert own["raw"]["pixel_AUROC"] != own["pixel_AUROC"]
    assert set(own["gain"]) == set(KINDS)
    for kind, names in KINDS.items():
        rows = [methods[name] for name in names]
        for key in METRICS:
            assert own["gain"][kind][key]["difference"] == pytest.approx(own[key] - max(row[key] for row in rows))
            assert min(row["gain"][kind][key]["standard_error"] for row in rows) == 0  # the best against itself
        assert own["gain"][kind]["pixel_AP"]["standard_error"] > 0


def test_the_error_of_a_gain_is_that_of_the_mean_over_seeds(open_ws):
    ws = open_ws(f"{SETTINGS} seed=5")
    own = compare(ws, SEEDS)[0]["preset's own"]["gain"]
    seeded = [(w, comparison.scores(w)) for w in (ws.reconfigured(seed=seed) for seed in SEEDS)]
    names = ["preset's own", *(name for names in KINDS.values() for name in names)]
    results = {name: [comparison.judge(w, named[name])[0] for w, named in seeded] for name in names}
    averaged = {name: np.mean([r["replicates"] for r in rows], axis=0)[:, 0] for name, rows in results.items()}
    means_of = {name: np.mean([r["pixel_AUROC"] for r in rows]) for name, rows in results.items()}
    for kind, others in KINDS.items():
        best, gain = max(others, key=means_of.get), own[kind]["pixel_AUROC"]
        assert gain["standard_error"] == pytest.approx(np.std(averaged["preset's own"] - averaged[best], ddof=1))
        assert gain["difference"] == pytest.approx(means_of["preset's own"] - means_of[best])


def test_a_table_has_a_line_a_method_and_the_spread_over_seeds():
    def row(*values):
        seeds = {str(seed): dict.fromkeys(METRICS, value) for seed, value in enumerate(values)}
        return dict.fromkeys(METRICS, np.mean(values)) | {"seeds": seeds, "raw": {"pixel_AUROC": 0.25}}

    lines = table({"VAE": row(0.5), "preset's own": row(0.6, 0.8)}).splitlines()
    assert len(lines) == 2 + 2
    assert lines[2] == "| VAE | 0.5000 | 0.5000 | 0.5000 | 0.5000 | 0.2500 |"
    assert lines[3] == "| preset's own |" + " 0.7000 ± 0.1414 |" * 4 + " 0.2500 |"


def test_without_masks_methods_are_compared_by_images(open_ws, category, refuses):
    shutil.rmtree(category / "ground_truth")
    methods, maps = compare(open_ws(f"{SETTINGS} seed=5"), SEEDS)
    lines, own = table(methods).splitlines(), methods["preset's own"]
    assert lines[:2] == ["| method | image_AUROC |", "|---|---|"]
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in methods]
    ws = open_ws(f"{SETTINGS} seed=5")
    assert own["seeds"]["5"]["image_AUROC"] == roc_auc_score(ws.test.gt_labels, maps["preset's own"].amax((1, 2)))
    for row in methods.values():
        assert list(row["standard_error"]) == list(row["gain"]["composite"]) == ["image_AUROC"]
    shutil.rmtree(category / "test/good")
    with refuses(category / "test"):
        compare(open_ws(f"{SETTINGS} seed=5"), SEEDS)


def test_a_label_free_threshold_sees_held_out_training_images_only(open_ws, category):
    ws = open_ws(f"{SETTINGS} seed=5")
    shutil.rmtree(category / "test")
    held_out = ws.train.images[:1]  # one of three: the first

    def score(tiles):
        return (tiles - project(ws.fast_vae, tiles, ws.config, proxy_workspace(ws).expected)).abs()

    maps = smooth(anomaly_maps(held_out, score, ws.config), ws.config.sigma)
    maps = maps / maps.median()
    ranked = maps.flatten().sort().values
    threshold = label_free_threshold(ws)
    assert ranked[int(0.998 * len(ranked))] <= threshold <= ranked[-1]
    assert (maps >= threshold).float().mean() == pytest.approx(0.001, abs=1 / len(ranked))


def test_relative_maps_do_not_know_the_images_level():
    maps = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(relative(maps * torch.tensor([0.1, 1.0, 10.0])[:, None, None]), relative(maps))
    assert relative(maps).flatten(1).median(1).values.tolist() == pytest.approx([1, 1, 1])
    assert relative(torch.zeros(1, 2, 2)).tolist() == [[[0, 0], [0, 0]]]


@pytest.mark.parametrize(
    ("settings", "twin"),
    [
        ("descent=paper", "projection, paper"),
        ("descent=paper gradient=detached", "projection, paper, detached"),
        ("descent=article", "article, corrected"),
    ],
)
def test_the_presets_own_is_the_row_it_should_be(open_ws, settings, twin):
    ws = open_ws(settings)
    named = comparison.scores(ws)
    assert named["preset's own"] is named[twin]
    assert list(named)[-1] == "preset's own"
    others = [score for name, score in named.items() if name not in ("preset's own", twin)]
    assert len({*others, named[twin]}) == len(named) - 1


def by_hand(ws, tiles, expected, passes=1):
    """What is left of a picture where the VAE cannot explain it: its own pixels and the VAE's, weighted."""
    moved = tiles
    for _ in range(passes):
        picture = ws.trained.vae.reconstruct(moved).detach()
        weight = anomaly_weight(tiles, picture, expected, ws.config)
        moved = (1 - weight) * tiles + weight * picture
    return moved


@pytest.mark.parametrize("kind", ["l1", "l2", "ssim"])
def test_composite_rows_are_what_the_composite_changes(open_ws, kind):
    ws = open_ws(f"score={kind}")
    tiles, named = ws.normal_crops[:70].flip(2), comparison.scores(ws)
    residual = (ws.trained.vae.reconstruct(ws.normal_crops).detach() - ws.normal_crops).square().mean(1)
    usual = ndimage.gaussian_filter(residual, 16 / 32, mode="mirror", axes=(1, 2))[:, ::2, ::2].mean()
    even = fit_expected(ws.vae, ws.normal_crops, terms=1)
    assert even.tolist() == pytest.approx([usual, 0, 0, 0, 0, 0, usual], rel=1e-4)
    rows = {"composite, one threshold": (even, 1), "composite": (ws.expected, 1), "composite, taken again": (ws.expected, 5)}
    assert list(rows) == [name for name in named if name.startswith("composite")]
    repairs = comparison.restorers(ws)
    for name, (expected, passes) in rows.items():
        score, moved = named[name](tiles), tiles
        for _ in range(passes):
            moved = composite(ws.vae, tiles, ws.config, expected, moved)
        torch.testing.assert_close(score, difference(tiles, moved, kind), rtol=0, atol=1e-5)
        torch.testing.assert_close(moved, by_hand(ws, tiles, expected, passes), rtol=0, atol=1e-4)
        torch.testing.assert_close(repairs[name](tiles), moved)
        assert (moved - tiles).abs().max() > 0.1


def test_every_method_says_something_else(open_ws):
    ws = open_ws(SETTINGS)
    tiles = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    named = comparison.scores(ws)
    assert set(OPPONENTS) == set(KINDS)
    assert {kind: {name for name in named if name.startswith(kind)} for kind in KINDS} == {k: {*v} for k, v in KINDS.items()}
    made = {name: score(tiles) for name, score in named.items()}
    assert all(score.shape == tiles.shape and score.isfinite().all() for score in made.values())
    names = list(made)
    alike = {(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if torch.equal(made[a], made[b])}
    assert not alike


def test_an_ablation_is_computed_once(open_ws):
    ws = open_ws(SETTINGS)
    first = [ablate(ws, {"alpha": alpha}) for alpha in (0.5, 2.0)]
    assert first[1] == pytest.approx(ablate(ws, {}))
    assert first[0]["pixel_AUROC"] != first[1]["pixel_AUROC"]
    stamps = [path.stat().st_mtime_ns for path in (ws.kept / "cache").iterdir()]
    assert [ablate(ws, {"alpha": alpha}) for alpha in (0.5, 2.0)] == first
    assert best_on(ws, {}, "alpha", [0.5, 2.0]) == [0.5, 2.0][np.argmax([row["pixel_AP"] for row in first])]
    assert [path.stat().st_mtime_ns for path in (ws.kept / "cache").iterdir()] == stamps
    assert len(stamps) == 2


def test_restoration_compares_with_the_scene_without_the_defect(open_ws, category):
    for path in (category / "test").glob("[bt]*/*.png"):  # of noise; where no defect is, the scenes agree
        mask = np.asarray(Image.open(category / f"ground_truth/{path.parent.name}/{path.stem}_mask.png")) > 0
        pixels = np.where(mask, 255 - np.asarray(Image.open(path)), np.asarray(Image.open(path)))
        (clean := category / f"clean/{path.parent.name}/{path.name}").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(clean)
    ws = open_ws(SETTINGS)
    crops, clean, masks = comparison.defects_and_truth(ws)
    assert crops.shape == clean.shape == (3, 1, 16, 16) and masks.shape == (3, 16, 16)
    change = (crops - clean).abs()[:, 0]
    assert change[~masks].median() == 0 < change[masks].median()  # resizing smears a little over the border
    rows = comparison.restoration(ws)
    assert list(rows) == list(comparison.restorers(ws))
    assert list(rows)[-1] == "projection, anchored"
    moved = project(ws.fast_vae, crops, ws.config, ws.expected)
    for name, picture in (("test image", crops), ("VAE", ws.vae.reconstruct(crops)), ("projection, anchored", moved)):
        for place, where in (("inside", masks), ("outside", ~masks)):
            each = [
                peak_signal_noise_ratio(p[:, w].double(), c[:, w].double(), data_range=1.0)
                for p, c, w in zip(picture, clean, where, strict=True)
            ]
            torch.testing.assert_close(rows[name][f"psnr_{place}"], torch.stack(each), rtol=1e-4, atol=1e-4)
    assert rows["test image"]["error_power"].tolist() == [0]
    assert all(row["error_power"].item() > 0 for name, row in rows.items() if name != "test image")
    assert (rows["test image"]["ssim_outside"] > rows["test image"]["ssim_inside"]).all()
    curves = comparison.through_time(ws, every=1)  # ends where restoration does
    assert {name: curve["passes"].tolist() for name, curve in curves.items()} == {
        "composite": [*range(8)], "paper": [0, 2, 3, 4], "anchored": [0, 2, 3, 4],
    }  # fmt: skip
    for name, at, twin in (
        ("composite", 1, "composite"),
        ("composite", 5, "composite, taken again"),
        ("anchored", 3, "anchored"),
    ):
        expected = next(row for method, row in rows.items() if method.endswith(twin))["psnr_inside"].mean().item()
        assert curves[name]["psnr"][at] == pytest.approx(expected, abs=0.05)
    for curve in curves.values():
        assert curve["psnr"][0] == pytest.approx(rows["test image"]["psnr_inside"].mean().item())
        assert curve["error"][0] == 0 < curve["error"][-1]


def test_what_has_no_finite_value_has_an_infinite_mean_or_none():
    inf, nan = float("inf"), float("nan")
    values = {"mixed": [20.0, inf, nan, 30.0], "equal": [inf, inf], "once": [nan, inf], "unknown": [nan, nan]}
    found = means({"VAE": {key: torch.tensor(value) for key, value in values.items()}})
    assert found == {"VAE": pytest.approx({"mixed": 25.0, "equal": inf, "once": inf, "unknown": nan}, nan_ok=True)}


def test_a_test_image_that_is_the_truth_outside_its_mask(open_ws, category):
    for path in (category / "test").glob("[bt]*/*.png"):  # of the very size that is asked for: no resizing smears the border
        mask_path = category / f"ground_truth/{path.parent.name}/{path.stem}_mask.png"
        pixels, mask = (np.asarray(Image.open(p))[:32, :32] for p in (path, mask_path))
        write_image(path, pixels)
        write_image(mask_path, mask)
        write_image(category / f"clean/{path.parent.name}/{path.name}", np.where(mask > 0, 255 - pixels, pixels))
    ws = open_ws(SETTINGS)
    rows = comparison.restoration(ws)
    assert rows["test image"]["psnr_outside"].isposinf().all() and rows["VAE"]["psnr_outside"].isfinite().all()
    summary, gain = means(rows), repair_gain(rows)
    assert all(set(summary[name]) == set(rows[name]) for name in rows)
    assert summary["test image"]["psnr_outside"] == float("inf")
    outside = rows["projection, anchored"]["psnr_outside"] - rows["composite"]["psnr_outside"]
    assert gain["composite"]["psnr_outside"][0] == pytest.approx(outside.mean().item(), abs=1e-3)
    for curve in comparison.through_time(ws, every=1).values():
        assert all(np.isfinite(values).all() for values in curve.values())
    inside, outside = (torch.stack([row[key] for row in rows.values()]) for key in ("psnr_inside", "psnr_outside"))
    ws.figure("restoration", names=np.array(list(rows)), inside=inside, outside=outside)
    ws.record(restoration=summary)
    recorded = json.loads((ws.out / "metrics.json").read_text())["restoration"]
    assert recorded["test image"]["psnr_outside"] is None and recorded["VAE"] == summary["VAE"]


def test_maps_are_kept_with_their_names(tmp_path):
    maps = torch.tensor([[[0.0, 1.0]], [[2.0, 4.0]]])
    save_maps(maps, ["bent/000", "good/001"], tmp_path / "new")
    kept = np.load(tmp_path / "new/anomaly_maps.npz")
    assert kept["maps"].dtype == np.float16
    np.testing.assert_array_equal(kept["maps"], maps)
    assert kept["names"].tolist() == ["bent/000", "good/001"]
    assert sorted(p.name for p in (tmp_path / "new").glob("*.png")) == ["bent_000.png", "good_001.png"]
