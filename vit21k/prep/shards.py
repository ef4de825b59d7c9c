"""Hash a tree on several machines: each hashes a shard of the folders; their manifests are merged.

A folder belongs to the share that a hash of its path gives, so that every machine knows its own
without talking to the others, and a tree that grows moves nothing.  A share writes to a folder of
its own below the manifests, ``shards/0003-of-0008``, and holds its own lock: any scheduler may run
them, in any order, and run again those that failed.

Put together, the rows are in path order again: the files are byte for byte those that one machine
would have written.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import xxhash

from vit21k.errors import DataError, LayoutError, UsageError
from vit21k.lock import locked
from vit21k.machine import allow_open_files
from vit21k.manifest.io import Manifest, ManifestHeader, open_manifest
from vit21k.manifest.layout import LABEL_FILE_OPTION
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.manifest.writer import ROW_GROUP_ROWS, manifest_writer, refuse_inside
from vit21k.prep.dedup import repeated_probes
from vit21k.prep.quick import MODE, hash_unproven
from vit21k.sources.detect import SourceLayout
from vit21k.sources.label_file import WRITE_PATHS

FOLDER = "shards"
OPTION = "shard"

_LEAST_ROW_GROUP_ROWS = 1024
_FORM = re.compile(r"(\d+)/(\d+)")
_ESCAPED_BYTE = re.compile(rb"\\x([89a-f][0-9a-f])")


@dataclass(frozen=True)
class Shard:
    """A shard of a tree.

    Attributes:
        number: Which one; 1 is the first.
        count: How many there are.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a shard such as ``3/8``.

        Raises:
            UsageError: It is none.
        """
        found = _FORM.fullmatch(text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"`{text}` is not a shard", hint="write `3/8` for the third of eight")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def has(self, folder: bytes) -> bool:
        """Return whether the files in *folder* belong to it."""
        return xxhash.xxh3_64_intdigest(folder) % self.count == self.number - 1

    def folder(self, manifests: Path) -> Path:
        """Return the folder of its manifests."""
        return manifests / FOLDER / f"{self.number:04}-of-{self.count:04}"

    @property
    def row_group_rows(self) -> int:
        """Rows of a row group of its manifests: all shards together hold one group of each."""
        return max(ROW_GROUP_ROWS // self.count, _LEAST_ROW_GROUP_ROWS)


def merge_shards(folders: Sequence[Path], manifests: Path) -> int:
    """Merge the shards of a tree; write `digests.parquet` and `problems.parquet`.

    Of a quick run, files that may be duplicates of files in other shards are read and hashed.

    Args:
        folders: Those of all its shards, in any order.
        manifests: Folder to write to.

    Returns:
        The rows of `digests.parquet`.

    Raises:
        ManifestError: One is missing, damaged, or a manifest of something else.
        DataError: They are not all the shards of one tree, each once, or no files are in them.
        LayoutError: The folders of the tree cannot be classes, or labels are not clear.
        UsageError: *manifests* is inside the image root.
        LockedError: Another run works on *manifests*.
        OSError: The disk is full or failing.
    """
    allow_open_files(2 * len(folders))
    digests = [open_manifest(folder, DIGESTS) for folder in folders]
    problems = [open_manifest(folder, PROBLEMS) for folder in folders]
    header = _common_header(digests)
    _require_equal(problems, header)
    refuse_inside(manifests, header.image_folder)
    is_labelled = LABEL_FILE_OPTION in header.options
    if not any(part.num_rows for part in (digests if is_labelled else (*digests, *problems))):
        what = "images with labels" if is_labelled else "images"
        raise DataError(f"no {what} in any of the shards", hint="is the image root right?")
    with (
        locked(manifests, command="relabel"),
        manifest_writer(DIGESTS, manifests, header) as out,  # moves into place last
        manifest_writer(PROBLEMS, manifests, header) as listed,
    ):
        listed.write(_sorted_problems(problems, header))
        layout = SourceLayout.of_header(header.options).judge(header.root)
        repeated = repeated_probes(digests) if header.options.get("mode") == MODE else None
        for rows in merged([part.batches() for part in digests]):
            layout.add_rows(rows)
            out.write(rows if repeated is None else hash_unproven(rows, repeated, header))
        layout.refuse()
    return out.num_rows


def _common_header(parts: Sequence[Manifest]) -> ManifestHeader:
    """Return the header of the merged manifests, after checking that *parts* are complete."""
    shards: dict[Shard, Path] = {}
    for part in parts:
        if OPTION not in part.header.options:
            raise DataError(
                f"`{part.path}` is not of a shard", hint="name folders that `hash --shard` wrote"
            )
        shard = Shard.parse(part.header.options[OPTION])
        if shard in shards:
            raise DataError(f"`{part.path}` and `{shards[shard]}` are both shard {shard}")
        shards[shard] = part.path
    if len(counts := {shard.count for shard in shards}) > 1:
        raise DataError(f"these are shards of {' and of '.join(map(str, sorted(counts)))}")
    missing = [n for n in range(1, counts.pop() + 1) if n not in {shard.number for shard in shards}]
    if missing:
        raise DataError(
            f"shards are missing: {', '.join(map(str, missing[:10]))}",
            hint=f"run `vit21k hash ... --shard {missing[0]}/{next(iter(shards)).count}`",
        )
    header = _whole(parts[0].header)
    _require_equal(parts, header)
    return header


def _whole(header: ManifestHeader) -> ManifestHeader:
    options = {name: value for name, value in header.options.items() if name != OPTION}
    return replace(header, options=options)


def _require_equal(parts: Sequence[Manifest], header: ManifestHeader) -> None:
    for part in parts:
        if (found := _whole(part.header)) != header:
            raise DataError(
                f"`{part.path}` is of another run: {_difference(found, header)}",
                hint="hash all shards with the same root and options",
            )


def _difference(found: ManifestHeader, wanted: ManifestHeader) -> str:
    pairs: list[tuple[str, Any, Any]] = [
        ("image root", found.root, wanted.root),
        ("algorithm", found.algorithm, wanted.algorithm),
        ("options", _plain(found.options), _plain(wanted.options)),
    ]
    what = [f"{name} {one} instead of {other}" for name, one, other in pairs if one != other]
    return ", ".join(what) or "its header differs"


def _plain(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(options.items()))


def merged(sources: Sequence[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """Yield the rows of all *sources*, each in path order, in path order.

    Raises:
        DataError: A path comes twice.
    """
    heads = [head for source in sources if (head := _Head(source)).is_left]
    while heads:
        bound = min(head.last for head in heads)  # of what is in memory, all up to here is known
        rows = pa.concat_tables([head.take_until(bound) for head in heads])
        rows = rows.sort_by("path")
        _refuse_repeats(rows["path"].combine_chunks())
        yield rows
        heads = [head for head in heads if head.is_left]


class _Head:
    """Rows of one source in memory: some of a row group."""

    def __init__(self, source: Iterator[pa.Table]) -> None:
        self._source = source
        self._advance()

    def _advance(self) -> None:
        rows = next((rows for rows in self._source if rows.num_rows), None)
        self.is_left = rows is not None
        if rows is not None:
            self._rows = rows
            self._paths = rows["path"].combine_chunks()
            self._start = 0
            self.last = self._at(rows.num_rows - 1)

    def _at(self, row: int) -> bytes:
        path: str = self._paths[row].as_py()
        return path.encode()

    def take_until(self, bound: bytes) -> pa.Table:
        """Return the rows from here up to the path *bound*, and move on."""
        rows, start = self._rows, self._start
        stop = bisect_right(range(rows.num_rows), bound, lo=start, key=self._at)
        self._start = stop
        if stop == rows.num_rows:
            self._advance()
        return rows.slice(start, stop - start)


def _refuse_repeats(paths: pa.StringArray) -> None:
    import pyarrow.compute as pc  # noqa: PLC0415 (takes long)

    is_repeated = pc.equal(paths[1:], paths[:-1])
    if pc.any(is_repeated).as_py():
        path = paths[pc.index(is_repeated, True).as_py()]
        raise DataError(
            f"`{path}` is in two shards: the tree changed between them",
            hint="hash the shards again",
        )


def _sorted_problems(parts: Sequence[Manifest], header: ManifestHeader) -> pa.Table:
    """Return the problems of all *parts* in path order; in memory, for there are few.

    Names of a label file come last: each part has those that none of its own images has.
    """
    rows = pa.concat_tables([part.read() for part in parts])
    paths = rows["path"].to_pylist()
    is_name = [kind == ProblemKind.FILE_MISSING for kind in rows["kind"].to_pylist()]
    unused = Counter(path for path, is_one in zip(paths, is_name, strict=True) if is_one)
    if label_file := header.options.get(LABEL_FILE_OPTION):
        _refuse_names_of_several(unused, len(parts), label_file)
    others = [row for row, is_one in enumerate(is_name) if not is_one]
    others.sort(key=lambda row: _raw(paths[row]))
    names = [row for row in range(parts[0].num_rows) if is_name[row]]
    missing = [row for row in names if unused[paths[row]] == len(parts)]
    return rows.take(pa.array([*others, *missing], pa.int64()))


def _refuse_names_of_several(
    unused: Counter[str], num_shards: int, label_file: Mapping[str, Any]
) -> None:
    """Refuse a label file if images of several shards have one name in it.

    Args:
        unused: In how many shards no image has a name.
        num_shards: How many there are.
        label_file: As in the header.

    Raises:
        LayoutError: They have.
    """
    num_used = num_shards * label_file["num_labels"] - unused.total()
    num_missing = sum(count == num_shards for count in unused.values())
    if num_used > label_file["num_labels"] - num_missing:
        raise LayoutError(
            f"a name in `{label_file['name']}` may be an image of one shard or of another",
            hint=WRITE_PATHS,
        )


def _raw(path: str) -> bytes:
    r"""Return the bytes that `printable` made *path* of: they are what it is sorted by.

    A name that really has ``\xe9`` in it, as four characters, is treated as one byte.
    """
    return _ESCAPED_BYTE.sub(lambda found: bytes.fromhex(found[1].decode()), path.encode())
