"""Methods side by side: each row is what its own maps say, means are means over seeds, an ablation is computed once."""

import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from vaeproj.localization import anomaly_maps, smooth
from vaeproj.metrics import METRICS
from vaeproj.projection import project
from vaeproj.studies import comparison
from vaeproj.studies.ablation import ablate, sweep
from vaeproj.studies.comparison import compare, label_free_threshold, means, relative, save_maps, table

SETTINGS = "iterations=3 alpha=2 sigma=1"
SEEDS = [5, 6]


def smoothed_maps(ws, seed):
    """Maps of the projection, made without `comparison`."""
    chosen = ws.reconfigured(seed=seed)

    def score(tiles):
        return (tiles - project(chosen.fast_vae, tiles, chosen.config, chosen.stop_at)).abs()

    return smooth(anomaly_maps(ws.test.images, score, ws.config), ws.config.sigma)


def test_a_comparison_is_computed_once(open_ws):
    ws = open_ws(f"{SETTINGS} seed=5")
    methods, maps = compare(ws, SEEDS)
    kept = {path: path.stat().st_mtime_ns for path in (ws.kept / "cache").iterdir()}
    assert len(kept) == len(SEEDS) * (len(methods) - 1)  # the preset's own is one of the other rows
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
    residuals = [row for name, row in methods.items() if name.startswith("VAE")]
    for key in METRICS:
        assert own["gain"][key]["difference"] == pytest.approx(own[key] - max(row[key] for row in residuals))
        assert min(row["gain"][key]["standard_error"] for row in residuals) == 0  # the best against itself
    assert own["gain"]["pixel_AP"]["standard_error"] > 0


def test_the_error_of_a_gain_is_that_of_the_mean_over_seeds(open_ws):
    ws = open_ws(f"{SETTINGS} seed=5")
    own = compare(ws, SEEDS)[0]["preset's own"]["gain"]["pixel_AUROC"]
    names = ("preset's own", *(f"VAE residual, {kind}" for kind in ("L1", "L2", "SSIM", "L1_SSIM")))
    seeded = [ws.reconfigured(seed=seed) for seed in SEEDS]
    results = {name: [comparison.judge(w, comparison.scores(w)[name]) for w in seeded] for name in names}
    averaged = {name: np.mean([r["replicates"] for r, _ in rows], axis=0)[:, 0] for name, rows in results.items()}
    means_of = {name: np.mean([r["pixel_AUROC"] for r, _ in rows]) for name, rows in results.items()}
    best = max((name for name in averaged if name.startswith("VAE")), key=means_of.get)
    assert own["standard_error"] == pytest.approx(np.std(averaged["preset's own"] - averaged[best], ddof=1))
    assert own["difference"] == pytest.approx(means_of["preset's own"] - means_of[best])


def test_a_table_has_a_line_a_method(open_ws):
    methods, _ = compare(open_ws(f"{SETTINGS} seed=5"), SEEDS)
    own = methods["preset's own"]
    lines = table(methods).splitlines()
    assert len(lines) == 2 + len(methods)
    assert f"{own['pixel_AP']:.4f}" in lines[-1]


def test_a_label_free_threshold_sees_held_out_training_images_only(open_ws, category):
    ws = open_ws(f"{SETTINGS} seed=5")
    shutil.rmtree(category / "test")
    held_out = ws.train.images[:1]  # one of three: the first

    def score(tiles):
        return (tiles - project(ws.fast_vae, tiles, ws.config)).abs()

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
        ("", "projection, full"),
        ("gradient=detached", "projection, detached"),
        ("stop_quantile=0", "projection, full, stopped"),
        ("stop_quantile=0.5", "projection, full, stopped"),
    ],
)
def test_the_presets_own_is_the_row_it_should_be(open_ws, settings, twin):
    ws = open_ws(f"{SETTINGS} {settings}")
    named = comparison.scores(ws)
    assert named["preset's own"] is named[twin]
    assert list(named)[-1] == "preset's own"
    others = [score for name, score in named.items() if name not in ("preset's own", twin)]
    assert len({*others, named[twin]}) == len(named) - 1


def test_every_method_says_something_else(open_ws):
    ws = open_ws(SETTINGS)
    tiles = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    named = comparison.scores(ws)
    del named["preset's own"]
    made = {name: score(tiles) for name, score in named.items()}
    assert all(score.shape == tiles.shape and score.isfinite().all() for score in made.values())
    names = list(made)
    alike = {(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if torch.equal(made[a], made[b])}
    assert not alike


def test_an_ablation_is_computed_once(open_ws):
    ws = open_ws(SETTINGS)
    first = sweep(ws, "alpha", [0.5, 2.0])
    assert first["pixel_AUROC"][1] == pytest.approx(ablate(ws, {})["pixel_AUROC"])
    assert first["pixel_AUROC"][0] != first["pixel_AUROC"][1]
    stamps = [path.stat().st_mtime_ns for path in (ws.kept / "cache").iterdir()]
    assert sweep(ws, "alpha", [0.5, 2.0]) == first
    assert [path.stat().st_mtime_ns for path in (ws.kept / "cache").iterdir()] == stamps
    assert len(stamps) == 2


def test_what_has_no_finite_value_has_no_mean():
    values = {"psnr": torch.tensor([20.0, float("inf"), 30.0]), "ssim": torch.tensor([float("nan")])}
    assert means({"VAE": values}) == {"VAE": {"psnr": 25.0}}


def test_maps_are_kept_with_their_names(tmp_path):
    maps = torch.tensor([[[0.0, 1.0]], [[2.0, 4.0]]])
    save_maps(maps, ["bent/000", "good/001"], tmp_path / "new")
    kept = np.load(tmp_path / "new/anomaly_maps.npz")
    assert kept["maps"].dtype == np.float16
    np.testing.assert_array_equal(kept["maps"], maps)
    assert kept["names"].tolist() == ["bent/000", "good/001"]
    assert sorted(p.name for p in (tmp_path / "new").glob("*.png")) == ["bent_000.png", "good_001.png"]
