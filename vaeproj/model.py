"""The article's variational autoencoder and its loss."""

from __future__ import annotations

import copy

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from .config import UserError

SLOPE = 0.2  # of every LeakyReLU
HIDDEN = 1024  # width of the two dense layers


class VAE(nn.Module):
    """Convolutional VAE: q(z | x) = N(mean, exp(log_var)), p(x | z) = Bernoulli(sigmoid(logits)).

    Article: three convolutions 1-32-64-128 (kernel 4, stride 2, padding 1), a dense layer of 1024, a latent space of
    512, and the mirror image as decoder: 69,051,329 parameters at its crop of 128 x 128.

    Args:
        latent_dim: dimensions of z.
        crop_size: side of the square input, pixels; a multiple of 8.
        channels: 1 for grey images, 3 for RGB.
    """

    def __init__(self, latent_dim: int = 512, crop_size: int = 128, channels: int = 1) -> None:
        super().__init__()
        if crop_size % 8:
            raise UserError(f"crop_size = {crop_size}: the VAE halves its crop three times, so use a multiple of 8.")
        self.shape = (channels, crop_size, crop_size)
        side = crop_size // 8
        features = 128 * side * side
        conv = {"kernel_size": 4, "stride": 2, "padding": 1}
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 32, **conv), nn.BatchNorm2d(32), nn.LeakyReLU(SLOPE),
            nn.Conv2d(32, 64, **conv), nn.BatchNorm2d(64), nn.LeakyReLU(SLOPE),
            nn.Conv2d(64, 128, **conv), nn.BatchNorm2d(128), nn.LeakyReLU(SLOPE),
            nn.Flatten(),
            nn.Linear(features, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.LeakyReLU(SLOPE),
        )  # fmt: skip
        self.posterior = nn.Linear(HIDDEN, 2 * latent_dim)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.LeakyReLU(SLOPE),
            nn.Linear(HIDDEN, features), nn.LeakyReLU(SLOPE),
            nn.Unflatten(1, (128, side, side)),
            nn.ConvTranspose2d(128, 64, **conv), nn.BatchNorm2d(64), nn.LeakyReLU(SLOPE),
            nn.ConvTranspose2d(64, 32, **conv), nn.BatchNorm2d(32), nn.LeakyReLU(SLOPE),
            nn.ConvTranspose2d(32, channels, **conv),
        )  # fmt: skip

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
        """Logits, mean and log-variance with z = mean + exp(log_var / 2) * noise; noise [B, latent_dim] ~ N(0, 1)."""
        mean, log_var = self.encode(x)
        return self.decode(mean + (0.5 * log_var).exp() * noise), mean, log_var

    def logits(self, x: Tensor) -> Tensor:
        """Logits of f(x), the decoder at the posterior's mean: no sampling."""
        return self.decode(self.encode(x)[0])

    def reconstruct(self, x: Tensor) -> Tensor:
        """f(x) = decoder(mean of encoder(x)), [B, C, H, W] in [0, 1] (paper, section 2)."""
        return self.logits(x).sigmoid()


def elbo_loss(logits: Tensor, x: Tensor, mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of the negative ELBO, each summed over pixels or latents and over the batch (article).

    Args:
        logits: [B, C, H, W]; from logits because the sigmoid's logarithm saturates.
        x: [B, C, H, W] in [0, 1].
        mean, log_var: [B, latent_dim].

    Returns:
        Binary cross-entropy -log p(x | z) and KL(q(z | x) || N(0, 1)), scalars in fp32; their sum is the loss.
    """
    bce = F.binary_cross_entropy_with_logits(logits.float(), x, reduction="sum")
    mean, log_var = mean.float(), log_var.float()
    kl = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()
    return bce, kl


def frozen(vae: VAE) -> VAE:
    """A copy in eval mode for use on images: no weight gradients, each BatchNorm folded into the layer before it.

    It computes what the original computes in eval mode, with fewer passes over the activations.
    """
    vae = copy.deepcopy(vae).eval().requires_grad_(False)
    for stack in (vae.encoder, vae.decoder):
        layers = list(stack)
        for i, layer in enumerate(layers):
            if isinstance(layer, nn.BatchNorm1d):
                layers[i - 1] = fuse_linear_bn_eval(layers[i - 1], layer)
            elif isinstance(layer, nn.BatchNorm2d):
                transpose = isinstance(layers[i - 1], nn.ConvTranspose2d)
                layers[i - 1] = fuse_conv_bn_eval(layers[i - 1], layer, transpose)
        kept = [layer for layer in layers if not isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
        stack._modules = nn.Sequential(*kept)._modules
    return vae
