"""Training images that are in an evaluation set, duplicates within a set, and their removal."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.errors import ManifestError, UsageError
from vit21k.lock import locked
from vit21k.manifest.io import Manifest, open_manifest
from vit21k.manifest.schema import (
    CLASSES,
    FINGERPRINTS,
    IMAGE_KINDS,
    IMAGES,
    LEAKS,
    NEAR_DUPLICATES,
    TRAIN,
    VAL,
    ManifestKind,
)
from vit21k.manifest.writer import refuse_inside, write_manifest
from vit21k.near.fingerprint import (
    DEFAULT_NUM_WORKERS,
    FingerprintSet,
    OnImages,
    load_set,
    scan_folder,
    scan_images,
)
from vit21k.near.search import Level, Pairs, find_pairs
from vit21k.sources.folders import Skipped
from vit21k.sources.read import Root


@dataclass(frozen=True)
class EvaluationSet:
    """Images to compare the training images with.

    Attributes:
        root: What the paths are relative to.
        paths: One for each image.
        fingerprints: What they are compared by.
        problems: Why images could not be decoded, by path.
        unread: Why images could not be read, by path.
        skipped: What of the folder was not looked at.
        manifests: The folder of the manifests that it was taken from, if it was.
    """

    root: Root
    paths: pa.Array
    fingerprints: FingerprintSet
    problems: dict[str, str]
    unread: dict[str, str]
    skipped: Sequence[Skipped] = ()
    manifests: Path | None = None


def open_evaluation_set(
    against: Path, images: Manifest, num_workers: int, on_images: OnImages
) -> EvaluationSet:
    """Take the fingerprints of a folder of images, or those of a manifest.

    Args:
        against: The folder; or a manifest of images, or the folder of one.
        images: The manifest whose images it is to be compared with.
        num_workers: Threads that read and decode.
        on_images: Called with how many images were done just now, and how many there are.

    Raises:
        UsageError: *against* is the image root of *images*, or was hashed by another algorithm.
        ManifestError: A manifest is missing, stale or damaged.
        ImageTreeError: The folder is not there, or holds no images.
    """
    manifest = _manifest_at(against)
    if manifest is None:
        if against.resolve() == Path(images.header.root).resolve():
            raise UsageError(
                f"`{against}` is the image root itself",
                hint="`vit21k labels near-duplicates` finds what occurs twice in it",
            )
        folder = scan_folder(
            against,
            algorithm=images.header.algorithm,
            num_workers=num_workers,
            on_images=on_images,
        )
        paths = pa.array(folder.paths, pa.string())
        return EvaluationSet(
            against.resolve(),
            paths,
            folder.fingerprints,
            folder.problems,
            folder.unread,
            folder.skipped,
        )
    return _from_manifest(manifest, images, num_workers, on_images)


def _manifest_at(against: Path) -> Manifest | None:
    """Return the manifest of images that *against* is or holds, if it does: val before images."""
    if against.suffix == ".parquet":
        return open_manifest(against, *IMAGE_KINDS)
    for kind in reversed(IMAGE_KINDS):
        if kind is not TRAIN and (against / kind.file_name).is_file():
            return open_manifest(against, kind)
    return None


def _from_manifest(
    manifest: Manifest, images: Manifest, num_workers: int, on_images: OnImages
) -> EvaluationSet:
    """Take the fingerprints of a manifest's images from beside it, or make them there."""
    if manifest.header.algorithm != images.header.algorithm:
        raise UsageError(
            f"`{manifest.path}` was hashed with {manifest.header.algorithm}, "
            f"`{images.path}` with {images.header.algorithm}",
            hint="give the folder of images instead of the manifest",
        )
    folder = manifest.path.parent
    scanned = scan_images(folder, num_workers=num_workers, on_images=on_images)
    fingerprints = load_set(open_manifest(folder, FINGERPRINTS))
    all_paths = open_manifest(folder, IMAGES).read(["path"])["path"].combine_chunks()
    row_M = rows_of(all_paths, manifest)
    chosen = FingerprintSet(
        fingerprints.digest_N[row_M],
        fingerprints.pixel_digest_N[row_M],
        fingerprints.thumbs_NTT[row_M],
    )
    problems = {}
    if scanned.num_problems:
        rows = open_manifest(folder, FINGERPRINTS).read(["digest", "problem"]).take(pa.array(row_M))
        is_bad = pc.and_(pc.is_valid(rows["digest"]), pc.is_valid(rows["problem"]))
        bad = all_paths.take(pa.array(row_M)).filter(is_bad.combine_chunks())
        problems = dict(
            zip(bad.to_pylist(), rows["problem"].filter(is_bad).to_pylist(), strict=True)
        )
    paths = all_paths.take(pa.array(row_M))
    of_set = set(paths.to_pylist()) if scanned.unread else set()
    unread = {path: why for path, why in scanned.unread.items() if path in of_set}
    root = manifest.header.root
    return EvaluationSet(root, paths, chosen, problems, unread, manifests=folder.resolve())


