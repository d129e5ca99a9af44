"""An opponent from outside: the reconstruction by principal components of training crops. Does one need a VAE?"""

from functools import cache

import torch
from sklearn.decomposition import PCA
from torch import Tensor

from ..localization import Score, change_score

PCA_CROPS = 2048
COMPONENTS = 64


def pca_score(crops: Tensor, kind: str, components: int = COMPONENTS) -> Score:
    """`localization.difference` between tiles and their projection onto the principal components of training ``crops``,
    [N, C, crop, crop] in [0, 1]: the first ``components``, at most as many as there are crops.
    """

    @cache
    def fitted() -> PCA:
        return PCA(min(components, len(crops)), svd_solver="randomized", random_state=0).fit(crops.flatten(1).cpu().numpy())

    def rebuilt(tiles: Tensor) -> Tensor:
        flat = fitted().inverse_transform(fitted().transform(tiles.flatten(1).cpu().numpy()))
        return torch.from_numpy(flat).to(tiles).view_as(tiles)

    return change_score(rebuilt, kind)
