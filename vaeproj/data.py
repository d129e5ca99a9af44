"""The MVTec AD folder layout: read it, check it, keep it decoded (Bergmann et al., CVPR 2019):
``<data_root>/<category>/train/good``, ``test/<defect>``, ``ground_truth/<defect>/<name>_mask.png``.
"""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .config import UserError
from .files import kept_arrays

DECODING_VERSION = 3  # raise when a file's pixels come out otherwise: it is part of every digest
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
BIT_DEPTHS = (8, 10, 12, 14, 16)  # of cameras; files have room for 8 or 16

Item = tuple[Path, Path | None]  # an image and its mask


@dataclass(frozen=True)
class Split:
    """One split of a category, decoded and resized once."""

    images: Tensor  # uint8 [N, C, S, S] on the device, grey (C = 1) or RGB (C = 3)
    gt_masks: np.ndarray  # uint8 [N, S, S] in {0, 1}; zeros where the image is good, all of them without masks
    defects: list[str]  # the folder of each image: "good" or the defect's name
    names: list[str]  # "defect/stem" of each image, such as "bent/003"
    digest: str  # sha256 of the files' bytes and of the decoding's version: names the data in fingerprints and manifests

    @property
    def gt_labels(self) -> np.ndarray:
        """Bool [N]: true where the image holds a defect."""
        return np.array([defect != "good" for defect in self.defects])

    def index(self, name: str) -> int:
        """Position of an image by its name, such as ``bent/003``."""
        if name not in self.names:
            raise UserError(f"There is no image '{name}' here; the names run from {self.names[0]} to {self.names[-1]}.")
        return self.names.index(name)


def category_dir(data_root: Path, category: str) -> Path:
    """The folder of a category, or a `UserError` that lists the categories which are there."""
    if not data_root.is_dir():
        raise UserError(f"The data root {data_root} is not a folder: pass --data-root a folder that holds category folders.")
    found = sorted(p.name for p in data_root.glob("[!.]*") if (p / "train" / "good").is_dir())
    if category not in found:
        listed = ", ".join(found) or "none"
        raise UserError(f"{data_root} has no category '{category}' with a train/good folder; categories found: {listed}.")
    return data_root / category


def load_split(folder: Path, split: str, size: int, *, device: torch.device | str = "cpu", cache: Path | None = None) -> Split:
    """Read ``train`` or ``test`` of a category folder, by the files that are there.
    Images are resized to ``size`` x ``size`` pixels with a bilinear filter, masks with nearest neighbour. The pixels are kept
    in ``cache`` under the split's digest, so a second start reads them as they are and a changed file is decoded anew. A
    `UserError` for no images, an unreadable one, a mask missing among others or of another size than its image.
    """
    items = [(path, _mask_path(folder, path)) for path in _image_paths(folder, split)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL and hashlib release the interpreter lock
        raw = list(pool.map(lambda item: [b"" if path is None else read_file(path) for path in item], items))
        hashes = pool.map(lambda file: hashlib.sha256(file).digest(), [file for files in raw for file in files])
        digest = hashlib.sha256(b"".join([f"decoding {DECODING_VERSION}".encode(), *hashes])).hexdigest()
        make = partial(_decode_all, pool, items, raw, size)
        arrays = make() if cache is None else kept_arrays(cache / f"{digest[:16]}-{size}.npz", make)
    defects, names = [path.parent.name for path, _ in items], [f"{path.parent.name}/{path.stem}" for path, _ in items]
    return Split(torch.from_numpy(arrays["images"]).to(device), arrays["masks"], defects, names, digest)


def load_clean(folder: Path, names: Sequence[str], size: int) -> Tensor:
    """SynthGrid's ground truth: the same scenes without their defect, uint8 [N, C, size, size]; a `UserError` elsewhere."""
    if not (folder / "clean").is_dir():
        raise UserError(f"{folder} has no 'clean' folder: only SynthGrid knows its scenes without the defect.")
    paths = [folder / "clean" / f"{name}.png" for name in names]
    return torch.from_numpy(np.stack([decode(open_image(path, read_file(path)), (size, size), 8) for path in paths]))


def check(folder: Path) -> dict[str, int]:
    """Read every image and mask of a category folder and count them by folder; refuses what `load_split` refuses."""
    counts: Counter[str] = Counter()
    for split in ("train", "test"):
        for defect in load_split(folder, split, 64).defects:
            counts[f"{split}/{defect}"] += 1
            if defect != "good" and (folder / "ground_truth").is_dir():
                counts[f"ground_truth/{defect}"] += 1
    return dict(counts)


def _image_paths(folder: Path, split: str) -> list[Path]:
    found = sorted((folder / split).glob("good/[!.]*" if split == "train" else "*/[!.]*"))
    paths = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]
    if not paths:
        raise UserError(f"{folder / split} holds no images: it should look like MVTec AD, {split}/good/000.png and so on.")
    return paths


