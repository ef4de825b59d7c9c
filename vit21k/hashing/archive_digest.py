"""A part of an archive -> digests of its members, from one pass over its bytes.

A member is filed where unpacking would have put it: the archive stands for a folder of its name.
Of members with the same name the last one counts, as when `tar` unpacks them over one another, and
whatever it is: if it is empty, a link or no image, then unpacking would have left no image there.

Memory: that of the rows of a class tar, at about 600 bytes a member; of a tar without class tars,
that of some folders, as long as it goes from one to the next and does not come back.
"""

import os
import zlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from vit21k.archives.header import BLOCK_BYTES
from vit21k.archives.members import Member, read_members
from vit21k.archives.names import archive_stem, is_gzip
from vit21k.archives.part import ArchivePart
from vit21k.archives.window import WINDOW_BYTES, BombError, FileSource, GzipSource, Window
from vit21k.hashing.archive_names import flaw_of_class_tar, flaw_of_name, flaw_of_size
from vit21k.hashing.archive_runs import (
    DigestedMembers,
    UnusableError,
    by_folder,
    disjoint,
)
from vit21k.hashing.entry_problems import problem_from
from vit21k.hashing.spool import Spool
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.one_line import printable

_Digest = TypeVar("_Digest")
RUN_MEMBERS = 8192
"""Held at least, before what was met is put aside when a new folder begins."""

_DAMAGE = (EOFError, zlib.error, BombError, OSError)


def digest_part(
    part: ArchivePart,
    descriptor: int,
    digest: Callable[[memoryview], _Digest],
    is_stopped: Callable[[], bool] = lambda: False,
) -> Iterator[DigestedMembers[_Digest]]:
    """Yield the members of *part* folder by folder, in path order; all is read before the first.

    What stands in no folder, because there was nothing else to say, comes last.

    Args:
        part: Which.
        descriptor: Its archive, open for reading.
        digest: Makes a digest of a member's content; may raise `UnusableError`.
        is_stopped: Asked after each member whether to end, unfinished.
    """
    return _PartDigester(part, descriptor, digest, is_stopped).run()


