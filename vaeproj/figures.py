"""Every figure of the tutorial: each a function of arrays, found by its name, drawn the same each time.

`save` keeps a figure's arrays beside its picture, so `redraw` needs neither model nor data and gives the same bytes.
"""

import inspect
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
GREY_LEVELS = "grey levels"  # black 0, white 1


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


def as_jpeg(drawn: Figure, dpi: int = 100) -> bytes:
    """The figure as a small picture for a notebook's output."""
    buffer = io.BytesIO()
    with matplotlib.style.context(STYLE):
        drawn.savefig(buffer, format="jpeg", dpi=dpi, pil_kwargs={"quality": 62})
    return buffer.getvalue()


# --- building blocks
@dataclass(frozen=True)
class Scale:
    """Rows of a `grid` that share one colour scale, drawn as a bar at their right."""

    rows: Sequence[int]
    top: float  # value of the brightest colour
    label: str = GREY_LEVELS
    cmap: str = CHANGE
    root: bool = False  # colours follow the square root: of very different maps the weak ones still show

    @property
    def norm(self) -> Normalize:
        low = -self.top if self.cmap == SIGNED else 0.0
        return PowerNorm(0.5, 0, self.top, clip=True) if self.root else Normalize(low, self.top)


def largest(*rows: np.ndarray) -> float:
    """The largest magnitude in some rows of pictures; 1 if there is none."""
    return max(float(np.abs(np.asarray(row, np.float32)).max()) for row in rows) or 1.0


def grid(
    rows: Sequence[np.ndarray | Sequence[np.ndarray]],
    row_labels: Sequence[str] | np.ndarray,
    column_labels: Sequence[str] | np.ndarray = (),
    *,
    scales: Sequence[Scale] = (),
    outlines: Sequence[np.ndarray] | np.ndarray = (),
    side: float = 0.95,
) -> Figure:
    """Pictures in rows and columns.

    Args:
        rows: arrays [H, W] or [C, H, W], drawn in grey or colour over [0, 1] where no scale says otherwise.
        row_labels, column_labels: text left of the rows and above the columns.
        scales: colour scales of rows next to one another.
        outlines: for each column a mask [H, W]; a line around it, beside and not over it, is drawn in the first row.
        side: of one picture, inches.
    """
    columns = max(len(row) for row in rows)
    titles = [_worded(label) for label in column_labels]
    height = side * len(rows) * 1.05 + max((0.14 * (1 + title.count("\n")) + 0.1 for title in titles), default=0)
    drawn = Figure(figsize=(side * columns + 0.4 + 0.65 * bool(scales), height))
    places = drawn.add_gridspec(len(rows), columns + bool(scales), width_ratios=[1] * columns + [0.07] * bool(scales))
    for r, row in enumerate(rows):
        own = next((scale for scale in scales if r in scale.rows), None)
        look: dict[str, Any] = {"cmap": own.cmap, "norm": own.norm} if own else {"cmap": "gray", "vmin": 0, "vmax": 1}
        for c, image in enumerate(row):
            axis = _bare(drawn.add_subplot(places[r, c]))
            shown = axis.imshow(displayable(image), **look)
            if c == 0:
                axis.set_ylabel(row_labels[r])
            if r == 0 and titles:
                axis.set_title(titles[c], fontsize=8)
            if r == 0 and len(outlines) and outlines[c].any():
                _outline(axis, outlines[c])
        if own and r == own.rows[-1]:
            bar = drawn.colorbar(shown, cax=drawn.add_subplot(places[own.rows[0] : r + 1, -1]))
            bar.set_label(own.label, fontsize=8)
            bar.ax.tick_params(labelsize=7)
            even = own.norm.inverse(np.linspace(0, 1, 4)).tolist()
            bar.set_ticks(even, labels=[f"{value:.2g}" for value in even])
    return drawn


def _axes(width: float, height: float, columns: int, rows: int = 1, *, bare: bool = False) -> tuple[Figure, np.ndarray]:
    """A figure of that size, inches, and its axes, row by row; bare ones are for pictures."""
    drawn = Figure(figsize=(width, height))
    axes = drawn.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes if bare else ():
        _bare(axis)
    return drawn, axes


def _bare(axis: Axes) -> Axes:
    """Without ticks, frame and grid."""
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)
    return axis


