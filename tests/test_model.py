"""The network is the article's, its loss the article's formula, and what runs on images computes the same."""

import copy
import gc
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from vaeproj.config import Config
from vaeproj.device import has_native_bf16
from vaeproj.model import VAE, elbo_loss, frozen


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("preset", "parameters"), [("blog", 69_051_329), ("quick", 69_051_329), ("compact", 2_366_433)])
def test_the_number_of_parameters(preset, parameters):
    with torch.device("meta"):
        vae = VAE.of(Config.from_preset(preset), 1)
    assert sum(p.numel() for p in vae.parameters()) == parameters
    if preset == "blog":
        with torch.device("meta"):
            assert str(vae) == str(VAE())


def test_a_network_has_the_widths_it_is_asked_for():
    config = Config(image_size=64, crop_size=32, stride=32, widths="4-6-10-7", hidden=20, latent_dim=5)
    vae, x, made = VAE.of(config, 3), torch.rand(2, 3, 32, 32, generator=generator()), []
    for layer in [*vae.encoder, *vae.decoder]:
        if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d | torch.nn.Linear):
            layer.register_forward_hook(lambda _, given, out: made.append(tuple(out.shape[1:])))
    logits, mean, log_var = vae(x, torch.randn(2, 5, generator=generator(1)))
    assert logits.shape == x.shape
    assert mean.shape == log_var.shape == (2, vae.latent_dim) == (2, 5)
    down = [(4, 16, 16), (6, 8, 8), (10, 4, 4), (7, 2, 2)]
    assert made == [*down, (20,), (20,), (7 * 2 * 2,), *down[-2::-1], (3, 32, 32)]


