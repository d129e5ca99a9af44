"""Fit the VAE, resume a killed run, find a trained one by fingerprint."""

import functools
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from .checkpoint import read, resume, state_of, under, write
from .config import Config, UserError
from .crops import CropSampler
from .device import captured, describe, has_native_bf16
from .model import VAE, elbo_loss

TRAINING_VERSION = 2  # raise when the same configuration and data would give other weights: it is in the fingerprint
LOOK_EVERY = 50  # steps between two looks at the loss, for which the host waits for the device
SAVE_EVERY = 120.0  # seconds between two saves of a run under way
SNAPSHOTS = 6  # moments of training at which the probe crops are reconstructed


@dataclass(frozen=True)
class Trained:
    """A fitted VAE and how it got there."""

    vae: VAE  # in eval mode, on the device
    history: Tensor  # [steps, 2], binary cross-entropy and KL per crop, nats
    probe: Tensor  # [n, C, crop, crop], some training crops ...
    snapshots: Tensor  # [K, n, C, crop, crop], ... and their reconstructions
    snapshot_steps: Tensor  # [K], after so many steps


def batch_indices(number: int, config: Config) -> Sequence[Tensor]:
    """The image indices of each step, shuffled anew for each pass: the same for the same seed.
    ``epochs`` cuts each pass into batches and leaves the last one short, as the article's loader does; ``steps`` lets
    the passes run into one another, so that every batch is full.
    """
    generator, size, total = torch.Generator().manual_seed(config.seed), config.batch_size, config.steps * config.batch_size
    passes = [torch.randperm(number, generator=generator) for _ in range(config.epochs or math.ceil(total / number))]
    if config.epochs:
        return [batch for one in passes for batch in one.split(size)]
    return torch.cat(passes)[:total].split(size)


def learning_rates(steps: int, config: Config) -> list[float]:
    """Adam's step size at each step: constant, or PyTorch's one cycle (Smith and Topin, 2018)."""
    if config.schedule == "constant":
        return [config.learning_rate] * steps
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)
    schedule = OneCycleLR(optimizer, config.learning_rate, total_steps=steps, cycle_momentum=False)
    rates = [*schedule.get_last_lr()]
    while len(rates) < steps:
        optimizer.step()
        schedule.step()
        rates += schedule.get_last_lr()
    return [float(rate) for rate in rates]


def train_step(vae: VAE, optimizer: Optimizer, crops: Tensor, noise: Tensor, beta: float) -> Tensor:
    """One step down the negative ELBO, its KL term weighted by ``beta`` (article), on crops [B, C, crop, crop] in [0, 1] with
    noise [B, latent_dim] ~ N(0, I). Returns binary cross-entropy and KL per crop before the step, [2], nats.
    """
    kind = crops.device.type
    with torch.autocast(kind, torch.bfloat16, cache_enabled=False) if has_native_bf16(crops.device) else nullcontext():
        logits, mean, log_var = vae(crops.contiguous(memory_format=torch.channels_last), noise)
    bce, kl = elbo_loss(logits, crops, mean, log_var)
    (bce + beta * kl).backward()
    optimizer.step()
    optimizer.zero_grad()
    return torch.stack([bce, kl]).detach() / len(crops)


