"""Chunk -> digests: what a worker does with the chunk it takes.

A worker opens a folder once and its files relative to it.  What is known of a file from an earlier
run is not read again if the file is as it was.
"""

import os
import random
from collections.abc import Iterator
from itertools import chain
from typing import Any

from vit21k.archives.part import ArchivePart
from vit21k.hashing.archive_beside import problem_beside
from vit21k.hashing.archive_digest import digest_part
from vit21k.hashing.archive_memory import (
    Members,
    differing_members,
    is_small,
    note_part,
    recall_part,
)
from vit21k.hashing.archive_runs import DigestedMembers, UnusableError
from vit21k.hashing.chunk_files import ChunkFiles
from vit21k.hashing.compiled_reader import compiled_reader_for
from vit21k.hashing.digested import DigestedChunk, Memory
from vit21k.hashing.entry_problems import problem_from
from vit21k.hashing.file_digest import (
    BUFFER_BYTES,
    WHOLE_BYTES,
    FileDigest,
    FileReader,
    no_image,
)
from vit21k.hashing.file_rows import FileRows, Rows, bytes_read
from vit21k.hashing.picture_facts import NOT_IMAGES
from vit21k.hashing.walk import Chunk
from vit21k.manifest.layout import LabelFrom, class_of
from vit21k.one_line import printable

__all__ = ["BUFFER_BYTES", "ChunkDigester", "DigestedChunk", "FileDigest", "Memory"]

_FILE_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # no waiting for a pipe's other end
_FOLDER_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY


