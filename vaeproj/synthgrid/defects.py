"""SynthGrid's five defects: each painter damages a scene of `mesh.py`.
A painter takes the mesh, a generator and the scene's radiance, float32 [size, size], which it may overwrite, and returns
the damaged radiance. Points are (x, y) in fractions of the side, origin top left.
"""

import math
from collections.abc import Iterator

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

from .mesh import HALF_WIDTH, SPACING, Cut, Mesh, radiance, smooth_step, wave

Range = tuple[float, float]
Wires = dict[Cut, list[np.ndarray]]  # for each missing piece of a strand the curves [n, 2] of the wires in its place


def bent(mesh: Mesh, rng: np.random.Generator, grey: np.ndarray) -> np.ndarray:
    """One to three legs of strands are pushed into an S."""
    wires: Wires = {}
    for cut in _cuts(mesh, rng, [0.4, 0.4, 0.2], (0.16, 0.26)):
        ends = _on_strand(mesh, cut, np.array([-1, 1]) * (cut.half_length + 0.04))
        chord = ends[1] - ends[0]
        side = chord[::-1] * (-1, 1) * rng.choice([-1, 1]) * rng.uniform(0.2, 0.5)
        bends = np.array([[0, 0.12, 0.3, 0.55, 0.45, 0.7, 0.88, 1], [0, 0, 0.7, 0.9, -0.9, -0.7, 0, 0]])  # along, aside
        bends[:, 2:6] += rng.normal(0, [[0.05], [0.3]], (2, 4))
        wires[cut] = [_curve(ends[0] + np.outer(bends[0], chord) + np.outer(bends[1], side))]
    return _rewire(mesh, rng, wires, width=(0.6, 0.85), tone=(75, 100), gloss=(20, 90))


def broken(mesh: Mesh, rng: np.random.Generator, grey: np.ndarray) -> np.ndarray:
    """One to three legs are torn: background shows, the ends curl away."""
    wires: Wires = {}
    for cut in _cuts(mesh, rng, [0.5, 0.3, 0.2], (0.08, 0.24)):
        wires[cut] = []
        for sign in (-1, 1):
            path = list(_on_strand(mesh, cut, sign * np.array([cut.half_length + 0.06, cut.half_length])))
            step = (path[1] - path[0]) * rng.uniform(0.5, 1.3)
            turn = rng.normal(0, 0.8)
            for _ in range(rng.integers(1, 4)):
                step = math.cos(turn) * step + math.sin(turn) * step[::-1] * (-1, 1)  # turned
                path.append(path[-1] + step)
            wires[cut].append(_curve(np.array(path)))
    return _rewire(mesh, rng, wires, width=(0.55, 0.9), tone=(70, 95), gloss=(10, 90))


def glue(mesh: Mesh, rng: np.random.Generator, grey: np.ndarray) -> np.ndarray:
    """A clear drop: it bends what is behind it, darkens at its outline and carries soft highlights."""
    size = len(grey)
    radius, strength = rng.uniform(0.026, 0.045), rng.uniform(0.5, 1.0)
    x, y = np.meshgrid(*(((np.arange(size) + 0.5) / size - rng.uniform(0.08, 0.92, (2, 1))) / radius))
    turn, stretch = rng.uniform(0, math.pi), rng.uniform(1, 1.35)
    x, y = (x * math.cos(turn) + y * math.sin(turn)) / stretch, (y * math.cos(turn) - x * math.sin(turn)) * stretch
    r2 = np.maximum(x * x + y * y, 1e-9)
    cos2, sin2 = (x * x - y * y) / r2, 2 * x * y / r2
    lobes = 1 + rng.normal(0, 0.10) * cos2 + rng.normal(0, 0.10) * sin2 + rng.normal(0, 0.07) * (cos2**2 - sin2**2)
    r = np.sqrt(r2) / lobes  # 1 on the outline of the drop
    near = np.nonzero(r < 1.3)
    x, y, r = x[near], y[near], r[near]
    shift = radius * size * (0.45 * strength * (1 - np.clip(r, 0, 1) ** 2))  # most where the drop is thickest
    behind = map_coordinates(grey, near + np.outer(rng.normal(0, 0.5, 2), shift), order=1, mode="nearest")
    drop = behind + strength * (rng.uniform(5, 30) - 0.45 * (behind - behind.mean()))
    drop -= strength * rng.uniform(60, 100) * np.exp(-(((r - 0.9) / 0.14) ** 2)) * (0.7 + 0.3 * np.clip(y + x, -1, 1))
    for _ in range(rng.integers(2, 5)):
        spot = rng.uniform(-0.65, 0.65, 2)
        wide, thin = rng.uniform(0.10, 0.35), rng.uniform(0.05, 0.12)
        drop += strength * rng.uniform(30, 110) * np.exp(-(((x - spot[0]) / wide) ** 2) - ((y - spot[1]) / thin) ** 2)
    inside = np.clip(0.5 + (1 - r) * radius / (2 * mesh.softness), 0, 1)
    grey[near] += (inside * (drop - grey[near])).astype(np.float32)
    return grey


