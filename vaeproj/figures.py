"""Every figure and animation of the tutorial: each a function of arrays, found by its name, drawn the same each time.

`save` keeps a figure's arrays beside its picture, so `redraw` needs neither model nor data and gives the same bytes.
"""

from __future__ import annotations

import base64
import inspect
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import imageio.v3 as iio
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from .config import UserError

STYLE = Path(__file__).with_name("vaeproj.mplstyle")
CHANGE = "magma"  # colour map of magnitudes: residuals, changes, anomaly maps
SIGNED = "RdBu_r"  # of signed quantities
FRAME_MS = 60  # of the animation
MOST_FRAMES = 36
PANEL = 256  # side of one of its three pictures, about, pixels
HOLD_MS = 1200  # the last frame, before it starts again

FIGURES: dict[str, Callable[..., Figure]] = {}


def figure(function: Callable[..., Figure]) -> Callable[..., Figure]:
    """Register a figure under its function's name."""
    FIGURES[function.__name__] = function
    return function


# --- saving and redrawing


def save(name: str, folder: Path, fingerprint: str, **arrays: object) -> Figure:
    """Draw a figure from ``arrays`` and write ``<name>.png``, ``.pdf`` and the arrays, ``<name>.npz``, into ``folder``.

    The picture's metadata names the run by its fingerprint. Pictures are kept as float16, finer than the 256 grey levels
    they came from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored = {key: _compact(np.asarray(value)) for key, value in arrays.items()}
    np.savez_compressed(folder / f"{name}.npz", fingerprint=np.asarray(fingerprint), **stored)  # type: ignore[arg-type]
    return redraw(name, folder)


def redraw(name: str, folder: Path) -> Figure:
    """Draw a figure again from the arrays that `save` kept, to the same bytes.

    Raises:
        UserError: no figure of that name, or the run did not make it.
    """
    if name not in FIGURES:
        raise UserError(f"There is no figure '{name}'; the names are {', '.join(sorted(FIGURES))}.")
    path = folder / f"{name}.npz"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.npz"))) or "none"
        raise UserError(f"{folder} has no figure '{name}' (there: {there}): run the notebook that makes it first.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        fingerprint = str(arrays.pop("fingerprint"))
        inspect.signature(FIGURES[name]).bind(**arrays)
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is cut short or of another version ({error}): run the notebook again.") from error
    with matplotlib.style.context(STYLE):
        drawn = FIGURES[name](**arrays)
        drawn.savefig(path.with_suffix(".png"), metadata={"Software": None, "Description": f"vaeproj {name} {fingerprint}"})
        drawn.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None, "Subject": f"vaeproj {name} {fingerprint}"})
    return drawn


def as_jpeg(drawn: Figure, dpi: int = 88) -> bytes:
    """The figure as a small picture for a notebook's output."""
    buffer = io.BytesIO()
    with matplotlib.style.context(STYLE):
        drawn.savefig(buffer, format="jpeg", dpi=dpi, pil_kwargs={"quality": 82})
    return buffer.getvalue()


def _compact(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16) if array.dtype.kind == "f" and array.ndim > 2 else array


# --- building blocks


def grid(
    rows: Sequence[np.ndarray | Sequence[np.ndarray]],
    row_labels: Sequence[str] | np.ndarray,
    column_labels: Sequence[str] | np.ndarray = (),
    *,
    maps: Sequence[str] = (),
    outlines: Sequence[np.ndarray] | np.ndarray = (),
    side: float = 1.15,
) -> Figure:
    """Pictures in rows and columns.

    Args:
        rows: arrays [H, W] or [C, H, W]; grey ones are drawn over [0, 1], the others over their row's own range.
        row_labels, column_labels: text left of the rows and above the columns.
        maps: colour map of each row; grey where missing.
        outlines: for each column a mask [H, W] whose border is drawn in the first row.
        side: of one picture, inches.
    """
    columns = max(len(row) for row in rows)
    drawn = Figure(figsize=(side * columns + 0.35, side * len(rows) * 1.04 + 0.3 * bool(len(column_labels))))
    axes = drawn.subplots(len(rows), columns, squeeze=False)
    for r, row in enumerate(rows):
        cmap = maps[r] if r < len(maps) else "gray"
        low, high = _range(row, cmap)
        for c in range(columns):
            bare(axes[r, c])
            if c < len(row):
                axes[r, c].imshow(_displayable(row[c]), cmap=cmap, vmin=low, vmax=high)
        axes[r, 0].set_ylabel(row_labels[r])
    for c, label in enumerate(column_labels):
        axes[0, c].set_title(str(label).replace("/", "\n"), fontsize=7)
    for c, mask in enumerate(outlines):
        if mask.any():
            axes[0, c].contour(mask.astype(float), [0.5], colors="#E69F00", linewidths=0.9)
    return drawn


