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
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        # It gives large blocks that are freed back to the system, and a training step, which frees its gradients, spends nearly
        # half its time on page faults for the same memory (`benchmarks/README.md`): have it keep them.
        for option, value in ((-4, 0), (-1, -1)):  # M_MMAP_MAX: no block beside the heap; M_TRIM_THRESHOLD: it never shrinks
            ctypes.CDLL(None).mallopt(option, value)
    return device


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
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu}, {torch.backends.cpu.get_cpu_capability()}"
    training = "bfloat16 (autocast)" if has_native_bf16(device) else "float32"
    own = {"type": device.type, "name": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
    return own | {"precision": {"training": training, "projection": str(projection_dtype(device)).removeprefix("torch.")}}


def captured(
    work: Callable[..., Any], device: torch.device, state: Callable[[], Mapping[str, Tensor]] = dict, warm_up: int = 1
) -> Callable[..., Any]:
    """On a GPU ``work`` as CUDA graphs, each of which the host launches as one; on a CPU ``work`` itself.

    ``work`` makes tensors from tensors, without waiting for their values. There is a graph for each set of shapes, captured
    after ``warm_up`` calls, and what it has returned is overwritten by its next call. ``state`` has by name what else ``work``
    changes: it is after a capture as before, and what the first call allocates, such as an optimizer's moments, zero.
    """
    if device.type != "cuda":
        return work
    graphs: dict[Any, Any] = {}

    def replayed(*given: Tensor) -> Any:
        shapes = tuple(tensor.shape for tensor in given)
        if shapes not in graphs:
            slots = [tensor.clone() for tensor in given]
            before = {name: tensor.clone() for name, tensor in state().items()}
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(warm_up):
                    work(*slots)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                made = work(*slots)
            with torch.no_grad():
                for name, tensor in state().items():
                    tensor.copy_(before[name]) if name in before else tensor.zero_()
            graphs[shapes] = graph, slots, made
        graph, slots, made = graphs[shapes]
        for slot, tensor in zip(slots, given, strict=True):
            slot.copy_(tensor)
        graph.replay()
        return made

    return replayed
