"""Numbers of the report: counts that add up, classes, labels per image, multi-label images."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vit21k.errors import ManifestError
from vit21k.labels.conflicts import conflict_rows, label_pairs
from vit21k.labels.edit import LabelLists
from vit21k.manifest.io import Manifest, open_manifest
from vit21k.manifest.problems import ProblemKind
from vit21k.manifest.schema import (
    CLASSES,
    CONFLICTS,
    COPIES,
    DIGESTS,
    FINGERPRINTS,
    IMAGES,
    LEAKS,
    NEAR_DUPLICATES,
    OVERLABELLED,
    PROBLEMS,
    TRAIN,
    VAL,
    ManifestKind,
)
from vit21k.manifest.wordnet import RANKED, Hierarchy, relate


class MergedImages:
    """The images with several labels, the most doubtful first.

    Attributes:
        conflicts: Rows of `conflicts.parquet`, ranked, with the row in *images* as `row`.
    """

    def __init__(self, images: Manifest) -> None:
        """Read and rank the images.

        Raises:
            ManifestError: *images* is damaged.
        """
        self._hierarchy = Hierarchy.of(images.classes())
        self._images = _with_several_labels(images)
        self.conflicts = conflict_rows(self._images.drop_columns("row"), self._hierarchy)
        rows = self._images["row"]
        index = pc.index_in(self.conflicts["path"], self._images["path"].combine_chunks())
        self.conflicts = self.conflicts.append_column("row", rows.take(index))

    def __len__(self) -> int:
        return int(self.conflicts.num_rows)

    def co_occurrence(self) -> pd.DataFrame:
        """Count the images of each pair of classes, the most frequent pairs first.

        Returns:
            A row for each pair: `class_index`, `other_index`, `num_images`, `relation`.
        """
        lists = LabelLists.from_arrow(self._images["label_ids"].combine_chunks())
        found = label_pairs(lists)
        pairs = pd.DataFrame({"class_index": found.first_P, "other_index": found.second_P})
        pairs = pairs.groupby(["class_index", "other_index"]).size().reset_index(name="num_images")
        relations = relate(self._hierarchy, *pairs[["class_index", "other_index"]].to_numpy().T)
        pairs["relation"] = [str(RANKED[rank]) for rank in relations.rank_P]
        return pairs.sort_values("num_images", ascending=False, kind="stable", ignore_index=True)


def _with_several_labels(images: Manifest) -> pa.Table:
    """Return the rows of *images* with several labels, with their index."""
    columns = [name for name in CONFLICTS.schema.names if name in images.kind.schema.names]
    schema = pa.schema([images.kind.schema.field(name) for name in columns])
    parts = [schema.empty_table().append_column("row", pa.array([], pa.int64()))]
    start = 0
    for rows in images.batches(columns):
        index = np.arange(start, start + rows.num_rows)
        start += rows.num_rows
        several = pc.greater(pc.list_value_length(rows["label_ids"]), 1)
        parts.append(rows.append_column("row", pa.array(index)).filter(several))
    return pa.concat_tables(parts, promote_options="permissive").combine_chunks()


OPTIONAL_KINDS = (
    DIGESTS, PROBLEMS, COPIES, OVERLABELLED, TRAIN, VAL, FINGERPRINTS, LEAKS, NEAR_DUPLICATES
)  # fmt: skip


class Sum(NamedTuple):
    """A line of counts: *total* should be the sum of *parts*.

    Attributes:
        total: Name and count.
        parts: Names and counts.
    """

    total: tuple[str, int]
    parts: list[tuple[str, int]]

    @property
    def adds_up(self) -> bool:
        """Whether it is the sum."""
        return self.total[1] == sum(count for _, count in self.parts)


@dataclass(frozen=True)
class Numbers:
    """Counts of the page.

    Attributes:
        manifests: The existing manifests, by kind.
        classes: The rows of `classes.parquet`, with a column `title`: name and wnid.
        labels_per_image: Number of images with 1, 2 ... labels.
        problems: Rows of `problems.parquet`, by kind.
    """

    manifests: dict[str, Manifest]
    classes: pd.DataFrame
    labels_per_image: dict[int, int]
    problems: Counter[str]

    def num_rows(self, kind: ManifestKind) -> int | None:
        """Return the number of rows of a manifest; None if it does not exist."""
        manifest = self.manifests.get(kind.name)
        return None if manifest is None else manifest.num_rows

    def undecoded(self) -> pa.Table:
        """Return row and problem of the images that were read but cannot be decoded."""
        rows = self._problems()
        return rows.filter(pc.is_valid(rows["digest"])).select(["row", "problem"])

    @property
    def num_unread(self) -> int:
        """Number of images that could not be read by the search for near-duplicates."""
        return int(self._problems()["digest"].null_count)

    def _problems(self) -> pa.Table:
        manifest = self.manifests.get(FINGERPRINTS.name)
        if manifest is None:
            return FINGERPRINTS.schema.empty_table().append_column("row", pa.array([], pa.int64()))
        rows = manifest.read(["digest", "problem"])
        rows = rows.append_column("row", pa.array(np.arange(rows.num_rows)))
        return rows.filter(pc.is_valid(rows["problem"]))

    def sums(self) -> list[Sum]:
        """Return the counts that must add up."""
        num_images = self.num_rows(IMAGES) or 0
        sums = []
        if (num_files := self.num_rows(DIGESTS)) is not None:
            if PROBLEMS.name in self.manifests:
                sums.append(self._entries(num_files))
            num_copies = self.num_rows(COPIES) or 0
            parts = [("images", num_images), ("copies", num_copies)]
            if num_overlabelled := self.num_rows(OVERLABELLED):
                parts.append(("skipped, over-labelled", num_overlabelled))
            sums.append(Sum(("files", num_files), parts))
        several = num_images - self.labels_per_image.get(1, 0)
        parts = [("with one label", num_images - several), ("with several labels", several)]
        sums.append(Sum(("images", num_images), parts))
        if (num_val := self.num_rows(VAL)) is not None and TRAIN.name in self.manifests:
            sums.append(self._split(num_images, num_val))
        return sums

    def _entries(self, num_files: int) -> Sum:
        skipped = sum(self.problems[str(kind)] for kind in ProblemKind if kind.is_skipped)
        num_bad = self.problems.total() - skipped
        parts = [("files", num_files), ("bad", num_bad), ("skipped", skipped)]
        return Sum(("entries of the tree", num_files + self.problems.total()), parts)

    def _split(self, num_images: int, num_val: int) -> Sum:
        num_train = self.num_rows(TRAIN) or 0
        options = self.manifests[VAL.name].header.options
        if options.get("split") == "holdout":
            parts = [("in train", num_train), ("in val", num_val)]
            if {"from_source", "val_list"} & options.keys():  # others, or with several labels
                parts.append(("in neither", max(num_images - num_train - num_val, 0)))
        else:
            parts = [("in train alone", num_train - num_val), ("in both (a dummy split)", num_val)]
        return Sum(("images", num_images), parts)


def read_numbers(manifests: Path) -> Numbers:
    """Read the manifests of a folder.

    Raises:
        ManifestError: `images` or `classes.parquet` is missing; any is stale or damaged.
    """
    found = {kind.name: open_manifest(manifests, kind) for kind in (IMAGES, CLASSES)}
    for kind in OPTIONAL_KINDS:
        if (manifests / kind.file_name).is_file():
            found[kind.name] = open_manifest(manifests, kind)
    problems: Counter[str] = Counter()
    if PROBLEMS.name in found:
        problems.update(found[PROBLEMS.name].read(["kind"])["kind"].to_pylist())
    classes = _read_classes(found[CLASSES.name])
    if len(classes) != len(found[IMAGES.name].classes()):
        raise ManifestError(
            f"`{manifests}`: images and classes have different class lists",
            hint="make both again with `vit21k relabel`",
        )
    return Numbers(found, classes, _labels_per_image(found[IMAGES.name]), problems)


def _labels_per_image(images: Manifest) -> dict[int, int]:
    counts: Counter[int] = Counter()
    for rows in images.batches(["label_ids"]):
        for pair in pc.value_counts(pc.list_value_length(rows["label_ids"])).to_pylist():
            counts[pair["values"]] += pair["counts"]
    return dict(sorted(counts.items()))


def _read_classes(manifest: Manifest) -> pd.DataFrame:
    rows: pd.DataFrame = manifest.read().to_pandas()
    has_name = rows["name"].fillna("") != ""
    titles = (rows["name"] + " (" + rows["wnid"] + ")").where(has_name, rows["wnid"])
    return rows.assign(name=rows["name"].where(has_name, rows["wnid"]), title=titles)
