"""What became of a chunk; and what a memory of earlier runs is asked and told."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vit21k.hashing.file_digest import FileDigest
from vit21k.manifest.problems import Problem


class Memory(Protocol):
    """What knows files from earlier runs; see `hash_memory`."""

    def recall(self, folder: bytes, names: Sequence[bytes], /) -> dict[bytes, FileDigest]:
        """Return what is known of files about *names*, which are in order."""

    def note(self, folder: bytes, files: dict[bytes, FileDigest], /) -> None:
        """Remember *files*."""

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
    files: list[FileDigest] = field(default_factory=list)
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
        return sum(file.num_bytes for file in self.files)

    @property
    def num_bad(self) -> int:
        """Problems, without what was merely left out."""
        return sum(not problem.kind.is_left_out for problem in self.problems)
