"""The rows of a large manifest, laid out once so that they can be mapped into memory.

Parquet has to be decoded: at 14.2 million rows that takes seconds and 0.8 GB in every process.  The
same rows as flat arrays in files are opened at once, take no memory of a process's own, and are
shared by all processes of a machine.  Such an *index* is derived from one manifest, whose
fingerprint is its name; it may be deleted at any time, and is made again when it is wanted.

Where: `.rows/<fingerprint>/` beside the manifest; if nothing can be written there,
`vit21k/rows/<fingerprint>/` in the user's cache folder; failing that, rows stay in memory.
Indexes beside manifests that are not there any more are removed when a new one is made.
Processes that want the same index at once wait for the first to make it.

A manifest of few rows is read as it is.  Like everything that is mapped, an index on a failing disk
ends the process with a signal (SIGBUS) instead of an exception.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from vit21k.atomic import atomic_folder
from vit21k.data import flat_rows
from vit21k.data.flat_rows import FlatRows
from vit21k.data.index_writer import IndexWriter, map_index
from vit21k.errors import ManifestError
from vit21k.lock import locked
from vit21k.manifest.reader import Manifest, open_manifest
from vit21k.manifest.schema import PICTURE_KINDS
from vit21k.user_cache import user_cache

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
    """Return the index of *manifest*, made if need be; None if rows should be read as they are.

    Args:
        manifest: Which.
        note: Hears when an index has to be made, and how long it took.

    Raises:
        ManifestError: The manifest is damaged.
    """
    if manifest.num_rows < MIN_ROWS:
        return None
    places = list(_places(manifest))
    for folder in places:
        if rows := map_index(folder):
            return RowIndex(rows, folder, None)
    note(f"indexing the {manifest.num_rows:,} rows of `{manifest.path}`, once for all runs")
    for folder in places:
        with suppress(OSError):  # read-only, full, or without locks: the next place
            index = _made(manifest, folder)
            note(f"indexed in {index.seconds:.1f} s: `{index.folder}`")
            return index
    note("the index cannot be written anywhere: every process reads the rows into its memory")
    return None


def _places(manifest: Manifest) -> Iterator[Path]:
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
            for rows in manifest.batches(flat_rows.COLUMNS):
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
            wanted.add(open_manifest(path, *PICTURE_KINDS, allow_stale=True).fingerprint)
    for folder in indexes.iterdir():
        if folder.is_dir() and not folder.name.startswith(".") and folder.name not in wanted:
            shutil.rmtree(folder, ignore_errors=True)
