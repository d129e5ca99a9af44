"""Fit the VAE, resume a killed run, find a trained one by fingerprint."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from .config import RESULTS_DIR, Config, UserError
from .crops import CropSampler
from .device import captured, has_native_bf16
from .files import written_whole
from .model import VAE, elbo_loss, idle_biases

CHECKPOINT_DIR = RESULTS_DIR / "checkpoints"
CHUNK = 50  # steps drawn and run at once, between two looks at the loss
SAVE_EVERY = 60.0  # seconds between two saves of a run under way
SNAPSHOTS = 6  # moments of training at which the probe crops are reconstructed


@dataclass(frozen=True)
class Trained:
    """A fitted VAE and how it got there.

    Attributes:
        vae: in eval mode, on the device.
        history: [steps, 2], binary cross-entropy and KL per crop, nats.
        snapshots: [K, n, C, crop, crop], the probe crops' reconstructions after ``snapshot_steps`` [K] steps.
        probe: [n, C, crop, crop], those training crops.
        seconds: wall time of the fit on the machine that did it.
        path: its checkpoint.
    """

    vae: VAE
    history: Tensor
    probe: Tensor
    snapshots: Tensor
    snapshot_steps: list[int]
    seconds: float
    path: Path


def batch_indices(number: int, config: Config) -> Iterator[Tensor]:
    """The image indices of each step, shuffled anew for each pass: the same for the same seed.

    ``epochs`` cuts each pass into batches and leaves the last one short, as the article's loader does; ``steps`` lets
    the passes run into one another, so that every batch is full.
    """
    generator = torch.Generator().manual_seed(config.seed)
    if config.epochs:
        for _ in range(config.epochs):
            yield from torch.randperm(number, generator=generator).split(config.batch_size)
        return
    pool = torch.empty(0, dtype=torch.long)
    for _ in range(config.steps):
        while len(pool) < config.batch_size:
            pool = torch.cat([pool, torch.randperm(number, generator=generator)])
        batch, pool = pool[: config.batch_size], pool[config.batch_size :]
        yield batch


def learning_rates(steps: int, config: Config) -> Tensor:
    """Adam's step size at each step [steps]: constant, or one cosine rise over 30 % of the steps and a fall to zero
    (Smith and Topin, 2018; the shape of torch's OneCycleLR).
    """
    if config.schedule == "constant":
        return torch.full((steps,), config.learning_rate)
    start, end = config.learning_rate / 25, config.learning_rate / 25e4
    rise = max(0.3 * steps - 1, 1e-9)
    step = torch.arange(steps, dtype=torch.float64)

    def cosine(low: float, high: float, share: Tensor) -> Tensor:
        return low + (high - low) * (1 - torch.cos(math.pi * share)) / 2

    up = cosine(start, config.learning_rate, (step / rise).clamp(max=1))
    down = cosine(config.learning_rate, end, ((step - rise) / max(steps - 1 - rise, 1e-9)).clamp(0, 1))
    return torch.where(step <= rise, up, down).float()


class _Stepper:
    """One optimizer step after another, reading its inputs from tables on the device.

    A chunk's crops, noise and learning rates are moved to the device once; a counter there says which row is next. So
    the step never waits for the host, and on a GPU it is captured once per batch size as a CUDA graph and replayed.
    """

    def __init__(self, vae: VAE, sampler: CropSampler, config: Config, device: torch.device) -> None:
        self.vae, self.sampler, self.device, self.beta = vae, sampler, device, config.beta
        cuda = device.type == "cuda"
        self.rate = torch.tensor(config.learning_rate, device=device)
        self.optimizer = torch.optim.Adam(vae.parameters(), lr=self.rate, fused=True, capturable=cuda)
        for p in vae.parameters():
            moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            self.optimizer.state[p] = {"step": torch.zeros((), device=device)} | moments
        self.counter = torch.zeros(1, dtype=torch.long, device=device)
        self.losses = torch.zeros(CHUNK, 2, device=device)
        self.rates = torch.zeros(CHUNK, device=device)
        self.rows = torch.zeros(CHUNK, config.batch_size, 7, device=device)
        self.noise = torch.zeros(CHUNK, config.batch_size, config.latent_dim, device=device)
        self.graphs: dict[int, Callable[[], None]] = {}

    def state(self) -> dict[str, Tensor]:
        """What a step leaves behind, by name: weights, BatchNorm's statistics, Adam's moments."""
        tensors = {f"vae.{name}": tensor for name, tensor in self.vae.state_dict().items()}
        for name, parameter in self.vae.named_parameters():
            tensors |= {f"adam.{name}.{key}": value for key, value in self.optimizer.state[parameter].items()}
        return tensors

    def load(self, chunk: Sequence[Tensor], rates: Tensor, seed: int) -> None:
        """Lay out one chunk: crops of the images ``chunk`` names for each step, learning rates, noise."""
        sizes = [len(index) for index in chunk]
        rows = self.sampler.draw(torch.cat([*chunk]), torch.Generator().manual_seed(seed)).split(sizes)
        self.rows[: len(chunk), : max(sizes)].copy_(pad_sequence(rows, batch_first=True))
        self.rates[: len(rates)].copy_(rates)
        self.noise.normal_(generator=torch.Generator(self.device).manual_seed(seed))
        self.counter.zero_()

    def __call__(self, batch_size: int) -> None:
        if batch_size not in self.graphs:
            self.graphs[batch_size] = captured(
                partial(self._step, batch_size), self.device,
                lambda: self.state() | {"counter": self.counter, "losses": self.losses}, warm_up=3,
            )  # fmt: skip
        return self.graphs[batch_size]()

    def _step(self, batch_size: int) -> None:
        # index_select, not [step]: an index on the device must not make the host wait for its value.
        row, noise, rate = (table.index_select(0, self.counter)[0] for table in (self.rows, self.noise, self.rates))
        crops = self.sampler.gather(row[:batch_size]).contiguous(memory_format=torch.channels_last)
        self.rate.copy_(rate)
        bf16 = (
            torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
            if has_native_bf16(self.device)
            else nullcontext()
        )
        with bf16:
            logits, mean, log_var = self.vae(crops, noise[:batch_size])
        bce, kl = elbo_loss(logits, crops, mean, log_var)
        self.optimizer.zero_grad(set_to_none=True)
        (bce + self.beta * kl).backward()
        self.optimizer.step()
        self.losses.index_copy_(0, self.counter, torch.stack([bce, kl]).detach()[None] / batch_size)
        self.counter += 1


def fit(
    images: Tensor,
    config: Config,
    *,
    partial: Path | None = None,
    progress: bool = True,
) -> tuple[VAE, dict[str, Tensor]]:
    """Train a VAE on crops of ``images`` with the negative ELBO, its KL term weighted by ``config.beta``, and Adam (article).

    The seed alone decides weights, crops and noise, so two runs on one machine give the same bits, and a run resumed
    from ``partial`` gives those of one never stopped.

    Args:
        images: uint8 [N, C, H, W] on the device to train on.
        partial: where to save a run under way and to resume it from; None keeps nothing.
        progress: show a bar with the loss terms.

    Returns:
        The VAE in eval mode, and ``history``, ``probe``, ``snapshots``, ``snapshot_steps``, ``seconds`` (see `Trained`).
    """
    start = time.perf_counter()
    device = images.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        vae = VAE(config.latent_dim, config.crop_size, images.shape[1])
    vae = vae.to(device, memory_format=torch.channels_last).train()
    for layer, _ in idle_biases(vae):
        layer.bias = None
    sampler = CropSampler(images, config)
    probe = sampler.sample(6, torch.Generator().manual_seed(config.seed))
    stepper = _Stepper(vae, sampler, config, device)
    batches = list(batch_indices(len(images), config))
    if min(map(len, batches), default=2) < 2:
        raise UserError(
            f"{len(images)} images in batches of {config.batch_size} leave a batch of one, too few for batch normalization: "
            "change batch_size, or count steps instead of epochs."
        )
    rates = learning_rates(len(batches), config)
    history = torch.zeros(len(batches), 2)
    marks = sorted({max(1, len(batches) >> k) for k in range(SNAPSHOTS)})
    snapshots = torch.zeros(len(marks), *probe.shape)
    done, spent = _resume(partial, stepper, history, snapshots)

    saved = time.perf_counter()
    bar = tqdm(total=len(batches), initial=done, desc="training", unit="step", disable=not progress)
    while done < len(batches):
        # Every chunk starts from its own seed, so what comes next depends on the step reached and on nothing else.
        seed = config.seed * 1_000_003 + done
        chunk = batches[done : done + CHUNK]
        stepper.load(chunk, rates[done : done + len(chunk)], seed)
        for i, index in enumerate(chunk):
            stepper(len(index))
            bar.update()
            if done + i + 1 in marks:
                snapshots[marks.index(done + i + 1)] = _look(vae, probe)
        history[done : done + len(chunk)] = stepper.losses[: len(chunk)].cpu()
        done += len(chunk)
        bce, kl = history[done - len(chunk) : done].mean(0).tolist()
        bar.set_postfix(bce=f"{bce:.0f}", kl=f"{kl:.1f}")
        if not math.isfinite(bce + kl):
            raise UserError(f"The loss left the finite numbers near step {done}: lower learning_rate = {config.learning_rate}.")
        if partial is not None and done < len(batches) and time.perf_counter() - saved > SAVE_EVERY:
            _save_partial(partial, config, stepper, history, snapshots, done, spent + time.perf_counter() - start)
            saved = time.perf_counter()
    bar.close()
    for layer, count in idle_biases(vae):
        layer.bias = nn.Parameter(torch.zeros(count, device=device))
    record = {"history": history, "probe": probe.cpu(), "snapshots": snapshots, "snapshot_steps": torch.tensor(marks)}
    return vae.eval(), record | {"seconds": torch.tensor(spent + time.perf_counter() - start)}


def find_or_train(images: Tensor, config: Config, digest: str, *, folder: Path = CHECKPOINT_DIR, progress: bool = True) -> Path:
    """The checkpoint of this configuration and data: made if it is not there yet.

    Args:
        images: uint8 [N, C, H, W] on the device.
        digest: hash of the images' files (`mvtec.Split.digest`); with the configuration it names the checkpoint.

    """
    path = checkpoint_path(config, digest, folder)
    if not path.exists():
        partial = path.with_suffix(f".{images.device.type}.partial")  # the bits depend on the device
        vae, record = fit(images, config, partial=partial, progress=progress)
        weights = {f"vae.{name}": tensor for name, tensor in vae.state_dict().items()}
        _write(path, weights | record, config)
        partial.unlink(missing_ok=True)
    return path


def weights_digest(path: Path) -> str:
    """Sha256 of a checkpoint's weights."""
    with safe_open(path, "pt") as file:
        return file.metadata()["weights"]


def load(path: Path, config: Config, device: torch.device) -> Trained:
    """A trained VAE from its checkpoint.

    Raises:
        UserError: a checkpoint that cannot be read, was cut short, or does not fit the configuration.
    """
    tensors = _read(path)
    try:
        vae = VAE(config.latent_dim, config.crop_size, tensors["probe"].shape[1])
        vae.load_state_dict(_under(tensors, "vae."))
        history, probe, snapshots, marks, seconds = (
            tensors[name] for name in ("history", "probe", "snapshots", "snapshot_steps", "seconds")
        )
    except (RuntimeError, KeyError) as error:
        raise UserError(f"The checkpoint {path} is of another version of the code: remove the file to train anew.") from error
    vae = vae.to(device, memory_format=torch.channels_last).eval()
    return Trained(vae, history, probe, snapshots, marks.tolist(), seconds.item(), path)


def checkpoint_path(config: Config, digest: str, folder: Path = CHECKPOINT_DIR) -> Path:
    """Where the VAE of this configuration and data is kept: what does not touch training is not in the name."""
    return folder / f"vae-{config.fingerprint('data', 'crops', 'model', 'training', data=digest)}.safetensors"


@torch.no_grad()
def _look(vae: VAE, probe: Tensor) -> Tensor:
    """The probe's reconstruction now, without disturbing the run: eval mode leaves BatchNorm's statistics alone."""
    vae.eval()
    picture = vae.reconstruct(probe).float().cpu()
    vae.train()
    return picture


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _write(path: Path, tensors: dict[str, Tensor], config: Config) -> None:
    """A killed save leaves the last good one in place."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with written_whole(path) as scratch:
        digest = hashlib.sha256()
        for name, tensor in sorted(plain.items()):
            if name.startswith("vae."):
                digest.update(name.encode() + tensor.numpy().tobytes())
        save_file(plain, scratch, metadata={"config": repr(config), "weights": digest.hexdigest()})


def _read(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise UserError(f"The checkpoint {path} cannot be read ({error}): remove the file to train anew.") from error


def _save_partial(
    path: Path, config: Config, stepper: _Stepper, history: Tensor, snapshots: Tensor, done: int, spent: float
) -> None:
    progress = {"history": history, "snapshots": snapshots, "done": torch.tensor(done), "spent": torch.tensor(spent)}
    _write(path, stepper.state() | progress, config)


@torch.no_grad()
def _resume(path: Path | None, stepper: _Stepper, history: Tensor, snapshots: Tensor) -> tuple[int, float]:
    """Take up a run under way: fills the arguments in place, returns the steps done and the seconds spent."""
    if path is None or not path.exists():
        return 0, 0.0
    tensors = _read(path)
    for name, tensor in (stepper.state() | {"history": history, "snapshots": snapshots}).items():
        tensor.copy_(tensors[name])
    return int(tensors["done"]), float(tensors["spent"])