def _outline(axis: Axes, mask: np.ndarray) -> None:
    """A line around a mask [H, W], a fortieth of the picture beside it, so that it hides nothing of the defect's edge."""
    away = np.pad(mask, 1) if mask.all() else binary_dilation(mask > 0, iterations=max(1, len(mask) // 40))
    axis.contour(away.astype(float), [0.5], colors=OUTLINE, linewidths=0.9)


def _worded(label: object) -> str:
    """A label such as ``metal_contamination/000, AP 0.95`` in lines as short as its words."""
    return str(label).replace(", ", "\n").replace("/", "\n").replace("_", "\n")


def displayable(image: np.ndarray) -> np.ndarray:
    """A picture [H, W] or [C, H, W] as matplotlib and PIL want it: float32 [H, W], or [H, W, 3] in [0, 1]."""
    image = np.asarray(image, np.float32)
    return image if image.ndim == 2 else image[0] if len(image) == 1 else image.transpose(1, 2, 0).clip(0, 1)


def _change(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """|after - before| of pictures [n, C, H, W], mean over channels, [n, H, W]."""
    return np.abs(np.subtract(after, before, dtype=np.float32)).mean(1)


# --- 01 data exploration
def dataset(images: np.ndarray, masks: np.ndarray, titles: np.ndarray) -> Figure:
    """Whole images, good and of every defect, their masks outlined: images [N, C, H, W] in [0, 1], masks [N, H, W]."""
    half = (len(images) + 1) // 2
    drawn, axes = _axes(1.8 * half, 4.1, half, 2, bare=True)
    for axis, image, mask, title in zip(axes, images, masks, titles, strict=False):
        axis.imshow(displayable(image), vmin=0, vmax=1)
        axis.set_title(str(title))
        if mask.any():
            _outline(axis, mask)
    return drawn


def crops(plain: np.ndarray, augmented: np.ndarray) -> Figure:
    """Random crops [n, C, c, c] without and with the augmentations."""
    return grid([plain, augmented], ["random crop", "flips, turns"])


def statistics(
    grey_levels: np.ndarray, normal: np.ndarray, defective: np.ndarray, defect_area: np.ndarray, defects: np.ndarray
) -> Figure:
    """Grey-level densities of normal and defective pixels, and the share of the image each defect covers."""
    drawn, (left, right) = _axes(WIDTH, 2.4, 2)
    left.plot(grey_levels, np.stack([normal, defective], axis=1), label=["normal pixels", "pixels inside masks"])
    left.set(xlabel="grey level", ylabel="density", ylim=(0, 1.35 * max(normal.max(), defective.max())))
    left.legend(loc="upper left")
    left.locator_params(nbins=4)
    names = sorted(set(defects.tolist()))
    for i, name in enumerate(names):
        area = 100 * defect_area[defects == name]
        right.plot(area, np.full(len(area), i), "o", ms=3.5, alpha=0.7, color="C0")
    right.set(yticks=range(len(names)), yticklabels=map(_worded, names), xlabel="mask area, % of the image", xlim=(0, None))
    return drawn


# --- 02 VAE training
def learning_curve(history: np.ndarray, flat: np.ndarray, floor: np.ndarray) -> Figure:
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


def snapshots(probe: np.ndarray, pictures: np.ndarray, steps: np.ndarray) -> Figure:
    """The probe crops [n, C, c, c] over their reconstructions after growing numbers of steps [K, n, C, c, c]."""
    return grid([probe, *pictures], ["crop", *(f"step {s}" for s in steps)], side=0.85)


def samples(pictures: np.ndarray) -> Figure:
    """Pictures decoded from z ~ N(0, I), [n, C, c, c]."""
    half = len(pictures) // 2
    return grid([pictures[:half], pictures[half:]], ["samples", "samples"], side=0.85)


# --- 03 baseline reconstruction
def reconstruction(originals: np.ndarray, pictures: np.ndarray) -> Figure:
    """The article's first figure: originals over VAE reconstructions, [n, C, c, c]."""
    return grid([originals, pictures], ["original", "VAE"], side=0.85)


def residual(images: np.ndarray, pictures: np.ndarray, masks: np.ndarray, titles: np.ndarray) -> Figure:
    """Defects, their reconstructions and what is left: the defect, and every edge of the mesh."""
    left = _change(images, pictures)
    scale = Scale([2], largest(left))
    return grid([images, pictures, left], ["image", "VAE", "|x - f(x)|"], titles, scales=[scale], outlines=masks)


def sharpness(frequency: np.ndarray, image: np.ndarray, picture: np.ndarray) -> Figure:
    """Power at each spatial frequency of normal crops and of their reconstructions: blur is the missing tail."""
    drawn, (axis,) = _axes(4.5, 2.6, 1)
    axis.semilogy(frequency, np.stack([image, picture], axis=1), label=["image", "VAE reconstruction"])
    axis.set(xlabel="spatial frequency, cycles per pixel", ylabel="power")
    axis.legend()
    return drawn


def spectra(image: np.ndarray, picture: np.ndarray) -> Figure:
    """Power of crops and of their reconstructions at every spatial frequency, [c, c] with 0 in the middle, logarithmic."""
    drawn, axes = _axes(WIDTH, 2.8, 2)
    low, high = np.quantile(np.log10([image, picture]), [0.01, 0.999])
    for axis, power, title in zip(axes, (image, picture), ("image", "VAE reconstruction"), strict=True):
        drawn_power = axis.imshow(np.log10(power), cmap=CHANGE, vmin=low, vmax=high, extent=(-0.5, 0.5, 0.5, -0.5))
        axis.set(title=title, xlabel="cycles per pixel", xticks=np.arange(-2, 3) / 4, yticks=np.arange(-2, 3) / 4)
        axis.grid(False)
    drawn.colorbar(drawn_power, ax=axes.tolist(), label="log10 power", shrink=0.8)
    return drawn


def pasted(images: np.ndarray, pictures: np.ndarray, pasted: np.ndarray, titles: np.ndarray) -> Figure:
    """Defects, their reconstructions, and the composite of both, [n, C, c, c]."""
    return grid([images, pictures, pasted], ["image", "VAE", "composite"], titles)


# --- 04 iterative projection
def energy_curves(terms: np.ndarray, names: np.ndarray) -> Figure:
    """The energy along the iterations, and its two terms, reconstruction and distance: [T + 1, B, 2]."""
    drawn, (left, right) = _axes(WIDTH, 2.6, 2)
    left.plot(terms.sum(2), label=names.tolist())
    right.plot(terms[..., 0])
    right.set_prop_cycle(None)
    right.plot(terms[..., 1], ls="--")
    left.set(xlabel="iteration t", ylabel="squared grey levels", title="energy $E$", ylim=(0, None))
    right.sharey(left)
    right.set(xlabel="iteration t", title="reconstruction (solid), distance (dashed)", ylim=(0, None))
    right.title.set_fontsize(8)
    drawn.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return drawn


def iteration_strip(frames: np.ndarray, pictures: np.ndarray, iterations: np.ndarray) -> Figure:
    """x_t, f(x_t) and the change so far at some iterations, each [K, C, c, c]."""
    change = _change(frames, frames[0])
    titles, scale = [f"t = {t}" for t in iterations], Scale([2], largest(change))
    return grid([frames, pictures, change], ["$x_t$", "$f(x_t)$", "$|x_t - x_0|$"], titles, scales=[scale])


def soft_mask(image: np.ndarray, picture: np.ndarray, gradient: np.ndarray) -> Figure:
    """One step taken apart: image, reconstruction, squared residual, gradient, and their product, each [C, c, c]."""
    image, picture, gradient = (a.astype(np.float32).mean(0) for a in (image, picture, gradient))
    mask = (image - picture) ** 2
    drawn, axes = _axes(WIDTH, 4.0, 3, 2, bare=True)
    for axis, part, title in zip(axes, (image, picture), ("image $x_0$", "$f(x_0)$"), strict=False):
        axis.imshow(part, vmin=0, vmax=1)
        axis.set_title(title)
    for axis, part, title, cmap, unit in (
        (axes[3], mask, "mask $(x_0 - f(x_0))^2$", CHANGE, "squared grey levels"),
        (axes[4], gradient, r"gradient $\nabla E$", SIGNED, "grey levels"),
        (axes[5], mask * gradient, "their product", SIGNED, "cubed grey levels"),
    ):
        scale = Scale([], largest(np.clip(part, *np.quantile(part, [0.002, 0.998]))), unit, cmap)
        axis.set_title(title)
        shown, beyond = axis.imshow(part, cmap=cmap, norm=scale.norm), "max" if cmap == CHANGE else "both"
        bar = drawn.colorbar(shown, ax=axis, orientation="horizontal", label=unit, extend=beyond)
        bar.ax.tick_params(labelsize=7)
        bar.locator = MaxNLocator(3)
        bar.update_ticks()
    axes[2].remove()
    return drawn


def lam_alpha(pictures: np.ndarray, alphas: np.ndarray, lams: np.ndarray) -> Figure:
    """The projected crop for each alpha (columns) and lam (rows), [L, A, C, c, c]."""
    return grid(list(pictures), [rf"$\lambda$ = {lam:g}" for lam in lams], [rf"$\alpha$ = {a:g}" for a in alphas], side=1.2)


def weights(
    images: np.ndarray, pictures: np.ndarray, seen: np.ndarray, expected: np.ndarray, weight: np.ndarray, titles: np.ndarray
) -> Figure:
    """How the weight comes about: image, f(x), the roots of smoothed and of expected residual on one scale, w; [n, C, c, c]."""
    seen, expected = (np.sqrt(np.asarray(q, np.float32)) for q in (seen, expected))
    labels = ["$x_0$", "$f(x_0)$", r"$\sqrt{q}$", r"$\sqrt{e}$", "w"]
    scales = [Scale([2, 3], largest(seen, expected), root=True), Scale([4], 1.0, "weight")]
    return grid([images, pictures, seen, expected, weight], labels, titles, scales=scales)


def descents(images: np.ndarray, pictures: np.ndarray, changes: np.ndarray, names: np.ndarray, titles: np.ndarray) -> Figure:
    """Where several rules end, [V, n, C, c, c], and what each changed, [V, n, c, c], on one colour scale."""
    labels = ["image", *names.tolist(), *(f"change,\n{name}" for name in names)]
    scale = Scale(range(1 + len(pictures), len(labels)), largest(changes))
    return grid([images, *pictures, *changes], labels, titles, scales=[scale])


def rules(images: np.ndarray, pictures: np.ndarray, names: np.ndarray, titles: np.ndarray) -> Figure:
    """Where several rules end, [V, n, C, c, c], under the images they began with."""
    return grid([images, *pictures], ["image", *names.tolist()], titles)


def one_pixel(levels: np.ndarray, gradients: np.ndarray, paths: np.ndarray, names: np.ndarray, f: np.ndarray) -> Figure:
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


def article_bugs(images: np.ndarray, changes: np.ndarray, names: np.ndarray, titles: np.ndarray) -> Figure:
    """What the article's loop changes, |x_T - x_0| [V, n, c, c], with each of its bugs by itself, on one colour scale."""
    scale = Scale(range(1, 1 + len(changes)), largest(changes), root=True)
    return grid([images, *changes], ["image", *names.tolist()], titles, scales=[scale])


# --- 05 figures
def comparison(
    images: np.ndarray, pictures: np.ndarray, projections: np.ndarray, masks: np.ndarray, titles: np.ndarray, truth: np.ndarray
) -> Figure:
    """The article's second figure, test image, VAE reconstruction and projection, and what it does not show: the change, and
    the scene without its defect (``truth``, none where it is not known); [n, C, c, c] each.
    """
    change = _change(projections, images)
    rows, labels = [images, pictures, projections], ["test image", "VAE", "projection"]
    if len(truth):
        rows, labels = [*rows, truth], [*labels, "truth"]
    scale = Scale([len(rows)], largest(change))
    return grid([*rows, change], [*labels, "change"], titles, scales=[scale], outlines=masks)


def restoration(names: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> Figure:
    """PSNR to the scene without its defect, inside and outside the mask, [methods, images] each, dB.

    The first method is the test image: outside the mask it is the truth but for resizing, far above the others, and only said.
    """
    drawn, axes = _axes(WIDTH, 0.34 * len(names) + 0.9, 2)
    at = np.arange(len(names), 0, -1)
    for axis, values, first in zip(axes, (inside, outside), (0, 1), strict=True):
        finite = [row[np.isfinite(row)] for row in values[first:]]  # infinite where a picture is the truth itself
        look = {"medianprops": {"color": "C1"}, "flierprops": {"ms": 3}}
        axis.boxplot(finite, positions=at[first:], widths=0.55, orientation="horizontal", **look)
        axis.plot([row.mean() if len(row) else np.nan for row in finite], at[first:], "D", ms=4)
        axis.set(yticks=at, xlabel="PSNR, dB (diamond: mean)", ylim=(0.4, len(names) + 0.6))
    axes[0].set(yticklabels=names.tolist(), title="inside the mask")
    axes[1].set(yticklabels=[], title="outside the mask")
    level = np.nanmean(np.where(np.isfinite(outside[0]), outside[0], np.nan)) if np.isfinite(outside[0]).any() else np.inf
    axes[1].text(
        0.5,
        at[0],
        f"test image: {level:.0f} dB,\noff the axis",
        transform=axes[1].get_yaxis_transform(),
        ha="center",
        va="center",
        backgroundcolor="w",
    )
    return drawn


def repair_and_damage(names: np.ndarray, **curves: np.ndarray) -> Figure:
    """Repair inside the masks against damage to normal texture, along the iterations of each method.

    Args:
        names: of the methods, as labels, in the order of ``curves``.
        curves: for each method ``<i>_passes`` [K], network passes so far; ``<i>_psnr`` [K], dB inside the masks;
            ``<i>_error`` [K], error power on normal crops.
    """
    drawn, (left, right) = _axes(WIDTH, 2.7, 2)
    for i, name in enumerate(names):
        passes, repair, damage = (curves[f"{i}_{key}"] for key in ("passes", "psnr", "error"))
        marker = "o" if len(passes) < 8 else None
        left.plot(passes, repair, label=str(name), marker=marker, ms=3)
        right.plot(passes, damage, label=str(name), marker=marker, ms=3)
    for axis in (left, right):
        axis.set(xlabel="network passes", xscale="symlog", xticks=(0, 1, 10, 100), xticklabels=("0", "1", "10", "100"))
    left.set(ylabel="PSNR, dB", title="repair: inside the masks")
    right.set(ylabel="error power", title="damage: normal crops", ylim=(0, None))
    left.legend(loc="lower right")
    return drawn


# --- 06 localization benchmark
def roc_pro(fpr: np.ndarray, recall: np.ndarray, pro: np.ndarray, names: np.ndarray) -> Figure:
    """ROC and PRO curves of the smoothed maps, [methods, points] each; nan, and a word in their place, without masks."""
    drawn, axes = _axes(WIDTH, 3.2, 2)
    for axis, values, label in zip(axes, (recall, pro), ("recall", "per-region overlap"), strict=True):
        axis.plot(fpr.T, values.T, label=names.tolist())
        axis.set(xlabel="false-positive rate", ylabel=label, xlim=(0, 0.3), ylim=(0, 1.01))
        if np.isnan(values).any():
            axis.text(0.15, 0.5, "not known\nwithout masks", ha="center", va="center")
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return drawn


def gallery(images: np.ndarray, masks: np.ndarray, residuals: np.ndarray, maps: np.ndarray, titles: np.ndarray) -> Figure:
    """Whole images with their masks outlined, the map of the VAE's squared residual and the projection's, a column each."""
    scales = [Scale([1], largest(residuals), "score", root=True), Scale([2], largest(maps), "score", root=True)]
    rows = [images, residuals, maps]
    return grid(rows, ["image", "VAE residual", "projection"], titles, scales=scales, outlines=masks)


def cases(images: np.ndarray, masks: np.ndarray, maps: np.ndarray, titles: np.ndarray) -> Figure:
    """The images localized best and worst, with their anomaly maps."""
    names = [title.removesuffix(", AP nan") for title in titles.tolist()]  # not known without masks
    scale = Scale([1], largest(maps), "score", root=True)
    return grid([images, maps], ["image", "anomaly map"], names, scales=[scale], outlines=masks)


# --- 07 ablations
def ablation(labels: np.ndarray, change: np.ndarray, spread: np.ndarray) -> Figure:
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


def network_sizes(millions: np.ndarray, ap: np.ndarray, names: np.ndarray) -> Figure:
    """What size buys after equal minutes of training: localization, pixel AP [K], against parameters [K]."""
    drawn, (axis,) = _axes(4.5, 2.5, 1)
    axis.semilogx(millions, ap, "o-", ms=4)
    for x, y, name in zip(millions, ap, names, strict=True):
        axis.annotate(str(name), (x, y), textcoords="offset points", xytext=(4, 5))
    axis.margins(x=0.15, y=0.2)
    axis.set(xlabel="parameters, millions", ylabel="pixel AP")
    return drawn


# --- 08 sweeps
def over_seeds(values: np.ndarray, quality: np.ndarray, names: np.ndarray, axes: np.ndarray) -> Figure:
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


def quality_and_time(seconds: np.ndarray, quality: np.ndarray, names: np.ndarray, metric: np.ndarray) -> Figure:
    """What time buys: a metric against seconds of training and measuring, [kinds, points] each, a colour a kind."""
    drawn, (axis,) = _axes(4.5, 2.8, 1)
    for name, x, y in zip(names, seconds, quality, strict=True):
        axis.semilogx(x, y, "o", ms=4, alpha=0.8, label=str(name))
    axis.set(xlabel="seconds, training and all test images", ylabel=str(metric))
    axis.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axis.xaxis.set_major_formatter(LogFormatter())
    axis.legend()
    return drawn


# Every figure by its name, in the order of the notebooks.
FIGURES: dict[str, Callable[..., Figure]] = {
    function.__name__: function
    for function in (
        *(dataset, crops, statistics, learning_curve, snapshots, samples, reconstruction, residual, sharpness, spectra, pasted),
        *(soft_mask, energy_curves, iteration_strip, lam_alpha, weights, descents, article_bugs, one_pixel, rules),
        *(comparison, restoration, repair_and_damage, roc_pro, gallery, cases, ablation, network_sizes),
        *(over_seeds, quality_and_time),
    )
}