def rows_of(paths: pa.Array, manifest: Manifest) -> NDArray[np.int64]:
    """Return at which of *paths* each image of a manifest is.

    Args:
        paths: Those of `images.parquet`.
        manifest: One that was made of it.

    Raises:
        ManifestError: One is not there.
    """
    places = pc.index_in(manifest.read(["path"])["path"], paths)
    if places.null_count:
        raise ManifestError(
            f"`{manifest.path}` names an image that `images.parquet` beside it does not have",
            hint=f"make it again with `{manifest.kind.made_by}`",
        )
    row_M: NDArray[np.int64] = places.to_numpy().astype(np.int64)
    return row_M


def _ignore(_done: int, _total: int) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class PairSummary:
    """Counts of a search.

    Attributes:
        num_images: Images looked at: of train if there is a train manifest, else all.
        num_others: Images of the evaluation set; 0 where there is none.
        num_pairs: Rows written, by level.
        num_found: Images in a pair of each level; one that is in several counts at the first.
        num_others_found: The same, of the evaluation set.
        num_problems: Images of the image root that cannot be decoded; compared by bytes only.
        unread: Why images could not be read, by path; they were not compared.
        other_problems: Why images of the evaluation set cannot be decoded, by path.
        other_unread: Why images of the evaluation set could not be read, by path.
        other_skipped: What of the evaluation set's folder was not looked at.
        num_overfull: Keys that too many hashes share to be compared under.
    """

    num_images: int
    num_others: int = 0
    num_pairs: dict[str, int]
    num_found: dict[str, int]
    num_others_found: dict[str, int] = field(default_factory=dict)
    num_problems: int
    unread: dict[str, str] = field(default_factory=dict)
    other_problems: dict[str, str] = field(default_factory=dict)
    other_unread: dict[str, str] = field(default_factory=dict)
    other_skipped: Sequence[Skipped] = ()
    num_overfull: int

    @property
    def is_complete(self) -> bool:
        """Whether all images were read, and all of the evaluation set decoded and looked at."""
        missed = any(one.may_hold_images for one in self.other_skipped)
        return not (self.unread or self.other_unread or self.other_problems or missed)


def find_leaks(
    manifests: Path,
    against: Path,
    *,
    root: Root | None = None,
    num_workers: int = DEFAULT_NUM_WORKERS,
    on_images: OnImages = _ignore,
    on_others: OnImages = _ignore,
    on_view: Callable[[], None] = lambda: None,
) -> PairSummary:
    """Compare the training images with an evaluation set; write `leaks.parquet`.

    Args:
        manifests: The folder of `images.parquet` and, if there is one, `train.parquet`.
        against: A folder of images; or a manifest of images, or the folder of one.
        root: Where the training images are now; None: where they were hashed.
        num_workers: Threads that read and decode.
        on_images: Called as training images are decoded: how many just now, how many in all.
        on_others: The same, of the evaluation set.
        on_view: Called after each view of the search.

    Raises:
        ManifestError: A manifest is missing, stale or damaged.
        ImageTreeError: A folder is not there, or holds no images.
        UsageError: *against* is the image root itself.
        LockedError: Another run works on *manifests*.
    """
    images = open_manifest(manifests, IMAGES)
    other = open_evaluation_set(against, images, num_workers, on_others)
    scanned = scan_images(manifests, root=root, num_workers=num_workers, on_images=on_images)
    fingerprints = load_set(open_manifest(manifests, FINGERPRINTS))
    paths = images.read(["path"])["path"]
    is_train_N = _in_train(manifests, paths.combine_chunks())
    of_train = set(paths.filter(pa.array(is_train_N)).to_pylist()) if scanned.unread else set()
    pairs, counts = find_pairs(fingerprints, other.fingerprints, on_view=on_view)
    pairs = pairs.where(is_train_N[pairs.one_P])
    options = {"against": str(other.root)}
    if other.manifests:
        options["against_manifests"] = str(other.manifests)
    with locked(manifests, command="leaks"):
        rows = pair_rows(
            pairs, fingerprints, paths, other.fingerprints, pa.chunked_array([other.paths])
        )
        _write(rows, LEAKS, images, options)
    return PairSummary(
        num_images=int(is_train_N.sum()),
        num_others=len(other.fingerprints),
        num_pairs=_by_level(pairs.level_P, np.arange(len(pairs.level_P))),
        num_found=_by_level(pairs.level_P, pairs.one_P),
        num_others_found=_by_level(pairs.level_P, pairs.other_P),
        num_problems=scanned.num_problems,
        unread={path: why for path, why in scanned.unread.items() if path in of_train},
        other_problems=other.problems,
        other_unread=other.unread,
        other_skipped=other.skipped,
        num_overfull=counts.num_overfull,
    )


