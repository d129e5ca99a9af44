"""Claim: the article's 500 epochs take seconds on a GPU, with the same learning curve.

The reference is the article's training loop with the fewest edits that make it run: a torch Dataset that opens, resizes and
crops each PNG in each epoch, a plain network in PyTorch's default precision, the loss read on the host at every step.
Ours is `vaeproj.training.fit` with preset ``blog``: the same network, loss, optimizer, batches and number of crops.
"""

from __future__ import annotations

import statistics
from typing import NamedTuple

import torch
from _common import Bench
from _reference import ArticleCrops, PlainVAE, article_loss, precision
from matplotlib import pyplot as plt
from torch import Tensor
from torch.utils.data import DataLoader

from vaeproj.config import Config
from vaeproj.crops import CropSampler
from vaeproj.figures import STYLE
from vaeproj.model import VAE
from vaeproj.training import batch_indices, fit

EPOCHS = 500  # of the article


class Sizes(NamedTuple):
    """Epochs of the article's loop, of two lengths of ours, timed ``repeats`` times, and of the learning curves."""

    article: int
    short: int
    long: int
    repeats: int
    curve: int


SIZES = {"small": Sizes(2, 1, 2, 1, 2), "cpu": Sizes(4, 2, 12, 3, 12), "cuda": Sizes(6, 500, 1000, 3, 500)}


def article_seconds(bench: Bench, config: Config, channels: int, epochs: int) -> list[float]:
    """Seconds of each epoch of the article's loop but the first, which warms up."""
    torch.manual_seed(config.seed)
    crops = ArticleCrops(sorted((bench.folder / "train/good").glob("*.png")), config)
    loader = DataLoader(crops, batch_size=config.batch_size, shuffle=True, num_workers=0)
    vae = PlainVAE(config.latent_dim, config.crop_size, channels).to(bench.device).train()
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.learning_rate)

    def epoch() -> float:
        total = 0.0
        for x in loader:
            loss = article_loss(vae, x.to(bench.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total

    with precision(tf32_convolutions=True):
        return [bench.seconds(epoch) for _ in range(epochs)][1:]


def plain_losses(images: Tensor, config: Config) -> Tensor:
    """Loss per crop of each epoch of a plain loop in fp32 throughout, [epochs]; crops come from the device for speed."""
    torch.manual_seed(config.seed)
    vae = PlainVAE.of(VAE(config.latent_dim, config.crop_size, images.shape[1]).to(images.device)).train()
    optimizer = torch.optim.Adam(vae.parameters(), lr=config.learning_rate)
    sampler, generator, losses = CropSampler(images, config), torch.Generator().manual_seed(config.seed), []
    with precision(tf32_convolutions=False):
        for index in batch_indices(len(images), config):
            loss = article_loss(vae, sampler.gather(sampler.draw(index, generator).to(images.device)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return torch.stack(losses).view(config.epochs, -1).sum(1).cpu() / len(images)


def epoch_losses(history: Tensor, number: int, config: Config) -> Tensor:
    """The history of `fit`, [steps, 2] per crop, as loss per crop of each epoch, [epochs]."""
    sizes = torch.tensor([len(batch) for batch in torch.arange(number).split(config.batch_size)])
    return (history.sum(1).view(-1, len(sizes)) * sizes).sum(1) / number


def draw(curves: dict[str, Tensor], bench: Bench) -> None:
    """Loss per crop over epochs, all in one plot."""
    plt.style.use(STYLE)
    figure, axes = plt.subplots(figsize=(5, 3))
    for label, losses in curves.items():
        axes.plot(range(1, len(losses) + 1), losses, label=label, linewidth=0.8)
    axes.set(xlabel="epoch", ylabel="loss per crop, nats", yscale="log")
    axes.legend()
    figure.savefig(bench.options.out / "learning_curves.png", dpi=150, bbox_inches="tight")


def main() -> None:
    """Time the two loops, draw their learning curves, print table and JSON."""
    bench = Bench.start(__file__, __doc__ or "")
    sizes, config = SIZES[bench.scale], bench.config("blog")
    print(f"images: {bench.folder}", flush=True)  # rendered now, if missing
    decoded: list[Tensor] = []
    reading = bench.seconds(lambda: decoded.append(bench.train_images(config)))
    images = decoded[0]
    print(f"{len(images)} images, batch {config.batch_size}; ours timed at {sizes.short} and {sizes.long} epochs", flush=True)

    long = config.replace(epochs=sizes.long)
    records: list[dict[str, Tensor]] = []
    first = bench.seconds(lambda: fit(images, config.replace(epochs=sizes.short), progress=False))
    shorter = bench.median(lambda: fit(images, config.replace(epochs=sizes.short), progress=False), sizes.repeats)
    longer = bench.median(lambda: records.append(fit(images, long, progress=False)[1]), sizes.repeats)
    ours = (longer - shorter) / (sizes.long - sizes.short)
    overhead = max(0.0, first - sizes.short * ours)
    ours_total = reading + overhead + EPOCHS * ours

    epochs = article_seconds(bench, config, images.shape[1], sizes.article)
    article = statistics.median(epochs)

    curve = config.replace(epochs=sizes.curve)
    fast = epoch_losses(records[0]["history"], len(images), config)[: sizes.curve]
    plain, again = plain_losses(images, curve), plain_losses(images, curve.replace(seed=config.seed + 1))
    difference, chance = ((fast - plain).abs() / plain).mean().item(), ((again - plain).abs() / plain).mean().item()
    draw({"plain PyTorch, fp32": plain, "the same, another seed": again, "vaeproj": fast}, bench)

    print(f"Ours before the first step: {reading:.2f} s to read the images once, {overhead:.2f} s to warm up and capture.")
    print(f"The article's {EPOCHS} epochs are extrapolated from the median of {len(epochs)}.", end=" ")
    print(f"Ours are {EPOCHS} times the slope between {sizes.short} and {sizes.long} epochs, plus reading and warm-up.")
    print(f"Loss per crop over {sizes.curve} epochs, mean |ours - plain| / plain: {difference:.2%};", end=" ")
    print(f"the plain loop against itself with another seed: {chance:.2%}.")
    bench.finish(
        ["training", "s / epoch", f"s / {EPOCHS} epochs"],
        [
            ["article's loop", f"{article:.3f}", f"{EPOCHS * article:.1f}"],
            ["vaeproj", f"{ours:.4f}", f"{ours_total:.1f}"],
            ["ratio", f"{article / ours:.1f}", f"{EPOCHS * article / ours_total:.1f}"],
        ],
        images=len(images), epochs=sizes._asdict(), article_epochs=epochs, article_epoch=article, ours_epoch=ours,
        ratio=article / ours, article_500=EPOCHS * article, ours_500=ours_total, ratio_500=EPOCHS * article / ours_total,
        ours_reading=reading, ours_overhead=overhead, curve_difference=difference, curve_chance=chance,
    )  # fmt: skip


if __name__ == "__main__":
    main()
