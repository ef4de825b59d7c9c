"""A Hugging Face image dataset on disk -> image files in class folders, byte for byte.

Read are what `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write (Arrow), and Parquet files
with a column of images and one of labels, as the hub has them.  pyarrow is all it takes.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vit21k.errors import DataError
from vit21k.manifest.layout import SPLIT_OF
from vit21k.prep.cifar import NamedImage

_SAVED = ("dataset_dict.json", "state.json", "dataset_info.json")
_LABEL_NAMES = ("label", "labels", "fine_label", "class")
_BATCH_ROWS = 256
_SUFFIXES = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"RIFF": "webp",
    b"II*\x00": "tif",
    b"MM\x00*": "tif",
}


def is_hugging_face(path: Path) -> bool:
    """Return whether *path* is such a dataset: a folder that was saved, or Parquet files."""
    if path.is_file():
        return path.suffix == ".parquet"
    return any((path / name).is_file() for name in _SAVED) or bool(_parquet_files(path))


class HuggingFaceImages:
    """The images of a dataset.

    Attributes:
        path: The folder or file it was opened from.
        names: Class names by the folder their images go to.
        num_unlabelled: Images without a label that were met, which are skipped.
        skipped: Files of rows below *path* that are not looked at.
    """

    def __init__(self, path: Path) -> None:
        """Read what the columns are.

        Raises:
            DataError: There is no dataset, or it has no images or no labels.
        """
        self.path = path
        self.num_unlabelled = 0
        self._files = list(_files_of(path))
        if not self._files:
            raise DataError(f"`{path}` holds no dataset")
        read = {file for _, file in self._files}
        below = sorted(path.rglob("*")) if path.is_dir() else []
        self.skipped = [f for f in below if f.suffix in (".parquet", ".arrow") and f not in read]
        schema = _schema_of(self._files[0][1])
        features = _features_of(schema)
        self._image = _image_column(schema, features, path)
        self._label, class_names = _label_column(schema, features, path)
        self._folders = dict(enumerate(_folders(class_names or []))) or None
        self.names = dict(zip((self._folders or {}).values(), class_names or [], strict=True))

    @property
    def source(self) -> dict[str, Any]:
        """What identifies the dataset, as JSON values: its files with size and time."""
        files = [
            [str(file), file.stat().st_size, file.stat().st_mtime_ns] for _, file in self._files
        ]
        return {"hugging_face": files}

    def images(self) -> Iterator[NamedImage]:
        """Yield every image, once for each of its labels, with its path in the tree."""
        row = 0
        for split, file in self._files:
            for batch in _batches_of(file, [self._image, self._label]):
                for image, label in zip(*(column.to_pylist() for column in batch), strict=True):
                    folders = list(self._folders_of(label))
                    self.num_unlabelled += not folders
                    content = _content_of(image, file.parent) if folders else b""
                    for folder in folders:
                        name = f"{folder}/{row:08}.{_suffix_of(content)}"
                        yield NamedImage(f"{split}/{name}" if split else name, content)
                    row += 1

    def _folders_of(self, label: Any) -> Iterator[str]:
        for one in label if isinstance(label, list) else [label]:
            if one is None or one == -1:
                continue
            yield self._folders[one] if self._folders else _folders([str(one)])[0]


def _files_of(path: Path) -> Iterator[tuple[str | None, Path]]:
    """Yield the split and path of each file with rows; None where there are no splits."""
    if path.is_file():
        yield None, path
    elif (path / "dataset_dict.json").is_file():
        for split in _json(path / "dataset_dict.json")["splits"]:
            for file in _arrow_files(path / split):
                yield split, file
    elif (path / "state.json").is_file():
        for file in _arrow_files(path):
            yield None, file
    else:
        yield from _split_files(path)


def _split_files(path: Path) -> Iterator[tuple[str | None, Path]]:
    files = _parquet_files(path)
    splits = [file.stem.partition("-")[0] for file in files]
    known = [split if split in SPLIT_OF else None for split in splits]
    if any(known) and not all(known):
        raise DataError(
            f"`{files[known.index(None)]}` is of no split that is known, and others are",
            hint=f"call it `train-...` or `validation-...`, or take it out of `{path}`",
        )
    yield from zip(known, files, strict=True)


def _arrow_files(folder: Path) -> Iterator[Path]:
    for file in _json(folder / "state.json")["_data_files"]:
        yield folder / file["filename"]


def _parquet_files(path: Path) -> list[Path]:
    return sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"`{path}` cannot be read: {error}") from error


def _schema_of(file: Path) -> pa.Schema:
    try:
        if file.suffix == ".parquet":
            return pq.read_schema(file)
        with pa.memory_map(str(file)) as source:
            return pa.ipc.open_stream(source).schema
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"`{file}` cannot be read: {error}") from error


def _batches_of(file: Path, columns: list[str]) -> Iterator[list[pa.Array]]:
    try:
        if file.suffix == ".parquet":
            for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=columns):
                yield [batch[name] for name in columns]
        else:
            with pa.memory_map(str(file)) as source:
                for batch in pa.ipc.open_stream(source):
                    yield [batch[name] for name in columns]
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"`{file}` cannot be read: {error}") from error


def _features_of(schema: pa.Schema) -> Mapping[str, Any]:
    stored = (schema.metadata or {}).get(b"huggingface")
    features: Mapping[str, Any] = json.loads(stored)["info"]["features"] if stored else {}
    return features


def _image_column(schema: pa.Schema, features: Mapping[str, Any], path: Path) -> str:
    for field in schema:
        feature = features.get(field.name)
        if isinstance(feature, dict) and feature.get("_type") == "Image":
            return str(field.name)
    for field in schema:
        if pa.types.is_struct(field.type) and {"bytes", "path"} <= {f.name for f in field.type}:
            return str(field.name)
    raise DataError(
        f"`{path}` has no column of images", hint=f"its columns are {', '.join(schema.names)}"
    )


def _label_column(
    schema: pa.Schema, features: Mapping[str, Any], path: Path
) -> tuple[str, list[str] | None]:
    """Return the column of labels, and the names of the classes if it says them."""
    for name, feature in features.items():
        inside = feature[0] if isinstance(feature, list) else feature
        inside = inside.get("feature", inside) if isinstance(inside, dict) else {}
        if isinstance(inside, dict) and inside.get("_type") == "ClassLabel":
            return name, list(inside["names"])
    for name in _LABEL_NAMES:
        if name in schema.names:
            return name, None
    raise DataError(
        f"`{path}` has no column of labels",
        hint=f"its columns are {', '.join(schema.names)}; name one of them `label`",
    )


def _folders(names: list[str]) -> list[str]:
    """Return a name for the folder of each class: its own, made safe and distinct."""
    folders: list[str] = []
    for index, name in enumerate(names):
        safe = name.replace("/", "_").replace("\0", "_").strip() or "_"
        safe = f"_{safe}" if safe.startswith(".") else safe
        folders.append(f"{safe}-{index}" if safe in folders else safe)
    return folders


def _content_of(image: Any, folder: Path) -> bytes:
    """Return the bytes of an image, which may lie beside the dataset; none if it has none.

    Raises:
        DataError: They are in a file that is not there.
        OSError: It cannot be read.
    """
    if not isinstance(image, dict):
        return b""
    if image.get("bytes") is not None:
        return bytes(image["bytes"])
    if not image.get("path"):
        return b""
    file: Path = folder / image["path"]
    if not file.is_file():
        raise DataError(
            f"`{file}`, which the dataset names, is not there",
            hint="mount its disk, or save the dataset with the bytes of its images",
        )
    return file.read_bytes()


def _suffix_of(content: bytes) -> str:
    """Return the suffix that the content asks for; what is no image is found out by `hash`."""
    return next((end for head, end in _SUFFIXES.items() if content.startswith(head)), "jpg")
