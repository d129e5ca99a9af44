"""Every figure of the tutorial: each a function of arrays, found by its name, drawn the same each time.

`save` keeps a figure's arrays beside its picture, so `redraw` needs neither model nor data and gives the same bytes.
"""

import inspect
import io
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from .config import UserError

STYLE = Path(__file__).with_name("vaeproj.mplstyle")
CHANGE = "magma"  # colour map of magnitudes: residuals, changes, anomaly maps
SIGNED = "RdBu_r"  # of signed quantities
OUTLINE = "#E69F00"  # of masks


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


def as_jpeg(drawn: Figure, dpi: int = 82) -> bytes:
    """The figure as a small picture for a notebook's output."""
    buffer = io.BytesIO()
    with matplotlib.style.context(STYLE):
        drawn.savefig(buffer, format="jpeg", dpi=dpi, pil_kwargs={"quality": 76})
    return buffer.getvalue()


# --- building blocks
def grid(
    rows: Sequence[np.ndarray | Sequence[np.ndarray]],
    row_labels: Sequence[str] | np.ndarray,
    column_labels: Sequence[str] | np.ndarray = (),
    *,
    maps: Sequence[str] = (),
    outlines: Sequence[np.ndarray] | np.ndarray = (),
    unit: Iterable[int] = (),
    side: float = 1.15,
) -> Figure:
    """Pictures in rows and columns.

    Args:
        rows: arrays [H, W] or [C, H, W]; grey ones are drawn over [0, 1], the others over their row's own range.
        row_labels, column_labels: text left of the rows and above the columns.
        maps: colour map of each row; grey where missing.
        outlines: for each column a mask [H, W] whose border is drawn in the first row.
        unit: rows drawn over [0, 1] whatever their colour map.
        side: of one picture, inches.
    """
    columns = max(len(row) for row in rows)
    height = side * len(rows) * 1.04 + 0.3 * bool(len(column_labels))
    drawn, flat = _axes(side * columns + 0.35, height, columns, len(rows), bare=True)
    axes = flat.reshape(-1, columns)
    for r, row in enumerate(rows):
        cmap = maps[r] if r < len(maps) else "gray"
        low, high = (0.0, 1.0) if r in unit else _range(row, cmap)
        for axis, image in zip(axes[r], row, strict=False):
            axis.imshow(displayable(image), cmap=cmap, vmin=low, vmax=high)
        axes[r, 0].set_ylabel(row_labels[r])
    for c, label in enumerate(column_labels):
        axes[0, c].set_title(str(label).replace("/", "\n"), fontsize=7)
    for c, mask in enumerate(outlines):
        if mask.any():
            axes[0, c].contour(mask.astype(float), [0.5], colors=OUTLINE, linewidths=0.9)
    return drawn


def _axes(width: float, height: float, columns: int, rows: int = 1, *, bare: bool = False) -> tuple[Figure, np.ndarray]:
    """A figure of that size, inches, and its axes, row by row; bare ones, for pictures, have no ticks, frame or grid."""
    drawn = Figure(figsize=(width, height))
    axes = drawn.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes if bare else ():
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        axis.spines[:].set_visible(False)
    return drawn, axes


def displayable(image: np.ndarray) -> np.ndarray:
    """A picture [H, W] or [C, H, W] as matplotlib and PIL want it: float32 [H, W], or [H, W, 3] in [0, 1]."""
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
def dataset(images: np.ndarray, masks: np.ndarray, titles: np.ndarray) -> Figure:
    """Whole images, good and of every defect, their masks outlined: images [N, C, H, W] in [0, 1], masks [N, H, W]."""
    half = (len(images) + 1) // 2
    drawn, axes = _axes(1.75 * half, 3.8, half, 2, bare=True)
    for axis, image, mask, title in zip(axes, images, masks, titles, strict=False):
        axis.imshow(displayable(image), vmin=0, vmax=1)
        axis.set_title(str(title))
        if mask.any():
            axis.contour(mask.astype(float), [0.5], colors=OUTLINE, linewidths=1)
    return drawn


