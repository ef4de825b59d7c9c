"""What a manifest says of itself: kind, version, origin, class names; sealed against damage.

It is stored as JSON in the metadata of the Parquet schema.  Parquet's footer has no checksum, so
the header carries a *seal*: a digest of itself and of the class names.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from vit21k.errors import ManifestError
from vit21k.manifest.classes import ClassList
from vit21k.manifest.kind import ManifestKind

_HEADER = b"vit21k"
_SEAL = b"vit21k.seal"
_FEATURES = b"huggingface"

Metadata = Mapping[bytes, bytes]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a manifest says of itself, beside its rows.

    Attributes:
        algorithm: Digest algorithm of the `digest` column.
        root: Image root, an absolute POSIX path; the paths of the rows are relative to it.  In a
            file it may be ".", the folder of the manifest: that of a pack, which may be moved.
        classes: Fingerprint of the class list that `label_ids` index, if there are any.
        inputs: Fingerprint of each manifest this one was made from, by kind.
        inputs_in: The folder that those lie in, relative to the folder of this one.
        options: What it was made with, where that changes the rows.
    """

    algorithm: str
    root: str
    classes: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    inputs_in: str = "."
    options: Mapping[str, Any] = field(default_factory=dict)


def to_metadata(kind: ManifestKind, header: Header, classes: ClassList | None) -> Metadata:
    """Return the schema metadata of a *kind* manifest; *classes* where its rows have labels."""
    fields = {"kind": kind.name, "version": kind.version, **asdict(header)}
    metadata = {_HEADER: json.dumps(fields, sort_keys=True).encode()}
    if classes is not None and "label_ids" in kind.schema.names:
        metadata[_FEATURES] = _hugging_face_features(kind, classes)
    metadata[_SEAL] = _seal(metadata)
    return metadata


def kind_and_version(path: Path, metadata: Metadata) -> tuple[str, int] | None:
    """Return which manifest *metadata* belongs to; None if to no manifest.

    Raises:
        ManifestError: The seal is broken.
    """
    if _HEADER not in metadata:
        return None
    if metadata.get(_SEAL) != _seal(metadata):
        raise ManifestError(
            f"`{path}` is damaged: its header does not match its seal",
            hint="restore it from a copy, or make it again",
        )
    fields = json.loads(metadata[_HEADER])
    return fields["kind"], fields["version"]


def parse_header(metadata: Metadata) -> Header:
    """Return the header that `to_metadata` stored."""
    fields = json.loads(metadata[_HEADER])
    del fields["kind"], fields["version"]
    return Header(**fields)


def parse_classes(metadata: Metadata) -> ClassList | None:
    """Return the class list that the rows' `label_ids` index, if they have any."""
    if _FEATURES not in metadata:
        return None
    features = json.loads(metadata[_FEATURES])["info"]["features"]
    return ClassList(tuple(features["label_ids"]["feature"]["names"]))


def _seal(metadata: Metadata) -> bytes:
    digest = xxhash.xxh3_128()
    for key in (_HEADER, _FEATURES):
        digest.update(metadata.get(key, b"") + b"\0")
    return digest.hexdigest().encode()


def _hugging_face_features(kind: ManifestKind, classes: ClassList) -> bytes:
    """Return the key with which `datasets` loads `label_ids` as a list of `ClassLabel`."""
    features: dict[str, Any] = {}
    for column in kind.schema:
        dtype = str(column.type)
        features[column.name] = {"dtype": dtype, "_type": "Value"}
        if pa.types.is_list(column.type):
            label = {"names": list(classes.wnids), "_type": "ClassLabel"}
            features[column.name] = {"feature": label, "_type": "List"}
    return json.dumps({"info": {"features": features}}, sort_keys=True).encode()
