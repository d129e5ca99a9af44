"""What depends on the machine: the device and its settings, the precision of the network, captured steps."""

import ctypes
import platform
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .config import UserError


def set_up_device(name: str = "auto") -> torch.device:
    """The device asked for, ``auto`` being the GPU when there is one; sets PyTorch and the allocator up for it: TensorFloat-32
    for what stays in fp32, and convolutions whose sums have one order. A `UserError` for one that is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"There is no device '{name}'; choose auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda was asked for, but torch sees no CUDA GPU here: use --device auto or cpu.")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.deterministic = True
    if device.type == "cpu":
        _keep_freed_memory()
    return device


def _keep_freed_memory() -> None:
    """Have glibc keep large blocks that are freed. It gives them back to the system, and a training step, which frees its
    gradients, spends nearly half its time on page faults for the same memory (`benchmarks/README.md`).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        libc.mallopt(m_mmap_max, 0)  # no block apart from the heap ...
        libc.mallopt(m_trim_threshold, -1)  # ... and the heap never shrinks


def has_native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; emulated, it is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def projection_dtype(device: torch.device) -> torch.dtype:
    """Precision of the network while images are projected; x and E stay in fp32. On a GPU fp16, which has the mantissa of
    TensorFloat-32; on a CPU bf16 where it is native. `benchmarks/README.md` has what either does to the maps.
    """
    if device.type == "cuda":
        return torch.float16
    return torch.bfloat16 if has_native_bf16(device) else torch.float32


def describe(device: torch.device) -> dict[str, Any]:
    """What a result depends on besides data, code and configuration: processor, precision, threads, PyTorch."""
    cuda = device.type == "cuda"
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    name = torch.cuda.get_device_name(device) if cuda else f"{cpu}, {torch.backends.cpu.get_cpu_capability()}"
    training = "bfloat16 (autocast)" if has_native_bf16(device) else "float32"
    precision = {"training": training, "projection": str(projection_dtype(device)).removeprefix("torch.")}
    here = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    return {"type": device.type, "name": name, "precision": precision, **here}


def captured(
    work: Callable[[], None], device: torch.device, state: Callable[[], Mapping[str, Tensor]] = dict, warm_up: int = 1
) -> Callable[[], None]:
    """On a GPU ``work`` as a CUDA graph, which the host launches as one; on a CPU ``work`` itself.

    Args:
        work: reads and writes tensors in place, the same ones at each call, and never waits for their values.
        state: what must be after the capture as it was before, by name; what the first call allocates, such as an
            optimizer's moments, becomes zero.
        warm_up: calls before the capture, for what is allocated in the first ones.
    """
    if device.type != "cuda":
        return work
    before = {name: tensor.clone() for name, tensor in state().items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    with torch.no_grad():
        for name, tensor in state().items():
            tensor.copy_(before[name]) if name in before else tensor.zero_()
    return graph.replay