def metal_contamination(mesh: Mesh, rng: np.random.Generator, grey: np.ndarray) -> np.ndarray:
    """A curled shaving about one cell in size: bright flank, dark flank, shadow beneath."""
    centre, radius = rng.uniform(0.08, 0.92, 2), rng.uniform(0.014, 0.030)
    angles = rng.uniform(0, 2 * math.pi) + np.linspace(0, rng.uniform(1.8, 4.6), 7)
    spiral = radius * np.linspace(1, rng.uniform(0.5, 1.1), 7) * [np.cos(angles), np.sin(angles)]
    arc = _curve(centre + spiral.T)
    half_width = rng.uniform(0.006, 0.012)
    _stroke(grey, mesh, arc - 0.006 * mesh.lamp, 1.25 * half_width, mesh.edge_grey - 12, 0, rng.uniform(0.5, 0.9))  # shadow
    _stroke(grey, mesh, arc, half_width, rng.uniform(55, 110), rng.uniform(70, 170), 1)
    _stroke(grey, mesh, arc[20:70] + 0.5 * half_width * mesh.lamp, 0.25 * half_width, rng.uniform(150, 235), 0, 1)  # lit edge
    return grey


def thread(mesh: Mesh, rng: np.random.Generator, grey: np.ndarray) -> np.ndarray:
    """Textile fibres: one long thread over several cells, or a fluff of many short ones."""
    size = len(grey)
    density = np.zeros_like(grey)
    start, heading = rng.uniform(0.12, 0.88, 2), rng.uniform(0, 2 * math.pi)
    if rng.random() < 0.5:  # single fibres in a haze of those too fine to see
        length = rng.uniform(0.06, 0.12)
        for _ in range(rng.integers(60, 140)):
            _fibre(density, rng, start + rng.normal(0, 0.14 * length, 2), heading, length * rng.uniform(0.5, 1), 0.9)
        density = (gaussian_filter(density, 0.0006 * size) + gaussian_filter(density, 0.006 * size)) * rng.uniform(0.4, 1.0)
        tone = rng.uniform(45, 75)
    else:
        for _ in range(rng.integers(1, 4)):
            _fibre(density, rng, start, heading + rng.normal(0, 0.3), rng.uniform(0.15, 0.40), 0.35)
        density = gaussian_filter(density, 0.0012 * size) * rng.uniform(3, 8)
        tone = rng.uniform(45, 75) if rng.random() < 0.7 else rng.uniform(190, 230)
    density *= size / 1024
    return grey + density / (1 + density) * (tone - grey)


PAINTERS = {"bent": bent, "broken": broken, "glue": glue, "metal_contamination": metal_contamination, "thread": thread}


def _cuts(mesh: Mesh, rng: np.random.Generator, shares: list[float], half_length: Range) -> Iterator[Cut]:
    """One to three legs of strands, as likely as shares [3] say; each is drawn after all that the one before it needed."""
    for _ in range(rng.choice([1, 2, 3], p=shares)):
        row, column = (rng.uniform(0.08, 0.92, 2) * len(mesh.u)).astype(int)  # mostly inside the image
        centre = math.floor(mesh.u[row, column] * 2) / 2 + 0.25  # the middle of a leg
        yield Cut(int(np.rint(mesh.v[row, column])), centre, rng.uniform(*half_length))