def reference(vae: VAE, z: torch.Tensor) -> torch.Tensor:
    """The decoder of the article in eval mode, layer by layer and in float64, written from its description."""
    w = {name: value.double() for name, value in vae.decoder.state_dict().items()}

    def norm(x: torch.Tensor, i: int) -> torch.Tensor:
        mean, var, scale, shift = (
            w[f"{i}.{key}"].view(1, -1, *[1] * (x.ndim - 2)) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def up(x: torch.Tensor, i: int) -> torch.Tensor:
        return F.conv_transpose2d(x, w[f"{i}.weight"], w[f"{i}.bias"], stride=2, padding=1)

    side = vae.shape[-1] // 8
    leaky = partial(F.leaky_relu, negative_slope=0.2)
    h = leaky(norm(z.double() @ w["0.weight"].T + w["0.bias"], 1))
    h = leaky(h @ w["3.weight"].T + w["3.bias"]).view(len(z), side, side, 128).permute(0, 3, 1, 2)  # channels last
    h = leaky(norm(up(h, 6), 7))
    h = leaky(norm(up(h, 9), 10))
    return up(h, 12)


def test_the_decoder_is_the_articles(seasoned_vae):
    vae, z = seasoned_vae(), torch.randn(4, 8, generator=generator())
    torch.testing.assert_close(vae.decode(z).double(), reference(vae, z), atol=1e-4, rtol=1e-4)


def test_the_latent_is_mean_plus_deviation_times_noise(seasoned_vae):
    vae, x = seasoned_vae(), torch.rand(4, 1, 16, 16, generator=generator())
    noise = torch.randn(4, vae.latent_dim, generator=generator(1))
    mean, log_var = vae.encode(x)
    logits, *rest = vae(x, noise)
    torch.testing.assert_close(rest, [mean, log_var])
    torch.testing.assert_close(logits, vae.decode(mean + torch.sqrt(torch.exp(log_var)) * noise), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vae(x, torch.zeros_like(noise))[0], vae.logits(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(vae.reconstruct(x), 1 / (1 + torch.exp(-vae.logits(x))))


@given(st.integers(0, 10**6), st.floats(0.1, 5))
def test_the_loss_is_the_articles_formula(seed, scale):
    g = generator(seed)
    logits = torch.randn(3, 1, 8, 8, generator=g) * scale
    x = torch.rand(3, 1, 8, 8, generator=g)
    mean, log_var = torch.randn(3, 5, generator=g), torch.randn(3, 5, generator=g)
    bce, kl = elbo_loss(logits, x, mean, log_var)
    assert bce.dtype == kl.dtype == torch.float32
    p = logits.double().sigmoid()
    torch.testing.assert_close(bce.double(), F.binary_cross_entropy(p, x.double(), reduction="sum"), rtol=1e-5, atol=0)
    posterior = Normal(mean.double(), (0.5 * log_var.double()).exp())
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(kl.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_loss_of_a_certain_network_is_finite_and_in_fp32():
    logits, x = torch.tensor([[[[200.0, -200.0]]]], dtype=torch.bfloat16), torch.tensor([[[[0.0, 0.0]]]])
    bce, kl = elbo_loss(logits, x, torch.zeros(1, 2).bfloat16(), torch.zeros(1, 2).bfloat16())
    assert bce.item() == 200  # where sigmoid and logarithm, one after the other, give infinity
    assert kl.item() == 0
    assert bce.dtype == kl.dtype == torch.float32


@settings(max_examples=8)
@given(st.integers(0, 3), st.sampled_from([(16, 1, {}), (24, 3, {}), (32, 1, {"widths": (8, 16, 24, 16), "hidden": 40})]))
def test_frozen_computes_what_eval_mode_does(seasoned_vae, seed, size):
    crop, channels, shape = size
    vae = seasoned_vae(8, crop, channels, seed, **shape)
    x = torch.rand(4, channels, crop, crop, generator=generator(seed))
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    with torch.no_grad():
        expected = vae.logits(x)
        folded = frozen(vae.train())
        assert vae.training
        torch.testing.assert_close(folded.logits(x), expected, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(folded.encode(x), vae.eval().encode(x), atol=2e-4, rtol=2e-4)
    assert expected.shape == x.shape
    assert expected.std() > 0.5  # the comparison is not one of two flat pictures
    assert not any(p.requires_grad for p in folded.parameters())
    assert vae.posterior.weight.requires_grad
    assert not folded.training
    for name, value in vae.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("changed", [False, True])
def test_the_gradient_through_a_frozen_network_is_the_plain_ones(seasoned_vae, changed):
    vae = seasoned_vae().double()
    still = frozen(vae, torch.float64)
    if changed:  # weights altered in place: freezing again takes them over
        vae.decoder[3].weight.detach().mul_(1.5)
        still.decoder[2].weight.mul_(1.5)
        still = frozen(still, torch.float64)
    gradients = []
    for network in (vae, still):
        x = torch.rand(3, 1, 16, 16, generator=generator()).double().requires_grad_()
        gradients += torch.autograd.grad(network.decode(network.encode(x)[0]).square().sum(), x)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    assert gradients[0].abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_network_can_be_copied_and_frozen_again(seasoned_vae, dtype):
    still, x = frozen(seasoned_vae(), dtype), torch.rand(3, 1, 16, 16, generator=generator())
    copied = copy.deepcopy(still)
    assert not any(p.requires_grad for p in copied.parameters())
    torch.testing.assert_close(copied.logits(x), still.logits(x))
    torch.testing.assert_close(frozen(still, dtype).logits(x), still.logits(x))
    with torch.no_grad():
        before = still.logits(x)
        copied.decoder[2].weight.mul_(1.5)
    assert torch.equal(still.logits(x), before)


@pytest.mark.skipif(not has_native_bf16(torch.device("cpu")), reason="needs a CPU with native bfloat16")
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_weights_in_the_processors_own_order_give_the_same_bits(seasoned_vae, batch):
    """The same dense layers, computed by `F.linear` with weights in rows."""
    own, plain = (frozen(seasoned_vae(), torch.bfloat16) for _ in range(2))
    layers = [layer for layer in plain.modules() if isinstance(layer, torch.nn.Linear)]
    assert len(layers) == 4
    for layer in layers:
        assert layer.packed.is_mkldnn
        layer.packed, layer.turned = layer.weight, layer.weight.t().contiguous()
    seen = []
    for vae in (own, plain):
        x = torch.rand(batch, 1, 16, 16, generator=generator()).requires_grad_()
        logits = vae.logits(x)
        seen += [logits, *torch.autograd.grad(logits.square().sum(), x)]
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert seen[1].abs().max() > 1e-3


def test_a_frozen_network_is_gone_with_its_last_name(seasoned_vae):
    """A circle of references would keep its weights until the next garbage collection, network after network."""
    still = frozen(seasoned_vae())
    seen = weakref.ref(still.decoder[0])
    gc.disable()
    try:
        del still
        assert seen() is None
    finally:
        gc.enable()


def test_images_of_a_batch_do_not_touch_one_another(seasoned_vae):
    for vae in (seasoned_vae(), frozen(seasoned_vae())):
        x = torch.rand(5, 1, 16, 16, generator=generator())
        alone = torch.cat([vae.logits(image[None]) for image in x])
        torch.testing.assert_close(alone, vae.logits(x), atol=1e-5, rtol=1e-5)
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(vae.logits(x)[2].sum(), x)
        assert gradient[2].abs().max() > 1e-3
        assert not gradient[[0, 1, 3, 4]].any()