def _mask_path(folder: Path, image: Path) -> Path | None:
    """The mask of a test image; None for a good one, and for all where there is no folder ``ground_truth``."""
    if image.parent.name == "good" or not (folder / "ground_truth").is_dir():
        return None
    mask = folder / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"
    if not mask.is_file():
        raise UserError(f"{image} has no mask: expected {mask}.")
    return mask


def read_file(path: Path) -> bytes:
    """The bytes of a file, or a `UserError` that names it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): replace or remove the file.") from error


def open_image(path: Path, data: bytes, modes: str | tuple[str, ...] = "") -> Image.Image:
    """The picture, upright as its EXIF data say, if its mode starts with ``modes``; of others the header alone is read."""
    try:
        image = Image.open(io.BytesIO(data))
        if image.mode.startswith(modes):
            ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # PIL raises many kinds; the remedy is the same for all
        reason = str(error).partition(" <")[0]  # without the address of the bytes in memory
        raise UserError(f"{path} cannot be read as an image ({reason}): replace or remove the file.") from error
    return image


def bit_depth(path: Path, data: bytes) -> int:
    """How many bits a picture's levels take: cameras of 12 bits store theirs in files of 16."""
    image = open_image(path, data, ("I", "F"))
    top = np.asarray(image).max() if image.mode.startswith(("I", "F")) else 0
    if image.mode == "F" or top >= 1 << BIT_DEPTHS[-1]:
        raise UserError(f"{path} has levels up to {top}, which are not those of 8 or 16 bits: convert or remove the file.")
    return next(bits for bits in BIT_DEPTHS if top < 1 << bits)


def decode(image: Image.Image, size: tuple[int, int], bits: int) -> np.ndarray:
    """A picture whose levels take ``bits``, resized to ``size``, width and height: uint8 [C, H, W], grey or RGB."""
    if image.mode.startswith("I"):  # PIL's own conversion would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).clip(max=255).astype(np.uint8))
    image = image.convert("L" if image.mode in {"1", "L", "LA"} else "RGB")
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _decode_item(item: Item, data: Sequence[bytes], size: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    image, mask_path = open_image(item[0], data[0]), item[1]
    pixels = decode(image, (size, size), bits)
    if mask_path is None:
        return pixels, np.zeros((size, size), np.uint8)
    mask = open_image(mask_path, data[1])
    if mask.size != image.size:
        sizes = f"{mask.width}x{mask.height} but its image is {image.width}x{image.height}"
        raise UserError(f"{mask_path} is {sizes}: replace the mask.")
    # Nearest neighbour keeps the mask binary; a smooth filter would invent half-defective pixels.
    levels = np.asarray(mask.convert("L").resize((size, size), Image.Resampling.NEAREST))
    # Some copies of the data store 255 where a pixel is defective, others 1.
    return pixels, (levels > levels.max() // 2).astype(np.uint8)


def _decode_all(pool: ThreadPoolExecutor, items: list[Item], raw: list[list[bytes]], size: int) -> dict[str, np.ndarray]:
    # One depth for all: a dark picture among them stays dark.
    bits = max(pool.map(lambda item, data: bit_depth(item[0], data[0]), items, raw))
    images, masks = zip(*pool.map(lambda item, data: _decode_item(item, data, size, bits), items, raw), strict=True)
    for (path, _), pixels in zip(items, images, strict=True):
        if len(pixels) != len(images[0]):
            raise UserError(f"{path} has {len(pixels)} channels but {items[0][0]} has {len(images[0])}: use one kind of image.")
    return {"images": np.stack(images), "masks": np.stack(masks)}
