"""Addresses of weights -> local files: downloads are resumed, verified and cached."""

import base64
import hashlib
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urldefrag, urlsplit

import xxhash

from vit21k.atomic import write_atomic
from vit21k.errors import CheckpointError, UnreachableError, UsageError, one_line
from vit21k.lock import locked
from vit21k.machine import user_cache

_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 20
_TRIES = 4
_NOT_FOUND = (401, 403, 404, 410)  # Hugging Face answers 401 for what does not exist
_PARTIAL_CONTENT, _RANGE_ERROR, _SERVER_ERROR = 206, 416, 500
_SHA256_DIGITS = re.compile(r"[0-9a-f]{64}")
_SHA256 = re.compile(r"sha-?256[=:]([0-9a-f]{64})", re.IGNORECASE)
_CHECKSUMS = frozenset({"sha256", "sha-256", "sha512", "sha1", "checksum", "md5sum"})

OnProgress = Callable[[int, int | None], None]
"""Called with the bytes downloaded so far, and the bytes in all if the server announces them."""


class MissingFileError(CheckpointError):
    """The server has no such file."""


class _RangeError(ConnectionError):
    """The file ends before the requested bytes."""


def _open_url(url: str, headers: dict[str, str]) -> Any:
    """Request *url*; redirects are followed, but never away from https.

    Raises:
        MissingFileError: The server has no such file.
        ConnectionError: The connection broke, or the server failed: worth another try.
        UnreachableError: The server cannot be reached.
    """
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (https, or loopback)
    try:
        return _OPENER.open(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _NOT_FOUND:
            raise MissingFileError(
                f"there is no `{url}` (the server says {error.code} {error.reason})",
                hint="check the spelling; files that need a login are not fetched",
            ) from None
        if error.code == _RANGE_ERROR:
            raise _RangeError(f"`{url}` has no more bytes than are here") from None
        if error.code >= _SERVER_ERROR:
            raise ConnectionError(f"the server says {error.code}") from None
        raise OSError(f"`{url}`: the server says {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError | ConnectionResetError):
            raise ConnectionError(str(error.reason)) from error
        raise UnreachableError(f"`{url}` cannot be reached: {error.reason}") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, and keep what the first server announces about the file.

    Hugging Face names length and SHA-256 of a large file, then redirects to the store of the file.
    """

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise urllib.error.URLError(f"redirected to `{newurl}`, which is not https")
        request: Any = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            request.linked = {**getattr(req, "linked", {}), **_linked(headers)}
        return request

    def http_response(self, request: Any, response: Any) -> Any:
        response.linked = getattr(request, "linked", {})
        return response

    https_response = http_response


_OPENER = urllib.request.build_opener(_Redirects)


def _linked(headers: Any) -> dict[str, Any]:
    linked: dict[str, Any] = {}
    tag = (headers.get("X-Linked-Etag") or "").strip('"')
    if _SHA256_DIGITS.fullmatch(tag):
        linked["sha256"] = tag
    if (size := headers.get("X-Linked-Size", "")).isdigit():
        linked["num_bytes"] = int(size)
    return linked


def _announced(response: Any, start: int) -> dict[str, Any]:
    """Return length and digests of the complete file, as far as the server announces them."""
    announced: dict[str, Any] = {}
    if (length := response.headers.get("Content-Length", "")).isdigit():
        announced["num_bytes"] = start + int(length)
    for line in response.headers.get_all("x-goog-hash", []):
        if match := re.search(r"md5=([A-Za-z0-9+/=]+)", line):
            announced["md5"] = base64.b64decode(match[1]).hex()
    return {**announced, **_linked(response.headers), **response.linked}


def download(url: str, *, folder: str | None = None, on_progress: OnProgress | None = None) -> Path:
    """Return a local copy of *url*.

    Args:
        url: May end in ``#sha256=...``, the SHA-256 of the file; nothing else may follow a ``#``:
            a checksum that is not compared would only seem to protect.
        folder: Files of one *folder* are stored together; None: a file by itself.
        on_progress: Called after each chunk.

    Raises:
        UsageError: What follows the ``#`` is no SHA-256.
        MissingFileError: The server has no such file.
        CheckpointError: Length or digest differ from the announced ones.
        OSError: The server cannot be reached, or the disk is full.
    """
    wanted = _checksum_of(url)
    url = urldefrag(url).url
    name = Path(unquote(urlsplit(url).path)).name or "weights"
    scope = f"{urlsplit(url).netloc}/{folder}" if folder else url
    path = cache_dir() / hashlib.sha256(scope.encode()).hexdigest()[:24] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent, command="download", wait=True):
        if not _is_intact(path, wanted):
            _download(url, path, wanted, on_progress)
    return path


def _checksum_of(url: str) -> str | None:
    """Return the SHA-256 that *url* ends in, in hex; None if it ends in none.

    Raises:
        UsageError: It has another checksum, or one that is misspelt.
    """
    hint = "write it as ...#sha256=<64 hexadecimal digits>"
    keys = {key.lower() for key, _ in parse_qsl(urlsplit(url).query)}
    if named := sorted(keys & _CHECKSUMS):
        raise UsageError(f"the checksum `?{named[0]}=` of an address is not compared", hint=hint)
    if "#" not in url:
        return None
    fragment = urldefrag(url).fragment
    if match := _SHA256.fullmatch(fragment):
        return match[1].lower()
    raise UsageError(
        f"`#{one_line(fragment):.80}` at the end of an address is no SHA-256", hint=hint
    )


def cache_dir() -> Path:
    """Return the folder of downloaded weights: ``$VIT21K_CACHE`` or below ``~/.cache``.

    Raises:
        UsageError: The variable is not set, and the user has no home.
    """
    if own := os.environ.get("VIT21K_CACHE"):
        return Path(own)
    cache = user_cache()
    if cache is None:
        raise UsageError(
            "there is no folder for downloaded weights: the user has no home",
            hint="name one: `export VIT21K_CACHE=DIR`",
        )
    return cache / "weights"


def _is_intact(path: Path, wanted: str | None) -> bool:
    """Return whether *path* exists, and is what was written."""
    try:
        record = json.loads(_record(path).read_bytes())
        known = record["num_bytes"], record["digest"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False
    if not path.is_file() or (path.stat().st_size, _digest(path, xxhash.xxh3_128)) != known:
        return False
    return wanted is None or record.get("sha256") == wanted


def _download(url: str, path: Path, wanted: str | None, on_progress: OnProgress | None) -> None:
    part = path.with_name(f"{path.name}.part")
    failure: Exception | None = None
    for _ in range(_TRIES):
        try:
            announced = _fetch_rest(url, part, on_progress)
            break
        except (TimeoutError, ConnectionError, HTTPException) as error:
            failure = error  # the next try resumes after the bytes that are here
    else:
        raise OSError(f"`{url}` broke off {_TRIES} times: {failure}") from failure
    found = {"num_bytes": part.stat().st_size, "sha256": _digest(part, "sha256")}
    if "md5" in announced:
        found["md5"] = _digest(part, partial(hashlib.md5, usedforsecurity=False))
    for what, value in {**announced, **({"sha256": wanted} if wanted else {})}.items():
        if found[what] != value:
            part.unlink()
            raise CheckpointError(
                f"what came from `{url}` is damaged: its {what} is {found[what]}, not {value}",
                hint="try again; nothing of it was kept",
            )
    record = {
        "url": url,
        "num_bytes": found["num_bytes"],
        "digest": _digest(part, xxhash.xxh3_128),
        "sha256": found["sha256"],
    }
    part.replace(path)
    write_atomic(_record(path), (json.dumps(record, indent=2) + "\n").encode())


def _fetch_rest(url: str, part: Path, on_progress: OnProgress | None) -> dict[str, Any]:
    """Append the missing bytes to *part*; return what the server announces about the file.

    Raises:
        MissingFileError: The server has no such file.
        ConnectionError: The connection broke.
    """
    tag_file = part.with_name(f"{part.name}.tag")
    have = part.stat().st_size if part.is_file() and tag_file.is_file() else 0
    headers = {"User-Agent": "vit21k"}
    if have:
        # If the file has changed since, the server sends the new one from its start.
        headers |= {"Range": f"bytes={have}-", "If-Range": tag_file.read_text(encoding="utf-8")}
    try:
        response = _open_url(url, headers)
    except _RangeError:
        tag_file.unlink()  # it was complete already, or has changed: start again
        raise
    with response:
        resumed = response.status == _PARTIAL_CONTENT
        tag_file.unlink(missing_ok=True)
        if (tag := response.headers.get("ETag")) and not tag.startswith("W/"):
            tag_file.write_text(tag, encoding="utf-8")
        announced = _announced(response, have if resumed else 0)
        total = announced.get("num_bytes")
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                if on_progress:
                    on_progress(file.tell(), total)
    if total is not None and part.stat().st_size < total:
        raise ConnectionError(f"{part.stat().st_size:,} of {total:,} bytes came")
    tag_file.unlink(missing_ok=True)
    return announced


def _digest(path: Path, kind: Any) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.origin.json")


_ADDRESS = re.compile(r"(hf|https?|gs):/+(.+)")
_HF_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+?))?(?:/(.+))?")
# The models of the first paper, by their names in its repository: `ViT-L_16`.
_GOOGLE_NAME = re.compile(r"((?:R50\+)?ViT-[A-Za-z]+_\d+(?:-384|-224)?)(?:\.npz)?")
# The models of the second paper (AugReg), by the names of their files.
_AUGREG_NAME = re.compile(r"((?:R\d*_)?(?:Ti|S|B|L)_\d+-i(?:21k|1k|21k_30)-[\w.-]+?)(?:\.npz)?")
_BUCKET = "vit_models"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_address(path: str) -> bool:
    """Return whether *path* is an address, and no file here."""
    if _ADDRESS.fullmatch(path):
        return True
    google = _GOOGLE_NAME.fullmatch(path) or _AUGREG_NAME.fullmatch(path)
    return bool(google) and not Path(path).exists()


def fetch(address: str, *, on_progress: OnProgress | None = None) -> Path:
    """Return a local copy of the weights at *address*: a file, or a folder for a repository.

    Copies are cached in ``$VIT21K_CACHE``, else below ``~/.cache``; an intact copy is reused.

    Args:
        address: ``hf://owner/name[@revision][/file]``, ``https://...``, ``gs://bucket/object``, or
            a name from Google's bucket: ``ViT-L_16``, ``L_16-i21k-300ep-...``.
        on_progress: Called after each chunk of the weights.

    Raises:
        UsageError: It is none of these.
        CheckpointError: There is no such file, or it differs from what was announced.
        UnreachableError: The server cannot be reached.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        return download(_storage_url(_object_of(address)), on_progress=on_progress)
    scheme, rest = match.groups()
    location, hash_sign, checksum = rest.partition("#")
    if scheme == "hf":
        return _fetch_repository(location, hash_sign + checksum, on_progress)
    if scheme == "gs":
        return download(_storage_url(location) + hash_sign + checksum, on_progress=on_progress)
    url = f"{scheme}://{rest}"
    if scheme == "http" and urlsplit(url).hostname not in _LOOPBACK:
        raise UsageError(
            f"`{url}` would come unprotected over the network", hint="use https:// instead"
        )
    return download(url, on_progress=on_progress)


def _fetch_repository(address: str, checksum: str, on_progress: OnProgress | None) -> Path:
    """Return one file of a Hugging Face repository, or a folder with all that a model needs."""
    match = _HF_REPOSITORY.fullmatch(address.rstrip("/"))
    if match is None:
        raise UsageError(f"`hf://{address}` is not hf://owner/name[@revision][/file]")
    repository, revision, file = match.groups()
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    base = f"{endpoint}/{repository}/resolve/{quote(revision or 'main', safe='')}"
    if file:
        return download(f"{base}/{quote(file)}{checksum}", on_progress=on_progress)
    if checksum:
        raise UsageError(
            f"`{checksum}` is the checksum of a file, and `hf://{repository}` is a repository",
            hint=f"name a file of it: hf://{repository}/FILE{checksum}",
        )
    folder = f"{repository}@{revision or 'main'}"
    for name in _CONFIGS:
        _download_if_there(f"{base}/{name}", folder, None)
    for name in _WEIGHTS:
        if found := _download_if_there(f"{base}/{name}", folder, on_progress):
            return found.parent
    raise CheckpointError(
        f"`hf://{repository}` has none of {', '.join(_WEIGHTS)}",
        hint="name a file of it: hf://owner/name/FILE",
    )


def _download_if_there(url: str, folder: str, on_progress: OnProgress | None) -> Path | None:
    try:
        return download(url, folder=folder, on_progress=on_progress)
    except MissingFileError:
        return None


def _object_of(name: str) -> str:
    """Return the object of Google's bucket that has the weights *name*."""
    if match := _GOOGLE_NAME.fullmatch(name):
        # Fine-tuned at 384 pixels: stored without the size; at 224: with it.
        fine_tuned = match[1].endswith(("-384", "-224"))
        folder = "imagenet21k+imagenet2012" if fine_tuned else "imagenet21k"
        return f"{_BUCKET}/{folder}/{match[1].removesuffix('-384')}.npz"
    match = _AUGREG_NAME.fullmatch(name)
    return f"{_BUCKET}/augreg/{match[1] if match else name}.npz"


def _storage_url(path: str) -> str:
    host = os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com").rstrip("/")
    return f"{host}/{quote(path)}"
