"""Members as they come in an archive -> the same by path, of each path the last one.

A *run* is what was met in one stretch, by folder and in path order.  Archives mostly go from folder
to folder, so that runs only have to be put in order; those that overlap are merged.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Generic, TypeVar

from vit21k.manifest.problems import Problem

_Digest = TypeVar("_Digest")


@dataclass
class DigestedMembers(Generic[_Digest]):
    """Members that would be unpacked to one folder, by name; or problems, with an empty folder.

    Attributes:
        folder: Relative to the image root; ends in ``/``.
        names: In that folder.
        offsets: Where their data begin in the archive, or in what it unpacks to.
        number: Counts what comes from one archive, in the archive's order.
    """

    folder: str
    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    digests: list[_Digest] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    number: int = 0

    @property
    def first_path(self) -> str:
        """The path of the first."""
        return self.folder + self.names[0]

    @property
    def last_path(self) -> str:
        """The path of the last."""
        return self.folder + self.names[-1]


def by_folder(
    found: dict[bytes, tuple[int, _Digest]], number: int
) -> Iterator[DigestedMembers[_Digest]]:
    """Yield offsets and digests by path, folder by folder."""
    for folder, paths in groupby(sorted(found), key=_folder_of):
        members: DigestedMembers[_Digest] = DigestedMembers(folder.decode(), number=number)
        for path in paths:
            offset, digest = found[path]
            members.names.append(path[len(folder) :].decode())
            members.offsets.append(offset)
            members.digests.append(digest)
        yield members


def disjoint(
    runs: Iterable[DigestedMembers[_Digest]], on_duplicate: Callable[[bytes, int], None]
) -> Iterator[DigestedMembers[_Digest]]:
    """Yield the members of *runs*, which are ordered by their first paths, in path order.

    Args:
        runs: In memory is one of them, or as many as overlap.
        on_duplicate: Called with path and offset of a member that a later one replaces.
    """
    waiting: list[DigestedMembers[_Digest]] = []
    last_path = ""
    for run in runs:
        if run.first_path > last_path:
            yield from _merged(waiting, on_duplicate)
            waiting = []
        waiting.append(run)
        last_path = max(last_path, run.last_path)
    yield from _merged(waiting, on_duplicate)


def _merged(
    runs: list[DigestedMembers[_Digest]], on_duplicate: Callable[[bytes, int], None]
) -> Iterator[DigestedMembers[_Digest]]:
    if len(runs) < 2:  # noqa: PLR2004
        yield from runs
        return
    found: dict[bytes, tuple[int, _Digest]] = {}
    for run in sorted(runs, key=lambda run: run.number):
        for name, offset, digest in zip(run.names, run.offsets, run.digests, strict=True):
            path = (run.folder + name).encode()
            if path in found:
                on_duplicate(path, found[path][0])
            found[path] = offset, digest
    yield from by_folder(found, runs[0].number)


def _folder_of(path: bytes) -> bytes:
    return path[: path.rfind(b"/") + 1]