def _on_strand(mesh: Mesh, cut: Cut, waves: np.ndarray) -> np.ndarray:
    """Points [n, 2] on the centre line of the cut strand, waves [n] along it from the middle of the cut."""
    strand, phase = cut.strand, cut.centre + waves
    height, _ = wave(phase + 0.5 * (strand & 1))
    target = np.stack([phase, strand + mesh.offsets[strand & 63] + height / SPACING], axis=-1)
    last = len(mesh.u) - 1
    origin, right, down = (np.array([mesh.u[c], mesh.v[c]], dtype=float) for c in ((0, 0), (0, last), (last, 0)))
    inverse = np.linalg.inv(np.stack([right - origin, down - origin], axis=-1))
    place = (target - origin) @ inverse.T
    for _ in range(4):  # the map is almost affine: a few secant steps suffice
        if place.min() >= 0 and place.max() <= 1:  # outside the image it is not known any better
            there = np.stack([map_coordinates(f, place.T[::-1] * last, order=1) for f in (mesh.u, mesh.v)], axis=-1)
            place = place + (target - there) @ inverse.T
    return place


def _curve(points: np.ndarray, samples: int = 96) -> np.ndarray:
    """Smooth curve [samples, 2] through the neighbourhood of control points [n, 2] (repeated averaging)."""
    t = np.linspace(0, len(points) - 1, samples)
    line = np.stack([np.interp(t, np.arange(len(points)), points[:, i]) for i in range(2)], axis=-1)
    return gaussian_filter(line, (samples / len(points) / 1.8, 0), mode="nearest")


def _rewire(mesh: Mesh, rng: np.random.Generator, wires: Wires, width: Range, tone: Range, gloss: Range) -> np.ndarray:
    """Radiance with pieces of strands replaced by wires; width in strands, tone and gloss in grey levels."""
    grey = radiance(mesh, list(wires))
    for curve in np.concatenate(list(wires.values())):
        _stroke(grey, mesh, curve, HALF_WIDTH * rng.uniform(*width), rng.uniform(*tone), rng.uniform(*gloss), 1)
    return grey


def _stroke(grey: np.ndarray, mesh: Mesh, curve: np.ndarray, radius: float, tone: float, gloss: float, opacity: float) -> None:
    """Paint a round wire along a curve [n, 2]: dark edges, a face of grey `tone`, a highlight of grey `gloss`."""
    size = len(grey)
    left, top = np.clip(np.floor((curve.min(0) - 2 * radius) * size).astype(int), 0, size - 1)
    right, bottom = np.clip(np.ceil((curve.max(0) + 2 * radius) * size).astype(int) + 1, 1, size)
    window = grey[top:bottom, left:right]
    pixels = np.mgrid[left:right, top:bottom].T / size + 0.5 / size  # [bottom - top, right - left, 2]
    distance, nearest = cKDTree(curve).query(pixels)
    normal = np.gradient(curve, axis=0)[:, ::-1] * (-1, 1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    s = np.clip(((pixels - curve[nearest]) * normal[nearest]).sum(-1) / radius, -1, 1)
    lit = (normal @ mesh.lamp)[nearest]
    metal = tone - (tone - mesh.edge_grey) * smooth_step(np.abs(s), 0.35, 1.0)
    metal = metal + gloss * np.exp(-(((s - 0.45 * lit) / 0.28) ** 2)) * np.abs(lit)
    alpha = opacity * np.clip(0.5 + (radius - distance) / mesh.softness, 0, 1)
    window += (alpha * (metal - window)).astype(np.float32)


def _fibre(density: np.ndarray, rng: np.random.Generator, at: np.ndarray, heading: float, length: float, bend: float) -> None:
    """Add one thin curved fibre, its middle at (x, y): about one unit of density to each pixel that it crosses."""
    size = len(density)
    samples = int(3 * length * size) + 2
    angle = heading + _curve(np.cumsum(rng.normal(0, bend, (7, 2)), axis=0), samples)[:, 0]
    path = np.cumsum(length / samples * np.stack([np.cos(angle), np.sin(angle)], axis=-1), axis=0)
    x, y = ((path - path[samples // 2] + at) * size).astype(int).T
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    np.add.at(density, (y[inside], x[inside]), np.float32(1 / 3))
