"""The MVTec AD folder layout: read it, check it, download it.

``<data_root>/<category>/train/good``, ``test/<defect>``, ``ground_truth/<defect>/<name>_mask.png``
(Bergmann et al., CVPR 2019).
"""

from __future__ import annotations

import hashlib
import http.client
import io
import lzma
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from .config import DATA_DIR, UserError
from .files import written_whole

CATEGORIES = (
    "bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut",
    "pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper",
)  # fmt: skip

ARCHIVE_URL = (
    "https://www.mydrive.ch/shares/38536/3830184030e49fe74747669442f0f283/download/"
    "420938113-1629960298/mvtec_anomaly_detection.tar.xz"
)
ARCHIVE_SHA256 = "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d"
LICENCE = """MVTec AD is (c) 2019 MVTec Software GmbH, licensed CC BY-NC-SA 4.0
(https://creativecommons.org/licenses/by-nc-sa/4.0/): cite it, share alike, no commercial use.
Data set page: https://www.mvtec.com/company/research/datasets/mvtec-ad"""

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
DECODED_DIR = DATA_DIR / ".decoded"


@dataclass(frozen=True)
class Split:
    """One split of a category, decoded and resized once.

    Attributes:
        images: uint8 [N, C, S, S], grey (C = 1) or RGB (C = 3); read-only, memory-mapped from the cache.
        gt_masks: uint8 [N, S, S] in {0, 1}; zeros where the image is good.
        defects: the folder of each image: ``good`` or the defect's name.
        names: ``defect/stem`` of each image, such as ``bent/003``.
        digest: sha256 of the files' bytes; it names the data in fingerprints and manifests.
    """

    images: np.ndarray
    gt_masks: np.ndarray
    defects: list[str]
    names: list[str]
    digest: str

    @property
    def gt_labels(self) -> np.ndarray:
        """Bool [N]: true where the image holds a defect."""
        return np.array([defect != "good" for defect in self.defects])

    def index(self, name: str) -> int:
        """Position of an image by its name, such as ``bent/003``."""
        if name not in self.names:
            raise UserError(
                f"There is no image '{name}' in this split; the names run from {self.names[0]} to {self.names[-1]}."
            )
        return self.names.index(name)


def category_dir(data_root: Path, category: str) -> Path:
    """The folder of a category, or a sentence that lists the categories which are there.

    Raises:
        UserError: ``data_root`` or the category is missing.
    """
    if not data_root.is_dir():
        raise UserError(f"The data root {data_root} is not a folder: pass --data-root a folder that holds category folders.")
    found = sorted(p.name for p in data_root.iterdir() if (p / "train" / "good").is_dir())
    if category not in found:
        listed = ", ".join(found) if found else "none"
        raise UserError(f"{data_root} has no category '{category}' with a train/good folder; categories found: {listed}.")
    return data_root / category


