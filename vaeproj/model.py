"""The article's variational autoencoder and its loss."""

import copy
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from .config import UserError

SLOPE = 0.2  # of every LeakyReLU
HIDDEN = 1024  # width of the two dense layers


class _BlockConv2d(nn.Conv2d):
    """A kernel-4, stride-2 convolution, computed on 2 x 2 blocks of pixels taken as channels: the same sums in other
    kernels, since those for a single channel are several times slower. The weights stay those of the plain layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        blocks = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        return F.conv2d(blocks, _block_weight(self.weight), self.bias, padding=1)


class _BlockConvTranspose2d(nn.ConvTranspose2d):
    """The transposed convolution that goes with `_BlockConv2d`."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override] # there is one output size
        bias = self.bias.repeat_interleave(4)  # type: ignore[union-attr]
        blocks = F.conv_transpose2d(x, _block_weight(self.weight), bias, padding=1)
        return F.pixel_shuffle(blocks, 2)


def _block_weight(weight: Tensor) -> Tensor:
    """[M, C, 4, 4] with stride 2 -> [M, 4 C, 3, 3] with stride 1 on 2 x 2 blocks, padding included."""
    return F.pixel_unshuffle(F.pad(weight, [1, 1, 1, 1]), 2)


class _Flatten(nn.Module):
    """Features in the order channels_last keeps them in memory, so that nothing is copied: [B, C, H, W] -> [B, H W C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


class _Unflatten(nn.Module):
    """The inverse of `_Flatten` onto a square of ``channels``."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.shape = (side, side, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, self.shape).permute(0, 3, 1, 2)


class VAE(nn.Module):
    """Convolutional VAE: q(z | x) = N(mean, exp(log_var)), p(x | z) = Bernoulli(sigmoid(logits)).

    Article: three convolutions 1-32-64-128 (kernel 4, stride 2, padding 1), a dense layer of 1024, a latent space of
    512, and the mirror image as decoder: 69,051,329 parameters at its crop of 128 x 128. ``crop_size`` is the side of the
    square input, a multiple of 8; ``channels`` is 1 for grey images, 3 for RGB.
    """

    def __init__(self, latent_dim: int = 512, crop_size: int = 128, channels: int = 1) -> None:
        super().__init__()
        if crop_size % 8:
            raise UserError(f"crop_size = {crop_size}: the VAE halves its crop three times, so use a multiple of 8.")
        self.shape = (channels, crop_size, crop_size)
        side = crop_size // 8
        features = 128 * side * side
        conv: dict[str, Any] = {"kernel_size": 4, "stride": 2, "padding": 1}
        self.encoder = nn.Sequential(
            _BlockConv2d(channels, 32, **conv), nn.BatchNorm2d(32), nn.LeakyReLU(SLOPE),
            nn.Conv2d(32, 64, **conv), nn.BatchNorm2d(64), nn.LeakyReLU(SLOPE),
            nn.Conv2d(64, 128, **conv), nn.BatchNorm2d(128), nn.LeakyReLU(SLOPE),
            _Flatten(),
            nn.Linear(features, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.LeakyReLU(SLOPE),
        )  # fmt: skip
        self.posterior = nn.Linear(HIDDEN, 2 * latent_dim)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.LeakyReLU(SLOPE),
            nn.Linear(HIDDEN, features), nn.LeakyReLU(SLOPE),
            _Unflatten(128, side),
            nn.ConvTranspose2d(128, 64, **conv), nn.BatchNorm2d(64), nn.LeakyReLU(SLOPE),
            nn.ConvTranspose2d(64, 32, **conv), nn.BatchNorm2d(32), nn.LeakyReLU(SLOPE),
            _BlockConvTranspose2d(32, channels, **conv),
        )  # fmt: skip
        for layer, following in pairwise([*self.encoder, *self.decoder]):
            if isinstance(following, nn.BatchNorm1d | nn.BatchNorm2d):  # which takes out what a bias adds: none is learnt
                nn.init.zeros_(layer.bias).requires_grad_(False)

    @property
    def latent_dim(self) -> int:
        return self.posterior.out_features // 2

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """X [B, C, H, W] in [0, 1] -> mean and log-variance of q(z | x), each [B, latent_dim]."""
        mean, log_var = self.posterior(self.encoder(x)).chunk(2, dim=1)
        return mean, log_var

    def decode(self, z: Tensor) -> Tensor:
        """Z [B, latent_dim] -> logits of the pixels, [B, C, H, W]; their sigmoid is the picture."""
        return self.decoder(z)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, mean and log-variance with z = mean + exp(log_var / 2) * noise; noise [B, latent_dim] ~ N(0, I)."""
        mean, log_var = self.encode(x)
        return self.decode(mean + (0.5 * log_var).exp() * noise), mean, log_var

    def logits(self, x: Tensor) -> Tensor:
        """Logits of f(x), the decoder at the posterior's mean, no sampling: fp32, whatever precision the weights have."""
        return self.decode(self.encode(x.to(self.posterior.weight.dtype))[0]).float()

    def reconstruct(self, x: Tensor) -> Tensor:
        """f(x) = decoder(mean of encoder(x)), [B, C, H, W] in [0, 1] (paper, section 2)."""
        return self.logits(x).sigmoid()


def elbo_loss(logits: Tensor, x: Tensor, mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of the negative ELBO, binary cross-entropy -log p(x | z) and KL(q(z | x) || N(0, I)): scalars in fp32, each
    summed over pixels or latents and over the batch (article). From logits, because the sigmoid's logarithm saturates.
    """
    bce = F.binary_cross_entropy_with_logits(logits.float(), x, reduction="sum")
    mean, log_var = mean.float(), log_var.float()
    kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()
    return bce, kl


def frozen(vae: VAE, dtype: torch.dtype = torch.float32) -> VAE:
    """A copy in eval mode for use on images: no weight gradients, each BatchNorm folded into the layer before it.

    It computes what the original computes in eval mode, with fewer passes over the activations. ``dtype`` is the precision of
    weights and activations; folding happens in that of ``vae``.
    """
    vae = copy.deepcopy(vae).eval().requires_grad_(False)
    for name in ("encoder", "decoder"):
        folded: list[Any] = []
        for layer in getattr(vae, name):
            if isinstance(layer, nn.BatchNorm1d):
                folded[-1] = fuse_linear_bn_eval(folded[-1], layer)
            elif isinstance(layer, nn.BatchNorm2d):
                folded[-1] = fuse_conv_bn_eval(folded[-1], layer, isinstance(folded[-1], nn.ConvTranspose2d))
            else:
                folded.append(nn.LeakyReLU(SLOPE, inplace=True) if isinstance(layer, nn.LeakyReLU) else layer)
        setattr(vae, name, nn.Sequential(*folded))
    return vae.to(dtype)
