"""SynthGrid: a seeded renderer of expanded metal mesh, laid out as the category `grid` of MVTec AD.

A scene is built in lattice coordinates: wavy strands run along `u` and are stacked along `v`, neighbours in antiphase,
so that crest meets trough and lens-shaped openings remain. One strand is shaded once into a small table; each pixel
looks up the two strands around it. Lengths are fractions of the image side, grey levels lie in 0..255. The scene's
full-size arithmetic is IEEE-exact operations and table look-ups: pixel values do not depend on the number of workers.
"""

import fcntl
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree
from tqdm.auto import tqdm

from .config import UserError

VERSION = 1  # raise when pixel values change
DEFECTS = ("bent", "broken", "glue", "metal_contamination", "thread")
COUNTS: dict[str, int] = {  # MVTec AD, category grid
    "train/good": 264,
    "test/good": 21,
    "test/bent": 12,
    "test/broken": 12,
    "test/glue": 11,
    "test/metal_contamination": 11,
    "test/thread": 11,
}

# Geometry, in fractions of the image side, measured on the real images (170.5 and 51.2 pixels of 1024).
PERIOD = 0.1665  # one wave of a strand
SPACING = 0.0500  # from one strand to the next
AMPLITUDE = 0.0168  # half the height of the wave
ROUNDNESS = 0.02  # third harmonic of the wave: 1/9 would be a triangle, negative is flatter than a cosine
HALF_WIDTH = 0.0100  # of a strand
TABLE = 512  # samples of the strand texture along and across
MARKER = "synthgrid.json"
Split = Literal["train", "test"]


@dataclass(frozen=True)
class Scene:
    """One rendered image and its truth, each uint8 [size, size]."""

    image: np.ndarray  # 0..255
    mask: np.ndarray  # 0 or 255; outside it `image` equals `clean`
    clean: np.ndarray  # 0..255, the same scene with the same noise, without the defect


@dataclass(frozen=True)
class _Mesh:
    """What the radiance of a scene is computed from; fields are float32 [size, size] unless noted."""

    u: np.ndarray  # waves along the strands
    v: np.ndarray  # strands across
    background: np.ndarray  # grey levels behind the mesh
    light: np.ndarray  # illumination of the metal, about 1
    grain: np.ndarray  # fine texture, about 0 +- 1
    strand: np.ndarray  # [TABLE, TABLE, 4]: distance outside the strand, grey, sparkle, share of light it lets pass
    offsets: np.ndarray  # [64] displacement of single strands, in spacings
    web: float  # openings narrower than this are filled by metal
    edge_grey: float  # grey of webs and of strand edges
    lamp: np.ndarray  # [2] unit vector towards the light, in the image plane
    softness: float  # width of an edge


def render(kind: str, index: int, *, seed: int = 0, size: int = 1024, split: Split = "test") -> Scene:
    """Render one image of SynthGrid; a pure function of its arguments.

    Args:
        kind: "good" or one of `DEFECTS`.
        index: number of the image within its folder, >= 0.
        seed: of the whole set, >= 0.
        size: side in pixels, >= 64.
        split: "train" or "test"; defects exist in "test" only.

    Returns:
        Scene of uint8 arrays [size, size]; for "good" the mask is empty and `image` equals `clean`.

    Raises:
        ValueError: an argument is outside the ranges above.
    """
    if kind not in ("good", *DEFECTS) or split not in ("train", "test") or (split == "train" and kind != "good"):
        raise ValueError(f"no such images in SynthGrid: {split}/{kind}")
    if min(seed, index) < 0 or size < 64:
        raise ValueError(f"need seed >= 0, index >= 0, size >= 64; got {seed}, {index}, {size}")
    sequence = np.random.SeedSequence([seed, *f"{split}/{kind}".encode(), index])
    scene_rng, noise_rng, defect_rng = (np.random.default_rng(s) for s in sequence.spawn(3))
    mesh = _draw_mesh(scene_rng, size)
    radiance = _radiance(mesh)
    noise = noise_rng.uniform(0.3, 0.9) * noise_rng.standard_normal((size, size), dtype=np.float32)
    clean = _expose(radiance + noise)
    if kind == "good":
        return Scene(clean, np.zeros_like(clean), clean)
    while True:  # a defect may miss the visible metal: draw again
        damaged = _PAINTERS[kind](mesh, defect_rng, radiance.copy())
        inside = _region(damaged - radiance)
        if inside.any():
            break
    image = np.where(inside, _expose(damaged + noise), clean)
    return Scene(image, inside.astype(np.uint8) * 255, clean)


