"""Command line: ``python -m vaeproj run | data | figures | publish``."""

import argparse
import sys
from pathlib import Path

from ..config import PRESETS, RESULTS_DIR, UserError


def main(argv: list[str] | None = None) -> int:
    """Run a command; a user's mistake ends in one sentence on stderr and exit code 2."""
    arguments = parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except UserError as error:
        print(f"vaeproj: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"vaeproj: {error}: check the path and the room on its disk.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vaeproj: interrupted; the same command goes on from the last saved state.", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """Every command and option."""
    whole = argparse.ArgumentParser(prog="vaeproj", description=__doc__)
    commands = whole.add_subparsers(required=True, metavar="run|data|figures|publish")

    run = commands.add_parser("run", help="execute notebooks into results/<preset>/")
    run.add_argument("notebooks", nargs="*", metavar="01", help="numbers or names of notebooks (default: 01 to 05)")
    run.add_argument("--preset", default="quick", help=f"{', '.join(PRESETS)} (default: quick)")
    run.add_argument("--data-root", default="", metavar="DIR", help="folder of category folders (default: SynthGrid)")
    run.add_argument("--category", default="grid", metavar="NAME")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings", help="any hyper-parameter")
    run.add_argument("--out", default="", metavar="DIR", help="run folder (default: results/<preset>)")
    run.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    run.set_defaults(command=_run)

    data = commands.add_parser("data", help="make SynthGrid, download MVTec AD, or check a folder")
    data.add_argument("action", choices=("synth", "download", "check"))
    data.add_argument("--data-root", default="", metavar="DIR", help="default: data/synthgrid, for download data/mvtec_ad")
    data.add_argument("--category", default="", metavar="NAME", help="default: grid; for download all categories")
    data.add_argument("--url", default="", help="another copy of the MVTec AD archive; its hash is verified all the same")
    data.set_defaults(command=_data)

    publish = commands.add_parser("publish", help="take the outputs of a finished run into notebooks/, for committing")
    publish.add_argument("run", metavar="DIR", help="run folder")
    publish.set_defaults(command=_publish)

    figures = commands.add_parser("figures", help="draw figures of a finished run again; without a name or run, list them")
    figures.add_argument("names", nargs="*", metavar="NAME", help="default: every figure the run has")
    figures.add_argument("--run", default="", metavar="DIR", help="run folder (default: results/quick)")
    figures.set_defaults(command=_figures)
    return whole


# Imports of torch and matplotlib wait until a command needs them, so that --help and mistakes answer at once.


def _run(arguments: argparse.Namespace) -> None:
    from ..workspace import Request
    from .runner import TUTORIAL, run

    a = arguments
    request = Request(a.preset, " ".join(a.settings), a.data_root, a.category, a.device, a.out)
    print(f"Done: {run(tuple(a.notebooks) or TUTORIAL, request)}")


def _publish(arguments: argparse.Namespace) -> None:
    from .runner import publish

    for path in publish(Path(arguments.run)):
        print(path)


def _data(arguments: argparse.Namespace) -> None:
    from ..config import DATA_DIR
    from ..data import category_dir, check
    from ..synthgrid.dataset import write_synthgrid
    from .download import ARCHIVE_URL, LICENCE, download

    default = DATA_DIR / ("mvtec_ad" if arguments.action == "download" else "synthgrid")
    root = Path(arguments.data_root).expanduser() if arguments.data_root else default
    if arguments.action == "synth":
        print(f"SynthGrid: {write_synthgrid(root)}")
    elif arguments.action == "download":
        print(LICENCE)
        download(root, category=arguments.category or None, url=arguments.url or ARCHIVE_URL)
        print(f"MVTec AD: {root}")
    else:
        counts = check(category_dir(root, arguments.category or "grid"))
        for name, count in counts.items():
            print(f"{count:5d}  {name}")


def _figures(arguments: argparse.Namespace) -> None:
    from ..figures import FIGURES, redraw

    if not arguments.names and not arguments.run:
        for name, function in FIGURES.items():
            print(f"{name:20s} {(function.__doc__ or '').splitlines()[0]}")
        return
    folder = (Path(arguments.run) if arguments.run else RESULTS_DIR / "quick") / "figures"
    if not folder.is_dir():
        raise UserError(f"{folder.parent} is not the folder of a finished run: it has no figures; run the notebooks first.")
    for name in arguments.names or sorted(p.stem for p in folder.glob("*.npz")):
        redraw(name, folder)
        print(folder / f"{name}.png")
