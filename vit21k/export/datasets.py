"""Manifests -> what other libraries read: Hugging Face datasets, cleanlab, Parquet with Croissant.

Croissant is the JSON-LD of MLCommons for data sets (http://mlcommons.org/croissant/1.0).  No
library is used: the one of MLCommons has more dependencies than vit21k.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vit21k.atomic import atomic_file, write_atomic
from vit21k.errors import DataError, UsageError
from vit21k.manifest.classes import ClassList
from vit21k.manifest.io import Manifest, open_manifest
from vit21k.manifest.schema import IMAGES, TRAIN, VAL
from vit21k.manifest.wordnet import names_of
from vit21k.manifest.writer import refuse_inside
from vit21k.prep.dedup import prefetched
from vit21k.prep.split import refuse_published
from vit21k.sources.read import Root
from vit21k.sources.remote import is_url


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What is exported.

    Attributes:
        by_name: Manifests by the name of the split: `train`, and `validation` if it is held out.
            The val of a dummy split, whose images are in train too, is called `dummy_val`.
        classes: Their class list.
        root: Folder of the images; "" if that is not known.
    """

    by_name: dict[str, Manifest]
    classes: ClassList
    root: str

    @property
    def num_rows(self) -> dict[str, int]:
        """Number of images of each split."""
        return {name: manifest.num_rows for name, manifest in self.by_name.items()}


def open_splits(manifests: Path, out: Path, root: Root | None = None) -> Splits:
    """Open the splits in the folder *manifests* for export into the new folder *out*.

    Args:
        manifests: The folder of the manifests.
        out: The folder of the export; empty or missing.
        root: Folder of the images; None: the one that was hashed.

    Raises:
        ManifestError: A manifest is missing, stale or damaged.
        UsageError: *out* is not empty, or is inside the image root.
    """
    if (manifests / VAL.file_name).is_file():
        val = open_manifest(manifests, VAL)
        is_held_out = val.header.options["split"] == "holdout"
        by_name = {
            "train": open_manifest(manifests, TRAIN),
            "validation" if is_held_out else "dummy_val": val,
        }
    else:
        images = open_manifest(manifests, IMAGES)
        refuse_published(images, "this export without a split")
        by_name = {"train": images}
    train = by_name["train"]
    refuse_inside(out, str(root or train.header.image_folder), option="--out")
    if out.is_dir() and any(out.iterdir()):
        raise UsageError(f"`{out}` is not empty", hint="name a new folder with `--out DIR`")
    out.mkdir(parents=True, exist_ok=True)
    return Splits(
        by_name=by_name,
        classes=train.classes(),
        root=str(Path(root).resolve())
        if root and not is_url(root)
        else str(root or train.header.root),
    )


def plain_files(manifest: Manifest, columns: list[str]) -> Iterator[pa.Table]:
    """Yield *columns* of the manifest, a row group at a time.

    Raises:
        DataError: An image is in an archive, which other libraries do not read.
    """
    for rows in prefetched(manifest.batches([*columns, "container"])):
        if num_packed := pc.sum(rows["container"].is_valid()).as_py():
            raise DataError(
                f"{num_packed:,} or more images of `{manifest.path}` are in archives, which "
                "cannot be linked to",
                hint="unpack the archives, hash the tree again, and export that",
            )
        yield rows.select(columns)


_COLUMNS = {"labels": "label_ids", "paths": "path"}


def write_cleanlab(splits: Splits, out: Path) -> list[Path]:
    """Write `{split}_labels.json` and `{split}_paths.json`; return them.

    Raises:
        OSError: The disk is full or failing.
    """
    written = []
    for name, manifest in splits.by_name.items():
        for what, column in _COLUMNS.items():
            path = out / f"{name}_{what}.json"
            with atomic_file(path) as file:
                separator = b"["
                for rows in manifest.batches([column]):
                    text = json.dumps(rows[column].to_pylist(), ensure_ascii=False)[1:-1]
                    if text:
                        file.write(separator + text.encode())
                        separator = b",\n"
                file.write(b"[]\n" if separator == b"[" else b"]\n")
            written.append(path)
    return written


ROWS_PER_FILE = 1_000_000

_LABELS = pa.field("labels", pa.list_(pa.int64()))
HF_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        _LABELS,
        ("digest", pa.binary()),  # `datasets` before 5.1 refuses binary values of fixed size
        ("container", pa.string()),
        ("offset", pa.int64()),
        ("num_bytes", pa.int64()),
        ("storage", pa.string()),
    ]
)
IMAGEFOLDER_SCHEMA = pa.schema([("file_name", pa.string()), _LABELS])


