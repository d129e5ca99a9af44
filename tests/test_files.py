"""Files and folders that appear whole or not at all."""

from pathlib import Path

import pytest

from vaeproj.files import swap_in, written_whole


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_file_appears_at_the_end(tmp_path):
    path = tmp_path / "new/file.txt"
    with written_whole(path) as scratch:
        scratch.write_text("done")
        assert scratch.suffix == ".txt"
        assert not path.exists()
    assert tree(tmp_path) == {"new/file.txt": "done"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_broken_write_leaves_the_old_file(tmp_path, error):
    (tmp_path / "file").write_text("old")

    def write_half():
        with written_whole(tmp_path / "file") as scratch:
            scratch.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert tree(tmp_path) == {"file": "old"}


def folders(tmp_path):
    for name in ("run", "staging"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path / "staging", tmp_path / "run"


def test_a_folder_takes_the_place_of_another(tmp_path):
    staging, run = folders(tmp_path)
    (tmp_path / ".run.old").mkdir()  # of a swap that was killed
    swap_in(staging, run)
    assert tree(tmp_path) == {"run/file": "staging"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 2])
def test_a_broken_swap_brings_the_old_folder_back(tmp_path, monkeypatch, error, at):
    staging, run = folders(tmp_path)
    rename, calls = Path.rename, []

    def broken(self, target):
        calls.append(self)
        if len(calls) == at:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(error):
        swap_in(staging, run)
    assert tree(tmp_path) == {"run/file": "run", "staging/file": "staging"}