def bare(axes: Axes) -> None:
    """An axes for a picture: no ticks, no frame, no grid."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _displayable(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image, np.float32)
    return image if image.ndim == 2 else image[0] if len(image) == 1 else image.transpose(1, 2, 0).clip(0, 1)


def _root(maps: np.ndarray) -> np.ndarray:
    """Square roots: maps of very different height share a colour scale, and the weak ones still show."""
    return np.sqrt(np.maximum(maps, 0))


def _range(row: np.ndarray | Sequence[np.ndarray], cmap: str) -> tuple[float, float]:
    if cmap == "gray":
        return 0.0, 1.0
    top = max(float(np.abs(np.asarray(image, np.float32)).max()) for image in row) or 1.0
    return (-top, top) if cmap == SIGNED else (0.0, top)


# --- 01 data exploration


@figure
def dataset(images: np.ndarray, masks: np.ndarray, titles: np.ndarray) -> Figure:
    """Whole images, good and of every defect, their masks outlined: images [N, C, H, W] in [0, 1], masks [N, H, W]."""
    half = (len(images) + 1) // 2
    drawn = Figure(figsize=(1.75 * half, 3.8))
    axes = drawn.subplots(2, half, squeeze=False).ravel()
    for axis in axes:
        bare(axis)
    for axis, image, mask, title in zip(axes, images, masks, titles, strict=False):
        axis.imshow(_displayable(image), vmin=0, vmax=1)
        axis.set_title(str(title))
        if mask.any():
            axis.contour(mask.astype(float), [0.5], colors="#E69F00", linewidths=1)
    return drawn


@figure
def crops(plain: np.ndarray, augmented: np.ndarray) -> Figure:
    """Random crops [n, C, c, c] without and with the augmentations."""
    return grid([plain, augmented], ["random crop", "+ flips, turns"])


@figure
def statistics(
    grey_levels: np.ndarray, normal: np.ndarray, defective: np.ndarray, defect_area: np.ndarray, defects: np.ndarray
) -> Figure:
    """Grey-level densities of normal and defective pixels, and the share of the image each defect covers."""
    drawn = Figure(figsize=(7, 2.4))
    left, right = drawn.subplots(1, 2)
    left.plot(grey_levels, normal, label="normal pixels")
    left.plot(grey_levels, defective, label="pixels inside masks")
    left.set(xlabel="grey level", ylabel="density", ylim=(0, None))
    left.legend()
    names = sorted(set(defects.tolist()))
    for i, name in enumerate(names):
        area = 100 * defect_area[defects == name]
        right.plot(area, np.full(len(area), i), "o", ms=3.5, alpha=0.7, color="C0")
    right.set(yticks=range(len(names)), yticklabels=names, xlabel="mask area, % of the image", xlim=(0, None))
    return drawn


# --- 02 VAE training


@figure
def learning_curve(history: np.ndarray) -> Figure:
    """Loss terms per crop [steps, 2] (binary cross-entropy, KL), nats, raw and as a running mean."""
    drawn = Figure(figsize=(7, 2.4))
    width = max(1, len(history) // 40)
    for axis, term, name in zip(drawn.subplots(1, 2), history.T, ("binary cross-entropy", "KL divergence"), strict=True):
        axis.plot(np.arange(1, len(term) + 1), term, lw=0.5, alpha=0.4, color="C0")
        mean = np.convolve(term, np.ones(width) / width, "valid")
        axis.plot(np.arange(len(mean)) + (width + 1) / 2, mean, color="C0")
        low, high = np.quantile(term[len(term) // 20 :], [0, 1])
        axis.set(xlabel="step", ylabel="nats per crop", title=name, ylim=(low - 0.05 * (high - low), high + 0.1 * (high - low)))
    return drawn


@figure
def snapshots(probe: np.ndarray, pictures: np.ndarray, steps: np.ndarray) -> Figure:
    """The probe crops [n, C, c, c] over their reconstructions after growing numbers of steps [K, n, C, c, c]."""
    labels = ["crop"] + [f"step {s}" for s in steps]
    return grid([probe, *pictures], labels, side=0.95)


@figure
def samples(pictures: np.ndarray) -> Figure:
    """Pictures decoded from z ~ N(0, 1), [n, C, c, c]."""
    half = len(pictures) // 2
    return grid([pictures[:half], pictures[half:]], ["prior", "samples"])


# --- 03 baseline reconstruction


@figure
def reconstruction(originals: np.ndarray, pictures: np.ndarray) -> Figure:
    """The article's first figure: originals over VAE reconstructions, [n, C, c, c]."""
    return grid([originals, pictures], ["original", "VAE"])


