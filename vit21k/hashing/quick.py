"""A quick run: most files are proven to be unlike all others from their size and both ends.

Two walks over the tree.  The first reads the first and the last page of every file.  The second
reads to its end what has the same size and the same ends as another file, and nothing else.  Files
that are in no group of candidates are unique: their digest stays null.

Memory: 8 bytes a file.
"""

from array import array

import numpy as np
from numpy.typing import NDArray

from vit21k.data.mix64 import GOLDEN_GAMMA
from vit21k.hashing.chunk_files import DONE, TO_DO, ChunkFiles
from vit21k.hashing.digest import ChunkDigester, DigestedChunk
from vit21k.hashing.file_rows import HAS_DIGEST, HAS_PROBE, Rows, have, numbers
from vit21k.manifest.problems import ProblemKind

MODE = "quick"


_CHANGED = ProblemKind.CHANGED_WHILE_READ, "between the two walks of a quick run"


class Candidates:
    """Which sizes and ends have been seen, and then which of them more than once."""

    def __init__(self) -> None:
        self._keys = array("Q")

    def add(self, chunk: DigestedChunk) -> None:
        """Note the files of *chunk*."""
        self._keys.frombytes(_keys(chunk.files.array).tobytes())

    def keep_repeated(self) -> None:
        """Forget what was seen once."""
        keys = np.frombuffer(self._keys, dtype=np.uint64)
        keys.sort()  # in place
        repeated = keys[1:][keys[1:] == keys[:-1]]
        is_last = np.append(repeated[1:] != repeated[:-1], True)[: len(repeated)]
        self._keys = array("Q", repeated[is_last].tobytes())  # `np.unique` would import numpy.ma

    def have(self, rows: Rows) -> NDArray[np.bool_]:
        """Return which of *rows* another file may be equal to."""
        repeated, keys = np.frombuffer(self._keys, dtype=np.uint64), _keys(rows)
        if not len(repeated):
            return np.zeros(len(rows), bool)
        places = np.minimum(np.searchsorted(repeated, keys), len(repeated) - 1)
        are_repeated: NDArray[np.bool_] = repeated[places] == keys
        return are_repeated


def _keys(rows: Rows) -> NDArray[np.uint64]:
    return numbers(rows, "probe")[:, 0] ^ rows["num_bytes"].astype(np.uint64) * GOLDEN_GAMMA


class QuickDigester(ChunkDigester):
    """Digests chunks by what a quick run needs of them.

    Attributes:
        candidates: Which files are to be read to their end; None on the first walk.
    """

    candidates: Candidates | None = None
    only_ends = True

    def start_second_walk(self, candidates: Candidates) -> None:
        """Read *candidates* to their end from now on, and take the first walk for known."""
        self.candidates = candidates
        self.is_stopped = False
        self.recheck = 0.0
        self.notes_known = False
        if self.memory:
            self.memory.turn_back()

    def check(self, files: ChunkFiles) -> None:
        """Make those of *files* done that are as their rows say, or were when a walk began."""
        if self.candidates is None:
            super().check(files)
        else:  # what the first walk saw counts, if it was settled
            files.states[(files.states == TO_DO) & (files.rows["ctime_ns"] > 0)] = DONE

    def read_more(self, files: ChunkFiles, done: DigestedChunk) -> None:
        """Read those candidates among *files* to their end that were not."""
        if self.candidates is None:
            return
        is_open = files.are_done & ~have(files.rows, HAS_DIGEST)
        places = np.flatnonzero(is_open & self.candidates.have(files.rows))
        if not len(places):
            return
        before = files.rows[places]
        files.states[places] = TO_DO
        self.ask_ahead(files, only_ends=False)
        self.read(files, only_ends=False)
        is_read = files.are_done[places]
        now = files.rows[places]
        is_changed = is_read & (
            (now["num_bytes"] != before["num_bytes"]) | (now["mtime_ns"] != before["mtime_ns"])
        )
        for place in places[is_changed].tolist():
            files.put(place, _CHANGED)
        now["probe"] = before["probe"]
        now["flags"] |= HAS_PROBE
        is_whole = is_read & ~is_changed
        files.rows[places[is_whole]] = now[is_whole]
        done.num_known = max(done.num_known - int(is_whole.sum()), 0)
        done.num_bytes_read += int(now["num_bytes"][is_whole].sum())
