"""Addresses of weights -> local files: resumed, verified, kept."""

import base64
import hashlib
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urldefrag, urlsplit

import xxhash

from vit21k.atomic import write_atomic
from vit21k.errors import CheckpointError, UsageError, one_line
from vit21k.lock import locked
from vit21k.machine import user_cache

_TIMEOUT_SECONDS = 30
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOT_FOUND = (401, 403, 404, 410)  # Hugging Face answers 401 for what does not exist
_RANGE_ERROR = 416


class MissingFileError(CheckpointError):
    """The server has no such file."""


class RangeRefusedError(ConnectionError):
    """The file ends before the bytes that were asked for."""


def open_url(url: str, headers: Mapping[str, str]) -> HTTPResponse:
    """Ask for *url*; redirects are followed, but never away from https.

    Raises:
        MissingFileError: The server has no such file.
        RangeRefusedError: The server has no such part of it.
        ConnectionError: It broke off, or has a failure of its own: worth another try.
        OSError: It cannot be reached.
    """
    request = urllib.request.Request(url, headers=dict(headers))  # noqa: S310 (https, or loopback)
    try:
        response: HTTPResponse = _OPENER.open(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _NOT_FOUND:
            raise MissingFileError(
                f"there is no `{url}` (the server says {error.code} {error.reason})",
                hint="check the spelling; files that need a login are not fetched",
            ) from None
        if error.code == _RANGE_ERROR:
            raise RangeRefusedError(f"`{url}` has no more bytes than are here") from None
        if error.code >= 500:  # noqa: PLR2004 (the server's own fault)
            raise ConnectionError(f"the server says {error.code}") from None
        raise OSError(f"`{url}`: the server says {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError | ConnectionResetError):
            raise ConnectionError(str(error.reason)) from error
        raise OSError(f"`{url}` cannot be reached: {error.reason}") from error
    return response


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, and remember what the first server says of the file.

    Hugging Face names length and digest of a large file, then points to the store that holds it.
    """

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise urllib.error.URLError(f"redirected to `{newurl}`, which is not https")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            linked = {**getattr(req, "linked", {}), **_linked(headers)}
            request.linked = linked  # type: ignore[attr-defined]
        return request

    def http_response(self, request: Any, response: Any) -> Any:
        response.linked = getattr(request, "linked", {})
        return response

    https_response = http_response


_OPENER = urllib.request.build_opener(_Redirects)


def _linked(headers: Any) -> dict[str, Any]:
    linked: dict[str, Any] = {}
    tag = (headers.get("X-Linked-Etag") or "").strip('"')
    if _SHA256.fullmatch(tag):
        linked["sha256"] = tag
    if (size := headers.get("X-Linked-Size", "")).isdigit():
        linked["num_bytes"] = int(size)
    return linked


def announced_of(response: Any, start: int) -> dict[str, Any]:
    """Return length and digests of the whole file, as far as the server says them."""
    announced: dict[str, Any] = {}
    if (length := response.headers.get("Content-Length", "")).isdigit():
        announced["num_bytes"] = start + int(length)
    for line in response.headers.get_all("x-goog-hash", []):
        if match := re.search(r"md5=([A-Za-z0-9+/=]+)", line):
            announced["md5"] = base64.b64decode(match[1]).hex()
    return {**announced, **_linked(response.headers), **getattr(response, "linked", {})}


def strong_tag(response: HTTPResponse) -> str | None:
    """Return what tells this version of the file from every other, if the server says it."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else None


_CHUNK_BYTES = 1 << 20
_TRIES = 4
_PARTIAL_CONTENT = 206
_DOWNLOAD_SHA256 = re.compile(r"sha-?256[=:]([0-9a-f]{64})", re.IGNORECASE)
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
    match = _DOWNLOAD_SHA256.fullmatch(urldefrag(url).fragment)
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
            failure = error  # what came so far stays; the next try resumes from there
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


_ADDRESS = re.compile(r"(hf|https?|gs):/+(.+)")
_HF_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?(?:/(.+))?")
# The models of the paper, as its repository calls them: `ViT-L_16` -> imagenet21k/ViT-L_16.npz.
_GOOGLE_NAME = re.compile(r"((?:R50\+)?ViT-[A-Za-z]+_\d+(?:-384|-224)?)(?:\.npz)?")
# The models of the second paper, by the name of their file, which says how they were trained.
_AUGREG_NAME = re.compile(r"((?:R\d*_)?(?:Ti|S|B|L)_\d+-i(?:21k|1k|21k_30)-[\w.-]+?)(?:\.npz)?")
_BUCKET = "vit_models"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_BESIDE = ("config.json", "preprocessor_config.json", "processor_config.json")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_address(path: str) -> bool:
    """Return whether *path* means something on the network and is no file here."""
    if _ADDRESS.fullmatch(path):
        return True
    google = _GOOGLE_NAME.fullmatch(path) or _AUGREG_NAME.fullmatch(path)
    return bool(google) and not Path(path).exists()


def fetch(address: str, *, tell: Tell | None = None) -> Path:
    """Return a local copy of the weights at *address*: a file, or a folder for a repository.

    Copies are kept in ``$VIT21K_CACHE``, else below ``~/.cache``; what is there and whole is not
    asked for again.

    Args:
        address: ``hf://owner/name[@revision][/file]``, ``https://...``, ``gs://bucket/object``, or
            a name from Google's bucket: ``ViT-L_16``, ``L_16-i21k-300ep-...``.
        tell: Hears how far a download is.

    Raises:
        UsageError: It is no address of these.
        CheckpointError: There is no such file, or what came is not what was announced.
        OSError: The server cannot be reached.
    """
    match = _ADDRESS.fullmatch(address)
    scheme, rest = match.groups() if match else ("google", address)
    place, hash_sign, checksum = rest.partition("#")
    if scheme == "hf":
        return _fetch_repository(place, hash_sign + checksum, tell)
    if scheme == "gs":
        return download(_storage_url(place) + hash_sign + checksum, tell=tell)
    if scheme == "google":
        return download(_storage_url(_object_of(rest)), tell=tell)
    url = f"{scheme}://{rest}"
    if scheme == "http" and urlsplit(url).hostname not in _LOOPBACK:
        raise UsageError(
            f"`{url}` would come unprotected over the network", hint="use https:// instead"
        )
    return download(url, tell=tell)


def _fetch_repository(address: str, checksum: str, tell: Tell | None) -> Path:
    """Return one file of a Hugging Face repository, or a folder with all that a model needs."""
    match = _HF_REPOSITORY.fullmatch(address.rstrip("/"))
    if match is None:
        raise UsageError(f"`hf://{address}` is not hf://owner/name[@revision][/file]")
    repository, revision, file = match.groups()
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    base = f"{endpoint}/{repository}/resolve/{quote(revision or 'main', safe='')}"
    if file:
        return download(f"{base}/{quote(file)}{checksum}", tell=tell)
    if checksum:
        raise UsageError(
            f"`{checksum}` is the checksum of a file, and `hf://{repository}` is a repository",
            hint=f"name a file of it: hf://{repository}/FILE{checksum}",
        )
    folder = f"{repository}@{revision or 'main'}"
    for name in _BESIDE:
        _download_if_there(f"{base}/{name}", folder, None)
    for name in _WEIGHTS:
        if found := _download_if_there(f"{base}/{name}", folder, tell):
            return found.parent
    raise CheckpointError(
        f"`hf://{repository}` has none of {', '.join(_WEIGHTS)}",
        hint="name a file of it: hf://owner/name/FILE",
    )


def _download_if_there(url: str, folder: str, tell: Tell | None) -> Path | None:
    try:
        return download(url, folder=folder, tell=tell)
    except MissingFileError:
        return None


def _object_of(name: str) -> str:
    if match := _GOOGLE_NAME.fullmatch(name):
        # Fine-tuned at 384 pixels under the plain name, at 224 under its own.
        fine_tuned = match[1].endswith(("-384", "-224"))
        folder = "imagenet21k+imagenet2012" if fine_tuned else "imagenet21k"
        return f"{_BUCKET}/{folder}/{match[1].removesuffix('-384')}.npz"
    match = _AUGREG_NAME.fullmatch(name)
    return f"{_BUCKET}/augreg/{match[1] if match else name}.npz"


def _storage_url(path: str) -> str:
    host = os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com").rstrip("/")
    return f"{host}/{quote(path)}"
