"""Checkpoints: tensors in a safetensors file, with what made them; never unpickled."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from .config import UserError
from .files import written_whole
from .model import VAE


def write(path: Path, tensors: dict[str, Tensor], made: dict[str, Any]) -> None:
    """Write tensors and, ready for JSON, what made them, to which the hash of the ``weights`` is added."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    total = hashlib.sha256()
    for name, tensor in under(plain, "vae.").items():
        total.update(name.encode() + tensor.numpy().tobytes())
    with written_whole(path) as scratch:  # one entry: the order of several is not the same in every process
        save_file(plain, scratch, metadata={"made": json.dumps(made | {"weights": total.hexdigest()}, sort_keys=True)})


def read(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write` wrote: tensors whose names start with ``prefix``, and what made them; a `UserError` for a broken file."""
    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a dict)
            return {name: file.get_tensor(name) for name in names}, json.loads((file.metadata() or {}).get("made", "{}"))
    except (SafetensorError, OSError) as error:
        raise UserError(f"The checkpoint {path} cannot be read ({error}): remove the file to train anew.") from error


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def state_of(vae: VAE, optimizer: Optimizer) -> dict[str, Tensor]:
    """What the next training step starts from, by name: weights, BatchNorm's statistics, the optimizer's moments."""
    tensors = {f"vae.{name}": tensor for name, tensor in vae.state_dict().items()}
    for name, parameter in vae.named_parameters():
        tensors |= {f"adam.{name}.{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    return tensors


@torch.no_grad()
def resume(tensors: dict[str, Tensor], vae: VAE, optimizer: Optimizer) -> None:
    """Put network and optimizer into the state that `state_of` gave."""
    vae.load_state_dict(under(tensors, "vae."))
    for name, parameter in vae.named_parameters():
        for key, value in under(tensors, f"adam.{name}.").items():  # in the memory layout of their parameter, if they have one
            own = torch.zeros_like(parameter).copy_(value) if value.ndim else value.to(parameter.device)
            optimizer.state[parameter][key] = own
