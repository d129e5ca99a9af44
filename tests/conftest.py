"""What the tests share: small images, a folder in MVTec AD's layout, a VAE whose BatchNorm has seen data."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

from vaeproj.config import UserError
from vaeproj.model import VAE
from vaeproj.synthgrid.dataset import write_synthgrid
from vaeproj.workspace import Request, Workspace

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


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path there."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def category(tmp_path: Path) -> Path:
    """``root/mesh``: three training images, two good and three defective test images, gaps in their numbers, strays."""
    rng, folder, shape = np.random.default_rng(0), tmp_path / "root" / "mesh", (40, 48)
    for name in ("train/good/000", "train/good/002", "train/good/010", "test/good/001", "test/good/007"):
        write_image(folder / f"{name}.png", rng.integers(0, 256, shape, dtype=np.uint8))
    for name in ("bent/003", "bent/004", "thread/000"):
        write_image(folder / f"test/{name}.png", rng.integers(0, 256, shape, dtype=np.uint8))
        mask = np.zeros(shape, np.uint8)
        top, left = rng.integers(0, 20, 2)
        mask[top : top + 15, left : left + 20] = 255
        write_image(folder / f"ground_truth/{name}_mask.png", mask)
    for stray in ("train/good/Thumbs.db", "train/good/.DS_Store", "train/good/._000.png", "test/bent/notes.txt", "readme.txt"):
        (folder / stray).write_bytes(b"no image")
    (folder / "train/good/more").mkdir()
    (folder / "train/good/old.png").mkdir()
    return folder


@pytest.fixture(scope="session")
def seasoned_vae() -> Callable[..., VAE]:
    """A small VAE in eval mode: BatchNorm statistics and scales away from their initial 0 and 1, outputs far from flat."""

    def make(latent_dim: int = 8, crop_size: int = 16, channels: int = 1, seed: int = 0, **shape: Any) -> VAE:
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vae = VAE(latent_dim, crop_size, channels, **shape)
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


@pytest.fixture
def open_ws(category: Path, seasoned_vae: Callable[..., VAE], tmp_path: Path) -> Callable[..., Workspace]:
    """Opens the small category; each seed has a VAE of its own that needs no training."""

    class Seasoned(Workspace):
        @property
        def trained(self) -> SimpleNamespace:
            config = self.config
            return SimpleNamespace(
                vae=seasoned_vae(config.latent_dim, config.crop_size, self.train.images.shape[1], config.seed)
            )

        @property
        def weights(self) -> str:
            return f"seasoned {self.config.seed}"

    small = "image_size=32 crop_size=16 stride=8 latent_dim=8"

    def make(settings: str = "", **request: str) -> Workspace:
        asked = {"data_root": str(category.parent), "category": "mesh", "device": "cpu", "out": str(tmp_path / "out")}
        return Seasoned.open(Request(settings=f"{small} {settings}", **asked | request), kept=tmp_path / "kept")

    return make


@pytest.fixture(scope="session")
def page_ws(seasoned_vae: Callable[..., VAE], tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two rendered images of each kind under preset ``compact``, with a network that needs no training."""
    root = tmp_path_factory.mktemp("page")
    kinds = ("train/good", "test/good", *(f"test/{d}" for d in ("bent", "broken", "glue", "metal_contamination", "thread")))
    write_synthgrid(root, size=512, counts=dict.fromkeys(kinds, 2))
    vae = seasoned_vae(64, 128, widths=(16, 32, 64, 64), hidden=256)
    with torch.no_grad():
        for layer in (layer for layer in vae.modules() if isinstance(layer, torch.nn.Linear)):
            layer.weight.normal_(0, layer.weight.std().item(), generator=torch.Generator().manual_seed(1))  # as after training

    class Seasoned(Workspace):
        trained = SimpleNamespace(vae=vae)
        weights = "seasoned"

    request = Request(preset="compact", data_root=str(root), device="cpu", out=str(root / "out"))
    return Seasoned.open(request, kept=root / "kept")
