"""A frozen VAE for a single image on a CPU, where an iteration is little but reading the two large dense layers."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ..model import HIDDEN, VAE


class _ByteProduct(torch.autograd.Function):
    """X W^T and, for the gradient with respect to X, G W: from bytes (`_bytes`) laid out for either direction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forth: tuple[Tensor, Tensor], back: tuple[Tensor, Tensor]) -> Tensor:
        ctx.reverse = back, forth
        return torch._weight_int8pack_mm(x.bfloat16(), *forth).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _ByteProduct.apply(*gradients, *ctx.reverse), None, None


def _bytes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix [N, M] in steps of a 127th of each row's largest value: int8 [N, M] and the steps, bf16 [N]."""
    step = (weight.abs().amax(1) / 127).bfloat16()
    return (weight / step[:, None]).round().clamp(-127, 127).to(torch.int8).contiguous(), step


class _ByteLinear(nn.Module):
    """A dense layer with its weights in int8."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.forth, self.back, self.bias = _bytes(layer.weight), _bytes(layer.weight.T), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return _ByteProduct.apply(x, self.forth, self.back) + self.bias


def in_bytes(vae: VAE) -> VAE:
    """A frozen VAE in fp32 with its large dense layers in int8, a quarter of the bytes; ``vae`` itself where PyTorch lacks
    that product. Slow for many images; `benchmarks/README.md` has what it does to the picture.
    """
    if not hasattr(torch, "_weight_int8pack_mm"):
        return vae
    vae = copy.deepcopy(vae)
    for stack in (vae.encoder, vae.decoder):
        for i, layer in enumerate(stack):
            if isinstance(layer, nn.Linear) and layer.weight.numel() > HIDDEN**2:
                stack[i] = _ByteLinear(layer)
    return vae
