"""Write shards: threads re-encode images, one thread writes."""

import io
import json
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import xxhash

from vit21k.atomic import atomic_file
from vit21k.data.dataset import ImageDataset, announced_rows
from vit21k.errors import ImageError
from vit21k.manifest.problems import ProblemKind
from vit21k.pack.levels import Packed, PackLevel
from vit21k.pack.plan import CompletedShard, CompletedShards, PackShard, Part, part_rows
from vit21k.prep.decode_worker import verdict_on
from vit21k.sources.read import read_again, refuse_gone

_BLOCK = 512
_END = bytes(2 * _BLOCK)
_MAX_NAME = 100
_SIZE = slice(124, 136)
_CHECKSUM = slice(148, 156)


class Extent(NamedTuple):
    """Offset and size of the data of a member."""

    offset: int
    num_bytes: int


class TarWriter:
    """Writes members to a file, and hashes it.

    Attributes:
        num_bytes: Bytes written so far.
        digest: xxh3_128 of them.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.num_bytes = 0
        self.digest = xxhash.xxh3_128()
        self._file = file

    def add(self, name: str, content: bytes) -> Extent:
        """Append a member."""
        self._write(member_header(name, len(content)))
        extent = Extent(self.num_bytes, len(content))
        self._write(content)
        self._write(bytes(-len(content) % _BLOCK))
        return extent

    def finish(self) -> None:
        """Append the end marker."""
        self._write(_END)

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self.digest.update(content)
        self.num_bytes += len(content)


def _template() -> bytes:
    """Return a header without name, size and checksum."""
    header = bytearray(tarfile.TarInfo("").tobuf(tarfile.GNU_FORMAT))
    header[_SIZE] = bytes(12)
    header[_CHECKSUM] = b" " * 8
    return bytes(header)


_TEMPLATE = _template()
_TEMPLATE_SUM = sum(_TEMPLATE)


def member_header(name: str, num_bytes: int) -> bytes:
    """Return the header of a member as `tarfile` does in GNU format, ten times as fast."""
    encoded = name.encode()
    if len(encoded) > _MAX_NAME:
        info = tarfile.TarInfo(name)
        info.size = num_bytes
        return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    size = b"%011o\0" % num_bytes
    header = bytearray(_TEMPLATE)
    header[: len(encoded)] = encoded
    header[_SIZE] = size
    header[_CHECKSUM] = b"%06o\0 " % (_TEMPLATE_SUM + sum(encoded) + sum(size))
    return bytes(header)


def sample_key(path: str, taken: set[str], row: int) -> str:
    """Return the key of a sample, the name of its members before the dot; add it to *taken*.

    The path without suffix and without dots, which end the key in webdataset; with the row
    appended if that is taken.
    """
    folder, slash, name = path.rpartition("/")
    stem = name.rpartition(".")[0] or name
    key = (folder + slash + stem).replace(".", "_")
    if key in taken:
        key = f"{key}-row{row}"
    taken.add(key)
    return key


def label_members(path: str, label_ids: Sequence[int], wnids: Sequence[str]) -> tuple[bytes, bytes]:
    """Return `.cls` and `.json` of a sample.

    `.cls` is the first label, for single-label readers; `.json` has all labels.
    """
    first = label_ids[0] if label_ids else -1
    fields = {
        "label": first,
        "labels": list(label_ids),
        "wnids": [wnids[label] for label in label_ids],
        "filename": path,
    }
    return b"%d" % first, json.dumps(fields, ensure_ascii=False).encode()


def read_tar_digest(file: io.BufferedReader, piece_bytes: int = 1 << 20) -> str:
    """Return the xxh3_128 of *file* from its position to its end."""
    digest = xxhash.xxh3_128()
    while piece := file.read(piece_bytes):
        digest.update(piece)
    return digest.hexdigest()


_PREFETCH = 4  # images per thread


class _Outcome(NamedTuple):
    """Result of an image: packed, or a problem."""

    shard: PackShard
    row: int
    source_bytes: int
    packed: Packed | None
    problem: tuple[ProblemKind, str] | None


OnImage = Callable[[int, bool], None]
"""Called with the size of each image's file, and whether it was skipped."""


