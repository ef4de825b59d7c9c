"""Shards of a plan -> tars and their parts: threads prepare, one writes, one brings to disk.

Decoding, recoding and encoding do without the GIL, so threads are enough.  What a shard holds does
not hang on their number: it is written in the order of the plan.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from vit21k.atomic import atomic_file
from vit21k.data.pictures import Pictures
from vit21k.data.unread import read_again, refuse_gone
from vit21k.errors import ImageError
from vit21k.manifest.problems import ProblemKind
from vit21k.pack.levels import Level, Packed
from vit21k.pack.parts import Part, Parts, ShardFacts, part_rows
from vit21k.pack.plan import Shard
from vit21k.pack.tar_writer import TarWriter, label_members, read_tar_digest, sample_key
from vit21k.prep.decode_worker import verdict_on

_AHEAD = 4  # pictures a thread


class _Outcome(NamedTuple):
    """What became of a picture: what is packed, or what is wrong with it."""

    shard: Shard
    row: int
    source_bytes: int
    packed: Packed | None
    problem: tuple[ProblemKind, str] | None


OnPicture = Callable[[int, bool], None]
"""Called with the size of each picture's file, and whether it was left out."""


class ShardBuilder:
    """Writes the shards of a pack.

    Args:
        folder: Of the pack.
        pictures: Of each split.
        wnids: Of each label.
        level: What is done to a picture.
        num_workers: Threads that do it.
    """

    def __init__(
        self,
        folder: Path,
        pictures: Mapping[str, Pictures],
        wnids: tuple[str, ...],
        *,
        level: Level,
        num_workers: int,
    ) -> None:
        self._folder = folder
        self._parts = Parts(folder)
        self._pictures = pictures
        self._wnids = wnids
        self._level = level
        self._num_workers = num_workers

    def build(self, shards: Iterable[Shard], on_picture: OnPicture) -> None:
        """Write *shards*, each with its part.

        Raises:
            ImageTreeError: The pictures are not there: a disk that is not mounted, a tree that has
                moved or was emptied.
            OSError: The disk is full or failing, or a picture cannot be read for now.
        """
        with (
            ThreadPoolExecutor(self._num_workers, "pack") as pool,
            ThreadPoolExecutor(1, "to-disk") as to_disk,
        ):
            writing: _OpenShard | None = None
            finishing: Future[None] | None = None
            try:
                for outcome in self._outcomes_of_tree(shards, pool):
                    if writing is None or writing.shard is not outcome.shard:
                        finishing = self._hand_over(writing, finishing, to_disk)
                        writing = _OpenShard(self._folder, outcome.shard)
                    self._add(writing, outcome)
                    on_picture(outcome.source_bytes, outcome.packed is None)
                if finishing := self._hand_over(writing, finishing, to_disk):
                    finishing.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                if writing:  # after what is on its way to the disk, which may be this one
                    to_disk.submit(writing.abandon)
                raise

    def _hand_over(
        self, shard: "_OpenShard | None", before: Future[None] | None, pool: ThreadPoolExecutor
    ) -> Future[None] | None:
        """Let *pool* finish *shard*, after the one before it."""
        if before:
            before.result()
        return pool.submit(self._finish, shard) if shard else None

    def _finish(self, shard: "_OpenShard") -> None:
        self._parts.save(shard.finish())

    def _outcomes(self, shards: Iterable[Shard], pool: ThreadPoolExecutor) -> Iterator[_Outcome]:
        """Yield what becomes of each picture, in order; some are always under way."""
        waiting: deque[Future[_Outcome]] = deque()
        for shard in shards:
            for row in shard.rows.tolist():
                waiting.append(pool.submit(self._prepare, shard, row))
                if len(waiting) >= self._num_workers * _AHEAD:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _outcomes_of_tree(
        self, shards: Iterable[Shard], pool: ThreadPoolExecutor
    ) -> Iterator[_Outcome]:
        """Yield the outcomes, unless the tree is gone: a finished shard lacks images for good."""
        root = next(iter(self._pictures.values())).root
        return refuse_gone(self._outcomes(shards, pool), _why_unread, root)

    def _prepare(self, shard: Shard, row: int) -> _Outcome:
        content = b""
        try:
            content = read_again(self._pictures[shard.split].read_bytes, row)
        except ImageError as error:
            problem = (ProblemKind.VANISHED, error.message)
            return _Outcome(shard, row, 0, None, problem)
        try:
            return _Outcome(shard, row, len(content), self._level(content), None)
        except Exception as error:  # nothing here reads or writes a file: it is the image
            detail = f"it cannot be packed: {error or type(error).__name__}"
            problem = verdict_on(content) or (ProblemKind.DAMAGED_IMAGE, detail)
            return _Outcome(shard, row, len(content), None, problem)

    def _add(self, writing: "_OpenShard", outcome: _Outcome) -> None:
        pictures = self._pictures[writing.shard.split]
        path = pictures.path(outcome.row)
        writing.add(path, pictures.label_ids(outcome.row), self._wnids, outcome)


def _why_unread(outcome: _Outcome) -> str | None:
    kind, detail = outcome.problem or (None, "")
    return detail if kind is ProblemKind.VANISHED else None


class _OpenShard:
    """A shard that is being written."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.shard = shard
        self._path = folder / shard.file_name
        self._stack = ExitStack()
        self._writer = TarWriter(self._stack.enter_context(atomic_file(self._path)))
        self._rows: list[dict[str, Any]] = []
        self._keys: set[str] = set()
        self._num_pictures = 0

    def add(
        self, path: str, label_ids: list[int], wnids: tuple[str, ...], outcome: _Outcome
    ) -> None:
        """Append the members of a picture; or only note that it is left out."""
        if outcome.packed is None:
            kind, detail = outcome.problem or ("", "")
            bad = {"row": outcome.row, "path": path, "problem": str(kind), "detail": detail}
            self._rows.append(bad)
            return
        content, suffix, form, note, (width, height) = outcome.packed
        key = sample_key(path, self._keys, outcome.row)
        place = self._writer.add(f"{key}.{suffix}", content)
        first_label, labels = label_members(path, label_ids, wnids)
        self._writer.add(f"{key}.cls", first_label)
        self._writer.add(f"{key}.json", labels)
        self._num_pictures += 1
        self._rows.append(
            {
                "row": outcome.row,
                "path": path,
                "key": key,
                "form": form,
                "note": note,
                "offset": place.offset,
                "num_bytes": place.num_bytes,
                "source_bytes": outcome.source_bytes,
                "packed_digest": xxhash.xxh3_128_digest(content),
                "width": width,
                "height": height,
            }
        )

    def finish(self) -> Part:
        """Bring it to disk, read it again, and return what is known of it.

        Raises:
            OSError: The disk is full or failing, or gives back other bytes than it was given.
        """
        self._writer.finish()
        self._stack.close()
        written = self._writer.digest.hexdigest()
        with self._path.open("rb") as file:
            found = read_tar_digest(file)
        if found != written:
            self._path.unlink()
            raise OSError(f"`{self._path}`: the disk gives back other bytes than were written")
        facts = ShardFacts(
            self.shard.file_name,
            self.shard.split,
            self._num_pictures,
            self._writer.num_bytes,
            written,
        )
        return Part(facts, part_rows(self._rows))

    def abandon(self) -> None:
        """Remove what was written, unless it is finished."""
        self._stack.__exit__(GeneratorExit, GeneratorExit(), None)
