"""The Gaussian filter against scipy's, borders included."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from vaeproj.blur import gaussian_blur


@given(st.integers(2, 40), st.integers(2, 40), st.floats(0.3, 12), st.integers(1, 39))
def test_it_is_scipys(height, width, sigma, reach):
    reach = min(reach, height - 1, width - 1)
    x = np.random.default_rng(0).random((2, 1, height, width))
    expected = ndimage.gaussian_filter(x, sigma, mode="mirror", radius=reach, axes=(2, 3))
    np.testing.assert_allclose(gaussian_blur(torch.from_numpy(x), sigma, reach), expected, atol=1e-12)


@pytest.mark.parametrize(("side", "reach"), [(100, 8), (5, 4), (1, 0)])
def test_it_reaches_four_sigma_or_as_far_as_can_be_mirrored(side, reach):
    x = torch.rand(side, side, dtype=torch.float64)
    assert torch.equal(gaussian_blur(x, 2.0), gaussian_blur(x, 2.0, reach))


def test_the_gradient_is_the_adjoint():
    # <blur(x), y> = <x, blur*(y)>, and autograd's blur* differs from blur near the border only.
    x = torch.rand(12, 20, dtype=torch.float64, requires_grad=True)
    y = torch.rand(12, 20, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((gaussian_blur(x, 1.0, 2) * y).sum(), x)
    assert (gradient * x).sum().item() == pytest.approx((gaussian_blur(x, 1.0, 2) * y).sum().item())
    torch.testing.assert_close(gradient[4:-4, 4:-4], gaussian_blur(y, 1.0, 2)[4:-4, 4:-4])


def test_tensorfloat_stays_as_it_was():
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for chosen in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = chosen
            gaussian_blur(torch.rand(4, 4), 1.0)
            assert torch.backends.cuda.matmul.allow_tf32 is chosen
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
