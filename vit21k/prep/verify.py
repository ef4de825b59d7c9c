"""digests.parquet and the image tree -> where they differ: every file is read and digested again.

Signs are those of `rclone check --combined`:

| sign | the file |
|---|---|
| ``=`` | is as the manifest says |
| ``*`` | has other bytes |
| ``+`` | is new: in the tree, not in the manifest |
| ``-`` | is missing: in the manifest, not in the tree |
| ``!`` | cannot be read |

Memory: 40 bytes a file of the manifest; the tree is not held.
"""

import os
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

from vit21k.errors import ImageTreeError
from vit21k.hashing.digest import ChunkDigester, DigestedChunk
from vit21k.hashing.engine import digest_in_threads, suitable_workers
from vit21k.hashing.hash_tree import ARCHIVE_OPTION, chunks_of
from vit21k.hashing.shards import OPTION, Shard
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.reader import Manifest, damaged_manifests, open_manifest
from vit21k.manifest.schema import DIGESTS, PROBLEMS
from vit21k.prep.file_comparison import FileComparison, OnFile, VerifySummary


def verify(
    manifests: Path,
    *,
    root: Path | None = None,
    num_workers: int | None = None,
    on_file: OnFile = lambda _sign, _path: None,
    on_chunk: Callable[[DigestedChunk], None] = lambda _chunk: None,
) -> VerifySummary:
    """Digest the tree again, and compare it with `digests.parquet`; read the other manifests.

    Args:
        manifests: The folder that holds `digests.parquet`, and `problems.parquet`.
        root: Where the image tree is now; default: where it was hashed.
        num_workers: Threads that read and digest; None: as many as suit the file system.
        on_file: Called with each file, in tree order; missing ones come last.
        on_chunk: Called with each chunk that is done.

    Raises:
        ManifestError: A manifest is missing or damaged.
        ImageTreeError: The image tree is not there.
    """
    digests = open_manifest(manifests, DIGESTS)
    comparison = FileComparison(digests, _known_problems(manifests), on_file)
    for chunk in _digested_again(digests, root, num_workers):
        comparison.take(chunk)
        on_chunk(chunk)
    comparison.finish()
    comparison.summary.manifest_problems = damaged_manifests(manifests)
    return comparison.summary


def tree_of(digests: Manifest, root: Path | None) -> Path:
    """Return the image root, of which *root* says where it is if it has moved.

    Raises:
        ImageTreeError: It is not there, or not known.
    """
    place = root or Path(digests.header.root)
    if not (root or digests.header.root) or not place.is_dir():
        raise ImageTreeError(
            f"the image root `{place}` is not a folder",
            hint="say where the image tree is now with `--root`",
        )
    return place


def _digested_again(
    digests: Manifest, root: Path | None, num_workers: int | None
) -> Iterable[DigestedChunk]:
    options = digests.header.options
    digester = ChunkDigester(
        os.fsencode(tree_of(digests, root)),
        algorithm=digests.header.algorithm,
        follow_symlinks=bool(options.get("follow_symlinks")),
    )
    chunks = chunks_of(digester, options.get(ARCHIVE_OPTION))
    if OPTION in options:
        shard = Shard.parse(options[OPTION])
        chunks = (chunk for chunk in chunks if shard.has(chunk.place))
    for done in digest_in_threads(digester, chunks, num_workers or suitable_workers(digester)):
        yield from chain((done,), done.more)


def _known_problems(manifests: Path) -> set[str]:
    """Return the paths that could not be used when the tree was hashed."""
    known: set[str] = set()
    if (manifests / PROBLEMS.file_name).is_file():
        bad = {str(kind) for kind in ProblemKind if not kind.is_left_out}
        for rows in open_manifest(manifests, PROBLEMS).batches(["path", "kind"]):
            known.update(
                path
                for path, kind in zip(*(column.to_pylist() for column in rows.columns), strict=True)
                if kind in bad
            )
    return known
