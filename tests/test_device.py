"""The device that is asked for, what is said of it, and what must hold before a step can be captured."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vaeproj import projection, training
from vaeproj.config import Config
from vaeproj.device import captured, describe, projection_dtype, set_up_device
from vaeproj.model import frozen
from vaeproj.projection import project
from vaeproj.training import fit


def test_devices(monkeypatch, refuses):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert set_up_device("auto") == set_up_device("cpu") == torch.device("cpu")
    with refuses("cuda", "--device"):
        set_up_device("cuda")
    with refuses("'tpu'", "auto", "cpu", "cuda"):
        set_up_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert set_up_device("auto") == set_up_device("cuda") == torch.device("cuda")
    assert set_up_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("bf16", [True, False])
def test_a_cpu_is_named_with_what_its_bits_depend_on(monkeypatch, bf16):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": bf16})
    said = describe(torch.device("cpu"))
    assert said["type"] == "cpu"
    assert said["name"] not in ("x86_64", "x86_64 CPU", "")
    assert torch.backends.cpu.get_cpu_capability() in said["name"]
    assert said["threads"] == torch.get_num_threads()
    assert said["precision"]["projection"] == ("bfloat16" if bf16 else "float32")
    assert ("bfloat16" in said["precision"]["training"]) == bf16
    assert projection_dtype(torch.device("cpu")) == (torch.bfloat16 if bf16 else torch.float32)


# --- captured, without a GPU: a graph that replays the operations it has seen, on the same memory


class Recording(TorchDispatchMode):
    """What a CUDA graph does, on a CPU: it keeps every operation on tensors and runs them again, Python left out."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        self.seen.append((func, args, kwargs or {}, made))
        return made

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, made in self.seen:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def graphs(monkeypatch):
    """Training and projection capture as on a GPU; the list gets every graph."""
    made, stream, cuda = [], SimpleNamespace(wait_stream=lambda other: None), torch.device("cuda")

    def new_graph():
        made.append(Recording())
        return made[-1]

    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda own: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", new_graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    for module in (training, projection):
        monkeypatch.setattr(module, "captured", lambda work, _, *rest, **options: captured(work, cuda, *rest, **options))
    return made


SMALL = Config(image_size=32, crop_size=16, stride=8, latent_dim=8, steps=0, epochs=4, batch_size=6, iterations=5)


def test_a_captured_training_is_the_plain_one(graphs, monkeypatch):
    images = torch.randint(0, 256, (10, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    vae, record = fit(images, SMALL, progress=False)
    assert len(graphs) == 2  # batches of 6 and of 4
    monkeypatch.undo()
    plain, expected = fit(images, SMALL, progress=False)
    assert all(torch.equal(record[key], value) for key, value in expected.items())
    assert all(torch.equal(vae.state_dict()[key], value) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("descent", ["anchored", "paper", "plain", "article"])
def test_a_captured_projection_is_the_plain_one(graphs, monkeypatch, seasoned_vae, descent):
    monkeypatch.setattr(projection, "CPU_CHUNK", 3)
    vae, config = frozen(seasoned_vae()), SMALL.replace(descent=descent)
    tiles, expected = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.full((7,), 0.01)
    replayed = project(vae, tiles, config, expected)
    assert len(graphs) == 2  # chunks of 3 and of 2
    monkeypatch.undo()
    monkeypatch.setattr(projection, "CPU_CHUNK", 3)
    assert torch.equal(replayed, project(vae, tiles, config, expected))
    assert not torch.equal(replayed, tiles)
