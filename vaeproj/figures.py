"""Every figure of the tutorial: each a function of arrays, found by its name, drawn the same each time.
`save` keeps a figure's arrays beside its picture, so `redraw` needs neither model nor data and gives the same bytes.
"""

import inspect
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator
from scipy.ndimage import binary_dilation

from .config import UserError

STYLE = Path(__file__).with_name("vaeproj.mplstyle")
CHANGE = "magma"  # colour map of magnitudes: residuals, changes, anomaly maps
SIGNED = "RdBu_r"  # of signed quantities
OUTLINE = "#E69F00"  # of masks
MAGMA = matplotlib.colormaps[CHANGE](np.arange(256), bytes=True)[:, :3]  # for pictures that matplotlib does not draw
SANS = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
WIDTH = 5.6  # of plots, inches: on a phone they shrink to two thirds, and must still be read
Array = np.ndarray
Arrays = Sequence[Array] | Array
Labels = Sequence[str] | Array


# --- saving and redrawing
def save(name: str, folder: Path, fingerprint: str, **arrays: object) -> Figure:
    """Draw a figure from ``arrays`` and write ``<name>.png``, ``.pdf`` and the arrays, ``<name>.npz``, into ``folder``.
    The metadata name the run by its fingerprint. Pictures are kept as float16, finer than the 256 grey levels they came from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = {key: np.asarray(value) for key, value in arrays.items()}
    stored = {key: a.astype(np.float16) if a.dtype.kind == "f" and a.ndim > 2 else a for key, a in given.items()}
    np.savez_compressed(folder / f"{name}.npz", fingerprint=np.asarray(fingerprint), **stored)  # type: ignore[arg-type]
    return redraw(name, folder)


def redraw(name: str, folder: Path) -> Figure:
    """Draw a figure again, to the same bytes, from what `save` kept; a `UserError` for no such figure, or none in the run."""
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


def as_jpeg(drawn: Figure, dpi: int = 100) -> bytes:
    """The figure as a small picture for a notebook's output."""
    buffer = io.BytesIO()
    with matplotlib.style.context(STYLE):
        drawn.savefig(buffer, format="jpeg", dpi=dpi, pil_kwargs={"quality": 62})
    return buffer.getvalue()


# --- building blocks
@dataclass(frozen=True)
class Rows:
    """Rows of a `grid` that share their colours, and a bar of them at their right."""

    rows: Arrays
    label: str = "grey levels"  # of the bar; grey levels: black 0, white 1
    root: bool = False  # colours follow the square root: of very different maps the weak ones still show
    top: float = 0.0  # value of the brightest colour; 0: the largest magnitude in the rows, 1 if there is none
    cmap: str = CHANGE


def grid(
    rows: Arrays, row_labels: Labels, column_labels: Labels = (), *scaled: Rows, outlines: Arrays = (), side: float = 0.95
) -> Figure:
    """Pictures in rows and columns.

    Args:
        rows: arrays [H, W] or [C, H, W], drawn in grey or colour over [0, 1].
        row_labels, column_labels: text left of all rows and above the columns.
        scaled: the rows below them, drawn on colour scales.
        outlines: for each column a mask [H, W]; a line around it, beside and not over it, is drawn in the first row.
        side: of one picture, inches.
    """
    columns = max(len(row) for row in rows)
    titles = [_worded(label) for label in column_labels]
    height = side * len(row_labels) * 1.05 + max((0.14 * (1 + title.count("\n")) + 0.1 for title in titles), default=0)
    drawn = Figure(figsize=(side * columns + 0.4 + 0.65 * bool(scaled), height))
    places = drawn.add_gridspec(len(row_labels), columns + bool(scaled), width_ratios=[1] * columns + [0.07] * bool(scaled))
    r = 0
    for group in (Rows(rows, "", top=1, cmap="gray"), *scaled):
        top = group.top or float(np.abs(np.asarray(group.rows, np.float32)).max()) or 1.0
        norm = PowerNorm(0.5, 0, top, clip=True) if group.root else Normalize(0, top)
        for row in group.rows:
            for c, image in enumerate(row):
                axis = _bare(drawn.add_subplot(places[r, c]))
                shown = axis.imshow(displayable(image), norm=norm, cmap=group.cmap)
                axis.set_ylabel(row_labels[r] if c == 0 else "")
                if r == 0 and titles:
                    axis.set_title(titles[c], fontsize=8)
                if r == 0 and len(outlines):
                    _outline(axis, outlines[c])
            r += 1
        if group.label:
            bar = drawn.colorbar(shown, cax=drawn.add_subplot(places[r - len(group.rows) : r, -1]))
            bar.set_label(group.label, fontsize=8)
            even = norm.inverse(np.linspace(0, 1, 4)).tolist()
            bar.set_ticks(even, labels=[f"{value:.2g}" for value in even], fontsize=7)
    return drawn


