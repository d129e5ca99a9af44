"""SynthGrid's normal scene: expanded metal mesh before a bright background, as noise-free grey levels.
Wavy strands run along the lattice coordinate `u` and are stacked along `v`, neighbours in antiphase: crest meets trough
and lens-shaped openings remain. One strand is shaded once into a small table; each pixel looks up the two strands around
it. Lengths are fractions of the image side, grey levels lie in 0..255. Full-size arithmetic is float32, made of IEEE-exact
operations and table look-ups: pixel values do not depend on the number of threads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Measured on the real images (period and spacing: 170.5 and 51.2 pixels of 1024).
PERIOD = 0.1665  # one wave of a strand
SPACING = 0.0500  # from one strand to the next
AMPLITUDE = 0.0168  # half the height of the wave
ROUNDNESS = 0.02  # third harmonic of the wave: 1/9 would be a triangle, negative is flatter than a cosine
HALF_WIDTH = 0.0100  # of a strand
TABLE = 512  # samples of the strand texture along and across


@dataclass(frozen=True)
class Mesh:
    """What the radiance of a scene is computed from; fields are float32 [size, size] unless noted."""

    u: np.ndarray  # waves along the strands
    v: np.ndarray  # strands across
    background: np.ndarray  # grey levels behind the mesh
    light: np.ndarray  # illumination of the metal, about 1
    grain: np.ndarray  # fine texture, about 0 +- 1
    strand: np.ndarray  # [4, TABLE, TABLE]: distance outside the strand, grey, sparkle, share of light it lets pass
    offsets: np.ndarray  # [64] displacement of single strands, in spacings
    web: float  # openings narrower than this are filled by metal
    edge_grey: float  # grey of webs and of strand edges
    lamp: np.ndarray  # [2] unit vector (x, y) towards the light, in the image plane
    softness: float  # width of an edge


@dataclass(frozen=True)
class Cut:
    """A missing piece of one strand."""

    strand: int
    centre: float  # in waves along the strand
    half_length: float  # in waves


def draw_mesh(rng: np.random.Generator, size: int) -> tuple[Mesh, np.ndarray]:
    """Draw geometry, lighting and texture of one scene; also returns its radiance."""
    x = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    y = x[:, None]
    turn = rng.uniform(0, math.pi)
    cos, sin = math.cos(turn), math.sin(turn)  # the lattice: turned, tilted, a little wavy
    scale = rng.uniform(0.945, 1.025)
    tilt = rng.normal(0, 0.012, 2).astype(np.float32)
    depth = 1 + tilt[0] * x + tilt[1] * y
    wobble = 0.0018 * rng.uniform(0.3, 1)
    along = (cos * x + sin * y) / depth + _field(rng, 5, size, wobble)
    across = (cos * y - sin * x) / depth + _field(rng, 5, size, wobble)
    u = along * (1 / (PERIOD * scale)) + rng.uniform(0, 1)
    v = across * (1 / (SPACING * scale)) + rng.uniform(0, 2)
    gloss = rng.beta(0.6, 0.6)  # 0: dull flat light, 1: bright back light with soft shadows
    lamp_angle = rng.uniform(0, 2 * math.pi)
    lamp = np.array([math.cos(lamp_angle), math.sin(lamp_angle)])
    slope = (rng.uniform(0, 0.16) * lamp).astype(np.float32)
    light = 1 + slope[0] * x + slope[1] * y - rng.uniform(0, 0.18) * (x * x + y * y)
    mottle = sum(_field(rng, cells, size, 0.013 + 0.013 * gloss, rng.uniform(1, 2.5)) for cells in (28, 64, 150))
    background = (156 + 88 * gloss + rng.normal(0, 4)) * light * (1 + mottle)
    for _ in range(rng.poisson(2)):  # dust is normal: dark specks of a few pixels
        row, column = rng.integers(0, size, 2)
        radius = rng.uniform(0.0015, 0.003) * size
        reach = int(3 * radius) + 1
        rows, columns = np.ix_(*[np.arange(max(at - reach, 0), min(at + reach, size)) for at in (row, column)])
        distance = ((rows - row) ** 2 + (columns - column) ** 2) / radius**2
        background[rows, columns] *= (1 - rng.uniform(0.1, 0.35) / (1 + distance**2)).astype(np.float32)
    edge_grey = rng.uniform(45, 56) - 6 * gloss
    grain = _field(rng, 200, size, 1)
    strand = _strand(rng, turn, lamp, edge_grey, gloss)
    offsets = rng.normal(0, 0.012, 64).astype(np.float32)
    web = rng.uniform(0.004, 0.008)
    mesh = Mesh(u, v, background, light, grain, strand, offsets, web, edge_grey, lamp, softness=max(0.0055, 1.2 / size))
    return mesh, radiance(mesh)


def _field(rng: np.random.Generator, cells: int, size: int, std: float, stretch: float = 1) -> np.ndarray:
    """Random field, float32 [size, size]: cubic B-spline of white noise, knots side/cells apart, along x stretch times that."""
    down, down_weights = _spline(cells, size)
    right, right_weights = _spline(max(round(cells / stretch), 1), size)
    knots = rng.standard_normal((down[-1] + 4, right[-1] + 4), dtype=np.float32) * std
    rows = sum(down_weights[i][:, None] * knots[down + i] for i in range(4))
    return sum(right_weights[i] * rows[:, right + i] for i in range(4))


def _spline(cells: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """First of the four knots around each pixel [size], and their weights [4, size], scaled to unit variance."""
    place = np.arange(size) * (cells / size)
    t = place % 1
    weights = np.array([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    return place.astype(int), (weights / np.sqrt((weights**2).sum(0))).astype(np.float32)


def wave(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre line of an even strand and its slope at phase u: a rounded triangle wave of height +-AMPLITUDE."""
    phase = 2 * np.pi * u
    scale = AMPLITUDE / (1 + ROUNDNESS)
    height = scale * (np.cos(phase) + ROUNDNESS * np.cos(3 * phase))
    slope = -2 * np.pi * scale / PERIOD * (np.sin(phase) + 3 * ROUNDNESS * np.sin(3 * phase))
    return height, slope


