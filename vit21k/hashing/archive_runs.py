"""Members as they come in an archive -> the same by path, of each path the last one.

A *run* is what was met in one stretch, by folder and in path order.  Archives mostly go from folder
to folder, so that runs only have to be put in order; those that overlap are merged.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Generic, TypeVar

from vit21k.manifest.problems import Problem, ProblemKind

_Digest = TypeVar("_Digest")


class UnusableError(Exception):
    """A member's content is not of any use."""

    def __init__(self, kind: ProblemKind, detail: str) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail


@dataclass
class DigestedMembers(Generic[_Digest]):
    """Members that would be unpacked to one folder, by name; or problems, with an empty folder.

    Attributes:
        folder: Relative to the image root; ends in ``/``.
        names: In that folder.
        offsets: Where their data begin in the archive, or in what it unpacks to.
        outcomes: What became of each: its digest, or why there is none.
        number: Counts what comes from one archive, in the archive's order.
        class_tar: Name, without suffix, of the tar within the archive that they come from, if any.
        class_tar_offset: Where that begins.
    """

    folder: str
    names: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    outcomes: list[_Digest | UnusableError] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    number: int = 0
    class_tar: bytes = b""
    class_tar_offset: int = -1

    def add(self, name: str, offset: int, outcome: _Digest | UnusableError) -> None:
        """Add a member."""
        self.names.append(name)
        self.offsets.append(offset)
        self.outcomes.append(outcome)

    @property
    def digests(self) -> list[_Digest]:
        """Of those that have one."""
        return [found for found in self.outcomes if not isinstance(found, UnusableError)]

    @property
    def first_path(self) -> str:
        """The path of the first."""
        return self.folder + self.names[0]

    @property
    def last_path(self) -> str:
        """The path of the last."""
        return self.folder + self.names[-1]


def by_folder(
    found: dict[bytes, tuple[int, _Digest | UnusableError]], number: int
) -> Iterator[DigestedMembers[_Digest]]:
    """Yield offsets and outcomes by path, folder by folder."""
    for folder, paths in groupby(sorted(found), key=_folder_of):
        members: DigestedMembers[_Digest] = DigestedMembers(folder.decode(), number=number)
        for path in paths:
            members.add(path[len(folder) :].decode(), *found[path])
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
    found: dict[bytes, tuple[int, _Digest | UnusableError]] = {}
    for run in sorted(runs, key=lambda run: run.number):
        for name, offset, outcome in zip(run.names, run.offsets, run.outcomes, strict=True):
            path = (run.folder + name).encode()
            if path in found:
                on_duplicate(path, found[path][0])
            found[path] = offset, outcome
    yield from by_folder(found, runs[0].number)


def _folder_of(path: bytes) -> bytes:
    return path[: path.rfind(b"/") + 1]
