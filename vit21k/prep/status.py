"""A folder of manifests -> finished stages, stale stages, and the next command.

Only footers are read: it takes milliseconds, whatever the number of images.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vit21k.errors import ManifestError
from vit21k.manifest.io import Manifest, made_by, open_manifest, stale_input
from vit21k.manifest.schema import DIGESTS, IMAGES, KINDS, TRAIN, VAL, ManifestKind
from vit21k.prep.split import MAKE_VAL, command_to_split
from vit21k.sources.remote import is_url

State = Literal["fresh", "stale", "missing", "damaged"]

STAGES: Mapping[str, tuple[ManifestKind, ...]] = {
    "hash": (DIGESTS,),
    "relabel": (IMAGES,),
    "make-val": (TRAIN, VAL),
}
"""Manifests that training needs, in the order of their stages."""

AFTER_ALL = "vit21k train --stage pretrain"


@dataclass(frozen=True, kw_only=True)
class ManifestStatus:
    """State of a manifest.

    Attributes:
        kind: Its name.
        state: Fresh, if none of its inputs has changed.
        detail: The change or the problem; empty if there is none.
        num_rows: How many rows it has; None if it cannot be opened.
        row: What a row of it is.
        next: The command that makes it (right).
    """

    kind: str
    state: State
    detail: str
    num_rows: int | None
    row: str
    next: str


@dataclass(frozen=True, kw_only=True)
class Status:
    """State of a folder of manifests.

    Attributes:
        root: The image root that was hashed; empty if it is not known.
        has_root: Whether that is there; a URL is not asked for.
        manifests: Those of `STAGES`, and what else is there, in the order of `KINDS`.
        next: The next command.
    """

    root: str
    has_root: bool
    manifests: list[ManifestStatus]
    next: str


def status_of(folder: Path) -> Status:
    """Return the state of the manifests in *folder*, which may be missing."""
    needed = {kind.name for kinds in STAGES.values() for kind in kinds}
    found = [
        _status(folder, kind)
        for kind in KINDS.values()
        if kind.name in needed or (folder / kind.file_name).is_file()
    ]
    root = _root(folder)
    wrong = [manifest for manifest in found if manifest.state != "fresh"]
    first = next((manifest for manifest in wrong if manifest.kind in needed), None)
    first = first or next(iter(wrong), None)
    return Status(
        root=root,
        has_root=bool(root) and (is_url(root) or Path(root).is_dir()),
        manifests=found,
        next=_next(folder, first.next, root) if first else AFTER_ALL,
    )


def _status(folder: Path, kind: ManifestKind) -> ManifestStatus:
    path = folder / kind.file_name
    state: State = "fresh"
    detail, command = "", kind.made_by
    manifest: Manifest | None = None
    try:
        manifest = open_manifest(path, kind, allow_stale=True)
        command = made_by(manifest)
        if changed := stale_input(manifest):
            state, detail = "stale", f"`{changed.name}` has changed since"
    except ManifestError as error:
        state = "damaged" if path.is_file() else "missing"
        detail = error.message if path.is_file() else ""
    return ManifestStatus(
        kind=kind.name,
        state=state,
        detail=detail,
        num_rows=manifest.num_rows if manifest else None,
        row=kind.row,
        next=command,
    )


def _root(folder: Path) -> str:
    for kind in (DIGESTS, IMAGES, TRAIN):
        try:
            return open_manifest(folder, kind, allow_stale=True).header.root
        except ManifestError:
            continue
    return ""


def _next(folder: Path, command: str, root: str) -> str:
    if command == MAKE_VAL:  # then all that it is made from is there
        return command_to_split(folder)
    return command.replace("<image root>", shlex.quote(root)) if root else command
