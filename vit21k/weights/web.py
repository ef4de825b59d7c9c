"""Requests to web servers, and what their answers say of a file."""

import base64
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from vit21k.errors import CheckpointError

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
