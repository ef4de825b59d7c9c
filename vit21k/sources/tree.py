"""Pictures one after the other -> an image tree that is there whole, or not at all."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vit21k.atomic import write_atomic
from vit21k.errors import DataError, UsageError
from vit21k.lock import locked
from vit21k.sources.cifar import NamedPicture

IMAGES = "images"
MANIFESTS = "manifests"
RECORD = "source.json"
_PARTIAL = ".images.partial"


def write_tree(
    pictures: Iterable[NamedPicture],
    out: Path,
    source: Mapping[str, Any],
    *,
    on_picture: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Write *pictures* below ``<out>/images``, once: a tree of the same *source* is left alone.

    A killed write leaves a hidden folder, which the next one begins anew.

    Args:
        pictures: Read only if the tree is not there.
        out: Beside the tree, ``source.json`` says where it came from.
        source: JSON values that identify where the pictures come from.
        on_picture: Called for each that is written.

    Returns:
        How many pictures each split has: the first folder of their paths.

    Raises:
        DataError: A picture's path leads out of the tree; nothing is kept.
        UsageError: There is a tree of another source.
        OSError: The disk is full or failing.
    """
    with locked(out, command="get-dataset", wait=True):
        record = _read_record(out / RECORD)
        if (out / IMAGES).exists():
            if record.get("source") != source:
                raise UsageError(
                    f"`{out / IMAGES}` is there already, and is not of this source",
                    hint="name another folder, or remove that one",
                )
            return dict(record["counts"])
        partial = out / _PARTIAL
        shutil.rmtree(partial, ignore_errors=True)
        counts: Counter[str] = Counter()
        for path, content in pictures:
            file = _inside(partial, path)
            if counts.total() == 0 or not file.parent.is_dir():
                file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            counts[path.partition("/")[0]] += 1
            on_picture()
        os.sync()  # one for all of them: the tree's name must not move before its files are there
        write_atomic(
            out / RECORD, json.dumps({"source": source, "counts": counts}, indent=2).encode()
        )
        partial.rename(out / IMAGES)
    return dict(counts)


def _inside(folder: Path, path: str) -> Path:
    """Return the file *path* below *folder*; names of classes and splits come from strangers."""
    parts = path.split("/")
    if "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise DataError(f"a picture is called {path!r}, which is no path within a tree")
    return folder.joinpath(*parts)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
