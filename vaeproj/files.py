"""Atomic writes of files and folders, and arrays that are computed once."""

import glob
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import psutil


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Atomic write of a file or a folder: yields a scratch path, renamed to ``path`` at the end, deleted on failure.
    It is flushed to disk first (fsync), and what a killed process left of an earlier try goes. Of two writers the later wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix, old = f".partial-{socket.gethostname()}-", path.with_name(f".old-{path.name}")
    for left in path.parent.glob(f"{glob.escape(prefix)}*-{glob.escape(path.name)}"):
        pid = left.name.removeprefix(prefix).removesuffix(f"-{path.name}")
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            _delete(left)
    if old.exists():  # killed while one folder took the place of another
        _delete(old) if path.exists() else old.rename(path)
    scratch = path.with_name(f"{prefix}{os.getpid()}-{path.name}")
    _delete(scratch)
    try:
        yield scratch
        _sync(scratch)
        if scratch.is_dir() and path.exists():  # a folder cannot be renamed onto another
            path.rename(old)
        try:
            scratch.replace(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
        _delete(old)
    finally:
        _delete(scratch)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file, or every file of a folder, to disk (fsync)."""
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())


def kept_arrays(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of an npz file; made now, and kept there, where it is missing or cut short."""
    with suppress(OSError, ValueError, EOFError, BadZipFile), np.load(path) as file:
        return dict(file)
    arrays = make()
    with written_whole(path) as scratch, scratch.open("wb") as opened:
        np.savez(opened, **arrays)  # type: ignore[arg-type]
    return arrays
