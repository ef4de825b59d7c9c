"""Rank images with several labels by how these are related, the most doubtful first.

An image is ranked by its two least related labels: far, then near, siblings, and hypernym and
hyponym; within a rank, by the depth of their common ancestor.  "Far" images are likely label
errors.

Legend: M images with several labels, P pairs of labels, K classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vit21k.labels.edit import Ints, LabelLists, check_out, derived_header
from vit21k.lock import locked
from vit21k.manifest.io import Manifest, open_manifest
from vit21k.manifest.schema import CONFLICTS, IMAGES
from vit21k.manifest.wordnet import RANKED, Hierarchy, Related, Relation, relate
from vit21k.manifest.writer import write_manifest
from vit21k.prep.dedup import prefetched

MANY_LABELS = 50
"""With more labels, each is compared with the first one only.

In a tree this suffices to find the least related pair: the common ancestor of all labels is the
highest of the common ancestors of the first with each.
"""


@dataclass(frozen=True, kw_only=True)
class ConflictSummary:
    """Counts of a `conflicts.parquet`.

    Attributes:
        num_images: Images of `images.parquet`.
        num_multi_label: Images with several labels: rows of `conflicts.parquet`.
        relations: Number of rows of each relation.
    """

    num_images: int
    num_multi_label: int
    relations: dict[Relation, int]


class LabelPairs(NamedTuple):
    """Pairs of labels of images.

    Attributes:
        row_P: Row of the image, ascending.
        first_P, second_P: Class indices, the smaller first.
    """

    row_P: Ints
    first_P: Ints
    second_P: Ints


def conflicts(manifests: Path, out: Path) -> ConflictSummary:
    """Write `conflicts.parquet`: a row for every image with several labels.

    Args:
        manifests: The folder of `images.parquet`.
        out: Folder of the new manifest.

    Raises:
        ManifestError: `images.parquet` is missing, stale or damaged.
        UsageError: *out* is *manifests*, or inside the image root.
        LockedError: Another run works on *out*.
    """
    images = open_manifest(manifests, IMAGES)
    check_out(manifests, out, images.header.image_folder)
    with locked(out, command="labels conflicts"):
        multi_label = _multi_label(images)
        hierarchy = Hierarchy.of(images.classes())
        rows = conflict_rows(multi_label, hierarchy)
        header = derived_header(images, out, {"verb": "conflicts"})
        write_manifest(rows, CONFLICTS, out, header, images.classes())
    counts = rows["relation"].value_counts().to_pylist()
    found = {count["values"]: count["counts"] for count in counts}
    return ConflictSummary(
        num_images=images.num_rows,
        num_multi_label=rows.num_rows,
        relations={relation: found.get(str(relation), 0) for relation in Relation},
    )


def _multi_label(images: Manifest) -> pa.Table:
    """Return the rows of *images* with several labels."""
    columns = [name for name in CONFLICTS.schema.names if name in IMAGES.schema.names]
    parts = [IMAGES.schema.empty_table().select(columns)]
    for rows in prefetched(images.batches(columns)):
        lists = LabelLists.from_arrow(rows["label_ids"].combine_chunks())
        parts.append(rows.filter(pa.array(lists.num_N > 1)))
    return pa.concat_tables(parts).combine_chunks()


def conflict_rows(multi_label: pa.Table, hierarchy: Hierarchy) -> pa.Table:
    """Return the ranked rows of `conflicts` for images that all have several labels."""
    if not multi_label.num_rows:
        return CONFLICTS.schema.empty_table()
    pairs = label_pairs(LabelLists.from_arrow(multi_label["label_ids"].combine_chunks()))
    related = _relate_each(pairs, hierarchy)
    rank_P, depth_P, distance_P = related.rank_P, related.depth_P, related.distance_P
    order = np.lexsort((-distance_P, depth_P, rank_P, pairs.row_P))
    _, worst = np.unique(pairs.row_P[order], return_index=True)
    worst_M = order[worst]
    by_doubt = np.lexsort((-distance_P[worst_M], depth_P[worst_M], rank_P[worst_M]))  # stable
    worst_M = worst_M[by_doubt]
    wnids = pa.array([*hierarchy.synsets.wnids, None])  # the last: no common ancestor
    columns = {
        "relation": pa.array([str(kind) for kind in RANKED]).take(pa.array(rank_P[worst_M])),
        "first_id": pairs.first_P[worst_M],
        "second_id": pairs.second_P[worst_M],
        "common_wnid": wnids.take(pa.array(related.row_P[worst_M] % len(wnids))),
        "common_depth": depth_P[worst_M],
        "distance": distance_P[worst_M],
    }
    rows = multi_label.take(pa.array(by_doubt))
    for name, values in columns.items():
        rows = rows.append_column(name, pa.array(values))
    return rows


def label_pairs(lists: LabelLists) -> LabelPairs:
    """Return the pairs of labels to compare, of images that all have several."""
    num_N = lists.num_N
    rows, firsts, seconds = ([np.empty(0, dtype=np.int64)] for _ in range(3))
    for size in np.unique(num_N).tolist():
        row_M = np.flatnonzero(num_N == size)
        labels_MS = lists.label_L[lists.starts[row_M][:, None] + np.arange(size)]
        one, other = _pair_columns(size)
        rows.append(np.repeat(row_M, len(one)))
        firsts.append(labels_MS[:, one].reshape(-1))
        seconds.append(labels_MS[:, other].reshape(-1))
    row_P = np.concatenate(rows)
    order = np.argsort(row_P, kind="stable")
    return LabelPairs(row_P[order], np.concatenate(firsts)[order], np.concatenate(seconds)[order])


def _pair_columns(num_labels: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    if num_labels <= MANY_LABELS:
        one, other = np.triu_indices(num_labels, 1)
        return one, other
    return np.zeros(num_labels - 1, dtype=np.intp), np.arange(1, num_labels)


def _relate_each(pairs: LabelPairs, hierarchy: Hierarchy) -> Related:
    """Return the relation of each pair; equal pairs of classes are computed once."""
    size = len(hierarchy)
    keys, index_P = np.unique(pairs.first_P * size + pairs.second_P, return_inverse=True)
    return Related(*(column[index_P] for column in relate(hierarchy, *np.divmod(keys, size))))
