"""Paths, bytes and labels of images by manifest row, from memory-mapped arrays."""

import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.atomic import atomic_folder
from vit21k.data.node_cache import AHEAD_IMAGES, AheadReader, CacheFiller, NodeCache
from vit21k.errors import ManifestError
from vit21k.lock import locked
from vit21k.machine import user_cache
from vit21k.manifest.io import Manifest, open_manifest
from vit21k.manifest.schema import DIGESTS, IMAGE_KINDS, IMAGES, LOCATOR_COLUMNS
from vit21k.sources.container import PARQUET
from vit21k.sources.gzip_tar import GZIP, INDEX_FOLDER
from vit21k.sources.read import ImageReader, Locator, Root, existing_root


@runtime_checkable
class ImageRows(Protocol):
    """Ordered images.  `ImageDataset` has those of a manifest.

    Dimensions: B images, L labels of them.
    """

    def __len__(self) -> int:
        """Return the number of images."""

    def path(self, row: int) -> str:
        """Return the path of an image."""

    def read_bytes(self, row: int) -> bytes:
        """Return the content of its file.

        Raises:
            ImageError: It cannot be read.
        """

    def labels_of(self, rows_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return label_rows_L and label_ids_L of a batch; empty if labels are unknown."""

    @property
    def num_ahead(self) -> int:
        """Number of images to `prefetch` before they are read."""

    def prefetch(self, rows_B: NDArray[np.int64]) -> None:
        """Start reading the images of a batch."""


_T = TypeVar("_T")
_ANNOUNCED_ROWS = 64


def announced(
    images: ImageRows, items: Iterable[_T], rows_of: Callable[[_T], NDArray[np.int64]]
) -> Iterator[_T]:
    """Yield *items*; the images of those that come next are prefetched.

    Args:
        images: What is read.
        items: Batches, for instance.
        rows_of: Returns the rows of the images of an item.
    """
    if not images.num_ahead:
        yield from items
        return
    coming: deque[_T] = deque()
    num_coming = 0
    for item in items:
        images.prefetch(rows_of(item))
        coming.append(item)
        num_coming += len(rows_of(item))
        while num_coming > images.num_ahead:
            num_coming -= len(rows_of(coming[0]))
            yield coming.popleft()
    yield from coming


def announced_rows(images: ImageRows, rows: Sequence[int]) -> Iterator[int]:
    """Yield *rows*; the images of those that come next are prefetched."""
    starts = range(0, len(rows), _ANNOUNCED_ROWS)
    batches = (rows[start : start + _ANNOUNCED_ROWS] for start in starts)
    for batch in announced(images, batches, np.asarray):
        yield from batch


class LocatorColumns(NamedTuple):
    """Locators of images in containers: 21 bytes per image.

    Attributes:
        containers: Their paths, relative to the image root; None last, for the index -1.
        storages: Storage formats of images; None last.
        container_B: int32, an index into *containers*; -1 for a plain file.
        offset_B: int64, bytes; 0 for a plain file.
        num_bytes_B: int64; 0 for a plain file.
        storage_B: int8, an index into *storages*; -1 if images are stored unchanged.
    """

    containers: tuple[str | None, ...]
    storages: tuple[str | None, ...]
    container_B: NDArray[np.int32]
    offset_B: NDArray[np.int64]
    num_bytes_B: NDArray[np.int64]
    storage_B: NDArray[np.int8]

    @classmethod
    def from_rows(cls, rows: pa.Table) -> Self:
        """Read `LOCATOR_COLUMNS` of a manifest."""
        containers, container_B = _encoded(rows["container"], np.dtype(np.int32))
        storages, storage_B = _encoded(rows["storage"], np.dtype(np.int8))
        return cls(
            containers,
            storages,
            container_B,
            rows["offset"].fill_null(0).to_numpy(),
            rows["num_bytes"].fill_null(0).to_numpy(),
            storage_B,
        )

    def locate(self, path: str, row: int) -> Locator:
        """Return the locator of the image in *row*, whose path is *path*."""
        return Locator(
            path,
            self.containers[self.container_B[row]],
            int(self.offset_B[row]),
            int(self.num_bytes_B[row]),
            self.storages[self.storage_B[row]],
        )


def _encoded(
    column: pa.ChunkedArray, dtype: np.dtype[Any]
) -> tuple[tuple[str | None, ...], NDArray[Any]]:
    """Return the distinct values of *column* and None, and the index of each row; -1 for null."""
    encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
    encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(dtype)
    return (*encoded.dictionary.to_pylist(), None), indices


COLUMNS = ["label_ids", *LOCATOR_COLUMNS]


class FlatRows(NamedTuple):
    """Paths, labels and locators; in memory, or mapped from files.

    Attributes:
        path_text_T: uint8; all paths in UTF-8, concatenated.
        path_starts_B: int64; start of each path, and end of the last.
        label_ids_L: int32; class indices.
        label_starts_B: int64; start of the labels of each row, and end of the last.
        num_multi_label: Number of rows with several labels.
        locators: Locators in containers; None if all images are plain files.
    """

    path_text_T: NDArray[np.uint8]
    path_starts_B: NDArray[np.int64]
    label_ids_L: NDArray[np.int32]
    label_starts_B: NDArray[np.int64]
    num_multi_label: int
    locators: LocatorColumns | None

    @classmethod
    def from_arrow(
        cls, paths: pa.Array, label_lists: pa.Array, locators: LocatorColumns | None = None
    ) -> Self:
        """Take string *paths* and list *label_lists*, without nulls."""
        paths = paths.cast(pa.large_string())
        label_lists = label_lists.cast(pa.large_list(pa.int64()))
        label_starts_B = _offsets(label_lists)
        return cls(
            np.frombuffer(paths.buffers()[2] or b"", dtype=np.uint8),
            _offsets(paths),
            label_lists.values.to_numpy(zero_copy_only=False).astype(np.int32),
            label_starts_B,
            int((np.diff(label_starts_B) > 1).sum()),
            locators,
        )

    @classmethod
    def from_table(cls, rows: pa.Table) -> Self:
        """Take `COLUMNS` of a manifest."""
        is_plain = rows["container"].null_count == rows.num_rows
        locators = None if is_plain else LocatorColumns.from_rows(rows)
        return cls.from_arrow(_whole(rows["path"]), _whole(rows["label_ids"]), locators)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """Join the row groups of a column; large offsets, for paths of more than 2 GB."""
    large = pa.large_list(pa.int64()) if pa.types.is_list(column.type) else pa.large_string()
    whole = column.cast(large).combine_chunks()
    return whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole


def _offsets(array: pa.Array) -> NDArray[np.int64]:
    """Return where each row starts in the array's values, and where the last one ends."""
    if not len(array):
        return np.zeros(1, dtype=np.int64)
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)
    return offsets[array.offset : array.offset + len(array) + 1]