class _PartDigester(Generic[_Digest]):
    def __init__(
        self,
        part: ArchivePart,
        descriptor: int,
        digest: Callable[[memoryview], _Digest],
        is_stopped: Callable[[], bool],
    ) -> None:
        self._part = part
        self._descriptor = descriptor
        self._digest = digest
        self._is_stopped = is_stopped
        self._problems: list[Problem] = []
        self._class_tars: dict[bytes, int] = {}
        self._num_runs = 0

    def run(self) -> Iterator[DigestedMembers[_Digest]]:
        before = _version(self._descriptor)
        with Spool[DigestedMembers[_Digest]]() as spool:
            for members in self._read_to_the_damage():
                spool.add(members.first_path.encode(), members)
            if _version(self._descriptor) == before:
                runs = filter(self._is_of_last_class_tar, spool.in_order())
                for members in disjoint(runs, self._say_twice):
                    if (good := self._without_flaws(members)).names:
                        yield good
            else:
                self._say(self._part.name, ProblemKind.CHANGED_WHILE_READ)
        yield DigestedMembers("", problems=sorted(self._problems))

    def _read_to_the_damage(self) -> Iterator[DigestedMembers[_Digest]]:
        """Yield what can be read; note the damage of the archive, if any ends that.

        What is done with each item lies outside of the `try`: that our own disk is full is no
        damage of the archive.
        """
        try:
            yield from self._read()
        except _DAMAGE as error:
            self._problems.append(self._problem_from(error))

    def _is_of_last_class_tar(self, members: DigestedMembers[_Digest]) -> bool:
        return self._class_tars.get(members.class_tar, -1) == members.class_tar_offset

    def _without_flaws(self, members: DigestedMembers[_Digest]) -> DigestedMembers[_Digest]:
        """Return *members* without those that are of no use, which are noted."""
        if not any(isinstance(outcome, UnusableError) for outcome in members.outcomes):
            return members
        good: DigestedMembers[_Digest] = DigestedMembers(members.folder)
        entries = zip(members.names, members.offsets, members.outcomes, strict=True)
        for name, offset, outcome in entries:
            if isinstance(outcome, UnusableError):
                self._say((members.folder + name).encode(), outcome.kind, outcome.detail)
            else:
                good.add(name, offset, outcome)
        return good

    def _read(self) -> Iterator[DigestedMembers[_Digest]]:
        if is_gzip(self._descriptor):
            window = Window(GzipSource(self._descriptor))
        else:
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            source = FileSource(self._descriptor, self._part.end)
            size = (source.num_bytes or 0) - self._part.start
            window_bytes = max(min(size, WINDOW_BYTES), BLOCK_BYTES)
            window = Window(source, self._part.start, window_bytes=window_bytes)
        yield from self._read_tar(window, self._part.folder, None, is_inner=not self._part.is_whole)

    def _read_tar(
        self, window: Window, folder: bytes, end: int | None, *, is_inner: bool
    ) -> Iterator[DigestedMembers[_Digest]]:
        """Yield the class tars in the tar at *window* as they come, and its own members last."""
        found: dict[bytes, tuple[int, _Digest | UnusableError]] = {}
        last_path = b""
        try:
            for member in read_members(window, end):
                if self._is_stopped():
                    return
                stem = archive_stem(member.name)
                if stem is not None and not is_inner:
                    yield from self._read_class_tar(window, folder, stem, member)
                    continue
                path = self._path_of(member, folder)
                if len(found) >= RUN_MEMBERS and not _are_siblings(path, last_path):
                    yield from self._run_of(found)
                    found = {}
                last_path = path
                self._take(path, member, window, found)
        except _DAMAGE:
            yield from self._run_of(found)
            raise
        yield from self._run_of(found)

    def _read_class_tar(
        self, window: Window, folder: bytes, stem: bytes, member: Member
    ) -> Iterator[DigestedMembers[_Digest]]:
        path, by_name = folder + member.name, flaw_of_class_tar(member.name)
        if by_name is not None:
            self._say(path, *(member.flaw or by_name))
            return
        if stem in self._class_tars:
            self._say_twice(path, self._class_tars[stem])
        self._class_tars[stem] = member.offset
        if member.flaw is not None:
            self._say(path, *member.flaw)
            return
        end = member.offset + member.num_bytes
        for members in self._read_tar(window, folder + stem + b"/", end, is_inner=True):
            members.class_tar, members.class_tar_offset = stem, member.offset
            yield members

    def _take(
        self,
        path: bytes,
        member: Member,
        window: Window,
        found: dict[bytes, tuple[int, _Digest | UnusableError]],
    ) -> None:
        """Put into *found* what became of *member*; note it if it cannot be an image by its name.

        A member that is of no use takes the place of an earlier one of its name, too.
        """
        by_name = flaw_of_name(path) if member.name else member.flaw
        if by_name is not None:
            self._say(path, *(member.flaw or by_name))
            return
        if path in found:
            self._say_twice(path, found[path][0])
        try:
            found[path] = member.offset, self._digest(self._content_of(member, window))
        except UnusableError as error:
            found[path] = member.offset, error

    def _content_of(self, member: Member, window: Window) -> memoryview:
        flaw = member.flaw or flaw_of_size(member.num_bytes)
        if flaw is not None:
            raise UnusableError(*flaw)
        content = window.take(member.num_bytes)
        if len(content) < member.num_bytes:
            detail = f"has {len(content):,} of {member.num_bytes:,} bytes"
            raise UnusableError(ProblemKind.ARCHIVE_TRUNCATED, detail)
        return content

    def _path_of(self, member: Member, folder: bytes) -> bytes:
        if not member.name:
            return self._part.name
        if folder or b"/" in member.name:
            return folder + member.name
        # The image root is this archive, and the picture lies at its top: its class is the archive.
        name = self._part.archive.rpartition(b"/")[2]
        return (archive_stem(name) or name) + b"/" + member.name

    def _run_of(
        self, found: dict[bytes, tuple[int, _Digest | UnusableError]]
    ) -> Iterator[DigestedMembers[_Digest]]:
        self._num_runs += 1
        return by_folder(found, self._num_runs)

    def _say_twice(self, path: bytes, offset: int) -> None:
        self._say(path, ProblemKind.DUPLICATE_MEMBER, f"at offset {offset:,}")

    def _problem_from(self, error: Exception) -> Problem:
        if isinstance(error, OSError):
            return problem_from(self._part.name, error)
        kind, detail = {
            EOFError: (ProblemKind.ARCHIVE_TRUNCATED, "the compressed stream ends too early"),
            BombError: (ProblemKind.ARCHIVE_BOMB, ""),
        }.get(type(error), (ProblemKind.ARCHIVE_DAMAGED, str(error)))
        return Problem(printable(self._part.name), kind, detail)

    def _say(self, path: bytes, kind: ProblemKind, detail: str = "") -> None:
        self._problems.append(Problem(printable(path), kind, detail))


def _version(descriptor: int) -> tuple[int, int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _are_siblings(path: bytes, other: bytes) -> bool:
    return path.rpartition(b"/")[0] == other.rpartition(b"/")[0]
