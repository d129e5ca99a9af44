"""Plain PyTorch, as one would write it from the article: what the scripts of this folder compare with."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaeproj.model import VAE


@contextmanager
def precision(*, tf32_convolutions: bool) -> Iterator[None]:
    """Matrix products in fp32, no kernels chosen for determinism: with ``tf32_convolutions`` these are PyTorch's defaults."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = False, tf32_convolutions, False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = before


class PlainVAE(nn.Module):
    """The article's network in PyTorch's own layers; [B, C, H, W] in [0, 1] in and out."""

    def __init__(self, latent_dim: int, crop_size: int, channels: int) -> None:
        super().__init__()
        side = crop_size // 8
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, 2, 1), nn.BatchNorm2d(64), nn.LeakyReLU(0.2),
            nn.Conv2d(64, 128, 4, 2, 1), nn.BatchNorm2d(128), nn.LeakyReLU(0.2),
            nn.Flatten(), nn.Linear(128 * side * side, 1024), nn.BatchNorm1d(1024), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.posterior = nn.Linear(1024, 2 * latent_dim)
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, 1024), nn.BatchNorm1d(1024), nn.LeakyReLU(0.2),
            nn.Linear(1024, 128 * side * side), nn.LeakyReLU(0.2), nn.Unflatten(1, (128, side, side)),
            nn.ConvTranspose2d(128, 64, 4, 2, 1), nn.BatchNorm2d(64), nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(32, channels, 4, 2, 1),
        )  # fmt: skip

    @classmethod
    @torch.no_grad()
    def of(cls, vae: VAE) -> Self:
        """The same network with the same weights in eval mode, checked on noise; raises RuntimeError if they differ."""
        channels, crop, _ = vae.shape
        weights, square, device = vae.eval().state_dict(), (crop // 8, crop // 8, 128), vae.posterior.weight.device
        # The package keeps dense features as [H, W, C], PyTorch's Flatten as [C, H, W].
        weights["encoder.10.weight"] = weights["encoder.10.weight"].unflatten(1, square).permute(0, 3, 1, 2).flatten(1)
        for name in ("decoder.3.weight", "decoder.3.bias"):
            weights[name] = weights[name].unflatten(0, square).movedim(2, 0).flatten(0, 2)
        plain = cls(vae.latent_dim, crop, channels).to(device).eval()
        plain.load_state_dict(weights)
        x = torch.rand(4, *vae.shape, generator=torch.Generator().manual_seed(0)).to(device)
        with precision(tf32_convolutions=False):
            gap = (vae.reconstruct(x) - plain(x)[0]).abs().max().item()
        if gap > 1e-4:
            raise RuntimeError(f"The plain network differs from the package's by {gap:.1e}: benchmarks/_reference.py is stale.")
        return plain

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, mean and log-variance; z is drawn in training, the mean in eval mode."""
        mean, log_var = self.posterior(self.encoder(x)).chunk(2, dim=1)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean) if self.training else mean
        return self.decoder(z).sigmoid(), mean, log_var


def plain_training(vae: PlainVAE, batches: Iterable[Tensor], learning_rate: float) -> Iterator[Tensor]:
    """The loss of each step on crops [B, C, H, W]: binary cross-entropy and KL, summed over pixels and batch (article)."""
    optimizer = torch.optim.Adam(vae.train().parameters(), lr=learning_rate)
    for x in batches:
        picture, mean, log_var = vae(x)
        bce = F.binary_cross_entropy(picture, x, reduction="sum")
        loss = bce - 0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.detach()
