"""Manifests -> Parquet files and `croissant.json`, which describes them.

Croissant is the JSON-LD of MLCommons for data sets (http://mlcommons.org/croissant/1.0).  No
library is used: the one of MLCommons has more dependencies than vit21k.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vit21k.atomic import atomic_file, write_atomic
from vit21k.export.datasets import Splits, write_hf
from vit21k.manifest.wordnet import names_of

_PARQUET = "application/x-parquet"

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""Source: the Croissant format specification 1.0, "Appendix 1: JSON-LD context"."""

CITATION = (
    "@inproceedings{deng2009imagenet, title={ImageNet: A large-scale hierarchical image database}, "
    "author={Deng, Jia and Dong, Wei and Socher, Richard and Li, Li-Jia and Li, Kai and Fei-Fei, "
    "Li}, booktitle={CVPR}, year={2009}}"
)


def write_croissant(splits: Splits, out: Path) -> Path:
    """Write a Parquet file for each split, one with the classes, and `croissant.json`.

    Returns:
        The path of `croissant.json`.

    Raises:
        OSError: The disk is full or failing.
    """
    files = write_hf(splits, out, rows_per_file=None)
    classes = out / "classes.parquet"
    _write_classes(splits, classes)
    described = describe(splits, files, classes)
    path = out / "croissant.json"
    write_atomic(path, (json.dumps(described, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def _write_classes(splits: Splits, path: Path) -> None:
    wnids = splits.classes.wnids
    names = names_of(wnids)
    rows = pa.table(
        {
            "class_index": pa.array(range(len(wnids)), pa.int64()),
            "wnid": pa.array(wnids, pa.string()),
            "name": pa.array([names.get(wnid, wnid) for wnid in wnids], pa.string()),
        }
    )
    with atomic_file(path) as file:
        pq.write_table(rows, file, compression="zstd", write_page_checksum=True)


def describe(splits: Splits, files: list[Path], classes: Path) -> dict[str, Any]:
    """Return the JSON-LD of the exported *files*, one for each split, and of *classes*."""
    split_fields = {"path": "sc:Text", "labels": "sc:Integer"}
    class_fields = {"class_index": "sc:Integer", "wnid": "sc:Text", "name": "sc:Text"}
    counts = ", ".join(f"{name}: {count:,}" for name, count in splits.num_rows.items())
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": "imagenet-21k-labels",
        "description": f"Paths and labels of ImageNet-21K images, copies merged ({counts}), in "
        f"{len(splits.classes):,} classes. Fingerprint of the class list: "
        f"{splits.classes.fingerprint}.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "citeAs": CITATION,
        "license": "https://image-net.org/download.php",
        "url": "https://image-net.org/",
        "distribution": [_file_object(path) for path in (*files, classes)],
        "recordSet": [
            *(
                _record_set(name, path, split_fields)
                for name, path in zip(splits.by_name, files, strict=True)
            ),
            _record_set("classes", classes, class_fields),
        ],
    }


def _file_object(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "@type": "cr:FileObject",
        "@id": path.name,
        "name": path.name,
        "contentUrl": path.name,
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": _PARQUET,
        "sha256": sha256,
    }


def _record_set(name: str, path: Path, fields: dict[str, str]) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": name,
        "name": name,
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"{name}/{column}",
                "name": column,
                "dataType": data_type,
                **({"repeated": True} if column == "labels" else {}),
                "source": {"fileObject": {"@id": path.name}, "extract": {"column": column}},
            }
            for column, data_type in fields.items()
        ],
    }