def load_split(folder: Path, split: str, size: int, *, cache: Path | None = DECODED_DIR) -> Split:
    """Read ``train`` or ``test`` of a category folder, by the files that are there.

    Images are resized to ``size`` x ``size`` with a bilinear filter, masks with nearest neighbour. The pixels are kept
    under the hash of the files' bytes, so a second start maps them from disk and a changed file is decoded anew.

    Args:
        folder: a category folder, such as ``mvtec_ad/grid``.
        split: ``train`` or ``test``.
        size: side of the resized images, pixels.
        cache: folder of decoded arrays; None decodes into memory.

    Raises:
        UserError: no images, an unreadable image, a missing mask or one of another size than its image.
    """
    items = [(path, _mask_path(folder, path)) for path in _image_paths(folder, split)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # PIL and hashlib release the interpreter lock
        raw = list(pool.map(_read_pair, items))
        digest = _digest(raw)
        stem = None if cache is None else cache / f"{digest[:16]}-{size}"
        arrays = _load_decoded(stem)
        if arrays is None:
            arrays = _decode_all(pool, items, raw, size)
            if stem is not None:
                _save_decoded(stem, arrays)
                arrays = _load_decoded(stem) or arrays  # mapped, as in every later start
    images, gt_masks = arrays
    defects = [path.parent.name for path, _ in items]
    names = [f"{path.parent.name}/{path.stem}" for path, _ in items]
    return Split(images, gt_masks, defects, names, digest)


def load_clean(folder: Path, names: Sequence[str], size: int) -> np.ndarray:
    """SynthGrid's ground truth: the same scenes without their defect, uint8 [N, 1, size, size].

    Raises:
        UserError: the category has no ``clean`` folder (only SynthGrid does).
    """
    if not (folder / "clean").is_dir():
        raise UserError(f"{folder} has no 'clean' folder: only SynthGrid knows its scenes without the defect.")
    return np.stack([_decode(path, _read(path), size) for path in (folder / "clean" / f"{n}.png" for n in names)])


def check(folder: Path) -> dict[str, int]:
    """Read every image and mask of a category folder and count them by folder.

    Raises:
        UserError: what `load_split` refuses.
    """
    counts: Counter[str] = Counter()
    for split in ("train", "test"):
        for defect in load_split(folder, split, 64, cache=None).defects:
            counts[f"{split}/{defect}"] += 1
            if defect != "good":
                counts[f"ground_truth/{defect}"] += 1
    return dict(counts)


def download(
    data_root: Path, *, category: str | None = None, url: str = ARCHIVE_URL, sha256: str = ARCHIVE_SHA256, progress: bool = True
) -> None:
    """Fetch MVTec AD (4.9 GiB), verify its hash, unpack one category or all into ``data_root``.

    A broken transfer goes on where it stopped. Nothing is unpacked before the hash is right, and a category appears
    whole or not at all.

    Raises:
        UserError: a category that is there already or not in the archive, a failed transfer, a wrong hash.
    """
    taken = [c for c in ([category] if category else CATEGORIES) if (data_root / c).exists()]
    if taken:
        raise UserError(f"{data_root / taken[0]} exists already: remove it, or pass --data-root another folder.")
    data_root.mkdir(parents=True, exist_ok=True)
    archive = data_root / "mvtec_anomaly_detection.tar.xz"
    _fetch(url, archive, progress)
    with archive.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        archive.unlink()
        raise UserError(
            f"{url} gave a file of sha256 {actual[:12]}..., not {sha256[:12]}...: it was removed; try another --url."
        )
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=data_root) as scratch:
        try:
            with tarfile.open(archive) as tar:
                wanted = (m for m in tar if category is None or m.name.removeprefix("./").split("/")[0] == category)
                tar.extractall(scratch, members=wanted, filter="data")
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            archive.unlink()
            reason = str(error).split("\n")[0].rstrip(".:")
            raise UserError(f"{url} cannot be unpacked ({reason}): it was removed; try another --url.") from error
        folders = [p for p in Path(scratch).iterdir() if p.is_dir()]
        if not folders:
            raise UserError(f"The archive holds no category '{category}'; it has {', '.join(CATEGORIES)}.")
        for folder in folders:
            folder.rename(data_root / folder.name)
    archive.unlink()


def _image_paths(folder: Path, split: str) -> list[Path]:
    parents = [folder / "train" / "good"] if split == "train" else sorted(p for p in (folder / "test").glob("*") if p.is_dir())
    paths = [
        p
        for parent in parents
        for p in sorted(parent.glob("*"))
        if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "." and not p.is_dir()
    ]
    if not paths:
        raise UserError(f"{folder / split} holds no images: it should look like MVTec AD, {split}/good/000.png and so on.")
    return paths


def _mask_path(folder: Path, image: Path) -> Path | None:
    """The mask of a test image; None for a good one."""
    if image.parent.name == "good":
        return None
    mask = folder / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"
    if not mask.is_file():
        raise UserError(f"{image} has no mask: expected {mask}.")
    return mask


