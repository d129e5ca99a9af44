"""Fetch MVTec AD. Not by pooch, which begins anew where a transfer breaks off, and the archive is 4.9 GiB."""

import hashlib
import http.client
import lzma
import shutil
import tarfile
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from ..config import UserError
from ..files import written_whole
from ..workspace import MVTEC_AD

ARCHIVE = "mvtec_anomaly_detection.tar.xz"
ARCHIVE_URL = f"https://www.mydrive.ch/shares/38536/3830184030e49fe74747669442f0f283/download/420938113-1629960298/{ARCHIVE}"
ARCHIVE_SHA256 = "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d"
LICENCE = """MVTec AD, https://www.mvtec.com/company/research/datasets/mvtec-ad, is (c) 2019 MVTec Software GmbH, licensed
CC BY-NC-SA 4.0 (https://creativecommons.org/licenses/by-nc-sa/4.0/): cite it, share alike, no commercial use."""


def download(data_root: Path, *, category: str | None = None, url: str = ARCHIVE_URL, sha256: str = ARCHIVE_SHA256) -> None:
    """Fetch the archive, going on where a transfer broke off, verify its hash, unpack one category or all, each whole or
    not at all. A `UserError` for a category that is there already or not in the archive, a failed transfer, a wrong hash.
    """
    wanted = [category] if category else MVTEC_AD
    if taken := [name for name in wanted if (data_root / name).exists()]:
        raise UserError(f"{data_root / taken[0]} exists already: remove it, or pass --data-root another folder.")
    data_root.mkdir(parents=True, exist_ok=True)
    archive = data_root / ARCHIVE
    if not archive.is_file():
        _fetch(url, archive)
    folders: dict[str, Path] = {}
    try:
        with archive.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != sha256:
            raise tarfile.ReadError(f"its sha256 is {actual[:12]}..., not {sha256[:12]}...")
        with ExitStack() as stack, tarfile.open(archive) as tar:
            for member in tar:
                name, _, rest = member.name.removeprefix("./").partition("/")
                if name in wanted and rest:
                    if name not in folders:
                        folders[name] = stack.enter_context(written_whole(data_root / name))
                    tar.extract(member.replace(name=rest, deep=False), folders[name], filter="data")
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        archive.unlink()
        reason = str(error).split("\n")[0].rstrip(".:")
        raise UserError(f"{url} cannot be unpacked ({reason}): the file was removed; try another --url.") from error
    if not folders:
        raise UserError(f"The archive holds no category '{category}'; it has {', '.join(MVTEC_AD)}.")
    archive.unlink()


def _fetch(url: str, target: Path) -> None:
    """Download to ``target``, going on from a ``.part`` file where an earlier try broke off."""
    part = target.with_name(target.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=60) as response:
            have = have if response.status == 206 else 0  # else the server sends the whole file, whatever we asked for
            total = have + int(response.headers.get("Content-Length") or 0)
            bar = {"total": total, "initial": have, "desc": target.name}
            with part.open("ab" if have else "wb") as file, tqdm.wrapattr(file, "write", **bar) as output:
                shutil.copyfileobj(response, output, 1 << 20)
        if part.stat().st_size < total:
            raise OSError("the transfer broke off")
    except (OSError, ValueError, http.client.HTTPException) as error:
        if getattr(error, "code", None) != 416:  # HTTP's word for: the part file already holds every byte
            raise UserError(f"{url} could not be fetched ({error}): run the command again, or pass another --url.") from error
    part.replace(target)
