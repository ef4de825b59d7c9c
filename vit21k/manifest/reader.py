"""Open and read manifests; refuse what is damaged, of another kind or version, or stale.

What protects a reader: every page carries a checksum, which is verified when it is read; the
header is sealed (see `header.py`); and a digest covers every byte of the file (see `integrity.py`).
That digest is the manifest's *fingerprint*.  A manifest names the fingerprints of the manifests it
was made from, so one that is stale is told from a fresh one without reading any rows.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vit21k.errors import ManifestError
from vit21k.manifest.classes import ClassList
from vit21k.manifest.header import Header, kind_and_version, parse_classes, parse_header
from vit21k.manifest.integrity import check_body, fingerprint_of
from vit21k.manifest.kind import ManifestKind
from vit21k.manifest.schema import KINDS

BESIDE = "."
"""Root of pictures that lie in the folder of their manifest, so that both can be moved."""


class Manifest:
    """An open manifest: its header at once, its rows when asked for.

    Attributes:
        path: The file.
        kind: Which manifest it is.
        header: What it says of itself.
        fingerprint: Identifies its content; other manifests name it as their input.
        num_rows: How many rows it has.
    """

    def __init__(self, path: Path, kind: ManifestKind, parquet: pq.ParquetFile) -> None:
        metadata = parquet.schema_arrow.metadata or {}
        self.path = path
        self.kind = kind
        self.header = _with_place(parse_header(metadata), path)
        self.fingerprint = fingerprint_of(path, parquet)
        self.num_rows = int(parquet.metadata.num_rows)
        self._parquet = parquet
        self._metadata = metadata
        self._is_checked = False

    def read(self, columns: list[str] | None = None) -> pa.Table:
        """Return all rows (of the named *columns* only).

        Raises:
            ManifestError: The file is damaged.
        """
        with damage_is_an_error(self.path):
            self._check()
            return self._parquet.read(columns=columns)

    def batches(
        self, columns: list[str] | None = None, *, as_dictionary: Sequence[str] = ()
    ) -> Iterator[pa.Table]:
        """Yield the rows of one row group at a time.

        Args:
            columns: Only these.
            as_dictionary: Columns of few values that are to come as they are stored: the values
                once, and an index into them for each row.

        Raises:
            ManifestError: The file is damaged.
        """
        with damage_is_an_error(self.path):
            self._check()
        parquet = _open_parquet(self.path, as_dictionary) if as_dictionary else self._parquet
        for index in range(parquet.num_row_groups):
            with damage_is_an_error(self.path):
                rows = parquet.read_row_group(index, columns=columns)
            yield rows

    def _check(self) -> None:
        if not self._is_checked:
            check_body(self.path, self._parquet)
            self._is_checked = True

    def classes(self) -> ClassList:
        """Return the class list that the `label_ids` of this manifest index.

        Raises:
            ManifestError: The manifest has no class list.
        """
        classes = parse_classes(self._metadata)
        if classes is None:
            raise ManifestError(f"`{self.path}` has no class list")
        return classes


def _with_place(header: Header, path: Path) -> Header:
    """Return *header* with an absolute root: that of a pack is the folder its manifests lie in."""
    if header.root != BESIDE:
        return header
    return replace(header, root=path.absolute().parent.as_posix())


def open_manifest(path: Path, *kinds: ManifestKind, allow_stale: bool = False) -> Manifest:
    """Open the manifest at *path*, refusing anything that is not one of *kinds*.

    Args:
        path: The Parquet file, or the manifest folder when there is one kind.
        kinds: What is acceptable.
        allow_stale: Do not compare it with the manifests it was made from.

    Raises:
        ManifestError: No such file, damaged, another kind or version, or stale.
    """
    if len(kinds) == 1 and not path.is_file():
        path = path / kinds[0].file_name if path.suffix != ".parquet" else path
    if not path.is_file():
        raise ManifestError(f"no {_names(kinds)} manifest at `{path}`", hint=_how_to_make(kinds))
    with damage_is_an_error(path):
        parquet = _open_parquet(path)
        kind = _kind_of(path, parquet, kinds)
        manifest = Manifest(path, kind, parquet)
    if not allow_stale and (stale := stale_input(manifest)):
        raise ManifestError(
            f"`{path}` is stale: {_place(stale, path)} has changed since it was made",
            hint=f"make it again with `{made_by(manifest)}`",
        )
    return manifest


def _open_parquet(path: Path, as_dictionary: Sequence[str] = ()) -> pq.ParquetFile:
    # Not mapped into memory: an error of the disk would then be a signal, and end the process.
    return pq.ParquetFile(
        path, page_checksum_verification=True, read_dictionary=list(as_dictionary) or None
    )


def read_manifest(path: Path, kind: ManifestKind, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of the *kind* manifest at *path* (a file, or the folder it lies in).

    Raises:
        ManifestError: No such file, damaged, another kind or version, or stale.
    """
    return open_manifest(path, kind).read(columns)