@figure
def residual(images: np.ndarray, pictures: np.ndarray, masks: np.ndarray, titles: np.ndarray) -> Figure:
    """Defects, their reconstructions and what is left: the defect, and every edge of the mesh."""
    left = np.abs(images.astype(np.float32) - pictures.astype(np.float32)).mean(1)
    return grid([images, pictures, left], ["image", "VAE", "|x - f(x)|"], titles, maps=["gray", "gray", CHANGE], outlines=masks)


@figure
def sharpness(frequency: np.ndarray, image: np.ndarray, picture: np.ndarray) -> Figure:
    """Power at each spatial frequency of normal crops and of their reconstructions: blur is the missing tail."""
    drawn = Figure(figsize=(4.5, 2.5))
    axis = drawn.subplots()
    axis.semilogy(frequency, image, label="image")
    axis.semilogy(frequency, picture, label="VAE reconstruction")
    axis.set(xlabel="spatial frequency, cycles per pixel", ylabel="power")
    axis.legend()
    return drawn


# --- 04 iterative projection


@figure
def energy_curves(reconstruction_energy: np.ndarray, distance: np.ndarray, lam: np.ndarray, names: np.ndarray) -> Figure:
    """The energy's two terms along the iterations, [T + 1, B]."""
    drawn = Figure(figsize=(7, 2.5))
    left, right = drawn.subplots(1, 2)
    left.plot(reconstruction_energy, label=[str(n) for n in names])
    right.plot(float(lam) * distance)
    left.set(xlabel="iteration t", ylabel="$L_r(x_t)$", ylim=(0, None))
    right.set(xlabel="iteration t", ylabel=r"$\lambda\,|x_t - x_0|_1$", ylim=(0, None))
    left.legend()
    return drawn


@figure
def iteration_strip(frames: np.ndarray, pictures: np.ndarray, iterations: np.ndarray) -> Figure:
    """x_t, f(x_t) and the change so far at some iterations, each [K, C, c, c]."""
    change = np.abs(frames.astype(np.float32) - frames[0].astype(np.float32)).mean(1)
    titles = [f"t = {t}" for t in iterations]
    return grid([frames, pictures, change], ["$x_t$", "$f(x_t)$", "$|x_t - x_0|$"], titles, maps=["gray", "gray", CHANGE])


@figure
def soft_mask(image: np.ndarray, picture: np.ndarray, gradient: np.ndarray) -> Figure:
    """One step taken apart: image, reconstruction, squared residual, gradient, and their product, each [C, c, c]."""
    image, picture, gradient = (a.astype(np.float32) for a in (image, picture, gradient))
    mask = (image - picture) ** 2
    parts = [image, picture, mask, gradient, mask * gradient]
    titles = ["$x_0$", "$f(x_0)$", "mask $(x_0 - f(x_0))^2$", r"gradient $\nabla E$", "mask x gradient"]
    drawn = Figure(figsize=(8, 1.9))
    for axis, part, title, cmap in zip(
        drawn.subplots(1, 5), parts, titles, ["gray", "gray", CHANGE, SIGNED, SIGNED], strict=True
    ):
        part = part.mean(0)
        low, high = _range([np.clip(part, *np.quantile(part, [0.002, 0.998]))], cmap)
        axis.imshow(part, cmap=cmap, vmin=low, vmax=high)
        bare(axis)
        axis.set_title(title)
    return drawn


@figure
def gradient_paths(images: np.ndarray, detached: np.ndarray, full: np.ndarray, masks: np.ndarray, titles: np.ndarray) -> Figure:
    """What the detached and the full gradient make of the same crops, and what each changed."""
    images, detached, full = (a.astype(np.float32) for a in (images, detached, full))
    rows = [images, detached, full, np.abs(detached - images).mean(1), np.abs(full - images).mean(1)]
    labels = ["image", "detached", "full", "change,\ndetached", "change,\nfull"]
    return grid(rows, labels, titles, maps=["gray"] * 3 + [CHANGE] * 2, outlines=masks)


