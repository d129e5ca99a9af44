"""The descent follows the paper's equations: by hand, by float64 autograd, and one tile at a time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from vaeproj.config import Config
from vaeproj.model import VAE, frozen
from vaeproj.projection import energies, energy_gradient, project, step, stopping_energy, trajectory

KINDS = [(energy, gradient) for energy in ("squared", "bce") for gradient in ("full", "detached")]


def config(**changes) -> Config:
    small = {"image_size": 32, "crop_size": 16, "stride": 8, "latent_dim": 8, "iterations": 12, "alpha": 0.5, "lam": 0.05}
    return Config(**small | changes)


def tiles(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def graded(vae: VAE, count: int) -> torch.Tensor:
    """Tiles between noise and what the VAE can draw: their energies lie far apart."""
    share = torch.linspace(0.3, 1, count)[:, None, None, None]
    return share * tiles(count) + (1 - share) * vae.reconstruct(tiles(count)).detach()


@pytest.fixture(scope="module")
def vae(seasoned_vae) -> VAE:
    return frozen(seasoned_vae())


@pytest.fixture(scope="module")
def vae64(seasoned_vae) -> VAE:
    return seasoned_vae().double()


def linear(a: float, b: float) -> SimpleNamespace:
    """A "VAE" of one pixel whose logit is a x + b."""
    return SimpleNamespace(logits=lambda x: a * x + b)


def pixel(value: float) -> torch.Tensor:
    return torch.full((1, 1, 1, 1), value)


def test_one_step_by_hand():
    # a = 4, b = -2, x = 1/2: logit 0, f = 1/2; then x = 3/4: logit 1, f = .7310586, r = .0189414.
    network, x, x_0 = linear(4, -2), pixel(0.75), pixel(0.5)
    settings = config(alpha=0.5, lam=0.1, soft_mask=False, gradient="detached")
    moved, reconstruction, l_r = step(network, x, x_0, settings)
    assert reconstruction.item() == pytest.approx(0.7310586)
    assert l_r.item() == pytest.approx(0.0189414**2, rel=1e-4)
    # gradient 2 * .0189414 + .1 = .1378828
    assert moved.item() == pytest.approx(0.75 - 0.5 * 0.1378828, rel=1e-6)
    masked = step(network, x, x_0, settings.replace(soft_mask=True))[0]
    assert masked.item() == pytest.approx(0.75 - 0.5 * 0.1378828 * 0.0189414**2, rel=1e-6)


@given(
    st.floats(-4, 4), st.floats(-3, 3), st.floats(0.05, 0.95), st.floats(0, 1), st.sampled_from(KINDS), st.floats(0, 2),
)  # fmt: skip
def test_gradient_of_one_pixel(a, b, x, x_0, kind, lam):
    energy, gradient = kind
    logit = a * x + b
    f = 1 / (1 + np.exp(-logit))
    if energy == "squared":
        expected_energy = (x - f) ** 2
        expected = 2 * (x - f) * (1 - (a * f * (1 - f) if gradient == "full" else 0))
    else:
        expected_energy = -x * np.log(f) - (1 - x) * np.log(1 - f)
        expected = -logit + (a * (f - x) if gradient == "full" else 0)
    settings = config(energy=energy, gradient=gradient, lam=lam)
    got, reconstruction, l_r = energy_gradient(linear(a, b), pixel(x), pixel(x_0), settings)
    sign = np.sign(np.float32(x) - np.float32(x_0))
    assert got.item() == pytest.approx(expected + lam * sign, abs=1e-5)
    assert reconstruction.item() == pytest.approx(f, abs=1e-6)
    assert l_r.item() == pytest.approx(expected_energy, abs=1e-5)


@pytest.mark.parametrize(("energy", "gradient"), KINDS)
@pytest.mark.parametrize("soft_mask", [True, False])
def test_a_step_is_clipped_to_the_unit_interval(energy, gradient, soft_mask):
    settings = config(energy=energy, gradient=gradient, soft_mask=soft_mask, alpha=100.0, lam=0.0)
    x = torch.tensor([0.9, 0.1, 0.4])[:, None, None, None]
    network = linear(0.5, -0.2)
    gradient_, reconstruction, _ = energy_gradient(network, x, x, settings)
    free = x - 100 * gradient_ * ((x - reconstruction) ** 2 if soft_mask else 1)
    assert free.min() < 0 or free.max() > 1
    moved, _, _ = step(network, x, x, settings)
    np.testing.assert_allclose(moved, np.clip(free.numpy(), 0, 1), atol=1e-6)


def blurred(r: torch.Tensor, sigma: float) -> torch.Tensor:
    """By convolution over the tile mirrored at its border; a tile of 16 pixels has 15 to mirror."""
    reach = min(int(4 * sigma + 0.5), 15)
    weight = torch.exp(-(torch.arange(-reach, reach + 1).double() ** 2) / (2 * sigma**2))
    return F.conv2d(F.pad(r, [reach] * 4, mode="reflect"), (weight[:, None] * weight / weight.sum() ** 2)[None, None])


def exact(vae64: VAE, x: torch.Tensor, x_0: torch.Tensor, settings: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """E and L_r of each tile in float64, from the equations."""
    f = torch.sigmoid(vae64.decode(vae64.encode(x.double())[0]))
    if settings.gradient == "detached":
        f = f.detach()
    if settings.energy == "squared":
        l_r = ((x - f) ** 2 + settings.coarse_weight * blurred(x - f, settings.coarse_sigma) ** 2).sum((1, 2, 3))
    else:
        l_r = -(x * f.log() + (1 - x) * (1 - f).log()).sum((1, 2, 3))
    return l_r + settings.lam * (x - x_0).abs().sum((1, 2, 3)), l_r


@pytest.mark.parametrize(("energy", "gradient"), KINDS)
@pytest.mark.parametrize(("coarse_weight", "coarse_sigma"), [(0.0, 4.0), (4.0, 1.5), (0.7, 6.0)])
def test_the_gradient_is_that_of_the_energy(vae, vae64, energy, gradient, coarse_weight, coarse_sigma):
    settings = config(energy=energy, gradient=gradient, coarse_weight=coarse_weight, coarse_sigma=coarse_sigma, lam=0.3)
    x_0, x = tiles(3), tiles(3, seed=1)
    x[0, :, :8] = x_0[0, :, :8]  # where nothing has moved yet, the L1 term pulls nowhere
    exact_x = x.double().requires_grad_()
    e, l_r = exact(vae64, exact_x, x_0.double(), settings)
    (expected,) = torch.autograd.grad(e.sum(), exact_x)
    got, reconstruction, got_l_r = energy_gradient(vae, x, x_0, settings)
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(got_l_r.double(), l_r.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(reconstruction, vae.reconstruct(x).detach(), rtol=1e-4, atol=1e-4)
    assert expected.abs().mean() > 0.1
    assert not any(part.requires_grad for part in (got, reconstruction, got_l_r))


@pytest.mark.parametrize("energy", ["squared", "bce"])
def test_small_full_steps_never_raise_the_energy(vae, energy):
    settings = config(energy=energy, soft_mask=False, alpha=1e-3, lam=0.0, iterations=30)
    path = trajectory(vae, tiles(4), settings).energy(0.0)
    assert (path.diff(dim=0) < 0).all()


def one_at_a_time(vae64: VAE, x_0: torch.Tensor, settings: Config) -> tuple[torch.Tensor, np.ndarray]:
    """The descent of one tile [1, 1, H, W] that never stops, in float64, from the equations: its frames and their L_r."""
    x, frames, path = x_0.double(), [], []
    for _ in range(settings.iterations + 1):
        x = x.detach().requires_grad_()
        e, l_r = exact(vae64, x, x_0.double(), settings)
        frames.append(x.detach())
        path.append(l_r.item())
        (gradient,) = torch.autograd.grad(e.sum(), x)
        if settings.soft_mask:
            gradient = gradient * (x - torch.sigmoid(vae64.decode(vae64.encode(x)[0]))) ** 2
        x = torch.clip(x - settings.alpha * gradient, 0, 1)
    return torch.cat(frames), np.array(path)


def stopping_steps(path: np.ndarray, stop_at: float) -> int:
    """The first step at which the energy lies under the threshold; the last where it never does."""
    below = path[:-1] < stop_at
    return int(below.argmax()) if below.any() else len(path) - 1


def clear_threshold(paths: list[np.ndarray], clearance: float = 5e-4) -> float:
    """An energy under which some tiles fall, after different numbers of steps, and others never, and none comes near to."""
    last, values = len(paths[0]) - 1, np.array(paths)
    clear = [c for c in np.linspace(values.min(), values.max(), 400) if (np.abs(values - c) / c).min() > clearance]
    steps = [{stopping_steps(path, candidate) for path in paths} for candidate in clear]
    return max((len(taken), candidate) for taken, candidate in zip(steps, clear, strict=True) if last in taken)[1]


DESCENTS = {
    "full": {},
    "coarse": {"coarse_weight": 2.0, "coarse_sigma": 1.5},
    "detached": {"gradient": "detached"},
    "bce": {"energy": "bce", "alpha": 0.05},
    "unmasked": {"soft_mask": False, "alpha": 0.02},
}


@pytest.mark.parametrize("changes", DESCENTS.values(), ids=DESCENTS)
def test_project_and_trajectory_are_the_descent_of_each_tile(vae, vae64, changes):
    settings, x_0 = config(**changes), graded(vae, 7)
    before = x_0.clone()
    alone = [one_at_a_time(vae64, x[None], settings) for x in x_0]
    stop_at = clear_threshold([path for _, path in alone])
    steps = [stopping_steps(path, stop_at) for _, path in alone]
    assert len(set(steps)) >= 4
    expected = torch.stack([frames[taken] for (frames, _), taken in zip(alone, steps, strict=True)]).float()
    for chunk in (3, 64):  # more tiles than are taken at once, and fewer
        torch.testing.assert_close(project(vae, x_0, settings, stop_at, chunk=chunk), expected, rtol=0, atol=1e-4)
    path = trajectory(vae, x_0, settings, stop_at)
    assert path.frames.shape == path.reconstructions.shape == (settings.iterations + 1, *x_0.shape)
    assert torch.equal(path.frames[0], x_0)
    for i, taken in enumerate(steps):
        np.testing.assert_allclose(path.frames[: taken + 1, i], alone[i][0][: taken + 1], rtol=0, atol=1e-4)
        assert (path.frames[taken:, i] == path.frames[taken, i]).all()  # stopped for good
    for t, x in enumerate(path.frames):
        e, l_r = exact(vae64, x.double(), x_0.double(), settings)
        torch.testing.assert_close(path.reconstructions[t], vae.reconstruct(x).detach(), rtol=0, atol=1e-5)
        torch.testing.assert_close(path.reconstruction_energy[t].double(), l_r.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(path.distance[t].double(), (x - x_0).double().abs().sum((1, 2, 3)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(path.energy(settings.lam)[t].double(), e.detach(), rtol=1e-4, atol=1e-4)
    assert torch.equal(x_0, before)


@pytest.mark.parametrize(("iterations", "stop_at"), [(0, 0.0), (12, float("inf"))])
def test_without_iterations_and_where_a_tile_is_normal_already_nothing_moves(vae, iterations, stop_at):
    x_0, settings = tiles(5), config(iterations=iterations)
    assert torch.equal(project(vae, x_0, settings, stop_at), x_0)
    assert (trajectory(vae, x_0, settings, stop_at).frames == x_0).all()


def test_half_the_bytes_hardly_change_where_the_descent_ends(vae):
    x_0 = graded(vae, 7)
    exact = project(vae, x_0, config())
    half = project(frozen(vae, torch.bfloat16), x_0, config())
    assert half.dtype == torch.float32
    assert 0 < (half - exact).norm() < 0.03 * (exact - x_0).norm()


@pytest.mark.parametrize("energy", ["squared", "bce"])
@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 1.0])
def test_the_stopping_energy_is_a_quantile(vae, vae64, energy, quantile):
    settings = config(energy=energy, stop_quantile=quantile)
    x = tiles(300)  # more than are taken at once
    l_r = exact(vae64, x.double(), x.double(), settings)[1].detach()
    np.testing.assert_allclose(energies(vae, x, settings), l_r, rtol=1e-4)
    assert stopping_energy(vae, x, settings) == pytest.approx(np.quantile(l_r, quantile), rel=1e-4)


def test_without_a_quantile_no_tile_stops(vae):
    assert stopping_energy(vae, tiles(3), config(stop_quantile=None)) == 0.0
    assert torch.equal(project(vae, tiles(3), config()), trajectory(vae, tiles(3), config()).frames[-1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(("chunk", "coarse_weight"), [(3, 0.0), (2048, 0.0), (2048, 2.0)])
def test_on_a_gpu_the_descent_is_the_same(vae, vae64, chunk, coarse_weight):
    x_0, settings = graded(vae, 9), config(coarse_weight=coarse_weight, coarse_sigma=1.5)
    stop_at = clear_threshold([one_at_a_time(vae64, x[None], settings)[1] for x in x_0], 2e-3)
    expected = project(vae, x_0, settings, stop_at)
    done = project(frozen(vae, torch.float16).cuda(), x_0.cuda(), settings, stop_at, chunk=chunk)
    # The network runs in fp16 there: one part in 1000 of a residual, and a pixel at x_0 may take one step of lam more.
    difference = (done.cpu() - expected).abs()
    assert difference.max() < 5e-3
    assert difference.mean() < 2e-4
    assert (expected - x_0).abs().mean() > 0.02
