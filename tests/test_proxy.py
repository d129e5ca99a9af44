"""Synthetic defects: where the mask says, and nowhere else."""

import shutil

import numpy as np
import pytest
from scipy import ndimage

from vaeproj.studies.comparison import ablate
from vaeproj.studies.proxy import KINDS, paste, proxy_split, proxy_workspace


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
    assert changed.any() and not (changed & ~where).any()


def test_held_out_images_are_tested_on_and_never_trained_on(images):
    train, test, masks, names = proxy_split(images, held_out=2, copies=3)
    assert len(train) == 4
    assert len(test) == len(masks) == len(names) == 2 + 2 * 3
    assert names[:2] == ["good"] * 2
    assert not masks[:2].any() and masks[2:].any((1, 2)).all()
    assert not any(np.array_equal(a, b) for a in train for b in test)
    assert np.array_equal(test, proxy_split(images, held_out=2, copies=3)[1])


def test_a_choice_by_the_proxy_sees_no_test_image(open_ws, category):
    ws = open_ws("image_size=96 stride=16 iterations=2")
    shutil.rmtree(category / "test")
    proxy = proxy_workspace(ws)
    assert (len(ws.train.names), len(proxy.train.names), len(proxy.test.names)) == (3, 2, 5)
    assert proxy.train.digest != ws.train.digest  # a VAE trained on fewer images is another one
    rows = [ablate(proxy, {"score": kind}) for kind in ("l1", "l2")]
    assert rows[0]["pixel_AP"] != rows[1]["pixel_AP"]
    assert all(ndimage.label(mask)[1] for mask in proxy.test.gt_masks[1:])  # defects pasted on the one held out


def test_one_image_cannot_be_held_out(open_ws, category, refuses):
    for name in ("002", "010"):
        (category / f"train/good/{name}.png").unlink()
    with refuses("train/good holds one image: add more"):
        proxy_workspace(open_ws())
