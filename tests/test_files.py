"""Files and folders appear whole or not at all, whatever ends the writer and whenever."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vaeproj.files import written_whole

NAME = "it [1].txt"  # brackets mean something to glob
BOTH = pytest.mark.parametrize("kind", ["file", "folder"])
WRITER = """
import os, shutil, signal, sys
from pathlib import Path
from vaeproj.files import written_whole

die = lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL)
path, kind, moment = Path(sys.argv[1]), *sys.argv[2:]
with written_whole(path) as scratch:
    file = scratch / "deep" / "new" if kind == "folder" else scratch
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("new")
    match moment:
        case "writing": die()
        case "renaming": Path.replace = die
        case "clearing up": shutil.rmtree = die
        case "waiting": print("ready", flush=True); sys.stdin.read()
"""


def make(path, kind, text):
    """A file, or a folder with a file that is named by its text: another text is another file."""
    file = path / "deep" / text if kind == "folder" else path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def write(path, kind, text, error=None):
    with written_whole(path) as scratch:
        make(scratch, kind, text)
        if error:
            raise error


def assert_alone(path, kind, text):
    """What `make` makes is there, and nothing beside it."""
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    files = {p.name: p.read_text() for p in path.parent.rglob("*") if p.is_file()}
    assert files == {text if kind == "folder" else path.name: text}


@BOTH
@pytest.mark.parametrize("old", [True, False])
def test_it_takes_its_name_at_the_end_with_its_bytes_on_the_disk(tmp_path, monkeypatch, kind, old):
    path, synced = tmp_path / "new" / NAME, set()

    def sync(descriptor):
        assert path.exists() == old
        synced.add(os.fstat(descriptor).st_ino)

    if old:
        make(path, kind, "old")
    monkeypatch.setattr(os, "fsync", sync)
    with written_whole(path) as scratch:
        make(scratch, kind, "new")
        assert scratch.suffix == ".txt"  # writers choose a format by it
        assert not synced
    assert_alone(path, kind, "new")
    assert synced == {p.stat().st_ino for p in path.parent.rglob("*") if p.is_file()}


@BOTH
@pytest.mark.parametrize("moment", ["writing", "renaming"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old(tmp_path, monkeypatch, kind, moment, error):
    def fail(self, target):
        raise error

    make(tmp_path / NAME, kind, "old")
    if moment == "renaming":
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(error):
        write(tmp_path / NAME, kind, "half", error if moment == "writing" else None)
    assert_alone(tmp_path / NAME, kind, "old")


@pytest.mark.parametrize("moment", ["writing", "renaming", "clearing up"])
@BOTH
def test_what_a_killed_writer_left_is_put_in_order_by_the_next(tmp_path, kind, moment):
    path = tmp_path / NAME
    make(path, kind, "old")
    killed = subprocess.run([sys.executable, "-c", WRITER, str(path), kind, moment])
    over = (kind, moment) == ("file", "clearing up")  # a file has nothing to clear up
    assert killed.returncode == (0 if over else -signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == (1 if over else 2)  # something was left
    with pytest.raises(KeyboardInterrupt):
        write(path, kind, "half", KeyboardInterrupt)
    assert_alone(path, kind, "new" if moment == "clearing up" else "old")
    write(path, kind, "newest")
    assert_alone(path, kind, "newest")


@BOTH
def test_two_writers_do_not_meet_and_the_later_one_stays(tmp_path, kind):
    path = tmp_path / NAME
    command = [sys.executable, "-c", WRITER, str(path), kind, "waiting"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        write(path, kind, "earlier")
        assert len(list(tmp_path.iterdir())) == 2  # what the other writes is left alone
    assert other.returncode == 0
    assert_alone(path, kind, "new")


def test_a_link_is_replaced_and_what_it_points_to_left_alone(tmp_path):
    path, elsewhere = tmp_path / "here" / NAME, tmp_path / "elsewhere"
    path.parent.mkdir()
    make(elsewhere, "folder", "old")
    path.symlink_to(elsewhere)
    write(path, "folder", "new")
    assert_alone(path, "folder", "new")
    assert (elsewhere / "deep/old").read_text() == "old"
