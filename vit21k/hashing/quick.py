"""A quick run: most files are proven to be unlike all others from their size and both ends.

Two walks over the tree.  The first reads the first and the last page of every file.  The second
reads to its end what has the same size and the same ends as another file, and nothing else.  Files
that are in no group of candidates are unique: their digest stays null.

Memory: 8 bytes a file.
"""

from array import array
from bisect import bisect_left

import numpy as np

from vit21k.hashing.digest import ChunkDigester, DigestedChunk
from vit21k.hashing.file_digest import FileDigest, Flaw
from vit21k.manifest.problems import ProblemKind

MODE = "quick"


_SPREAD, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


class Candidates:
    """Which sizes and ends have been seen, and then which of them more than once."""

    def __init__(self) -> None:
        self._keys = array("Q")

    def add(self, chunk: DigestedChunk) -> None:
        """Note the files of *chunk*."""
        self._keys.extend([_key(file) for file in chunk.files])

    def keep_repeated(self) -> None:
        """Forget what was seen once."""
        keys = np.frombuffer(self._keys, dtype=np.uint64)
        keys.sort()  # in place
        repeated = np.unique(keys[1:][keys[1:] == keys[:-1]])
        self._keys = array("Q", repeated.tobytes())

    def has(self, file: FileDigest) -> bool:
        """Return whether another file may be equal to *file*."""
        key = _key(file)
        place = bisect_left(self._keys, key)
        return place < len(self._keys) and self._keys[place] == key


def _key(file: FileDigest) -> int:
    ends = int.from_bytes((file.probe or b"")[:8], "little")
    return ends ^ (file.num_bytes * _SPREAD & _MASK)


class QuickDigester(ChunkDigester):
    """Digests chunks by what a quick run needs of them.

    Attributes:
        candidates: Which files are to be read to their end; None on the first walk.
    """

    candidates: Candidates | None = None
    with_probes = True

    def start_second_walk(self, candidates: Candidates) -> None:
        """Read *candidates* to their end from now on, and take the first walk for known."""
        self.candidates = candidates
        self.is_stopped = False
        self.recheck = 0.0
        self.notes_known = False
        if self.memory:
            self.memory.turn_back()

    def ask_for(self, name: bytes, folder: int, before: FileDigest | None) -> None:
        """Have the system fetch the ends of a file, or all of a candidate."""
        if self.candidates is None:
            if before is None:
                self.reader.ask_for_ends(name, folder)
        elif before is not None and before.digest is None and self.candidates.has(before):
            self.reader.ask_for(name, folder)

    def read(self, name: bytes, folder: int) -> FileDigest | OSError | Flaw:
        """Read both ends of a file."""
        return self.reader.probe(name, folder)

    def _take(
        self, name: bytes, folder: int, before: FileDigest | None, done: DigestedChunk
    ) -> FileDigest | OSError | Flaw:
        found = super()._take(name, folder, before, done)
        if not isinstance(found, FileDigest) or self.candidates is None:
            return found
        if found.digest is not None or not self.candidates.has(found):
            return found
        whole = self.reader.digest(name, folder)
        if not isinstance(whole, FileDigest):
            return whole
        if (whole.num_bytes, whole.mtime_ns) != (found.num_bytes, found.mtime_ns):
            return ProblemKind.CHANGED_WHILE_READ, "between the two walks of a quick run"
        done.num_known = max(done.num_known - 1, 0)
        done.num_bytes_read += whole.num_bytes
        return whole._replace(probe=found.probe)

    def _is_same(self, name: bytes, folder: int, before: FileDigest) -> bool:
        if self.candidates is None:
            return super()._is_same(name, folder, before)
        return before.ctime_ns > 0  # what the first walk saw counts, if it was settled
