"""Checkpoints: tensors in safetensors files, with what made them; never unpickled."""

from __future__ import annotations

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
    """Write tensors and, ready for JSON, what made them; a write that is killed leaves the last good file."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_whole(path) as scratch:  # one entry: the order of several is not the same in every process
        save_file(plain, scratch, metadata={"made": json.dumps(made, sort_keys=True)})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write` wrote.

    Raises:
        UserError: a file that cannot be read or was cut short.
    """
    made = made_from(path)
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, made  # noqa: SIM118 (not a dict)


def made_from(path: Path) -> dict[str, Any]:
    """What made a checkpoint, without its tensors; raises like `read`."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get("made", "{}"))
    except (SafetensorError, OSError) as error:
        raise UserError(f"The checkpoint {path} cannot be read ({error}): remove the file to train anew.") from error


def weights_of(vae: VAE) -> dict[str, Tensor]:
    """Weights and BatchNorm's statistics, by name."""
    return {f"vae.{name}": tensor for name, tensor in vae.state_dict().items()}


def digest_of(tensors: dict[str, Tensor]) -> str:
    """Sha256 of names and values."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def state_of(vae: VAE, optimizer: Optimizer) -> dict[str, Tensor]:
    """What the next training step starts from, by name: weights, BatchNorm's statistics, the optimizer's moments."""
    tensors = weights_of(vae)
    for name, parameter in vae.named_parameters():
        tensors |= {f"adam.{name}.{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    return tensors


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def resume(tensors: dict[str, Tensor], vae: VAE, optimizer: Optimizer) -> None:
    """Put network and optimizer into the state that `state_of` gave."""
    vae.load_state_dict(under(tensors, "vae."))
    for name, parameter in vae.named_parameters():
        if moments := under(tensors, f"adam.{name}."):  # in the memory layout of their parameter, but for the step's number
            optimizer.state[parameter] = {
                key: torch.zeros_like(parameter).copy_(value) if value.ndim else value.to(parameter.device)
                for key, value in moments.items()
            }
