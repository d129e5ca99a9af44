"""Claim: the article's 500 epochs take seconds on a GPU, with the same learning curve.

The reference is the article's loop with the fewest edits that make it run: each PNG opened, resized and cropped in each epoch,
a plain network in PyTorch's default precision, the loss read on the host at every step. Ours is `vaeproj.training.fit` with
preset ``blog``: the same network, loss, optimizer, batches and number of crops.
"""

import statistics
from itertools import islice

import torch
from _common import Bench, run
from _reference import PlainVAE, plain_training, precision
from matplotlib import pyplot as plt
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from vaeproj.config import Config
from vaeproj.crops import CropSampler
from vaeproj.figures import STYLE
from vaeproj.model import VAE
from vaeproj.training import batch_indices, fit

EPOCHS = 500  # of the article
SIZES = {  # epochs of the article's loop, of ours at the two lengths that are timed, of the learning curves
    "small": {"article": 2, "short": 1, "long": 2, "curve": 2},
    "cpu": {"article": 4, "short": 2, "long": 12, "curve": 12},
    "cuda": {"article": 6, "short": 500, "long": 1000, "curve": 500},
}


def article_epoch(bench: Bench, config: Config, channels: int) -> float:
    """Median seconds of an epoch of the article's loop, the first left out: it warms up."""
    torch.manual_seed(config.seed)
    cut = [transforms.Resize(config.image_size), transforms.RandomCrop(config.crop_size)]
    flip = [transforms.RandomHorizontalFlip(), transforms.RandomVerticalFlip()]
    files = ImageFolder(bench.folder / "train", transforms.Compose([*cut, *flip, transforms.ToTensor()]), loader=Image.open)
    loader = DataLoader(files, batch_size=config.batch_size, shuffle=True)
    vae = PlainVAE(config.latent_dim, config.crop_size, channels).to(bench.device)
    batches = (x.to(bench.device) for _ in range(bench.sizes["article"]) for x, _ in loader)
    losses = plain_training(vae, batches, config.learning_rate)
    with precision(tf32_convolutions=True):
        epochs = range(bench.sizes["article"])
        seconds = [bench.timed(lambda: sum(x.item() for x in islice(losses, len(loader))))[1] for _ in epochs]
    return statistics.median(seconds[1:])


def plain_losses(images: Tensor, config: Config) -> Tensor:
    """Summed loss of each step of a plain loop in fp32 throughout, [steps]; crops come from the device for speed."""
    torch.manual_seed(config.seed)
    vae = PlainVAE.of(VAE.of(config, images.shape[1]).to(images.device))
    sampler, generator = CropSampler(images, config), torch.Generator().manual_seed(config.seed)
    rows = (sampler.draw(index, generator).to(images.device) for index in batch_indices(len(images), config))
    with precision(tf32_convolutions=False):
        return torch.stack([*plain_training(vae, map(sampler.gather, rows), config.learning_rate)]).cpu()


def main(bench: Bench) -> None:
    """Time the two loops, draw their learning curves, print table and JSON."""
    config, sizes = bench.config("blog"), bench.sizes
    print(f"images: {bench.folder}", flush=True)  # rendered now, if missing
    images, reading = bench.timed(lambda: bench.train_images(config))

    def ours(epochs: int) -> Tensor:
        return fit(images, config.replace(epochs=epochs), progress=False)[1]["history"].sum(1)

    _, first = bench.timed(lambda: ours(sizes["short"]))
    our_epoch = bench.slope(ours, sizes["short"], sizes["long"])
    overhead = max(0.0, first - sizes["short"] * our_epoch)  # of warm-up and capture
    our_total = reading + overhead + EPOCHS * our_epoch
    article = article_epoch(bench, config, images.shape[1])

    curve = config.replace(epochs=sizes["curve"])
    batch_sizes = torch.tensor([len(index) for index in batch_indices(len(images), curve)])
    losses = {
        "plain PyTorch, fp32": plain_losses(images, curve),
        "the same, another seed": plain_losses(images, curve.replace(seed=config.seed + 1)),
        "vaeproj": ours(curve.epochs) * batch_sizes,
    }
    curves = {label: sums.view(curve.epochs, -1).sum(1) / len(images) for label, sums in losses.items()}
    plain, *others = curves.values()
    chance, difference = (((other - plain).abs() / plain).mean().item() for other in others)
    plt.style.use(STYLE)
    figure, axes = plt.subplots(figsize=(5, 3))
    for label, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, label=label, linewidth=0.8)
    axes.set(xlabel="epoch", ylabel="loss per crop, nats", yscale="log")
    axes.legend()
    figure.savefig(bench.options.out / "learning_curves.png", dpi=150, bbox_inches="tight")

    bench.finish(
        ["training", "s / epoch", f"s / {EPOCHS} epochs", f"loss over {curve.epochs} epochs, against plain fp32"],
        [
            ["article's loop", f"{article:.3f}", f"{EPOCHS * article:.1f}", f"{chance:.2%} (plain fp32, another seed)"],
            ["vaeproj", f"{our_epoch:.4f}", f"{our_total:.1f}", f"{difference:.2%}"],
            ["ratio", f"{article / our_epoch:.1f}", f"{EPOCHS * article / our_total:.1f}", ""],
        ],
        images=len(images), article_epoch=article, ours_epoch=our_epoch, ratio=article / our_epoch,
        ours_reading=reading, ours_overhead=overhead, ours_500=our_total, ratio_500=EPOCHS * article / our_total,
        curve_difference=difference, curve_chance=chance,
    )  # fmt: skip


if __name__ == "__main__":
    run(main, __doc__, SIZES)