def _axes(width: float, height: float, columns: int, rows: int = 1, *, bare: bool = False) -> tuple[Figure, Array]:
    """A figure of that size, inches, and its axes, row by row; bare ones are for pictures."""
    drawn = Figure(figsize=(width, height))
    axes = drawn.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes if bare else ():
        _bare(axis)
    return drawn, axes


def _bare(axis: Axes) -> Axes:
    """Without ticks, frame and grid."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    return axis


def _outline(axis: Axes, mask: Array) -> None:
    """A line around a mask [H, W], a fortieth of the picture beside it, so that it hides nothing of the defect's edge."""
    if mask.any():
        away = np.pad(mask, 1) if mask.all() else binary_dilation(mask > 0, iterations=max(1, len(mask) // 40))
        axis.contour(away.astype(float), [0.5], colors=OUTLINE, linewidths=0.9)


def _worded(label: object) -> str:
    """A label such as ``metal_contamination/000, AP 0.95`` in lines as short as its words."""
    return str(label).replace(", ", "\n").replace("/", "\n").replace("_", "\n")


def displayable(image: Array) -> Array:
    """A picture [H, W] or [C, H, W] as matplotlib and PIL want it: float32 [H, W], or [H, W, 3] in [0, 1]."""
    image = np.asarray(image, np.float32)
    return image if image.ndim == 2 else image[0] if len(image) == 1 else image.transpose(1, 2, 0).clip(0, 1)


def _change(after: Array, before: Array) -> Rows:
    """|after - before| of pictures [n, C, H, W], mean over channels, as a row of a `grid`."""
    return Rows(np.abs(np.subtract(after, before, dtype=np.float32)).mean(1)[None])


# --- 01 data exploration
def dataset(images: Array, masks: Array, titles: Array) -> Figure:
    """Whole images, good and of every defect, their masks outlined: images [N, C, H, W] in [0, 1], masks [N, H, W]."""
    half = (len(images) + 1) // 2
    drawn, axes = _axes(1.8 * half, 4.1, half, 2, bare=True)
    for axis, image, mask, title in zip(axes, images, masks, titles, strict=False):
        axis.imshow(displayable(image), vmin=0, vmax=1)
        axis.set_title(str(title))
        _outline(axis, mask)
    return drawn


def crops(plain: Array, augmented: Array) -> Figure:
    """Random crops [n, C, c, c] without and with the augmentations."""
    return grid([plain, augmented], ["random crop", "flips, turns"])


def statistics(grey_levels: Array, normal: Array, defective: Array, defect_area: Array, defects: Array) -> Figure:
    """Grey-level densities of normal and defective pixels, and the share of the image each defect covers."""
    drawn, (left, right) = _axes(WIDTH, 2.4, 2)
    left.plot(grey_levels, np.stack([normal, defective], axis=1), label=["normal pixels", "pixels inside masks"])
    left.set(xlabel="grey level", ylabel="density", ylim=(0, 1.35 * max(normal.max(), defective.max())))
    left.legend(loc="upper left")
    left.locator_params(nbins=4)
    names, place = np.unique(defects, return_inverse=True)
    for i in range(len(names)):
        right.plot(100 * defect_area[place == i], place[place == i], "o", ms=3.5, alpha=0.7, color="C0")
    right.set(yticks=range(len(names)), yticklabels=map(_worded, names), xlabel="mask area, % of the image", xlim=(0, None))
    return drawn


# --- 02 VAE training
def learning_curve(history: Array, flat: Array, floor: Array) -> Figure:
    """Loss terms per crop [steps, 2] (binary cross-entropy, KL), nats, raw and as a running mean.
    ``flat`` is the cross-entropy of a picture of even grey, ``floor`` that of the crops painted as they are: their own entropy.
    """
    drawn, axes = _axes(WIDTH, 2.6, 2)
    width = max(1, len(history) // 40)
    for axis, term, name in zip(axes, history.T, ("binary cross-entropy", "KL divergence"), strict=True):
        axis.plot(np.arange(1, len(term) + 1), term, lw=0.5, alpha=0.4, color="C0")
        mean = np.convolve(term, np.ones(width) / width, "valid")
        axis.plot(np.arange(len(mean)) + (width + 1) / 2, mean, color="C0")
        marks = [float(flat), float(floor)] if axis is axes[0] else []
        low, high = np.quantile([*term[len(term) // 20 :], *marks], [0, 1])
        axis.set(xlabel="step", ylabel="nats per crop", title=name, ylim=(low - 0.08 * (high - low), high + 0.1 * (high - low)))
        for mark, label, color in zip(marks, ("even grey", "floor: entropy of the crops"), ("C1", "C2"), strict=False):
            axis.axhline(mark, color=color, lw=1.2, ls="--", label=label)
    axes[0].legend(loc="center right")
    return drawn


def snapshots(probe: Array, pictures: Array, steps: Array) -> Figure:
    """The probe crops [n, C, c, c] over their reconstructions after growing numbers of steps [K, n, C, c, c]."""
    return grid([probe, *pictures], ["crop", *(f"step {s}" for s in steps)], side=0.85)


def samples(pictures: Array) -> Figure:
    """Pictures decoded from z ~ N(0, I), [n, C, c, c]."""
    return grid(np.split(pictures, [len(pictures) // 2]), ["samples", "samples"], side=0.85)


# --- 03 baseline reconstruction
def reconstruction(originals: Array, pictures: Array) -> Figure:
    """The article's first figure: originals over VAE reconstructions, [n, C, c, c]."""
    return grid([originals, pictures], ["original", "VAE"], side=0.85)


def residual(images: Array, pictures: Array, masks: Array, titles: Array) -> Figure:
    """Defects, their reconstructions and what is left: the defect, and every edge of the mesh."""
    return grid([images, pictures], ["image", "VAE", "|x - f(x)|"], titles, _change(images, pictures), outlines=masks)


def sharpness(frequency: Array, image: Array, picture: Array) -> Figure:
    """Power at each spatial frequency of normal crops and of their reconstructions: blur is the missing tail."""
    drawn, (axis,) = _axes(4.5, 2.6, 1)
    axis.semilogy(frequency, np.stack([image, picture], axis=1), label=["image", "VAE reconstruction"])
    axis.set(xlabel="spatial frequency, cycles per pixel", ylabel="power")
    axis.legend()
    return drawn


def spectra(image: Array, picture: Array) -> Figure:
    """Power of crops and of their reconstructions at every spatial frequency, [c, c] with 0 in the middle, logarithmic."""
    drawn, axes = _axes(WIDTH, 2.8, 2)
    low, high = np.quantile(np.log10([image, picture]), [0.01, 0.999])
    for axis, power, title in zip(axes, (image, picture), ("image", "VAE reconstruction"), strict=True):
        drawn_power = axis.imshow(np.log10(power), cmap=CHANGE, vmin=low, vmax=high, extent=(-0.5, 0.5, 0.5, -0.5))
        axis.set(title=title, xlabel="cycles per pixel", xticks=np.arange(-2, 3) / 4, yticks=np.arange(-2, 3) / 4)
        axis.grid(False)
    drawn.colorbar(drawn_power, ax=axes.tolist(), label="log10 power", shrink=0.8)
    return drawn


def pasted(images: Array, pictures: Array, pasted: Array, titles: Array) -> Figure:
    """Defects, their reconstructions, and the composite of both, [n, C, c, c]."""
    return grid([images, pictures, pasted], ["image", "VAE", "composite"], titles)


# --- 04 iterative projection
def soft_mask(image: Array, picture: Array, gradient: Array) -> Figure:
    """One step taken apart: image, reconstruction, squared residual, gradient, and their product, each [C, c, c]."""
    image, picture, gradient = (a.astype(np.float32).mean(0) for a in (image, picture, gradient))
    mask = (image - picture) ** 2
    drawn, axes = _axes(WIDTH, 4.0, 3, 2, bare=True)
    for axis, part, title in zip(axes, (image, picture), ("image $x_0$", "$f(x_0)$"), strict=False):
        axis.imshow(part, vmin=0, vmax=1)
        axis.set_title(title)
    for axis, part, title, unit, cmap in (
        (axes[3], mask, "mask $(x_0 - f(x_0))^2$", "squared grey levels", CHANGE),
        (axes[4], gradient, r"gradient $\nabla E$", "grey levels", SIGNED),
        (axes[5], mask * gradient, "their product", "cubed grey levels", SIGNED),
    ):
        top = np.float32(np.abs(np.quantile(part, [0.002, 0.998])).max()) or 1.0
        low, beyond = (0, "max") if cmap == CHANGE else (-top, "both")
        shown = axis.imshow(part, cmap=cmap, vmin=low, vmax=top)
        axis.set_title(title)
        bar = drawn.colorbar(shown, ax=axis, orientation="horizontal", label=unit, extend=beyond, ticks=MaxNLocator(3))
        bar.ax.tick_params(labelsize=7)
    axes[2].remove()
    return drawn


def energy_curves(terms: Array, names: Array) -> Figure:
    """The energy along the iterations, and its two terms, reconstruction and distance: [T + 1, B, 2]."""
    drawn, (left, right) = _axes(WIDTH, 2.6, 2)
    left.plot(terms.sum(2), label=names.tolist())
    right.plot(terms[..., 0])
    right.set_prop_cycle(None)
    right.plot(terms[..., 1], ls="--")
    left.set(xlabel="iteration t", ylabel="squared grey levels", title="energy $E$", ylim=(0, None))
    right.set(xlabel="iteration t", title="reconstruction (solid), distance (dashed)", ylim=left.get_ylim())
    right.title.set_fontsize(8)
    drawn.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


def iteration_strip(frames: Array, pictures: Array, iterations: Array) -> Figure:
    """x_t, f(x_t) and the change so far at some iterations, each [K, C, c, c]."""
    labels, titles = ["$x_t$", "$f(x_t)$", "$|x_t - x_0|$"], [f"t = {t}" for t in iterations]
    return grid([frames, pictures], labels, titles, _change(frames, frames[0]))


def lam_alpha(pictures: Array, alphas: Array, lams: Array) -> Figure:
    """The projected crop for each alpha (columns) and lam (rows), [L, A, C, c, c]."""
    return grid(pictures, [rf"$\lambda$ = {lam:g}" for lam in lams], [rf"$\alpha$ = {a:g}" for a in alphas], side=1.2)


def weights(images: Array, pictures: Array, seen: Array, expected: Array, weight: Array, titles: Array) -> Figure:
    """How the weight comes about: image, f(x), the roots of smoothed and of expected residual on one scale, w; [n, C, c, c]."""
    seen, expected = (np.sqrt(np.asarray(q, np.float32)) for q in (seen, expected))
    labels = ["$x_0$", "$f(x_0)$", r"$\sqrt{q}$", r"$\sqrt{e}$", "w"]
    return grid([images, pictures], labels, titles, Rows([seen, expected], root=True), Rows([weight], "weight", top=1))


def descents(images: Array, pictures: Array, changes: Array, names: Array, titles: Array) -> Figure:
    """Where several rules end, [V, n, C, c, c], and what each changed, [V, n, c, c], on one colour scale."""
    labels = ["image", *names.tolist(), *(f"change,\n{name}" for name in names)]
    return grid([images, *pictures], labels, titles, Rows(changes))


def article_bugs(images: Array, changes: Array, names: Array, titles: Array) -> Figure:
    """What the article's loop changes, |x_T - x_0| [V, n, c, c], with each of its bugs by itself, on one colour scale."""
    return grid([images], ["image", *names.tolist()], titles, Rows(changes, root=True))


def one_pixel(levels: Array, gradients: Array, paths: Array, names: Array, f: Array) -> Figure:
    """What each loss asks of a pixel of grey x painted as f: gradient [V, K] at ``levels`` [K], paths [V, T + 1, 2]."""
    drawn, (left, right) = _axes(WIDTH, 2.8, 2)
    left.plot(levels, gradients.T, label=names.tolist())
    left.axhline(0, color="0.5", lw=0.8)
    left.axvline(float(f), color="0.5", ls=":", lw=1)
    left.set(xlabel="grey level x", ylabel="gradient", title=f"f = {float(f):g} (dotted)", ylim=(-6, 6))
    for i, path in enumerate(paths):
        right.plot(path, color=f"C{i}")
    right.axhline(float(f), color="0.5", ls=":", lw=1)
    right.set(xlabel="iteration t", ylabel="$x_t$", ylim=(0, 1), title="masked, from 0.8 and 0.1")
    drawn.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


def rules(images: Array, pictures: Array, names: Array, titles: Array) -> Figure:
    """Where several rules end, [V, n, C, c, c], under the images they began with."""
    return grid([images, *pictures], ["image", *names.tolist()], titles)


# --- 05 figures
def comparison(images: Array, pictures: Array, projections: Array, masks: Array, titles: Array, truth: Array) -> Figure:
    """The article's second figure, the change and, unless empty, ``truth``, the scenes without their defects; [n, C, c, c]."""
    rows = [images, pictures, projections, truth][: 3 + bool(len(truth))]
    labels = [*["test image", "VAE", "projection", "truth"][: len(rows)], "change"]
    return grid(rows, labels, titles, _change(projections, images), outlines=masks)


def restoration(names: Array, inside: Array, outside: Array) -> Figure:
    """PSNR to the scene without its defect, inside and outside the mask, [methods, images] each, dB.
    The first method is the test image: outside the mask it is the truth but for resizing, far above the others, and only said.
    """
    drawn, (left, right) = _axes(WIDTH, 0.34 * len(names) + 0.9, 2)
    at = np.arange(len(names), 0, -1)
    for axis, values, first in zip((left, right), (inside, outside), (0, 1), strict=True):
        finite = [row[np.isfinite(row)] for row in values]  # infinite where a picture is the truth itself
        means = [row.mean() if len(row) else np.inf for row in finite]
        axis.boxplot(finite[first:], positions=at[first:], widths=0.55, orientation="horizontal", flierprops={"ms": 3})
        axis.plot(means[first:], at[first:], "D", ms=4)
        axis.set(yticks=at, xlabel="PSNR, dB (diamond: mean)", ylim=(0.4, len(names) + 0.6))
    left.set(yticklabels=names.tolist(), title="inside the mask")
    right.set(yticklabels=[], title="outside the mask")
    beyond = f"test image: {means[0]:.0f} dB,\noff the axis"
    right.text(0.5, at[0], beyond, transform=right.get_yaxis_transform(), ha="center", va="center", backgroundcolor="w")
    return drawn


def repair_and_damage(names: Array, **curves: Array) -> Figure:
    """Repair inside the masks against damage to normal texture, along the iterations of each method.
    ``curves`` has of method i ``<i>_passes`` [K], network passes so far, ``<i>_psnr`` [K], dB inside the masks, and
    ``<i>_error`` [K], error power on normal crops.
    """
    drawn, (left, right) = _axes(WIDTH, 2.7, 2)
    for axis, key in ((left, "psnr"), (right, "error")):
        for i, name in enumerate(names):
            passes = curves[f"{i}_passes"]
            axis.plot(passes, curves[f"{i}_{key}"], label=str(name), marker="o" if len(passes) < 8 else None, ms=3)
        axis.set(xlabel="network passes", xscale="symlog", xticks=(0, 1, 10, 100), xticklabels=("0", "1", "10", "100"))
    left.set(ylabel="PSNR, dB", title="repair: inside the masks")
    right.set(ylabel="error power", title="damage: normal crops", ylim=(0, None))
    left.legend(loc="lower right")
    return drawn


# --- 06 localization benchmark
def roc_pro(fpr: Array, recall: Array, pro: Array, names: Array) -> Figure:
    """ROC and PRO curves of the smoothed maps, [methods, points] each; nan, and a word in their place, without masks."""
    drawn, axes = _axes(WIDTH, 3.2, 2)
    for axis, values, label in zip(axes, (recall, pro), ("recall", "per-region overlap"), strict=True):
        axis.plot(fpr.T, values.T, label=names.tolist())
        axis.set(xlabel="false-positive rate", ylabel=label, xlim=(0, 0.3), ylim=(0, 1.01))
        if np.isnan(values).any():
            axis.text(0.15, 0.5, "not known\nwithout masks", ha="center", va="center")
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return drawn


def gallery(images: Array, masks: Array, residuals: Array, maps: Array, titles: Array) -> Figure:
    """Whole images with their masks outlined, the map of the VAE's squared residual and the projection's, a column each."""
    scores = [Rows([row], "score", root=True) for row in (residuals, maps)]
    return grid([images], ["image", "VAE residual", "projection"], titles, *scores, outlines=masks)


def cases(images: Array, masks: Array, maps: Array, titles: Array) -> Figure:
    """The images localized best and worst, with their anomaly maps."""
    names = [title.removesuffix(", AP nan") for title in titles.tolist()]  # not known without masks
    return grid([images], ["image", "anomaly map"], names, Rows([maps], "score", root=True), outlines=masks)


# --- 07 ablations
def ablation(labels: Array, change: Array, spread: Array) -> Figure:
    """The change of AP that each setting makes, [K], sorted; the band, ``spread`` [low, high], is what another seed makes."""
    order = np.argsort(change)
    drawn, (axis,) = _axes(WIDTH, 0.165 * len(change) + 0.7, 1)
    axis.axvspan(*spread.tolist(), color="0.85", label="other seeds")
    axis.axvline(0, color="0.4", lw=0.8)
    axis.plot(change[order], np.arange(len(order)), "o", ms=4)
    axis.set(yticks=range(len(order)), xlabel="change of pixel AP", ylim=(-0.7, len(order) - 0.3))
    axis.set_yticklabels(labels[order].tolist(), fontsize=7)
    axis.legend(loc="lower right")
    return drawn


def network_sizes(millions: Array, ap: Array, names: Array) -> Figure:
    """What size buys: localization, pixel AP [K], against parameters [K]."""
    drawn, (axis,) = _axes(4.5, 2.5, 1)
    axis.semilogx(millions, ap, "o-", ms=4)
    for x, y, name in zip(millions, ap, names, strict=True):
        axis.annotate(str(name), (x, y), textcoords="offset points", xytext=(4, 5))
    axis.margins(x=0.15, y=0.2)
    axis.set(xlabel="parameters, millions", ylabel="pixel AP")
    return drawn


# --- 08 sweeps
def over_seeds(values: Array, quality: Array, names: Array, axes: Array) -> Figure:
    """Quality [curves, K, seeds] against the K values of a setting: every seed, their mean and standard deviation."""
    drawn, (axis,) = _axes(4.5, 2.8, 1)
    for i, (name, runs) in enumerate(zip(names, quality, strict=True)):
        at = values * 1.04 ** (i - (len(names) - 1) / 2)  # beside one another
        axis.errorbar(at, runs.mean(1), runs.std(1, ddof=1), color=f"C{i}", marker="o", ms=5, capsize=3, label=str(name))
        axis.plot(at, runs, "_", color=f"C{i}", ms=9, alpha=0.6)
    axis.set(xlabel=axes[0], ylabel=axes[1], xscale="log", xticks=values, xticklabels=values)
    axis.minorticks_off()
    axis.legend()
    return drawn


def quality_and_time(seconds: Array, quality: Array, names: Array, metric: Array) -> Figure:
    """What time buys: a metric against seconds of training and measuring, [kinds, points] each, a colour a kind."""
    drawn, (axis,) = _axes(4.5, 2.8, 1)
    for name, x, y in zip(names, seconds, quality, strict=True):
        axis.semilogx(x, y, "o", ms=4, alpha=0.8, label=str(name))
    axis.set(xlabel="seconds, training and all test images", ylabel=str(metric))
    axis.xaxis.set(major_formatter=LogFormatter(), minor_formatter=LogFormatter(minor_thresholds=(2, 0.5)))
    axis.legend()
    return drawn


# Every figure by its name, in the order of the notebooks: the functions above that make a figure of arrays alone.
FIGURES: dict[str, Callable[..., Figure]] = {
    name: function
    for name, function in list(globals().items())
    if set(getattr(function, "__annotations__", {}).values()) == {Array, Figure}
}
