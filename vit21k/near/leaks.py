"""Find training images that are in an evaluation set, or twice in a set; remove leaks."""

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
    ImageSet,
    OnImages,
    load_set,
    scan_folder,
    scan_images,
)
from vit21k.near.search import MatchLevel, Pairs, find_pairs
from vit21k.sources.folders import Skipped
from vit21k.sources.read import Root
from vit21k.sources.remote import refuse_url


def open_evaluation_set(
    against: Path, images: Manifest, num_workers: int, on_images: OnImages
) -> ImageSet:
    """Return the fingerprints of a folder of images, or of the images of a manifest.

    Args:
        against: A folder of images, a manifest of images, or a folder with one.
        images: The manifest of the images to compare with.
        num_workers: Threads that read and decode.
        on_images: Progress.

    Raises:
        UsageError: *against* is the image root of *images*, a URL, or has another hash algorithm.
        ManifestError: A manifest is missing, stale or damaged.
        ImageTreeError: The folder does not exist, or has no images.
    """
    refuse_url(against, "`--against DIR`")
    manifest = _manifest_at(against)
    if manifest is None:
        if against.resolve() == Path(images.header.root).resolve():
            raise UsageError(
                f"`{against}` is the image root itself",
                hint="`vit21k labels near-duplicates` finds duplicates within it",
            )
        return scan_folder(
            against,
            algorithm=images.header.algorithm,
            num_workers=num_workers,
            on_images=on_images,
        )
    return _from_manifest(manifest, images, num_workers, on_images)


def _manifest_at(against: Path) -> Manifest | None:
    """Return the manifest at *against* or in that folder, if there is one: val before images."""
    if against.suffix == ".parquet":
        return open_manifest(against, *IMAGE_KINDS)
    for kind in reversed(IMAGE_KINDS):
        if kind is not TRAIN and (against / kind.file_name).is_file():
            return open_manifest(against, kind)
    return None


def _from_manifest(
    manifest: Manifest, images: Manifest, num_workers: int, on_images: OnImages
) -> ImageSet:
    """Return the fingerprints of a manifest's images, from its folder or computed there."""
    if manifest.header.algorithm != images.header.algorithm:
        raise UsageError(
            f"`{manifest.path}` was hashed with {manifest.header.algorithm}, "
            f"`{images.path}` with {images.header.algorithm}",
            hint="name the folder of images instead of the manifest",
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
    return ImageSet(root, paths, chosen, problems, unread, manifests=folder.resolve())


def rows_of(paths: pa.Array, manifest: Manifest) -> NDArray[np.int64]:
    """Return the index in *paths* of each image of a manifest.

    Args:
        paths: Paths of `images.parquet`.
        manifest: A manifest made from it.

    Raises:
        ManifestError: A path is missing.
    """
    rows = pc.index_in(manifest.read(["path"])["path"], paths)
    if rows.null_count:
        raise ManifestError(
            f"`{manifest.path}` has an image that is not in its `images.parquet`",
            hint=f"make it again with `{manifest.kind.made_by}`",
        )
    row_M: NDArray[np.int64] = rows.to_numpy().astype(np.int64)
    return row_M


def _ignore(_done: int, _total: int) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class PairSummary:
    """Counts of a search.

    Attributes:
        num_images: Images of train if there is a train manifest, else all.
        num_others: Images of the evaluation set; 0 without one.
        num_pairs: Rows written, by level.
        num_found: Images in a pair, by the first level that holds.
        num_others_found: The same, of the evaluation set.
        num_problems: Images of the image root that cannot be decoded; compared by bytes only.
        unread: Why images could not be read, by path; they were not compared.
        other_problems: Why images of the evaluation set cannot be decoded, by path.
        other_unread: Why images of the evaluation set could not be read, by path.
        other_skipped: Entries of the evaluation set's folder that are not images.
        num_overfull: Fingerprint keys shared by too many hashes to compare all pairs.
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
        """Whether all images were read, and all of the evaluation set decoded."""
        missed = any(one.may_hold_images for one in self.other_skipped)
        return not (self.unread or self.other_unread or self.other_problems or missed)


def find_leaks(
    manifests: str | Path,
    against: str | Path,
    *,
    root: Root | None = None,
    num_workers: int = DEFAULT_NUM_WORKERS,
    on_images: OnImages = _ignore,
    on_others: OnImages = _ignore,
    on_view: Callable[[], None] = lambda: None,
) -> PairSummary:
    """Compare the training images with an evaluation set; write `leaks.parquet`.

    Args:
        manifests: The folder of `images.parquet` and, optionally, `train.parquet`.
        against: A folder of images, a manifest of images, or a folder with one.
        root: Current image root; None: as hashed.
        num_workers: Threads that read and decode.
        on_images: Progress of the training images.
        on_others: Progress of the evaluation set.
        on_view: Called after each view of the search.

    Raises:
        ManifestError: A manifest is missing, stale or damaged.
        ImageTreeError: A folder does not exist, or has no images.
        UsageError: *against* is the image root itself.
        LockedError: Another run works on *manifests*.
    """
    manifests, against = Path(manifests), Path(against)
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
    """Find images that occur twice with different bytes.

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
    """Return which of *paths* are in train.parquet; all, if there is none."""
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
    levels: Sequence[str] = [str(level) for level in MatchLevel]
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
    count = np.bincount(level_P[order][first], minlength=len(MatchLevel))
    return {str(level): int(count[index]) for index, level in enumerate(MatchLevel)}


@dataclass(frozen=True, kw_only=True)
class RemoveSummary:
    """Counts of a removal.

    Attributes:
        num_before: Rows of the train manifest.
        num_removed: Rows whose image is in the evaluation set.
    """

    num_before: int
    num_removed: int

    @property
    def num_left(self) -> int:
        """Rows of the new train manifest."""
        return self.num_before - self.num_removed


def remove_leaks(manifests: Path, level: MatchLevel, out: Path) -> RemoveSummary:
    """Write the train manifest without its leaks into another folder, with val and classes.

    Args:
        manifests: The folder of `leaks.parquet` and `train.parquet`; both are unchanged.
        level: Leaks of this level or a surer one are removed.
        out: The new folder.

    Raises:
        UsageError: *out* is *manifests*, or inside the image root.
        ManifestError: A manifest is missing, stale or damaged.
        LockedError: Another run works on *out*.
    """
    if out.resolve() == manifests.resolve():
        raise UsageError(
            "the cleaned train manifest must not replace its input",
            hint="name another folder with `--out DIR`",
        )
    train, leaks = open_manifest(manifests, TRAIN), open_manifest(manifests, LEAKS)
    refuse_inside(out, train.header.image_folder, option="--out")
    rows = leaks.read(["path", "level"])
    levels = list(MatchLevel)[: list(MatchLevel).index(level) + 1]
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
