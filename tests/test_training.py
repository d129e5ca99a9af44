"""Training is what plain PyTorch would do, gives the same bits from the same seed, and survives being killed."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn.modules.module import register_module_forward_pre_hook

from vaeproj import training
from vaeproj.checkpoint import read
from vaeproj.config import Config
from vaeproj.crops import CropSampler
from vaeproj.device import set_up_device
from vaeproj.model import VAE
from vaeproj.training import batch_indices, find_or_train, fit, learning_rates, load, train_step

TOY = {
    "image_size": 32, "crop_size": 16, "stride": 8, "latent_dim": 8, "batch_size": 8, "steps": 9, "learning_rate": 1e-3,
}  # fmt: skip


def toy(**changes) -> Config:
    return Config(**TOY | changes)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """Stripes of many phases: something an autoencoder of 8 dimensions can learn."""
    phase = np.linspace(0, 6, 10)[:, None, None, None]
    x, y = np.meshgrid(np.arange(32), np.arange(32))
    return torch.from_numpy((127 + 100 * np.sin(0.6 * x + 0.3 * y + phase)).astype(np.uint8))


def assert_same_bits(a: tuple, b: tuple) -> None:
    (vae_a, record_a), (vae_b, record_b) = a, b
    for (name, one), other in zip(vae_a.state_dict().items(), vae_b.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    for key in ("history", "probe", "snapshots", "snapshot_steps"):
        assert torch.equal(record_a[key], record_b[key]), key


# --- the same seed


def test_the_seed_decides_every_bit(images):
    config = toy(rotation=True)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = fit(images, config, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_same_bits(one, fit(images, config, progress=False))
    other, record = fit(images, config.replace(seed=43), progress=False)
    assert not torch.equal(record["history"], one[1]["history"])
    assert not torch.equal(other.posterior.weight, one[0].posterior.weight)


def test_what_a_fit_returns(images):
    vae, record = fit(images, toy(), progress=False)
    assert not vae.training
    assert record["history"].shape == (9, 2)
    assert (record["history"] > 0).all()
    assert record["probe"].shape[1:] == (1, 16, 16)
    steps = record["snapshot_steps"].tolist()
    assert steps == sorted(set(steps))
    assert steps[-1] == 9
    assert record["snapshots"].shape == (len(steps), *record["probe"].shape)
    # The last snapshot is taken after the last step: it is what the finished VAE makes of the probe.
    torch.testing.assert_close(record["snapshots"][-1], vae.reconstruct(record["probe"]).detach(), atol=1e-5, rtol=1e-5)


def test_the_images_are_left_as_they_were(images):
    before = images.clone()
    fit(images, toy(steps=2), progress=False)
    assert torch.equal(images, before)


# --- killed and resumed


class Killed(Exception):
    pass


@contextmanager
def watched(until: int | None = None) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """The crops and the noise that each step is given; the process is killed before step ``until``."""
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(module, given):
        if isinstance(module, VAE):
            if len(calls) == until:
                raise Killed
            calls.append(tuple(tensor.detach().clone() for tensor in given))

    handle = register_module_forward_pre_hook(look)
    try:
        yield calls
    finally:
        handle.remove()


@pytest.fixture
def often(monkeypatch):
    """Every third step is saved."""
    monkeypatch.setattr(training, "LOOK_EVERY", 3)
    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)


@pytest.mark.parametrize("length", [{"steps": 11}, {"steps": 0, "epochs": 5}])  # 10 images, batches of 8 and 2
@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
@pytest.mark.usefixtures("often")
def test_a_killed_run_goes_on_to_the_same_bits(images, tmp_path, length, schedule):
    config, partial = toy(schedule=schedule, **length), tmp_path / "run.partial"
    expected = fit(images, config, progress=False)
    for _ in range(2):  # killed twice: after the first save, and after the first from there on
        with watched(until=4), pytest.raises(Killed):
            fit(images, config, partial=partial, progress=False)
    with watched() as calls:
        assert_same_bits(fit(images, config, partial=partial, progress=False), expected)
    assert len(calls) == len(expected[1]["history"]) - 6  # it went on, it did not begin again


# --- what is computed


def test_the_loss_falls_on_what_can_be_learnt(images):
    _, record = fit(images, toy(steps=120, batch_size=16, learning_rate=2e-3, rotation=False, flip=False), progress=False)
    bce = record["history"][:, 0]
    # An image's own entropy is the floor; a flat grey picture costs log 2 a pixel.
    x = images.double() / 255
    floor = F.binary_cross_entropy(x, x).item() * 256
    grey = np.log(2) * 256
    assert bce[0] > grey
    assert bce[-10:].mean() < floor + 0.3 * (grey - floor)


@pytest.mark.parametrize("changes", [{"steps": 12}, {"steps": 12, "beta": 3.0}, {"steps": 0, "epochs": 6}])
def test_a_plain_loop_gives_the_same_losses(images, monkeypatch, changes):
    """The article's loop, with torch's own Adam, schedule and loss, fed the crops and the noise that the fit drew."""
    config = toy(schedule="one_cycle", learning_rate=2e-3, batch_size=6, **changes)  # in epochs: batches of 6 and of 4
    monkeypatch.setattr(training, "has_native_bf16", lambda device: False)
    with watched() as calls:
        trained, record = fit(images, config, progress=False)

    torch.manual_seed(config.seed)
    vae = VAE.of(config, 1).train()
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.learning_rate, foreach=False, fused=False)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=len(calls), cycle_momentum=False
    )
    losses = []
    for x, noise in calls:
        mean, log_var = vae.encode(x)
        reconstruction = vae.decode(mean + torch.exp(log_var / 2) * noise).sigmoid()
        bce = F.binary_cross_entropy(reconstruction, x, reduction="sum")
        kl = -0.5 * torch.sum(1 + log_var - mean**2 - log_var.exp())
        optimizer.zero_grad()
        (bce + config.beta * kl).backward()
        optimizer.step()
        schedule.step()
        losses.append([bce.item() / len(x), kl.item() / len(x)])
    assert len(losses) == 12
    torch.testing.assert_close(record["history"], torch.tensor(losses), rtol=2e-3, atol=1e-2)
    probe = record["probe"]  # in eval mode, so with the running statistics too
    torch.testing.assert_close(trained.reconstruct(probe), vae.eval().reconstruct(probe), rtol=0, atol=0.05)
    noise = torch.cat([noise for _, noise in calls])
    assert abs(noise.mean()) < 5 / noise.numel() ** 0.5
    assert abs(noise.var() - 1) < 5 * (2 / noise.numel()) ** 0.5
    assert len(noise.unique(dim=0)) == len(noise)


def test_crops_and_noise_are_drawn_apart(images):
    """On a CPU, one generator state for both would make the noise a function of the crops' positions."""
    with watched() as calls:
        fit(images, toy(steps=60, batch_size=16, rotation=False, flip=False), progress=False)
    crops, noise = torch.cat([x for x, _ in calls]), torch.cat([noise for _, noise in calls])
    with torch.no_grad():
        levels = torch.stack([crops.mean((1, 2, 3)), crops[:, 0, 0, 0], crops[:, 0, -1, 0]], dim=1)
    correlation = torch.corrcoef(torch.cat([levels, noise], dim=1).T)[:3, 3:]
    assert correlation.abs().max() < 5 / len(crops) ** 0.5


