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

def die(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)

path, kind, moment = Path(sys.argv[1]), *sys.argv[2:]
with written_whole(path) as scratch:
    file = scratch / "deep" / "new" if kind == "folder" else scratch
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("new")
    if moment == "writing":
        die()
    elif moment == "renaming":
        Path.replace = die
    elif moment == "clearing up":
        shutil.rmtree = die
    else:
        print("ready", flush=True)
        sys.stdin.read()
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
def test_it_appears_at_the_end_in_place_of_the_old(tmp_path, kind, old):
    path = tmp_path / "new" / NAME
    if old:
        make(path, kind, "old")
    with written_whole(path) as scratch:
        make(scratch, kind, "new")
        assert scratch.suffix == ".txt"  # writers choose a format by it
        assert path.exists() == old
    assert_alone(path, kind, "new")


@BOTH
def test_bytes_are_on_the_disk_before_they_get_their_name(tmp_path, monkeypatch, kind):
    synced = set()

    def sync(descriptor):
        assert not (tmp_path / NAME).exists()
        synced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", sync)
    write(tmp_path / NAME, kind, "new")
    assert synced == {p.stat().st_ino for p in tmp_path.rglob("*") if p.is_file()}


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


@pytest.mark.parametrize(
    ("kind", "moment", "kept"),
    [
        ("file", "writing", "old"),
        ("file", "renaming", "old"),
        ("folder", "writing", "old"),
        ("folder", "renaming", "old"),
        ("folder", "clearing up", "new"),
    ],
)
def test_what_a_killed_writer_left_is_put_in_order_by_the_next(tmp_path, kind, moment, kept):
    path = tmp_path / NAME
    make(path, kind, "old")
    killed = subprocess.run([sys.executable, "-c", WRITER, str(path), kind, moment])
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # something was left
    with pytest.raises(KeyboardInterrupt):
        write(path, kind, "half", KeyboardInterrupt)
    assert_alone(path, kind, kept)
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
