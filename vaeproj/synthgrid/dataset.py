"""SynthGrid: seeded, rendered stand-ins for MVTec AD's grid (category `grid`) and bottle (`ring`), in its layout on disk."""

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
from .mesh import draw_mesh
from .ring import RING_COUNTS, RING_PAINTERS, draw_ring

VERSION = 1  # raise when pixel values change
MARKER = "synthgrid.json"  # the settings of a set, in its folder
COUNTS = {"train/good": 264, "test/good": 21}  # of MVTec AD's category grid
COUNTS |= {f"test/{defect}": n for defect, n in zip(PAINTERS, (12, 12, 11, 11, 11), strict=True)}
CATEGORIES = {"grid": COUNTS, "ring": RING_COUNTS}
DRAW: dict[str, Callable[..., tuple[Any, np.ndarray]]] = {"grid": draw_mesh, "ring": draw_ring}
PAINT: dict[str, Callable[..., np.ndarray]] = PAINTERS | RING_PAINTERS  # no two defects have one name


@dataclass(frozen=True)
class Scene:
    """One rendered image and its truth, each uint8 [size, size]; image and clean of the ring [size, size, 3], RGB."""

    image: np.ndarray  # 0..255
    mask: np.ndarray  # 0 or 255, empty for "good"; outside it `image` equals `clean`
    clean: np.ndarray  # 0..255, the same scene with the same noise, without the defect


def render(kind: str, index: int, *, category: str = "grid", seed: int = 0, size: int = 1024, split: str = "test") -> Scene:
    """Render one image of SynthGrid, a pure function of its arguments: ``kind``, "good" or, in split "test", a defect;
    ``index`` within its folder and ``seed`` of the set, >= 0; ``size``, pixels, >= 64. A `ValueError` outside these ranges.
    """
    if f"{split}/{kind}" not in CATEGORIES[category]:
        raise ValueError(f"no such images in SynthGrid: {category}/{split}/{kind}")
    if min(seed, index) < 0 or size < 64:
        raise ValueError(f"need seed >= 0, index >= 0, size >= 64; got {seed}, {index}, {size}")
    scene_rng, noise_rng, defect_rng = np.random.default_rng([seed, *f"{split}/{kind}".encode(), index]).spawn(3)
    places, intact = DRAW[category](scene_rng, size)
    noise = noise_rng.uniform(0.3, 0.9) * noise_rng.standard_normal(intact.shape, dtype=np.float32)
    clean = _expose(intact + noise)
    image, inside = clean.copy(), np.zeros((size, size), dtype=bool)
    while kind != "good" and not inside.any():  # a defect may miss the visible metal: draw again
        damaged = PAINT[kind](places, defect_rng, intact.copy())
        changed = (np.abs(damaged - intact).reshape(size, size, -1).max(-1) > 4).astype(np.float32)
        inside = gaussian_filter(changed, 0.004 * size) > 0.12  # with a margin, as annotators draw
        image[inside] = _expose(damaged + noise)[inside]
    return Scene(image, inside.astype(np.uint8) * 255, clean)


def _expose(grey: np.ndarray) -> np.ndarray:
    """Grey levels as a camera stores them: float -> uint8, clipped to 0..255."""
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def write_synthgrid(
    root: Path, category: str = "grid", *, seed: int = 0, size: int = 1024, counts: Mapping[str, int] | None = None
) -> Path:
    """Render a category of SynthGrid into its folder in `root`, in MVTec AD's layout, whole or not at all; returns that folder.

    Beside MVTec AD's folders there is `clean/<defect>/NNN.png`, each defective scene without its defect. A second process
    waits for the first. Pixel values depend on seed and size only; the bytes of the files also on the zlib build.

    ``counts`` are images per "train/good", "test/good", "test/<defect>", missing keys mean 0; None: `CATEGORIES`. Nothing is
    done where the folder holds this very set already. A `UserError`, and nothing touched, where it holds anything else or
    there is no such category; a `ValueError` for seed, size (as for `render`) or counts out of range.
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
        if not _is_complete(target, settings):  # nor has another process just made it
            jobs = [(name, index) for name, n in counts.items() for index in range(n)]
            with written_whole(target) as staged, ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
                staged.mkdir()
                # numpy and PIL release the interpreter lock; at an error or interrupt no thread begins another scene
                done = pool.map(lambda job: _write_scene(staged, category, seed, size, *job), jobs)
                list(tqdm(done, total=len(jobs), desc="SynthGrid", unit="image"))
                (staged / MARKER).write_text(json.dumps(settings, indent=2) + "\n")
                _is_complete(target, settings)  # rendering takes minutes: refuse what somebody else put there meanwhile
    return target


def _is_complete(target: Path, settings: dict[str, Any]) -> bool:
    """Whether the folder is the set asked for; False if there is nothing, UserError if there is something else."""
    if not os.path.lexists(target):
        return False
    found = None
    with suppress(OSError, ValueError):
        found = json.loads((target / MARKER).read_text())
    if found != settings:
        what = "a SynthGrid of other settings" if found else "something that is not SynthGrid"
        raise UserError(f"{target} already holds {what}: move it away or choose another data root (nothing changed).")
    return True


def _write_scene(folder: Path, category: str, seed: int, size: int, name: str, index: int) -> None:
    """Write image `index` of `name` ("<split>/<kind>"), with mask and clean twin where it has a defect."""
    split, kind = name.split("/")
    scene = render(kind, index, category=category, seed=seed, size=size, split=split)
    files = {f"{name}/{index:03d}.png": scene.image}
    if kind != "good":
        files |= {f"ground_truth/{kind}/{index:03d}_mask.png": scene.mask, f"clean/{kind}/{index:03d}.png": scene.clean}
    for path, pixels in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / path, compress_level=1)
