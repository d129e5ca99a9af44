"""The article's variational autoencoder and its loss."""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from .config import Config
from .device import has_native_bf16

SLOPE = 0.2  # of every LeakyReLU


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


class _Product(torch.autograd.Function):
    """x W^T + b for weights that stand still, kept with W^T as `frozen` makes them: a CPU reads rows faster."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, turned: Tensor) -> Tensor:
        ctx.turned = turned
        return _linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _linear(gradients[0], ctx.turned), None, None, None


class _FrozenLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.packed, self.bias, self.turned)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Linear:  # a plain one: weights in the processor's order have no copy
        plain = nn.Linear(self.in_features, self.out_features, device=self.weight.device, dtype=self.weight.dtype)
        plain.load_state_dict(self.state_dict())
        return plain.requires_grad_(False)


def _linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], "") if w.is_mkldnn else F.linear(x, w, bias)


class VAE(nn.Module):
    """Convolutional VAE: q(z | x) = N(mean, exp(log_var)), p(x | z) = Bernoulli(sigmoid(logits)).

    Article: three convolutions 1-32-64-128 (kernel 4, stride 2, padding 1), a dense layer of 1024, a latent space of
    512, and the mirror image as decoder: 69,051,329 parameters at its crop of 128 x 128.

    Args:
        latent_dim: dimensions of z.
        crop_size: side of the square input, pixels, a multiple of two to the number of convolutions.
        channels: 1 for grey images, 3 for RGB.
        widths: channels behind each convolution, two or more.
        hidden: width of the dense layer.
    """

    def __init__(
        self, latent_dim: int = 512, crop_size: int = 128, channels: int = 1,
        widths: Sequence[int] = (32, 64, 128), hidden: int = 1024,
    ) -> None:  # fmt: skip
        super().__init__()
        side = crop_size // 2 ** len(widths)
        self.shape, self.latent_dim = (channels, crop_size, crop_size), latent_dim
        first, *_, last = widths
        features = last * side * side
        conv: dict[str, Any] = {"kernel_size": 4, "stride": 2, "padding": 1}
        encoder: list[nn.Module] = [_BlockConv2d(channels, first, **conv), nn.BatchNorm2d(first), nn.LeakyReLU(SLOPE)]
        for above, below in pairwise(widths):
            encoder += [nn.Conv2d(above, below, **conv), nn.BatchNorm2d(below), nn.LeakyReLU(SLOPE)]
        encoder += [_Flatten(), nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(SLOPE)]
        self.encoder = nn.Sequential(*encoder)
        self.posterior = nn.Linear(hidden, 2 * latent_dim)
        decoder: list[nn.Module] = [nn.Linear(latent_dim, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(SLOPE)]
        decoder += [nn.Linear(hidden, features), nn.LeakyReLU(SLOPE), _Unflatten(last, side)]
        for below, above in pairwise(reversed(widths)):
            decoder += [nn.ConvTranspose2d(below, above, **conv), nn.BatchNorm2d(above), nn.LeakyReLU(SLOPE)]
        self.decoder = nn.Sequential(*decoder, _BlockConvTranspose2d(first, channels, **conv))
        for layer, following in pairwise([*self.encoder, *self.decoder]):
            if isinstance(following, nn.BatchNorm1d | nn.BatchNorm2d):  # which takes out what a bias adds: none is learnt
                nn.init.zeros_(layer.bias).requires_grad_(False)

    @classmethod
    def of(cls, config: Config, channels: int) -> Self:
        """The network that ``config`` describes, for images of so many channels."""
        return cls(config.latent_dim, config.crop_size, channels, [int(w) for w in config.widths.split("-")], config.hidden)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures x [B, C, H, W] in [0, 1] -> mean and log-variance of q(z | x), each [B, latent_dim]."""
        mean, log_var = self.posterior(self.encoder(x)).chunk(2, dim=1)
        return mean, log_var

    def decode(self, z: Tensor) -> Tensor:
        """Codes z [B, latent_dim] -> logits of the pixels, [B, C, H, W]; their sigmoid is the picture."""
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
    """A copy in eval mode for use on images: no weight gradients, each BatchNorm folded, in the precision of ``vae``, into the
    layer before it; then ``dtype`` for weights and activations. It computes what the original does in eval mode, but faster.
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
    # A CPU's product in bf16 reads weights in an order of its own, and would bring them into it at every call: the same bits.
    own_order = dtype == torch.bfloat16 and vae.posterior.weight.is_cpu and has_native_bf16(torch.device("cpu"))
    ready = torch.ops.mkldnn._reorder_linear_weight if own_order else Tensor.contiguous
    for layer in (layer for layer in vae.to(dtype).modules() if isinstance(layer, nn.Linear)):
        layer.register_buffer("packed", ready(layer.weight.data), persistent=False)
        layer.register_buffer("turned", ready(layer.weight.t().contiguous()), persistent=False)
        layer.__class__ = _FrozenLinear
    return vae