# --- the normal scene -------------------------------------------------------------------------------------------------


def _draw_mesh(rng: np.random.Generator, size: int) -> _Mesh:
    """Draw geometry, lighting and texture of one scene."""
    axis = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size) - np.float32(0.5)
    x, y = axis[None, :], axis[:, None]
    turn = rng.uniform(0, math.pi)
    scale = rng.uniform(0.945, 1.025)
    tilt = rng.normal(0, 0.012, 2)
    depth = 1 + np.float32(tilt[0]) * x + np.float32(tilt[1]) * y
    wobble = 0.0018 * rng.uniform(0.3, 1)
    cos, sin = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    along = (cos * x + sin * y) / depth + _field(rng, 5, size, wobble)
    across = (cos * y - sin * x) / depth + _field(rng, 5, size, wobble)
    u = along * np.float32(1 / (PERIOD * scale)) + np.float32(rng.uniform(0, 1))
    v = across * np.float32(1 / (SPACING * scale)) + np.float32(rng.uniform(0, 2))

    gloss = rng.beta(0.6, 0.6)  # 0: dull flat light, 1: bright back light with soft shadows
    lamp_angle = rng.uniform(0, 2 * math.pi)
    lamp = np.array([math.cos(lamp_angle), math.sin(lamp_angle)])
    slope = rng.uniform(0.0, 0.16) * lamp
    light = 1 + np.float32(slope[0]) * x + np.float32(slope[1]) * y - np.float32(rng.uniform(0, 0.18)) * (x * x + y * y)
    mottle = sum(_field(rng, cells, size, 0.013 + 0.013 * gloss, rng.uniform(1, 2.5)) for cells in (28, 64, 150))
    background = np.float32(156 + 88 * gloss + rng.normal(0, 4)) * light * (1 + mottle)
    for _ in range(rng.poisson(2)):  # dust is normal
        _dust(background, rng)
    edge_grey = rng.uniform(45, 56) - 6 * gloss
    softness = max(0.0055, 1.2 / size)
    return _Mesh(
        u=u,
        v=v,
        background=background,
        light=light,
        grain=_field(rng, 200, size, 1.0),
        strand=_strand(rng, turn, lamp, edge_grey, gloss),
        offsets=rng.normal(0, 0.012, 64).astype(np.float32),
        web=rng.uniform(0.004, 0.008),
        edge_grey=edge_grey,
        lamp=lamp,
        softness=softness,
    )


def _field(rng: np.random.Generator, cells: int, size: int, std: float, stretch: float = 1) -> np.ndarray:
    """Smooth random field, float32 [size, size]: white noise on knots, cubic B-spline between.

    The knots are side/cells apart along y and stretch times as far along x.
    """
    down, down_weights = _spline(cells, size)
    right, right_weights = _spline(max(round(cells / stretch), 1), size)
    knots = rng.standard_normal((down[-1] + 4, right[-1] + 4), dtype=np.float32) * np.float32(std)
    rows = sum(down_weights[i][:, None] * knots[down + i] for i in range(4))
    return sum(right_weights[i] * rows[:, right + i] for i in range(4))