@figure
def lam_alpha(pictures: np.ndarray, alphas: np.ndarray, lams: np.ndarray) -> Figure:
    """The projected crop for each alpha (columns) and lam (rows), [L, A, C, c, c]."""
    return grid(list(pictures), [rf"$\lambda$ = {lam:g}" for lam in lams], [rf"$\alpha$ = {a:g}" for a in alphas])


@figure
def article_bugs(images: np.ndarray, changes: np.ndarray, names: np.ndarray, titles: np.ndarray) -> Figure:
    """What the article's loop changes, |x_T - x_0| [V, n, c, c], with each of its bugs by itself; one colour scale a row."""
    maps = ["gray", *[CHANGE] * len(changes)]
    return grid([images, *map(_root, changes)], ["image", *names.tolist()], titles, maps=maps, side=1.0)


# --- 05 figures


@figure
def comparison(
    images: np.ndarray, pictures: np.ndarray, projections: np.ndarray, masks: np.ndarray, titles: np.ndarray
) -> Figure:
    """The article's second figure: test image, VAE reconstruction, projection, [n, C, c, c] each."""
    return grid([images, pictures, projections], ["test image", "VAE", "projection"], titles, outlines=masks, side=1.3)


@figure
def restoration(names: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> Figure:
    """PSNR to the scene without its defect, inside and outside the mask, [methods, images] each, dB.

    The first method is the test image: outside the mask it is nearly the truth itself, far above the others, and left out.
    """
    drawn = Figure(figsize=(7, 2.5))
    left, right = drawn.subplots(1, 2)
    panels = ((left, names, inside, "inside the mask"), (right, names[1:], outside[1:], "outside the mask"))
    for axis, methods, values, title in panels:
        finite = [row[np.isfinite(row)] for row in values]  # infinite where a picture is the truth itself
        at = range(1, len(methods) + 1)
        axis.boxplot(finite, widths=0.5, medianprops={"color": "C1"}, flierprops={"ms": 3})
        axis.plot(at, [row.mean() if len(row) else np.nan for row in finite], "D", ms=4, label="mean")
        axis.set(xticks=at, xticklabels=methods.tolist(), ylabel="PSNR, dB", title=title)
    left.legend()
    return drawn


# --- 06 localization benchmark


@figure
def roc_pro(fpr: np.ndarray, recall: np.ndarray, pro: np.ndarray, names: np.ndarray) -> Figure:
    """ROC and PRO curves of the smoothed maps, [methods, points] each."""
    drawn = Figure(figsize=(7.5, 3))
    for axis, values, label in zip(drawn.subplots(1, 2), (recall, pro), ("recall", "per-region overlap"), strict=True):
        for x, y, name in zip(fpr, values, names, strict=True):
            axis.plot(x, y, label=str(name))
        axis.set(xlabel="false-positive rate", ylabel=label, xlim=(0, 0.3), ylim=(0, 1.01))
    axis.legend(loc="lower right")
    return drawn


@figure
def gallery(images: np.ndarray, masks: np.ndarray, residuals: np.ndarray, maps: np.ndarray, titles: np.ndarray) -> Figure:
    """Whole images with their masks outlined, the VAE residual's map and the projection's, one column each."""
    rows = [images, _root(residuals), _root(maps)]
    labels = ["image", "VAE residual", "projection"]
    return grid(rows, labels, titles, maps=["gray", CHANGE, CHANGE], outlines=masks, side=1.35)


@figure
def cases(images: np.ndarray, masks: np.ndarray, maps: np.ndarray, titles: np.ndarray) -> Figure:
    """The images localized best and worst, with their anomaly maps."""
    return grid([images, _root(maps)], ["image", "anomaly map"], titles, maps=["gray", CHANGE], outlines=masks, side=1.5)


# --- 07 ablations


@figure
def ablation(**curves: np.ndarray) -> Figure:
    """Pixel AUROC, AUPRO and AP along each hyper-parameter; a dotted line marks the preset's own value.

    Args:
        curves: for each hyper-parameter ``name`` [3, K], its ``name_values`` [K] as text and ``name_own``, an index.
    """
    names = [key for key in curves if f"{key}_values" in curves]
    columns = 4
    rows = -(-len(names) // columns)
    drawn = Figure(figsize=(2.0 * columns, 1.75 * rows))
    axes = drawn.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes, names, strict=False):
        values = curves[f"{name}_values"]
        axis.plot(np.arange(len(values)), curves[name].T, "o-", ms=3)
        axis.axvline(int(curves[f"{name}_own"]), color="0.5", ls=":", lw=1)
        axis.set(title=name, xticks=range(len(values)))
        axis.set_xticklabels(values.tolist(), fontsize=7)
    axes[0].legend(["AUROC", "AUPRO", "AP"], fontsize=7)
    return drawn


# --- animation


def save_animation(frames: np.ndarray, image: np.ndarray, picture: np.ndarray, stem: Path) -> list[Path]:
    """The projection under way as GIF, WebP and an HTML player with a play bar, beside the image and its reconstruction.

    Args:
        frames: x_0 ... x_T, [T + 1, C, c, c] in [0, 1].
        image, picture: x_0 and f(x_0), [C, c, c].
        stem: path without ending.

    Returns:
        The three files.
    """
    canvas = [_panel(image, picture, frame, f"projection, t = {t}") for t, frame in enumerate(frames)]
    # Every iteration of a short descent; of a long one the early ones, where most of it happens, more densely.
    spaced = np.geomspace(1, len(canvas), MOST_FRAMES).round().astype(int) - 1
    shown = np.unique(spaced).tolist() if len(canvas) > MOST_FRAMES else list(range(len(canvas)))
    durations = [FRAME_MS] * (len(shown) - 1) + [HOLD_MS]
    moving = np.stack([canvas[t] for t in shown])
    gif, webp, html = (stem.with_suffix(suffix) for suffix in (".gif", ".webp", ".html"))
    # A GIF packs even areas well and noise badly: 64 levels look the same and take well under half the bytes.
    iio.imwrite(gif, (moving[..., 0] if len(image) == 1 else moving) & 0xFC, duration=durations, loop=0)
    iio.imwrite(webp, moving, duration=durations, loop=0, quality=80)
    html.write_text(_player([canvas[t] for t in shown], shown))
    return [gif, webp, html]


def _panel(image: np.ndarray, picture: np.ndarray, frame: np.ndarray, caption: str) -> np.ndarray:
    """uint8 [h, w, 3]: three pictures side by side, a caption over each."""
    pictures = [np.atleast_3d((_displayable(a).clip(0, 1) * 255).round().astype(np.uint8)) for a in (image, picture, frame)]
    side, gap, head = pictures[0].shape[0] * max(1, PANEL // pictures[0].shape[0]), 4, 18
    sheet = Image.new("RGB", (3 * side + 2 * gap, side + head), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (pixels, text) in enumerate(zip(pictures, ("test image", "VAE reconstruction", caption), strict=True)):
        tile = Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy())
        sheet.paste(tile.resize((side, side), Image.Resampling.NEAREST), (i * (side + gap), head))
        draw.text((i * (side + gap) + 2, 3), text, fill="black")
    return np.asarray(sheet)


def _player(canvas: Sequence[np.ndarray], iterations: Sequence[int]) -> str:
    """One HTML file that plays the frames offline."""
    encoded = []
    for pixels in canvas:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "WEBP", quality=85)
        encoded.append("data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode())
    data = json.dumps({"frames": encoded, "t": [int(t) for t in iterations]})
    return PLAYER.replace("__DATA__", data).replace("__LAST__", str(len(encoded) - 1)).replace("__MS__", str(FRAME_MS))


PLAYER = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Projection, iteration by iteration</title>
<style>
  body { font: 15px system-ui, sans-serif; max-width: 800px; margin: 2em auto; padding: 0 1em; color: #222 }
  img { width: 100%; image-rendering: pixelated } .bar { display: flex; gap: 1em; align-items: center }
  input { flex: 1 } button { width: 5em; padding: .4em } output { width: 5em; text-align: right }
</style>
<h1>Projection, iteration by iteration</h1>
<img id="view" alt="test image, VAE reconstruction and projection">
<div class="bar"><button id="play">Pause</button>
<input id="bar" type="range" min="0" max="__LAST__" value="0" aria-label="iteration"><output id="t"></output></div>
<p>Left the test image, in the middle what the VAE makes of it, right the image as gradient descent on its pixels moves it.</p>
<script>
const data = __DATA__;
const [view, bar, play, t] = ["view", "bar", "play", "t"].map(id => document.getElementById(id));
let timer = null;
function show(i) { bar.value = i; view.src = data.frames[i]; t.textContent = "t = " + data.t[i]; }
function stop() { clearInterval(timer); timer = null; play.textContent = "Play"; }
function start() {
  play.textContent = "Pause";
  if (+bar.value === +bar.max) show(0);
  timer = setInterval(() => +bar.value < +bar.max ? show(+bar.value + 1) : stop(), __MS__);
}
play.onclick = () => timer ? stop() : start();
bar.oninput = () => { stop(); show(+bar.value); };
show(0); start();
</script></html>
"""