def crops(plain: np.ndarray, augmented: np.ndarray) -> Figure:
    """Random crops [n, C, c, c] without and with the augmentations."""
    return grid([plain, augmented], ["random crop", "+ flips, turns"])


def statistics(
    grey_levels: np.ndarray, normal: np.ndarray, defective: np.ndarray, defect_area: np.ndarray, defects: np.ndarray
) -> Figure:
    """Grey-level densities of normal and defective pixels, and the share of the image each defect covers."""
    drawn, (left, right) = _axes(7, 2.4, 2)
    left.plot(grey_levels, np.stack([normal, defective], axis=1), label=["normal pixels", "pixels inside masks"])
    left.set(xlabel="grey level", ylabel="density", ylim=(0, None))
    left.legend()
    names = sorted(set(defects.tolist()))
    for i, name in enumerate(names):
        area = 100 * defect_area[defects == name]
        right.plot(area, np.full(len(area), i), "o", ms=3.5, alpha=0.7, color="C0")
    right.set(yticks=range(len(names)), yticklabels=names, xlabel="mask area, % of the image", xlim=(0, None))
    return drawn


# --- 02 VAE training
def learning_curve(history: np.ndarray) -> Figure:
    """Loss terms per crop [steps, 2] (binary cross-entropy, KL), nats, raw and as a running mean."""
    drawn, axes = _axes(7, 2.4, 2)
    width = max(1, len(history) // 40)
    for axis, term, name in zip(axes, history.T, ("binary cross-entropy", "KL divergence"), strict=True):
        axis.plot(np.arange(1, len(term) + 1), term, lw=0.5, alpha=0.4, color="C0")
        mean = np.convolve(term, np.ones(width) / width, "valid")
        axis.plot(np.arange(len(mean)) + (width + 1) / 2, mean, color="C0")
        low, high = np.quantile(term[len(term) // 20 :], [0, 1])
        axis.set(xlabel="step", ylabel="nats per crop", title=name, ylim=(low - 0.05 * (high - low), high + 0.1 * (high - low)))
    return drawn


def snapshots(probe: np.ndarray, pictures: np.ndarray, steps: np.ndarray) -> Figure:
    """The probe crops [n, C, c, c] over their reconstructions after growing numbers of steps [K, n, C, c, c]."""
    return grid([probe, *pictures], ["crop", *(f"step {s}" for s in steps)], side=0.95)


def samples(pictures: np.ndarray) -> Figure:
    """Pictures decoded from z ~ N(0, 1), [n, C, c, c]."""
    half = len(pictures) // 2
    return grid([pictures[:half], pictures[half:]], ["prior", "samples"])


# --- 03 baseline reconstruction
def reconstruction(originals: np.ndarray, pictures: np.ndarray) -> Figure:
    """The article's first figure: originals over VAE reconstructions, [n, C, c, c]."""
    return grid([originals, pictures], ["original", "VAE"])


def residual(images: np.ndarray, pictures: np.ndarray, masks: np.ndarray, titles: np.ndarray) -> Figure:
    """Defects, their reconstructions and what is left: the defect, and every edge of the mesh."""
    left = np.abs(np.subtract(images, pictures, dtype=np.float32)).mean(1)
    return grid([images, pictures, left], ["image", "VAE", "|x - f(x)|"], titles, maps=["gray", "gray", CHANGE], outlines=masks)


def sharpness(frequency: np.ndarray, image: np.ndarray, picture: np.ndarray) -> Figure:
    """Power at each spatial frequency of normal crops and of their reconstructions: blur is the missing tail."""
    drawn, (axis,) = _axes(4.5, 2.5, 1)
    axis.semilogy(frequency, np.stack([image, picture], axis=1), label=["image", "VAE reconstruction"])
    axis.set(xlabel="spatial frequency, cycles per pixel", ylabel="power")
    axis.legend()
    return drawn


def spectra(image: np.ndarray, picture: np.ndarray) -> Figure:
    """Power of crops and of their reconstructions at every spatial frequency, [c, c] with 0 in the middle, logarithmic."""
    drawn, axes = _axes(6, 2.9, 2)
    low, high = np.quantile(np.log10([image, picture]), [0.01, 0.999])
    for axis, power, title in zip(axes, (image, picture), ("image", "VAE reconstruction"), strict=True):
        drawn_power = axis.imshow(np.log10(power), cmap=CHANGE, vmin=low, vmax=high, extent=(-0.5, 0.5, 0.5, -0.5))
        axis.set(title=title, xlabel="cycles per pixel", xticks=np.arange(-4, 5, 2) / 8, yticks=np.arange(-4, 5, 2) / 8)
        axis.tick_params(labelsize=6)
        axis.grid(False)
    drawn.colorbar(drawn_power, ax=axes.tolist(), label="log10 power", shrink=0.8)
    return drawn


def pasted(images: np.ndarray, pictures: np.ndarray, pasted: np.ndarray, titles: np.ndarray) -> Figure:
    """Defects, their reconstructions, and the composite of both, [n, C, c, c]."""
    return grid([images, pictures, pasted], ["image", "VAE", "composite"], titles)


# --- 04 iterative projection
def energy_curves(terms: np.ndarray, names: np.ndarray) -> Figure:
    """The energy and its two terms, reconstruction and distance, along the iterations: [T + 1, B, 2]."""
    drawn, axes = _axes(8, 2.4, 3)
    labels = ("energy $E$", "reconstruction term", "distance term")
    for axis, values, label in zip(axes, (terms.sum(2), *terms.transpose(2, 0, 1)), labels, strict=True):
        axis.plot(values, label=names.tolist())
        axis.set(xlabel="iteration t", title=label, ylim=(0, None))
    axes[0].set_ylabel("squared grey levels")
    axes[1].legend(fontsize=6)
    return drawn


def iteration_strip(frames: np.ndarray, pictures: np.ndarray, iterations: np.ndarray) -> Figure:
    """x_t, f(x_t) and the change so far at some iterations, each [K, C, c, c]."""
    change = np.abs(np.subtract(frames, frames[0], dtype=np.float32)).mean(1)
    titles = [f"t = {t}" for t in iterations]
    return grid([frames, pictures, change], ["$x_t$", "$f(x_t)$", "$|x_t - x_0|$"], titles, maps=["gray", "gray", CHANGE])


def soft_mask(image: np.ndarray, picture: np.ndarray, gradient: np.ndarray) -> Figure:
    """One step taken apart: image, reconstruction, squared residual, gradient, and their product, each [C, c, c]."""
    image, picture, gradient = (a.astype(np.float32) for a in (image, picture, gradient))
    mask = (image - picture) ** 2
    parts = [image, picture, mask, gradient, mask * gradient]
    titles = ["$x_0$", "$f(x_0)$", "mask $(x_0 - f(x_0))^2$", r"gradient $\nabla E$", "mask x gradient"]
    cmaps = ["gray", "gray", CHANGE, SIGNED, SIGNED]
    drawn, axes = _axes(8, 1.9, 5, bare=True)
    for axis, part, title, cmap in zip(axes, [part.mean(0) for part in parts], titles, cmaps, strict=True):
        low, high = _range([np.clip(part, *np.quantile(part, [0.002, 0.998]))], cmap)
        axis.imshow(part, cmap=cmap, vmin=low, vmax=high)
        axis.set_title(title)
    return drawn


def lam_alpha(pictures: np.ndarray, alphas: np.ndarray, lams: np.ndarray) -> Figure:
    """The projected crop for each alpha (columns) and lam (rows), [L, A, C, c, c]."""
    return grid(list(pictures), [rf"$\lambda$ = {lam:g}" for lam in lams], [rf"$\alpha$ = {a:g}" for a in alphas])


def weights(
    images: np.ndarray, pictures: np.ndarray, seen: np.ndarray, expected: np.ndarray, weight: np.ndarray, titles: np.ndarray
) -> Figure:
    """How the weight comes about: image, f(x), the roots of smoothed and of expected residual on one scale, w; [n, C, c, c]."""
    top = max(float(np.sqrt(seen).max()), float(np.sqrt(expected).max()))
    rows = [images, pictures, np.sqrt(seen) / top, np.sqrt(expected) / top, weight]
    labels = ["$x_0$", "$f(x_0)$", r"$\sqrt{q}$", r"$\sqrt{e}$", "w"]
    return grid(rows, labels, titles, maps=["gray", "gray", CHANGE, CHANGE, CHANGE], unit=(2, 3, 4))


def descents(images: np.ndarray, pictures: np.ndarray, changes: np.ndarray, names: np.ndarray, titles: np.ndarray) -> Figure:
    """Where several rules end, [V, n, C, c, c], and what each changed, [V, n, c, c], on one colour scale."""
    top = float(changes.max()) or 1.0
    rows = [images, *[row for pair in zip(pictures, np.asarray(changes) / top, strict=True) for row in pair]]
    labels = ["image", *[label for name in names for label in (str(name), "change")]]
    maps, unit = ["gray", *["gray", CHANGE] * len(pictures)], range(2, len(rows), 2)
    return grid(rows, labels, titles, maps=maps, unit=unit, side=1.0)


def rules(images: np.ndarray, pictures: np.ndarray, names: np.ndarray, titles: np.ndarray) -> Figure:
    """Where several rules end, [V, n, C, c, c], under the images they began with."""
    return grid([images, *pictures], ["image", *names.tolist()], titles, side=1.0)


def one_pixel(levels: np.ndarray, gradients: np.ndarray, paths: np.ndarray, names: np.ndarray, f: np.ndarray) -> Figure:
    """What each loss asks of a pixel of grey x painted as f: gradient [V, K] at ``levels`` [K], paths [V, T + 1, 2]."""
    drawn, (left, right) = _axes(7.5, 2.6, 2)
    left.plot(levels, gradients.T, label=names.tolist())
    left.axhline(0, color="0.5", lw=0.8)
    left.axvline(float(f), color="0.5", ls=":", lw=1)
    left.set(xlabel="grey level x", ylabel="gradient", title=f"f = {float(f):g} (dotted)", ylim=(-6, 6))
    for i, path in enumerate(paths):
        right.plot(path, color=f"C{i}")
    right.axhline(float(f), color="0.5", ls=":", lw=1)
    right.set(xlabel="iteration t", ylabel="$x_t$", ylim=(0, 1), title="masked steps from 0.8 and from 0.1")
    left.legend(fontsize=7)
    return drawn


def article_bugs(images: np.ndarray, changes: np.ndarray, names: np.ndarray, titles: np.ndarray) -> Figure:
    """What the article's loop changes, |x_T - x_0| [V, n, c, c], with each of its bugs by itself; one colour scale a row."""
    maps = ["gray", *[CHANGE] * len(changes)]
    return grid([images, *map(_root, changes)], ["image", *names.tolist()], titles, maps=maps, side=1.0)


# --- 05 figures
def comparison(
    images: np.ndarray, pictures: np.ndarray, projections: np.ndarray, masks: np.ndarray, titles: np.ndarray
) -> Figure:
    """The article's second figure: test image, VAE reconstruction, projection, [n, C, c, c] each."""
    return grid([images, pictures, projections], ["test image", "VAE", "projection"], titles, outlines=masks, side=1.3)


def restoration(names: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> Figure:
    """PSNR to the scene without its defect, inside and outside the mask, [methods, images] each, dB.

    The first method is the test image: outside the mask it is nearly the truth itself, far above the others, and left out.
    """
    drawn, axes = _axes(7.5, 0.32 * len(names) + 0.8, 2)
    for axis, values, title, first in zip(
        axes, (inside, outside), ("inside the mask", "outside the mask"), (0, 1), strict=True
    ):
        finite = [row[np.isfinite(row)] for row in values[first:]]  # infinite where a picture is the truth itself
        at = np.arange(len(finite), 0, -1)
        look = {"medianprops": {"color": "C1"}, "flierprops": {"ms": 3}}
        axis.boxplot(finite, positions=at, widths=0.55, orientation="horizontal", **look)
        axis.plot([row.mean() if len(row) else np.nan for row in finite], at, "D", ms=4, label="mean")
        axis.set(yticks=at, yticklabels=names[first:].tolist(), xlabel="PSNR, dB", title=title, ylim=(0.4, len(names) + 0.6))
    axes[0].legend()
    return drawn


def repair_and_damage(names: np.ndarray, **curves: np.ndarray) -> Figure:
    """Repair inside the masks against damage to normal texture, along the iterations of each method.

    Args:
        names: of the methods, as labels, in the order of ``curves``.
        curves: for each method ``<i>_passes`` [K], network passes so far; ``<i>_psnr`` [K], dB inside the masks;
            ``<i>_error`` [K], error power on normal crops.
    """
    drawn, (left, right) = _axes(7.5, 2.8, 2)
    for i, name in enumerate(names):
        passes, repair, damage = (curves[f"{i}_{key}"] for key in ("passes", "psnr", "error"))
        marker = "o" if len(passes) < 8 else None
        left.plot(passes, repair, label=str(name), marker=marker, ms=3)
        right.plot(passes, damage, label=str(name), marker=marker, ms=3)
    left.set(xlabel="network passes", ylabel="PSNR, dB", title="repair: inside the masks", xscale="symlog")
    right.set(xlabel="network passes", ylabel="error power", title="damage: normal crops", xscale="symlog", ylim=(0, None))
    left.legend(loc="lower right")
    return drawn


# --- 06 localization benchmark
def roc_pro(fpr: np.ndarray, recall: np.ndarray, pro: np.ndarray, names: np.ndarray) -> Figure:
    """ROC and PRO curves of the smoothed maps, [methods, points] each."""
    drawn, axes = _axes(7.5, 3, 2)
    for axis, values, label in zip(axes, (recall, pro), ("recall", "per-region overlap"), strict=True):
        axis.plot(fpr.T, values.T, label=names.tolist())
        axis.set(xlabel="false-positive rate", ylabel=label, xlim=(0, 0.3), ylim=(0, 1.01))
    axes[1].legend(loc="lower right")
    return drawn


def gallery(images: np.ndarray, masks: np.ndarray, residuals: np.ndarray, maps: np.ndarray, titles: np.ndarray) -> Figure:
    """Whole images with their masks outlined, the VAE residual's map and the projection's, one column each."""
    rows = [images, _root(residuals), _root(maps)]
    return grid(rows, ["image", "VAE residual", "projection"], titles, maps=["gray", CHANGE, CHANGE], outlines=masks, side=1.35)


def cases(images: np.ndarray, masks: np.ndarray, maps: np.ndarray, titles: np.ndarray) -> Figure:
    """The images localized best and worst, with their anomaly maps."""
    return grid([images, _root(maps)], ["image", "anomaly map"], titles, maps=["gray", CHANGE], outlines=masks, side=1.5)


# --- 07 ablations
def ablation(labels: np.ndarray, change: np.ndarray, spread: np.ndarray) -> Figure:
    """The change of AP that each setting makes, [K], sorted; the band, ``spread`` [low, high], is what another seed makes."""
    order = np.argsort(change)
    drawn, (axis,) = _axes(6.5, 0.165 * len(change) + 0.7, 1)
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
        axis.annotate(str(name), (x, y), textcoords="offset points", xytext=(4, 5), fontsize=7)
    axis.set(xlabel="parameters, millions", ylabel="pixel AP")
    return drawn


# Every figure by its name, in the order of the notebooks.
FIGURES: dict[str, Callable[..., Figure]] = {
    function.__name__: function
    for function in (
        *(dataset, crops, statistics, learning_curve, snapshots, samples, reconstruction, residual, sharpness, spectra, pasted),
        *(soft_mask, energy_curves, iteration_strip, lam_alpha, weights, descents, article_bugs, one_pixel, rules),
        *(comparison, restoration, repair_and_damage, roc_pro, gallery, cases, ablation, network_sizes),
    )
}
