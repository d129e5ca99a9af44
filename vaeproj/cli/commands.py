"""Command line: ``python -m vaeproj run | detect | sweep | data | figures | publish | page``."""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ..config import PRESETS, RESULTS_DIR, UserError


def main(argv: list[str] | None = None) -> int:
    """Run a command; a user's mistake ends in one sentence on stderr and exit code 2."""
    arguments = vars(parser().parse_args(argv))
    # Each yields what to print, and imports torch and matplotlib itself: --help and mistakes answer at once.
    commands: dict[str, Callable[..., Iterator[str]]] = {
        "run": _run, "detect": _detect, "sweep": _sweep, "data": _data, "publish": _publish, "figures": _figures, "page": _page,
    }  # fmt: skip
    try:
        for line in commands[arguments.pop("command")](**arguments):
            print(line, flush=True)
    except (UserError, OSError) as error:
        remedy = ": check the path and the room on its disk." if isinstance(error, OSError) else ""
        print(f"vaeproj: {error}{remedy}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vaeproj: interrupted; the same command goes on from the last saved state.", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """Every command and option."""
    whole = argparse.ArgumentParser(prog="vaeproj", description=__doc__)
    commands = whole.add_subparsers(required=True, dest="command", metavar="run|detect|sweep|data|figures|publish|page")
    run = commands.add_parser("run", help="execute notebooks into results/<preset>/")
    run.add_argument("notebooks", nargs="*", metavar="01", help="numbers or names of notebooks (default: 01 to 05)")
    run.add_argument("--preset", default="quick", help=f"{', '.join(PRESETS)} (default: quick)")
    run.add_argument("--data-root", default="", metavar="DIR", help="folder of category folders (default: SynthGrid)")
    run.add_argument("--category", default="grid", metavar="NAME")
    detect = commands.add_parser("detect", help="find defects in photos of your own")
    detect.add_argument("pictures", nargs="+", metavar="PICTURES", help="files, or folders of them")
    detect.add_argument("--good", required=True, metavar="DIR", help="folder of good photos, two or more")
    network = detect.add_mutually_exclusive_group()
    network.add_argument("--preset", default="quick", help=f"{', '.join(PRESETS)} (default: quick)")
    network.add_argument("--run", default="", metavar="DIR", help="run folder whose network and settings are taken instead")
    detect.add_argument("--ignore", default="", metavar="MASK", help="picture that is white where a photo does not count")
    detect.add_argument("--fail-on-defect", action="store_true", help="exit with 1 when a photo is flagged")
    for command, folder in ((run, "<preset>"), (detect, "detect")):
        command.add_argument("--out", default="", metavar="DIR", help=f"folder of results (default: results/{folder})")
        command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings", help="any setting")
        command.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    sweep = commands.add_parser("sweep", help="compute many settings, on this machine or a cluster")
    sweep.add_argument("spec", metavar="SPEC.yml", help="what to compute (docs/sweeps.md), or a failures.csv to try again")
    sweep.add_argument("--scheduler", default="", metavar="tcp://...", help="a running dask cluster (default: this machine)")
    sweep.add_argument("--out", default="", metavar="DIR", help="default: results/sweeps/SPEC")
    data = commands.add_parser("data", help="make SynthGrid, download MVTec AD, or check a folder")
    data.add_argument("action", choices=("synth", "download", "check"))
    data.add_argument("--data-root", default="", metavar="DIR", help="default: data/synthgrid, for download data/mvtec_ad")
    data.add_argument("--category", default="", metavar="NAME", help="default: grid; for download all categories")
    data.add_argument("--url", default="", help="another copy of the MVTec AD archive; its hash is verified all the same")
    publish = commands.add_parser("publish", help="take the outputs of a finished run into notebooks/, for committing")
    publish.add_argument("run", metavar="DIR", help="run folder")
    figures = commands.add_parser("figures", help="draw figures of a finished run again; without a name or run, list them")
    figures.add_argument("names", nargs="*", metavar="NAME", help="default: every figure the run has")
    figures.add_argument("--run", default="", metavar="DIR", help="run folder (default: results/quick)")
    page = commands.add_parser("page", help="write the projection that runs in a browser: one HTML file")
    page.add_argument("--run", default="", metavar="DIR", help="run folder (default: preset compact)")
    page.add_argument("--out", default="", metavar="FILE", help="default: results/page.html")
    return whole


def _run(notebooks: list[str], settings: list[str], **asked: str) -> Iterator[str]:
    from ..runner import TUTORIAL, run
    from ..workspace import Request

    yield f"Done: {run(tuple(notebooks) or TUTORIAL, Request(settings=' '.join(settings), **asked))}"


def _detect(
    pictures: list[str], good: str, run: str, ignore: str, settings: list[str], fail_on_defect: bool, **asked: str
) -> Iterator[str]:
    from ..workspace import Request
    from .detect import detect

    request = Request(settings=" ".join(settings), **asked)
    flagged = yield from detect(pictures, good, request, run=run, ignore=ignore)
    if flagged and fail_on_defect:
        sys.exit(1)


def _sweep(spec: str, scheduler: str, out: str) -> Iterator[str]:
    from distributed import Client

    from ..studies.sweep import sweep

    try:
        Client(scheduler, timeout=10).close() if scheduler else None
    except (OSError, ValueError) as error:
        raise UserError(f"--scheduler {scheduler} does not answer ({error}): start one, or leave the option out.") from error
    done, failed = sweep(Path(spec), Path(out).expanduser() if out else None, scheduler)
    yield f"Done: {done / 'results.csv'}; open {done / 'parallel.html'} in a browser."
    if failed:
        raise UserError(f"{failed} of the points failed: see {done / 'failures.csv'}, and give it to sweep to try them again.")


def _publish(run: str) -> Iterator[str]:
    from ..runner import publish

    yield from map(str, publish(Path(run)))


def _data(action: str, data_root: str, category: str, url: str) -> Iterator[str]:
    from ..config import DATA_DIR
    from ..data import category_dir, check
    from ..synthgrid.dataset import write_synthgrid
    from .download import ARCHIVE_URL, LICENCE, download

    root = Path(data_root or DATA_DIR / ("mvtec_ad" if action == "download" else "synthgrid")).expanduser()
    if action == "synth":
        yield f"SynthGrid: {write_synthgrid(root, category or 'grid')}"
    elif action == "download":
        yield LICENCE
        download(root, category=category or None, url=url or ARCHIVE_URL)
        yield f"MVTec AD: {root}"
    else:
        counts = check(category_dir(root, category or "grid"))
        yield from (f"{count:5d}  {name}" for name, count in counts.items())


def _figures(names: list[str], run: str) -> Iterator[str]:
    from ..figures import FIGURES, redraw

    if not names and not run:
        yield from (f"{name:20s} {(function.__doc__ or '').splitlines()[0]}" for name, function in FIGURES.items())
        return
    folder = Path(run or RESULTS_DIR / "quick") / "figures"
    if not folder.is_dir():
        raise UserError(f"{folder.parent} is not the folder of a finished run: it has no figures; run the notebooks first.")
    for name in names or sorted(p.stem for p in folder.glob("*.npz")):
        redraw(name, folder)
        yield str(folder / f"{name}.png")


def _page(run: str, out: str) -> Iterator[str]:
    from ..files import written_whole
    from ..workspace import Request, Workspace
    from .detect import finished
    from .page import assemble, page_data

    path = Path(out or RESULTS_DIR / "page.html").expanduser().resolve()
    ws = finished(run, Request()) if run else Workspace.open(Request(preset="compact"))
    with written_whole(path) as scratch:
        scratch.write_text(assemble(page_data(ws)), encoding="utf-8")
    yield str(path)
