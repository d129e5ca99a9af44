"""Every hyper-parameter, once: its value, unit, range and source; the presets; the fingerprint that names a run."""

import dataclasses
import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

PROJECT_ROOT = Path(__file__).resolve().parents[1]
DATA_DIR = PROJECT_ROOT / "data"
RESULTS_DIR = PROJECT_ROOT / "results"


class UserError(Exception):
    """A mistake of the user's: one sentence that says what is wrong, where, and what to do."""


def _param(default: Any, group: str, text: str, span: tuple[float, float] | tuple[str, ...] = (), source: str = "ours") -> Any:
    """Declare a hyper-parameter with what a reader needs to move it: meaning and unit, range or choices, origin."""
    choices = span if span and isinstance(span[0], str) else None
    low, high = (None, None) if choices or not span else span
    metadata = {"group": group, "help": text, "low": low, "high": high, "choices": choices, "source": source}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """The hyper-parameters of one run; the defaults are preset ``quick``. A `UserError` for a value of another type than
    the field's, outside its range, or not among its choices.

    >>> Config(alpha=0.2).iterations
    16
    """

    image_size: int = _param(512, "data", "side of the resized image, pixels", (16, 4096), "article")
    synthgrid_size: int = _param(1024, "data", "side of SynthGrid's images, pixels", (64, 4096), "MVTec AD")
    synthgrid_fraction: float = _param(1.0, "data", "share of MVTec AD's image counts SynthGrid renders", (0, 1))

    crop_size: int = _param(128, "crops", "side of the VAE's crop, pixels; halved by each of widths", (8, 512), "article")
    flip: bool = _param(True, "crops", "flip crops horizontally and vertically, each with p = .5", source="article")
    rotation: bool = _param(True, "crops", "rotate crops by any angle: the grids lie at every angle")

    widths: str = _param("32-64-128", "model", "channels behind each convolution, joined by hyphens", source="article")
    hidden: int = _param(1024, "model", "width of the dense layer", (1, 8192), "article")
    latent_dim: int = _param(512, "model", "dimensions z of the latent space", (1, 4096), "article")

    steps: int = _param(1150, "training", "optimizer steps on full batches; 0: count epochs instead", (0, 10**7))
    epochs: int = _param(0, "training", "passes over the images, one crop each, last batch short; 0: count steps", (0, 10**6))
    batch_size: int = _param(48, "training", "crops per step", (2, 8192))
    learning_rate: float = _param(2.5e-3, "training", "Adam's step size (the peak, with one_cycle)", (0, 1))
    beta: float = _param(0.1, "training", "weight of the KL term; 1: the negative ELBO (article)", (0, 100))
    schedule: str = _param("one_cycle", "training", "learning rate over the steps", ("constant", "one_cycle"))
    seed: int = _param(42, "training", "seed of weights, crops and latent noise", (0, 2**31 - 1), "article")

    descent: str = _param(
        "anchored", "projection",
        "what is descended: anchored (ours); paper: squared error, L1 distance, masked steps; plain: without the mask; "
        "article: cross-entropy instead of the squared error",
        ("anchored", "paper", "plain", "article"),
    )  # fmt: skip
    gradient: str = _param("full", "projection", "full: through the VAE (paper); detached: f(x) fixed", ("full", "detached"))
    alpha: float = _param(0.25, "projection", "step size; anchored: a tile's first one", (0, 100))
    iterations: int = _param(16, "projection", "gradient steps on the image", (0, 10**5))
    lam: float = _param(0.05, "projection", "weight of |x - x_0|_1; not in anchored", (0, 100), "recalled from the paper")
    tolerance: float = _param(1.7, "projection", "anchored: a residual of so many times the normal one weighs 1/2", (0.1, 100))
    hardness: float = _param(4.0, "projection", "anchored: exponent that sharpens the weight into a mask", (0.1, 100))
    coarse_weight: float = _param(0.0, "projection", "weight of a second term: x - f(x) smoothed, then squared", (0, 100))

    stride: int = _param(64, "localization", "distance between overlapping tiles, pixels", (1, 512))
    score: str = _param(
        "l1", "localization",
        "anomaly score of a pixel: |x_T - x_0|, its square, 1 - SSIM(x_T, x_0), or the geometric mean of the first and that",
        ("l1", "l2", "ssim", "l1_ssim"),
    )  # fmt: skip
    sigma: float = _param(4.0, "localization", "Gaussian that smooths the anomaly map, pixels; 0: none", (0, 64))
    sigma_wide: float = _param(0.0, "localization", "a wider one, pixels: the map is their geometric mean; 0: none", (0, 64))

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, kind, meta, value = field.name, type(field.default), field.metadata, getattr(self, field.name)
            if kind is float and type(value) is int:
                value = float(value)
                object.__setattr__(self, name, value)
            if type(value) is not kind:
                raise UserError(f"{name} = {value!r}: {name} takes {kind.__name__} ({meta['help']}).")
            if meta["choices"] and value not in meta["choices"]:
                raise UserError(f"{name} = {value!r}: choose one of {', '.join(meta['choices'])}.")
            if meta["low"] is not None and not meta["low"] <= value <= meta["high"]:
                raise UserError(f"{name} = {value}: it must lie between {meta['low']:g} and {meta['high']:g} ({meta['help']}).")
        crop, image, widths = self.crop_size, self.image_size, self.widths
        if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)+", widths):
            raise UserError(f"widths = {widths!r}: join two or more numbers of channels by hyphens, such as 32-64-128.")
        if crop % (multiple := 2 ** len(widths.split("-"))):
            raise UserError(f"crop_size = {crop}: widths = {widths} halve it at each number: use a multiple of {multiple}.")
        if crop > image:
            raise UserError(f"crop_size = {crop} is larger than image_size = {image}: make it smaller.")
        if self.stride > crop:
            raise UserError(f"stride = {self.stride} leaves gaps between tiles of {crop}: make it smaller.")
        if self.rotation and crop * 2**0.5 > image:
            turned = f"A crop of {crop} turned by 45 degrees does not fit into image_size = {image}"
            raise UserError(f"{turned}: enlarge image_size, or set rotation=false.")
        if bool(self.steps) == bool(self.epochs):
            raise UserError(f"steps = {self.steps} and epochs = {self.epochs}: set one of the two and leave the other at 0.")

    @classmethod
    def from_preset(cls, preset: str, settings: str = "") -> Self:
        """A preset with ``settings``, such as ``"alpha=0.2 iterations=50"``, laid over it; a `UserError` for no such preset
        or field, or a value that does not fit.
        """
        if preset not in PRESETS:
            raise UserError(f"There is no preset '{preset}'; choose one of {', '.join(PRESETS)}.")
        asked = parse_settings(settings)
        own = PRESETS[preset].get("descent", cls.descent)
        named = asked.get("descent", own)
        brought = {} if named == own else DESCENTS.get(named, {})
        # The two ways to say how long to train exclude each other: naming one replaces the preset's other.
        for one, other in (("steps", "epochs"), ("epochs", "steps")):
            if asked.get(one):
                brought = brought | {other: 0}
        return cls(**PRESETS[preset] | brought | asked)

    replace = dataclasses.replace  # config.replace(alpha=0.2): a copy with some fields changed, checked like any other

    def fingerprint(self, *groups: str, data: str = "") -> str:
        """Ten hex digits that change with any field of ``groups`` (default: all) and with the data's own hash."""
        fields = [f for f in dataclasses.fields(self) if not groups or f.metadata["group"] in groups]
        text = json.dumps({f.name: getattr(self, f.name) for f in fields} | {"data": data}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]