def fit(images: Tensor, config: Config, *, partial: Path | None = None, progress: bool = True) -> tuple[VAE, dict[str, Tensor]]:
    """Train a VAE on crops of ``images`` with Adam (article).

    What a step draws depends on the seed and the step's number alone: two runs on one machine give the same bits, and a run
    resumed from ``partial`` gives those of one never stopped.

    Args:
        images: uint8 [N, C, H, W] on the device to train on.
        partial: where to save a run under way and to resume it from; None keeps nothing.
        progress: show a bar with the loss terms.

    Returns the VAE in eval mode, and what `Trained` holds beside it. A `UserError` for batches too small for batch
    normalization and for a loss that is no finite number.
    """
    device = images.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        vae = VAE.of(config, images.shape[1])
    vae = vae.to(device=device).to(memory_format=torch.channels_last).train()
    batches = batch_indices(len(images), config)
    if min(map(len, batches), default=2) < 2:
        shares = f"{len(images)} images in batches of {config.batch_size}"
        raise UserError(f"{shares} leave a batch of one, too few for BatchNorm: change batch_size, or count steps, not epochs.")
    rates, rate = learning_rates(len(batches), config), torch.tensor(config.learning_rate, device=device)
    weights = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=rate, fused=True, capturable=device.type == "cuda")
    sampler = CropSampler(images, config)
    probe = sampler.sample(6, torch.Generator().manual_seed(config.seed))
    marks = sorted({max(1, len(batches) >> k) for k in range(SNAPSHOTS)})
    record = {"history": torch.zeros(len(batches), 2, device=device), "probe": probe}
    record |= {"snapshots": probe.new_zeros(len(marks), *probe.shape), "snapshot_steps": torch.tensor(marks)}

    def gathered_step(rows: Tensor, noise: Tensor) -> Tensor:
        return train_step(vae, optimizer, sampler.gather(rows), noise, config.beta)

    step = captured(gathered_step, device, functools.partial(state_of, vae, optimizer), warm_up=3)
    done, saved = 0, time.perf_counter()
    if partial is not None and partial.exists():
        tensors, _ = read(partial)
        resume(tensors, vae, optimizer)
        for name, tensor in record.items():
            tensor.copy_(tensors[name])
        done = int(tensors["done"])
    crop_generator, noise_generator = torch.Generator(), torch.Generator(device)
    bar = tqdm(range(done, len(batches)), "training", len(batches), initial=done, unit="step", disable=not progress)
    for t in bar:
        seeds = np.random.SeedSequence([config.seed, t]).generate_state(2, np.uint64).tolist()
        rows = sampler.draw(batches[t], crop_generator.manual_seed(seeds[0])).to(device)
        noise = torch.randn(len(rows), config.latent_dim, generator=noise_generator.manual_seed(seeds[1]), device=device)
        rate.fill_(rates[t])
        record["history"][t] = step(rows, noise)
        if t + 1 in marks:
            with torch.no_grad():  # in eval mode, which leaves BatchNorm's statistics alone
                record["snapshots"][marks.index(t + 1)] = vae.eval().reconstruct(probe)
            vae.train()
        if (t + 1) % LOOK_EVERY and t + 1 < len(batches):
            continue
        bce, kl = record["history"][max(0, t + 1 - LOOK_EVERY) : t + 1].mean(0).tolist()
        bar.set_postfix(bce=f"{bce:.0f}", kl=f"{kl:.1f}", refresh=False)
        if not math.isfinite(bce + kl):
            raise UserError(f"The loss is not finite near step {t + 1}: lower learning_rate = {config.learning_rate}.")
        if partial is not None and t + 1 < len(batches) and time.perf_counter() - saved > SAVE_EVERY:
            write(partial, state_of(vae, optimizer) | record | {"done": torch.tensor(t + 1)}, {})
            saved = time.perf_counter()
    return vae.eval(), {name: tensor.cpu() for name, tensor in record.items()}


def checkpoint_path(config: Config, digest: str, folder: Path) -> Path:
    """Where the network of this configuration and of images with this ``digest`` (`data.Split`) is, or will be."""
    data = f"{digest} training {TRAINING_VERSION}"
    return folder / f"vae-{config.fingerprint('data', 'crops', 'model', 'training', data=data)}.safetensors"


def find_or_train(images: Tensor, config: Config, digest: str, *, folder: Path, **options: Any) -> Path:
    """The network's `checkpoint_path`; it is trained now, with ``options`` of `fit`, if it is not there yet."""
    path = checkpoint_path(config, digest, folder)
    if not path.exists():
        partial = path.with_suffix(f".{images.device.type}.partial")  # the bits depend on the device
        vae, record = fit(images, config, partial=partial, **options)
        weights = {f"vae.{name}": tensor for name, tensor in vae.state_dict().items()}
        write(path, weights | record, {"config": asdict(config), "trained_on": describe(images.device)})
        partial.unlink(missing_ok=True)
    return path


def load(path: Path, config: Config, device: torch.device) -> Trained:
    """A trained VAE from its checkpoint; a `UserError` where it was cut short or is of another version of the code."""
    tensors, _ = read(path)
    try:
        vae = VAE.of(config, tensors["probe"].shape[1])
        vae.load_state_dict(under(tensors, "vae."))
        record = [tensors[field.name] for field in fields(Trained)[1:]]
    except (RuntimeError, KeyError) as error:
        raise UserError(f"The checkpoint {path} is of another version of the code: remove the file to train anew.") from error
    return Trained(vae.to(device=device).to(memory_format=torch.channels_last).eval(), *record)