def test_a_loss_that_is_not_finite_is_named(images, refuses):
    with refuses("not finite", "learning_rate", "1.0"):
        fit(images, toy(steps=200, learning_rate=1.0, schedule="constant", beta=100.0), progress=False)


def test_a_step_never_reads_the_device(images):
    """What is captured as a graph must not wait for a value: the meta device, which has none, takes the whole step."""
    config = toy()
    with torch.device("meta"):
        vae = VAE.of(config, 1).train()
        rows, noise = torch.zeros(8, 7), torch.zeros(8, config.latent_dim)
    optimizer = torch.optim.Adam([p for p in vae.parameters() if p.requires_grad], lr=torch.tensor(0.1), capturable=False)
    crops = CropSampler(images.to("meta"), config).gather(rows)
    assert train_step(vae, optimizer, crops, noise, 1.0).shape == (2,)


@given(st.integers(1, 30), st.integers(2, 12), st.integers(1, 5), st.integers(0, 100))
def test_in_epochs_each_pass_takes_every_image_once(number, batch, epochs, seed):
    config = Config(steps=0, epochs=epochs, batch_size=batch, seed=seed)
    batches = list(batch_indices(number, config))
    each = -(-number // batch)
    assert len(batches) == epochs * each
    for e in range(epochs):
        of_pass = batches[e * each : (e + 1) * each]
        assert torch.cat(of_pass).sort().values.tolist() == list(range(number))
        assert [len(b) for b in of_pass[:-1]] == [batch] * (each - 1)
        assert len(of_pass[-1]) == number - batch * (each - 1)


@given(st.integers(1, 30), st.integers(2, 40), st.integers(1, 12), st.integers(0, 100))
def test_in_steps_every_batch_is_full_and_passes_follow_one_another(number, batch, steps, seed):
    config = Config(steps=steps, batch_size=batch, seed=seed)
    batches = list(batch_indices(number, config))
    assert [len(b) for b in batches] == [batch] * steps
    stream = torch.cat(batches)
    for start in range(0, len(stream) - number + 1, number):
        assert stream[start : start + number].sort().values.tolist() == list(range(number))


def test_passes_are_shuffled_anew_by_the_seed():
    stream = torch.cat(list(batch_indices(50, Config(steps=0, epochs=3, batch_size=10))))
    passes = stream.view(3, 50).tolist()
    assert len({tuple(p) for p in [*passes, range(50)]}) == 4
    again = torch.cat(list(batch_indices(50, Config(steps=0, epochs=3, batch_size=10))))
    other = torch.cat(list(batch_indices(50, Config(steps=0, epochs=3, batch_size=10, seed=1))))
    assert torch.equal(again, stream)
    assert not torch.equal(other, stream)


@given(st.integers(10, 300), st.floats(1e-6, 1))
def test_one_cycle_rises_to_its_peak_and_falls_to_nothing(steps, peak):
    rates = learning_rates(steps, Config(learning_rate=peak, schedule="one_cycle"))
    top = int(np.argmax(rates))
    assert len(rates) == steps
    assert abs(top - 0.3 * steps) <= 1.5
    assert (np.diff(rates[: top + 1]) >= 0).all() and (np.diff(rates[top:]) <= 0).all()
    assert peak * 0.9 < rates[top] <= peak * (1 + 1e-6)
    assert rates[0] == pytest.approx(peak / 25)
    assert rates[-1] == pytest.approx(peak / 25e4)


@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_learning_rates_of_the_shortest_runs(schedule, steps):
    rates = learning_rates(steps, Config(learning_rate=0.1, schedule=schedule))
    assert len(rates) == steps
    assert all(0 < rate <= 0.1 for rate in rates)
    if schedule == "constant":
        assert rates == [0.1] * steps


# --- checkpoints


def test_a_vae_is_trained_once_and_then_loaded(images, tmp_path):
    config, folder = toy(), tmp_path / "checkpoints"
    expected = fit(images, config, progress=False)
    with watched() as calls:
        for _ in range(2):
            path = find_or_train(images, config, "digest", folder=folder, progress=False)
            assert list(folder.iterdir()) == [path]  # no partial run, no scratch file
            trained = load(path, config, images.device)
            assert not trained.vae.training
            assert_same_bits((trained.vae, vars(trained)), expected)
        assert len(calls) == 9
        # What does not touch training finds the same checkpoint; what does trains another.
        find_or_train(images, config.replace(alpha=1.0, sigma=1.0), "digest", folder=folder, progress=False)
        assert len(calls) == 9
        find_or_train(images, config, "other", folder=folder, progress=False)
        find_or_train(images, config.replace(seed=1), "digest", folder=folder, progress=False)
        assert len(calls) == 27
    assert len(list(folder.iterdir())) == 3


def test_a_checkpoint_is_the_same_bytes_in_another_process(images, tmp_path):
    torch.save(images, tmp_path / "images.pt")
    code = f"""
import torch; from pathlib import Path; from vaeproj.config import Config; from vaeproj.training import find_or_train
torch.set_num_threads(1)
find_or_train(torch.load("images.pt"), Config(**{TOY!r}), "digest", folder=Path("there"), progress=False)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    here = find_or_train(images, toy(), "digest", folder=tmp_path / "here", progress=False)
    assert here.read_bytes() == (tmp_path / "there" / here.name).read_bytes()


def test_a_checkpoint_says_what_made_it(images, tmp_path):
    _, made = read(find_or_train(images, toy(), "digest", folder=tmp_path, progress=False))
    assert made["config"] == json.loads(json.dumps(dataclasses.asdict(toy())))
    assert made["trained_on"]["torch"] == torch.__version__
    assert made["trained_on"]["threads"] == torch.get_num_threads()
    _, other = read(find_or_train(images, toy(seed=1), "digest", folder=tmp_path, progress=False))
    assert len(made["weights"]) == 64 != made["weights"] != other["weights"]


@pytest.mark.usefixtures("often")
def test_a_run_killed_on_the_way_to_its_checkpoint_goes_on(images, tmp_path):
    config = toy()
    expected = fit(images, config, progress=False)
    with watched(until=7), pytest.raises(Killed):
        find_or_train(images, config, "digest", folder=tmp_path, progress=False)
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    with watched() as calls:
        path = find_or_train(images, config, "digest", folder=tmp_path, progress=False)
    assert len(calls) == 9 - 6
    assert torch.equal(load(path, config, images.device).history, expected[1]["history"])
    assert list(tmp_path.iterdir()) == [path]


def test_a_last_batch_of_one_is_refused(images, refuses):
    with refuses("10 images", "batches of 3", "batch_size"):  # 3 + 3 + 3 + 1
        fit(images, toy(steps=0, epochs=1, batch_size=3), progress=False)


def test_a_checkpoint_of_other_code_is_refused(images, tmp_path, refuses):
    path = tmp_path / "vae.safetensors"
    save_file({"vae.gone": torch.zeros(1)}, path)
    with refuses("of another version", path, "remove"):
        load(path, toy(), images.device)


@pytest.mark.parametrize("length", [0, 4, 1000, -1])
def test_a_checkpoint_cut_short_is_refused(images, tmp_path, refuses, length):
    path = find_or_train(images, toy(steps=1), "digest", folder=tmp_path, progress=False)
    path.write_bytes(path.read_bytes()[:length])
    with refuses(path, "remove"):
        load(path, toy(steps=1), images.device)


# --- GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@needs_gpu
@pytest.mark.parametrize("length", [{"steps": 11}, {"steps": 0, "epochs": 5}])
@pytest.mark.usefixtures("often")
def test_on_a_gpu_too_the_seed_decides_every_bit_and_a_killed_run_goes_on(images, tmp_path, length):
    config, partial = toy(**length), tmp_path / "run.partial"
    on_gpu = images.to(set_up_device("cuda"))
    expected = fit(on_gpu, config, progress=False)
    assert_same_bits(fit(on_gpu, config, progress=False), expected)
    fit(on_gpu, config, partial=partial, progress=False)  # leaves its last save: a run that goes on from there
    assert_same_bits(fit(on_gpu, config, partial=partial, progress=False), expected)


@needs_gpu
def test_on_a_gpu_the_losses_are_those_of_a_plain_loop(images, monkeypatch):
    """A captured graph replays no Python, so the inputs cannot be overheard: compare the losses with an uncaptured run."""
    config = toy(steps=12, learning_rate=2e-3)
    monkeypatch.setattr(training, "has_native_bf16", lambda device: False)
    _, graph = fit(images.to(set_up_device("cuda")), config, progress=False)
    _, cpu = fit(images, config, progress=False)  # other noise, same weights and crops
    torch.testing.assert_close(graph["history"][0, 1], cpu["history"][0, 1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(graph["history"].mean(0), cpu["history"].mean(0), rtol=0.1, atol=0.5)