def parse_settings(settings: str) -> dict[str, Any]:
    """``"alpha=0.2 rotation=false"`` as ``{"alpha": 0.2, "rotation": False}``; a `UserError` for what is no NAME=VALUE."""
    kinds: dict[str, Any] = {field.name: type(field.default) for field in dataclasses.fields(Config)}
    values: dict[str, Any] = {}
    for item in settings.replace(",", " ").split():
        name, equals, text = item.partition("=")
        if not equals or not text:
            raise UserError(f"'{item}' is not of the form NAME=VALUE, such as alpha=0.2.")
        if name not in kinds:
            raise UserError(f"There is no hyper-parameter '{name}'; the names are {', '.join(kinds)}.")
        values[name] = text
        with suppress(KeyError, ValueError):  # what does not fit is for `Config` to tell
            values[name] = {"true": True, "false": False}[text.lower()] if kinds[name] is bool else kinds[name](text)
    return values


# What each descent needs beside its name: they take steps of different sizes. Naming one in settings brings the others along.
DESCENTS: dict[str, dict[str, Any]] = {
    "anchored": {"descent": "anchored", "alpha": 0.25, "iterations": 16},
    "paper": {"descent": "paper", "alpha": 0.5, "lam": 0.05, "iterations": 100, "coarse_weight": 0.0},  # recalled from it
    "plain": {"descent": "plain", "alpha": 0.02, "lam": 0.05, "iterations": 100, "coarse_weight": 0.0},
    "article": {"descent": "article", "alpha": 0.05, "lam": 1.0, "iterations": 16},  # one to set up and fifteen in its loop
}

