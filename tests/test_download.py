"""A download goes on where it broke off, is verified before it is unpacked, and leaves a category whole or not at all."""

import hashlib
import io
import socket
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import contents

from vaeproj.cli.download import download

ARCHIVE = "mvtec_anomaly_detection.tar.xz"


@contextmanager
def serving(body: bytes, *, breaks: tuple[int, ...] = (), ranges: bool = True, chunked: bool = False):
    """Serves one body on 127.0.0.1, whole or from an offset; breaks each transfer off after ``breaks[i]`` bytes."""
    server, left = SimpleNamespace(body=body, asked=[]), list(breaks)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            server.asked.append(wanted)
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and ranges else 0
            if self.path != "/archive" or start >= len(body):
                self.send_error(404 if self.path != "/archive" else 416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            rest = body[start:]
            self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(rest)))))
            self.end_headers()
            sent = rest[: left.pop(0)] if left else rest
            self.wfile.write(b"%x\r\n%b" % (len(rest), sent) if chunked else sent)
            if chunked and sent == rest:
                self.wfile.write(b"\r\n0\r\n\r\n")
            self.close_connection = True

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        server.url = f"http://127.0.0.1:{httpd.server_port}/archive"
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            httpd.shutdown()


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


def get(server: SimpleNamespace, root: Path, category: str | None = "grid", path: str = "") -> None:
    hash_ = hashlib.sha256(server.body).hexdigest()
    download(root, category=category, url=server.url + path, sha256=hash_)


def of(*categories: str) -> dict[str, bytes]:
    return {name: content for name, content in FILES.items() if name.split("/")[0] in categories}


@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize(("category", "fetched"), [("grid", ["grid"]), (None, ["grid", "wood"])])
def test_what_was_asked_for_is_fetched_and_nothing_else_is_left(tmp_path, prefix, category, fetched):
    root = tmp_path / "new" / "root"
    with serving(archive({f"{prefix}{name}": content for name, content in FILES.items()})) as server:
        get(server, root, category=category)
    assert contents(root) == of(*fetched)
    assert sorted(p.name for p in root.iterdir()) == fetched


def test_an_archive_is_kept_for_another_category(tmp_path, refuses):
    with serving(BODY) as server:
        with refuses("'carpet'", "grid"):
            get(server, tmp_path, category="carpet")
        assert contents(tmp_path) == {ARCHIVE: BODY}
        get(server, tmp_path)
    assert len(server.asked) == 1
    assert contents(tmp_path) == of("grid")


@pytest.mark.parametrize(("chunked", "kept"), [(False, [1000, 1500]), (True, [0, 0])])  # half a chunk is lost
def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path, refuses, chunked, kept):
    with serving(BODY, breaks=(1000, 500), chunked=chunked) as server:
        for have in kept:
            with refuses(server.url, "run the command again"):
                get(server, tmp_path)
            assert contents(tmp_path) == {f"{ARCHIVE}.part": BODY[:have]}
        get(server, tmp_path)
    assert server.asked == [None, *(f"bytes={have}-" if have else None for have in kept)]
    assert contents(tmp_path) == of("grid")


@pytest.mark.parametrize(("have", "ranges"), [(1000, False), (len(BODY), True)])
def test_a_server_that_starts_over_and_one_that_has_no_more_to_send(tmp_path, have, ranges):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(BODY[:have])
    with serving(BODY, ranges=ranges) as server:
        get(server, tmp_path)
    assert contents(tmp_path) == of("grid")


def test_a_part_of_another_file_is_found_out_by_its_hash(tmp_path, refuses):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(b"x" * 1000)
    with serving(BODY) as server:
        found, wanted = (hashlib.sha256(body).hexdigest()[:12] for body in (b"x" * 1000 + BODY[1000:], BODY))
        with refuses(server.url, found, wanted, "--url"):
            get(server, tmp_path)
        assert list(tmp_path.iterdir()) == []
        get(server, tmp_path)
    assert contents(tmp_path) == of("grid")


@pytest.mark.parametrize("category", ["grid", None])
def test_a_category_that_is_there_is_not_touched(tmp_path, refuses, category):
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid/mine.txt").write_bytes(b"mine")
    with serving(BODY) as server, refuses(tmp_path / "grid"):
        get(server, tmp_path, category=category)
    assert server.asked == []
    assert contents(tmp_path) == {"grid/mine.txt": b"mine"}


@pytest.mark.parametrize("category", ["grid", None])
@pytest.mark.parametrize("name", ["", "grid/../../escaped.txt", "grid/../../../escaped.txt"])
def test_what_cannot_be_unpacked_leaves_nothing(tmp_path, refuses, category, name):
    """A file that is no archive, or one with a member that would leave its folder."""
    root = tmp_path / "a" / "root"
    with (
        serving(archive({"grid/000.png": b"0", name: b"evil"}) if name else b"<html>gone</html>") as server,
        refuses(server.url),
    ):
        get(server, root, category=category)
    assert list(tmp_path.rglob("*")) == [root.parent, root]


def test_a_server_that_says_no_and_one_that_is_not_there_are_named(tmp_path, refuses):
    with serving(BODY) as server, refuses("404", "--url"):
        get(server, tmp_path, path="/moved")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/archive"
        with refuses(url, "--url"):
            download(tmp_path, category="grid", url=url)
    assert contents(tmp_path) == {}
