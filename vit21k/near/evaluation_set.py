"""The evaluation set that training pictures may have leaked from: a folder, or manifests of one.

Dimensions: N pictures, M of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.errors import ManifestError, UsageError
from vit21k.hashing.folder import Skipped
from vit21k.manifest.reader import Manifest, open_manifest
from vit21k.manifest.schema import FINGERPRINTS, IMAGES, PICTURE_KINDS, TRAIN
from vit21k.near.picture_set import PictureSet, load_set, scan_folder
from vit21k.near.scan import OnPictures, scan_images


@dataclass(frozen=True)
class EvaluationSet:
    """Pictures to compare the training pictures with.

    Attributes:
        root: What the paths are relative to.
        paths: One for each picture.
        pictures: What they are compared by.
        problems: Why pictures could not be decoded, by path.
        unread: Why pictures could not be read, by path.
        skipped: What of the folder was not looked at.
        manifests: The folder of the manifests that it was taken from, if it was.
    """

    root: Path
    paths: pa.Array
    pictures: PictureSet
    problems: dict[str, str]
    unread: dict[str, str]
    skipped: Sequence[Skipped] = ()
    manifests: Path | None = None


def open_evaluation_set(
    against: Path, images: Manifest, num_workers: int, on_pictures: OnPictures
) -> EvaluationSet:
    """Take the fingerprints of a folder of pictures, or those of a manifest.

    Args:
        against: The folder; or a manifest of pictures, or the folder of one.
        images: The manifest whose pictures it is to be compared with.
        num_workers: Threads that read and decode.
        on_pictures: Called with how many pictures were done just now, and how many there are.

    Raises:
        UsageError: *against* is the image root of *images*, or was hashed by another algorithm.
        ManifestError: A manifest is missing, stale or damaged.
        ImageTreeError: The folder is not there, or holds no pictures.
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
            on_pictures=on_pictures,
        )
        paths = pa.array(folder.paths, pa.string())
        return EvaluationSet(
            against.resolve(),
            paths,
            folder.pictures,
            folder.problems,
            folder.unread,
            folder.skipped,
        )
    return _from_manifest(manifest, images, num_workers, on_pictures)


def _manifest_at(against: Path) -> Manifest | None:
    """Return the manifest of pictures that *against* is or holds, if it does: val before images."""
    if against.suffix == ".parquet":
        return open_manifest(against, *PICTURE_KINDS)
    for kind in reversed(PICTURE_KINDS):
        if kind is not TRAIN and (against / kind.file_name).is_file():
            return open_manifest(against, kind)
    return None


def _from_manifest(
    manifest: Manifest, images: Manifest, num_workers: int, on_pictures: OnPictures
) -> EvaluationSet:
    """Take the fingerprints of a manifest's pictures from beside it, or make them there."""
    if manifest.header.algorithm != images.header.algorithm:
        raise UsageError(
            f"`{manifest.path}` was hashed with {manifest.header.algorithm}, "
            f"`{images.path}` with {images.header.algorithm}",
            hint="give the folder of pictures instead of the manifest",
        )
    folder = manifest.path.parent
    scanned = scan_images(folder, num_workers=num_workers, on_pictures=on_pictures)
    pictures = load_set(open_manifest(folder, FINGERPRINTS))
    all_paths = open_manifest(folder, IMAGES).read(["path"])["path"].combine_chunks()
    row_M = rows_of(all_paths, manifest)
    chosen = PictureSet(
        pictures.digest_N[row_M], pictures.pixel_digest_N[row_M], pictures.thumbs_NTT[row_M]
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
    root = Path(manifest.header.root)
    return EvaluationSet(root, paths, chosen, problems, unread, manifests=folder.resolve())


def rows_of(paths: pa.Array, manifest: Manifest) -> NDArray[np.int64]:
    """Return at which of *paths* each picture of a manifest is.

    Args:
        paths: Those of `images.parquet`.
        manifest: One that was made of it.

    Raises:
        ManifestError: One is not there.
    """
    places = pc.index_in(manifest.read(["path"])["path"], paths)
    if places.null_count:
        raise ManifestError(
            f"`{manifest.path}` names a picture that `images.parquet` beside it does not have",
            hint=f"make it again with `{manifest.kind.made_by}`",
        )
    row_M: NDArray[np.int64] = places.to_numpy().astype(np.int64)
    return row_M
