"""The weight of each pixel: its regression against scikit-learn's, its curve by hand, where it is near 0 and near 1."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.linear_model import LinearRegression

from vaeproj.config import Config
from vaeproj.model import frozen
from vaeproj.weight import anomaly_weight, expected_residual, features, fit_expected, smoothed_residual

SETTINGS = Config(image_size=64, crop_size=32, stride=16, latent_dim=8, tolerance=1.5, hardness=2.0)


@pytest.fixture(scope="module")
def vae(seasoned_vae):
    return frozen(seasoned_vae(crop_size=32))


def pictures(count: int, channels: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_scipys(channels):
    f = pictures(2, channels)
    for image, got in zip(f.double().numpy().mean(1), features(f)[:, 0].numpy(), strict=True):
        down, right = np.gradient(image)

        def smooth(a: np.ndarray, sigma: float = 1.0) -> np.ndarray:  # a thirty-second of 32 pixels
            return ndimage.gaussian_filter(a, sigma, mode="mirror")

        edges, level = smooth(down**2 + right**2), smooth(image)
        detail = smooth((image - smooth(image, 0.5)) ** 2)
        wanted = np.stack([np.ones_like(edges), edges, np.sqrt(edges), level, level**2, detail], -1)
        np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_coefficients_are_those_of_least_squares(vae):
    crops = pictures(70)  # more than are taken at once
    f = vae.reconstruct(crops).detach()
    known = features(f)[:, 0, ::2, ::2].reshape(-1, 6).double().numpy()
    seen = smoothed_residual(crops, f)[:, 0, ::2, ::2].reshape(-1).double().numpy()
    wanted = LinearRegression(fit_intercept=False).fit(known, seen).predict(known)
    fitted = fit_expected(vae, crops)
    np.testing.assert_allclose(known @ fitted[:6].double().numpy(), wanted, atol=1e-3 * seen.mean())
    assert fitted[6].item() == pytest.approx(max(np.quantile(wanted, 0.02), 0.02 * seen.mean()), rel=1e-2)


def test_one_term_is_the_mean_squared_residual(vae):
    crops = pictures(20)
    fitted = fit_expected(vae, crops, terms=1)
    tau_squared = (crops - vae.reconstruct(crops)).square().mean().item()
    torch.testing.assert_close(fitted[[0, 6]], torch.full((2,), tau_squared), rtol=0.02, atol=0)
    assert (fitted[1:6] == 0).all()


def test_nothing_is_expected_below_the_floor():
    f = pictures(1)
    assert (expected_residual(f, torch.tensor([-1.0, 0, 0, 0, 0, 0, 0.003])) == 0.003).all()


@given(st.floats(1e-4, 0.9), st.floats(1e-4, 0.1), st.floats(0.2, 5), st.floats(0.5, 8))
def test_the_curve_by_hand(residual, normal, tolerance, hardness):
    """An even residual: q = r^2 everywhere, v = (r^2 / (k^2 e))^p, w = v / (1 + v)."""
    x_0, f = torch.full((1, 1, 32, 32), residual), torch.zeros(1, 1, 32, 32)
    v = (residual**2 / (tolerance**2 * normal)) ** hardness
    got = anomaly_weight(
        x_0, f, torch.tensor([normal, 0, 0, 0, 0, 0, 1e-9]), SETTINGS.replace(tolerance=tolerance, hardness=hardness)
    )
    torch.testing.assert_close(got, torch.full_like(got, v / (1 + v)), rtol=2e-3, atol=1e-6)


def test_a_perfect_picture_weighs_nothing(vae):
    f = vae.reconstruct(pictures(4)).detach()
    assert anomaly_weight(f, f, fit_expected(vae, f * 0 + f), SETTINGS).max() < 0.5
    perfect = torch.tensor([0.0, 0, 0, 0, 0, 0, 1e-12])  # of a network that never errs
    assert torch.equal(anomaly_weight(f, f, perfect, SETTINGS) < 1e-6, torch.ones(4, 1, 32, 32, dtype=torch.bool))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_spot_that_is_not_painted_weighs_and_its_surroundings_do_not(channels):
    f = torch.full((1, channels, 32, 32), 0.5)
    x_0 = f + 0.01 * torch.randn(f.shape, generator=torch.Generator().manual_seed(0))
    x_0[..., 10:14, 10:14] += 0.3
    w = anomaly_weight(x_0, f, torch.tensor([1e-4, 0, 0, 0, 0, 0, 1e-5]), SETTINGS)
    assert w.shape == (1, 1, 32, 32)
    assert w[..., 11:13, 11:13].min() > 0.99
    assert w[..., 20:, 20:].max() < 0.4
