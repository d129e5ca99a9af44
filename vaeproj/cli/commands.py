"""Command line: ``python -m vaeproj run | data | figures | publish``."""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ..config import PRESETS, RESULTS_DIR, UserError


def main(argv: list[str] | None = None) -> int:
    """Run a command; a user's mistake ends in one sentence on stderr and exit code 2."""
    arguments = vars(parser().parse_args(argv))
    # Each yields what to print, and imports torch and matplotlib itself: --help and mistakes answer at once.
    commands: dict[str, Callable[..., Iterator[str]]] = {"run": _run, "data": _data, "publish": _publish, "figures": _figures}
    try:
        for line in commands[arguments.pop("command")](**arguments):
            print(line)
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
    commands = whole.add_subparsers(required=True, dest="command", metavar="run|data|figures|publish")
    run = commands.add_parser("run", help="execute notebooks into results/<preset>/")
    run.add_argument("notebooks", nargs="*", metavar="01", help="numbers or names of notebooks (default: 01 to 05)")
    run.add_argument("--preset", default="quick", help=f"{', '.join(PRESETS)} (default: quick)")
    run.add_argument("--data-root", default="", metavar="DIR", help="folder of category folders (default: SynthGrid)")
    run.add_argument("--category", default="grid", metavar="NAME")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings", help="any hyper-parameter")
    run.add_argument("--out", default="", metavar="DIR", help="run folder (default: results/<preset>)")
    run.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
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
    return whole


def _run(notebooks: list[str], settings: list[str], **asked: str) -> Iterator[str]:
    from ..workspace import Request
    from .runner import TUTORIAL, run

    yield f"Done: {run(tuple(notebooks) or TUTORIAL, Request(settings=' '.join(settings), **asked))}"


def _publish(run: str) -> Iterator[str]:
    from .runner import publish

    yield from map(str, publish(Path(run)))


def _data(action: str, data_root: str, category: str, url: str) -> Iterator[str]:
    from ..config import DATA_DIR
    from ..data import category_dir, check
    from ..synthgrid.dataset import write_synthgrid
    from .download import ARCHIVE_URL, LICENCE, download

    root = Path(data_root or DATA_DIR / ("mvtec_ad" if action == "download" else "synthgrid")).expanduser()
    if action == "synth":
        yield f"SynthGrid: {write_synthgrid(root)}"
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