def _spline(cells: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """First of the four knots around each pixel [size], and their weights [4, size], scaled to unit variance."""
    place = np.arange(size) * (cells / size)
    knot = place.astype(int)
    t = place - knot
    weights = np.array([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    return knot, (weights / np.sqrt((weights**2).sum(0))).astype(np.float32)


def _wave(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre line of an even strand and its slope at phase u: a rounded triangle wave of height +-AMPLITUDE."""
    phase = 2 * np.pi * u
    scale = AMPLITUDE / (1 + ROUNDNESS)
    height = scale * (np.cos(phase) + ROUNDNESS * np.cos(3 * phase))
    slope = -2 * np.pi * scale / PERIOD * (np.sin(phase) + 3 * ROUNDNESS * np.sin(3 * phase))
    return height, slope


def _strand(rng: np.random.Generator, turn: float, lamp: np.ndarray, edge_grey: float, gloss: float) -> np.ndarray:
    """Shade one strand over (phase, offset from its mean line in -1..1 spacings): [TABLE, TABLE, 4] float32."""
    phase = (np.arange(TABLE)[:, None] + 0.5) / TABLE
    q = (np.arange(TABLE)[None, :] + 0.5) / TABLE * 2 - 1
    height, slope = _wave(phase)
    cosine = 1 / np.sqrt(1 + slope**2)
    crest = height / AMPLITUDE  # +1 where the strand meets its upper neighbour, -1 the lower
    half_width = HALF_WIDTH * rng.uniform(0.93, 1.07) * (1 + rng.uniform(-0.12, 0.12) * crest)
    s = (q * SPACING - height) * cosine / half_width  # -1..1 across the strand

    # Unit normal of the strand in the image plane decides which flank faces the lamp and which the camera sees.
    normal = np.stack(
        [
            -slope * cosine * math.cos(turn) - cosine * math.sin(turn),
            -slope * cosine * math.sin(turn) + cosine * math.cos(turn),
        ]
    )
    lit = normal[0] * lamp[0] + normal[1] * lamp[1]
    view = rng.uniform(0, 2 * math.pi)
    seen = rng.uniform(0.05, 0.30) * (normal[0] * math.cos(view) + normal[1] * math.sin(view))
    face_half = rng.uniform(0.55, 0.75)
    flank = (s - seen) / face_half  # -1..1 on the face
    steep = np.maximum(_smooth(np.abs(flank), 0.5, 1.35), _smooth(np.abs(s), 0.5, 1.1)) * np.sign(flank)
    face_grey = rng.uniform(90, 108) - 18 * gloss
    grey = face_grey * (1 + rng.uniform(0.10, 0.35) * np.clip(flank, -1, 1) * lit)
    grey = grey * (1 + rng.uniform(0, 0.15) * lit + rng.normal(0, 0.06) * crest)
    grey = grey + (edge_grey - grey) * np.abs(steep)
    grey = grey + rng.uniform(4, 22) * np.maximum(steep * lit, 0)
    rim = np.exp(-(((flank - np.sign(lit) * 0.85) / rng.uniform(0.2, 0.35)) ** 2))
    rim_grey = rng.uniform(5, 25) + 25 * gloss
    grey = grey + rim_grey * rim * _smooth(np.abs(lit), 0.2, 1.0) * (0.4 + 0.6 * np.abs(crest))
    contact = _smooth(s * np.sign(crest), 0.35, 1.0) * _smooth(np.abs(crest), 0.55, 0.95)
    grey = grey + (edge_grey - grey) * contact  # a dark line where strands meet
    worn = _smooth(crest * rng.choice([-1, 1]), 0.5, 1)  # rough where the sheet was sheared
    grey = grey + rng.normal(0, 9) * worn * np.exp(-((flank / 0.6) ** 4))
    sparkle = np.exp(-((flank / 0.8) ** 2)) * (3.5 + rng.uniform(1, 9) * worn)
    outside = (np.abs(s) - 1) * half_width

    # Soft contact shadow on the background; it fades before the table ends, where a pixel changes its pair of strands.
    shadow = (0.18 + 0.26 * gloss) / (1 + (np.maximum(outside, 0) / (0.006 + 0.007 * gloss)) ** 2)
    passed = 1 - shadow * (1 - _smooth(np.abs(q), 0.45, 1))
    return np.stack(np.broadcast_arrays(outside, grey, sparkle, passed), axis=-1).astype(np.float32)


def _smooth(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """Smooth step from 0 at low to 1 at high."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


@dataclass(frozen=True)
class _Cut:
    """A missing piece of one strand."""

    strand: int
    centre: float  # in waves along the strand
    half_length: float  # in waves


def _radiance(mesh: _Mesh, cuts: tuple[_Cut, ...] = ()) -> np.ndarray:
    """Noise-free grey levels of the scene, float32 [size, size], with the cut pieces of strands missing."""
    row = np.floor(mesh.v)
    fraction = mesh.v - row
    row = row.astype(np.int32)
    lower = _look_up(mesh, row, fraction, cuts)
    upper = _look_up(mesh, row + 1, fraction - 1, cuts)
    gap = np.maximum(lower[0], 0) + np.maximum(upper[0], 0)
    grey = mesh.background * lower[2] * upper[2]
    soft = np.float32(1 / mesh.softness)
    grey += np.clip((np.float32(mesh.web) - gap) * soft * np.float32(0.5), 0, 1) * (np.float32(mesh.edge_grey) - grey)
    for outside, metal, _ in (lower, upper):
        grey += np.clip(np.float32(0.5) - outside * soft, 0, 1) * (metal - grey)
    return grey


def _look_up(mesh: _Mesh, strand: np.ndarray, q: np.ndarray, cuts: tuple[_Cut, ...]) -> tuple[np.ndarray, ...]:
    """At each pixel: distance outside the given strand, its grey level, the share of light it lets pass."""
    odd = (strand & 1).astype(np.float32)
    along = ((mesh.u + np.float32(0.5) * odd) * TABLE).astype(np.int32) & (TABLE - 1)
    across = ((q - mesh.offsets[strand & 63] + 1) * np.float32(TABLE / 2)).astype(np.int32)
    found = mesh.strand.reshape(-1, 4)[along * TABLE + np.clip(across, 0, TABLE - 1)]
    outside, passed = found[..., 0], found[..., 3]
    grey = (found[..., 1] + found[..., 2] * mesh.grain) * mesh.light
    for cut in cuts:
        missing = (np.float32(cut.half_length) - np.abs(mesh.u - np.float32(cut.centre))) * np.float32(PERIOD)
        here = (strand == cut.strand) & (missing > 0)
        outside = np.where(here, np.maximum(outside, missing), outside)
        opened = passed + np.minimum(missing * 100, 1) * (np.maximum(passed, np.float32(0.95)) - passed)
        passed = np.where(here, opened, passed)
    return outside, grey, passed


def _dust(background: np.ndarray, rng: np.random.Generator) -> None:
    """Darken one speck of a few pixels."""
    size = len(background)
    row, column = rng.integers(0, size, 2)
    radius = rng.uniform(0.0015, 0.003) * size
    reach = int(3 * radius) + 1
    rows, columns = slice(max(row - reach, 0), row + reach), slice(max(column - reach, 0), column + reach)
    y, x = np.ogrid[rows.start : min(rows.stop, size), columns.start : min(columns.stop, size)]
    distance = ((y - row) ** 2 + (x - column) ** 2) / radius**2
    background[rows, columns] *= (1 - rng.uniform(0.1, 0.35) / (1 + distance**2)).astype(np.float32)


def _expose(grey: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _region(change: np.ndarray) -> np.ndarray:
    """The annotator's region: where the grey level changed noticeably, with a margin; bool [size, size]."""
    margin = 0.004 * len(change)
    return gaussian_filter((np.abs(change) > 4).astype(np.float32), margin) > 0.12


# --- defects: each paints on the radiance of a scene ------------------------------------------------------------------


def _site(mesh: _Mesh, rng: np.random.Generator) -> tuple[int, float]:
    """A strand and the phase at the middle of one of its legs, mostly inside the image."""
    row, column = (rng.uniform(0.08, 0.92, 2) * len(mesh.u)).astype(int)
    return int(np.rint(mesh.v[row, column])), math.floor(mesh.u[row, column] * 2) / 2 + 0.25


def _on_strand(mesh: _Mesh, strand: int, phase: np.ndarray) -> np.ndarray:
    """Image positions [n, 2] (x, y in fractions of the side, origin top left) of points on a centre line."""
    height, _ = _wave(phase + 0.5 * (strand & 1))
    target = np.stack([phase, strand + mesh.offsets[strand & 63] + height / SPACING], axis=-1)
    size = len(mesh.u)
    corners = [(0, 0), (0, size - 1), (size - 1, 0)]
    origin, right, down = (np.array([mesh.u[c], mesh.v[c]], dtype=float) for c in corners)
    inverse = np.linalg.inv(np.stack([right - origin, down - origin], axis=-1))
    place = (target - origin) @ inverse.T
    for _ in range(4):  # the map is almost affine: a few secant steps suffice
        pixels = np.clip(place, 0, 1) * (size - 1)
        there = np.stack([map_coordinates(f, pixels.T[::-1], order=1) for f in (mesh.u, mesh.v)], axis=-1)
        place = place + (target - there) @ inverse.T * (np.abs(place - np.clip(place, 0, 1)).max() < 1e-9)
    return place


def _curve(points: np.ndarray, samples: int = 96) -> np.ndarray:
    """Smooth curve [samples, 2] through the neighbourhood of control points [n, 2] (repeated averaging)."""
    t = np.linspace(0, len(points) - 1, samples)
    line = np.stack([np.interp(t, np.arange(len(points)), points[:, i]) for i in range(2)], axis=-1)
    return gaussian_filter(line, (samples / len(points) / 1.8, 0), mode="nearest")


def _stroke(
    grey: np.ndarray,
    mesh: _Mesh,
    points: np.ndarray,
    half_width: float,
    tone: float,
    gloss: float,
    opacity: float = 1.0,
) -> None:
    """Paint a round wire along a curve [n, 2]: dark edges, a face of grey `tone`, a highlight of grey `gloss`."""
    size = len(grey)
    low = np.clip(np.floor((points.min(0) - 2 * half_width) * size).astype(int), 0, size - 1)
    high = np.clip(np.ceil((points.max(0) + 2 * half_width) * size).astype(int) + 1, 1, size)
    if (high <= low).any():
        return
    y, x = np.mgrid[low[1] : high[1], low[0] : high[0]]
    pixels = np.stack([x, y], axis=-1) / size + 0.5 / size
    distance, nearest = cKDTree(points).query(pixels)
    tangent = np.gradient(points, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=-1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    s = np.clip(((pixels - points[nearest]) * normal[nearest]).sum(-1) / half_width, -1, 1)
    lit = (normal @ mesh.lamp)[nearest]
    metal = tone - (tone - mesh.edge_grey) * _smooth(np.abs(s), 0.35, 1.0)
    metal = metal + gloss * np.exp(-(((s - 0.45 * lit) / 0.28) ** 2)) * np.abs(lit)
    alpha = opacity * np.clip(0.5 + (half_width - distance) / mesh.softness, 0, 1)
    window = grey[low[1] : high[1], low[0] : high[0]]
    window += (alpha * (metal - window)).astype(np.float32)


def _bent(mesh: _Mesh, rng: np.random.Generator, grey: np.ndarray) -> np.ndarray:
    """One to three legs of strands are pushed into an S."""
    cuts, wires = [], []
    for _ in range(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2])):
        strand, centre = _site(mesh, rng)
        half = rng.uniform(0.16, 0.26)
        ends = _on_strand(mesh, strand, centre + np.array([-1, 1]) * (half + 0.04))
        chord = ends[1] - ends[0]
        side = np.array([-chord[1], chord[0]]) * rng.choice([-1, 1]) * rng.uniform(0.2, 0.5)
        steps = np.array([0.0, 0.12, 0.3, 0.55, 0.45, 0.7, 0.88, 1.0]) + np.r_[0, 0, rng.normal(0, 0.05, 4), 0, 0]
        sway = np.array([0.0, 0.0, 0.7, 0.9, -0.9, -0.7, 0.0, 0.0]) + np.r_[0, 0, rng.normal(0, 0.3, 4), 0, 0]
        cuts.append(_Cut(strand, centre, half))
        wires.append(_curve(ends[0] + steps[:, None] * chord + sway[:, None] * side))
    grey = _radiance(mesh, tuple(cuts))
    for wire in wires:
        _stroke(grey, mesh, wire, HALF_WIDTH * rng.uniform(0.6, 0.85), rng.uniform(75, 100), rng.uniform(20, 90))
    return grey


def _broken(mesh: _Mesh, rng: np.random.Generator, grey: np.ndarray) -> np.ndarray:
    """One to three legs are torn: background shows, the ends curl away."""
    cuts, wires = [], []
    for _ in range(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2])):
        strand, centre = _site(mesh, rng)
        half = rng.uniform(0.08, 0.24)
        cuts.append(_Cut(strand, centre, half))
        for sign in (-1, 1):
            root = _on_strand(mesh, strand, centre + sign * np.array([half + 0.06, half]))
            step = (root[1] - root[0]) * rng.uniform(0.5, 1.3)
            turn = rng.normal(0, 0.8)
            path = [root[0], root[1]]
            for _ in range(rng.integers(1, 4)):
                cos, sin = math.cos(turn), math.sin(turn)
                step = np.array([cos * step[0] - sin * step[1], sin * step[0] + cos * step[1]])
                path.append(path[-1] + step)
            wires.append(_curve(np.array(path)))
    grey = _radiance(mesh, tuple(cuts))
    for wire in wires:
        _stroke(grey, mesh, wire, HALF_WIDTH * rng.uniform(0.55, 0.9), rng.uniform(70, 95), rng.uniform(10, 90))
    return grey


def _blob(mesh: _Mesh, rng: np.random.Generator, radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Polar coordinates of a lobed blob: x, y in radii, and r, 1 on its outline; each [size, size]."""
    size = len(mesh.u)
    centre = rng.uniform(0.08, 0.92, 2)
    axis = (np.arange(size) + 0.5) / size
    x, y = np.broadcast_arrays((axis[None, :] - centre[0]) / radius, (axis[:, None] - centre[1]) / radius)
    turn, stretch = rng.uniform(0, math.pi), rng.uniform(1, 1.35)
    x, y = (x * math.cos(turn) + y * math.sin(turn)) / stretch, (y * math.cos(turn) - x * math.sin(turn)) * stretch
    r2 = np.maximum(x * x + y * y, 1e-9)
    cos2, sin2 = (x * x - y * y) / r2, 2 * x * y / r2
    lobes = 1 + rng.normal(0, 0.10) * cos2 + rng.normal(0, 0.10) * sin2 + rng.normal(0, 0.07) * (cos2**2 - sin2**2)
    return x, y, np.sqrt(r2) / lobes


def _glue(mesh: _Mesh, rng: np.random.Generator, grey: np.ndarray) -> np.ndarray:
    """A clear drop: it bends what is behind it, darkens at its outline and carries soft highlights."""
    size = len(grey)
    radius = rng.uniform(0.026, 0.045)
    strength = rng.uniform(0.5, 1.0)
    x, y, r = _blob(mesh, rng, radius)
    rows, columns = np.nonzero(r < 1.3)
    x, y, r = (a[rows, columns] for a in (x, y, r))
    bulge = 0.45 * strength * (1 - np.clip(r, 0, 1) ** 2)
    pull = rng.normal(0, 0.5, 2)
    shift = radius * size * bulge
    behind = map_coordinates(grey, [rows + shift * pull[0], columns + shift * pull[1]], order=1, mode="nearest")
    drop = behind + strength * (rng.uniform(5, 30) - 0.45 * (behind - behind.mean()))
    drop -= strength * rng.uniform(60, 100) * np.exp(-(((r - 0.9) / 0.14) ** 2)) * (0.7 + 0.3 * np.clip(y + x, -1, 1))
    for _ in range(rng.integers(2, 5)):
        spot = rng.uniform(-0.65, 0.65, 2)
        wide, thin = rng.uniform(0.10, 0.35), rng.uniform(0.05, 0.12)
        drop += strength * rng.uniform(30, 110) * np.exp(-(((x - spot[0]) / wide) ** 2) - ((y - spot[1]) / thin) ** 2)
    inside = np.clip(0.5 + (1 - r) * radius / (2 * mesh.softness), 0, 1)
    grey[rows, columns] += (inside * (drop - grey[rows, columns])).astype(np.float32)
    return grey


def _metal_contamination(mesh: _Mesh, rng: np.random.Generator, grey: np.ndarray) -> np.ndarray:
    """A curled shaving about one cell in size: bright flank, dark flank, shadow beneath."""
    centre = rng.uniform(0.08, 0.92, 2)
    radius = rng.uniform(0.014, 0.030)
    angles = rng.uniform(0, 2 * math.pi) + np.linspace(0, rng.uniform(1.8, 4.6), 7)
    spiral = radius * np.linspace(1, rng.uniform(0.5, 1.1), 7)
    arc = _curve(centre + spiral[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1))
    half_width = rng.uniform(0.006, 0.012)
    fall = 0.006 * mesh.lamp
    _stroke(grey, mesh, arc - fall, 1.25 * half_width, mesh.edge_grey - 12, 0, opacity=rng.uniform(0.5, 0.9))
    _stroke(grey, mesh, arc, half_width, rng.uniform(55, 110), rng.uniform(70, 170))
    edge = arc[20:70] + 0.5 * half_width * mesh.lamp
    _stroke(grey, mesh, edge, 0.25 * half_width, rng.uniform(150, 235), 0)
    return grey


def _thread(mesh: _Mesh, rng: np.random.Generator, grey: np.ndarray) -> np.ndarray:
    """Textile fibres: one long thread over several cells, or a fluff of many short ones."""
    size = len(grey)
    density = np.zeros_like(grey)
    start, heading = rng.uniform(0.12, 0.88, 2), rng.uniform(0, 2 * math.pi)
    if fluff := rng.random() < 0.5:
        length = rng.uniform(0.06, 0.12)
        for _ in range(rng.integers(60, 140)):
            _fibre(density, rng, start + rng.normal(0, 0.14 * length, 2), heading, length * rng.uniform(0.5, 1), 0.9)
    else:
        for _ in range(rng.integers(1, 4)):
            _fibre(density, rng, start, heading + rng.normal(0, 0.3), rng.uniform(0.15, 0.40), 0.35)
    if fluff:  # single fibres in a haze of those too fine to see
        density = gaussian_filter(density, 0.0006 * size) + gaussian_filter(density, 0.006 * size)
        density *= rng.uniform(0.4, 1.0)
    else:
        density = gaussian_filter(density, 0.0012 * size) * rng.uniform(3, 8)
    density *= size / 1024
    tone = rng.uniform(45, 75) if fluff or rng.random() < 0.7 else rng.uniform(190, 230)
    return grey + density / (1 + density) * (np.float32(tone) - grey)


def _fibre(
    density: np.ndarray, rng: np.random.Generator, middle: np.ndarray, heading: float, length: float, bend: float
) -> None:
    """Add one thin curved fibre, about one unit of density to each pixel that it crosses."""
    size = len(density)
    samples = int(3 * length * size) + 2
    angle = heading + _curve(np.cumsum(rng.normal(0, bend, (7, 2)), axis=0), samples)[:, 0]
    steps = length / samples * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    path = np.cumsum(steps, axis=0)
    x, y = ((path - path[samples // 2] + middle) * size).astype(int).T
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    np.add.at(density, (y[inside], x[inside]), np.float32(1 / 3))


_PAINTERS = dict(zip(DEFECTS, (_bent, _broken, _glue, _metal_contamination, _thread), strict=True))


# --- the data set on disk ---------------------------------------------------------------------------------------------


def write_synthgrid(
    data_root: Path,
    *,
    seed: int = 0,
    size: int = 1024,
    counts: Mapping[str, int] | None = None,
    progress: bool = True,
    workers: int | None = None,
) -> Path:
    """Render SynthGrid into `data_root/grid` in the layout of MVTec AD, whole or not at all.

    Beside MVTec AD's folders there is `clean/<defect>/NNN.png`, each defective scene without its defect. Work is done
    in a temporary folder that is renamed at the end; a lock makes a second process wait for the first. Pixel values
    depend on seed and size only; the bytes of the files also on the zlib build.

    Args:
        data_root: folder of category folders; made if missing.
        seed: of the whole set, >= 0.
        size: side in pixels, >= 64.
        counts: images per "train/good", "test/good", "test/<defect>"; missing keys mean 0. Default `COUNTS`.
        progress: show a progress bar.
        workers: threads (numpy and the PNG writer release the interpreter lock). Default: all cores, at most 8.

    Returns:
        The folder `data_root/grid`. If it already holds this very set, nothing is done.

    Raises:
        UserError: `data_root/grid` holds anything else. Nothing is touched.
        ValueError: seed, size or counts are out of range.
    """
    data_root = Path(data_root)
    counts = {name: n for name, n in (COUNTS if counts is None else counts).items() if n}
    if not set(counts) <= set(COUNTS) or any(n < 0 for n in counts.values()) or seed < 0 or size < 64:
        raise ValueError(f"need seed >= 0, size >= 64, counts >= 0 of {sorted(COUNTS)}; got {seed}, {size}, {counts}")
    settings = {"name": "SynthGrid", "version": VERSION, "seed": seed, "size": size}
    settings["counts"] = dict(sorted(counts.items()))
    target = data_root / "grid"
    if _is_complete(target, settings):
        return target
    data_root.mkdir(parents=True, exist_ok=True)
    with _lock(data_root / ".synthgrid.lock"):
        if _is_complete(target, settings):  # another process has just made it
            return target
        for leftover in data_root.glob(".synthgrid-*"):  # ours alone while we hold the lock: their makers are dead
            shutil.rmtree(leftover)
        temporary = Path(tempfile.mkdtemp(prefix=".synthgrid-", dir=data_root))
        try:
            _render_all(temporary, settings, progress, workers)
            (temporary / MARKER).write_text(json.dumps(settings, indent=2) + "\n")
            temporary.chmod(0o755)
            if not _is_complete(target, settings):
                temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return target


def _is_complete(target: Path, settings: dict) -> bool:
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


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system frees it when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _render_all(folder: Path, settings: dict, progress: bool, workers: int | None) -> None:
    jobs = [(name, index) for name, n in settings["counts"].items() for index in range(n)]
    pool = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8))
    try:
        done = pool.map(lambda job: _write_scene(folder, *job, settings["seed"], settings["size"]), jobs)
        for _ in tqdm(done, total=len(jobs), desc="SynthGrid", unit="image", disable=not progress):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _write_scene(folder: Path, name: str, index: int, seed: int, size: int) -> None:
    split, kind = name.split("/")
    scene = render(kind, index, seed=seed, size=size, split=split)
    files = {f"{name}/{index:03d}.png": scene.image}
    if kind != "good":
        files[f"ground_truth/{kind}/{index:03d}_mask.png"] = scene.mask
        files[f"clean/{kind}/{index:03d}.png"] = scene.clean
    for path, pixels in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / path, compress_level=1)