OFTEN = {"batch_size": 32, "learning_rate": 2e-3}  # more and smaller steps
COMPACT: dict[str, Any] = {"widths": "16-32-64-64", "hidden": 256, "latent_dim": 64, "steps": 3000} | OFTEN

PRESETS: dict[str, dict[str, Any]] = {
    "ci": {  # Seconds: every line of code runs, next to nothing is learnt.
        "image_size": 128, "crop_size": 32, "synthgrid_size": 256, "synthgrid_fraction": 0.05, "latent_dim": 32,
        "steps": 10, "batch_size": 16, "learning_rate": 2e-3, "beta": 1.0, "iterations": 4, "stride": 32,
    },
    "quick": {},  # Minutes on two CPU cores: the dataclass's own defaults.
    "compact": COMPACT,  # the tutorial with a network of the same kind, a thirtieth of the size
    # The first picture, `make demo`: the compact network after fewer steps, on fewer images.
    "demo": COMPACT | {"synthgrid_fraction": 0.2, "steps": 1000},
    # Half resolution, and Gaussians half as wide in pixels: whole test images, benchmark and ablations, in minutes.
    "half": COMPACT | {
        "image_size": 256, "crop_size": 64, "tolerance": 2.0, "hardness": 2.0, "stride": 32,
        "score": "ssim", "sigma": 3.0, "sigma_wide": 9.0,
    },
    # The article's recipe, its bugs corrected.
    "blog": DESCENTS["article"] | {
        "rotation": False, "steps": 0, "epochs": 500, "batch_size": 256, "beta": 1.0, "learning_rate": 5e-4,
        "schedule": "constant",
    },
    # The highest localization with the article's network on the real grid; choosing_best.md has what was tried and seen.
    "best": OFTEN | {
        "steps": 8000, "alpha": 0.1, "iterations": 60, "tolerance": 2.0, "hardness": 2.0, "coarse_weight": 4.0,
        "score": "l1_ssim", "sigma_wide": 18.0,
    },
    # An object fills the picture and keeps its pose: one upright crop of the whole, since a part of it says nothing without its
    # place. Chosen on pasted defects: results/reference/choosing_object.md.
    "object": {
        "image_size": 128, "rotation": False, "steps": 1500, "batch_size": 64, "learning_rate": 2e-3, "stride": 128,
        "alpha": 0.1, "iterations": 40, "tolerance": 3.0, "hardness": 1.0, "score": "l1_ssim", "sigma": 2.0,
    },
}  # fmt: skip
