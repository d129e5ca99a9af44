"""The article's loop: without its bugs it is the projection, and each bug does what its description says."""

import pytest
import torch

from vaeproj.config import Config
from vaeproj.model import frozen
from vaeproj.projection import project
from vaeproj.studies.article import BUGS, article_loop

SMALL = {"image_size": 64, "crop_size": 16, "stride": 16, "latent_dim": 4}
CONFIG = Config(**SMALL, descent="paper", alpha=0.3, lam=0.05, iterations=6)
UNUSED = torch.full((7,), torch.nan)  # no descent but the anchored one reads the residual that is normal


def loop_end(*args, **options):
    return article_loop(*args, **options)[-1]


@pytest.fixture(scope="module")
def vae(seasoned_vae):
    return frozen(seasoned_vae(latent_dim=4))


@pytest.fixture(scope="module")
def vae64(seasoned_vae):
    """The same in float64; `VAE.logits` gives fp32 whatever the weights are."""
    vae = frozen(seasoned_vae(latent_dim=4).double(), torch.float64)
    vae.logits = lambda x: vae.decode(vae.encode(x)[0])
    return vae


@pytest.fixture
def tiles():
    return 0.1 + 0.8 * torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("descent", ["paper", "plain", "article"])
def test_without_bugs_it_is_the_projection(vae, tiles, descent):
    config = CONFIG.replace(descent=descent, alpha=0.03)
    moved = loop_end(vae, tiles, config, ())
    torch.testing.assert_close(moved, project(vae, tiles, config, UNUSED))
    assert (moved - tiles).abs().max() > 0.01


def test_detached_bug_is_the_detached_gradient(vae, tiles):
    mended = project(vae, tiles, CONFIG.replace(gradient="detached"), UNUSED)
    torch.testing.assert_close(loop_end(vae, tiles, CONFIG, ("detached_gradient",)), mended)


def test_swapped_bce_descends_the_swapped_loss(vae, tiles):
    """One step by hand: the gradient of BCE(x, r) in x is (x - r) / (x (1 - x))."""
    config = CONFIG.replace(descent="article", iterations=1, lam=0.0, alpha=0.01)
    r = vae.reconstruct(tiles).detach()
    by_hand = (tiles - 0.01 * (tiles - r) / (tiles * (1 - tiles)) * (tiles - r) ** 2).clamp(0, 1)
    torch.testing.assert_close(loop_end(vae, tiles, config, ("detached_gradient", "swapped_bce")), by_hand)


def test_stale_gradient_accumulates_at_x_0(vae, tiles):
    """Two steps by hand for the detached squared energy with lam = 0: the second step reads the sum of both gradients,
    each through the chain back to x_0."""
    config = CONFIG.replace(iterations=2, lam=0.0)
    r_0 = vae.reconstruct(tiles).detach()
    first = 2 * (tiles - r_0)
    x_1 = (tiles - config.alpha * first * (tiles - r_0) ** 2).clamp(0, 1)
    r_1 = vae.reconstruct(x_1).detach()
    # x_1 depends on x_0 directly and through the mask, while the gradient inside it is a number read from .grad.
    chain = 1 - config.alpha * first * 2 * (tiles - r_0)
    chain = torch.where((x_1 > 0) & (x_1 < 1), chain, torch.zeros(()))
    x_2 = (x_1 - config.alpha * (first + 2 * (x_1 - r_1) * chain) * (x_1 - r_1) ** 2).clamp(0, 1)
    torch.testing.assert_close(loop_end(vae, tiles, config, ("detached_gradient", "stale_gradient")), x_2, atol=2e-5, rtol=1e-4)


def published(vae, x_0, alpha, lam, iterations):
    """The published loop by its semantics: every x_t is a function of the leaf x_0, rebuilt from the numbers f(x_k) and G_k of
    the steps before, where G is the sum of the gradients of each step's loss with respect to that leaf."""
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []

    def image(leaf):
        x = leaf
        for f, total in steps:
            x = (x - alpha * total * (x - f) ** 2).clamp(0, 1)
        return x

    total = torch.zeros_like(x_0)
    for t in range(iterations):
        leaf = x_0.clone().requires_grad_()
        x = image(leaf)
        f = vae.reconstruct(x).detach()
        loss = -(f * x.log().clamp(min=-100) + (1 - f) * (1 - x).log().clamp(min=-100)).sum()
        if t:
            loss = loss + lam * (x - leaf).abs().sum()
        total = total + torch.autograd.grad(loss, leaf)[0]
        steps.append((f, total))
    return image(x_0)


@pytest.mark.parametrize("lam", [0.0, 1.0, 3.0])
def test_all_bugs_together_are_the_published_loop(vae64, tiles, lam):
    config = CONFIG.replace(descent="article", alpha=0.05, lam=lam, iterations=16)
    expected = published(vae64, tiles.double(), 0.05, lam, 16)
    moved = loop_end(vae64, tiles.double(), config)
    assert (expected - tiles).abs().mean() > 0.01
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)


def test_the_step_size_that_the_article_never_defines(vae, tiles):
    config = CONFIG.replace(descent="article", alpha=0.05, lam=1.0)
    read_so = loop_end(vae, tiles, config)
    assert torch.equal(loop_end(vae, tiles, config, eps=0.05), read_so)
    assert torch.equal(loop_end(vae, tiles, config.replace(alpha=0.001)), loop_end(vae, tiles, config, eps=0.001))
    assert (loop_end(vae, tiles, config, eps=0.001) - tiles).abs().mean() < 0.2 * (read_so - tiles).abs().mean()


def test_every_bug_changes_the_result(vae, tiles):
    config = CONFIG.replace(descent="article", alpha=0.05)
    mended = loop_end(vae, tiles, config, ())
    for bug in BUGS:
        assert (loop_end(vae, tiles, config, (bug,)) - mended).abs().max() > 1e-3, bug


@pytest.mark.parametrize("bugs", [(), BUGS])
def test_frames_are_where_shorter_loops_end(vae, tiles, bugs):
    frames = article_loop(vae, tiles, CONFIG, bugs)
    assert len(frames) == 7
    for number, frame in enumerate(frames):
        given = CONFIG.replace(iterations=number)
        torch.testing.assert_close(frame, loop_end(vae, tiles, given, bugs) if number else tiles, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bugs", [(), *((bug,) for bug in BUGS), BUGS, BUGS[1:]])
def test_saturated_pixels_give_a_picture_whatever_the_bugs(vae, tiles, bugs):
    """The swapped gradient divides by x (1 - x): at 0 and 1 it overflows, and what comes out must still be a picture."""
    hard = (tiles > 0.5).float()
    result = loop_end(vae, hard, CONFIG.replace(descent="article", alpha=5.0, iterations=16), bugs)
    assert result.isfinite().all()
    assert 0 <= result.min() <= result.max() <= 1
