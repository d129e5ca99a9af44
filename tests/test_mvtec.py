"""The data folder is read as it lies there, its mistakes are named, and neither cache nor download can go half wrong."""

import hashlib
import io
import socket
import tarfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vaeproj.mvtec import category_dir, check, download, load_clean, load_split

from vaeproj import mvtec

ARCHIVE = "mvtec_anomaly_detection.tar.xz"


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def assert_same(a: mvtec.Split, b: mvtec.Split) -> None:
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.gt_masks, b.gt_masks)
    assert (a.defects, a.names, a.digest) == (b.defects, b.names, b.digest)


# --- reading


def test_names_and_order_are_those_of_the_files(category):
    train, test = (load_split(category, split, 16, cache=None) for split in ("train", "test"))
    assert train.names == ["good/000", "good/002", "good/010"]
    assert test.names == ["bent/003", "bent/004", "good/001", "good/007", "thread/000"]
    assert test.defects == ["bent", "bent", "good", "good", "thread"]
    assert test.gt_labels.tolist() == [True, True, False, False, True]
    assert test.index("good/007") == 3


def test_an_unknown_name_is_refused(category, refuses):
    with refuses("'bent/000'", "bent/003"):
        load_split(category, "test", 16, cache=None).index("bent/000")


@pytest.mark.parametrize("size", [16, 40, 64])
def test_pixels_are_those_of_pil(category, size):
    test = load_split(category, "test", size, cache=None)
    assert test.images.shape == (5, 1, size, size)
    assert test.images.dtype == test.gt_masks.dtype == np.uint8
    for name, image, mask in zip(test.names, test.images, test.gt_masks, strict=True):
        picture = Image.open(category / "test" / f"{name}.png")
        np.testing.assert_array_equal(image[0], np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)))
        truth = category / "ground_truth" / f"{name}_mask.png"
        if truth.exists():
            nearest = np.asarray(Image.open(truth).resize((size, size), Image.Resampling.NEAREST))
            np.testing.assert_array_equal(mask, nearest // 255)
            assert set(np.unique(mask)) == {0, 1}
        else:
            assert not mask.any()


@pytest.mark.parametrize("suffix", ["png", "bmp", "TIF"])
def test_colour_comes_channels_first(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    save(tmp_path / f"tiles/train/good/000.{suffix}", pixels)
    split = load_split(tmp_path / "tiles", "train", 16, cache=None)
    expected = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(split.images[0], expected.transpose(2, 0, 1))


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    grey = np.random.default_rng(0).integers(0, 2**16, (16, 16), dtype=np.uint16)
    save(tmp_path / "train/good/000.png", grey)
    np.testing.assert_array_equal(load_split(tmp_path, "train", 16, cache=None).images[0, 0], grey // 256)


def test_the_digest_follows_every_byte_and_nothing_else(category):
    before = [load_split(category, split, 16, cache=None).digest for split in ("train", "test")]
    assert before == [load_split(category, split, 32, cache=None).digest for split in ("train", "test")]
    mask = category / "ground_truth/bent/003_mask.png"
    save(mask, 255 - np.asarray(Image.open(mask)))
    after = [load_split(category, split, 16, cache=None).digest for split in ("train", "test")]
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_check_counts_by_folder(category):
    assert check(category) == {
        "train/good": 3, "test/good": 2, "test/bent": 2, "test/thread": 1, "ground_truth/bent": 2, "ground_truth/thread": 1,
    }  # fmt: skip


def test_clean_scenes_are_read_by_name(category, refuses):
    with refuses("clean"):
        load_clean(category, ["bent/003"], 16)
    pixels = np.random.default_rng(1).integers(0, 256, (40, 48), dtype=np.uint8)
    save(category / "clean/bent/003.png", pixels)
    expected = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(load_clean(category, ["bent/003"], 16), expected[None, None])
    with refuses("bent/004.png"):
        load_clean(category, ["bent/004"], 16)


# --- mistakes in the folder


def test_a_missing_root_is_named(tmp_path, refuses):
    with refuses(tmp_path / "nowhere", "--data-root"):
        category_dir(tmp_path / "nowhere", "grid")


def test_a_missing_category_is_answered_with_those_found(category, refuses):
    root = category.parent
    (root / "rope/train/good").mkdir(parents=True)
    (root / "papers").mkdir()
    assert category_dir(root, "mesh") == category
    with refuses("'grid'", "mesh, rope"):
        category_dir(root, "grid")
    (root / "empty").mkdir()
    with refuses("'grid'", "none"):
        category_dir(root / "empty", "grid")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_folder_without_images_is_named(tmp_path, refuses, split):
    with refuses(tmp_path / split):
        load_split(tmp_path, split, 16, cache=None)
    (tmp_path / split / "good").mkdir(parents=True)
    (tmp_path / split / "good" / "Thumbs.db").write_bytes(b"")
    with refuses(tmp_path / split):
        load_split(tmp_path, split, 16, cache=None)


@pytest.fixture(params=["load_split", "check"])
def read(request):
    """The two ways to read a category's test images."""
    return check if request.param == "check" else lambda folder: load_split(folder, "test", 16, cache=None)


def test_a_missing_mask_is_named(category, refuses, read):
    (category / "ground_truth/thread/000_mask.png").unlink()
    with refuses(category / "test/thread/000.png", category / "ground_truth/thread/000_mask.png"):
        read(category)


def test_a_mask_of_another_size_is_named(category, refuses, read):
    mask = category / "ground_truth/thread/000_mask.png"
    save(mask, np.zeros((48, 40), np.uint8))
    with refuses(mask, "40x48", "48x40"):
        read(category)


@pytest.mark.parametrize("name", ["test/bent/004.png", "ground_truth/bent/004_mask.png"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_an_unreadable_image_is_named(category, refuses, read, name, damage):
    path = category / name
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "text": b"<html>not found</html>"}[damage])
    with refuses(path):
        read(category)


def test_a_link_to_nowhere_is_named(category, refuses, read):
    (category / "test/bent/005.png").symlink_to(category / "gone.png")
    (category / "ground_truth/bent/005_mask.png").write_bytes((category / "ground_truth/bent/004_mask.png").read_bytes())
    with refuses(category / "test/bent/005.png"):
        read(category)


def test_grey_and_colour_in_one_split_are_refused(category, refuses):
    save(category / "train/good/011.png", np.zeros((40, 48, 3), np.uint8))
    with refuses(category / "train/good/011.png", "channels"):
        load_split(category, "train", 16, cache=None)


# --- the cache of decoded pixels


def decodes(monkeypatch) -> list[object]:
    """Grows by one with every image that PIL opens."""
    opened: list[object] = []
    real = Image.open

    def count(*args, **kwargs):
        opened.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(Image, "open", count)
    return opened


def test_a_second_start_maps_the_pixels_from_disk(category, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    plain = load_split(category, "test", 16, cache=None)
    first = load_split(category, "test", 16, cache=cache)
    opened = decodes(monkeypatch)
    second = load_split(category, "test", 16, cache=cache)
    assert not opened
    assert_same(first, plain)
    assert_same(second, plain)
    for split in (first, second):
        for array in (split.images, split.gt_masks):
            assert isinstance(array, np.memmap)
            assert not array.flags.writeable


def test_another_size_and_another_split_have_their_own_pixels(category, tmp_path):
    cache = tmp_path / "cache"
    for split, size in (("train", 16), ("test", 16), ("train", 24)):
        load_split(category, split, size, cache=cache)
    for split, size in (("train", 16), ("test", 16), ("train", 24)):
        assert_same(load_split(category, split, size, cache=cache), load_split(category, split, size, cache=None))


@pytest.mark.parametrize("name", ["test/bent/003.png", "ground_truth/bent/003_mask.png"])
def test_a_changed_file_gives_new_pixels(category, tmp_path, name):
    cache = tmp_path / "cache"
    before = load_split(category, "test", 16, cache=cache)
    save(category / name, 255 - np.asarray(Image.open(category / name)))
    after = load_split(category, "test", 16, cache=cache)
    assert_same(after, load_split(category, "test", 16, cache=None))
    changed = (before.images != after.images).any() if name.startswith("test") else (before.gt_masks != after.gt_masks).any()
    assert changed


@pytest.mark.parametrize("kind", ["images", "masks"])
@pytest.mark.parametrize("length", [0, 5, 60, 128, -1])
def test_a_cache_file_cut_short_is_decoded_anew(category, tmp_path, kind, length):
    cache = tmp_path / "cache"
    load_split(category, "test", 16, cache=cache)
    (path,) = cache.glob(f"*{kind}*.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    assert_same(load_split(category, "test", 16, cache=cache), load_split(category, "test", 16, cache=None))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("die_at", [1, 2])
def test_a_killed_writer_leaves_nothing_wrong(category, tmp_path, monkeypatch, die_at):
    cache, calls, real = tmp_path / "cache", [], np.save

    def save_half(file, array, **options):
        calls.append(file)
        if len(calls) == die_at:
            file.write(b"\x93NUMPY half of it")
            file.flush()
            raise KeyboardInterrupt
        real(file, array, **options)

    monkeypatch.setattr(np, "save", save_half)
    with pytest.raises(KeyboardInterrupt):
        load_split(category, "test", 16, cache=cache)
    monkeypatch.setattr(np, "save", real)
    assert len(list(cache.iterdir())) == die_at - 1  # only files written in full
    expected = load_split(category, "test", 16, cache=None)
    for _ in range(2):
        assert_same(load_split(category, "test", 16, cache=cache), expected)


# --- download


@dataclass
class Server:
    """Serves one body on 127.0.0.1, whole or from an offset; breaks each transfer off after ``breaks[i]`` bytes."""

    body: bytes
    breaks: list[int] = field(default_factory=list)
    ranges: bool = True
    chunked: bool = False
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(server: Server):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            server.asked.append(wanted)
            if self.path != "/archive":
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
            if start >= len(server.body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
            rest = server.body[start:]
            self.send_header(*(("Transfer-Encoding", "chunked") if server.chunked else ("Content-Length", str(len(rest)))))
            self.end_headers()
            sent = rest[: server.breaks.pop(0)] if server.breaks else rest
            self.wfile.write(b"%x\r\n%b" % (len(rest), sent) if server.chunked else sent)
            if server.chunked and sent == rest:
                self.wfile.write(b"\r\n0\r\n\r\n")
            self.close_connection = True

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{httpd.server_port}/archive"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def archive(names: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for name, content in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


FILES = {
    "grid/train/good/000.png": b"grid zero",
    "grid/test/bent/000.png": np.random.default_rng(0).bytes(3000),  # xz cannot shrink it: there is something to break off
    "gridlock/train/good/000.png": b"no category of that name was asked for",
    "wood/train/good/000.png": b"wood zero",
    "license.txt": b"CC BY-NC-SA",
}
BODY = archive(FILES)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def get(server: Server, root: Path, **options) -> None:
    download(root, **{"category": "grid", "url": server.url, "sha256": sha256(server.body), "progress": False, **options})


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def of(*categories: str) -> dict[str, bytes]:
    return {name: content for name, content in FILES.items() if name.split("/")[0] in categories}


def test_one_category_is_fetched_and_nothing_else_is_left(tmp_path):
    with serving(Server(BODY)) as server:
        get(server, tmp_path / "new" / "root")
    assert contents(tmp_path / "new" / "root") == of("grid")
    assert [p.name for p in (tmp_path / "new" / "root").iterdir()] == ["grid"]


def test_all_categories_are_fetched(tmp_path):
    with serving(Server(BODY)) as server:
        get(server, tmp_path, category=None)
    assert contents(tmp_path) == of("grid", "gridlock", "wood")


def test_an_archive_that_begins_with_a_dot_is_the_same(tmp_path):
    with serving(Server(archive({f"./{name}": content for name, content in FILES.items()}))) as server:
        get(server, tmp_path)
    assert contents(tmp_path) == of("grid")


def test_an_archive_that_is_there_is_not_fetched_again(tmp_path):
    (tmp_path / ARCHIVE).write_bytes(BODY)
    with serving(Server(BODY)) as server:
        get(server, tmp_path)
    assert server.asked == []
    assert contents(tmp_path) == of("grid")


def test_a_transfer_of_unknown_length_that_breaks_off_is_named(tmp_path, refuses):
    with serving(Server(BODY, breaks=[1000], chunked=True)) as server:
        with refuses(server.url, "run the command again"):
            get(server, tmp_path)
        get(server, tmp_path)
    assert contents(tmp_path) == of("grid")


def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path, refuses):
    with serving(Server(BODY, breaks=[1000, 500])) as server:
        for have in (1000, 1500):
            with refuses(server.url, "run the command again"):
                get(server, tmp_path)
            assert contents(tmp_path) == {f"{ARCHIVE}.part": BODY[:have]}
        get(server, tmp_path)
    assert server.asked == [None, "bytes=1000-", "bytes=1500-"]
    assert contents(tmp_path) == of("grid")


def test_a_server_without_ranges_starts_over(tmp_path):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(BODY[:1000])
    with serving(Server(BODY, ranges=False)) as server:
        get(server, tmp_path)
    assert contents(tmp_path) == of("grid")


def test_a_part_that_holds_every_byte_is_taken(tmp_path):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(BODY)
    with serving(Server(BODY)) as server:
        get(server, tmp_path)
    assert contents(tmp_path) == of("grid")


def test_a_part_of_another_file_is_found_out_by_its_hash(tmp_path, refuses):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(b"x" * 1000)
    with serving(Server(BODY)) as server:
        with refuses("sha256"):
            get(server, tmp_path)
        assert contents(tmp_path) == {}
        get(server, tmp_path)
    assert contents(tmp_path) == of("grid")


def test_a_wrong_hash_unpacks_nothing_and_keeps_nothing(tmp_path, refuses):
    with serving(Server(BODY)) as server, refuses(server.url, sha256(BODY)[:12], "000000000000", "--url"):
        get(server, tmp_path, sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("category", ["grid", None])
def test_a_category_that_is_there_is_not_touched(tmp_path, refuses, category):
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid/mine.txt").write_bytes(b"mine")
    with serving(Server(BODY)) as server, refuses(tmp_path / "grid"):
        get(server, tmp_path, category=category)
    assert server.asked == []
    assert contents(tmp_path) == {"grid/mine.txt": b"mine"}


def test_a_category_the_archive_lacks_is_refused(tmp_path, refuses):
    with serving(Server(BODY)) as server, refuses("'carpet'", "grid"):
        get(server, tmp_path, category="carpet")
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []


@pytest.mark.parametrize("category", ["grid", None])
@pytest.mark.parametrize("name", ["grid/../../escaped.txt", "grid/../../../escaped.txt"])
def test_a_member_that_would_leave_the_folder_is_refused(tmp_path, refuses, category, name):
    root = tmp_path / "a" / "root"
    with serving(Server(archive({"grid/000.png": b"0", name: b"evil"}))) as server, refuses(server.url):
        get(server, root, category=category)
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not (root / "grid").exists()


def test_a_file_that_is_no_archive_is_refused(tmp_path, refuses):
    with serving(Server(b"<html>gone</html>")) as server, refuses(server.url):
        get(server, tmp_path)
    assert not (tmp_path / "grid").exists()


def test_a_server_that_says_no_and_one_that_is_not_there_are_named(tmp_path, refuses):
    with serving(Server(BODY)) as server, refuses("404", "--url"):
        get(server, tmp_path, url=server.url + "/moved")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/archive"
        with refuses(url, "--url"):
            download(tmp_path, category="grid", url=url, progress=False)
    assert contents(tmp_path) == {}


# --- the real thing


def test_the_real_grid_reads(mvtec_root, tmp_path):
    folder = category_dir(mvtec_root, "grid")
    counts = check(folder)
    files = [p for p in folder.rglob("*.png") if "ground_truth" not in p.parts]
    assert sum(n for key, n in counts.items() if not key.startswith("ground_truth")) == len(files)
    for split in ("train", "test"):
        data = load_split(folder, split, 64, cache=tmp_path)
        assert data.images.shape == (sum(n for key, n in counts.items() if key.startswith(split)), 1, 64, 64)
        picture = Image.open(folder / split / f"{data.names[-1]}.png")
        np.testing.assert_array_equal(data.images[-1, 0], picture.resize((64, 64), Image.Resampling.BILINEAR))
        assert data.images.std() > 20  # a picture, not a flat field
        assert (data.gt_masks.any((1, 2)) <= data.gt_labels).all()
