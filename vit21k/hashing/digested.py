"""What became of a chunk; and what a memory of earlier runs is asked and told."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from vit21k.hashing.file_rows import FileRows
from vit21k.hashing.records import NO_ROWS, NamedRows
from vit21k.manifest.problems import Problem


class Memory(Protocol):
    """What knows files from earlier runs; see `hash_memory`."""

    def recall(self, folder: bytes, first: bytes, last: bytes, /) -> NamedRows:
        """Return what is known of files about the names from *first* to *last*."""

    def now(self) -> int:
        """Return the time, in ns since 1970."""

    def note(self, folder: bytes, files: NamedRows, read_at: int, /) -> None:
        """Remember *files*, the first of which was read after *read_at*."""

    def turn_back(self) -> None:
        """Recall from now on what has been noted so far, too."""


@dataclass
class DigestedChunk:
    """What became of a chunk: rows of `digests.parquet` and of `problems.parquet`, in path order.

    Attributes:
        wnid: Name of the folder all files lie in.
        fraction: Share of the tree up to here.
        num_bytes_read: Bytes that were read for it.
        num_known: Files that were not read, because they are as they were.
        silently_changed: Paths of files that are not what they were, though all says so.
        archive: The archive they lie in; None for files of their own.
        offsets: Where each begins in the archive.
        more: What comes after it in the same archive, in other folders.
    """

    wnid: str
    fraction: float
    paths: list[str] = field(default_factory=list)
    files: FileRows = field(default_factory=lambda: FileRows(NO_ROWS.rows))
    problems: list[Problem] = field(default_factory=list)
    num_bytes_read: int = 0
    num_known: int = 0
    silently_changed: list[str] = field(default_factory=list)
    archive: str | None = None
    offsets: list[int] = field(default_factory=list)
    more: Iterable["DigestedChunk"] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "more": list(self.more)}  # to another process, all of it

    @property
    def num_bytes(self) -> int:
        """Bytes of the files."""
        return int(self.files.array["num_bytes"].sum())

    @property
    def num_bad(self) -> int:
        """Problems, without what was merely left out."""
        return sum(not problem.kind.is_left_out for problem in self.problems)
