"""The principal components are those of a plain singular value decomposition."""

import numpy as np
import pytest
import torch

from vaeproj.localization import difference
from vaeproj.studies.comparison import COMPONENTS, PCA_CROPS, pca_score

SHAPE = (2, 6, 6)  # of a crop, 72 values


def crops(number: int, seed: int = 0) -> torch.Tensor:
    """Crops in [0, 1] of a few smooth pictures and a little of everything else: each component counts for less."""
    rng = np.random.default_rng(seed)
    pictures = np.linalg.qr(np.random.default_rng(1).normal(size=(72, 72)))[0]
    spread = rng.normal(size=(number, 72)) * 0.8 ** np.arange(72)
    return torch.from_numpy((0.5 + 0.3 * spread @ pictures.T).clip(0, 1)).float().view(-1, *SHAPE)


def by_svd(train: torch.Tensor, tiles: torch.Tensor, components: int) -> torch.Tensor:
    """The tiles rebuilt from the first right singular vectors of the centred crops, in float64."""
    known, asked = (x.double().flatten(1).numpy() for x in (train, tiles))
    _, _, right = np.linalg.svd(known - known.mean(0), full_matrices=False)
    basis = right[:components]
    return torch.from_numpy(known.mean(0) + (asked - known.mean(0)) @ basis.T @ basis).view_as(tiles)


@pytest.mark.parametrize("kind", ["l1", "l2"])
@pytest.mark.parametrize("components", [1, 3, 8])
def test_a_few_components_are_those_of_numpy(components, kind):
    train, tiles = crops(100), crops(700, seed=2)  # more tiles than are scored at once
    rebuilt = by_svd(train, tiles, components)
    score = pca_score(train, kind, components)(tiles)
    torch.testing.assert_close(score.double(), difference(tiles.double(), rebuilt, kind), rtol=0, atol=1e-5)
    assert score.mean() > 1e-4


@pytest.mark.parametrize("number", [20, 72, 300])  # fewer crops than values, as many, and more
def test_all_components_leave_nothing_of_what_the_crops_span(number):
    train = crops(number)
    mixed = torch.from_numpy(np.random.default_rng(3).dirichlet(np.ones(number), 5)).float() @ train.flatten(1)
    score = pca_score(train, "l1", min(number, 72))
    for tiles in (train, mixed.view(-1, *SHAPE)):
        torch.testing.assert_close(score(tiles), torch.zeros_like(tiles), rtol=0, atol=1e-5)
    outside = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert (score(outside).mean() > 0.05) == (number < 72)


def test_more_components_than_crops_are_as_many_as_there_are():
    train = crops(10)
    torch.testing.assert_close(pca_score(train, "l2")(train), torch.zeros_like(train), rtol=0, atol=1e-8)
    assert len(train) < COMPONENTS < PCA_CROPS


def test_the_score_is_the_same_each_time():
    one, other = (pca_score(crops(100), "l2", 5)(crops(3, seed=2)) for _ in range(2))
    assert torch.equal(one, other)