def _read_pair(item: tuple[Path, Path | None]) -> tuple[bytes, bytes]:
    path, mask = item
    return _read(path), b"" if mask is None else _read(mask)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): replace or remove the file.") from error


def _digest(raw: Sequence[tuple[bytes, bytes]]) -> str:
    total = hashlib.sha256()
    for image, mask in raw:
        total.update(hashlib.sha256(image).digest() + hashlib.sha256(mask).digest())
    return total.hexdigest()


def _open(path: Path, data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # PIL raises many kinds; the remedy is the same for all
        raise UserError(f"{path} cannot be read as an image ({error}): replace or remove the file.") from error
    return image


def _decode(path: Path, data: bytes, size: int) -> np.ndarray:
    """uint8 [C, size, size]."""
    image = _open(path, data)
    if image.mode.startswith("I"):  # 16 bits: PIL's own conversion would clip at 255 instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("L" if image.mode in {"1", "L", "LA"} else "RGB")
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _decode_item(path: Path, mask_path: Path | None, data: bytes, mask_data: bytes, size: int) -> tuple[np.ndarray, np.ndarray]:
    pixels = _decode(path, data, size)
    if mask_path is None:
        return pixels, np.zeros((size, size), np.uint8)
    mask, image = _open(mask_path, mask_data), Image.open(io.BytesIO(data))
    if mask.size != image.size:
        raise UserError(
            f"{mask_path} is {mask.width}x{mask.height} but its image is {image.width}x{image.height}: replace the mask."
        )
    # Nearest neighbour keeps the mask binary; a smooth filter would invent half-defective pixels.
    levels = np.asarray(mask.convert("L").resize((size, size), Image.Resampling.NEAREST))
    # Some copies of the data store 255 where a pixel is defective, others 1.
    return pixels, (levels > levels.max() // 2).astype(np.uint8)


def _decode_all(
    pool: ThreadPoolExecutor, items: list[tuple[Path, Path | None]], raw: list[tuple[bytes, bytes]], size: int
) -> tuple[np.ndarray, np.ndarray]:
    decoded = list(pool.map(lambda item, data: _decode_item(*item, *data, size), items, raw))
    for (path, _), (pixels, _) in zip(items, decoded, strict=True):
        if pixels.shape != decoded[0][0].shape:
            raise UserError(
                f"{path} has {len(pixels)} channels but {items[0][0]} has {len(decoded[0][0])}: use one kind of image."
            )
    return np.stack([d[0] for d in decoded]), np.stack([d[1] for d in decoded])


def _load_decoded(stem: Path | None) -> tuple[np.ndarray, np.ndarray] | None:
    if stem is None:
        return None
    try:
        return np.load(f"{stem}-images.npy", mmap_mode="r"), np.load(f"{stem}-masks.npy", mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):  # not decoded yet, or a file somebody cut short
        return None


def _save_decoded(stem: Path, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    for array, kind in zip(arrays, ("images", "masks"), strict=True):
        with written_whole(Path(f"{stem}-{kind}.npy")) as path, path.open("wb") as file:
            np.save(file, array)


def _fetch(url: str, target: Path, progress: bool) -> None:
    """Download to ``target``, going on from a ``.part`` file where an earlier try broke off."""
    if target.is_file():
        return
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=60) as response:
            if response.status != 206:  # the server sends the whole file, whatever we asked for
                have = 0
            total = have + int(response.headers.get("Content-Length") or 0)
            bar = tqdm(total=total, initial=have, desc=target.name, unit="B", unit_scale=True, disable=not progress)
            with part.open("ab" if have else "wb") as file, bar:
                while block := response.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
        if part.stat().st_size < total:
            raise OSError("the transfer broke off")
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the part file already holds every byte
            raise UserError(f"{url} answered {error.code} {error.reason}: pass --url another copy of the archive.") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(
            f"{url} could not be fetched ({error}): run the command again to go on, or pass --url another copy."
        ) from error
    part.replace(target)