def find_near_duplicates(
    manifests: Path,
    *,
    root: Root | None = None,
    num_workers: int = DEFAULT_NUM_WORKERS,
    on_images: OnImages = _ignore,
    on_view: Callable[[], None] = lambda: None,
) -> PairSummary:
    """Find images of the set that are the same but for their bytes.

    Writes `near_duplicates.parquet`; arguments and errors are those of `find_leaks`.
    """
    images = open_manifest(manifests, IMAGES)
    scanned = scan_images(manifests, root=root, num_workers=num_workers, on_images=on_images)
    fingerprints = load_set(open_manifest(manifests, FINGERPRINTS))
    pairs, counts = find_pairs(fingerprints, on_view=on_view)
    paths = images.read(["path"])["path"]
    with locked(manifests, command="labels near-duplicates"):
        rows = pair_rows(pairs, fingerprints, paths, fingerprints, paths)
        _write(rows, NEAR_DUPLICATES, images, {})
    both = np.concatenate([pairs.one_P, pairs.other_P])
    return PairSummary(
        num_images=images.num_rows,
        num_pairs=_by_level(pairs.level_P, np.arange(len(pairs.level_P))),
        num_found=_by_level(np.tile(pairs.level_P, 2), both),
        num_problems=scanned.num_problems,
        unread=scanned.unread,
        num_overfull=counts.num_overfull,
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
    one: FingerprintSet,
    one_paths: pa.ChunkedArray,
    other: FingerprintSet,
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


def _by_level(level_P: NDArray[np.int64], image_P: NDArray[np.int64]) -> dict[str, int]:
    """Count distinct images by the first level of their pairs."""
    order = np.lexsort((level_P, image_P))
    _, first = np.unique(image_P[order], return_index=True)
    count = np.bincount(level_P[order][first], minlength=len(Level))
    return {str(level): int(count[index]) for index, level in enumerate(Level)}


@dataclass(frozen=True, kw_only=True)
class RemoveSummary:
    """Counts of a removal.

    Attributes:
        num_before: Rows of the train manifest.
        num_removed: Of them, those that are in the evaluation set.
    """

    num_before: int
    num_removed: int

    @property
    def num_left(self) -> int:
        """Rows of the new train manifest."""
        return self.num_before - self.num_removed


def remove_leaks(manifests: Path, level: Level, out: Path) -> RemoveSummary:
    """Write the train manifest without its leaks into another folder, with val and classes.

    Args:
        manifests: The folder of `leaks.parquet` and `train.parquet`; both stay as they are.
        level: Images that leak at this level, or at one before it, are skipped.
        out: Where the new one goes.

    Raises:
        UsageError: *out* is *manifests*, or lies inside the image root.
        ManifestError: A manifest is missing, stale or damaged.
        LockedError: Another run works on *out*.
    """
    if out.resolve() == manifests.resolve():
        raise UsageError(
            "the cleaned train manifest must not replace the one it is made from",
            hint="name another folder with `--out DIR`",
        )
    train, leaks = open_manifest(manifests, TRAIN), open_manifest(manifests, LEAKS)
    refuse_inside(out, train.header.root, option="--out")
    rows = leaks.read(["path", "level"])
    levels = list(Level)[: list(Level).index(level) + 1]
    is_leak = pc.is_in(rows["level"], pa.array([str(one) for one in levels]))
    leaked = rows["path"].filter(is_leak).combine_chunks()
    is_kept = pc.invert(pc.is_in(train.read(["path"])["path"], leaked))
    num_removed = train.num_rows - pc.sum(is_kept).as_py()
    with locked(out, command="leaks --remove"):
        for kind in (CLASSES, VAL):
            if (manifests / kind.file_name).is_file():
                shutil.copyfile(manifests / kind.file_name, out / kind.file_name)
        removed = {
            "level": str(level),
            "against": leaks.header.options["against"],
            "leaks": leaks.fingerprint,
            "num_removed": num_removed,
        }
        header = replace(train.header, options={**train.header.options, "removed": removed})
        write_manifest(train.read().filter(is_kept), TRAIN, out, header, train.classes())
    return RemoveSummary(num_before=train.num_rows, num_removed=num_removed)