_VERSION = 2
_CARD = "index.json"
_DTYPES = {
    "path_text": "u1",
    "path_starts": "<i8",
    "label_ids": "<i4",
    "label_starts": "<i8",
    "container": "<i4",
    "offset": "<i8",
    "num_bytes": "<i8",
    "storage": "i1",
}
_LOCATORS = ("container", "offset", "num_bytes", "storage")


class IndexWriter:
    """Writes the rows of a manifest to an empty folder, in constant memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._files = {
            name: self._stack.enter_context((folder / name).open("wb")) for name in _DTYPES
        }
        self._counts = dict.fromkeys(_DTYPES, 0)
        self._containers: dict[str | None, int] = {}
        self._storages: dict[str | None, int] = {}
        self._num_multi_label = 0
        for name in ("path_starts", "label_starts"):
            self._append(name, np.zeros(1))

    def write(self, rows: FlatRows) -> None:
        """Append *rows*."""
        self._append_lists("path", rows.path_text_T, rows.path_starts_B, "text")
        self._append_lists("label", rows.label_ids_L, rows.label_starts_B, "ids")
        self._num_multi_label += rows.num_multi_label
        self._append_locators(rows.locators, len(rows.path_starts_B) - 1)

    def finish(self) -> None:
        """Write what is needed to open the files, and close them."""
        self._stack.close()
        if not self._containers:
            for name in _LOCATORS:
                self._counts[name] = 0
                (self._folder / name).write_bytes(b"")
        card = {
            "version": _VERSION,
            "counts": self._counts,
            "num_multi_label": self._num_multi_label,
            "containers": list(self._containers),
            "storages": list(self._storages),
        }
        (self._folder / _CARD).write_text(json.dumps(card), encoding="utf-8")

    def close(self) -> None:
        """Close the files."""
        self._stack.close()

    def _append(self, name: str, values: NDArray[Any]) -> None:
        self._files[name].write(np.ascontiguousarray(values, dtype=_DTYPES[name]).data)
        self._counts[name] += len(values)

    def _append_lists(
        self, name: str, values: NDArray[Any], starts_B: NDArray[np.int64], what: str
    ) -> None:
        before = self._counts[f"{name}_{what}"] - starts_B[0]
        self._append(f"{name}_starts", starts_B[1:] + before)
        self._append(f"{name}_{what}", values[starts_B[0] : starts_B[-1]])

    def _append_locators(self, columns: LocatorColumns | None, num_rows: int) -> None:
        if columns is None:
            for name in _LOCATORS:
                value = -1 if name in {"container", "storage"} else 0
                self._append(name, np.full(num_rows, value))
            return
        container_B = _renumbered(columns.container_B, columns.containers, self._containers)
        self._append("container", container_B)
        self._append("offset", columns.offset_B)
        self._append("num_bytes", columns.num_bytes_B)
        self._append("storage", _renumbered(columns.storage_B, columns.storages, self._storages))


def _renumbered(
    index_B: NDArray[Any], texts: tuple[str | None, ...], index_of: dict[str | None, int]
) -> NDArray[np.int64]:
    """Return *index_B*, indices into *texts*, as indices by *index_of*; it gets the new texts."""
    new = [index_of.setdefault(text, len(index_of)) for text in texts[:-1]]
    return np.array([*new, -1])[index_B]


def map_index(folder: Path) -> FlatRows | None:
    """Return the rows of an index, mapped; None if there is none, or none that is whole."""
    try:
        card = json.loads((folder / _CARD).read_bytes())
        if card["version"] != _VERSION:
            return None
        arrays = {name: _mapped(folder / name, card["counts"][name]) for name in _DTYPES}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    containers, storages = (*card["containers"], None), (*card["storages"], None)
    locators = LocatorColumns(containers, storages, *(arrays[name] for name in _LOCATORS))
    return FlatRows(
        arrays["path_text"],
        arrays["path_starts"],
        arrays["label_ids"],
        arrays["label_starts"],
        card["num_multi_label"],
        locators if card["containers"] else None,
    )


def _mapped(path: Path, count: int) -> NDArray[Any]:
    """Map *count* values.

    Raises:
        ValueError: The file has another size.
    """
    dtype = np.dtype(_DTYPES[path.name])
    if path.stat().st_size != count * dtype.itemsize:
        raise ValueError(f"`{path}` has another size")
    if not count:
        return np.zeros(0, dtype)
    # A plain array: what a `memmap` adds to each access costs more than the access.
    return np.asarray(np.memmap(path, dtype, mode="r"))


FOLDER = ".rows"
MIN_ROWS = 1 << 18
"""Below this, reading takes 0.2 s and 20 MB: no index is made."""


@dataclass(frozen=True)
class RowIndex:
    """Rows that are mapped from files.

    Attributes:
        rows: The rows.
        folder: Where the files are.
        seconds: How long it took to make them, or until another process had; None: they were there.
    """

    rows: FlatRows
    folder: Path
    seconds: float | None


def open_index(manifest: Manifest, note: Callable[[str], None]) -> RowIndex | None:
    """Return the index of *manifest*, created if missing; None if rows should be read directly.

    Args:
        manifest: The manifest.
        note: Reports that an index is created, and how long it took.

    Raises:
        ManifestError: The manifest is damaged.
    """
    if manifest.num_rows < MIN_ROWS:
        return None
    folders = list(_index_folders(manifest))
    for folder in folders:
        if rows := map_index(folder):
            return RowIndex(rows, folder, None)
    note(f"indexing the {manifest.num_rows:,} rows of `{manifest.path}`, once for all runs")
    for folder in folders:
        with suppress(OSError):  # read-only, full, or without locks: try the next folder
            index = _made(manifest, folder)
            note(f"indexed in {index.seconds:.1f} s: `{index.folder}`")
            return index
    note("the index cannot be written to any folder: every process reads the rows into memory")
    return None


def _index_folders(manifest: Manifest) -> Iterator[Path]:
    yield manifest.path.absolute().parent / FOLDER / manifest.fingerprint
    if cache := user_cache():
        yield cache / "rows" / manifest.fingerprint


def _made(manifest: Manifest, folder: Path) -> RowIndex:
    """Make the index, unless another process has made it meanwhile."""
    started = time.monotonic()
    with locked(folder.parent, command="train (indexing rows)", wait=True):
        if rows := map_index(folder):
            return RowIndex(rows, folder, time.monotonic() - started)
        shutil.rmtree(folder, ignore_errors=True)  # of another version, or damaged
        if folder.parent.name == FOLDER:
            _remove_stale(manifest.path.parent, folder.parent)
        with atomic_folder(folder) as partial, closing(IndexWriter(partial)) as writer:
            for rows in manifest.batches(COLUMNS):
                writer.write(FlatRows.from_table(rows))
            writer.finish()
    rows = map_index(folder)
    if rows is None:
        raise ManifestError(f"`{folder}` was changed while it was made")
    return RowIndex(rows, folder, time.monotonic() - started)


def _remove_stale(manifests: Path, indexes: Path) -> None:
    """Remove the indexes of manifests that are not in their folder any more."""
    wanted = set()
    for path in manifests.glob("*.parquet"):
        with suppress(ManifestError):
            wanted.add(open_manifest(path, *IMAGE_KINDS, allow_stale=True).fingerprint)
    for folder in indexes.iterdir():
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in wanted:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class CacheOptions:
    """Where images of a URL are kept on this node.

    Attributes:
        folder: On a local disk.
        max_bytes: Limit for the caches of all sources in it.
        warn: Called with why it is not written any more.
    """

    folder: Path
    max_bytes: int
    warn: Callable[[str], None] = lambda _text: None


def _open_cache(
    options: CacheOptions, manifest: Manifest, reader: ImageReader, containers: Sequence[str | None]
) -> NodeCache | None:
    """Open the cache of a manifest and the present version of its containers."""
    if reader.tree is None:
        return None
    facts = reader.tree.facts_of([name for name in containers if name])
    identity = {"url": reader.tree.url, "manifest": manifest.fingerprint, "containers": facts}
    try:
        return NodeCache(
            options.folder, options.max_bytes, identity, manifest.num_rows, options.warn
        )
    except OSError as error:
        options.warn(
            f"the cache `{options.folder}` cannot be used ({error.strerror or error}): images are "
            "read from the URL each time"
        )
        return None


class ImageDataset:
    """Paths and labels of a manifest, in flat arrays: no Python object for a row.

    14.2 million images take about 0.8 GB (1.1 GB in containers), once, whatever the number of
    threads; mapped, they take the page cache, which all processes of a machine share.

    Attributes:
        root: The folder or URL that paths are relative to.
        index: Where the rows are mapped from; None: they are in memory.
    """

    def __init__(
        self,
        root: Root,
        rows: FlatRows,
        index: RowIndex | None = None,
        open_cache: Callable[[ImageReader], NodeCache | None] = lambda _reader: None,
        *,
        manifests: Path | None = None,
        note: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Make an instance of *rows*.

        Args:
            root: Where the images are.
            rows: Their paths, labels and locators.
            index: Where *rows* are mapped from.
            open_cache: Opens the cache of images behind a URL.
            manifests: Folder with the indices of compressed tars; None: there is none.
            note: Called with what is done, if it takes long.

        Raises:
            ImageTreeError: A container is compressed, and an index cannot be made.
        """
        self.root = root
        self.index = index
        self._rows = rows
        self._path_text = memoryview(rows.path_text_T.data)
        self._reader = ImageReader(root, manifests=manifests)
        if rows.locators:
            self._reader.index_compressed(_compressed(rows.locators), note)
        self._ahead: AheadReader | None = None
        if self._reader.tree:
            cache = open_cache(self._reader)
            self._ahead = AheadReader(self._reader, self.locate, cache)
            if cache and rows.locators:
                CacheFiller(self._reader, rows.locators.containers, self._in_container, cache)

    @classmethod
    def from_arrow(
        cls,
        root: Root,
        paths: pa.Array,
        label_lists: pa.Array,
        locators: LocatorColumns | None = None,
        manifests: Path | None = None,
    ) -> Self:
        """Take string *paths* and list *label_lists*, without nulls.

        Raises:
            ImageTreeError: A container is compressed, and an index cannot be made.
        """
        return cls(root, FlatRows.from_arrow(paths, label_lists, locators), manifests=manifests)

    @classmethod
    def from_manifest(
        cls,
        manifest: Manifest,
        root: Root | None = None,
        *,
        mapped: bool = False,
        note: Callable[[str], None] = lambda _text: None,
        cache: CacheOptions | None = None,
    ) -> Self:
        """Read the paths and labels of an images, train or val manifest.

        Args:
            manifest: Which.
            root: Where the images are now; None: where they were hashed.
            mapped: Map the rows of a large manifest into memory: see `row_index`.
            note: Called with what is done for that, if it takes long.
            cache: Where to keep images of a URL.

        Raises:
            ImageTreeError: The image root is not there, or not known, or a container in it is
                compressed and an index cannot be made.
            ManifestError: The manifest is damaged.
            OSError: The server of a URL does not answer.
        """
        root = existing_root(manifest.header.root, root)
        index = open_index(manifest, note) if mapped else None
        rows = index.rows if index else FlatRows.from_table(manifest.read(COLUMNS))

        def open_cache(reader: ImageReader) -> NodeCache | None:
            containers = rows.locators.containers if rows.locators else ()
            return _open_cache(cache, manifest, reader, containers) if cache else None

        return cls(
            root, rows, index, open_cache, manifests=folder_with_indices(manifest), note=note
        )

    def __len__(self) -> int:
        return len(self._rows.path_starts_B) - 1

    @property
    def num_multi_label(self) -> int:
        """How many images carry more than one label."""
        return self._rows.num_multi_label

    def path(self, row: int) -> str:
        """Return the path of an image, relative to the root."""
        start, end = self._rows.path_starts_B[row], self._rows.path_starts_B[row + 1]
        return str(self._path_text[start:end], "utf-8")

    def label_ids(self, row: int) -> list[int]:
        """Return the class indices of an image, ascending."""
        start, end = self._rows.label_starts_B[row], self._rows.label_starts_B[row + 1]
        return [int(label) for label in self._rows.label_ids_L[start:end]]

    def labels_of(self, rows_B: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the labels of a batch, sparse.

        Returns:
            label_rows_L, the place of each label's image in *rows_B*; and label_ids_L, its class
            index.
        """
        label_starts_B = self._rows.label_starts_B
        starts_B = label_starts_B[rows_B]
        counts_B = label_starts_B[rows_B + 1] - starts_B
        label_rows_L = np.repeat(np.arange(len(rows_B), dtype=np.int64), counts_B)
        before_B = np.cumsum(counts_B) - counts_B
        in_row_L = np.arange(len(label_rows_L)) - before_B[label_rows_L]
        return label_rows_L, self._rows.label_ids_L[starts_B[label_rows_L] + in_row_L].astype(
            np.int64
        )

    def read_bytes(self, row: int) -> bytes:
        """Return the content of an image's file, or image in a container; from any thread.

        Raises:
            UnreadableImageError: The file is not there.
            ImageError: A container is shorter than it was.
            OSError: It cannot be read.
        """
        return self._ahead.take(row) if self._ahead else self._reader.read(*self.locate(row))

    def locate(self, row: int) -> Locator:
        """Return where an image is."""
        path, locators = self.path(row), self._rows.locators
        return locators.locate(path, row) if locators else Locator(path)

    def _in_container(self, index: int) -> tuple[NDArray[np.int64], list[Locator]]:
        """Return rows and locators of the images that a container stores as they are."""
        locators = self._rows.locators
        if locators is None:
            return np.empty(0, np.int64), []
        is_stored = locators.storage_B < 0
        rows_B = np.flatnonzero((locators.container_B == index) & is_stored)
        rows_B = rows_B[np.argsort(locators.offset_B[rows_B], kind="stable")]
        return rows_B, [self.locate(row) for row in rows_B.tolist()]

    @property
    def has_slow_images(self) -> bool:
        """Whether images are located by row: to read one, many before it are decoded."""
        storages = self._rows.locators.storages if self._rows.locators else ()
        return any((storage or "").startswith(PARQUET) for storage in storages)

    @property
    def num_ahead(self) -> int:
        """Number of images to `prefetch` before they are read."""
        return AHEAD_IMAGES if self._ahead else 0

    def prefetch(self, rows_B: NDArray[np.int64]) -> None:
        """Begin to read the images of a batch; only behind a URL."""
        if self._ahead:
            self._ahead.expect(rows_B)


def _compressed(locators: LocatorColumns) -> list[str]:
    """Return the compressed containers."""
    if GZIP not in locators.storages:
        return []
    is_compressed_B = locators.storage_B == locators.storages.index(GZIP)
    numbers = np.unique(locators.container_B[is_compressed_B]).tolist()
    return [name for number in numbers if (name := locators.containers[number])]


def folder_with_indices(manifest: Manifest) -> Path:
    """Return the folder with the indices of compressed tars: that of *manifest*, or of its inputs.

    Where there are none, it is the folder of *manifest*.
    """
    source = manifest
    with suppress(ManifestError, OSError):
        while not (source.path.parent / INDEX_FOLDER).is_dir() and source.header.inputs:
            inputs = source.path.parent / source.header.inputs_in
            kind = IMAGES if IMAGES.name in source.header.inputs else DIGESTS
            source = open_manifest(inputs, kind, allow_stale=True)
    has_indices = (source.path.parent / INDEX_FOLDER).is_dir()
    return source.path.parent if has_indices else manifest.path.parent
