"""What every notebook starts from: data are read at once, their mistakes told before they do harm, and kept in one place."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from vaeproj import workspace
from vaeproj.weight import fit_expected
from vaeproj.workspace import Request, Workspace, synthgrid_root


def test_everything_is_read_at_open(open_ws, category):
    ws = open_ws()
    shutil.rmtree(category)
    assert ws.train.images.shape == (3, 1, 32, 32)
    assert ws.defect_names() == ["bent/003", "thread/000"]
    assert ws.defect_names(each=2) == ["bent/003", "bent/004", "thread/000"]
    crops, masks, corners = ws.crops_at(["bent/004"])
    (top, left), i = corners[0], ws.test.index("bent/004")
    torch.testing.assert_close(crops[0] * 255, ws.test.images[i, :, top : top + 16, left : left + 16].float())
    assert masks[0].sum() == ws.test.gt_masks[i].sum()  # the whole defect, which is smaller than a crop


def test_what_is_made_once_lies_in_the_kept_folder(open_ws, tmp_path):
    ws = open_ws("steps=1 batch_size=2")
    assert ws.checkpoint.parent == tmp_path / "kept/checkpoints"
    kept = {p.name.rpartition("-")[0] for p in (tmp_path / "kept/decoded").iterdir()}
    assert kept == {split.digest[:16] for split in (ws.train, ws.test)}
    stamp = ws.checkpoint.stat().st_mtime_ns
    assert open_ws("steps=1 batch_size=2").checkpoint.stat().st_mtime_ns == stamp


def test_the_normal_residual_is_fitted_once_and_found_again(open_ws, tmp_path):
    ws = open_ws()
    fitted = ws.expected
    torch.testing.assert_close(fitted, fit_expected(ws.vae, ws.normal_crops))
    assert (ws.normal_crops.shape, fitted.shape) == ((512, 1, 16, 16), (7,))
    (path,) = (tmp_path / "kept/checkpoints").iterdir()
    np.savez(path, expected=np.arange(7, dtype=np.float32))
    assert open_ws("alpha=3 sigma=1 descent=paper").expected.tolist() == list(range(7))  # found, whatever does not make it
    path.unlink()
    assert torch.equal(open_ws().expected, fitted)
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(open_ws().expected, fitted)
    assert list(path.parent.iterdir()) == [path]


def test_the_normal_residual_depends_on_weights_and_training_images(open_ws, category):
    class Other(type(open_ws())):
        weights = "others"

    ws = open_ws()
    fitted, other = ws.expected, Other.open(ws.request, kept=ws.kept)
    torch.testing.assert_close(other.expected, fitted)  # by the same VAE, but nobody could know that
    assert len(list((ws.kept / "checkpoints").iterdir())) == 2
    assert not torch.allclose(ws.reconfigured(seed=1).expected, fitted)
    (category / "train/good/002.png").unlink()
    assert not torch.allclose(open_ws().expected, fitted)
    assert len(list((ws.kept / "checkpoints").iterdir())) == 4


@pytest.mark.parametrize("change", [{"image_size": 64}, {"synthgrid_size": 512}, {"synthgrid_fraction": 0.5}])
def test_hyper_parameters_change_but_not_what_the_data_are_made_of(open_ws, refuses, change):
    ws = open_ws()
    other = ws.reconfigured(alpha=2.0)
    assert (other.config.alpha, other.fingerprint == ws.fingerprint) == (2.0, False)
    assert other.train is ws.train and other.test is ws.test
    with refuses(*change, "open another workspace"):
        ws.reconfigured(**change)


def test_a_thinner_test_set_has_some_of_each_kind(open_ws):
    ws = open_ws()
    thin = ws.thinned(2)
    assert thin.test.names == ["bent/003", "good/001", "thread/000"]
    assert thin.test.defects == ["bent", "good", "thread"]
    for i, name in enumerate(thin.test.names):
        assert torch.equal(thin.test.images[i], ws.test.images[ws.test.index(name)])
        assert np.array_equal(thin.test.gt_masks[i], ws.test.gt_masks[ws.test.index(name)])
    assert ws.thinned(1).test.names == ws.test.names
    assert thin.train is ws.train


@pytest.mark.parametrize("split", ["train", "test"])
def test_colour_here_and_grey_there_is_refused(open_ws, category, refuses, split):
    for path in (category / split).glob("*/[0-9]*.png"):
        if path.is_file():
            Image.open(path).convert("RGB").save(path)
    with refuses("channels", category):
        open_ws()


def test_a_test_set_without_defects_is_named(open_ws, refuses):
    with refuses("holds no image with a defect"):
        open_ws().crops_at([])


def test_without_masks_crops_are_centred_and_a_sentence_says_so(open_ws, category, capsys):
    assert open_ws().has_masks
    assert capsys.readouterr().out == ""
    (category / "clean").mkdir()
    assert open_ws().is_synthetic
    shutil.rmtree(category / "ground_truth")
    ws = open_ws()
    assert (ws.has_masks, ws.is_synthetic) == (False, False)
    sentence = capsys.readouterr().out
    assert sentence.startswith(f"{category} has no masks") and sentence.endswith(".\n")
    assert "ground_truth/<defect>/<name>_mask.png" in sentence
    crops, masks, corners = ws.crops_at(ws.defect_names())
    assert corners == [(8, 8)] * 2  # 16 of 32 pixels
    torch.testing.assert_close(crops[0] * 255, ws.test.images[0, :, 8:24, 8:24].float())
    assert not masks.any()
    for defect in ("bent", "thread"):
        shutil.rmtree(category / "test" / defect)
    assert not open_ws().has_masks
    assert capsys.readouterr().out == ""  # good images alone need none


def test_metrics_are_laid_over_older_ones(open_ws):
    ws = open_ws()
    ws.record(a=1, b=float("nan"))
    ws.record(a=2, c={"d": 3})
    assert json.loads((ws.out / "metrics.json").read_text()) == {"a": 2, "b": None, "c": {"d": 3}}
    assert [path.name for path in ws.out.iterdir()] == ["metrics.json"]


WHOLE = "crop_size=32 stride=32 rotation=false"


@pytest.mark.parametrize(("name", "settings", "said"), [
    ("bottle", "", "bottle is an object, for which crop_size = 16 at image_size = 32 is wrong: use preset object."),
    ("carpet", WHOLE, "carpet is a texture, for which crop_size = 32 at image_size = 32 is wrong: use preset quick or best."),
    ("bottle", WHOLE, None), ("carpet", "", None), ("mine", WHOLE, None), ("mine", "", None),
])  # fmt: skip
def test_a_known_object_in_crops_or_a_known_texture_whole_is_named(open_ws, category, name, settings, said):
    category.rename(category.with_name(name))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ws = open_ws(settings, category=name)
    assert [str(one.message) for one in caught if one.category is UserWarning] == ([said] if said else [])
    assert ws.folder.name == name  # people may know better


def test_the_ring_is_rendered_on_first_use(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "DATA_DIR", tmp_path / "data")
    settings = f"synthgrid_size=64 synthgrid_fraction=0.02 image_size=32 latent_dim=8 {WHOLE}"
    ws = Workspace.open(Request("ci", settings, category="ring", device="cpu"), kept=tmp_path / "kept")
    assert ws.folder == synthgrid_root(ws.config) / "ring" and ws.folder.is_relative_to(tmp_path) and ws.is_synthetic
    assert ws.train.images.shape == (4, 3, 32, 32)  # .02 of 209
    assert sorted(ws.test.defects) == ["chip"] * 2 + ["contamination"] * 2 + ["crack"] * 2 + ["good"] * 2
    assert [bool(mask.any()) for mask in ws.test.gt_masks] == ws.test.gt_labels.tolist()
    assert not (ws.folder.parent / "grid").exists()
