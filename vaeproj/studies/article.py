"""The article's projection loop with its bugs, each behind a switch: for the ablations and notebook 04, never a default."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..model import VAE
from ..projection import reconstruction_energy

BUGS = ("detached_gradient", "swapped_bce", "stale_gradient")


def article_loop(vae: VAE, tiles: Tensor, config: Config, bugs: tuple[str, ...] = BUGS) -> Tensor:
    """Run the article's loop; with no bugs it is `projection.project` without stopping.

    Args:
        vae: from `model.frozen`, in fp32.
        tiles: x_0, [B, C, H, W] in [0, 1].
        config: ``alpha``, ``lam``, ``iterations``, ``energy`` and ``soft_mask``.
        bugs: which to keep.
            ``detached_gradient``: f(x_t) is cut from the graph, so the VAE never sees the gradient.
            ``swapped_bce``: ``binary_cross_entropy(x_t, f(x_t))``, image and reconstruction exchanged.
            ``stale_gradient``: the step reads ``x_0.grad``, which is taken at x_0 and summed over all iterations; the
            graph it runs through grows with each.

    Returns:
        x_T, [B, C, H, W] in [0, 1]. The article never clips; without it, its cross-entropy stops with an error at the
        first pixel outside [0, 1], so nothing would be left to compare.
    """
    x_0 = tiles.detach().clone().requires_grad_()
    x = x_0
    for _ in range(config.iterations):
        if "stale_gradient" not in bugs:
            x = x.detach().requires_grad_()
        logits = vae.logits(x)
        if "detached_gradient" in bugs:
            logits = logits.detach()
        picture = logits.sigmoid()
        if "swapped_bce" in bugs:
            l_r = F.binary_cross_entropy(x, picture, reduction="sum")
        else:
            l_r = reconstruction_energy(logits, x, config).sum()
        energy = l_r + config.lam * (x - tiles).abs().sum()
        energy.backward(retain_graph="stale_gradient" in bugs)
        gradient = (x_0 if "stale_gradient" in bugs else x).grad
        mask = (x - picture.detach()).square() if config.soft_mask else 1.0
        assert gradient is not None  # backward filled it
        moved = x - config.alpha * gradient * mask
        # Swapped and stale together the gradient overflows on saturated pixels: where it is no number, nothing moves.
        x = torch.where(moved.isnan(), x.detach(), moved).clamp(0, 1)
    return x.detach()