def write_hf(splits: Splits, out: Path, *, rows_per_file: int | None = ROWS_PER_FILE) -> list[Path]:
    """Write `{split}-00000-of-00008.parquet` files and a dataset card; return the Parquet files.

    Args:
        splits: What is exported.
        out: The folder, empty.
        rows_per_file: Rows of a file; None: all.

    Raises:
        OSError: The disk is full or failing.
    """
    written = []
    for name, manifest in splits.by_name.items():
        size = max(rows_per_file or manifest.num_rows, 1)
        num_files = max(-(-manifest.num_rows // size), 1)
        for index, pieces in groupby(_numbered(_hf_rows(manifest), size), key=itemgetter(0)):
            path = out / f"{name}-{index:05}-of-{num_files:05}.parquet"
            _write((rows for _, rows in pieces), HF_SCHEMA, path, splits.classes)
            written.append(path)
    write_atomic(out / "README.md", dataset_card(splits).encode())
    return written


def _hf_rows(manifest: Manifest) -> Iterator[pa.Table]:
    columns = ["path", "label_ids", "digest", "container", "offset", "num_bytes", "storage"]
    for rows in manifest.batches(columns):
        yield rows.select(columns).rename_columns(HF_SCHEMA.names).cast(HF_SCHEMA)


def _numbered(tables: Iterator[pa.Table], size: int) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows with the index of their file, *size* rows to a file."""
    yield 0, HF_SCHEMA.empty_table()
    row = 0
    for table in tables:
        start = 0
        while start < table.num_rows:
            stop = min(table.num_rows, start + size - row % size)
            yield row // size, table.slice(start, stop - start)
            row, start = row + stop - start, stop


def dataset_card(splits: Splits) -> str:
    """Return the README of the folder: which files are which split, counts, licence."""
    files = "".join(f"  - split: {name}\n    path: {name}-*.parquet\n" for name in splits.by_name)
    counts = "".join(f"- `{name}`: {count:,} images\n" for name, count in splits.num_rows.items())
    dummy = (
        "`dummy_val` is for monitoring a training run: its images are in `train` as well.\n\n"
        if "dummy_val" in splits.by_name
        else ""
    )
    return (
        f"---\nlicense: other\nlicense_name: imagenet\n"
        f"license_link: https://image-net.org/download.php\n"
        f"task_categories:\n- image-classification\n"
        f"configs:\n- config_name: default\n  data_files:\n{files}---\n\n"
        f"# Labels of ImageNet-21K, without the images\n\n"
        f"{counts}\n{dummy}"
        f"`path` is relative to the image root; `labels` are indices into "
        f"{len(splits.classes):,} classes,\nthe features' `ClassLabel` names. Fingerprint of the "
        f"class list: `{splits.classes.fingerprint}`.\n"
    )


def write_imagefolder(splits: Splits, out: Path) -> None:
    """Write `{split}/metadata.parquet`, each next to a link `images` to the image tree.

    Raises:
        UsageError: The image root is unknown or missing.
        DataError: An image is in an archive.
        OSError: The disk is full or failing, or the file system has no links.
    """
    root = Path(splits.root)
    if not splits.root or not root.is_dir():
        raise UsageError(
            f"the image root `{root}` is not a folder", hint="name it with `--root DIR`"
        )
    for name, manifest in splits.by_name.items():
        folder = out / name
        folder.mkdir()
        (folder / "images").symlink_to(root, target_is_directory=True)
        _write(_linked(manifest), IMAGEFOLDER_SCHEMA, folder / "metadata.parquet", splits.classes)


def _linked(manifest: Manifest) -> Iterator[pa.Table]:
    for rows in plain_files(manifest, ["path", "label_ids"]):
        paths = pc.binary_join_element_wise("images", rows["path"], "/")
        yield pa.table([paths, rows["label_ids"]], schema=IMAGEFOLDER_SCHEMA)


def _write(tables: Iterable[pa.Table], schema: pa.Schema, path: Path, classes: ClassList) -> None:
    """Write *tables*, a row group each; those without rows leave none."""
    features: dict[str, object] = {
        field.name: {"dtype": str(field.type), "_type": "Value"} for field in schema
    }
    label = {"names": list(classes.wnids), "_type": "ClassLabel"}
    features["labels"] = {"feature": label, "_type": "List"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)}
    with (
        atomic_file(path) as file,
        pq.ParquetWriter(
            file,
            schema.with_metadata(metadata),
            compression="zstd",
            write_page_checksum=True,
            use_dictionary=["container", "storage"],
        ) as writer,
    ):
        for table in tables:
            if table.num_rows:
                writer.write_table(table)


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
