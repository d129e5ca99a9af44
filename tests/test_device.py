"""The device that is asked for, what is said of it, and what must hold before a step can be captured."""

import pytest
import torch

from vaeproj.device import describe, projection_dtype, set_up_device


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
