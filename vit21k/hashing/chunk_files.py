"""The files of a chunk, from their names to what became of them."""

import os
from collections.abc import Iterator, Sequence
from random import random

import numpy as np
from numpy.typing import NDArray

from vit21k.hashing.digested import DigestedChunk
from vit21k.hashing.entry_problems import problem_from
from vit21k.hashing.file_digest import FileDigest, Flaw
from vit21k.hashing.file_rows import (
    HAS_DIGEST,
    HAS_PROBE,
    ROW,
    FileRows,
    Rows,
    as_row,
    have,
    numbers,
)
from vit21k.hashing.records import NamedRows
from vit21k.hashing.walk import Chunk
from vit21k.manifest.problems import Problem

TO_DO, DONE, FLAWED, UNKNOWN = range(4)
"""States of a file.  `scan.c` knows the first two, and leaves files in others alone."""


_VERSION = ("num_bytes", "mtime_ns", "ctime_ns", "inode")
"""What tells whether a file is as it was; on a network file system only the first two."""


class ChunkFiles:
    """Files of one folder.

    Attributes:
        folder: Descriptor of the folder.
        names: Their names, in order; there are some.
        rows: What is known of each that is done.
        states: How far each is.
        flaws: What is wrong with those that are flawed, by their place.
    """

    def __init__(self, folder: int, names: Sequence[bytes]) -> None:
        self.folder = folder
        self.names = names
        self.packed_names = b"\0".join(names)
        self.rows: Rows = np.zeros(len(names), ROW)
        self.states: NDArray[np.uint8] = np.zeros(len(names), np.uint8)
        self.flaws: dict[int, OSError | Flaw] = {}

    def __len__(self) -> int:
        return len(self.names)

    @property
    def are_done(self) -> NDArray[np.bool_]:
        """Which of them are done."""
        done: NDArray[np.bool_] = self.states == DONE
        return done

    def places_to_do(self) -> list[int]:
        """Return where those are that are to do."""
        places: list[int] = np.flatnonzero(self.states == TO_DO).tolist()
        return places

    def put(self, place: int, found: FileDigest | OSError | Flaw) -> None:
        """Note what became of the file at *place*."""
        if isinstance(found, FileDigest):
            self.rows[place] = as_row(found)
            self.states[place] = DONE
        else:
            self.flaws[place] = found
            self.states[place] = FLAWED

    def take_known(self, known: NamedRows) -> None:
        """Take the rows of *known*; files that are not among them become `UNKNOWN`."""
        if known.names == self.names:
            self.rows[:] = known.rows
            return
        place_of = {name: place for place, name in enumerate(known.names)}
        places = np.array([place_of.get(name, -1) for name in self.names])
        is_known = places >= 0
        self.rows[is_known] = known.rows[places[is_known]]
        self.states[~is_known] = UNKNOWN

    def check(self, *, follow_symlinks: bool, by_all: bool) -> None:
        """Make those done that are to do, and are on the disk as their rows say.

        Args:
            follow_symlinks: Look at what a symbolic link leads to.
            by_all: Compare inode and status-change time, too.
        """
        known = list(zip(*(self.rows[column].tolist() for column in _VERSION), strict=True))
        num_compared = len(_VERSION) if by_all else 2
        for place in self.places_to_do():
            try:
                now = os.stat(
                    self.names[place], dir_fd=self.folder, follow_symlinks=follow_symlinks
                )
            except OSError:
                continue
            version = now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino
            if version[:num_compared] == known[place][:num_compared]:
                self.states[place] = DONE

    def forget_some(self, recheck: float) -> Rows | None:
        """Make all that are not done to do, and a share of the others, too.

        Args:
            recheck: That share, 0 to 1.

        Returns:
            What was known of that share, in place; None if there is none.
        """
        if not recheck:
            self.states[self.states != DONE] = TO_DO
            return None
        is_drawn = np.array([random() < recheck for _ in self.names])  # noqa: S311
        before = self.rows.copy()
        before["flags"][~(is_drawn & self.are_done)] = 0
        self.states[is_drawn | ~self.are_done] = TO_DO
        return before

    def done_ones(self) -> NamedRows:
        """Return those that are done."""
        is_done = self.are_done
        if is_done.all():
            return NamedRows(self.names, self.rows)
        names = [name for name, is_in in zip(self.names, is_done.tolist(), strict=True) if is_in]
        return NamedRows(names, self.rows[is_done])

    def problems(self, chunk: Chunk) -> Iterator[Problem]:
        """Yield what is wrong with the entries of *chunk*, whose files these are, in order."""
        if not self.flaws and len(self.names) == len(chunk.entries):
            return
        place = -1
        for name, problem in chunk.entries:
            place += problem is None
            flaw = self.flaws.get(place)
            if problem is not None:
                yield problem
            elif isinstance(flaw, OSError):
                yield problem_from(chunk.folder + name, flaw)
            elif flaw is not None:
                yield Problem((chunk.folder + name).decode(), *flaw)

    def differing(self, before: Rows) -> list[bytes]:
        """Return the names of those that are done and whose bytes are not those of *before*.

        Args:
            before: What was known of each, without flags where nothing was.
        """
        is_other = np.zeros(len(self), bool)
        for column, flag in (("digest", HAS_DIGEST), ("probe", HAS_PROBE)):
            both = have(self.rows, flag) & have(before, flag)
            is_other |= both & (numbers(self.rows, column) != numbers(before, column)).any(axis=1)
        return [self.names[place] for place in np.flatnonzero(self.are_done & is_other).tolist()]

    def put_into(self, done: DigestedChunk, chunk: Chunk) -> NamedRows:
        """Put what became of the entries of *chunk* into *done*; return the files of it."""
        files = self.done_ones()
        done.problems = list(self.problems(chunk))
        done.files = FileRows(files.rows)
        if files.names:
            separated = b"\0" + chunk.folder
            done.paths = (chunk.folder + separated.join(files.names)).decode().split("\0")
        return files
