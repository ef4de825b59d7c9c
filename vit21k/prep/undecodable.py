"""digests.parquet -> undecodable.parquet: the pictures that training could not use.

Each distinct picture is decoded once, at the first path it has.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.data.pictures import Pictures
from vit21k.data.places import COLUMNS, PlaceColumns
from vit21k.data.unread import refuse_gone
from vit21k.hashing.digest_rows import problem_rows
from vit21k.hashing.places import refuse_inside
from vit21k.lock import locked
from vit21k.manifest.header import Header
from vit21k.manifest.problems import Problem, ProblemKind
from vit21k.manifest.reader import Manifest, open_manifest
from vit21k.manifest.schema import DIGESTS, UNDECODABLE
from vit21k.manifest.writer import manifest_writer
from vit21k.prep.copies import find_copies
from vit21k.prep.decode_check import Verdict, check_pictures, why_not_read
from vit21k.prep.keys import FileKeys
from vit21k.prep.verify import tree_of


@dataclass
class DecodeSummary:
    """Counts of a run of `find_undecodable`.

    Attributes:
        num_pictures: Distinct contents.
        num_decoded: Those that were decoded to the last pixel.
        problems: The others, by kind.
    """

    num_pictures: int = 0
    num_decoded: int = 0
    problems: Counter[ProblemKind] = field(default_factory=Counter)


def find_undecodable(
    manifests: Path,
    *,
    root: Path | None = None,
    num_workers: int,
    on_verdict: Callable[[Verdict], None] = lambda _verdict: None,
) -> DecodeSummary:
    """Decode every picture in full, and write `undecodable.parquet`.

    Args:
        manifests: The folder that holds `digests.parquet`.
        root: Where the image tree is now; default: where it was hashed.
        num_workers: Processes that decode.
        on_verdict: Called with each verdict, in digests order.

    Raises:
        ManifestError: `digests.parquet` is missing or damaged.
        ImageTreeError: The image tree is not there, or was gone during the run, or is compressed.
        UsageError: *manifests* lies inside it.
        LockedError: Another run works on *manifests*.
        OSError: The disk is full or failing.
    """
    with locked(manifests, command="verify"):
        digests = open_manifest(manifests, DIGESTS)
        refuse_inside(manifests, digests.header.root)
        pictures, rows = _distinct(digests, tree_of(digests, root))
        summary = DecodeSummary(num_pictures=len(rows))
        header = Header(
            algorithm=digests.header.algorithm,
            root=digests.header.root,
            inputs={"digests": digests.fingerprint},
        )
        verdicts = check_pictures(pictures.read_bytes, rows.tolist(), num_workers=num_workers)
        with manifest_writer(UNDECODABLE, manifests, header) as writer:
            for verdict in refuse_gone(verdicts, why_not_read, pictures.root):
                if verdict.kind is None:
                    summary.num_decoded += 1
                else:
                    summary.problems[verdict.kind] += 1
                    problem = Problem(pictures.path(verdict.row), verdict.kind, verdict.detail)
                    writer.write(problem_rows([problem]))
                on_verdict(verdict)
    return summary


def _distinct(digests: Manifest, root: Path) -> tuple[Pictures, NDArray[np.int64]]:
    """Return the files of *digests*, and the rows that are the first of their content."""
    groups = find_copies(FileKeys(digests), digests.num_rows)
    is_copy = np.zeros(digests.num_rows, dtype=bool)
    is_copy[groups.rows_M] = True
    is_copy[groups.rows_M[groups.starts_G]] = False
    rows = digests.read(["path", *COLUMNS])
    no_labels = pa.LargeListArray.from_arrays(
        pa.array(np.zeros(rows.num_rows + 1, dtype=np.int64)), pa.array([], pa.int64())
    )
    paths = rows["path"].cast(pa.large_string()).combine_chunks()
    paths = paths.combine_chunks() if isinstance(paths, pa.ChunkedArray) else paths
    pictures = Pictures.from_arrow(root, paths, no_labels, PlaceColumns.from_rows(rows))
    return pictures, np.flatnonzero(~is_copy)
