"""Manifests -> the text lists that PLSC trains from.

`image_all_list.txt` has a line ``path 3,17`` for each picture, `image_dummy_val_list.txt` a line
``path 3`` for each picture to validate on.  Made from what `import-md5sum` read, they are byte for
byte what PLSC's published procedure makes of the same md5sum file.

A split that was made with ``--holdout`` gives `image_train_list.txt` and `image_val_list.txt`
instead: other content, other names.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vit21k.atomic import atomic_file
from vit21k.errors import DataError
from vit21k.hashing.places import refuse_inside
from vit21k.lock import locked
from vit21k.manifest.reader import Manifest, open_manifest
from vit21k.manifest.schema import IMAGES, TRAIN, VAL
from vit21k.prep.ahead import ahead
from vit21k.prep.split import choose, single_labels

PLSC_PER_CLASS = 20
"""Source: PLSC, task/classification/vit/README.md, "ImageNet21K data preparation", step (3)."""

_ALL, _DUMMY_VAL = "image_all_list.txt", "image_dummy_val_list.txt"
_TRAIN, _VAL = "image_train_list.txt", "image_val_list.txt"
_BLANK = ord(" ")
_BLANKS_HINT = (
    "rename it; or pass `--allow-blanks`, if what reads the lists takes the last blank of a line "
    "for the one before the labels (PLSC's reader does not)"
)


def export_lists(
    manifests: Path, out: Path, *, per_class: int | None = None, allow_blanks: bool = False
) -> dict[str, int]:
    """Write the text lists of the split in *manifests*.

    Args:
        manifests: The folder that holds `images.parquet`, and `val.parquet` if there is a split.
        out: Where the lists go.
        per_class: Leave the split alone and take this many single-label pictures of each class for
            the dummy list, as PLSC does; default: the split, or PLSC's 20 if there is none.
        allow_blanks: Write names with blanks too; PLSC's reader cannot read them.

    Returns:
        The number of lines of each list written, by its name.

    Raises:
        ManifestError: A manifest is missing, stale or damaged.
        DataError: A path has a blank, or a line break, in it.
        UsageError: *out* lies inside the image root.
        LockedError: Another run works on *manifests*.
        OSError: The disk is full or failing.
    """
    with locked(manifests, command="export-lists"):
        images = open_manifest(manifests, IMAGES)
        refuse_inside(out, images.header.root, option="--out")
        if per_class is not None or not (manifests / VAL.file_name).is_file():
            in_val = _first_single_labels(images, per_class or PLSC_PER_CLASS)
            lists = {_ALL: (images, None), _DUMMY_VAL: (images, in_val)}
        else:
            val, train = open_manifest(manifests, VAL), open_manifest(manifests, TRAIN)
            is_holdout = val.header.options["split"] == "holdout"
            names = (_TRAIN, _VAL) if is_holdout else (_ALL, _DUMMY_VAL)
            lists = {names[0]: (train, None), names[1]: (val, None)}
        out.mkdir(parents=True, exist_ok=True)
        return {
            name: _write(out / name, pictures, is_in, allow_blanks=allow_blanks)
            for name, (pictures, is_in) in lists.items()
        }


def _first_single_labels(images: Manifest, per_class: int) -> NDArray[np.bool_]:
    singles = single_labels(images)
    num_classes = len(images.classes())
    chosen = choose(singles.label_R, None, num_classes=num_classes, per_class=per_class)
    return singles.marked(chosen)


def _write(
    path: Path, pictures: Manifest, is_in: NDArray[np.bool_] | None, *, allow_blanks: bool
) -> int:
    """Write a line for each picture that *is_in* marks (default: all); return how many."""
    num_lines = 0
    with atomic_file(path) as file:
        for rows in ahead(_marked(pictures, is_in)):
            _refuse_blanks(rows["path"].combine_chunks(), allow_blanks=allow_blanks)
            file.write(lines_of(rows))
            num_lines += rows.num_rows
    return num_lines


def _marked(pictures: Manifest, is_in: NDArray[np.bool_] | None) -> Iterator[pa.Table]:
    row = 0
    for rows in pictures.batches(["path", "label_ids"]):
        stop = row + rows.num_rows
        yield rows if is_in is None else rows.filter(pa.array(is_in[row:stop]))
        row = stop


def lines_of(rows: pa.Table) -> memoryview:
    r"""Return ``path 3,17\n`` for each of *rows*, one after the other."""
    labels = rows["label_ids"].combine_chunks()
    starts = pc.subtract(labels.offsets, labels.offsets[0])
    texts = pa.ListArray.from_arrays(starts, labels.flatten().cast(pa.string()))
    ends = pc.binary_join_element_wise(pc.binary_join(texts, ","), "", "\n")
    lines = pc.binary_join_element_wise(rows["path"].combine_chunks(), ends, " ")
    num_bytes = pc.sum(pc.binary_length(lines)).as_py() or 0
    return memoryview(lines.buffers()[2] or b"")[:num_bytes]


def _refuse_blanks(paths: pa.StringArray, *, allow_blanks: bool) -> None:
    """Refuse what the lists cannot hold: line breaks, and blanks unless they are allowed."""
    text = np.frombuffer(paths.buffers()[2] or b"", dtype=np.uint8)
    if not (text <= _BLANK).any():
        return
    _refuse(paths, r"[\n\r]", "a line break", hint="rename it")
    if not allow_blanks:
        _refuse(paths, r"[\x00-\x20]", "a blank", hint=_BLANKS_HINT)


def _refuse(paths: pa.StringArray, pattern: str, what: str, *, hint: str) -> None:
    odd = paths.filter(pc.match_substring_regex(paths, pattern))
    if len(odd):
        raise DataError(
            f"{odd[0].as_py()!r} has {what} in its name, which these lists cannot hold", hint=hint
        )