def smooth_step(value: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below low, 1 above high, smooth between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _strand(rng: np.random.Generator, turn: float, lamp: np.ndarray, dark: float, gloss: float) -> np.ndarray:
    """Texture of one strand over phase and offset from its mean line in -1..1 spacings: see `Mesh.strand`."""
    q = (np.arange(TABLE)[None, :] + 0.5) / TABLE * 2 - 1
    height, slope = wave((np.arange(TABLE)[:, None] + 0.5) / TABLE)
    cosine = 1 / np.sqrt(1 + slope**2)
    crest = height / AMPLITUDE  # +1 where the strand meets its upper neighbour, -1 the lower
    half_width = HALF_WIDTH * rng.uniform(0.93, 1.07) * (1 + rng.uniform(-0.12, 0.12) * crest)
    s = (q * SPACING - height) * cosine / half_width  # -1..1 across the strand

    # The normal of the strand in the image plane decides which flank faces the lamp and which the camera sees.
    normal_x = -slope * cosine * math.cos(turn) - cosine * math.sin(turn)
    normal_y = -slope * cosine * math.sin(turn) + cosine * math.cos(turn)
    lit = normal_x * lamp[0] + normal_y * lamp[1]  # -1..1: how much the flank at s = 1 faces the lamp
    view = rng.uniform(0, 2 * math.pi)
    seen = rng.uniform(0.05, 0.30) * (normal_x * math.cos(view) + normal_y * math.sin(view))
    flank = (s - seen) / rng.uniform(0.55, 0.75)  # -1..1 across the face

    # A flat face, flanks that fall off to grey `dark`, a bright rim.
    steep = np.maximum(smooth_step(np.abs(flank), 0.5, 1.35), smooth_step(np.abs(s), 0.5, 1.1)) * np.sign(flank)
    grey = (rng.uniform(90, 108) - 18 * gloss) * (1 + rng.uniform(0.10, 0.35) * np.clip(flank, -1, 1) * lit)
    grey = grey * (1 + rng.uniform(0, 0.15) * lit + rng.normal(0, 0.06) * crest)
    grey = grey + (dark - grey) * np.abs(steep)
    grey = grey + rng.uniform(4, 22) * np.maximum(steep * lit, 0)
    rim = np.exp(-(((flank - np.sign(lit) * 0.85) / rng.uniform(0.2, 0.35)) ** 2))
    grey = grey + (rng.uniform(5, 25) + 25 * gloss) * rim * smooth_step(np.abs(lit), 0.2, 1.0) * (0.4 + 0.6 * np.abs(crest))
    contact = smooth_step(s * np.sign(crest), 0.35, 1.0) * smooth_step(np.abs(crest), 0.55, 0.95)
    grey = grey + (dark - grey) * contact  # a dark line where strands meet
    worn = smooth_step(crest * rng.choice([-1, 1]), 0.5, 1)  # rough where the sheet was sheared
    grey = grey + rng.normal(0, 9) * worn * np.exp(-((flank / 0.6) ** 4))
    sparkle = np.exp(-((flank / 0.8) ** 2)) * (3.5 + rng.uniform(1, 9) * worn)

    # Soft contact shadow on the background; it fades before the table ends, where a pixel changes its pair of strands.
    outside = (np.abs(s) - 1) * half_width
    shadow = (0.18 + 0.26 * gloss) / (1 + (np.maximum(outside, 0) / (0.006 + 0.007 * gloss)) ** 2)
    passed = 1 - shadow * (1 - smooth_step(np.abs(q), 0.45, 1))
    return np.stack(np.broadcast_arrays(outside, grey, sparkle, passed)).astype(np.float32)


def radiance(mesh: Mesh, cuts: Sequence[Cut] = ()) -> np.ndarray:
    """Noise-free grey levels of the scene, float32 [size, size], with the cut pieces of strands missing."""
    row = np.floor(mesh.v)
    strand = np.stack([row, row + 1]).astype(np.int32)  # the two around each pixel: [2, size, size], as what follows
    along = ((mesh.u + 0.5 * (strand & 1).astype(np.float32)) * TABLE).astype(np.int32) & (TABLE - 1)
    across = np.stack([mesh.v - row, mesh.v - row - 1]) - mesh.offsets[strand & 63]
    across = np.clip(((across + 1) * (TABLE / 2)).astype(np.int32), 0, TABLE - 1)
    outside, metal, sparkle, passed = mesh.strand.reshape(4, -1).take(along * TABLE + across, axis=1)
    metal = (metal + sparkle * mesh.grain) * mesh.light
    for cut in cuts:
        missing = (cut.half_length - np.abs(mesh.u - cut.centre)) * PERIOD
        here = (strand == cut.strand) & (missing > 0)
        outside = np.where(here, np.maximum(outside, missing), outside)
        passed = np.where(here, passed + np.minimum(missing * 100, 1) * (np.maximum(passed, 0.95) - passed), passed)
    gap = np.maximum(outside, 0).sum(0)
    grey = mesh.background * passed[0] * passed[1]
    sharpness = 1 / mesh.softness
    grey += np.clip((mesh.web - gap) * sharpness * 0.5, 0, 1) * (mesh.edge_grey - grey)
    for i in range(2):
        grey += np.clip(0.5 - outside[i] * sharpness, 0, 1) * (metal[i] - grey)
    return grey
