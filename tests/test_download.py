"""A download goes on where it broke off, is verified before it is unpacked, and leaves a category whole or not at all."""

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

from vaeproj.cli.download import download

ARCHIVE = "mvtec_anomaly_detection.tar.xz"


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


@pytest.mark.parametrize("prefix", ["", "./"])
@pytest.mark.parametrize(("category", "fetched"), [("grid", ["grid"]), (None, ["grid", "wood"])])
def test_what_was_asked_for_is_fetched_and_nothing_else_is_left(tmp_path, prefix, category, fetched):
    root = tmp_path / "new" / "root"
    with serving(Server(archive({f"{prefix}{name}": content for name, content in FILES.items()}))) as server:
        get(server, root, category=category)
    assert contents(root) == of(*fetched)
    assert sorted(p.name for p in root.iterdir()) == fetched


def test_an_archive_is_kept_for_another_category(tmp_path, refuses):
    with serving(Server(BODY)) as server:
        with refuses("'carpet'", "grid"):
            get(server, tmp_path, category="carpet")
        assert contents(tmp_path) == {ARCHIVE: BODY}
        get(server, tmp_path)
    assert len(server.asked) == 1
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


@pytest.mark.parametrize(("have", "ranges"), [(1000, False), (len(BODY), True)])
def test_a_server_that_starts_over_and_one_that_has_no_more_to_send(tmp_path, have, ranges):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(BODY[:have])
    with serving(Server(BODY, ranges=ranges)) as server:
        get(server, tmp_path)
    assert contents(tmp_path) == of("grid")


def test_a_part_of_another_file_is_found_out_by_its_hash(tmp_path, refuses):
    (tmp_path / f"{ARCHIVE}.part").write_bytes(b"x" * 1000)
    with serving(Server(BODY)) as server:
        with refuses(server.url, sha256(b"x" * 1000 + BODY[1000:])[:12], sha256(BODY)[:12], "--url"):
            get(server, tmp_path)
        assert list(tmp_path.iterdir()) == []
        get(server, tmp_path)
    assert contents(tmp_path) == of("grid")


@pytest.mark.parametrize("category", ["grid", None])
def test_a_category_that_is_there_is_not_touched(tmp_path, refuses, category):
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid/mine.txt").write_bytes(b"mine")
    with serving(Server(BODY)) as server, refuses(tmp_path / "grid"):
        get(server, tmp_path, category=category)
    assert server.asked == []
    assert contents(tmp_path) == {"grid/mine.txt": b"mine"}


@pytest.mark.parametrize("category", ["grid", None])
@pytest.mark.parametrize(
    "body",
    [
        b"<html>gone</html>",
        archive({"grid/000.png": b"0", "grid/../../escaped.txt": b"evil"}),
        archive({"grid/000.png": b"0", "grid/../../../escaped.txt": b"evil"}),
    ],
    ids=["no archive", "out of the folder", "out of the root"],
)
def test_what_cannot_be_unpacked_leaves_nothing(tmp_path, refuses, category, body):
    root = tmp_path / "a" / "root"
    with serving(Server(body)) as server, refuses(server.url):
        get(server, root, category=category)
    assert list(tmp_path.rglob("*")) == [root.parent, root]


def test_a_server_that_says_no_and_one_that_is_not_there_are_named(tmp_path, refuses):
    with serving(Server(BODY)) as server, refuses("404", "--url"):
        get(server, tmp_path, url=server.url + "/moved")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/archive"
        with refuses(url, "--url"):
            download(tmp_path, category="grid", url=url, progress=False)
    assert contents(tmp_path) == {}
