"""SynthGrid: seeded, rendered stand-ins for MVTec AD's grid (category `grid`) and bottle (`ring`), in the same layout on disk.

Here the scenes and defects of `mesh.py` and `defects.py`, or of `ring.py`, become 8-bit images with exact masks, and a folder.
"""

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from ..config import UserError
from ..files import written_whole
from .defects import PAINTERS
from .mesh import draw_mesh, radiance
from .ring import RING_COUNTS, RING_PAINTERS, draw_ring

VERSION = 1  # raise when pixel values change
MARKER = "synthgrid.json"  # the settings of a set, in its folder
DEFECTS = tuple(PAINTERS)
COUNTS = {"train/good": 264, "test/good": 21}  # of MVTec AD's category grid
COUNTS |= {f"test/{defect}": n for defect, n in zip(DEFECTS, (12, 12, 11, 11, 11), strict=True)}
CATEGORIES = {"grid": COUNTS, "ring": RING_COUNTS}
PAINT: dict[str, Callable[..., np.ndarray]] = {**PAINTERS, **RING_PAINTERS}  # no two defects have one name


@dataclass(frozen=True)
class Scene:
    """One rendered image and its truth, each uint8 [size, size]; image and clean of the ring [size, size, 3], RGB."""

    image: np.ndarray  # 0..255
    mask: np.ndarray  # 0 or 255, empty for "good"; outside it `image` equals `clean`
    clean: np.ndarray  # 0..255, the same scene with the same noise, without the defect


def render(kind: str, index: int, *, category: str = "grid", seed: int = 0, size: int = 1024, split: str = "test") -> Scene:
    """Render one image of SynthGrid; a pure function of its arguments.

    Args:
        kind: "good" or a defect of the category.
        index: number of the image within its folder, >= 0.
        seed: of the whole set, >= 0.
        size: side in pixels, >= 64.
        split: "train" or "test"; defects exist in "test" only.

    Raises:
        ValueError: an argument is outside these ranges.
    """
    if f"{split}/{kind}" not in CATEGORIES[category]:
        raise ValueError(f"no such images in SynthGrid: {category}/{split}/{kind}")
    if min(seed, index) < 0 or size < 64:
        raise ValueError(f"need seed >= 0, index >= 0, size >= 64; got {seed}, {index}, {size}")
    sequence = np.random.SeedSequence([seed, *f"{split}/{kind}".encode(), index])
    scene_rng, noise_rng, defect_rng = (np.random.default_rng(s) for s in sequence.spawn(3))
    if category == "grid":
        places: Any = draw_mesh(scene_rng, size)
        intact = radiance(places)
    else:
        places, intact = draw_ring(scene_rng, size)
    noise = noise_rng.uniform(0.3, 0.9) * noise_rng.standard_normal(intact.shape, dtype=np.float32)
    clean = _expose(intact + noise)
    inside = np.zeros((size, size), dtype=bool)
    if kind == "good":
        return Scene(clean, inside.astype(np.uint8), clean)
    while not inside.any():  # a defect may miss the visible metal: draw again
        damaged = PAINT[kind](places, defect_rng, intact.copy())
        changed = (np.abs(damaged - intact).reshape(size, size, -1).max(-1) > 4).astype(np.float32)
        inside = gaussian_filter(changed, 0.004 * size) > 0.12  # with a margin, as annotators draw
    image = clean.copy()
    image[inside] = _expose(damaged + noise)[inside]
    return Scene(image, inside.astype(np.uint8) * 255, clean)


def _expose(grey: np.ndarray) -> np.ndarray:
    """Grey levels as a camera stores them: float -> uint8, clipped to 0..255."""
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def write_synthgrid(
    root: Path, category: str = "grid", *, seed: int = 0, size: int = 1024, counts: Mapping[str, int] | None = None,
    progress: bool = True, workers: int = 0,
) -> Path:  # fmt: skip
    """Render a category of SynthGrid into its folder in `root`, in MVTec AD's layout, whole or not at all; returns that folder.

    Beside MVTec AD's folders there is `clean/<defect>/NNN.png`, each defective scene without its defect. A second process
    waits for the first. Pixel values depend on seed and size only; the bytes of the files also on the zlib build.

    Args:
        root: folder of category folders; made if missing. If the category's holds this very set already, nothing is done.
        seed, size: as for `render`.
        counts: images per "train/good", "test/good", "test/<defect>"; missing keys mean 0; None: as in `CATEGORIES`.
        progress: show a progress bar.
        workers: threads (numpy and the PNG writer release the interpreter lock); 0: all cores, at most 8.

    Raises:
        UserError: there is no such category, or its folder holds anything else. Nothing is touched.
        ValueError: seed, size or counts are out of range.
    """
    if category not in CATEGORIES:
        raise UserError(f"SynthGrid has no category '{category}': choose one of {', '.join(CATEGORIES)}.")
    known = CATEGORIES[category]
    counts = {name: n for name, n in sorted((known if counts is None else counts).items()) if n}
    if not set(counts) <= set(known) or min(counts.values(), default=0) < 0 or seed < 0 or size < 64:
        raise ValueError(f"need seed >= 0, size >= 64, counts >= 0 of {sorted(known)}; got {seed}, {size}, {counts}")
    settings = {"name": "SynthGrid", "version": VERSION, "seed": seed, "size": size, "counts": counts}
    target = root / category
    if _is_complete(target, settings):  # before the lock, which a read-only folder would not allow
        return target
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".synthgrid.lock"):  # freed when the process ends, however it ends
        if _is_complete(target, settings):  # another process has just made it
            return target
        with written_whole(target) as staged:
            staged.mkdir()
            _render_all(staged, category, settings, progress, workers)
            (staged / MARKER).write_text(json.dumps(settings, indent=2) + "\n")
            _is_complete(target, settings)  # rendering takes minutes: refuse what somebody else put there meanwhile
    return target


def _is_complete(target: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder is the set asked for; False if there is nothing, UserError if there is something else."""
    if not os.path.lexists(target):
        return False
    try:
        found = json.loads((target / MARKER).read_text())
    except (OSError, ValueError):
        found = None
    if found != settings:
        what = "a SynthGrid of other settings" if found else "something that is not SynthGrid"
        raise UserError(f"{target} already holds {what}: move it away or choose another data root (nothing changed).")
    return True


def _render_all(folder: Path, category: str, settings: dict[str, Any], progress: bool, workers: int) -> None:
    """Write every scene of the set; at an error or interrupt, return only when no thread writes any more."""
    jobs = [(name, index) for name, n in settings["counts"].items() for index in range(n)]
    pool = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8))
    try:
        done = pool.map(lambda job: _write_scene(folder, category, job[0], job[1], settings["seed"], settings["size"]), jobs)
        list(tqdm(done, total=len(jobs), desc="SynthGrid", unit="image", disable=not progress))
    finally:
        pool.shutdown(cancel_futures=True)


def _write_scene(folder: Path, category: str, name: str, index: int, seed: int, size: int) -> None:
    """Write image `index` of `name` ("<split>/<kind>"), with mask and clean twin where it has a defect."""
    split, kind = name.split("/")
    scene = render(kind, index, category=category, seed=seed, size=size, split=split)
    files = {f"{name}/{index:03d}.png": scene.image}
    if kind != "good":
        files |= {f"ground_truth/{kind}/{index:03d}_mask.png": scene.mask, f"clean/{kind}/{index:03d}.png": scene.clean}
    for path, pixels in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / path, compress_level=1)
