"""Counts of a run of `hash`."""

from collections import Counter
from dataclasses import dataclass, field

from vit21k.hashing.digest import DigestedChunk
from vit21k.hashing.file_rows import FORMATS, HAS_DIGEST, HAS_FACTS
from vit21k.hashing.picture_facts import UNKNOWN
from vit21k.manifest.layout import Layout, stem_of
from vit21k.manifest.problems import ProblemKind


@dataclass
class HashSummary:
    """Counts of a run of `hash_tree`.

    Attributes:
        num_entries: What the walk met, folders that it went into excepted.
        num_files: Rows of `digests.parquet`.
        num_bytes: Bytes of those files.
        num_bytes_read: Bytes that were read for that.
        num_known: Files that were not read, because they are as an earlier run left them.
        num_without_digest: Files that a quick run has proven unlike all others.
        num_unknown: Files that begin like no image, nor like anything else that is known.
        silently_changed: Paths of files that are not what they were, though size and times are.
        is_remote: Whether files were taken for what they were by size and time alone.
        wnids: Names of the class folders.
        problems: Rows of `problems.parquet`, by kind.
        layout: What the folders say of the classes.
        other_suffixes: Of the files that are no images by their names.
    """

    num_entries: int = 0
    num_files: int = 0
    num_bytes: int = 0
    num_bytes_read: int = 0
    num_known: int = 0
    num_without_digest: int = 0
    num_unknown: int = 0
    silently_changed: list[str] = field(default_factory=list)
    is_remote: bool = False
    wnids: set[str] = field(default_factory=set)
    problems: Counter[ProblemKind] = field(default_factory=Counter)
    layout: Layout = field(default_factory=lambda: Layout(""))
    other_suffixes: Counter[str] = field(default_factory=Counter)

    @property
    def num_bad(self) -> int:
        """Files and folders that could not be used."""
        return sum(count for kind, count in self.problems.items() if not kind.is_left_out)

    @property
    def num_left_out(self) -> int:
        """What is no image, or not to be followed."""
        return sum(count for kind, count in self.problems.items() if kind.is_left_out)

    def count(self, chunk: DigestedChunk, *, is_second_walk: bool) -> None:
        """Add what became of *chunk*; what was known is counted on the first of two walks."""
        self.num_entries += len(chunk.files) + len(chunk.problems)
        self.num_files += len(chunk.files)
        self.num_bytes += chunk.num_bytes
        self.num_bytes_read += chunk.num_bytes_read
        self.num_known += 0 if is_second_walk else chunk.num_known
        files = chunk.files
        self.num_without_digest += len(files) - int(files.have(HAS_DIGEST).sum())
        is_unknown = files.have(HAS_FACTS) & (files.array["format"] == FORMATS.index(UNKNOWN))
        self.num_unknown += int(is_unknown.sum())
        self.silently_changed += chunk.silently_changed
        self.problems.update(problem.kind for problem in chunk.problems)
        others = [p.path for p in chunk.problems if p.kind is ProblemKind.OTHER_SUFFIX]
        self.other_suffixes.update(path.rpartition(".")[2].lower() for path in others)
        stem = stem_of(chunk.archive) if chunk.archive else None
        if chunk.files:
            self.wnids.add(chunk.wnid)
            self.layout.add(chunk.paths[0].rpartition("/")[0], stem)
        self.layout.add_files(chunk.paths, others, stem)