class ChunkDigester:
    """Digests chunks; any number of threads may share it.

    Attributes:
        root: The image root.  Everything below it is only ever opened for reading.
        follow_symlinks: Whether symbolic links are opened too.
        file_flags: What it opens files with.
        algorithm: The kind of digest.
        compiled: Reads what is plain of a chunk, where there is a compiler.
        reader: Reads all other files, one by one.
        memory: What is known of files from earlier runs, and is to be told of this one.
        recheck: Share of the files known that are read all the same, 0 to 1.
        is_remote: Whether inodes and status-change times mean nothing where the files lie.
        is_stopped: Set it to have the chunks under way end at their next file, unfinished.
        label_from: Which folder of an image is its class.
        asks_ahead: Set it to have the system fetch all files of a chunk at once, before the first
            of them is read; for files that have to be waited for.
    """

    only_ends = False
    """Whether a probe is made, and files are read to their end only if there is no way round."""
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
        self.label_from: LabelFrom | None = None
        self.file_flags = _FILE_FLAGS | no_follow
        self.reader = FileReader(algorithm, self.file_flags)
        self.algorithm = algorithm
        self.compiled = compiled_reader_for(algorithm)
        self._folder_flags = _FOLDER_FLAGS | no_follow

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "memory": None, "compiled": None}  # they are of this machine

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.compiled = compiled_reader_for(self.algorithm)

    @property
    def is_concurrent(self) -> bool:
        """Whether threads read side by side: most of the work is done in one call for a chunk."""
        return self.compiled is not None

    def __call__(self, chunk: Chunk) -> DigestedChunk:
        """Return what became of each entry of *chunk*.

        Raises:
            OSError: This process has run out of file descriptors or memory.
        """
        if chunk.archive is not None and chunk.archive.beside:
            beside = problem_beside(self.root, chunk.archive, flags=self.file_flags)
            return DigestedChunk("", chunk.fraction, problems=[beside])
        if chunk.archive is not None:
            return self._digest_archive(chunk.archive, chunk.fraction)
        folder = printable(chunk.folder)
        done = DigestedChunk(class_of(folder, self.label_from), chunk.fraction)
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
            self._digest_entries(chunk, descriptor, done)
        finally:
            os.close(descriptor)
        return done

    def _digest_archive(self, part: ArchivePart, fraction: float) -> DigestedChunk:
        try:
            descriptor = os.open(self.root + part.archive, self.file_flags)
        except OSError as error:
            return DigestedChunk("", fraction, problems=[problem_from(part.name, error)])
        read_at = self.memory.now() if self.memory else 0
        try:
            status = os.fstat(descriptor)
            known = self._recall_part(part, status)
            if known and random.random() >= self.recheck:  # noqa: S311
                chunks = self._known_chunks(part, fraction, known)
                return _joined(iter(self._noted(part, status, chunks, read_at)))

            def digest_member(content: memoryview) -> FileDigest:
                digest, facts = self.reader.describe(content, content)
                if facts.format in NOT_IMAGES:
                    raise UnusableError(*no_image(facts))
                if len(content) >= WHOLE_BYTES:
                    facts = facts._replace(content_digest=None, has_end=None)
                probe = self.reader.probe_of(content) if self.only_ends else None
                return FileDigest(len(content), status.st_mtime_ns, digest, facts, probe=probe)

            found = digest_part(part, descriptor, digest_member, lambda: self.is_stopped)
            first = next(found)  # by then all is read
        finally:
            os.close(descriptor)
        parts = chain((first,), found)
        chunks = (self._members_chunk(part, fraction, members) for members in parts)
        if self.memory and not self.is_stopped and is_small(part, status):
            held = self._noted(part, status, chunks, read_at)
            held[0].silently_changed = differing_members(known, held)
            chunks = iter(held)
        return _joined(chunks)

    def _noted(
        self,
        part: ArchivePart,
        status: os.stat_result,
        chunks: Iterator[DigestedChunk],
        read_at: int,
    ) -> list[DigestedChunk]:
        held = list(chunks)
        if self.memory:
            note_part(self.memory, part, status, held, is_remote=self.is_remote, read_at=read_at)
        return held

    def _known_chunks(
        self, part: ArchivePart, fraction: float, known: Members
    ) -> Iterator[DigestedChunk]:
        for folder, paths, files in known:
            yield DigestedChunk(
                class_of(folder, self.label_from),
                fraction,
                paths=paths,
                files=files,
                num_known=len(files),
                archive=part.archive.decode(),
                offsets=files.array["inode"].tolist(),
            )

    def _members_chunk(
        self, part: ArchivePart, fraction: float, members: DigestedMembers[FileDigest]
    ) -> DigestedChunk:
        return DigestedChunk(
            class_of(members.folder, self.label_from),
            fraction,
            paths=[members.folder + name for name in members.names],
            files=FileRows.of(members.digests),
            num_bytes_read=sum(file.num_bytes for file in members.digests),
            problems=members.problems,
            archive=part.archive.decode(),
            offsets=members.offsets,
        )

    def _recall_part(self, part: ArchivePart, status: os.stat_result) -> Members:
        if self.memory is None:
            return []
        return recall_part(self.memory, part, status, is_remote=self.is_remote)

    def _digest_entries(self, chunk: Chunk, folder: int, done: DigestedChunk) -> None:
        names = [name for name, problem in chunk.entries if problem is None]
        files = ChunkFiles(folder, names)
        read_at = self.memory.now() if self.memory else 0
        before = self._find_known(files, chunk.folder)
        self.ask_ahead(files, only_ends=self.only_ends)
        is_known = files.are_done
        self.read(files, only_ends=self.only_ends)
        changed = files.differing(before) if before is not None else []
        done.silently_changed = [(chunk.folder + name).decode() for name in changed]
        done.num_known = int(is_known.sum())
        done.num_bytes_read = int(bytes_read(files.rows[files.are_done & ~is_known]).sum())
        self.read_more(files, done)
        noted = files.put_into(done, chunk)
        if self.memory and (self.notes_known or done.num_known < len(noted.names)):
            self.memory.note(chunk.folder, noted, read_at)

    def _find_known(self, files: ChunkFiles, folder: bytes) -> Rows | None:
        """Make those of *files* done that are as an earlier run left them.

        Returns:
            What is known of those that are read all the same; None if there are none.
        """
        if self.memory is None:
            return None
        known = self.memory.recall(folder, files.names[0], files.names[-1])
        if not known.names:
            return None
        files.take_known(known)
        self.check(files)
        return files.forget_some(self.recheck)

    def check(self, files: ChunkFiles) -> None:
        """Make those of *files* done that are known and on the disk as their rows say."""
        by_all = not self.is_remote
        if self.compiled:
            self.compiled.check(files, self.file_flags, by_all=by_all)
        else:
            files.check(follow_symlinks=self.follow_symlinks, by_all=by_all)

    def ask_ahead(self, files: ChunkFiles, *, only_ends: bool) -> None:
        """Have the system fetch what is to be read of *files*, if that is asked for at all."""
        if self.asks_ahead and self.compiled:
            self.compiled.ask_for(files, self.file_flags, only_ends=only_ends)
        elif self.asks_ahead:
            for place in files.places_to_do():
                self.reader.ask_for(files.names[place], files.folder, only_ends=only_ends)

    def read(self, files: ChunkFiles, *, only_ends: bool) -> None:
        """Read those of *files* that are to do: to their end, or both ends only."""
        if self.compiled and not self.is_stopped:
            self.compiled.read(files, self.file_flags, only_ends=only_ends)
        read = self.reader.probe if only_ends else self.reader.digest
        for place in files.places_to_do():
            if self.is_stopped:
                break
            files.put(place, read(files.names[place], files.folder))

    def read_more(self, files: ChunkFiles, done: DigestedChunk) -> None:
        """Read what is to be read of *files* after that."""


def _joined(chunks: Iterator[DigestedChunk]) -> DigestedChunk:
    """Return the first of *chunks*, with the others to come after it."""
    done = next(chunks)
    done.more = chunks
    return done
