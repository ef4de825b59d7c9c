"""leaks.parquet, train.parquet -> a train manifest without what is in the evaluation set."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from vit21k.errors import UsageError
from vit21k.hashing.places import refuse_inside
from vit21k.lock import locked
from vit21k.manifest.reader import open_manifest
from vit21k.manifest.schema import CLASSES, LEAKS, TRAIN, VAL
from vit21k.manifest.writer import write_manifest
from vit21k.near.find import Level


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
        level: Pictures that leak at this level, or at one before it, are left out.
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
