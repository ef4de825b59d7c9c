"""Image trees behind a URL: what differs from a disk in walking and reading them.

An object is unchanged if its size, time and entity tag are.  A request for a complete object gets
one version of it, which the listing identifies if it has entity tags; without them the server is
asked for size and time before and after.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vit21k.manifest.problems import ProblemKind
from vit21k.prep.file_digest import (
    ALGORITHMS,
    NOT_IMAGES,
    WHOLE_BYTES,
    FileDigest,
    Flaw,
    ImageFacts,
    image_facts,
    no_image,
)
from vit21k.prep.hash_archives import UnusableError
from vit21k.prep.hash_chunks import ChunkHasher
from vit21k.prep.scan import DONE, ChunkFiles
from vit21k.sources.detect import SourceLayout
from vit21k.sources.folders import Chunk, FolderLevel, Walker
from vit21k.sources.remote import NUM_CONNECTIONS, ObjectFacts, RemoteFile, RemoteTree

_NUM_READS = 3
_PIECE_BYTES = 1 << 20
_COLUMNS = ("num_bytes", "mtime_ns", "inode")
_Outcome = tuple[FileDigest | bytes | OSError | Flaw, ObjectFacts]


@dataclass
class _RemoteLevel(FolderLevel):
    facts: dict[bytes, ObjectFacts] = field(default_factory=dict)


class RemoteWalker(Walker):
    """Walks the objects below a URL, with the facts of its listings."""

    def __init__(self, tree: RemoteTree) -> None:
        super().__init__(b"", follow_symlinks=False)
        self._tree = tree

    def chunks(self) -> Iterator[Chunk]:
        """Yield all files, and the folders that are not read."""
        for chunk in super().chunks():
            level = self._stack[-1]
            if isinstance(level, _RemoteLevel):
                names = [name for name, _ in chunk.entries if name in level.facts]
                yield chunk._replace(facts={name: level.facts[name] for name in names})

    def _remember(self, path: bytes) -> bytes | None:
        return None  # there are no links

    def _open(self, path: bytes) -> FolderLevel:
        level = _RemoteLevel(path, [], {})
        archives: dict[bytes, str] = {}
        for entry in self._tree.listing(os.fsdecode(path)):
            name = os.fsencode(entry.name)
            key = name + b"/" if entry.is_folder else name
            if kind := self._kind_of_key(key):
                archives[key] = kind
                self._tree.listed[os.fsdecode(path + name)] = entry.facts
            else:
                level.keys.append(key)
                level.facts[name] = entry.facts
        self._add_archives(level, archives)
        return level


class _RemoteFiles(ChunkFiles):
    """Objects of one folder."""

    def __init__(self, chunk: Chunk, tree: RemoteTree) -> None:
        super().__init__(-1, chunk.names_to_read)
        self.paths = [(chunk.folder + name).decode() for name in self.names]
        listed = chunk.facts or {}
        self.facts = tree.completed(self.paths, [listed[name] for name in self.names])


class RemoteHasher(ChunkHasher):
    """Hashes chunks of the objects below a URL; thread-safe.  Inodes are entity tags."""

    def __init__(
        self, tree: RemoteTree, *, algorithm: str, layout: SourceLayout, recheck: float = 0.0
    ) -> None:
        root = tree.url.encode()
        super().__init__(root, algorithm=algorithm, layout=layout, is_remote=True, recheck=recheck)
        self.files = self.tree = tree
        self.compares_inodes = True
        self.num_ahead = NUM_CONNECTIONS

    @property
    def is_concurrent(self) -> bool:
        """Return True: threads mostly wait."""
        return True

    def walker(self) -> Walker:
        """Return what lists the source."""
        return RemoteWalker(self.tree)

    @contextmanager
    def open_folder(self, chunk: Chunk) -> Iterator[ChunkFiles]:
        """Yield the files of *chunk* that are to be read."""
        yield _RemoteFiles(chunk, self.tree)

    def check(self, files: ChunkFiles) -> None:
        """Mark cached files as done that have not changed."""
        rows = files.rows
        for index in files.indices_to_do():
            facts = files.facts[index] if isinstance(files, _RemoteFiles) else None
            if facts and facts.is_known and _version(facts) == tuple(rows[index][list(_COLUMNS)]):
                files.states[index] = DONE

    def prefetch(self, files: ChunkFiles, *, only_ends: bool) -> None:
        """Do nothing: `read` has many requests in progress."""

    def read(self, files: ChunkFiles, *, only_ends: bool) -> None:
        """Read the objects that are to be read."""
        if not isinstance(files, _RemoteFiles):
            raise TypeError(files)
        small = {
            index: self.tree.submit(self._hash_object, files.paths[index], files.facts[index])
            for index in files.indices_to_do()
            if (files.facts[index].num_bytes or 0) < WHOLE_BYTES
        }
        for index in files.indices_to_do():
            if self.is_stopped:
                for request in small.values():
                    request.cancel()
                break
            if index in small:
                found, facts = small[index].result()
            else:
                found, facts = self._hash_stream(files.paths[index], files.facts[index])
            files.put(index, found)
            files.rows[index]["inode"] = facts.tag_number

    def _hash_object(self, path: str, facts: ObjectFacts) -> _Outcome:
        """Hash an object that is read by one request."""
        try:
            for _ in range(_NUM_READS):
                facts = facts if facts.is_known else self.tree.facts(path)
                content = self.tree.read(path)
                is_complete = facts.num_bytes in (None, len(content))
                now = facts if facts.is_version and is_complete else self.tree.facts(path)
                if is_complete and now.is_same(facts):
                    return self._outcome(content, facts), facts
                facts = now
        except OSError as error:
            return error, facts
        return (ProblemKind.CHANGED_WHILE_READ, ""), facts

    def _outcome(self, content: bytes, facts: ObjectFacts) -> FileDigest | bytes | Flaw:
        if not content:
            return ProblemKind.EMPTY, ""
        try:
            return self._digest_member(content, mtime_ns=facts.mtime_ns)
        except UnusableError as error:
            return error.kind, error.detail

    def _hash_stream(self, path: str, facts: ObjectFacts) -> _Outcome:
        """Hash a large object piece by piece."""
        try:
            for _ in range(_NUM_READS):
                with self.tree.open(path) as file:
                    before = file.status
                    found = self._digest_stream(file, facts.mtime_ns)
                    if file.status == before:
                        return found, facts
                facts = self.tree.facts(path)
        except OSError as error:
            return error, facts
        return (ProblemKind.CHANGED_WHILE_READ, ""), facts

    def _digest_stream(self, file: RemoteFile, mtime_ns: int) -> FileDigest | Flaw:
        hasher = ALGORITHMS[self.algorithm].piecewise()
        found: ImageFacts | None = None
        while piece := file.read(_PIECE_BYTES):
            found = found or image_facts(piece, memoryview(piece))
            hasher.update(memoryview(piece))
        if found is None:
            return ProblemKind.EMPTY, ""
        if found.format in NOT_IMAGES:
            return no_image(found)
        found = found._replace(content_digest=None, has_end=None)
        return FileDigest(file.num_bytes, mtime_ns, hasher.digest(), found)


def _version(facts: ObjectFacts) -> tuple[int, ...]:
    return facts.num_bytes or 0, facts.mtime_ns, facts.tag_number
