"""Chunk -> digests: what a worker does with the chunk it takes.

A worker opens a folder once and its files relative to it.  What is known of a file from an earlier
run is not read again if the file is as it was.
"""

import os
import random
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

from vit21k.archives.part import ArchivePart
from vit21k.hashing.archive_digest import UnusableError, digest_part
from vit21k.hashing.archive_memory import Members, is_small, note_part, recall_part
from vit21k.hashing.archive_runs import DigestedMembers
from vit21k.hashing.digested import DigestedChunk, Memory
from vit21k.hashing.file_digest import (
    BUFFER_BYTES,
    WHOLE_BYTES,
    FileDigest,
    FileReader,
    Flaw,
    no_image,
)
from vit21k.hashing.picture_facts import NOT_IMAGES
from vit21k.hashing.walk import Chunk, printable, problem_from
from vit21k.manifest.problems import Problem

__all__ = ["BUFFER_BYTES", "ChunkDigester", "DigestedChunk", "FileDigest", "Memory"]

_FILE_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # no waiting for a pipe's other end
_FOLDER_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY


class ChunkDigester:
    """Digests chunks; any number of threads may share it.

    Attributes:
        root: The image root.  Everything below it is only ever opened for reading.
        follow_symlinks: Whether symbolic links are opened too.
        file_flags: What it opens files with.
        reader: Reads the files.
        memory: What is known of files from earlier runs, and is to be told of this one.
        recheck: Share of the files known that are read all the same, 0 to 1.
        is_remote: Whether inodes and status-change times mean nothing where the files lie.
        is_stopped: Set it to have the chunks under way end at their next file, unfinished.
        asks_ahead: Set it to have the system fetch all files of a chunk at once, before the first
            of them is read; for files that have to be waited for.
    """

    with_probes = False
    """Whether the members of archives get a probe, as a quick run wants it."""
    notes_known = True
    """Whether the memory is told what it has told: it is to last until the next run."""

    def __init__(self, root: bytes, *, algorithm: str, follow_symlinks: bool = False) -> None:
        no_follow = 0 if follow_symlinks else os.O_NOFOLLOW
        self.root = root.rstrip(b"/") + b"/"
        self.follow_symlinks = follow_symlinks
        self.is_stopped = False
        self.asks_ahead = False
        self.recheck = 0.0
        self.is_remote = False
        self.memory: Memory | None = None
        self.file_flags = _FILE_FLAGS | no_follow
        self.reader = FileReader(algorithm, self.file_flags)
        self._folder_flags = _FOLDER_FLAGS | no_follow

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "memory": None}  # it is of this machine

    def __call__(self, chunk: Chunk) -> DigestedChunk:
        """Return what became of each entry of *chunk*.

        Raises:
            OSError: This process has run out of file descriptors or memory.
        """
        if chunk.archive is not None:
            return self._digest_archive(chunk.archive, chunk.fraction)
        folder = printable(chunk.folder)
        done = DigestedChunk(folder[:-1].rpartition("/")[2], chunk.fraction)
        if all(problem for _, problem in chunk.entries):
            done.problems += [problem for _, problem in chunk.entries if problem]
            return done
        try:
            descriptor = os.open(self.root + chunk.folder, self._folder_flags)
        except OSError as error:
            for name, problem in chunk.entries:
                done.problems.append(problem or problem_from(chunk.folder + name, error))
            return done
        try:
            self._digest_entries(chunk, descriptor, folder, done)
        finally:
            os.close(descriptor)
        return done

    def _digest_archive(self, part: ArchivePart, fraction: float) -> DigestedChunk:
        try:
            descriptor = os.open(self.root + part.archive, self.file_flags)
        except OSError as error:
            return DigestedChunk("", fraction, problems=[problem_from(part.name, error)])
        try:
            status = os.fstat(descriptor)
            if known := self._recall_part(part, status):
                chunks = _known_chunks(part, fraction, known)
                return _joined(iter(self._noted(part, status, chunks)))

            def digest_member(content: memoryview) -> FileDigest:
                digest, facts = self.reader.describe(content, content)
                if facts.format in NOT_IMAGES:
                    raise UnusableError(*no_image(facts))
                if len(content) >= WHOLE_BYTES:
                    facts = facts._replace(content_digest=None, has_end=None)
                probe = self.reader.probe_of(content) if self.with_probes else None
                return FileDigest(len(content), status.st_mtime_ns, digest, facts, probe=probe)

            found = digest_part(part, descriptor, digest_member, lambda: self.is_stopped)
            first = next(found)  # by then all is read
        finally:
            os.close(descriptor)
        chunks = (_members_chunk(part, fraction, members) for members in chain((first,), found))
        if self.memory and not self.is_stopped and is_small(part, status):
            chunks = iter(self._noted(part, status, chunks))
        return _joined(chunks)

    def _noted(
        self, part: ArchivePart, status: os.stat_result, chunks: Iterator[DigestedChunk]
    ) -> list[DigestedChunk]:
        held = list(chunks)
        if self.memory:
            note_part(self.memory, part, status, held, is_remote=self.is_remote)
        return held

    def _recall_part(self, part: ArchivePart, status: os.stat_result) -> Members:
        if self.memory is None or random.random() < self.recheck:  # noqa: S311
            return []
        return recall_part(self.memory, part, status, is_remote=self.is_remote)

    def _digest_entries(
        self, chunk: Chunk, descriptor: int, folder: str, done: DigestedChunk
    ) -> None:
        known = self._recall(chunk)
        self._ask_ahead(chunk, descriptor, known)
        files: dict[bytes, FileDigest] = {}
        for name, problem in chunk.entries:
            if self.is_stopped:
                break
            found = problem or self._take(name, descriptor, known.get(name), done)
            if isinstance(found, FileDigest):
                files[name] = found
            elif isinstance(found, Problem):
                done.problems.append(found)
            elif isinstance(found, OSError):
                done.problems.append(problem_from(chunk.folder + name, found))
            else:
                done.problems.append(Problem(folder + name.decode(), *found))
        done.paths = [folder + name.decode() for name in files]
        done.files = list(files.values())
        done.silently_changed = [folder + name for name in done.silently_changed]
        if self.memory and (self.notes_known or done.num_known < len(files)):
            self.memory.note(chunk.folder, files)

    def _ask_ahead(self, chunk: Chunk, folder: int, known: Mapping[bytes, FileDigest]) -> None:
        if self.asks_ahead:
            for name, problem in chunk.entries:
                if problem is None:
                    self.ask_for(name, folder, known.get(name))

    def ask_for(self, name: bytes, folder: int, before: FileDigest | None) -> None:
        """Have the system fetch what will be read of a file, and do not wait for it."""
        if before is None:
            self.reader.ask_for(name, folder)

    def _recall(self, chunk: Chunk) -> dict[bytes, FileDigest]:
        if self.memory is None:
            return {}
        return self.memory.recall(chunk.folder, [name for name, _ in chunk.entries])

    def _take(
        self, name: bytes, folder: int, before: FileDigest | None, done: DigestedChunk
    ) -> FileDigest | OSError | Flaw:
        """Return what is known of a file, if it is as it was; else read it."""
        is_same = before is not None and self._is_same(name, folder, before)
        is_rechecked = is_same and self.recheck > 0 and random.random() < self.recheck  # noqa: S311
        if before is not None and is_same and not is_rechecked:
            done.num_known += 1
            return before
        found = self.read(name, folder)
        if isinstance(found, FileDigest):
            done.num_bytes_read += found.num_bytes_read
            if before is not None and is_rechecked and found.digest != before.digest:
                done.silently_changed.append(name.decode())
        return found

    def read(self, name: bytes, folder: int) -> FileDigest | OSError | Flaw:
        """Read the file *name* in the folder that the descriptor *folder* is of."""
        return self.reader.digest(name, folder)

    def _is_same(self, name: bytes, folder: int, before: FileDigest) -> bool:
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=self.follow_symlinks)
        except OSError:
            return False
        if status.st_size != before.num_bytes or status.st_mtime_ns != before.mtime_ns:
            return False
        return self.is_remote or (
            status.st_ctime_ns == before.ctime_ns and status.st_ino == before.inode
        )


def _joined(chunks: Iterator[DigestedChunk]) -> DigestedChunk:
    """Return the first of *chunks*, with the others to come after it."""
    done = next(chunks)
    done.more = chunks
    return done


def _known_chunks(part: ArchivePart, fraction: float, known: Members) -> Iterator[DigestedChunk]:
    for folder, paths, files in known:
        yield DigestedChunk(
            folder[:-1].rpartition("/")[2],
            fraction,
            paths=paths,
            files=files,
            num_known=len(files),
            archive=part.archive.decode(),
            offsets=[file.inode for file in files],
        )


def _members_chunk(
    part: ArchivePart, fraction: float, members: DigestedMembers[FileDigest]
) -> DigestedChunk:
    return DigestedChunk(
        members.folder[:-1].rpartition("/")[2],
        fraction,
        paths=[members.folder + name for name in members.names],
        files=members.digests,
        num_bytes_read=sum(file.num_bytes for file in members.digests),
        problems=members.problems,
        archive=part.archive.decode(),
        offsets=members.offsets,
    )
