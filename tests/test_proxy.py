"""Synthetic defects: where the mask says, and nowhere else."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from vaeproj.benchmark import sweep
from vaeproj.proxy import KINDS, paste, proxy_split, proxy_workspace

from vaeproj import benchmark
from vaeproj.config import UserError
from vaeproj.workspace import Workspace


@pytest.fixture(scope="module")
def images():
    x, y = np.meshgrid(np.arange(96), np.arange(96))
    phase = np.arange(6)[:, None, None, None]
    return (127 + 100 * np.sin(0.6 * x + 0.3 * y + phase)).astype(np.uint8)


@pytest.mark.parametrize("side", [96, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_changes_pixels_under_its_mask_only(images, kind, side):
    before = images[0, :, :side, :side].astype(float)
    after, where = paste(before, kind, np.random.default_rng(0))
    changed = np.abs(after - before)[0] > 12  # the soft edge fades beyond the mask
    assert 0 < where.sum() < where.size / 4
    assert changed.any()
    assert not (changed & ~where).any()


def test_held_out_images_are_tested_on_and_never_trained_on(images):
    train, test, masks, names = proxy_split(images, held_out=2, copies=3)
    assert len(train) == 4
    assert len(test) == len(masks) == len(names) == 2 + 2 * 3
    assert names[:2] == ["good"] * 2
    assert not masks[:2].any()
    assert masks[2:].any((1, 2)).all()
    assert not any(np.array_equal(a, b) for a in train for b in test)
    again = proxy_split(images, held_out=2, copies=3)
    assert np.array_equal(test, again[1])


def test_a_choice_by_the_proxy_sees_no_test_image(category, seasoned_vae, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "CACHE_DIR", tmp_path)
    settings = "image_size=96 crop_size=16 stride=16 latent_dim=8 iterations=2 steps=1"
    ws = Workspace.open("quick", settings, str(category.parent), "mesh", "cpu")
    shutil.rmtree(category / "test")
    proxy = proxy_workspace(ws)
    assert (len(ws.train.names), len(proxy.train.names), len(proxy.test.names)) == (3, 2, 5)
    assert proxy.train.digest != ws.train.digest  # a VAE trained on fewer images is another one
    trained = []
    monkeypatch.setattr(Workspace, "trained", property(lambda w: trained.append(w) or SimpleNamespace(vae=seasoned_vae())))
    rows = sweep(proxy, "score", ["l1", "l2"])
    assert rows["pixel_AP"][0] != rows["pixel_AP"][1]
    assert all(w.train is proxy.train and w.test is proxy.test for w in trained)


def test_one_image_cannot_be_held_out(category):
    for name in ("002", "010"):
        (category / f"train/good/{name}.png").unlink()
    with pytest.raises(UserError, match=r"train/good holds one image: add more"):
        proxy_workspace(Workspace.open("quick", "image_size=32 crop_size=16 stride=8", str(category.parent), "mesh", "cpu"))
