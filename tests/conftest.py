"""What the tests share: small images, a folder in MVTec AD's layout, a VAE whose BatchNorm has seen data."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

from vaeproj import projection
from vaeproj.config import UserError
from vaeproj.model import VAE

# One process a core under xdist: more threads would only get in one another's way.
torch.set_num_threads(1)
# Derandomized: a red test is red again for whoever looks into it. No deadline: nothing here measures time.
hypothesis.settings.register_profile("vaeproj", deadline=None, derandomize=True, database=None, max_examples=50)
hypothesis.settings.load_profile("vaeproj")

Refuses = Callable[..., AbstractContextManager[None]]


@pytest.fixture(scope="session")
def refuses() -> Refuses:
    """``with refuses("alpha", "100"):`` the body raises a UserError of one sentence that holds these words."""

    @contextmanager
    def check(*words: object) -> Iterator[None]:
        with pytest.raises(UserError) as caught:
            yield
        message = str(caught.value)
        assert message.endswith(".")
        assert "\n" not in message
        assert not re.search(r"[.!?]\s+[A-Z]", message), f"more than one sentence: {message}"
        for word in words:
            assert str(word) in message, f"{word!r} is missing: {message}"

    return check


@pytest.fixture(scope="session")
def mvtec_root() -> Path:
    """A folder with the real category ``grid``, or part of it."""
    root = os.environ.get("VAEPROJ_MVTEC_ROOT")
    if not root:
        pytest.skip("set VAEPROJ_MVTEC_ROOT to a folder that holds MVTec AD's category grid")
    return Path(root)


def write_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def category(tmp_path: Path) -> Path:
    """``root/mesh``: three training images, two good and three defective test images, gaps in their numbers, strays."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "root" / "mesh"

    def noise() -> np.ndarray:
        return rng.integers(0, 256, (40, 48), dtype=np.uint8)

    for name in ("train/good/000", "train/good/002", "train/good/010", "test/good/001", "test/good/007"):
        write_image(folder / f"{name}.png", noise())
    for name in ("bent/003", "bent/004", "thread/000"):
        write_image(folder / f"test/{name}.png", noise())
        mask = np.zeros((40, 48), np.uint8)
        top, left = rng.integers(0, 20, 2)
        mask[top : top + 15, left : left + 20] = 255
        write_image(folder / f"ground_truth/{name}_mask.png", mask)
    for stray in ("train/good/Thumbs.db", "train/good/.DS_Store", "train/good/._000.png", "test/bent/notes.txt", "readme.txt"):
        (folder / stray).write_bytes(b"no image")
    (folder / "train/good/more").mkdir()
    (folder / "train/good/old.png").mkdir()
    return folder


@pytest.fixture
def in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Projections on the CPU in fp32, which can be held against formulas, whatever the processor would do faster."""
    usual = projection._precision
    monkeypatch.setattr(projection, "_precision", lambda device: torch.float32 if device.type == "cpu" else usual(device))


@pytest.fixture(scope="session")
def seasoned_vae() -> Callable[..., VAE]:
    """A small VAE in eval mode: BatchNorm statistics and scales away from their initial 0 and 1, outputs far from flat."""

    def make(latent_dim: int = 8, crop_size: int = 16, channels: int = 1, seed: int = 0) -> VAE:
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vae = VAE(latent_dim, crop_size, channels)
        with torch.no_grad():
            for module in vae.modules():
                if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 2, generator=generator)
                    module.bias.normal_(0, 0.3, generator=generator)
            vae.decoder[-1].weight.mul_(4)
            vae.train()
            for _ in range(20):  # running statistics move towards those of such batches
                x = torch.rand(32, channels, crop_size, crop_size, generator=generator)
                vae(x, torch.randn(32, latent_dim, generator=generator))
        return vae.eval()

    return make
