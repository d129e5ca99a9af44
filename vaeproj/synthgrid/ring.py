"""Category `ring`, in colour: a bottle's mouth from above, nearly at one place, and its defects. Lengths in image sides."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy import ndarray, random
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from .defects import Range

# Radius in thousandths and colour: a dark hollow, a rust line, the lip, rough glass, two lips, amber, folds, the table.
PROFILE = np.array([
    (0, 40, 40, 50), (204, 33, 32, 44), (209, 62, 40, 38), (214, 38, 33, 42), (220, 70, 72, 84), (227, 46, 51, 57),
    (258, 42, 46, 52), (292, 72, 76, 84), (312, 58, 58, 68), (318, 80, 82, 92), (323, 57, 57, 67), (336, 68, 63, 68),
    (343, 138, 94, 76), (351, 124, 88, 74), (355, 84, 74, 76), (359, 112, 106, 110), (378, 58, 59, 69), (399, 114, 108, 110),
    (423, 54, 56, 66), (436, 84, 88, 94), (446, 175, 178, 173), (458, 254, 254, 250), (466, 268, 268, 268),
])  # fmt: skip
# Marks of the glass, radius and what they add: glints of amber and seams in it, glints on two lips.
MARKS = np.array([(0.347, 150, 105, 45), (0.347, -70, -48, -35), (0.221, 60, 65, 65), (0.314, 45, 48, 50)])


def draw_ring(rng: random.Generator, size: int) -> tuple[ndarray, ndarray]:
    """Draw pose, light and glass of a scene: where its pixels lie, [size, size, 2]; its radiance, float32 [size, size, 3]."""
    spots = np.stack(np.meshgrid(*[(np.arange(size, dtype=np.float32) + 0.5) / size - 0.5] * 2, indexing="ij"), axis=-1)
    depth = np.clip(1 - np.linalg.norm(spots, axis=-1) / 0.45, 0, 1)  # the bottle leans: what lies deeper slips more
    y, x = (spots[..., i] * rng.normal(1, 0.004) - rng.normal(0, 0.003) - rng.normal(0, 0.006) * depth for i in range(2))
    angle, radius = np.arctan2(y, x) / np.float32(2 * np.pi) % 1, np.hypot(y, x)  # turns
    radius = np.abs(radius + 0.0008 * _noise(rng, angle, radius, 0.04, 0.05))
    colour = PchipInterpolator(PROFILE[:, 0], PROFILE[:, 1:])(np.minimum(1000 * radius, 466))
    amber = _noise(rng, angle, radius, 0.02, 0.004) + _noise(rng, angle, radius, 0.005, 0.001)
    rough = _noise(rng, angle, radius, 0.0016, 0.0014) + _noise(rng, angle, radius, 0.004, 0.004)
    grain = 0.2 * amber * np.exp(-(((radius - 0.347) / 0.007) ** 2)) + 0.11 * rough * np.exp(-(((radius - 0.25) / 0.025) ** 4))
    light = rng.uniform(0.08, 0.16) * np.cos(2 * np.pi * (angle - rng.normal(0.6, 0.04)))
    colour *= 1 + ((light + grain) * np.clip((0.45 - radius) / 0.03, 0, 1) * np.clip((radius - 0.2) / 0.02, 0, 1))[..., None]
    for _ in range(rng.integers(16, 26)):
        mark, along = MARKS[rng.integers(4)], (angle - rng.uniform() + 0.5) % 1 - 0.5
        there = (np.abs(along) < 0.06) & (np.abs(radius - mark[0]) < 0.01)
        across = (radius[there] - mark[0] - along[there] * rng.normal(0, 0.06)) / rng.uniform(0.0008, 0.003)
        colour[there] += np.exp(-((along[there] / rng.uniform(0.002, 0.025)) ** 2) - across**2)[:, None] * mark[1:]
    return spots, gaussian_filter(colour * rng.normal(1, 0.012, 3), (0.0007 * size, 0.0007 * size, 0)).astype(np.float32)


def _noise(rng: random.Generator, angle: ndarray, radius: ndarray, along: float, across: float) -> ndarray:
    """Smooth noise of standard deviation 1 on the glass, ``along`` turns and ``across`` radii wide."""
    table = gaussian_filter(rng.standard_normal((round(2 / along), round(2 / across)), dtype=np.float32), 2, mode="wrap")
    return map_coordinates(table / table.std(), [angle * len(table), radius * (2 / across)], order=1, mode="grid-wrap")


def crack(spots: ndarray, rng: random.Generator, colour: ndarray) -> ndarray:
    """A crack runs outwards from the hollow: a line that glints here and there in a dark seam."""
    bends, width = gaussian_filter(rng.normal(0, 5, (400, 2)), (10, 0)), max(0.0013, 0.5 / len(colour))  # spread about 1
    turn = rng.uniform(0, 2 * np.pi) + np.cumsum(0.0012 * bends[:, 0] + rng.normal(0, 0.0012))
    line = np.linspace(0.215, rng.uniform(0.3, 0.4), 400)[:, None] * np.stack([np.sin(turn), np.cos(turn)], axis=-1)
    away, near = cKDTree(line).query(spots)
    glint = rng.uniform(80, 150) * np.exp(-((away / width) ** 2)) * np.clip(0.8 + 0.4 * bends[near, 1], 0.1, 1.6)
    return colour + (glint - 30 * np.exp(-((away / width / 2.5) ** 2)))[..., None]


def _facets(spots: ndarray, rng: random.Generator, colour: ndarray, radii: Range, shades: ndarray, torn: float) -> ndarray:
    """Lay facets of some ``shades`` [n, 3] around a point between two radii, their edges bright, their outlines ``torn``."""
    size, turn, reach = len(colour), rng.uniform(0, 2 * np.pi), rng.uniform(0.03, 0.065)
    seeds = rng.uniform(-2, 2, (60, 2)) * reach * rng.choice([0.4, 1], (60, 1))  # many small facets in the middle
    bend, grain = (gaussian_filter(rng.standard_normal((size, size, 2)), (s * size, s * size, 0)) for s in (0.005, 0.001))
    place = spots - rng.uniform(*radii) * np.array([np.sin(turn), np.cos(turn)]) + torn / bend.std() * bend
    away, near = (a.transpose(2, 0, 1) for a in cKDTree(seeds).query(place, k=2))
    slope = ((place - seeds[near[0]]) * rng.normal(0, 0.3 / reach, (60, 2))[near[0]]).sum(-1, keepdims=True)
    facets = rng.choice(shades, 60)[near[0]] * (1 + slope + 0.1 / grain.std() * grain[..., :1])
    facets += np.exp(-((np.diff(away, axis=0)[0, ..., None] / 0.0014) ** 2)) * rng.choice([0, 30, 110], (60, 1))[near[1]]
    cover = gaussian_filter((np.linalg.norm(seeds, axis=-1) < reach)[near[0]].astype(float), 0.001 * size)[..., None]
    return (colour + cover * (facets - colour)).astype(np.float32)


RING_COUNTS = {"train/good": 209, "test/good": 20, "test/chip": 22, "test/contamination": 21, "test/crack": 20}  # of bottle
RING_PAINTERS: dict[str, Callable[..., ndarray]] = {  # a piece is broken out of the mouth; a crumpled scrap lies in the hollow
    "chip": partial(_facets, radii=(0.23, 0.31), shades=np.outer((14, 22, 30, 45, 60, 150), (0.95, 0.98, 1.06)), torn=0.0015),
    "contamination": partial(_facets, radii=(0, 0.1), shades=np.outer((60, 75, 90, 105, 125), (1, 0.88, 0.72)), torn=0.006),
    "crack": crack,
}
