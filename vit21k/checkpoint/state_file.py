"""``state.json`` of a checkpoint: what a resume needs, and a digest of every file beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from vit21k.errors import CheckpointError

STATE = "state.json"
VERSION = 1
_CHUNK_BYTES = 1 << 20


def plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return *state* as JSON gives it back: tuples as lists, keys as text."""
    copy: dict[str, Any] = json.loads(json.dumps(state))
    return copy


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write *state*, a digest of every file in *folder*, and one of itself, into *folder*."""
    digests = {path.name: digest_of(path) for path in sorted(folder.iterdir())}
    content = plain({**state, "version": VERSION, "files": digests})
    text = json.dumps({**content, "seal": _seal(content)}, indent=2) + "\n"
    (folder / STATE).write_text(text, encoding="utf-8")


def read_state(folder: Path) -> dict[str, Any]:
    """Return what `write_state` wrote, with "version" and "files".

    Raises:
        CheckpointError: It is missing, damaged, or of a later version.
    """
    try:
        content: dict[str, Any] = json.loads((folder / STATE).read_bytes())
        seal = content.pop("seal")
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"`{folder}` is not a checkpoint: it has no {STATE}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        seal, content = "", {}
    if seal != _seal(content):
        raise CheckpointError(
            f"checkpoint `{folder}` is damaged: `{STATE}` is not what was written"
        )
    if content["version"] > VERSION:
        raise CheckpointError(
            f"checkpoint `{folder}` was written by a later vit21k "
            f"(layout {content['version']}; this one reads {VERSION})",
            hint="upgrade vit21k",
        )
    return content


def digest_of(path: Path) -> str:
    """Return the xxh3_128 of a file, in hex."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _seal(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
