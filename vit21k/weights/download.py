"""URL -> local file: resumed where it broke off, checked, kept.

A copy lies in ``<cache>/<key>/`` beside a ``.json`` that says where it came from, how long it is
and what its digest is.  A copy that is still what was written is used without asking the server.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urldefrag, urlsplit

import xxhash

from vit21k.atomic import write_atomic
from vit21k.errors import CheckpointError, UsageError
from vit21k.lock import locked
from vit21k.one_line import one_line
from vit21k.user_cache import user_cache
from vit21k.weights.web import RangeRefusedError, announced_of, open_url, strong_tag

_CHUNK_BYTES = 1 << 20
_TRIES = 4
_PARTIAL_CONTENT = 206
_SHA256 = re.compile(r"sha-?256[=:]([0-9a-f]{64})", re.IGNORECASE)
_CHECKSUMS = frozenset({"sha256", "sha-256", "sha512", "sha1", "checksum", "md5sum"})


Tell = Callable[[int, int | None], None]
"""Hears of a download: bytes that are here, and bytes in all if the server says so."""


def download(url: str, *, folder: str | None = None, tell: Tell | None = None) -> Path:
    """Return a local copy of *url*.

    Args:
        url: May end in ``#sha256=...``, the digest that the file must have; nothing else may
            follow a ``#``, as a checksum that is not compared would only seem to protect.
        folder: Files of one *folder* lie together, under their own names; None: a file by itself.
        tell: Hears how far it is.

    Raises:
        UsageError: What follows the ``#`` is no SHA-256.
        MissingFileError: The server has no such file.
        CheckpointError: What came is not as long, or has not the digest, that was announced.
        OSError: The server cannot be reached, or the disk is full.
    """
    wanted = _checksum_of(url)
    url = urldefrag(url).url
    name = Path(unquote(urlsplit(url).path)).name or "weights"
    key = hashlib.sha256((f"{_host(url)}/{folder}" if folder else url).encode()).hexdigest()[:24]
    path = cache_dir() / key / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent, command="download", wait=True):
        if not _is_whole(path, wanted):
            _download(url, path, wanted, tell or _tell_nobody)
    return path


def _checksum_of(url: str) -> str | None:
    """Return the SHA-256 that *url* ends in, in hex; None if it ends in none.

    Raises:
        UsageError: It has another checksum, or one that is misspelt.
    """
    hint = "write it as ...#sha256=<64 hexadecimal digits>"
    asked = {key.lower() for key, _ in parse_qsl(urlsplit(url).query)}
    if named := sorted(asked & _CHECKSUMS):
        raise UsageError(f"the checksum `?{named[0]}=` of an address is not compared", hint=hint)
    if "#" not in url:
        return None
    match = _SHA256.fullmatch(urldefrag(url).fragment)
    if match is None:
        raise UsageError(
            f"`#{one_line(urldefrag(url).fragment):.80}` at the end of an address is no SHA-256",
            hint=hint,
        )
    return match[1].lower()


def cache_dir() -> Path:
    """Return the folder of downloaded weights: ``$VIT21K_CACHE`` or below ``~/.cache``.

    Raises:
        UsageError: Neither is there.
    """
    if own := os.environ.get("VIT21K_CACHE"):
        return Path(own)
    cache = user_cache()
    if cache is None:
        raise UsageError(
            "there is no place for downloaded weights: the user has no home",
            hint="name one: `export VIT21K_CACHE=DIR`",
        )
    return cache / "weights"


def _host(url: str) -> str:
    return urlsplit(url).netloc


def _is_whole(path: Path, wanted: str | None) -> bool:
    """Return whether *path* is there, and what was written."""
    try:
        record = json.loads(_record(path).read_bytes())
        known = record["num_bytes"], record["digest"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    if not path.is_file() or (path.stat().st_size, _digest(path)) != known:
        return False
    return wanted is None or record.get("sha256") == wanted


def _tell_nobody(_num_bytes: int, _total: int | None) -> None:
    pass


def _download(url: str, path: Path, wanted: str | None, tell: Tell) -> None:
    partial = path.with_name(f"{path.name}.part")
    failure: Exception | None = None
    for _ in range(_TRIES):
        try:
            announced = _fetch_rest(url, partial, tell)
            break
        except (TimeoutError, ConnectionError, HTTPException) as error:
            failure = error  # what came so far stays; the next try goes on from there
    else:
        raise OSError(f"`{url}` broke off {_TRIES} times: {failure}") from failure
    digests = _sha256_and_md5(partial)
    try:
        _check(url, partial, digests, {**announced, **({"sha256": wanted} if wanted else {})})
    except CheckpointError:
        partial.unlink()
        raise
    record = {
        "url": url,
        "num_bytes": partial.stat().st_size,
        "digest": _digest(partial),
        "sha256": digests[0],
    }
    partial.replace(path)
    write_atomic(_record(path), (json.dumps(record, indent=2) + "\n").encode())


def _fetch_rest(url: str, partial: Path, tell: Tell) -> dict[str, Any]:
    """Append to *partial* what is missing; return what the server announces of the whole file.

    Raises:
        MissingFileError: The server has no such file.
        ConnectionError: It broke off.
    """
    tag_file = partial.with_name(f"{partial.name}.tag")
    have = partial.stat().st_size if partial.is_file() and tag_file.is_file() else 0
    headers = {"User-Agent": "vit21k"}
    if have:
        # If the file has changed since, the server sends the whole of the new one.
        headers |= {"Range": f"bytes={have}-", "If-Range": tag_file.read_text(encoding="utf-8")}
    try:
        response = open_url(url, headers)
    except RangeRefusedError:
        tag_file.unlink()  # it was whole already, or the file is another one now: from the start
        raise
    with response:
        resumed = response.status == _PARTIAL_CONTENT
        start = have if resumed else 0
        if tag := strong_tag(response):
            tag_file.write_text(tag, encoding="utf-8")
        else:
            tag_file.unlink(missing_ok=True)
        announced = announced_of(response, start)
        with partial.open("ab" if resumed else "wb") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                tell(file.tell(), announced.get("num_bytes"))
    size, total = partial.stat().st_size, announced.get("num_bytes")
    if total is not None and size < total:
        raise ConnectionError(f"{size:,} of {total:,} bytes came")
    tag_file.unlink(missing_ok=True)
    return announced


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    while chunk := response.read(_CHUNK_BYTES):
        yield chunk


def _check(url: str, path: Path, digests: tuple[str, str], announced: Mapping[str, Any]) -> None:
    found = {"num_bytes": path.stat().st_size, "sha256": digests[0], "md5": digests[1]}
    for what, wanted in announced.items():
        if found[what] != wanted:
            raise CheckpointError(
                f"what came from `{url}` is damaged: its {what} is {found[what]}, not {wanted}",
                hint="try again; nothing of it was kept",
            )


def _sha256_and_md5(path: Path) -> tuple[str, str]:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
            md5.update(chunk)
    return sha256.hexdigest(), md5.hexdigest()


def _digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.origin.json")
