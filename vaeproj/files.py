"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write to the path this yields, beside ``path``: it becomes ``path`` at the end, and goes if anything fails before.

    Two processes that make the same file do not meet: each has a scratch file of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def swap_in(staging: Path, folder: Path) -> None:
    """Put a finished folder where another may be. The old one goes last, and comes back if anything fails before."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and folder.exists():  # left by a swap that was killed at its end
        shutil.rmtree(old)
    try:
        if folder.exists():
            folder.rename(old)
        staging.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
