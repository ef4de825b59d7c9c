"""Which training pictures are in an evaluation set, and which pictures of a set occur twice.

images.parquet -> fingerprints.parquet -> leaks.parquet, near_duplicates.parquet: a row per pair.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.hashing.folder import Skipped
from vit21k.lock import locked
from vit21k.manifest.kind import ManifestKind
from vit21k.manifest.reader import Manifest, open_manifest
from vit21k.manifest.schema import FINGERPRINTS, IMAGES, LEAKS, NEAR_DUPLICATES, TRAIN
from vit21k.manifest.writer import write_manifest
from vit21k.near.evaluation_set import open_evaluation_set, rows_of
from vit21k.near.find import Level, Pairs, find_pairs
from vit21k.near.picture_set import PictureSet, load_set
from vit21k.near.scan import DEFAULT_NUM_WORKERS, OnPictures, scan_images


def _ignore(_done: int, _total: int) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class PairSummary:
    """Counts of a search.

    Attributes:
        num_pictures: Pictures looked at: of train if there is a train manifest, else all.
        num_others: Pictures of the evaluation set; 0 where there is none.
        num_pairs: Rows written, by level.
        num_found: Pictures in a pair of each level; one that is in several counts at the first.
        num_others_found: The same, of the evaluation set.
        num_problems: Pictures of the image root that cannot be decoded; compared by bytes only.
        unread: Why pictures could not be read, by path; they were not compared.
        other_problems: Why pictures of the evaluation set cannot be decoded, by path.
        other_unread: Why pictures of the evaluation set could not be read, by path.
        other_skipped: What of the evaluation set's folder was not looked at.
        num_crowded: Keys that too many hashes share to be compared under.
    """

    num_pictures: int
    num_others: int = 0
    num_pairs: dict[str, int]
    num_found: dict[str, int]
    num_others_found: dict[str, int] = field(default_factory=dict)
    num_problems: int
    unread: dict[str, str] = field(default_factory=dict)
    other_problems: dict[str, str] = field(default_factory=dict)
    other_unread: dict[str, str] = field(default_factory=dict)
    other_skipped: Sequence[Skipped] = ()
    num_crowded: int

    @property
    def is_complete(self) -> bool:
        """Whether all pictures were read, and all of the evaluation set decoded and looked at."""
        missed = any(one.may_hold_images for one in self.other_skipped)
        return not (self.unread or self.other_unread or self.other_problems or missed)


def find_leaks(
    manifests: Path,
    against: Path,
    *,
    root: Path | None = None,
    num_workers: int = DEFAULT_NUM_WORKERS,
    on_pictures: OnPictures = _ignore,
    on_others: OnPictures = _ignore,
    on_view: Callable[[], None] = lambda: None,
) -> PairSummary:
    """Compare the training pictures with an evaluation set; write `leaks.parquet`.

    Args:
        manifests: The folder of `images.parquet` and, if there is one, `train.parquet`.
        against: A folder of pictures; or a manifest of pictures, or the folder of one.
        root: Where the training images are now; None: where they were hashed.
        num_workers: Threads that read and decode.
        on_pictures: Called as training pictures are decoded: how many just now, how many in all.
        on_others: The same, of the evaluation set.
        on_view: Called after each view of the search.

    Raises:
        ManifestError: A manifest is missing, stale or damaged.
        ImageTreeError: A folder is not there, or holds no pictures.
        UsageError: *against* is the image root itself.
        LockedError: Another run works on *manifests*.
    """
    images = open_manifest(manifests, IMAGES)
    other = open_evaluation_set(against, images, num_workers, on_others)
    scanned = scan_images(manifests, root=root, num_workers=num_workers, on_pictures=on_pictures)
    pictures = load_set(open_manifest(manifests, FINGERPRINTS))
    paths = images.read(["path"])["path"]
    is_train_N = _in_train(manifests, paths.combine_chunks())
    of_train = set(paths.filter(pa.array(is_train_N)).to_pylist()) if scanned.unread else set()
    pairs, counts = find_pairs(pictures, other.pictures, on_view=on_view)
    pairs = pairs.where(is_train_N[pairs.one_P])
    options = {"against": str(other.root)}
    if other.manifests:
        options["against_manifests"] = str(other.manifests)
    with locked(manifests, command="leaks"):
        rows = pair_rows(pairs, pictures, paths, other.pictures, pa.chunked_array([other.paths]))
        _write(rows, LEAKS, images, options)
    return PairSummary(
        num_pictures=int(is_train_N.sum()),
        num_others=len(other.pictures),
        num_pairs=_by_level(pairs.level_P, np.arange(len(pairs.level_P))),
        num_found=_by_level(pairs.level_P, pairs.one_P),
        num_others_found=_by_level(pairs.level_P, pairs.other_P),
        num_problems=scanned.num_problems,
        unread={path: why for path, why in scanned.unread.items() if path in of_train},
        other_problems=other.problems,
        other_unread=other.unread,
        other_skipped=other.skipped,
        num_crowded=counts.num_crowded,
    )


def find_near_duplicates(
    manifests: Path,
    *,
    root: Path | None = None,
    num_workers: int = DEFAULT_NUM_WORKERS,
    on_pictures: OnPictures = _ignore,
    on_view: Callable[[], None] = lambda: None,
) -> PairSummary:
    """Find pictures of the set that are the same but for their bytes.

    Writes `near_duplicates.parquet`; arguments and errors are those of `find_leaks`.
    """
    images = open_manifest(manifests, IMAGES)
    scanned = scan_images(manifests, root=root, num_workers=num_workers, on_pictures=on_pictures)
    pictures = load_set(open_manifest(manifests, FINGERPRINTS))
    pairs, counts = find_pairs(pictures, on_view=on_view)
    paths = images.read(["path"])["path"]
    with locked(manifests, command="labels near-duplicates"):
        rows = pair_rows(pairs, pictures, paths, pictures, paths)
        _write(rows, NEAR_DUPLICATES, images, {})
    both = np.concatenate([pairs.one_P, pairs.other_P])
    return PairSummary(
        num_pictures=images.num_rows,
        num_pairs=_by_level(pairs.level_P, np.arange(len(pairs.level_P))),
        num_found=_by_level(np.tile(pairs.level_P, 2), both),
        num_problems=scanned.num_problems,
        unread=scanned.unread,
        num_crowded=counts.num_crowded,
    )


def _in_train(manifests: Path, paths: pa.Array) -> NDArray[np.bool_]:
    """Mark which of *paths* are in train.parquet; all, if there is none."""
    if not (manifests / TRAIN.file_name).is_file():
        return np.ones(len(paths), dtype=bool)
    is_train_N = np.zeros(len(paths), dtype=bool)
    is_train_N[rows_of(paths, open_manifest(manifests, TRAIN))] = True
    return is_train_N


def pair_rows(
    pairs: Pairs,
    one: PictureSet,
    one_paths: pa.ChunkedArray,
    other: PictureSet,
    other_paths: pa.ChunkedArray,
) -> pa.Table:
    """Return rows of `leaks.parquet` or `near_duplicates.parquet`."""
    levels: Sequence[str] = [str(level) for level in Level]
    return pa.table(
        {
            "digest": _digests(one.digest_N[pairs.one_P]),
            "path": one_paths.take(pa.array(pairs.one_P)),
            "other_digest": _digests(other.digest_N[pairs.other_P]),
            "other_path": other_paths.take(pa.array(pairs.other_P)),
            "level": pa.array(levels, pa.string()).take(pa.array(pairs.level_P)),
            "distance": pairs.distance_P,
            "similarity": np.round(pairs.similarity_P.astype(np.float64), 4),
        }
    )


def _digests(digest_P: NDArray[np.bytes_]) -> pa.Array:
    content = pa.py_buffer(np.ascontiguousarray(digest_P).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(digest_P), [None, content])


def _write(rows: pa.Table, kind: ManifestKind, images: Manifest, options: dict[str, str]) -> None:
    header = replace(
        images.header, classes=None, inputs={"images": images.fingerprint}, options=options
    )
    write_manifest(rows, kind, images.path.parent, header)


def _by_level(level_P: NDArray[np.int64], picture_P: NDArray[np.int64]) -> dict[str, int]:
    """Count distinct pictures by the first level of their pairs."""
    order = np.lexsort((level_P, picture_P))
    _, first = np.unique(picture_P[order], return_index=True)
    count = np.bincount(level_P[order][first], minlength=len(Level))
    return {str(level): int(count[index]) for index, level in enumerate(Level)}
