"""The article's projection loop with its bugs, each behind a switch: for the ablations and notebook 04, never a default."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config import Config
from ..model import VAE
from ..projection import energy_terms

BUGS = ("detached_gradient", "swapped_bce", "stale_gradient")


def article_loop(vae: VAE, tiles: Tensor, config: Config, bugs: tuple[str, ...] = BUGS, *, eps: float | None = None) -> Tensor:
    """Run the article's loop; with no bugs it ends where `projection.project` does.

    Args:
        vae: from `model.frozen`, in fp32.
        tiles, config: as there; any ``descent`` but anchored.
        bugs: which to keep.
            ``detached_gradient``: f(x_t) is cut from the graph, so the VAE never sees the gradient.
            ``swapped_bce``: ``binary_cross_entropy(x_t, f(x_t))``, image and reconstruction exchanged.
            ``stale_gradient``: the step reads ``x_0.grad``: taken with respect to x_0, through the graph retained from all
            earlier steps, and summed over them. The x_0 of the penalty is that same leaf: x_t moves along with it, and
            lambda nearly cancels.
        eps: the published step size, which the article never gives a value; None reads it as ``alpha``.

    Returns x_0 ... x_T, [T + 1, B, C, H, W] in [0, 1]. The article never clips; without it, its cross-entropy stops with an
    error at the first pixel outside [0, 1], so nothing would be left to compare.
    """
    size, stale = config.alpha if eps is None else eps, "stale_gradient" in bugs
    x = x_0 = tiles.detach().clone().requires_grad_()
    frames = [tiles]
    for _ in range(config.iterations):
        if not stale:
            x = x.detach().requires_grad_()
        logits = vae.logits(x)
        if "detached_gradient" in bugs:
            logits = logits.detach()
        picture = logits.sigmoid()
        if "swapped_bce" in bugs:
            l_r = F.binary_cross_entropy(x, picture, reduction="sum")
        else:
            l_r = energy_terms(logits, x, tiles, torch.ones_like(tiles), config)[:, 0].sum()
        energy = l_r + config.lam * (x - (x_0 if stale else tiles)).abs().sum()
        energy.backward(retain_graph=stale)
        gradient = (x_0 if stale else x).grad
        assert gradient is not None  # backward filled it
        mask = (x - picture.detach()).square() if config.descent != "plain" else 1.0
        moved = x - size * gradient * mask
        # Swapped and stale together the gradient overflows on saturated pixels: where it is no number, nothing moves.
        x = torch.where(moved.isnan(), x.detach(), moved).clamp(0, 1)
        frames.append(x.detach())
    return torch.stack(frames)