class ShardBuilder:
    """Writes the shards of a pack.

    Args:
        folder: Folder of the pack.
        images: Images of each split.
        wnids: The class list.
        level: How images are re-encoded.
        num_workers: Threads.
    """

    def __init__(
        self,
        folder: Path,
        images: Mapping[str, ImageDataset],
        wnids: tuple[str, ...],
        *,
        level: PackLevel,
        num_workers: int,
    ) -> None:
        self._folder = folder
        self._parts = CompletedShards(folder)
        self._images = images
        self._wnids = wnids
        self._level = level
        self._num_workers = num_workers

    def build(self, shards: Iterable[PackShard], on_image: OnImage) -> None:
        """Write *shards*, each with its part.

        Raises:
            ImageTreeError: The image root is gone: not mounted, moved or emptied.
            OSError: The disk is full or failing, or an image cannot be read at the moment.
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
                    on_image(outcome.source_bytes, outcome.packed is None)
                if finishing := self._hand_over(writing, finishing, to_disk):
                    finishing.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                if writing:  # after the pending write, which may be of this shard
                    to_disk.submit(writing.abandon)
                raise

    def _hand_over(
        self, shard: "_OpenShard | None", before: Future[None] | None, pool: ThreadPoolExecutor
    ) -> Future[None] | None:
        """Finish *shard* in *pool*, after the one before it."""
        if before:
            before.result()
        return pool.submit(self._finish, shard) if shard else None

    def _finish(self, shard: "_OpenShard") -> None:
        self._parts.save(shard.finish())

    def _outcomes(
        self, shards: Iterable[PackShard], pool: ThreadPoolExecutor
    ) -> Iterator[_Outcome]:
        """Yield the result of each image, in order; some are processed ahead."""
        waiting: deque[Future[_Outcome]] = deque()
        for shard in shards:
            for row in announced_rows(self._images[shard.split], shard.rows.tolist()):
                waiting.append(pool.submit(self._prepare, shard, row))
                if len(waiting) >= self._num_workers * _PREFETCH:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _outcomes_of_tree(
        self, shards: Iterable[PackShard], pool: ThreadPoolExecutor
    ) -> Iterator[_Outcome]:
        """Yield the results, unless the image root is gone."""
        root = next(iter(self._images.values())).root
        return refuse_gone(self._outcomes(shards, pool), _why_unread, root)

    def _prepare(self, shard: PackShard, row: int) -> _Outcome:
        content = b""
        try:
            content = read_again(self._images[shard.split].read_bytes, row)
        except ImageError as error:
            problem = (ProblemKind.VANISHED, error.message)
            return _Outcome(shard, row, 0, None, problem)
        try:
            return _Outcome(shard, row, len(content), self._level(content), None)
        except Exception as error:  # no file is read or written here: the image is the cause
            detail = f"it cannot be packed: {error or type(error).__name__}"
            problem = verdict_on(content) or (ProblemKind.DAMAGED_IMAGE, detail)
            return _Outcome(shard, row, len(content), None, problem)

    def _add(self, writing: "_OpenShard", outcome: _Outcome) -> None:
        images = self._images[writing.shard.split]
        path = images.path(outcome.row)
        writing.add(path, images.label_ids(outcome.row), self._wnids, outcome)


def _why_unread(outcome: _Outcome) -> str | None:
    kind, detail = outcome.problem or (None, "")
    return detail if kind is ProblemKind.VANISHED else None


class _OpenShard:
    """A shard being written."""

    def __init__(self, folder: Path, shard: PackShard) -> None:
        self.shard = shard
        self._path = folder / shard.file_name
        self._stack = ExitStack()
        self._writer = TarWriter(self._stack.enter_context(atomic_file(self._path)))
        self._rows: list[dict[str, Any]] = []
        self._keys: set[str] = set()
        self._num_images = 0

    def add(
        self, path: str, label_ids: list[int], wnids: tuple[str, ...], outcome: _Outcome
    ) -> None:
        """Append the members of an image, or record that it is skipped."""
        if outcome.packed is None:
            kind, detail = outcome.problem or ("", "")
            bad = {"row": outcome.row, "path": path, "problem": str(kind), "detail": detail}
            self._rows.append(bad)
            return
        content, suffix, form, note, (width, height) = outcome.packed
        key = sample_key(path, self._keys, outcome.row)
        extent = self._writer.add(f"{key}.{suffix}", content)
        first_label, labels = label_members(path, label_ids, wnids)
        self._writer.add(f"{key}.cls", first_label)
        self._writer.add(f"{key}.json", labels)
        self._num_images += 1
        self._rows.append(
            {
                "row": outcome.row,
                "path": path,
                "key": key,
                "form": form,
                "note": note,
                "offset": extent.offset,
                "num_bytes": extent.num_bytes,
                "source_bytes": outcome.source_bytes,
                "packed_digest": xxhash.xxh3_128_digest(content),
                "width": width,
                "height": height,
            }
        )

    def finish(self) -> Part:
        """Sync the file, read it back, and return its facts.

        Raises:
            OSError: The disk is full or failing, or returns other bytes than were written.
        """
        self._writer.finish()
        self._stack.close()
        written = self._writer.digest.hexdigest()
        with self._path.open("rb") as file:
            found = read_tar_digest(file)
        if found != written:
            self._path.unlink()
            raise OSError(f"`{self._path}`: the disk returns other bytes than were written")
        facts = CompletedShard(
            self.shard.file_name,
            self.shard.split,
            self._num_images,
            self._writer.num_bytes,
            written,
        )
        return Part(facts, part_rows(self._rows))

    def abandon(self) -> None:
        """Remove the file, unless it is complete."""
        self._stack.__exit__(GeneratorExit, GeneratorExit(), None)
