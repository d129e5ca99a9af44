"""Training is what plain PyTorch would do, gives the same bits from the same seed, and survives being killed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from vaeproj import training
from vaeproj.config import Config
from vaeproj.device import set_up_device
from vaeproj.model import VAE
from vaeproj.training import batch_indices, checkpoint_path, find_or_train, fit, learning_rates, load

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
    assert record["seconds"] > 0


def test_the_images_are_left_as_they_were(images):
    before = images.clone()
    fit(images, toy(steps=2), progress=False)
    assert torch.equal(images, before)


# --- killed and resumed


def load_or_train(images, config, digest, *, folder, progress):
    path = find_or_train(images, config, digest, folder=folder, progress=progress)
    return load(path, config, images.device)


class Killed(Exception):
    pass


def kill_after(monkeypatch, steps: int) -> None:
    """The next fit dies when its bar has moved by at least ``steps``."""

    class Bar(training.tqdm):
        taken = 0

        def update(self, n=1):
            self.taken += n
            if self.taken >= steps:
                raise Killed
            return super().update(n)

    monkeypatch.setattr(training, "tqdm", Bar)


@pytest.fixture
def often(monkeypatch):
    """Chunks of three steps, saved after each."""
    monkeypatch.setattr(training, "CHUNK", 3)
    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)


@pytest.mark.parametrize("length", [{"steps": 11}, {"steps": 0, "epochs": 5}])  # 10 images, batches of 8 and 2
@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
def test_a_killed_run_goes_on_to_the_same_bits(images, tmp_path, monkeypatch, often, length, schedule):
    config, partial = toy(schedule=schedule, **length), tmp_path / "run.partial"
    expected = fit(images, config, progress=False)
    for _ in range(2):  # killed twice: in the second chunk, and in the second from there on
        with monkeypatch.context() as patch:
            kill_after(patch, 4)
            with pytest.raises(Killed):
                fit(images, config, partial=partial, progress=False)
    drawn = []
    monkeypatch.setattr(training.VAE, "forward", counting(drawn))
    assert_same_bits(fit(images, config, partial=partial, progress=False), expected)
    assert len(drawn) == len(expected[1]["history"]) - 6  # it went on, it did not begin again


def counting(calls: list, forward=VAE.forward):
    """`VAE.forward` that keeps what it is given."""

    def record(self, x, noise):
        calls.append((x.detach().clone(), noise.detach().clone()))
        return forward(self, x, noise)

    return record


def test_a_save_that_dies_leaves_the_last_good_one(images, tmp_path, monkeypatch, often):
    config, partial, saves, real = toy(steps=11), tmp_path / "run.partial", [], training.save_file
    expected = fit(images, config, progress=False)

    def save_half(tensors, path, **options):
        saves.append(path)
        if len(saves) == 2:
            path.write_bytes(b"half of it")
            raise Killed
        real(tensors, path, **options)

    monkeypatch.setattr(training, "save_file", save_half)
    with pytest.raises(Killed):
        fit(images, config, partial=partial, progress=False)
    monkeypatch.setattr(training, "save_file", real)
    assert_same_bits(fit(images, config, partial=partial, progress=False), expected)


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
    calls: list[tuple[torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(training, "has_native_bf16", lambda device: False)
    monkeypatch.setattr(training, "CHUNK", 5)
    monkeypatch.setattr(training.VAE, "forward", counting(calls))
    trained, record = fit(images, config, progress=False)
    monkeypatch.undo()

    torch.manual_seed(config.seed)
    vae = VAE(config.latent_dim, config.crop_size).train()
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
        (bce + changes.get("beta", 1.0) * kl).backward()
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


def test_a_loss_that_leaves_the_numbers_is_named(images, monkeypatch, refuses):
    forward = VAE.forward

    def explode(self, x, noise):
        logits, mean, log_var = forward(self, x, noise)
        return logits * float("inf"), mean, log_var

    monkeypatch.setattr(training.VAE, "forward", explode)
    with refuses("learning_rate", "0.001"):
        fit(images, toy(), progress=False)


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


@given(st.integers(4, 300), st.floats(1e-6, 1))
def test_learning_rates_are_those_of_torchs_one_cycle(steps, peak):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps, cycle_momentum=False)
    expected = []
    for _ in range(steps):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step() if len(expected) < steps else None
    rates = learning_rates(steps, Config(learning_rate=peak, schedule="one_cycle"))
    torch.testing.assert_close(rates.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-4, atol=peak * 1e-6)


@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_learning_rates_of_the_shortest_runs(schedule, steps):
    rates = learning_rates(steps, Config(learning_rate=0.1, schedule=schedule))
    assert rates.shape == (steps,)
    assert ((rates > 0) & (rates <= 0.1)).all()
    if schedule == "constant":
        assert rates.tolist() == pytest.approx([0.1] * steps)


# --- checkpoints


def test_a_vae_is_trained_once_and_then_loaded(images, tmp_path, monkeypatch, often):
    config, folder, fits, real = toy(), tmp_path / "checkpoints", [], training.fit

    def count(*args, **kwargs):
        fits.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(training, "fit", count)
    expected = real(images, config, progress=False)
    for _ in range(2):
        trained = load_or_train(images, config, "digest", folder=folder, progress=False)
        assert not trained.vae.training
        assert trained.path == checkpoint_path(config, "digest", folder)
        assert [p.name for p in folder.iterdir()] == [trained.path.name]  # no partial run, no scratch file
        record = {**vars(trained), "snapshot_steps": torch.tensor(trained.snapshot_steps)}
        assert_same_bits((trained.vae, record), expected)
    assert len(fits) == 1
    # What does not touch training finds the same checkpoint; what does trains another.
    load_or_train(images, config.replace(alpha=1.0, sigma=1.0), "digest", folder=folder, progress=False)
    assert len(fits) == 1
    load_or_train(images, config, "other", folder=folder, progress=False)
    load_or_train(images, config.replace(seed=1), "digest", folder=folder, progress=False)
    assert len(fits) == 3
    assert len(list(folder.iterdir())) == 3


def test_a_run_killed_inside_load_or_train_goes_on(images, tmp_path, monkeypatch, often):
    config = toy()
    expected = fit(images, config, progress=False)
    with monkeypatch.context() as patch:
        kill_after(patch, 7)
        with pytest.raises(Killed):
            load_or_train(images, config, "digest", folder=tmp_path, progress=False)
    assert not checkpoint_path(config, "digest", tmp_path).exists()
    assert len(list(tmp_path.iterdir())) == 1
    calls: list = []
    monkeypatch.setattr(training.VAE, "forward", counting(calls))
    trained = load_or_train(images, config, "digest", folder=tmp_path, progress=False)
    assert len(calls) == 9 - 6
    assert torch.equal(trained.history, expected[1]["history"])
    assert list(tmp_path.iterdir()) == [trained.path]


def test_a_last_batch_of_one_is_refused(images, refuses):
    with refuses("10 images", "batches of 3", "batch_size"):  # 3 + 3 + 3 + 1
        training.fit(images, toy(steps=0, epochs=1, batch_size=3), progress=False)


def test_a_checkpoint_of_other_code_is_refused(images, tmp_path, refuses):
    config = toy(steps=1)
    path = find_or_train(images, config, "digest", folder=tmp_path, progress=False)
    training._write(path, {"vae.gone": torch.zeros(1)}, config)
    with refuses("of another version", path, "remove"):
        load_or_train(images, config, "digest", folder=tmp_path, progress=False)


@pytest.mark.parametrize("length", [0, 4, 1000, -1])
def test_a_checkpoint_cut_short_is_refused(images, tmp_path, refuses, length):
    config = toy(steps=1)
    path = find_or_train(images, config, "digest", folder=tmp_path, progress=False)
    path.write_bytes(path.read_bytes()[:length])
    with refuses(path, "remove"):
        load_or_train(images, config, "digest", folder=tmp_path, progress=False)


# --- devices


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


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@needs_gpu
@pytest.mark.parametrize("length", [{"steps": 11}, {"steps": 0, "epochs": 5}])
def test_on_a_gpu_too_the_seed_decides_every_bit_and_a_killed_run_goes_on(images, tmp_path, monkeypatch, often, length):
    config, partial = toy(**length), tmp_path / "run.partial"
    on_gpu = images.to(set_up_device("cuda"))
    expected = fit(on_gpu, config, progress=False)
    assert_same_bits(fit(on_gpu, config, progress=False), expected)
    with monkeypatch.context() as patch:
        kill_after(patch, 7)
        with pytest.raises(Killed):
            fit(on_gpu, config, partial=partial, progress=False)
    assert_same_bits(fit(on_gpu, config, partial=partial, progress=False), expected)


@needs_gpu
def test_on_a_gpu_the_losses_are_those_of_a_plain_loop(images, monkeypatch):
    """A captured graph replays no Python, so the inputs cannot be overheard: compare the losses with an uncaptured run."""
    config = toy(steps=12, learning_rate=2e-3)
    monkeypatch.setattr(training, "has_native_bf16", lambda device: False)
    _, captured = fit(images.to(set_up_device("cuda")), config, progress=False)
    _, cpu = fit(images, config, progress=False)  # other noise, same weights and crops
    torch.testing.assert_close(captured["history"][0, 1], cpu["history"][0, 1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(captured["history"].mean(0), cpu["history"].mean(0), rtol=0.1, atol=0.5)
