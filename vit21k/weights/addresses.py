"""Addresses of weights -> local files: ``hf://``, ``https://``, ``gs://`` and Google's names.

Where they point: Hugging Face at ``HF_ENDPOINT`` and Google's storage at ``STORAGE_EMULATOR_HOST``,
if these are set, as those services' own tools understand them.
"""

import os
import re
from pathlib import Path
from urllib.parse import quote, urlsplit

from vit21k.errors import CheckpointError, UsageError
from vit21k.weights.download import Tell, download
from vit21k.weights.web import MissingFileError

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