def damaged_manifests(folder: Path) -> dict[str, str]:
    """Return what is wrong with the manifests in *folder*, each read to its end, by file name."""
    problems = {}
    for kind in KINDS.values():
        path = folder / kind.file_name
        if not path.is_file():
            continue
        try:
            for _ in open_manifest(path, kind, allow_stale=True).batches():
                pass
        except ManifestError as error:
            problems[path.name] = error.message
    return problems


def stale_input(manifest: Manifest) -> Path | None:
    """Return the file of an input that has changed since *manifest* was made, if there is one.

    Inputs of inputs count.  An input that is no longer there, or cannot be read, does not: a
    manifest may be moved away from what it was made from.
    """
    for name, fingerprint in manifest.header.inputs.items():
        folder = os.path.normpath(manifest.path.parent / manifest.header.inputs_in)
        path = Path(folder) / KINDS[name].file_name
        try:
            source = open_manifest(path, KINDS[name], allow_stale=True)
        except ManifestError:
            continue
        if source.fingerprint != fingerprint:
            return path
        if deeper := stale_input(source):
            return deeper
    return None


@contextmanager
def damage_is_an_error(path: Path) -> Iterator[None]:
    """Turn what Arrow raises on damaged bytes into a `ManifestError`."""
    try:
        yield
    except ManifestError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ManifestError(
            f"`{path}` is damaged or not a manifest: {_first_line(error)}",
            hint="restore it from a copy, or make it again",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _kind_of(path: Path, parquet: pq.ParquetFile, kinds: tuple[ManifestKind, ...]) -> ManifestKind:
    """Return which of *kinds* the file is; refuse any other."""
    found = kind_and_version(path, parquet.schema_arrow.metadata or {})
    if found is None:
        raise ManifestError(
            f"`{path}` is a Parquet file, but not a manifest of vit21k", hint=_how_to_make(kinds)
        )
    for kind in kinds:
        if found == (kind.name, kind.version):
            if not parquet.schema_arrow.equals(kind.schema):
                raise ManifestError(f"`{path}` is damaged: its columns are not those of its kind")
            return kind
    expected = " or ".join(f"{kind.name}, version {kind.version}" for kind in kinds)
    raise ManifestError(
        f"`{path}` is a manifest of kind {found[0]}, version {found[1]}; expected {expected}",
        hint=_how_to_make(kinds),
    )


def _names(kinds: tuple[ManifestKind, ...]) -> str:
    return " or ".join(kind.name for kind in kinds)


def _place(path: Path, manifest: Path) -> str:
    beside = path.parent.samefile(manifest.parent)
    return f"`{path.name}` beside it" if beside else f"`{path}`"


def made_by(manifest: Manifest) -> str:
    """Return the command that made *manifest*: the last step of the labels, if there is one."""
    steps = manifest.header.options.get("labels")
    is_split = "split" in manifest.header.options
    return f"vit21k labels {steps[-1]['verb']}" if steps and not is_split else manifest.kind.made_by


def _how_to_make(kinds: tuple[ManifestKind, ...]) -> str:
    return f"make it with `{kinds[0].made_by}`"
