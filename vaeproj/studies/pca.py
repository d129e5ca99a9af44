"""An opponent from outside: the reconstruction by principal components of training crops. Does one need a VAE?"""

from functools import cache

import torch
from sklearn.decomposition import PCA
from torch import Tensor

from ..localization import SCORE_CHUNK, Score, difference

PCA_CROPS = 2048
COMPONENTS = 64


def pca_score(crops: Tensor, kind: str, components: int = COMPONENTS) -> Score:
    """`localization.difference` between tiles and their projection onto the principal components of training crops.

    Args:
        crops: [N, C, crop, crop] in [0, 1].
        kind: of the difference.
        components: how many, at most as many as there are crops.
    """

    @cache
    def fitted() -> tuple[Tensor, Tensor]:
        pca = PCA(min(components, len(crops)), svd_solver="randomized", random_state=0).fit(crops.flatten(1).cpu().numpy())
        return torch.from_numpy(pca.mean_).to(crops), torch.from_numpy(pca.components_).to(crops)

    def score(tiles: Tensor) -> Tensor:
        mean, basis = fitted()
        done = []
        for part in tiles.split(SCORE_CHUNK):
            picture = mean + (part.flatten(1) - mean) @ basis.T @ basis
            done.append(difference(part, picture.view_as(part), kind))
        return torch.cat(done)

    return score
